"""What names a run, so that a folder is never continued as another run by mistake."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from charjax.config import Config, differences, from_config_dict, to_dict
from charjax.data.prepare import Prepared
from charjax.errors import InputError

# What may change between a run and its resumption: how long and how often, not what.
_MUST_STAY = ("train.scheduled",)
_MAY_CHANGE = ("train.", "sample.", "parallel.", "model.recurrence", "data.path", "data.offline")

_PACKAGES = ("charjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(config: Config, text: Prepared, parameters: int) -> dict[str, Any]:
    """The run as JSON values, for `run.json` and for every checkpoint."""
    corpus = text.corpus
    return {
        "config": to_dict(config),
        "vocabulary": text.vocab.to_json(),
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "chars": len(corpus.text),
            "notice": corpus.notice,
        },
        "parameters": parameters,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def check_same_run(folder: Path, saved: Mapping[str, Any], config: Config, text: Prepared) -> None:
    """Refuses to go on with another model, optimizer, seed or text than before.

    Args:
      folder: the run's, for the message.
      saved: what `describe` said when the run was saved.
      config: the run now.
      text: its text now.

    Raises:
      InputError: they differ; it names every field, before and now.
    """
    changed = {
        name: values
        for name, values in differences(from_config_dict(saved["config"]), config).items()
        if name.startswith(_MUST_STAY) or not name.startswith(_MAY_CHANGE)
    }
    if changed:
        what = "; ".join(
            f"config.{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items()
        )
        raise InputError(
            f"{folder}: holds another run: {what}; change it back, or choose another --workdir"
        )
    before, now = saved["corpus"], text.corpus
    if before["sha256"] != now.sha256:
        raise InputError(
            f"{folder}: was trained on another text: {before['name']}, {before['chars']:,} "
            f"characters, SHA-256 {before['sha256'][:12]}; now {now.name}, {len(now.text):,} "
            f"characters, {now.sha256[:12]}; bring it back, or choose another --workdir"
        )
