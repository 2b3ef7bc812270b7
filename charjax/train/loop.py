"""The training loop: sets up a run, dispatches its steps; evaluates, samples, saves between."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from charjax.checkpoint import Checkpoints, Record
from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.checkpoint.progress import Progress
from charjax.config import Config, to_dict
from charjax.data.batches import Batch
from charjax.data.dataset import Dataset, load_dataset
from charjax.errors import InputError, InterruptedRunError
from charjax.inference.evaluate import score
from charjax.model.network import parameter_count
from charjax.runtime import distributed
from charjax.runtime.display import Display, show_messages
from charjax.runtime.dtypes import resolve_dtype
from charjax.runtime.signals import StopSignals
from charjax.train import messages
from charjax.train.backends import Backend, make_backend, microbatch_size
from charjax.train.clock import Clock
from charjax.train.intervals import Intervals, make_intervals, total_steps
from charjax.train.metrics import Log, MetricsLog, NoLog, draw_curves, read_metrics
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.resume import check_allowed, check_same_run, describe, resolve_recurrence
from charjax.train.samples import check_prompt, write_samples
from charjax.train.step import StepMetrics, TrainState, init_state
from charjax.train.step_metrics import StepMetricsBuffer
from charjax.train.stopping import StopFlags, diverged, end_reason
from charjax.types import PyTree
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run consists of; nothing in here changes while it trains.

    Attributes:
      meta: config, vocabulary and all else that identifies the run.
      workdir: its files.
      dataset: its text.
      intervals: when it does what.
      backend: runs steps on the devices.
      checkpoints: those in the workdir.
      log: of the metrics.
      display: shows progress and samples.
    """

    meta: RunMeta
    workdir: Workdir
    dataset: Dataset
    intervals: Intervals
    backend: Backend
    checkpoints: Checkpoints
    log: Log
    display: Display


@dataclass
class RunState:
    """All that changes while a run trains.

    Attributes:
      step: steps dispatched; `train_state.step` has the same value once it is computed.
      train_state: on the devices.
      metrics: of the steps since the last record.
      progress: losses and time so far.
      clock: of the training time.
      record: the last record of the metrics.
    """

    step: int
    train_state: TrainState
    metrics: StepMetricsBuffer
    progress: Progress
    clock: Clock
    record: dict[str, Any] = field(default_factory=dict)


def train(
    config: Config, workdir: Path, display: Display, *, allow: Sequence[str] = ()
) -> Progress:
    """Trains the run in a workdir, from its newest good checkpoint or from the start.

    Args:
      config: the run.
      workdir: its folder; made if it does not exist.
      display: shows progress, samples, and the messages of charjax's loggers.
      allow: what may have changed since the run was saved, such as
        "config.optim.learning_rate" or "corpus".

    Returns:
      How far the run has come.

    Raises:
      CharjaxError: see `charjax.errors`; the checkpoints stay.
    """
    check_allowed(allow)
    files = Workdir(workdir)
    checkpoints = Checkpoints(files.checkpoints, keep=config.train.keep)
    with show_messages(display), _locked(files), checkpoints:
        run, state = _set_up(config, files, checkpoints, display, allow)
        signals, compiled = StopSignals(), False
        stop = StopFlags(signals, partial(_time_is_up, run, state))
        with (
            contextlib.closing(run.log),
            display.task("training") as update,
            contextlib.ExitStack() as handlers,
        ):
            over = _stops_here(run, state, stop)
            while not over:
                metrics = _dispatch(run, state)
                if not compiled:  # before this there was nothing to save
                    handlers.enter_context(signals)
                    compiled = True
                stop.sync()
                # While the devices compute these steps, the host reads the metrics before them.
                state.metrics.push(metrics, state.step)
                # Read once: a signal after this must not end the loop before a save.
                over = _stops_here(run, state, stop)
                if over or run.intervals.any_due(state.step):
                    state.metrics.flush()
                    with state.clock.paused():
                        over = _do_what_is_due(run, state, stop)
                note = messages.progress_note(state.record, state.progress)
                update(state.step, run.intervals.total, note)
        if stop.signal is not None:
            raise InterruptedRunError(
                stop.signal,
                f"{workdir}: stopped at step {state.step}; the same command goes on from there",
            )
        _finish(run, state.progress)
    return state.progress


@contextlib.contextmanager
def _locked(workdir: Workdir) -> Iterator[None]:
    """Creates and locks the workdir, in process 0 for all processes."""
    if not distributed.is_primary():
        yield
        return
    workdir.create()
    with workdir.lock():
        yield


def _set_up(
    config: Config,
    workdir: Workdir,
    checkpoints: Checkpoints,
    display: Display,
    allow: Sequence[str],
) -> tuple[Run, RunState]:
    """Reads the text and the newest checkpoint, says what is to be trained and how."""
    with display.task("reading the text") as update, distributed.primary_first():
        dataset = load_dataset(config, progress=update)
    saved = _read_saved(workdir, checkpoints)
    config = resolve_dtype(config, saved.config if saved else None)
    distributed.require_same("the config or the text", f"{to_dict(config)} {dataset.corpus.sha256}")
    recurrence = resolve_recurrence(config.model, microbatch_size(config), saved)

    steps_per_epoch, vocab_size = dataset.batches.steps_per_epoch, len(dataset.vocab)
    total = total_steps(config.train, steps_per_epoch)
    optimizer, schedule = make_optimizer(config.optim, total), make_schedule(config.optim, total)
    new_state = partial(init_state, config, vocab_size, optimizer)
    like = jax.eval_shape(new_state)
    meta = describe(config, dataset, parameter_count(like.params), recurrence)
    backend = make_backend(
        meta.resolved_config,
        vocab_size,
        optimizer,
        schedule,
        boundary_id=dataset.vocab.boundary_id,
    )

    check_prompt(config, dataset.vocab)
    _log_all(messages.opening(meta, steps_per_epoch))
    _log_all(messages.unused_chars(dataset))
    if saved:
        changes = check_same_run(workdir.path, saved, meta, allow=allow)
        _log_all(f"allowed: {change}" for change in changes)
        state = _restore(meta, workdir, checkpoints, backend, like)
        _log_all(messages.rescheduled(saved, meta, steps_per_epoch))
    else:
        if distributed.is_primary():
            workdir.start()
        state = _new_run_state(meta, workdir, backend, new_state(), Progress())
    intervals = make_intervals(config.train, steps_per_epoch, state.step)
    _log_all(messages.single_steps(config.train, intervals, state.step))
    log = _open_log(workdir, meta)
    return Run(meta, workdir, dataset, intervals, backend, checkpoints, log, display), state


def _read_saved(workdir: Workdir, checkpoints: Checkpoints) -> RunMeta | None:
    """What identifies the run that the workdir holds; None where it holds none."""
    workdir.check_lock()
    steps = checkpoints.steps()
    distributed.require_same(f"{workdir.checkpoints}", f"{steps}")
    return _saved_meta(workdir, checkpoints.read_meta()).run if steps else None


def _saved_meta(workdir: Workdir, record: Record) -> CheckpointMeta:
    return CheckpointMeta.from_json(record.meta, f"{workdir.checkpoints / str(record.step)}")


def _restore(
    meta: RunMeta, workdir: Workdir, checkpoints: Checkpoints, backend: Backend, like: PyTree
) -> RunState:
    """The state in the newest checkpoint that verifies; cuts the logs to their length then."""
    restored = checkpoints.restore(like)
    distributed.require_same(f"{workdir.checkpoints}", f"restored {restored.step}")
    saved = _saved_meta(workdir, restored)
    if distributed.is_primary():
        workdir.truncate_logs(saved.log_sizes)
    _logger.info(f"resuming {workdir.path} at step {restored.step:,}")
    return _new_run_state(meta, workdir, backend, restored.state, saved.progress)


def _new_run_state(
    meta: RunMeta, workdir: Workdir, backend: Backend, train_state: TrainState, progress: Progress
) -> RunState:
    """A run's state around a training state, which is copied to the devices."""
    return RunState(
        step=int(train_state.step),
        train_state=backend.place(train_state),
        metrics=StepMetricsBuffer(
            meta.config, workdir.path, progress.losses, int(train_state.skipped)
        ),
        progress=progress,
        clock=Clock(progress.elapsed_s),
    )


def _open_log(workdir: Workdir, meta: RunMeta) -> Log:
    """The log of the metrics and `run.json`, which one process writes for all."""
    if not distributed.is_primary():
        return NoLog()
    log = MetricsLog(workdir.metrics, tensorboard=meta.config.train.tensorboard)
    workdir.write_run(meta.to_json())
    return log


def _dispatch(run: Run, state: RunState) -> StepMetrics:
    """Sends the next steps to the devices; their metrics are still being computed."""
    steps = range(state.step, state.step + run.intervals.dispatch)
    batches = [run.dataset.batches(step, run.backend.rows) for step in steps]
    stacked = Batch(*map(np.stack, zip(*batches, strict=True)))
    state.train_state, metrics = run.backend.run(state.train_state, stacked)
    state.step += run.intervals.dispatch
    return metrics


def _time_is_up(run: Run, state: RunState) -> bool:
    limit_s = 60 * run.meta.config.train.max_minutes
    return 0 < limit_s <= state.clock.seconds()


def _stops_here(run: Run, state: RunState, stop: StopFlags) -> bool:
    """Whether the run stops at this step; the progress gets the reason, if it is no signal."""
    state.progress.ended = end_reason(
        run.meta.config.train,
        run.intervals,
        state.step,
        state.progress,
        time_is_up=stop.time_is_up,
    )
    return bool(state.progress.ended) or stop.signal is not None


def _do_what_is_due(run: Run, state: RunState, stop: StopFlags) -> bool:
    """Logs, evaluates, samples; then saves a checkpoint, which has the lengths of the logs.

    Returns:
      Whether the run stops at this step; then it is saved.
    """
    every, step, ended = run.intervals, state.step, bool(state.progress.ended)
    val_loss, is_best = None, False
    if step % every.evaluate == 0 or ended:
        val_loss, is_best = _evaluate(run, state)
    elif step % every.log == 0:
        run.log.write(_next_record(run, state))
    if step % every.sample == 0 or ended:
        _sample(run, state)
    over = _stops_here(run, state, stop)
    if step % every.checkpoint == 0 or is_best or over:
        _checkpoint(run, state, val_loss)
    return over


def _next_record(run: Run, state: RunState) -> dict[str, Any]:
    state.record = state.metrics.pop_record(state.step, run.dataset.batches, state.clock)
    return state.record


def _evaluate(run: Run, state: RunState) -> tuple[float | None, bool]:
    """Logs a record with the loss on the validation split.

    Returns:
      This loss in nats per character, None without a validation split; whether it is the best.
    """
    record, val_loss, is_best = _next_record(run, state), None, False
    ids = run.dataset.splits.val.ids
    if ids.size > 1:
        params = run.backend.to_global(state.train_state).eval_params
        model, boundary_id = run.meta.resolved_config.model, run.dataset.vocab.boundary_id
        result = score(model, params, ids, boundary_id=boundary_id)
        val_loss = result.nats_per_char
        record |= {"val_loss": val_loss, "val_bpc": result.bits_per_char}
        if not math.isfinite(val_loss):
            what = f"the validation loss at step {state.step} is not finite"
            raise diverged(run.meta.config, run.workdir.path, what)
        is_best = state.progress.update_best(val_loss)
    run.log.write(record)
    _logger.info(messages.evaluation(record, is_best=is_best))
    return val_loss, is_best


def _sample(run: Run, state: RunState) -> None:
    if distributed.is_primary():
        write_samples(
            run.meta.resolved_config,
            state.train_state.eval_params,
            run.dataset.vocab,
            step=state.step,
            file=run.workdir.samples,
            show=run.display.text,
        )


def _checkpoint(run: Run, state: RunState, val_loss: float | None) -> None:
    state.progress.elapsed_s = state.clock.seconds()
    state.progress.losses = state.metrics.losses
    meta = CheckpointMeta(run.meta, state.progress, run.workdir.log_sizes())
    train_state = run.backend.to_global(state.train_state)
    run.checkpoints.save(state.step, train_state, meta.to_json(), val_loss=val_loss)
    if distributed.is_primary():
        run.workdir.mark_saved()


def _finish(run: Run, progress: Progress) -> None:
    """Draws the curves and says how the run ended, and what to do next."""
    try:
        if distributed.is_primary():
            draw_curves(read_metrics(run.workdir.metrics), run.workdir.curves)
    except InputError as error:
        _logger.warning(f"{run.workdir.curves}: not drawn: {error}")
    _log_all(messages.closing(run.meta, run.workdir, progress))


def _log_all(lines: Iterable[str]) -> None:
    for line in lines:
        _logger.info(line)
