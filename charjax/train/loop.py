"""The training loop: sets up a run, dispatches steps, and between them evaluates and saves."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax

from charjax.checkpoint.checkpoints import Checkpoints, flatten
from charjax.checkpoint.meta import CheckpointMeta, RunMeta
from charjax.checkpoint.progress import Progress
from charjax.checkpoint.record import Record
from charjax.config import Config, to_dict
from charjax.data.dataset import Dataset, load_dataset
from charjax.errors import InputError, InterruptedRunError
from charjax.inference.evaluate import max_eval_chars, score
from charjax.model.network import parameter_count
from charjax.runtime import distributed
from charjax.runtime.display import Display, make_display, show_messages
from charjax.runtime.dtypes import resolve_dtype
from charjax.runtime.signals import StopSignals
from charjax.train import messages, resume
from charjax.train.backends import Backend, make_backend, microbatch_size
from charjax.train.clock import Clock
from charjax.train.device_tokens import device_tokens
from charjax.train.fine_tuning import (
    InitialModel,
    known_characters,
    read_initial_model,
    scale_imported,
    start_from,
)
from charjax.train.intervals import Intervals, longest_dispatch, make_intervals, total_steps
from charjax.train.metrics import MetricsLog, draw_curves, read_metrics
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.samples import check_prompt, generate_samples, write_samples
from charjax.train.step import StepMetrics, TrainState, init_state
from charjax.train.step_metrics import StepMetricsBuffer, step_flops
from charjax.train.stopping import StopFlags, diverged, end_reason
from charjax.train.tensorboard import Events
from charjax.types import PyTree
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
      record: the newest record of metrics.jsonl.
      saved_step: the step of the newest checkpoint.
      saved_at: when it was saved, by `time.monotonic`.
    """

    step: int
    train_state: TrainState
    metrics: StepMetricsBuffer
    progress: Progress
    clock: Clock
    record: dict[str, Any] = field(default_factory=dict)
    saved_step: int | None = None
    saved_at: float = field(default_factory=time.monotonic)


class _StoppedError(Exception):
    """A signal stopped an evaluation or the sampling."""


def train(
    config: Config, workdir: Path, display: Display | None = None, *, allow: Sequence[str] = ()
) -> Progress:
    """Trains the run in a workdir, from its newest checkpoint that verifies or from the start.

    Args:
      config: the run.
      workdir: its folder; made if it does not exist.
      display: shows progress, samples, and the messages of charjax's loggers; None: the one for
        standard output, such as the cell of a notebook.
      allow: what may have changed since the run was saved, such as
        "config.optim.learning_rate" or "corpus".

    Returns:
      How far the run has come.

    Raises:
      CharjaxError: see `charjax.errors`; the checkpoints stay.
    """
    resume.check_allowed(allow)
    display = display or make_display(sys.stdout)
    files = Workdir(workdir)
    checkpoints = Checkpoints(files.checkpoints, keep=config.train.keep)
    with show_messages(display), _locked(files), checkpoints:
        run, state = _set_up(config, files, checkpoints, display, allow)
        with contextlib.closing(run.log), display.task("training") as update:
            signal = _train(run, state, partial(_show, run, state, update))
        if signal is not None:
            raise InterruptedRunError(
                signal,
                f"{workdir}: stopped at step {state.step}; the same command goes on from there",
            )
        _finish(run, state.progress)
    return state.progress


def _train(run: Run, state: RunState, show: Callable[..., None]) -> int | None:
    """Trains until the run ends; returns the signal that stopped it, or None."""
    signals, is_compiled = StopSignals(), False
    stop = StopFlags(
        signals, partial(_time_is_up, run, state), partial(_checkpoint_is_due, run, state)
    )
    is_done = _stops_here(run, state, stop)
    if state.progress.pending or state.progress.unsampled:
        with signals, state.clock.paused():
            is_done = _do_what_is_due(run, state, stop, show)
    with contextlib.ExitStack() as handlers:
        while not is_done:
            metrics = _dispatch(run, state)
            if not is_compiled:  # before, a signal may end the process: there is nothing to save
                handlers.enter_context(signals)
                is_compiled = True
            stop.sync()
            # While the devices compute these steps, the host reads metrics of the previous ones.
            state.metrics.push(metrics, state.step)
            # Checked once: a signal after this line must not end the loop before a save.
            is_done = _stops_here(run, state, stop)
            if is_done or stop.checkpoint_is_due or run.intervals.any_due(state.step):
                state.metrics.flush()
                with state.clock.paused():
                    is_done = _do_what_is_due(run, state, stop, show)
            show()
    return stop.signal


@contextlib.contextmanager
def _locked(workdir: Workdir) -> Iterator[None]:
    """Creates and locks the workdir; process 0 does it for all."""
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
    """Reads the text and the newest checkpoint, makes the backend, logs what will be trained."""
    initial, dataset = _read_text(config, workdir, checkpoints, display)
    record = _read_saved(workdir, checkpoints)
    saved = _saved_meta(workdir, record).run if record else None
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
    meta = resume.describe(config, dataset, parameter_count(like.params), recurrence, source)
    tokens = device_tokens(config, dataset.batches)
    backend = make_backend(
        meta.resolved_config,
        vocab_size,
        optimizer,
        schedule,
        boundary_id=dataset.vocab.boundary_id,
        tokens=tokens.ids,
    )

    check_prompt(config, dataset.vocab)
    _log_all(messages.opening(meta, steps_per_epoch))
    about_data = [*messages.splits(config, dataset), *messages.left_out(config, dataset)]
    _log_all(filter(None, [*about_data, tokens.message]))
    if record and saved:
        fits = record.holds(flatten(like)[0])
        changes = resume.check_same_run(workdir.path, saved, meta, allow=allow, fits=fits)
        _log_all(f"allowed: {change}" for change in changes)
        state = _restore(meta, workdir, checkpoints, backend, like, dataset)
        _log_all(messages.rescheduled(saved, meta, steps_per_epoch))
    else:
        train_state = start_from(new_state(), config, initial, dataset)
        state = _start(meta, workdir, backend, train_state, dataset)
    intervals = _plan(meta, steps_per_epoch, state.step, backend)
    log = _open_log(workdir, meta, state)
    return Run(meta, workdir, dataset, intervals, backend, checkpoints, log, display), state


def _read_text(
    config: Config, workdir: Workdir, checkpoints: Checkpoints, display: Display
) -> tuple[InitialModel | None, Dataset]:
    """The initial model, if there is one, and the dataset."""
    with display.task("reading the text") as update, distributed.primary_first():
        initial = read_initial_model(config, workdir, checkpoints)
        known = known_characters(initial, config)
        return initial, load_dataset(config, known=known, progress=update)


def _start(
    meta: RunMeta, workdir: Workdir, backend: Backend, train_state: TrainState, dataset: Dataset
) -> RunState:
    """The state of a new run; empties its logs."""
    if distributed.is_primary():
        workdir.start()
    digest = resume.val_text_digest(dataset.splits.val.ids, max_eval_chars(meta.config.data))
    return _new_run_state(meta, workdir, backend, train_state, Progress(val_text=digest))


def _read_saved(workdir: Workdir, checkpoints: Checkpoints) -> Record | None:
    """The record of the newest checkpoint; None if there is no checkpoint."""
    workdir.check_lock()
    steps = checkpoints.steps()
    distributed.require_same(f"{workdir.checkpoints}", f"{steps}")
    return checkpoints.read_meta() if steps else None


def _saved_meta(workdir: Workdir, record: Record) -> CheckpointMeta:
    return CheckpointMeta.from_json(record.meta, f"{workdir.checkpoints / str(record.step)}")


def _restore(
    meta: RunMeta,
    workdir: Workdir,
    checkpoints: Checkpoints,
    backend: Backend,
    like: PyTree,
    dataset: Dataset,
) -> RunState:
    """The state of the newest checkpoint that verifies; truncates the logs to that step."""
    restored = checkpoints.restore(like)
    distributed.require_same(f"{workdir.checkpoints}", f"restored {restored.step}")
    saved = _saved_meta(workdir, restored)
    if distributed.is_primary():
        workdir.truncate_logs(saved.log_sizes)
    _logger.info(f"resuming {workdir.path} at step {restored.step:,}")
    if not resume.check_val_text(saved, meta, dataset.splits.val.ids):
        _logger.info("validation: the text has changed; best loss and train.patience start again")
    state = _new_run_state(meta, workdir, backend, restored.state, saved.progress)
    state.saved_step = state.step
    return state


def _new_run_state(
    meta: RunMeta, workdir: Workdir, backend: Backend, train_state: TrainState, progress: Progress
) -> RunState:
    """The state of a run before its next step; copies `train_state` to the devices."""
    return RunState(
        step=int(train_state.step),
        train_state=backend.place(train_state),
        metrics=StepMetricsBuffer(
            meta.config, workdir.path, progress.losses, int(train_state.skipped)
        ),
        progress=progress,
        clock=Clock(progress.elapsed_s),
    )


def _plan(meta: RunMeta, steps_per_epoch: int, start: int, backend: Backend) -> Intervals:
    """The intervals of a run that starts or resumes at a step; logs if dispatches are shorter."""
    config = meta.config.train
    longest = longest_dispatch(meta.config, meta.parameters, slices=backend.slices)
    intervals = make_intervals(config, steps_per_epoch, start, longest)
    _log_all(messages.dispatches(config, intervals, start, longest))
    return intervals


def _open_log(workdir: Workdir, meta: RunMeta, state: RunState) -> MetricsLog:
    """Opens the metrics log and writes `run.json`; process 0 does it for all."""
    if not distributed.is_primary():
        return MetricsLog(None)
    events = None
    if meta.config.train.tensorboard:
        next_step = state.step if state.progress.pending else state.step + 1
        events = Events(workdir.path, meta.config, first_step=next_step)
    workdir.write_run(meta.to_json())
    return MetricsLog(workdir.metrics, events)


def _dispatch(run: Run, state: RunState) -> StepMetrics:
    """Sends the next steps to the devices, and does not wait for them."""
    steps, started = range(state.step, state.step + run.intervals.dispatch), time.monotonic()
    inputs = run.backend.inputs(run.dataset.batches, steps)
    if state.metrics.is_idle:
        state.clock.stalled_s += time.monotonic() - started
    state.train_state, metrics = run.backend.run(state.train_state, inputs)
    state.step += run.intervals.dispatch
    return metrics


def _time_is_up(run: Run, state: RunState) -> bool:
    limit_s = 60 * run.meta.config.train.max_minutes
    return 0 < limit_s <= state.clock.seconds()


def _stops_here(run: Run, state: RunState, stop: StopFlags) -> bool:
    """Whether the run stops at this step; sets `progress.ended` unless a signal stops it."""
    config, progress = run.meta.config.train, state.progress
    progress.ended = end_reason(
        config, run.intervals, state.step, progress, time_is_up=stop.time_is_up
    )
    return bool(progress.ended) or stop.signal is not None


def _checkpoint_is_due(run: Run, state: RunState) -> bool:
    interval_s = 60 * run.meta.config.train.checkpoint_minutes
    return 0 < interval_s <= time.monotonic() - state.saved_at


def _show(run: Run, state: RunState, update: Callable[..., None], doing: str = "") -> None:
    """Updates the progress shown; hides total and time left while an evaluation runs."""
    if doing:
        update(state.step, 0, doing)
        return
    note = messages.progress_note(state.record, state.progress)
    update(state.step, run.intervals.total, note, messages.status(state.record, state.progress))


def _do_what_is_due(run: Run, state: RunState, stop: StopFlags, show: Callable[..., None]) -> bool:
    """Logs, evaluates and samples if due; saves last, since a checkpoint has the logs' sizes.

    An evaluation may take long. So a checkpoint that is due is also saved before it, and a signal
    stops evaluation and sampling; `progress` records what is left for the resumed run.

    Returns:
      Whether the run stops at this step; if so, it is saved.
    """
    intervals, step, progress = run.intervals, state.step, state.progress
    ended = bool(progress.ended)
    save = ended or stop.checkpoint_is_due or step % intervals.checkpoint == 0
    val_loss, is_best = None, False
    try:
        if progress.unsampled:
            val_loss = run.checkpoints.read_meta(which=step).val_loss
        elif ended or progress.pending or step % intervals.evaluate == 0:
            progress.pending = progress.pending or _next_record(run, state)
            if save:
                _save(run, state)
            val_loss, is_best = _evaluate(run, state, stop, show)
        elif step % intervals.log == 0:
            run.log.write(_next_record(run, state))
        if progress.unsampled or ended or step % intervals.sample == 0:
            _sample(run, state, stop)
    except _StoppedError:
        _save(run, state, val_loss)
        return True
    stops = _stops_here(run, state, stop)
    if save or is_best or stops:
        _save(run, state, val_loss)
    return stops


def _next_record(run: Run, state: RunState) -> dict[str, Any]:
    flops = step_flops(run.meta.config, len(run.dataset.vocab))
    state.record = state.metrics.pop_record(state.step, run.dataset.batches, state.clock, flops)
    if state.progress.val_record:
        state.record["val_record"] = state.progress.val_record
    return state.record


def _evaluate(
    run: Run, state: RunState, stop: StopFlags, show: Callable[..., None]
) -> tuple[float | None, bool]:
    """Evaluates the model and logs the pending record.

    Returns:
      The validation loss in nats per character, or None if the split is empty; whether it is the
      best so far.

    Raises:
      _StoppedError: a signal stopped the evaluation; nothing was logged.
    """

    def progress(done: int, total: int) -> None:
        show(f"evaluating {done:,}/{total:,}" if total else "evaluating")
        if stop.sync_signal() is not None:
            raise _StoppedError

    val_loss, is_best, ids = None, False, run.dataset.splits.val.ids
    record = state.record = dict(state.progress.pending or {})
    if ids.size > 1:
        progress(0, 0)
        result = score(
            run.meta.resolved_config.model,
            run.backend.to_global(state.train_state).eval_params,
            ids,
            boundary_id=run.dataset.vocab.boundary_id,
            max_chars=max_eval_chars(run.meta.config.data),
            progress=progress,
        )
        val_loss = result.nats_per_char
        record |= {"val_loss": val_loss, "val_bpc": result.bits_per_char}
        if not math.isfinite(val_loss):
            what = f"the validation loss at step {state.step} is not finite"
            raise diverged(run.meta.config, run.workdir.path, what)
        is_best = state.progress.update_best(val_loss)
    state.progress.pending = None
    run.log.write(record)
    _logger.info(messages.evaluation(record, is_best=is_best))
    return val_loss, is_best


def _sample(run: Run, state: RunState, stop: StopFlags) -> None:
    """Generates and writes the samples of this step.

    Raises:
      _StoppedError: a signal stopped the sampling; nothing was written.
    """

    def check_stop() -> None:
        # The other processes do not wait for the one that samples, so they cannot agree to stop.
        if stop.signal is not None and not distributed.is_multiprocess():
            raise _StoppedError

    state.progress.unsampled = True
    if distributed.is_primary():
        samples = generate_samples(
            run.meta.resolved_config, state.train_state.eval_params, run.dataset.vocab, check_stop
        )
        write_samples(
            samples, state.step, file=run.workdir.samples, log=run.log, show=run.display.samples
        )
    state.progress.unsampled = False


def _save(run: Run, state: RunState, val_loss: float | None = None) -> None:
    """Saves a checkpoint; if this step has one already, replaces only its metadata."""
    state.progress.elapsed_s = state.clock.seconds()
    state.progress.losses = state.metrics.losses
    meta = CheckpointMeta(run.meta, state.progress, run.workdir.log_sizes()).to_json()
    is_saved = state.saved_step == state.step and run.checkpoints.update(
        state.step, meta, val_loss=val_loss
    )
    if not is_saved:
        train_state = run.backend.to_global(state.train_state)
        run.checkpoints.save(state.step, train_state, meta, val_loss=val_loss)
        if distributed.is_primary():
            run.workdir.mark_saved()
    state.saved_step, state.saved_at = state.step, time.monotonic()


def _finish(run: Run, progress: Progress) -> None:
    """Draws the curves, and shows how the run ended and what to do next."""
    try:
        if distributed.is_primary():
            draw_curves(read_metrics(run.workdir.metrics), run.workdir.curves)
    except InputError as error:
        _logger.warning(f"{run.workdir.curves}: not drawn: {error}")
    run.display.table(messages.closing(run.meta, run.workdir, progress))
    _logger.info(messages.next_command(run.meta, run.workdir))


def _log_all(lines: Iterable[str]) -> None:
    for line in lines:
        _logger.info(line)
