"""Convert the weights of a torch or Keras model to a run's folder."""

from __future__ import annotations

import argparse

from charjax.cli.arguments import add_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The weights, their framework, their vocabulary, and the run's folder."""
    add_path(
        parser,
        "file",
        "a torch state dict (.safetensors, the .index.json of shards, or .pt where torch is "
        "installed), or a model of Keras 3 (.keras or .weights.h5)",
        metavar="FILE",
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        choices=("torch", "keras"),
        help="the framework that wrote FILE",
    )
    add_path(
        parser,
        "--vocabulary",
        "a .json file with the characters in the order of their ids, or a text whose distinct "
        "characters, sorted, are the vocabulary",
        required=True,
    )
    add_path(parser, "--out", "the run's folder, which must be new", required=True)


def run(args: argparse.Namespace) -> None:
    """Writes the run's folder, to sample, score or export, or to train from with `--init_from`."""
    from charjax.export.conversion.convert import convert
    from charjax.runtime.sharding import all_devices

    all_devices()  # so that a platform without a device is an error of one line
    convert(args.file, args.source, args.vocabulary, args.out)
