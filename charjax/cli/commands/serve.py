"""Serve models over HTTP, in the completions protocol of OpenAI's client."""

from __future__ import annotations

import argparse
import logging
import os
import re

from charjax.cli.arguments import (
    add_fields,
    add_model,
    add_path,
    add_weights,
    from_flags,
    load_model,
)
from charjax.cli.prompts import read_utf8
from charjax.errors import InputError
from charjax.serve.limits import RequestLimits

_KEY_VARIABLE = "CHARJAX_API_KEY"
_LIMITS = {
    "max_body": "bytes of a request's body",
    "max_prompt": "characters of a prompt",
    "max_tokens": "characters of a text",
    "max_texts": "texts of a request: prompts times n",
    "max_queue": "texts that wait for a free row of a model's batch",
    "max_seconds": "seconds from a request to the end of its answer",
}
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, the address, who may ask, and the limits."""
    add_model(parser, required=False, nargs="+", action="extend")
    add_weights(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; default: %(default)s"
    )
    parser.add_argument(
        "--port", default=8000, type=int, help="0: any free one; default: %(default)s"
    )
    about = f"a file with the key that clients must send; or set {_KEY_VARIABLE}; default: none"
    add_path(parser, "--key_file", about)
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        type=_host,
        help="a name by which clients reach this server (their Host header), beside localhost and "
        "IP addresses",
    )
    parser.add_argument(
        "--allow_origin",
        action="append",
        default=[],
        type=_origin,
        help="a web site that may use this server (CORS), as https://example.org; default: none",
    )
    limits = parser.add_argument_group("limits", "at most")
    bounds = {name: f"{about}; default: %(default)s" for name, about in _LIMITS.items()}
    add_fields(limits, RequestLimits, bounds)


def run(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM."""
    limits = from_flags(RequestLimits, args)
    key = _read_key(args)
    folders = args.workdir or [None]  # None: the built-in model
    names = [_name(folder) for folder in folders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--workdir: two folders are named {twice}; rename one of them")
    try:
        from charjax.serve.app import make_app
        from charjax.serve.server import listen, run_server, serve_model
    except ModuleNotFoundError as error:
        raise InputError(
            f"serve: the package {error.name} is not installed; run: pip install 'charjax[serve]'"
        ) from None

    with listen(args.host, args.port) as listener:
        trained = [load_model(args, folder) for folder in folders]
        pairs = zip(names, trained, strict=True)
        models = {name: serve_model(name, model, limits) for name, model in pairs}
        app = make_app(models, limits, key=key, hosts=args.allow_host, origins=args.allow_origin)
        host, port = listener.getsockname()[:2]
        _logger.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if not key and not _is_loopback(host):
            _logger.warning("anyone who reaches %s can use it; give --key_file=FILE", host)
        run_server(app, listener)
        for served in models.values():
            served.engine.close()


def _host(value: str) -> str:
    """A name as a Host header has it, but for the port."""
    if re.fullmatch(r"[\w.-]+", value, re.ASCII):
        return value
    raise argparse.ArgumentTypeError(f"{value!r} must be a name alone, as example.org")


def _origin(value: str) -> str:
    """An origin as browsers send it, in lower case and without a path; or *."""
    if re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+", value):
        return value
    raise argparse.ArgumentTypeError(
        f"{value!r} must be as https://example.org, in lower case and without a path"
    )


def _name(folder: object) -> str:
    return os.path.basename(os.path.abspath(str(folder))) if folder else "builtin"


def _is_loopback(host: str) -> bool:
    import ipaddress

    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _read_key(args: argparse.Namespace) -> str:
    """The key that clients must send; "": none.

    Raises:
      InputError: the file cannot be read, or the key is not one word of ASCII characters.
    """
    source, key = _KEY_VARIABLE, os.environ.get(_KEY_VARIABLE, "").strip()
    if args.key_file:
        source, key = f"--key_file={args.key_file}", read_utf8(args.key_file, "--key_file").strip()
    elif not key:
        return ""
    if not re.fullmatch(r"[!-~]+", key):  # clients encode other characters in different ways
        raise InputError(f"{source}: must have one word of ASCII characters, the key")
    return key
