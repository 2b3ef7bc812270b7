"""Write a page that shows what a model predicts in a text, and what its units track."""

from __future__ import annotations

import argparse
import logging

from charjax.cli.arguments import (
    add_inference,
    add_model,
    add_path,
    add_reading,
    load_model,
    reading_options,
)

_MAX_CHARS = 20_000  # of the text; the page stays under 20 MB

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the text, and where to write the page."""
    add_model(parser, required=False)
    parser.add_argument(
        "--file",
        required=True,
        help=f"a text file, or - for standard input; its first {_MAX_CHARS:,} characters are shown",
    )
    add_path(parser, "--out", "the HTML file to write", required=True)
    add_inference(parser)
    add_reading(parser)


def run(args: argparse.Namespace) -> None:
    """Writes the page; overwrites only files that charjax wrote."""
    from charjax.export.files import write_file
    from charjax.export.look import look_page
    from charjax.inference.inspection.inspect import inspect
    from charjax.inference.scoring.score import read_file
    from charjax.runtime.display import show_task

    options = reading_options(args)
    with show_task("looking") as update:
        trained = load_model(args, args.workdir)
        ids = read_file(trained, args.file, unknown=args.unknown, options=options)
        if ids.size > _MAX_CHARS:
            _logger.info("%s: the first %d of %d characters", args.file, _MAX_CHARS, ids.size)
        inspection = inspect(trained, ids[:_MAX_CHARS], update)
        content = look_page(inspection)
        write_file(args.out, content)
        for separation in inspection.separations:
            if separation.units:
                _logger.info("%s", separation)
        _logger.info("wrote %s: %s bytes", args.out, f"{len(content):,}")
