from __future__ import annotations

import sys

import pytest

from charjax.errors import InputError
from charjax.train.metrics import MetricsLog, draw_curves, read_metrics

RECORDS = [
    {"step": 10, "train_loss": 3.0000000000000004, "grad_norm": 1e-30},
    {"step": 20, "train_loss": 2.0, "val_loss": 2.5, "val_bpc": 3.6067376022224087},
]


def png(path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_records_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for record in RECORDS:
        MetricsLog(path, tensorboard=False).write(record)  # each resumption opens its own
    assert read_metrics(path) == RECORDS
    assert path.read_bytes().count(b"\n") == 2


def test_nan_is_not_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        MetricsLog(path, tensorboard=False).write({"step": 1, "train_loss": float("nan")})
    assert read_metrics(path) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_curves_are_drawn_from_any_number_of_records(tmp_path, count):
    draw_curves(RECORDS[:count], tmp_path / "curves.png")
    assert png(tmp_path / "curves.png")


def test_curves_differ_where_losses_do(tmp_path):
    draw_curves(RECORDS, tmp_path / "one.png")
    draw_curves([RECORDS[0], RECORDS[1] | {"val_loss": 2.9}], tmp_path / "other.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_events_are_written_beside_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    log.write(RECORDS[1])
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    for name in ("train_loss", "val_loss", "val_bpc"):
        assert name.encode() in events.read_bytes()
    assert read_metrics(tmp_path / "metrics.jsonl") == [RECORDS[1]]


def test_events_without_their_package_are_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match=r"config\.train\.tensorboard=True.*pip install"):
        MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
