"""A vocabulary of 30,000 symbols trains and evaluates in less than 2 GB, by the public commands."""

from __future__ import annotations

import random

import pytest

from tests.data.measure_scale import CHARJAX, run

SYMBOLS = [chr(0x3400 + number) for number in range(29_999)] + ["\n"]
MAX_MB = 2000


@pytest.mark.slow
def test_30_000_symbols_train_and_evaluate_in_2_gb(tmp_path):
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    characters = [*SYMBOLS, *random.Random(0).choices(SYMBOLS, k=40_000)]
    text.write_text("".join(characters), encoding="utf-8")
    options = ("path", text), ("corpus", ""), ("eval_chars", 2000)
    training_mb = run(
        *(
            *CHARJAX,
            "train",
            "--config=quickstart",
            f"--workdir={workdir}",
            "--config.train.max_steps=3",
        ),
        *(f"--config.data.{name}={value}" for name, value in options),
        "--config.sample.num_chars=1",
    ).peak_mb
    text.write_text("".join(characters[:33_000]), encoding="utf-8")  # 32 sequences
    scoring_mb = run(*CHARJAX, "score", f"--workdir={workdir}", f"--file={text}").peak_mb
    print(f"training: {training_mb:.0f} MB, scoring: {scoring_mb:.0f} MB")
    assert training_mb < MAX_MB
    assert scoring_mb < MAX_MB
