"""The config of `charjax train TEXT`: chosen once, and recorded in the run's folder.

The same command reads it there when it resumes, and does not choose again.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from charjax import schema
from charjax.conditions import from_saved
from charjax.config import Config, DataConfig, TrainConfig, to_dict
from charjax.data.corpus import load_corpus
from charjax.errors import CharjaxError, InputError
from charjax.runtime.display import PlainDisplay, show_messages
from charjax.runtime.files import read_regular, replace_content, replace_json
from charjax.runtime.sharding import all_devices
from charjax.train.sizing import describe_choice, find_row, sized_config, with_steps
from charjax.train.warm_up import measure_speed
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)

DEFAULT_MINUTES = 4.0
_MAX_RECORD_BYTES = 2**20


class _ChoiceJson(NamedTuple):
    """The JSON of `choice.json` in a run's folder."""

    minutes: float
    config: Mapping[str, Any]
    chosen: list[str]


def choose_config(
    source: str | bytes,
    workdir: Path,
    minutes: float | None,
    override: Callable[[Config], Config],
    started: float,
) -> Config:
    """The config of the run in a workdir: the one recorded there, else a newly chosen one.

    Logs in three lines what was chosen and why.

    Args:
      source: the text, as in `data.path`; or what standard input had, which is kept in the workdir.
        A resumed run reads what was kept, so that standard input may be empty then.
      workdir: the run's folder.
      minutes: how long the command may take; None for the recorded time or `DEFAULT_MINUTES`.
      override: applies the user's `--config.FIELD=VALUE` flags to a config.
      started: when the command began, by `time.monotonic`.

    Raises:
      InputError: standard input is empty; or the folder holds a run that was started with --config,
        other --minutes or another text on standard input, or files that are not a run's; none of
        its files is written then.
    """
    files = Workdir(workdir)
    if source == b"" and not files.choice.exists():
        raise InputError("TEXT: standard input is empty")
    path = str(files.input) if isinstance(source, bytes) else source
    with files.claim():
        is_kept = files.choice.exists() or files.input.exists()
        if isinstance(source, bytes) and is_kept:
            _check_input(files.input, source)
        if files.choice.exists():
            return override(_recorded(files, path, minutes))
        if files.run_json.exists():
            raise InputError(
                f"{workdir}: holds a run that was started with --config; resume it with the same "
                "--config, or choose another --workdir"
            )
        files.check_start()
        minutes = DEFAULT_MINUTES if minutes is None else minutes
        unsized = override(Config(data=DataConfig(path=path), train=TrainConfig(max_steps=1)))
        kept = nullcontext() if is_kept or isinstance(source, str) else _kept(files.input, source)
        with kept:
            text = load_corpus(unsized.data).text
            devices = all_devices()
            row = find_row(len(text), minutes, devices[0].platform)
            sized = sized_config(path, text, row, len(devices))
            # Training will read the text again, and log the same.
            with show_messages(PlainDisplay(io.StringIO())):
                speed = measure_speed(override(sized))
            seconds_left = 60 * minutes - (time.monotonic() - started)
            sized = with_steps(sized, speed, seconds_left)
            config = override(sized)
            chosen = describe_choice(config, sized, row, len(text), minutes, speed)
            replace_json(files.choice, _ChoiceJson(minutes, to_dict(config), chosen)._asdict())
    for line in chosen:
        _logger.info(line)
    return config


@contextmanager
def _kept(file: Path, data: bytes) -> Iterator[None]:
    """A context that keeps what standard input had, unless no config can be chosen for it."""
    replace_content(file, data)
    try:
        yield
    except CharjaxError:
        file.unlink()  # so that the folder may have another text
        raise


def _check_input(kept: Path, data: bytes) -> None:
    """Raises InputError if standard input had a text other than the one that the run has kept."""
    if data and not (kept.exists() and data == kept.read_bytes()):
        raise InputError(
            f"{kept}: is another text than that of standard input; choose another --workdir"
        )


def _recorded(files: Workdir, path: str, minutes: float | None) -> Config:
    """The recorded config, with `data.path` replaced by `path`."""
    try:
        values = json.loads(read_regular(files.choice, _MAX_RECORD_BYTES).decode("utf-8"))
        record = schema.parse(_ChoiceJson, values, files.choice.name)
        config = from_saved(record.config)
    except (ValueError, RecursionError, InputError) as error:
        raise InputError(
            f"{files.choice}: cannot be read ({error}); choose another --workdir"
        ) from None
    if minutes not in (None, record.minutes):
        raise InputError(
            f"--minutes={minutes:g}: {files.path} was started with {record.minutes:g}, which fixed "
            "its steps; leave the flag out, train longer by --config.train.max_steps=N, or choose "
            "another --workdir"
        )
    _logger.info(f"chosen: as recorded in {files.choice}")
    return replace(config, data=replace(config.data, path=path))
