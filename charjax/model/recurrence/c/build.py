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

import jax
import jax.numpy as jnp

from charjax.errors import InputError
from charjax.model.recurrence.c.compiler import compiler_command, run_compiler
from charjax.model.recurrence.c.library import FORWARD, TARGETS, Library, target
from charjax.runtime.cache import is_private, private_cache_folder
from charjax.runtime.dtypes import cpu_flags
from charjax.runtime.files import open_regular, write_atomically

_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-O3", "-std=gnu11", "-D_GNU_SOURCE", "-fno-math-errno", "-shared", "-fPIC")
_PROCESSOR_FLAGS = (("-march=native",), ("-mcpu=native",), ())  # the first that works
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Unavailable:
    """The library is missing here, or cannot run a layer.

    Attributes:
      reason: for messages, such as "no C compiler (cc)".
    """

    reason: str


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
        for name in (target(name, dtype) for name in TARGETS):
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
