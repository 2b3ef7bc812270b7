"""A run of training: what is constant in it, what changes, and how both are set up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax

from charjax.checkpoint.checkpoints import Checkpoints, flatten
from charjax.checkpoint.meta import CheckpointMeta, CorpusMeta, Platform, RunMeta, SourceMeta
from charjax.checkpoint.progress import Progress, Validation
from charjax.checkpoint.record import Record
from charjax.config import Config, to_dict
from charjax.data.dataset import Dataset, load_dataset
from charjax.data.shuffle import resolve_order
from charjax.inference.load import kept_characters
from charjax.model.network import parameter_count
from charjax.model.recurrence.resolution import Resolution
from charjax.runtime import distributed
from charjax.runtime.display import Display
from charjax.runtime.dtypes import resolve_dtype
from charjax.train import messages, resume
from charjax.train.backends import Backend, make_backend, microbatch_size
from charjax.train.clock import Clock
from charjax.train.device_tokens import device_tokens
from charjax.train.fine_tuning import InitialModel, read_initial_model, scale_imported, start_from
from charjax.train.intervals import Intervals, longest_dispatch, make_intervals, total_steps
from charjax.train.metrics import MetricsLog, open_log
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.samples import check_prompt
from charjax.train.step_metrics import StepMetricsBuffer
from charjax.train.train_state import TrainState, init_state
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The constant parts of a run.

    Attributes:
      meta: config, vocabulary and all else that identifies the run.
      workdir: its files.
      dataset: its text and batches.
      intervals: at which steps it logs, evaluates, samples and saves.
      backend: runs steps on the devices.
      checkpoints: the checkpoints in the workdir.
      log: metrics.jsonl and TensorBoard events.
      display: shows progress and samples.
    """

    meta: RunMeta
    workdir: Workdir
    dataset: Dataset
    intervals: Intervals
    backend: Backend
    checkpoints: Checkpoints
    log: MetricsLog
    display: Display


@dataclass
class RunState:
    """The parts of a run that change while it trains.

    Attributes:
      step: steps dispatched; equals `train_state.step` once the devices are done.
      train_state: the arrays, on the devices.
      metrics: metrics of the steps since the last record.
      progress: time, best validation loss, and what is left to do; saved in checkpoints.
      clock: measures the training time.
      saved_step: the step of the newest checkpoint; 0 before the first.
      record: the newest record of metrics.jsonl.
      saved_at: when the newest checkpoint was saved, by `time.monotonic`.
    """

    step: int
    train_state: TrainState
    metrics: StepMetricsBuffer
    progress: Progress
    clock: Clock
    saved_step: int
    record: dict[str, Any] = field(default_factory=dict)
    saved_at: float = field(default_factory=time.monotonic)


def set_up(
    config: Config,
    workdir: Workdir,
    checkpoints: Checkpoints,
    display: Display,
    allow: Sequence[str],
) -> tuple[Run, RunState]:
    """Reads the text and the newest checkpoint, makes the backend, logs what will be trained.

    Args:
      config: the run.
      workdir: its files; the caller holds their lock.
      checkpoints: in the workdir.
      display: shows progress and samples.
      allow: what may have changed since the run was saved, see `charjax.train.loop.train`.

    Returns:
      The run, and its state at its newest checkpoint that verifies, or at its start.

    Raises:
      CharjaxError: see `charjax.errors`.
    """
    record = _read_saved(workdir, checkpoints)
    saved = CheckpointMeta.of(record, workdir.checkpoints).run if record else None
    initial, dataset = _read_text(config, saved, display)
    config = resolve_dtype(config, saved.config if saved else None)
    source = initial.source if initial else None
    identity = f"{to_dict(config)} {dataset.corpus.sha256} {source}"
    distributed.require_same("the config or the text", identity)
    recurrence = resume.resolve_recurrence(config.model, microbatch_size(config), saved)

    steps_per_epoch, vocab_size = dataset.batches.steps_per_epoch, len(dataset.vocab)
    total = total_steps(config.train, steps_per_epoch)
    optimizer, schedule = make_optimizer(config.optim, total), make_schedule(config.optim, total)
    optimizer = scale_imported(optimizer, config, initial, dataset.vocab)
    new_state = partial(init_state, config, vocab_size, optimizer)
    like = jax.eval_shape(new_state)
    meta = describe(config, dataset, parameter_count(like.params), recurrence, source)
    tokens, about_tokens = device_tokens(config, dataset.batches)
    boundary = dataset.vocab.boundary_id
    backend = make_backend(
        meta.resolved_config, vocab_size, optimizer, schedule, boundary_id=boundary, tokens=tokens
    )

    check_prompt(config, dataset.vocab)
    _log_all(messages.opening(meta, dataset, about_tokens))
    if record and saved:
        fits = record.holds(flatten(like)[0])
        changes = resume.check_same_run(workdir.path, saved, meta, allow=allow, fits=fits)
        _log_all(f"allowed: {change}" for change in changes)
        train_state, progress = _restore(meta, workdir, checkpoints, like, dataset)
        _log_all(messages.rescheduled(saved, meta, steps_per_epoch))
    else:
        train_state = start_from(new_state(), config, optimizer, initial, dataset)
        progress = _start(meta, workdir, dataset)
    state = _run_state(meta, backend, train_state, progress)
    intervals = _plan(meta, steps_per_epoch, state.step, backend)
    next_step = state.step if progress.pending else state.step + 1
    log = open_log(workdir, meta.config, next_step)
    return Run(meta, workdir, dataset, intervals, backend, checkpoints, log, display), state


def _read_saved(workdir: Workdir, checkpoints: Checkpoints) -> Record | None:
    """The record of the newest checkpoint; None if there is no checkpoint."""
    with distributed.primary_first():  # it has locked the folder before
        workdir.check_lock()
    steps = checkpoints.steps()
    distributed.require_same(f"{workdir.checkpoints}", f"{steps}")
    return checkpoints.read_meta() if steps else None


def _read_text(
    config: Config, saved: RunMeta | None, display: Display
) -> tuple[InitialModel | None, Dataset]:
    """The initial model, if there is one, and the dataset; its vocabulary may keep the model's."""
    with display.task("reading the text") as update, distributed.primary_first():
        initial = read_initial_model(config, saved)
        known = kept_characters(config.train, initial.vocab if initial else None)
        return initial, load_dataset(config, known=known, progress=update)


def describe(
    config: Config,
    dataset: Dataset,
    parameters: int,
    recurrence: Resolution | None,
    source: SourceMeta | None = None,
) -> RunMeta:
    """The metadata of a run on this machine; resolves `data.window_order=auto`."""
    corpus = dataset.corpus
    if config.data.batching != "stream":
        order = resolve_order(config.data.window_order, dataset.batches.num_sequences)
        config = replace(config, data=replace(config.data, window_order=order))
    return RunMeta(
        config=config,
        vocab=dataset.vocab,
        corpus=CorpusMeta(corpus.name, corpus.sha256, corpus.chars, corpus.notice),
        reading=corpus.rules,
        parameters=parameters,
        platform=Platform.current(),
        recurrence=recurrence,
        source=source,
    )


def _start(meta: RunMeta, workdir: Workdir, dataset: Dataset) -> Progress:
    """The progress of a new run; empties its logs."""
    if distributed.is_primary():
        workdir.start()
    digest = resume.val_text_digest(dataset.splits.val.ids, meta.config.data)
    return Progress(validation=Validation(None, 0, val_text=digest))


def _restore(
    meta: RunMeta, workdir: Workdir, checkpoints: Checkpoints, like: TrainState, dataset: Dataset
) -> tuple[TrainState, Progress]:
    """The newest checkpoint that verifies; truncates the logs to its step."""
    restored = checkpoints.restore(like)
    distributed.require_same(f"{workdir.checkpoints}", f"restored {restored.step}")
    saved = CheckpointMeta.of(restored, workdir.checkpoints)
    if distributed.is_primary():
        for log, size in workdir.log_sizes().items():
            if size < saved.log_sizes[log]:
                _logger.warning(f"{workdir.path / log}: lacks some of what the run wrote")
        workdir.truncate_logs(saved.log_sizes)
    _logger.info(f"resuming {workdir.path} at step {restored.step:,}")
    if not resume.update_val_text(saved, meta, dataset.splits.val.ids):
        _logger.info("validation: the text has changed; best loss and train.patience start again")
    return restored.state, saved.progress


def _run_state(
    meta: RunMeta, backend: Backend, train_state: TrainState, progress: Progress
) -> RunState:
    """The state of a run before its next step; copies `train_state` to the devices."""
    step, skipped = int(train_state.step), int(train_state.skipped)
    return RunState(
        step=step,
        train_state=backend.place(train_state),
        metrics=StepMetricsBuffer(progress.losses, skipped, meta.config.train.max_skipped),
        progress=progress,
        clock=Clock(progress.elapsed_s),
        saved_step=step,
    )


def _plan(meta: RunMeta, steps_per_epoch: int, start: int, backend: Backend) -> Intervals:
    """The intervals of a run that starts or resumes at a step; logs if dispatches are shorter."""
    config = meta.config.train
    longest = longest_dispatch(meta.config, meta.parameters, slices=backend.slices)
    intervals = make_intervals(config, steps_per_epoch, start, longest)
    _log_all(messages.dispatches(config, intervals, start, longest))
    return intervals


def _log_all(lines: Iterable[str]) -> None:
    for line in lines:
        _logger.info(line)
