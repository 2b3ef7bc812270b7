"""TensorBoard events of a run."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charjax.config import Config, to_dict
from charjax.errors import InputError
from charjax.runtime.files import append_content, write_error
from charjax.schema import leaves


class EventLog:
    """Appends events to a file that TensorBoard reads; on return they are with the system.

    `tensorboardX.SummaryWriter` has a thread for that: a run that is killed would lose the events
    of seconds before its checkpoint, and one whose disk is full would wait for the thread for ever.
    """

    def __init__(self, file: Path) -> None:
        """Opens nothing."""
        self._file = file

    def add(self, step: int = 0, **content: Any) -> None:
        """Appends an event, framed as a TFRecord.

        Args:
          step: of the run.
          content: the field of `tensorboardX.proto.event_pb2.Event` that is set.

        Raises:
          HostError: the file cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        parts = ((part, struct.pack("<I", masked_crc32c(part))) for part in (length, event))
        append_content(self._file, b"".join(part + checksum for part, checksum in parts))

    def add_scalars(self, record: Mapping[str, Any]) -> None:
        """Appends the numbers of a record of metrics, at its `step`."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != "step"
        ]
        self.add(record["step"], summary=Summary(value=values))

    def add_text(self, title: str, text: str, step: int) -> None:
        """Appends a text as a code block, which TensorBoard shows verbatim."""
        from tensorboardX import summary

        block = "\n".join(f"    {line}" for line in text.split("\n"))
        self.add(step, summary=summary.text(title, block))


def open_events(workdir: Path, config: Config, *, first_step: int) -> EventLog:
    """A file of events in the folder `tensorboard` of a run, with the config as hyperparameters.

    Args:
      workdir: of the run.
      config: of the run.
      first_step: the first step that this process will log. TensorBoard drops earlier events of
        this and later steps, as a resumed run truncates its other logs.

    Raises:
      InputError: tensorboardX is not installed.
      HostError: the file cannot be written.
    """
    try:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import SessionLog
    except ImportError as error:
        raise InputError(
            "config.train.tensorboard=True: tensorboardX is not installed; "
            "run: pip install 'charjax[tensorboard]'"
        ) from error
    folder = workdir / "tensorboard"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{first_step}"
    events = EventLog(folder / name)
    events.add(file_version="brain.Event:2")
    events.add(first_step, session_log=SessionLog(status=SessionLog.START))
    fields = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in leaves(to_dict(config))
    }
    for part in summary.hparams(fields, {"val_loss": 0.0}):  # the value itself is not written
        events.add(summary=part)
    return events
