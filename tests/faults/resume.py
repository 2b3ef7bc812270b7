"""Resuming at every step, and five times in a row: results equal bit for bit."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charjax.config import Config
from charjax.errors import InterruptedRunError
from charjax.train.loop import train
from tests.faults.trial import (
    Reference,
    leaf_digests,
    read_series,
    small_config,
    sound_steps,
    write_words,
)
from tests.train.tiny import Recorder, at_step, stop_when

_MOST_RESUMES = 5


def check_resume(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Resumes a run of n steps at each of them and returns the figures of the page."""
    text, limits = write_words(folder / "text.txt", 600), {"max_steps": n, "eval_every": n}
    config = small_config(text, schedule="cosine", checkpoint_every=1, keep=n, **limits)
    whole = folder / "whole"
    train(config, whole, Recorder())
    leaves = {step: leaf_digests(whole, step) for step in sound_steps(whole)}
    reference = Reference(read_series(whole), leaves)
    seldom = small_config(text, schedule="cosine", checkpoint_every=n, keep=n, **limits)
    differing = []
    for step in range(1, n):
        problems = _resume_at(step, seldom, whole, folder / "resumed", reference)
        differing += [f"from step {step}: {problem}" for problem in problems]
        report(f"from step {step}: {len(problems)} differences")
    resumes = min(_MOST_RESUMES, n // 2 - 1)  # two steps between stops, for each to be obeyed
    in_a_row, chained = _resume_in_a_row(resumes, seldom, folder / "chained", reference)
    return {
        "steps": n,
        "restored_at": n - 1,
        "differences": len(differing),
        "resumes_in_a_row": in_a_row,
        "differences_in_a_row": len(chained),
        "arrays_compared_a_step": len(leaves[n]),
        "problems": (differing + chained)[:20],
        "passed": not differing and not chained and in_a_row == resumes,
    }


def _resume_at(
    step: int, config: Config, whole: Path, resumed: Path, reference: Reference
) -> list[str]:
    """Differences of a run resumed from this step alone to the uninterrupted one."""
    shutil.copytree(whole, resumed, ignore=lambda path, names: _others(step, path, names))
    train(config, resumed, Recorder())
    problems = reference.problems(resumed)
    if max(sound_steps(resumed), default=0) != config.train.max_steps:
        problems.append("it ended before its last step")
    shutil.rmtree(resumed)
    return problems


def _others(step: int, path: str, names: list[str]) -> list[str]:
    """The names of all checkpoints but this one."""
    return [n for n in names if Path(path).name == "checkpoints" and n != str(step)]


def _resume_in_a_row(
    resumes: int, config: Config, workdir: Path, reference: Reference
) -> tuple[int, list[str]]:
    """(number of resumes, differences) of one run that SIGTERM stops repeatedly."""
    every = config.train.max_steps // (resumes + 1)
    for resumed in range(resumes):
        try:
            stop = stop_when(signal.SIGTERM, at_step((resumed + 1) * every))
            train(config, workdir, Recorder(stop))
        except InterruptedRunError:
            continue
        return resumed, ["a signal was not obeyed"]
    train(config, workdir, Recorder())
    return resumes, reference.problems(workdir)
