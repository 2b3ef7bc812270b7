"""Damaged packed texts: `charjax verify` finds each damage, and no run trains on one.

The damage is a flipped bit, a truncated or a deleted file, anywhere in a store of documents with
several shards. A run on the damaged store either ends with exit code 3, and its steps so far are
those of the undamaged store bit for bit; or it reads nothing that is damaged, and all of them are.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from charjax.config import DataConfig
from tests.data.packing import tiny_shards
from tests.environment import contents
from tests.faults.trial import (
    call,
    damaged,
    leaf_digests,
    read_series,
    small_config,
    write_config,
)

_STEPS = 40  # of a run: two epochs
_KINDS = ("flip", "truncate", "delete")
_UNREADABLE = 2  # exit code of a store without store.json, which is none


def check_stores(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Damages n copies of a store and returns the figures of the page."""
    # So small that a text has several, and steps read some.
    with tiny_shards(shard_bytes=2500, file_tokens=1024, chunk=256):
        return _Damager(folder, report).damage(n)


class _Damager:
    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder, self.report, self.draw = folder, report, random.Random(7)
        self.whole, self.copy = folder / "whole", folder / "copy"
        lines = (f"line {i}: {'the cat sat on a mat '[: i % 21]}\n" for i in range(700))
        (folder / "text.txt").write_text("".join(lines))
        command = ["pack", str(folder / "text.txt"), f"--out={self.whole}", "--documents=lines"]
        assert call(command)[0] == 0
        code, series, self.reference_error = self._train(self.whole)
        assert code == 0, self.reference_error
        self.series, self.leaves = series, leaf_digests(folder / "run", _STEPS)
        self.files = sorted(contents(self.whole))
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def damage(self, n: int) -> dict[str, Any]:
        for case in range(n):
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.whole, self.copy)
            done = self._damage_a_file(_KINDS[case % len(_KINDS)])
            self.problems += [f"{done}: {problem}" for problem in self._judge()]
            if case % 50 == 49:
                self.report(f"{case + 1} stores, {len(self.problems)} problems")
        return {
            "stores": n,
            "files": len(self.files),
            "by_kind": {kind: self.counts[kind] for kind in _KINDS},
            "found_by_verify": self.counts["found"],
            "training_ended_with_exit_3": self.counts["stopped"],
            "of_these_after_some_steps": self.counts["stopped later"],
            "store_json_deleted_and_refused": self.counts["refused"],
            "damage_that_training_does_not_read": self.counts["unread"],
            "steps_on_damaged_text": self.counts["wrong steps"],
            "problems": self.problems[:20],
            "passed": not self.problems,
        }

    def _damage_a_file(self, kind: str) -> str:
        name = self.draw.choice(self.files)
        file = self.copy / name
        if kind == "delete":
            file.unlink()
        else:
            file.write_bytes(damaged(file.read_bytes(), kind, self.draw))
        self.counts[kind] += 1
        return f"{kind} {name}"

    def _judge(self) -> Iterator[str]:
        """What is wrong with `verify` and a run on the copy."""
        has_index = (self.copy / "store.json").exists()
        code, _, error = call(["verify", str(self.copy)])
        if code == (3 if has_index else _UNREADABLE) and error.count("\n") == 1:
            self.counts["found"] += 1
        else:
            yield f"verify: exit {code}, {error}"
        code, series, error = self._train(self.copy)
        steps = [step for step, losses in series.items() if losses != self.series[step]]
        self.counts["wrong steps"] += len(steps)
        if steps:
            yield f"trained on it in the steps {steps}"
        if code == 0:
            self.counts["unread"] += 1
            if leaf_digests(self.folder / "run", _STEPS) != self.leaves:
                yield "the run ended in other weights"
        elif code == (3 if has_index else _UNREADABLE) and error.count("\n") == 1:
            self.counts["stopped" if has_index else "refused"] += 1
            self.counts["stopped later"] += has_index and bool(series)
        else:
            yield f"train: exit {code}, {error}"

    def _train(self, store: Path) -> tuple[int, dict[int, tuple[str, ...]], str]:
        """Exit code, losses of each step and standard error of a new run on a store."""
        workdir = self.folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        base = small_config(store, max_steps=_STEPS, eval_every=_STEPS, steps_per_dispatch=1)
        data = DataConfig(path=str(store), documents="lines", batch_size=4, seq_len=48)
        data = replace(data, batching="windows", split=(0.8, 0.1, 0.1))
        config = replace(base, data=data, optim=replace(base.optim, ema=0.0))
        file = write_config(self.folder / "config.py", config)
        code, _, error = call(["train", f"--config={file}", f"--workdir={workdir}"])
        return code, read_series(workdir), error
