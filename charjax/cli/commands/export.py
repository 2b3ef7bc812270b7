"""Write a model as a program that runs without charjax."""

from __future__ import annotations

import argparse
from pathlib import Path

from charjax.cli.arguments import add_model, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the folder to write."""
    add_model(parser)
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")


def run(args: argparse.Namespace) -> None:
    """Writes the program, the weights, the vocabulary and a README."""
    from charjax.export.program import export_model

    export_model(load_model(args), args.out)
