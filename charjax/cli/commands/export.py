"""Write a model in another form: a page, C, a program, ONNX, a hub's, weights for torch, Keras."""

from __future__ import annotations

import argparse

from charjax.cli.arguments import add_model, load_model, local_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the format, and where to write it."""
    add_model(parser)
    parser.add_argument(
        "--out", required=True, type=local_path("--out"), help="the folder or file to write"
    )
    parser.add_argument(
        "--format",
        default="program",
        help="program (one step of sampling for jax.export), numpy (a folder with generate.py, "
        "which needs numpy alone), html (a page that opens from disk), c (a C99 file), onnx (a "
        "file), torch or keras (weights and a loader), hub (a repository of a model hub); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--weights",
        dest="rounding",
        default="float32",
        choices=("float32", "bfloat16"),
        help="bfloat16: round the weights, which then take half the space in a hub's folder; "
        "default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the export; it overwrites only what an export wrote."""
    from charjax.export.api import check_format, export_model, round_to_bfloat16

    check_format(args.format)
    trained = load_model(args)
    if args.rounding == "bfloat16":
        trained = round_to_bfloat16(trained)
    export_model(trained, args.out, format=args.format)
