from __future__ import annotations

import os
import subprocess
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
        MetricsLog(path).write(record)  # each resumption opens its own
    assert read_metrics(path) == RECORDS
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"\xff", b"[1]", b"[" * 100_000, b'{"epoch": 1}', b'{"step": true}'),
        *(b'{"step": 1, "x": 1e999}', b'{"step": 1, "val_loss": 1e308}'),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match="line 2 is not a record"):
        read_metrics(file)


def test_nan_is_not_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        MetricsLog(path).write({"step": 1, "train_loss": float("nan")})
    assert read_metrics(path) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_curves_are_drawn_from_any_number_of_records(tmp_path, count):
    draw_curves(RECORDS[:count], tmp_path / "curves.png")
    assert png(tmp_path / "curves.png")


def test_curves_differ_where_losses_do_and_begin_anew_where_the_text_was_changed(tmp_path):
    last = {"step": 30, "train_loss": 2.5, "val_loss": 3.0}
    drawn = set()
    for records in (
        RECORDS,
        [RECORDS[0], RECORDS[1] | {"val_loss": 2.9}],
        [*RECORDS, last],
        [*RECORDS, last | {"val_record": 1}],
    ):
        draw_curves(records, tmp_path / "curves.png")
        drawn.add((tmp_path / "curves.png").read_bytes())
    assert len(drawn) == 4


def test_a_cache_that_cannot_be_written_is_no_warning(tmp_path):
    (tmp_path / "file").touch()
    code = "from charjax.train.metrics import figure_class; figure_class()"
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path / "file" / "folder")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    assert run.stderr == b""
