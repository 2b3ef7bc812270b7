"""The metadata of a run: the platform it was trained on."""

from __future__ import annotations

import importlib.metadata

from charjax.checkpoint.meta import Platform


def test_charjax_on_pythonpath_alone_is_recorded_as_not_installed(monkeypatch):
    version = importlib.metadata.version

    def without_charjax(name):
        if name == "charjax":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_charjax)
    versions = Platform.current().versions
    assert versions["charjax"] == "not installed"
    assert versions["jax"] == version("jax")
