"""Export a model to a web page, C, ONNX, numpy, torch, Keras, a jax.export program or a hub."""

from __future__ import annotations

import argparse

from charjax.cli.arguments import add_model, add_path, load_model
from charjax.errors import InputError
from charjax.workdir import Workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write it."""
    add_model(parser)
    add_path(parser, "--out", "the folder or file to write", required=True)
    parser.add_argument(
        "--format",
        default="program",
        help="program (one step of sampling by jax.export), numpy (a folder with generate.py, "
        "which needs only numpy), html (a page that opens from disk), c (a C99 file), onnx (an "
        "ONNX file), torch or keras (weights and a loader), hub (a repository for a model hub); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--weights",
        dest="rounding",
        default="float32",
        choices=("float32", "bfloat16"),
        help="bfloat16: round the weights; the format hub then stores them in half the space; "
        "default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the export; overwrites only files that an export wrote."""
    from charjax.export.api import check_format, export_model, round_to_bfloat16

    check_format(args.format)
    if Workdir(args.workdir).is_hub and args.out.exists() and args.out.samefile(args.workdir):
        raise InputError(f"--out={args.out}: holds the model itself; name another --out")
    trained = load_model(args, args.workdir)
    if args.rounding == "bfloat16":
        trained = round_to_bfloat16(trained)
    export_model(trained, args.out, format=args.format)
