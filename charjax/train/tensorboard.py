"""TensorBoard events of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charjax.config import Config, to_dict
from charjax.errors import InputError
from charjax.schema import leaves


def open_events(workdir: Path, config: Config, *, first_step: int) -> Any:
    """A `tensorboardX.SummaryWriter` in the folder `tensorboard` of a run.

    It starts a file of events, with the config as hyperparameters.

    Args:
      workdir: of the run.
      config: of the run.
      first_step: the first step that this process will log. TensorBoard drops earlier events of
        this and later steps, as a resumed run truncates its other logs.

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
    folder, suffix = str(workdir / "tensorboard"), f".{first_step}"
    events = SummaryWriter(folder, purge_step=first_step, flush_secs=10, filename_suffix=suffix)
    fields = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in leaves(to_dict(config))
    }
    for summary in hparams(fields, {"val_loss": 0.0}):  # the value itself is not written
        events.file_writer.add_summary(summary)
    return events
