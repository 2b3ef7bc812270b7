"""Pack texts of any size into a store, to train on with --config.data.path=STORE."""

from __future__ import annotations

import argparse
import logging
import shlex

from charjax.cli.arguments import (
    add_path,
    add_reading,
    check_process,
    print_json,
    reading_options,
)

_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The texts, how to read them, the store, and this process's number."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files, folders or globs, as in config.data.path, or at addresses such as "
        "gs://bucket/texts/*.txt; also JSON lines and Parquet",
    )
    add_path(
        parser,
        "--out",
        "the store: a folder, or an address such as gs://bucket/folder; the same command goes on "
        "with one that is not complete",
        is_local=False,
        required=True,
    )
    parser.add_argument(
        "--field",
        default="",
        help="the field of JSON lines or Parquet that has the text; each text counts as a file",
    )
    several = parser.add_argument_group("several processes", "each packs some shards of the store")
    several.add_argument("--process_id", type=int, default=0, help="this one's number, from 0")
    several.add_argument("--num_processes", type=int, default=1, help="how many there are")
    add_reading(parser, is_new=True)


def run(args: argparse.Namespace) -> None:
    """Prints what the store holds, as JSON."""
    from charjax.conditions import check_reading
    from charjax.config import DataConfig
    from charjax.data.packed.pack import pack
    from charjax.data.packed.plan import make_plan
    from charjax.data.reading.rules import ReadingRules
    from charjax.data.sources.file_search import TextFiles, find_files
    from charjax.runtime.display import show_task
    from charjax.schema import parse

    check_process(args.process_id, args.num_processes)
    options = reading_options(args)
    config = parse(DataConfig, options, "--")
    check_reading(config, options)
    found = [find_files(path, "PATH") for path in args.paths]
    paths = dict.fromkeys(path for files in found for path in files.paths)
    files = TextFiles(tuple(paths), any(files.from_search for files in found))
    plan = make_plan(files, ReadingRules.from_config(config), args.field)
    with show_task("packing") as update:
        process = (args.process_id, args.num_processes)
        index = pack(plan, args.out, process=process, progress=update)
    if index is None:
        _logger.info(
            f"{args.out}: other processes have shards left to pack; the last one completes it"
        )
        return
    for notice in index.notices:
        _logger.warning("NOTICE: %s", notice)
    fields = {"path": args.out} | options
    flags = shlex.join(f"--config.data.{name}={value}" for name, value in fields.items())
    _logger.info(f"train on it with {flags}")
    print_json(
        {
            "chars": index.chars,
            "characters": len(index.characters),
            "documents": index.num_documents,
            "shards": len(index.shards),
            "sha256": index.sha256,
        }
    )
