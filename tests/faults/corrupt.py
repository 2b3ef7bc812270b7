"""Damaged files of a run: a restore must find the damage and take an older checkpoint.

The damage is a flipped bit, a truncated, zeroed or deleted file, two swapped files, or the swapped
folders of two steps. Every tenth case damages all steps, so that no checkpoint verifies.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from charjax.checkpoint.checkpoints import Checkpoints, flatten
from charjax.checkpoint.record import Leaf
from charjax.errors import CheckpointError
from charjax.runtime.display import show_messages
from charjax.train.loop import train
from charjax.train.optimizer import make_optimizer
from charjax.train.train_state import init_state
from charjax.workdir import Workdir
from tests.environment import contents
from tests.faults.trial import (
    Reference,
    damaged,
    leaf_digests,
    read_series,
    small_config,
    sound_steps,
    write_words,
)
from tests.train.tiny import Recorder

_STEPS, _MORE = 30, 10  # of the damaged run, and added by resuming it
_RESUMED = 25  # every 25th case is also resumed to its end
_KINDS = ("flip", "truncate", "zero", "delete", "swap", "swap_steps")
_FIGURES = (
    "newest_damaged_and_found",
    "harmless",
    "fell_back_to_an_older_step",
    "no_good_step_left_and_refused",
    "silent",
    "restarts_from_zero",
    "no_fallback_though_a_good_step_was_there",
    "resumed_to_the_end",
    "resumed_equal",
)


def check_corrupt(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Damages n copies of a run and returns the figures of the page."""
    return _Corruptor(folder, report).damage(n)


class _Corruptor:
    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.draw, self.report = random.Random(3), report
        text = write_words(folder / "text.txt", 600)
        limits = {"eval_every": 10, "checkpoint_every": 10, "keep": 3}
        config = small_config(text, max_steps=_STEPS, **limits)
        self.whole, self.copy = folder / "whole", folder / "copy"
        self.longer = small_config(text, max_steps=_STEPS + _MORE, **limits)
        train(config, self.whole, Recorder())
        shutil.copytree(self.whole, self.copy)
        train(self.longer, self.copy, Recorder())
        steps = {s: leaf_digests(self.copy, s) for s in sound_steps(self.copy)}
        self.leaves = {s: leaf_digests(self.whole, s) for s in sound_steps(self.whole)}
        self.reference = Reference(read_series(self.copy), steps | self.leaves)
        with Checkpoints(Workdir(self.whole).checkpoints) as saved:
            vocab_size = len(saved.read_meta().meta["vocabulary"]["symbols"])
        optimizer = make_optimizer(config.optim, _STEPS + _MORE)
        self.like = jax.eval_shape(lambda: init_state(config, vocab_size, optimizer))
        self.hit: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def damage(self, n: int) -> dict[str, Any]:
        for case in range(n):
            shutil.rmtree(self.copy)
            shutil.copytree(self.whole, self.copy)
            done = self._damage_something(all_steps=case % 10 == 9)
            self._judge(done)
            if case % _RESUMED == 0:
                self._resume(done)
            if case % 100 == 99:
                self.report(f"{case + 1} cases, {len(self.problems)} problems")
        return {
            "corruptions": n,
            "by_kind": {kind: self.counts[kind] for kind in _KINDS},
            "files_that_were_hit": len(self.hit),
            **{name: self.counts[name] for name in _FIGURES},
            "problems": self.problems[:20],
            "passed": not self.problems,
        }

    def _damage_something(self, *, all_steps: bool) -> str:
        checkpoints = Workdir(self.copy).checkpoints
        if all_steps:
            return "; ".join(self._damage_file(checkpoints / str(s)) for s in self.leaves)
        if self.draw.random() < 0.05:
            first, second = (checkpoints / str(s) for s in self.draw.sample([*self.leaves], 2))
            first.rename(self.copy / "between")
            second.rename(first)
            (self.copy / "between").rename(second)
            self.counts["swap_steps"] += 1
            return f"swapped steps {first.name} and {second.name}"
        newest = checkpoints / str(_STEPS)
        return self._damage_file(newest if self.draw.random() < 0.8 else self.copy)

    def _damage_file(self, below: Path) -> str:
        files = sorted(p for p in below.rglob("*") if p.is_file() and p.stat().st_size)
        file = self.draw.choice(files)
        kind = self.draw.choice(_KINDS[:-1])
        data = file.read_bytes()
        if kind == "delete":
            file.unlink()
        elif kind == "swap":
            other = self.draw.choice(files)
            file.write_bytes(other.read_bytes())
            other.write_bytes(data)
        else:
            file.write_bytes(damaged(data, kind, self.draw))
        self.counts[kind] += 1
        name = str(file.relative_to(self.copy))
        self.hit.add(name)
        return f"{kind} {name}"

    def _judge(self, done: str) -> None:
        """Checks that a restore returns the newest undamaged step, or refuses if there is none."""
        shown = Recorder()
        intact = [step for step in self.leaves if self._is_intact(step)]
        checkpoints = Workdir(self.copy).checkpoints
        with show_messages(shown), Checkpoints(checkpoints) as saved:
            if not saved.steps():
                self._fault("restarts_from_zero", done)
            try:
                restored = saved.restore(self.like)
            except CheckpointError:
                if intact:
                    self._fault("no_fallback_though_a_good_step_was_there", done)
                else:
                    self._note("no_good_step_left_and_refused")
                return
        flat, _ = flatten(restored.state)
        digests = {path: Leaf.of(array).sha256 for path, array in flat.items()}
        if digests != self.leaves[restored.step]:
            self._fault("silent", done)
        if intact and restored.step < max(intact):
            self._fault("no_fallback_though_a_good_step_was_there", done)
        if restored.step < _STEPS and not shown.lines:
            self._fault("silent", done)
        self._note("fell_back_to_an_older_step" if restored.step < _STEPS else "harmless")
        self.counts["newest_damaged_and_found"] += bool(shown.lines)

    def _is_intact(self, step: int) -> bool:
        good, found = (contents(f / "checkpoints" / str(step)) for f in (self.whole, self.copy))
        return good.items() <= found.items()

    def _resume(self, done: str) -> None:
        """Checks that the run resumes to the same result, or refuses and deletes nothing."""
        before = set(Workdir(self.copy).checkpoints.rglob("*"))
        self._note("resumed_to_the_end")
        try:
            train(self.longer, self.copy, Recorder())
        except CheckpointError:
            lost = before - set(Workdir(self.copy).checkpoints.rglob("*"))
            self._fault("evidence lost", done) if lost else self._note("resumed_equal")
            return
        equal = self.reference.leaves[_STEPS + _MORE] == leaf_digests(self.copy, _STEPS + _MORE)
        self._note("resumed_equal") if equal else self._fault("resumed differently", done)

    def _note(self, name: str) -> None:
        self.counts[name] += 1

    def _fault(self, name: str, done: str) -> None:
        self._note(name)
        self.problems.append(f"{name}: {done}")
