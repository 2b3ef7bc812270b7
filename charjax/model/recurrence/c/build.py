"""From the C sources beside this module to functions that XLA calls.

They are compiled once, by the C compiler that is there, for the processor that is there, and
kept in the user's cache. Where that cannot be, charjax does without: see `Absent`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from charjax.runtime.cache import cache_folder
from charjax.runtime.dtypes import cpu_flags

# The names that XLA knows.
FORWARD, BACKWARD, GRADIENT = "charjax_forward", "charjax_backward", "charjax_gradient"
PACK, MULTIPLY = "charjax_pack", "charjax_multiply"

_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-O3", "-std=gnu11", "-D_GNU_SOURCE", "-fno-math-errno", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # the first that a compiler takes
_PATIENCE_S = 120


@dataclass(frozen=True)
class Kernels:
    """The compiled functions, and what decides how much room they need.

    Attributes:
      lanes: of a vector.
      rows: of a tile of weights, in the recurrence.
      outputs: of a tile of weights, where one character follows the other.
      has_bfloat16: whether the processor multiplies bfloat16 numbers.
    """

    lanes: int
    rows: int
    outputs: int
    has_bfloat16: bool

    def takes(self, dtype: DTypeLike) -> bool:
        """Whether there are products of operands of this dtype."""
        return self.has_bfloat16 or jnp.dtype(dtype) == jnp.float32

    def padded(self, batch: int) -> int:
        """A batch in whole vectors."""
        return -(-batch // self.lanes) * self.lanes

    def forward_scratch(self, gates: int, hidden: int, batch: int, dtype: DTypeLike) -> int:
        """Bytes of working memory of `FORWARD`, whose tiles are all gates of some units."""
        units = self.rows // gates
        return self._scratch(-(-hidden // units), _even(hidden), batch, dtype)

    def backward_scratch(self, gates: int, hidden: int, batch: int, dtype: DTypeLike) -> int:
        """Bytes of working memory of `BACKWARD`, whose tiles are units."""
        return self._scratch(-(-hidden // self.rows), gates * _even(hidden), batch, dtype)

    def gradient_scratch(self, rows: int, positions: int, dtype: DTypeLike) -> int:
        """Bytes of working memory of `GRADIENT`: one operand, packed."""
        tiles = -(-rows // self.rows)
        return tiles * self.rows * _even(positions) * jnp.dtype(dtype).itemsize

    def packed_size(self, terms: int, outputs: int) -> int:
        """Numbers that `PACK` makes of a kernel [terms, outputs]."""
        return _even(terms) * -(-outputs // self.outputs) * self.outputs

    def _scratch(self, tiles: int, terms: int, batch: int, dtype: DTypeLike) -> int:
        """All weights, and the lanes' states twice."""
        numbers = terms * (tiles * self.rows + 2 * self.padded(batch))
        return numbers * jnp.dtype(dtype).itemsize


@dataclass(frozen=True)
class Absent:
    """There are no kernels; `reason` is for people."""

    reason: str


@functools.cache
def load() -> Kernels | Absent:
    """The kernels of this process, compiled if they are not in the cache."""
    if jax.default_backend() != "cpu":
        return Absent("no CPU")
    found = library()
    if isinstance(found, Absent):
        return found
    for name in (FORWARD, BACKWARD, GRADIENT, PACK, MULTIPLY):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(found, name)), platform="cpu")
    return Kernels(
        lanes=_constant(found, "charjax_lanes"),
        rows=_constant(found, "charjax_rows"),
        outputs=_constant(found, "charjax_outputs"),
        has_bfloat16=bool(_constant(found, "charjax_has_bfloat16")),
    )


def library() -> ctypes.CDLL | Absent:
    """The compiled functions, from the cache, or else compiled now and put there."""
    kept = cache_folder("kernels") / f"{_digest()}.so"
    return _open(kept) or _compile(kept)


def _digest() -> str:
    """Of all that a compiled file depends on, but for the compiler: it may leave."""
    parts = [path.read_text("utf-8") for path in sorted(_SOURCES.glob("*.[ch]"))]
    parts += [*_FLAGS, importlib.metadata.version("jaxlib"), platform.system(), platform.machine()]
    parts += [platform.processor(), *sorted(cpu_flags())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(kept: Path) -> ctypes.CDLL | Absent:
    """The library, moved to `kept` once it is whole; not kept where that cannot be written."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return Absent("no C compiler (cc)")
    with tempfile.TemporaryDirectory(prefix="charjax-") as folder:
        made = Path(folder) / kept.name
        complaint = ""
        for command in _commands(compiler, made):
            try:
                subprocess.run(
                    command, check=True, capture_output=True, text=True, timeout=_PATIENCE_S
                )
                break
            except subprocess.CalledProcessError as error:
                complaint = error.stderr.strip() or f"exit status {error.returncode}"
            except (OSError, subprocess.TimeoutExpired) as error:
                complaint = str(error)
        else:
            return Absent(f"{compiler} fails: {complaint.splitlines()[0]}")
        return _open(_keep(made, kept)) or Absent(f"what {compiler} made cannot be loaded")


def _commands(compiler: str, made: Path) -> Iterator[list[str]]:
    sources = [str(path) for path in sorted(_SOURCES.glob("*.c"))]
    for processor in _PROCESSOR_FLAGS:
        include = f"-I{jax.ffi.include_dir()}"
        yield [compiler, *_FLAGS, *processor, include, *sources, "-o", str(made)]


def _keep(made: Path, kept: Path) -> Path:
    """Where the library lies from now on: other processes must never see half of it."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, part)
        part.replace(kept)
    except OSError:
        return made
    return kept


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _constant(library: ctypes.CDLL, name: str) -> int:
    return ctypes.c_int.in_dll(library, name).value


def _even(count: int) -> int:
    return count + count % 2
