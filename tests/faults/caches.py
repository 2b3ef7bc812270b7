"""Damaged compiled kernels in the cache: each must be found unloaded, and compiled again.

A loaded library that is truncated ends a process with SIGBUS, so each case is a process of its own.
Most use a compiler that copies a library compiled before; some of them the real one.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.library import FORWARD, target
from tests.faults.trial import damaged, fork

_REAL = 20  # cases with the real compiler, among them all
_KINDS = ("truncate", "flip", "zero", "append", "rotate")


def check_caches(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Damages n caches and returns the figures of the page."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    cache, draw = folder / "charjax" / "kernels", random.Random(5)
    started = time.monotonic()
    if code := _load_in_a_process():
        raise RuntimeError(f"no library to damage: exit {code}")
    compile_s = time.monotonic() - started
    (library,) = cache.iterdir()
    good, name = library.read_bytes(), library.name
    copier = _write_compiler(folder, good)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    real = set(draw.sample(range(n), min(n, max(1, _REAL * n // 500))))
    for number in range(n):
        kind = draw.choice(_KINDS)
        os.environ["CC"] = "cc" if number in real else str(copier)
        while (content := damaged(good, kind, draw)) == good:
            pass
        library.write_bytes(content)
        library.chmod(0o600)
        problem = _judge(cache, name)
        counts[kind] += 1
        counts["crashes"] += problem.startswith("exit -")
        problems += [f"{kind}: {problem}"] if problem else []
        if number % 100 == 99:
            report(f"{number + 1} caches, {len(problems)} problems")
    return {
        "caches": n,
        "by_kind": {kind: counts[kind] for kind in _KINDS},
        "with_the_real_compiler": len(real),
        "crashes": counts["crashes"],
        "compiled_again": n - len(problems),
        "compilation_s": round(compile_s, 1),
        "problems": problems[:20],
        "passed": not problems,
    }


def _write_compiler(folder: Path, library: bytes) -> Path:
    """A script that takes a compiler's arguments, of which the last is the output."""
    (folder / "library").write_bytes(library)
    script = folder / "copier"
    script.write_text(f'#!/bin/sh\nfor output; do :; done\ncp {folder / "library"} "$output"\n')
    script.chmod(0o755)
    return script


def _judge(cache: Path, name: str) -> str:
    """What is wrong after a process has loaded the kernels; "" if nothing is."""
    if code := _load_in_a_process():
        return f"exit {code}"
    names = [file.name for file in cache.iterdir()]
    if len(names) != 1:
        return f"the cache has {names}"
    content = (cache / names[0]).read_bytes()
    is_sound = build._name(name.partition(".")[0], content) == names[0]
    return "" if is_sound else "it was not compiled again"


def _load_in_a_process() -> int:
    """Exit code, or minus the signal, of a process that opens the library."""
    symbol = target(FORWARD, "float32")
    process = fork(lambda: 0 if hasattr(build.open_library(), symbol) else 2)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
