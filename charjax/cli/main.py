"""A command in, an exit code out. What the commands do is done in the rooms above."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charjax.cli.arguments import parse, place_of
from charjax.cli.config_flags import load_config
from charjax.errors import CharjaxError, HostError, InputError
from charjax.runtime.cache import cache_folder
from charjax.runtime.display import SilentDisplay, make_display, show_messages
from charjax.runtime.signals import exit_on_signals

if TYPE_CHECKING:
    from charjax.inference.load import TrainedModel


_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; see `charjax --help`.

    Args:
      argv: the arguments after the program's name; None: those of this process.

    Returns:
      The exit code; every error that a user can cause is one line on stderr.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no message fails for want of a character
            stream.reconfigure(errors="backslashreplace")
    try:
        with exit_on_signals(_last_words):
            _run(arguments)
    except CharjaxError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _discard_output()
        if arguments[:1] != ["train"]:
            return 0  # the reader has seen enough
        return _fail(
            "standard output: its reader has gone; the same command goes on from there",
            HostError.exit_code,
        )
    except (AssertionError, MemoryError, OSError, RuntimeError) as error:
        known = _environment_error(error)
        if known is None:
            raise
        return _fail(known, HostError.exit_code)
    return 0


def _run(arguments: Sequence[str]) -> None:
    args = parse(arguments)
    _set_up_jax()
    run = {
        "train": _train,
        "sample": _sample,
        "score": _score,
        "export": _export,
        "info": _info,
        "verify": _verify,
    }[args.command]
    with show_messages(make_display(sys.stderr)):
        run(args)
    sys.stdout.flush()


def _fail(message: str, exit_code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # most likely what the message is about
        _discard_output()
    _complain(message)
    return exit_code


def _discard_output() -> None:
    """For what still waits to be written: Python would try, and complain once more, at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    print("charjax:", " ".join(message.split("\n")), file=sys.stderr, flush=True)  # noqa: T201


def _last_words(message: str) -> None:
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # noqa: T201 a progress bar hid the cursor
    _complain(message)


def _environment_error(error: BaseException) -> str | None:
    """The line for an error of the machine; None for what must be a defect of charjax."""
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            "out of memory; try a smaller config.data.batch_size, config.data.seq_len or "
            f"config.model.hidden ({text.splitlines()[0] if text else 'host memory'})"
        )
    if _is_for_want_of_a_device(error):
        return (
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX found no such device; try "
            f"JAX_PLATFORMS=cpu, or unset it ({text.splitlines()[0] if text else 'not installed'})"
        )
    return None


def _is_for_want_of_a_device(error: BaseException) -> bool:
    """JAX raises a RuntimeError, or where it has nothing for the platform an AssertionError."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "xla_bridge.py"


def _set_up_jax() -> None:
    """Compiled programs are kept in the user's own cache, so that the second call is quick."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # With fewer threads than this, forced host devices deadlock on few cores.
        os.environ.setdefault("NPROC", "16")


def _train(args: argparse.Namespace) -> None:
    from charjax.runtime.distributed import is_primary, join_processes
    from charjax.train.loop import train

    name, config = load_config(args.config_flags)
    workdir = Path(args.workdir) if args.workdir else Path("runs") / name
    allow = [name for name in args.allow.split(",") if name]
    with join_processes(place_of(args), native_log=workdir / "process-{}.log"):
        display = make_display(sys.stdout) if is_primary() else SilentDisplay()
        train(config, workdir, display, allow=allow)


def _trained(args: argparse.Namespace) -> TrainedModel:
    from charjax.inference.load import load_trained, with_dtype

    trained = load_trained(Path(args.workdir), which=args.checkpoint)
    return with_dtype(trained, args.weights) if getattr(args, "weights", None) else trained


def _sample(args: argparse.Namespace) -> None:
    from charjax.inference.sampling import Sampling
    from charjax.inference.texts import write_texts

    sampling = Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    pieces = write_texts(
        _trained(args),
        args.prompt,
        num_chars=args.num_chars,
        num_samples=args.num_samples,
        separator=args.separator,
        sampling=sampling,
        unknown=args.unknown,
    )
    for piece in pieces:
        sys.stdout.buffer.write(piece.encode("utf-8"))
        sys.stdout.flush()
    if sys.stdout.isatty():
        _logger.info("")


def _score(args: argparse.Namespace) -> None:
    from charjax.inference.score import score_file

    with make_display(sys.stderr).task("scoring") as update:
        result = score_file(_trained(args), args.file, unknown=args.unknown, progress=update)
    values = result.to_json()
    if values["perplexity"] is None:
        _logger.warning("the perplexity is too large for a number and is written as null")
    _print_json(values)


def _export(args: argparse.Namespace) -> None:
    from charjax.export.program import export_model

    export_model(_trained(args), Path(args.out))


def _info(args: argparse.Namespace) -> None:
    from charjax.inference.info import config_info, trained_info

    if bool(args.workdir) == bool(args.config_flags):
        raise InputError("info: give either --config=FILE or --workdir=DIR")
    if args.workdir:
        args.checkpoint = "best"
        _print_json(trained_info(_trained(args)))
    else:
        _print_json(config_info(load_config(args.config_flags)[1]))


def _verify(args: argparse.Namespace) -> None:
    from charjax.checkpoint import Checkpoints
    from charjax.errors import CheckpointError
    from charjax.workdir import Workdir

    directory = Workdir(Path(args.workdir)).checkpoints
    with Checkpoints(directory) as saved:
        verdicts = saved.verify()
    for step, problem in verdicts:
        _logger.info(f"{directory / str(step)}: {problem or 'good'}")
    if not any(problem == "" for _, problem in verdicts):
        raise CheckpointError(f"{directory}: holds no checkpoint that verifies")
    _print_json({str(step): problem or "good" for step, problem in verdicts})


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, allow_nan=False))  # noqa: T201
