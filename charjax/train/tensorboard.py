"""TensorBoard events of a run: scalars, samples and hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charjax.config import Config, to_dict
from charjax.errors import InputError
from charjax.schema import leaves


class Events:
    """Writes events to the folder `tensorboard` of a run."""

    def __init__(self, workdir: Path, config: Config, *, first_step: int) -> None:
        """Starts a file of events, with the config as hyperparameters.

        Args:
          workdir: of the run.
          config: of the run.
          first_step: the first step that this process will log. TensorBoard drops earlier events
            of this and later steps, as a resumed run truncates its other logs.

        Raises:
          InputError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.summary import hparams
        except ImportError as error:
            raise InputError(
                "config.train.tensorboard=True: tensorboardX is not installed; "
                "run: pip install 'charjax[tensorboard]'"
            ) from error
        folder = str(workdir / "tensorboard")
        self._writer = SummaryWriter(
            folder, purge_step=first_step, flush_secs=10, filename_suffix=f".{first_step}"
        )
        fields = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in leaves(to_dict(config))
        }
        for summary in hparams(fields, {"val_loss": 0.0}):  # the value itself is not written
            self._writer.file_writer.add_summary(summary)

    def close(self) -> None:
        """Flushes the events."""
        self._writer.close()

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Adds a record of the metrics."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def add_text(self, title: str, text: str, step: int) -> None:
        """Adds a text as a Markdown code block, so that TensorBoard shows it verbatim."""
        block = "\n".join(f"    {line}" for line in text.split("\n"))
        self._writer.add_text(title, block, step)
