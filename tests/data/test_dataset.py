from __future__ import annotations

import logging

import numpy as np
import pytest

from charjax.config import Config, DataConfig
from charjax.data.dataset import Dataset, load_dataset
from charjax.errors import InputError

from .shelf import Shelf

TEXT = "once upon a time " * 20 + "Z"  # Z is in the validation split alone


@pytest.fixture
def load(tmp_path):
    """The dataset of a file with this text, with a seed."""

    def load_text(text: str = TEXT, seed: int = 0) -> Dataset:
        (tmp_path / "text.txt").write_text(text)
        data = DataConfig(path=str(tmp_path / "text.txt"), batch_size=2, seq_len=8)
        return load_dataset(Config(seed=seed, data=data))

    return load_text


def test_the_splits_are_the_text_in_the_vocabulary_of_all_of_it(load):
    dataset = load()
    assert "Z" in dataset.vocab.characters
    assert "Z" not in dataset.vocab.decode(dataset.splits.train.ids)
    assert "".join(dataset.vocab.decode(split.ids) for split in dataset.splits) == TEXT


def test_batches_are_of_the_train_split_in_the_order_of_the_seed(load):
    one, same, other = load(seed=1), load(seed=1), load(seed=2)
    train = one.splits.train.ids
    np.testing.assert_array_equal(one.batches(0).inputs[0], train[:8])
    step = one.batches.steps_per_epoch  # the first step of the second epoch
    np.testing.assert_array_equal(one.batches(step).inputs, same.batches(step).inputs)
    assert not np.array_equal(one.batches(step).inputs, other.batches(step).inputs)


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": "words"},
        {"documents": "delimiter"},
        {"batching": "random"},
        {"batch_size": 0},
        {"batch_size": "4"},
        {"batching": "sliding", "stride": 0},
        {"split": (0.5, 0.6, 0.0)},
        {"newlines": "mac"},
        {"columns": (0,)},
        {"csv_delimiter": "ab"},
        {"unit": "byte", "documents": "rows", "csv_delimiter": "ä"},
    ],
)
def test_a_config_that_python_code_has_made_is_checked(tmp_path, fields):
    (tmp_path / "text.txt").write_text(TEXT)
    data = DataConfig(
        **{"path": str(tmp_path / "text.txt"), "batch_size": 2, "seq_len": 8} | fields
    )
    with pytest.raises(InputError, match=rf"config\.data\.({'|'.join(fields)})"):
        load_dataset(Config(data=data))


def test_a_text_of_one_character_is_read_with_a_warning(load, caplog):
    assert len(load("a" * 100).vocab) == 1
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "only one distinct character" in warning.getMessage()


def test_progress_of_a_download_reaches_the_caller(shelf, monkeypatch):
    seen = []

    def fetch(source, target, *, progress):
        progress(3, 9)
        shelf.put("cache", Shelf.TEXT * 9)

    monkeypatch.setattr("charjax.data.sources.named_corpora.fetch", fetch)
    data = DataConfig(corpus="story", batch_size=1, seq_len=4)
    load_dataset(Config(data=data), progress=lambda received, expected: seen.append(received))
    assert seen == [3]


def test_a_substitute_without_documents_is_split_by_position(shelf):
    data = DataConfig(
        corpus="story", offline="python_docs", documents="lines", split_by="hash", batch_size=2
    )
    splits = load_dataset(Config(data=data)).splits
    assert len(splits.val.ids) == pytest.approx(0.1 * len(splits.train.ids) / 0.9, abs=1)
