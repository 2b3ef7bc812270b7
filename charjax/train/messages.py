"""The messages of a run to its user."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from charjax.checkpoint.meta import RunMeta
from charjax.checkpoint.progress import Progress
from charjax.config import TrainConfig
from charjax.data.dataset import Dataset
from charjax.data.new_text import prepare_prompt
from charjax.errors import InputError
from charjax.inference.scoring.evaluate import max_eval_chars
from charjax.runtime.display import counted
from charjax.runtime.status import TrainingStatus
from charjax.train.intervals import Intervals, asked_dispatch, epoch_limit, total_steps
from charjax.workdir import Workdir


def opening(meta: RunMeta, dataset: Dataset, about_tokens: str) -> Iterator[str]:
    """The messages at the start: what is trained, how, on what, and what of the text is left out.

    Args:
      meta: the run.
      dataset: its text.
      about_tokens: from `charjax.train.device_tokens`.
    """
    yield from what_is_trained(meta, dataset.batches.steps_per_epoch)
    if meta.config.data.split_by == "hash":
        sizes = (f"{len(s.document_starts):,} {n}" for n, s in dataset.splits._asdict().items())
        yield f"split: by a hash of each document: {', '.join(sizes)}"
    if unused := dataset.batches.unused_chars:
        yield (
            f"batches: {unused:,} of the {dataset.splits.train.num_targets:,} characters of the "
            "train split are predicted in no batch of an epoch"
        )
    yield from validation(max_eval_chars(meta.config.data), dataset.splits.val.ids.size)
    if about_tokens:
        yield about_tokens


def what_is_trained(meta: RunMeta, steps_per_epoch: int) -> Iterator[str]:
    """The first messages: text, model, devices, recurrence implementation, steps."""
    corpus, model, platform = meta.corpus, meta.config.model, meta.platform
    total = total_steps(meta.config.train, steps_per_epoch)
    chars = counted(corpus.chars, "character")
    yield f"text: {corpus.name}, {chars}, vocabulary of {len(meta.vocab)}"
    yield (
        f"model: {model.summary}, {meta.parameters:,} parameters, "
        f"{model.dtype} matmuls, on {platform.devices} x {platform.device}"
    )
    if meta.recurrence:
        yield f"recurrence: {meta.recurrence.implementation} ({meta.recurrence.reason})"
    yield f"steps: {f'{total:,}' if total else 'no limit'}, {steps_per_epoch:,} per epoch"
    yield from limits_without_effect(meta.config.train, steps_per_epoch)


def limits_without_effect(config: TrainConfig, steps_per_epoch: int) -> Iterator[str]:
    """A message for each limit of the config that is never reached, as another one ends the run."""
    total, epochs = total_steps(config, steps_per_epoch), epoch_limit(config, steps_per_epoch)
    passes = config.max_steps / steps_per_epoch
    shown = f"{passes:,.0f}" if passes >= 1000 else f"{passes:.4g}"  # g: 1e+04 from 10,000 on
    steps_limit, epochs_limit = (
        f"train.max_steps={config.max_steps:,} ({shown} epochs)",
        f"train.max_epochs={config.max_epochs:g} ({counted(epochs, 'step')})",
    )
    if config.max_steps and epochs and config.max_steps != epochs:
        first, second = sorted([(config.max_steps, steps_limit), (epochs, epochs_limit)])
        yield f"limits: {first[1]} comes before {second[1]}, which has no effect"
    evaluations = math.ceil(total / (config.eval_every or steps_per_epoch))
    if total and evaluations <= config.patience:
        yield (
            f"limits: train.patience={config.patience} has no effect: the run ends after "
            f"{counted(evaluations, 'evaluation')}, at step {total:,}"
        )


def validation(max_chars: int, chars: int) -> Iterator[str]:
    """A message if evaluations read only a part of the validation split, or nothing."""
    if chars == 1:
        yield "validation: none: the split has one character, which nothing precedes"
    if max_chars < chars - 1:
        yield (
            f"validation: {max_chars:,} of the {chars:,} characters of the split, in parts at "
            "equal distances, the same at every evaluation; see config.data.eval_chars"
        )


def dispatches(
    config: TrainConfig, intervals: Intervals, start: int, longest: int
) -> Iterator[str]:
    """Messages if a dispatch has fewer steps than the config asks for, or only one.

    It has fewer if more would take too long without a chance to stop, and one if that is the only
    common divisor of the intervals.
    """
    if longest < config.steps_per_dispatch:
        yield (
            f"dispatch: at most {counted(longest, 'step')} instead of "
            f"train.steps_per_dispatch={config.steps_per_dispatch:,}: a dispatch cannot be stopped"
        )
    if intervals.dispatch > 1 or intervals.total == 1:
        return
    steps = {
        "train.max_steps": intervals.total,
        "train.eval_every": intervals.evaluate,
        "train.checkpoint_every": config.checkpoint_every,
        "train.sample_every": config.sample_every,
        "train.log_every": config.log_every,
        "the step to resume from": start,
    }
    most = asked_dispatch(config)
    odd = [f"{name}={n}" for name, n in steps.items() if n % most]
    if odd:
        yield (
            f"dispatch: one step at a time instead of train.steps_per_dispatch={most}, which is "
            f"slower; not multiples of it: {', '.join(odd)}"
        )


def rescheduled(before: RunMeta, now: RunMeta, steps_per_epoch: int) -> Iterator[str]:
    """A message if a resumed run has another length, which changes its learning rates."""
    old, new = (total_steps(meta.config.train, steps_per_epoch) for meta in (before, now))
    optim = now.config.optim
    if old != new and (optim.schedule != "constant" or optim.warmup):
        steps = counted(new, "step")
        yield f"optim.schedule={optim.schedule} is now over {steps} instead of {old:,}"


def evaluation(record: Mapping[str, Any], *, is_best: bool) -> str:
    """The message after an evaluation."""
    parts = [f"step {record['step']:,}  epoch {record['epoch']:.2f}"]
    if "train_loss" in record:
        parts.append(f"train {record['train_loss']:.4f}")
    if "val_loss" in record:
        parts.append(
            f"val {record['val_loss']:.4f} nats ({record['val_bpc']:.4f} bits) per character"
        )
    if "chars_per_second" in record:
        parts.append(_speed(record["chars_per_second"]))
    if is_best:
        parts.append("best")
    return "  ".join(parts)


def progress_note(status: TrainingStatus) -> str:
    """The numbers beside the progress bar."""
    parts = []
    if status.train_loss is not None:
        parts.append(f"loss {status.train_loss:.4f}")
    if status.best is not None:
        parts.append(f"best val {status.best:.4f}")
    if status.chars_per_second is not None:
        parts.append(_speed(status.chars_per_second))
    return "  ".join(parts)


def status(record: Mapping[str, Any], progress: Progress) -> TrainingStatus:
    """The numbers of a record, and the best loss, for a display that draws curves."""
    best, speed = progress.validation.best, record.get("chars_per_second")
    return TrainingStatus(record.get("train_loss"), record.get("val_loss"), best, speed)


def closing(meta: RunMeta, workdir: Workdir, progress: Progress) -> Iterator[dict[str, str]]:
    """The last table: the result and where it is, by name; one mapping for each line."""
    yield {"ended": f"{progress.ended}; {progress.elapsed_s:.0f} s of training"}
    if (best := progress.validation.best) is not None:
        loss = f"{best:.4f} nats ({best / math.log(2):.4f} bits) per character"
        yield {"best validation loss": loss}
    if meta.corpus.notice:
        yield {"NOTICE": meta.corpus.notice}
    yield {"checkpoints": f"{workdir.checkpoints}", "curves": f"{workdir.curves}"}


def next_command(meta: RunMeta, workdir: Workdir) -> str:
    """The last message: the next command, which samples.

    It names this interpreter, in case no environment is activated.
    """
    python = Path(sys.executable)
    with contextlib.suppress(OSError, ValueError):  # no current folder any more, or another one
        python = python.relative_to(Path.cwd())
    words = [str(python), "-m", "charjax", "sample", f"--workdir={workdir.path}"]
    prompt = meta.config.sample.prompt or "The "
    try:
        meta.vocab.encode(prepare_prompt(prompt, meta.reading, meta.vocab))
        words.append(f"--prompt={prompt}")
    except InputError:
        pass  # the prompt has characters outside the vocabulary
    return f"next: {shlex.join([*words, '--num_chars=500'])}"


def _speed(chars_per_second: float) -> str:
    return f"{chars_per_second / 1000:.1f}k chars/s"
