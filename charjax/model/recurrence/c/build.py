"""Compiles the C sources in `src/` for this processor and registers them with XLA.

The compiled library is cached in the user's cache folder. Where it can be neither compiled nor
loaded, charjax runs without it: `load` then returns `Unavailable`, with the reason.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from charjax.errors import InputError
from charjax.model.recurrence.c.compiler import compiler_command, run_compiler
from charjax.runtime.cache import is_private, private_cache_folder
from charjax.runtime.dtypes import cpu_flags
from charjax.runtime.files import open_regular, write_atomically

# The FFI targets; `target` adds the dtype.
FORWARD, BACKWARD = "charjax_forward", "charjax_backward"
WEIGHT_GRADIENT = "charjax_weight_gradient"
PACK, MULTIPLY = "charjax_pack", "charjax_multiply"
CROSS_ENTROPY_FORWARD = "charjax_cross_entropy_forward"
CROSS_ENTROPY_BACKWARD = "charjax_cross_entropy_backward"
_TARGETS = (
    FORWARD,
    BACKWARD,
    WEIGHT_GRADIENT,
    PACK,
    MULTIPLY,
    CROSS_ENTROPY_FORWARD,
    CROSS_ENTROPY_BACKWARD,
)

# The cells of the library, and how many float32 numbers the backward pass needs of a unit's step,
# beside its gates, as src/cells.h has them.
EXTRA_RESIDUALS = {"rnn": 0, "gru": 1, "lstm": 1}

_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-O3", "-std=gnu11", "-D_GNU_SOURCE", "-fno-math-errno", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # the first that works
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Library:
    """The compiled library: which dtypes it has, and the buffers it needs.

    Attributes:
      functions: its C functions.
      vector_width: float32 numbers of a SIMD vector.
      tiles_per_item: of an item of work of the cross entropy.
      has_bfloat16: whether the processor has bfloat16 dot products.
    """

    functions: ctypes.CDLL
    vector_width: int
    tiles_per_item: int
    has_bfloat16: bool

    def supports_dtype(self, dtype: DTypeLike) -> bool:
        """Whether it multiplies operands of this dtype, float32 or bfloat16."""
        return self.has_bfloat16 or jnp.dtype(dtype) == jnp.float32

    def padded(self, count: int) -> int:
        """A batch, or another number of columns or positions, padded to full vectors."""
        return -(-count // self.vector_width) * self.vector_width

    def length(self, name: str, dtype: DTypeLike, *arguments: str | int) -> int:
        """Length of a target's last result, its scratch or panels, as src/ has it.

        Args:
          name: of the target.
          dtype: of the matmul operands.
          *arguments: of the C function of that name with `_length`: a cell's name, and numbers.
        """
        function = getattr(self.functions, target(f"{name}_length", dtype))
        function.restype = ctypes.c_long
        encoded = (x.encode() if isinstance(x, str) else ctypes.c_long(x) for x in arguments)
        return int(function(*encoded))

    def tiles(self, features: int, time: int, batch: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """The shape of an operand at every position, in tiles: see src/sequence.h."""
        sizes = time, -(-batch // self.vector_width), even(features), self.vector_width
        return jax.ShapeDtypeStruct(sizes, dtype)

    def call(
        self,
        name: str,
        dtype: DTypeLike,
        shapes: Sequence[jax.ShapeDtypeStruct],
        arguments: Any,
        sizes: Sequence[str | int],
        in_place: dict[int, int] | None = None,
        **attributes: str,
    ) -> list[Array]:
        """Calls a target.

        Args:
          name: of the target.
          dtype: of the matmul operands.
          shapes: of the results, except the last one: the working memory.
          arguments: in order, those left out that are None.
          sizes: that the length of the working memory depends on, see `length`.
          in_place: for each argument whose memory a result takes, by number, the result's number.
          **attributes: of the call.

        Returns:
          The results, except the working memory.
        """
        scratch = jax.ShapeDtypeStruct((self.length(name, dtype, *sizes),), dtype)
        call = jax.ffi.ffi_call(
            target(name, dtype),
            [*shapes, scratch],
            vmap_method="sequential",
            input_output_aliases=in_place,
        )
        return list(call(*jax.tree.leaves(arguments), **attributes)[:-1])


@dataclass(frozen=True)
class Unavailable:
    """The library is missing here, or cannot run a layer.

    Attributes:
      reason: for messages, such as "no C compiler (cc)".
    """

    reason: str


def even(features: int) -> int:
    """Features of a tile: numbers are padded to pairs, as bfloat16 is multiplied."""
    return features + features % 2


def target(name: str, dtype: DTypeLike) -> str:
    """The FFI target for matmul operands of this dtype: a function of the library."""
    return f"{name}_{jnp.dtype(dtype).name}"


@functools.cache
def load() -> Library | Unavailable:
    """Registers the library with XLA, once a process; compiles it if the cache has none."""
    if jax.default_backend() != "cpu":
        return Unavailable("no CPU")
    if os.name == "nt":
        return Unavailable("not on Windows: the sources need GCC or Clang, and POSIX threads")
    cdll = open_library()
    if isinstance(cdll, Unavailable):
        return cdll
    has_bfloat16 = hasattr(cdll, target(FORWARD, jnp.bfloat16))
    for dtype in ("float32", "bfloat16") if has_bfloat16 else ("float32",):
        for name in (target(name, dtype) for name in _TARGETS):
            function = jax.ffi.pycapsule(getattr(cdll, name))
            jax.ffi.register_ffi_target(name, function, platform="cpu")

    def constant(name: str) -> int:
        return ctypes.c_int.in_dll(cdll, name).value

    width, tiles = constant("charjax_vector_width"), constant("charjax_tiles_per_item")
    return Library(cdll, width, tiles, has_bfloat16)


def open_library() -> ctypes.CDLL | Unavailable:
    """The compiled library from the cache, or compiled now and added to the cache."""
    cache, key = private_cache_folder("kernels"), _cache_key()
    cached = cache.glob(f"{key}.*.so") if cache else ()
    return next(filter(None, map(_open_verified, cached)), None) or _compile(cache, key)


def _cache_key() -> str:
    """A hash of all that the compiled file depends on, except the compiler: it may be removed."""
    parts = [path.read_text("utf-8") for path in sorted(_SOURCES.glob("*.[ch]"))]
    parts += [*_FLAGS, importlib.metadata.version("jaxlib"), platform.system(), platform.machine()]
    parts += [platform.processor(), *sorted(cpu_flags())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _open_verified(cached: Path) -> ctypes.CDLL | None:
    """A library of the cache, if it is this user's and has the SHA-256 of its name.

    Loading a truncated file would end the process with SIGBUS. A damaged one is deleted.
    """
    key = cached.name.partition(".")[0]
    try:
        with os.fdopen(open_regular(cached, os.O_RDONLY), "rb") as file:
            if is_private(os.fstat(file.fileno())) and _name(key, file.read()) == cached.name:
                return _open(cached)
        cached.unlink()
    except (OSError, InputError):
        pass
    return None


def _name(key: str, library: bytes) -> str:
    """The file name of a library in the cache."""
    return f"{key}.{hashlib.sha256(library).hexdigest()}.so"


def _compile(cache: Path | None, key: str) -> ctypes.CDLL | Unavailable:
    """Compiles in a temporary folder, and adds the library to the cache."""
    try:
        compiler = compiler_command()
    except ValueError as error:
        return Unavailable(f"CC={os.environ['CC']}: {error}")
    name = shlex.join(compiler)
    if shutil.which(compiler[0]) is None:
        return Unavailable(f"no C compiler ({name})")
    try:
        with tempfile.TemporaryDirectory(prefix="charjax-", ignore_cleanup_errors=True) as folder:
            output, failure = Path(folder, "library.so"), ""
            for command in _commands(compiler, output):
                failure = run_compiler(command, Path(folder), _TIMEOUT_S)
                if not failure:
                    break
            else:
                lines = failure.splitlines()
                reason = next((line for line in lines if "error:" in line), lines[0])
                return Unavailable(f"{name} fails: {reason}")
            library = _open(_add_to_cache(output, cache, key))
            return library or Unavailable(f"the library that {name} compiled cannot be loaded")
    except OSError as error:  # the machine is busy, or a disk full; the flags may be right
        return Unavailable(f"{name}: {error}")


def _commands(compiler: Sequence[str], output: Path) -> Iterator[list[str]]:
    sources = [str(path) for path in sorted(_SOURCES.glob("*.c"))]
    for processor in _PROCESSOR_FLAGS:
        include = f"-I{jax.ffi.include_dir()}"
        yield [*compiler, *_FLAGS, *processor, include, *sources, "-o", str(output)]


def _add_to_cache(library: Path, cache: Path | None, key: str) -> Path:
    """The library in the cache; where it is, if that has no place for it."""
    content = library.read_bytes()
    if cache is None:
        return library
    cached = cache / _name(key, content)
    try:
        write_atomically(cached, content, unfinished=cache / f"{os.getpid()}.tmp")
    except (InputError, OSError):
        return library
    return cached


def _open(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None
