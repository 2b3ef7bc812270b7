"""What a person is told fits what is known."""

from __future__ import annotations

from charjax.train import words


def test_an_evaluation_says_what_it_has():
    record = {"step": 1200, "epoch": 1.5, "chars_per_second": 2000.0, "train_loss": 1.25}
    without = words.evaluation(record, better=False)
    assert "train 1.2500" in without
    assert "val" not in without
    both = words.evaluation(record | {"val_loss": 1.5, "val_bpc": 2.164}, better=True)
    assert "val 1.5000 nats (2.1640 bits)" in both
    assert both.endswith("best")
