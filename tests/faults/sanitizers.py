"""The C kernels under sanitizers: sanitizers.c calls them as XLA does, without JAX.

They are compiled with AddressSanitizer and UndefinedBehaviorSanitizer, and again with
ThreadSanitizer, for each width of vectors that this processor has. Each program is also told to
make a mistake, which its sanitizer must find.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from charjax.model.recurrence.c import build
from charjax.model.recurrence.c.compiler import compiler_command

_DRIVER = Path(__file__).with_suffix(".c")
_SANITIZERS = ("address,undefined", "thread")
_SEED = 1


def check_sanitizers(n: int, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Runs n shapes in each program and returns the figures of the page."""
    calls, found, problems = 0, 0, []
    programs = [(s, processor) for s in _SANITIZERS for processor in _processors()]
    for sanitizer, processor in programs:
        program = folder / f"{sanitizer}{processor}"
        _compile(program, sanitizer, processor)
        found += bool(_run(program, "plant").returncode)
        ended = _run(program, str(n), str(_SEED))
        if ended.returncode:
            problems.append(f"{program.name}: {ended.stderr[-2000:]}")
        else:
            calls += int(ended.stdout)
        report(f"{program.name}: {calls} calls, {len(problems)} problems")
    return {
        "shapes": n,
        "programs": [f"{sanitizer} {processor}" for sanitizer, processor in programs],
        "calls": calls,
        "planted_mistakes_found": found,
        "problems": problems,
        "passed": not problems and found == len(programs),
    }


def _processors() -> tuple[str, ...]:
    """Flags for each width of vectors in src/simd.h."""
    if platform.machine() == "x86_64":
        return ("-march=native", "-march=x86-64-v3", "-march=x86-64")
    return ("-mcpu=native",)


def _compile(program: Path, sanitizer: str, processor: str) -> None:
    flags = [flag for flag in build._FLAGS if flag not in ("-shared", "-fPIC")]
    flags += ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", processor]
    sources = [*sorted(build._SOURCES.glob("*.c")), _DRIVER]
    command = [*compiler_command(), *flags, f"-I{jax.ffi.include_dir()}", *sources]
    subprocess.run([*command, "-o", program, "-lpthread"], check=True)


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    command = [program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
