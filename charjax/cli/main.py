"""The `charjax` command: arguments in, exit code out."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from charjax.cli.arguments import Parser
from charjax.cli.commands import load_commands
from charjax.cli.config_flags import split_config_flags
from charjax.errors import CharjaxError, HostError, InputError
from charjax.runtime.cache import mended_compilation_cache, private_cache_folder
from charjax.runtime.display import LastingStream, PlainDisplay, discard_output, show_messages
from charjax.runtime.signals import exit_on_signals
from charjax.runtime.terminal import escape_controls

# What an error without the name of a file is about, by its number.
_NAMELESS = {
    errno.EBADF: "a closed standard stream",
    errno.ENOENT: "the current folder, which was removed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; see `charjax --help`.

    Args:
      argv: the arguments after the program's name; None for `sys.argv[1:]`.

    Returns:
      The exit code. An error that a user can cause is printed as one line on stderr.
    """
    # A stream that was closed at the start, as by `>&-`, is None. Its use raises OSError here.
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_WRONLY), "r")
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # so that printing "日" does not fail in Latin-1
            stream.reconfigure(errors="backslashreplace")
    try:
        with exit_on_signals(_print_error):
            _run(sys.argv[1:] if argv is None else argv)
    except CharjaxError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        discard_output(sys.stdout)
    except (MemoryError, OSError, RuntimeError) as error:
        message = _host_error_message(error)
        if message is None:
            raise
        return _fail(message, HostError.exit_code)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the arguments of the process.

    Returns:
      The flags as attributes, the command's function as `run`, and the config flags, unparsed, as
      `config_flags`.

    Raises:
      InputError: there is no such command or flag, or a value is not valid.
    """
    _check_utf8(arguments)
    config_flags, others = split_config_flags(arguments)
    args = make_parser().parse_args(others)
    if config_flags and not hasattr(args, "config"):
        raise InputError(
            f"{config_flags[0]}: {args.command} takes no config; see: charjax {args.command} --help"
        )
    args.config_flags = config_flags
    return args


def make_parser() -> Parser:
    """The parser of all commands; it does not parse config flags."""
    parser = Parser(prog="charjax", description="Character-level recurrent language models.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, module in load_commands().items():
        about = (module.__doc__ or "").strip()
        subparser = subparsers.add_parser(name, help=about, description=about)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


class _ShowVersion(argparse.Action):
    """The flag `--version`; the installed version is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from charjax.runtime.versions import version_of

        sys.stdout.write(f"charjax {version_of('charjax')}\n")
        parser.exit()


def _run(arguments: Sequence[str]) -> None:
    try:
        args = parse(arguments)
    except SystemExit:  # after --help or --version
        sys.stdout.flush()
        raise
    _set_jax_environment()
    with show_messages(PlainDisplay(LastingStream(sys.stderr))), mended_compilation_cache():
        args.run(args)
    sys.stdout.flush()


def _check_utf8(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument that is not UTF-8, which Python decodes to surrogates."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            shown = argument.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown}: not valid UTF-8; write the argument in UTF-8") from None


def _set_jax_environment() -> None:
    """Sets variables of JAX and XLA that the user has not set, such as the compilation cache."""
    if folder := private_cache_folder("jax"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # By default JAX takes three quarters of a GPU's memory first, which takes seconds.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # On a machine with few cores, many forced devices deadlock in XLA's thread pool.
        os.environ.setdefault("NPROC", "16")


def _host_error_message(error: BaseException) -> str | None:
    """The message for an error of disk or memory; None for other errors, which are bugs."""
    if isinstance(error, OSError):
        what = error.filename or _NAMELESS.get(error.errno or 0, "the system")
        return f"{what}: {error.strerror or error}"
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return (
            "out of memory; end other programs, or train with a smaller config.data.batch_size, "
            "config.data.seq_len or config.model.hidden "
            f"({text.splitlines()[0] if text else 'host memory'})"
        )
    return None


def _fail(message: str, exit_code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # most likely the error that the message reports
        discard_output(sys.stdout)
    _print_error(message)
    return exit_code


def _print_error(message: str) -> None:
    line = " ".join(message.split("\n"))
    if sys.stderr.isatty():
        line = escape_controls(line)
    print("charjax:", line, file=LastingStream(sys.stderr), flush=True)
