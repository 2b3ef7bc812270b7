"""Stores that tests pack."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from charjax.config import DataConfig
from charjax.data.packed import files as store_files
from charjax.data.packed import plan as plan_module
from charjax.data.packed.pack import pack
from charjax.data.packed.plan import Plan, make_plan
from charjax.data.reading.rules import ReadingRules
from charjax.data.sources.file_search import find_files


@contextlib.contextmanager
def tiny_shards(shard_bytes: int = 64, file_tokens: int = 32, chunk: int = 16) -> Iterator[None]:
    """Shards, files and chunks so small that short texts have several, and tiny blocks to read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "SHARD_BYTES", shard_bytes)
        patch.setattr(store_files, "FILE_TOKENS", file_tokens)
        patch.setattr(store_files, "CHUNK", chunk)
        patch.setattr("charjax.data.reading.decoding._BLOCK", 7)
        patch.setattr("charjax.data.reading.decoding._HEAD", 5)
        patch.setattr("charjax.data.reading.documents._MAX_REST", 11)
        yield


def plan_of(path: Path | str, **fields) -> Plan:
    """How a text is packed that is read as these fields of the config say."""
    rules = ReadingRules.from_config(DataConfig(**fields))
    return make_plan(find_files(str(path), "PATH"), rules, "")


def packed(data: DataConfig, store: Path) -> DataConfig:
    """Packs the text of a config; the config with the store in its place."""
    plan = make_plan(find_files(data.path, "PATH"), ReadingRules.from_config(data), "")
    assert pack(plan, str(store)) is not None
    return replace(data, path=str(store))
