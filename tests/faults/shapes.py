"""Records, and metadata of arrays, of any shape: each is refused in one line, in little memory.

The digest of a changed record is correct, as if charjax had written it. Half of the cases change
what the array store says of an array or of the tree of arrays.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charjax.workdir import Workdir
from tests.checkpoint.rewriting import open_arrays, rewrite_record
from tests.faults.trial import ROOT, Trial, call, small_config, write_config, write_words

_STEPS = 10
_MEMORY = 2.0  # at most so many times that of a healthy run
_LARGE = (2**20, 2**31, 2**40, 2**62, 10**30)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 7, 1.5, float("nan"), float("inf"), "", "x", "float32", [], [1],
    [[]], {}, {"x": 1}, *_LARGE, [2**30], [2**20, 2**20], "\ud800", "a" * 10**5, [0] * 10**5,
)  # fmt: skip


def check_shapes(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Reads n changed runs in a process of its own and returns the figures of the page."""
    trial = Trial(folder)
    command = [sys.executable, "-m", __name__, str(folder), str(n)]
    ended = subprocess.run(
        command, cwd=ROOT, env=trial.environment(), capture_output=True, text=True
    )
    if ended.returncode:
        raise RuntimeError(f"exit {ended.returncode}: {ended.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    for problem in figures["problems"]:
        report(problem)
    return figures


class _Shapes:
    def __init__(self, folder: Path) -> None:
        text = write_words(folder / "text.txt", 600)
        self.config = write_config(folder / "config.py", small_config(text, max_steps=_STEPS))
        self.good, self.copy = folder / "good", folder / "copy"
        self.draw = random.Random(7)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        call(["train", f"--config={self.config}", f"--workdir={self.good}"])
        for command in self._commands(self.good):
            call(command)  # compiled now, and not counted as memory of a case
        _reset_peak()
        codes = [call(command)[0] for command in self._commands(self.good)]
        if any(codes):
            raise RuntimeError(f"a healthy run was refused: {codes}")
        self.healthy = self.most = _peak()

    def _commands(self, run: Path) -> list[list[str]]:
        workdir = f"--workdir={run}"
        return [
            ["info", workdir],
            ["verify", workdir],
            ["sample", workdir, "--num_chars=4", "--prompt=the cat"],
            ["score", workdir, f"--file={self.config.with_name('text.txt')}"],
            ["train", f"--config={self.config}", workdir],
        ]

    def read(self, n: int) -> dict[str, Any]:
        for number in range(n):
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.good, self.copy)
            change = self._change_record if number % 2 else self._change_arrays
            steps = list(Workdir(self.copy).checkpoints.iterdir())
            done = [change(step) for step in steps]  # all, so that there is no fallback
            command = self.draw.choice(self._commands(self.copy))
            _reset_peak()
            self._judge(command, "; ".join(done))
            self.most = max(self.most, _peak())
        return {
            "shapes": n,
            "refused_with_exit_3": self.counts["exit 3"],
            "harmless": self.counts["exit 0"],
            "another_run_with_exit_2": self.counts["exit 2"],
            "tracebacks": self.counts["tracebacks"],
            "healthy_peak_mb": self.healthy // 2**20,
            "highest_peak_mb": self.most // 2**20,
            "memory_ratio": round(self.most / self.healthy, 3),
            "problems": self.problems[:20],
            "passed": not self.problems and self.most <= _MEMORY * self.healthy,
        }

    def _judge(self, command: list[str], done: str) -> None:
        try:
            code, _, errors = call(command)
        except Exception:
            self.counts["tracebacks"] += 1
            self.problems.append(f"{command[0]}: {done}: {traceback.format_exc()[-600:]}")
            return
        self.counts[f"exit {code}"] += 1
        last = (errors.splitlines() or [""])[-1]
        allowed = (0, 2, 3) if command[0] == "train" else (0, 3)
        if code not in allowed or (code and not last.startswith("charjax: ")):
            self.problems.append(f"{command[0]}: {done}: exit {code}: {last[-300:]}")

    def _change_record(self, step: Path) -> str:
        return f"record {rewrite_record(self._change, step)}"

    def _change_arrays(self, step: Path) -> str:
        if self.draw.random() < 0.3:
            file = step / "state" / "_METADATA"
            values = json.loads(file.read_bytes())
            done = self._change(values)
            file.write_text(json.dumps(values))
            return f"_METADATA {done}"
        store = open_arrays(step)
        names = [name for name in store.list().result() if name.endswith(b".zarray")]
        name = self.draw.choice(names)
        values = json.loads(store[name])
        done = self._change(values)
        store[name] = json.dumps(values).encode()
        return f"{name.decode()} {done}"

    def _change(self, values: Any) -> str:
        """Changes something somewhere in JSON values; returns what."""
        path = []
        while True:
            keys = [*values] if isinstance(values, dict) else [*range(len(values))]
            key = self.draw.choice(keys)
            path.append(str(key))
            inner = values[key]
            if not isinstance(inner, dict | list) or not inner or self.draw.random() < 0.2:
                break
            values = inner
        kind = self.draw.choice(("replace", "replace", "delete", "add", "wrap"))
        if kind == "replace":
            values[key] = self.draw.choice(_VALUES)
        elif kind == "delete":
            del values[key]
        elif kind == "wrap":
            values[key] = [values[key]]
        elif isinstance(values, dict):
            values["added"] = self.draw.choice(_VALUES)
        else:
            values.append(self.draw.choice(_VALUES))
        shown = f"to {values[key]!r:.40}" if kind == "replace" else ""
        return f"{kind} {'/'.join(path)} {shown}"


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes of memory at most since `_reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(_Shapes(Path(sys.argv[1])).read(int(sys.argv[2]))))
