"""Describe a config or a trained model, as JSON."""

from __future__ import annotations

import argparse

from charjax.cli.arguments import add_config, add_path, print_json
from charjax.cli.config_flags import load_config
from charjax.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Either a config or a run's folder."""
    add_config(parser, required=False)
    add_path(parser, "--workdir", "a run's folder; or give --config")


def run(args: argparse.Namespace) -> None:
    """Prints the sizes of the model and the text, and the progress of a run."""
    from charjax.inference.info import config_info, trained_info
    from charjax.inference.load import load_trained

    if bool(args.workdir) == bool(args.config_flags):
        raise InputError("info: give either --config=FILE or --workdir=DIR")
    if args.workdir:
        print_json(trained_info(load_trained(args.workdir, which="best")))
    else:
        from charjax.runtime.sharding import all_devices

        all_devices()  # so that a platform without a device is an error of one line
        _, config = load_config(args.config_flags)
        print_json(config_info(config))
