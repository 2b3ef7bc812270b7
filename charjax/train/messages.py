"""What a run tells the person who watches it."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from charjax.config import Config, TrainConfig
from charjax.data.dataset import Dataset
from charjax.data.vocab import Vocab
from charjax.errors import InputError
from charjax.model.recurrence.api import Resolution
from charjax.train.intervals import Plan, dispatch_blockers, make_intervals
from charjax.train.optimizer import make_schedule
from charjax.train.progress import Progress
from charjax.workdir import Workdir


def opening(
    config: Config, text: Dataset, plan: Plan, parameters: int, chosen: Resolution
) -> list[str]:
    """The first words: the text, the model, the machine."""
    corpus, device = text.corpus, jax.devices()[0]
    return [
        f"text: {corpus.name}, {len(corpus.text):,} characters, {len(text.vocab)} symbols",
        f"model: {config.model.cell} {config.model.layers} x {config.model.hidden}, "
        f"{parameters:,} parameters, {config.model.dtype} products, "
        f"on {jax.device_count()} x {device.device_kind}",
        f"recurrence: {chosen.implementation} ({chosen.reason})",
        f"plan: {f'{plan.total:,}' if plan.total else 'any number of'} steps, "
        f"{text.batches.steps_per_epoch:,} an epoch",
    ]


def dispatch(config: TrainConfig, plan: Plan, start: int) -> list[str]:
    """One line where steps go out one by one though more at once were allowed, and the remedy.

    Args:
      config: what was asked for.
      plan: what came of it.
      start: the step that the run goes on from.
    """
    if plan.dispatch > 1 or plan.total == 1:
        return []
    longer, fields = dispatch_blockers(config, plan)
    reasons = [f"{name}={steps}" for name, steps in fields.items()]
    reasons += [f"step {start:,}, where it goes on,"] * bool(start % longer)
    if not reasons:
        return []  # one at a time was asked for
    # Rounded down, but for an interval of 1: no step more, and nothing more seldom.
    flags = [f"--config.{n}={max(steps // longer, 1) * longer}" for n, steps in fields.items()]
    verb = "is no multiple" if len(reasons) == 1 else "are no multiples"
    remedy = f"; try {' '.join(flags)}" if flags else ""
    return [
        f"plan: 1 step a dispatch instead of {longer}, of which {' and '.join(reasons)} "
        f"{verb}{remedy}"
    ]


def rescheduled(before: Config, now: Config, steps_per_epoch: int, step: int) -> list[str]:
    """One line where a run became longer or shorter, and the learning rate with it another.

    Args:
      before: the run as it was saved.
      now: as it goes on.
      steps_per_epoch: of its text.
      step: that it goes on from.
    """
    old, new = (make_intervals(config.train, steps_per_epoch).total for config in (before, now))
    was, is_ = (
        float(make_schedule(config.optim, total)(step))
        for config, total in ((before, old), (now, new))
    )
    if old == new or math.isclose(was, is_, rel_tol=1e-6):
        return []
    return [
        f"plan: optim.schedule={now.optim.schedule} is over {new:,} steps instead of {old:,}: "
        f"the learning rate goes on at {is_:.3g} instead of {was:.3g}"
    ]


def evaluation(record: Mapping[str, Any], *, better: bool) -> str:
    """One line for one evaluation."""
    parts = [f"step {record['step']:,}  epoch {record['epoch']:.2f}"]
    if "train_loss" in record:
        parts.append(f"train {record['train_loss']:.4f}")
    if "val_loss" in record:
        parts.append(
            f"val {record['val_loss']:.4f} nats ({record['val_bpc']:.4f} bits) per character"
        )
    parts.append(f"{record['chars_per_second'] / 1000:.1f}k chars/s")
    return "  ".join(parts + ["best"] * better)


def beside_the_bar(record: Mapping[str, Any], progress: Progress) -> str:
    """The numbers beside the progress bar."""
    parts = [f"loss {record['train_loss']:.4f}"] if "train_loss" in record else []
    if math.isfinite(progress.best):
        parts.append(f"best val {progress.best:.4f}")
    if record:
        parts.append(f"{record['chars_per_second'] / 1000:.1f}k chars/s")
    return "  ".join(parts)


def closing(config: Config, folder: Workdir, text: Dataset, progress: Progress) -> list[str]:
    """The last words: what came of it, where it lies, and the next command."""
    lines = [f"ended: {progress.ended}; {progress.elapsed_s:.0f} s of training"]
    if math.isfinite(progress.best):
        lines.append(
            f"best validation loss: {progress.best:.4f} nats "
            f"({progress.best / math.log(2):.4f} bits) per character"
        )
    lines += _notice(text)
    lines.append(f"checkpoints: {folder.checkpoints}  curves: {folder.curves}")
    # By this very interpreter: the environment may not be activated.
    here, python = Path.cwd(), Path(sys.executable)
    python = python.relative_to(here) if python.is_relative_to(here) else python
    prompt = config.sample.prompt or "The "
    flags = [f"--workdir={folder.path}", *[f"--prompt={prompt}"] * _is_known(prompt, text.vocab)]
    command = shlex.join([str(python), "-m", "charjax", "sample", *flags, "--num_chars=500"])
    return [*lines, f"next: {command}"]


def _is_known(prompt: str, vocab: Vocab) -> bool:
    try:
        vocab.encode(prompt)
    except InputError:
        return False
    return True


def _notice(text: Dataset) -> list[str]:
    return [f"NOTICE: {text.corpus.notice}"] if text.corpus.notice else []
