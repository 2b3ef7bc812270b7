"""The training loop: dispatches steps, and between them evaluates, samples and saves."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from charjax.checkpoint.checkpoints import Checkpoints
from charjax.checkpoint.meta import CheckpointMeta
from charjax.checkpoint.progress import Progress
from charjax.conditions import from_config_dict
from charjax.config import Config
from charjax.errors import DivergedError, InputError, InterruptedRunError
from charjax.inference.scoring.evaluate import validate
from charjax.runtime import distributed
from charjax.runtime.display import Display, make_display, show_messages
from charjax.runtime.files import append_content
from charjax.train import compile_ahead, messages, resume
from charjax.train.metrics import draw_curves, read_metrics
from charjax.train.run import Run, RunState, set_up
from charjax.train.samples import generate_samples
from charjax.train.step import StepMetrics
from charjax.train.step_metrics import step_flops
from charjax.train.stopping import Stopping
from charjax.workdir import Workdir

_logger = logging.getLogger(__name__)


class _StoppedError(Exception):
    """A signal stopped an evaluation or the sampling."""


def train(
    config: Config | Any,
    workdir: str | Path,
    display: Display | None = None,
    *,
    allow: Sequence[str] = (),
) -> Progress:
    """Trains the run in a workdir, from its newest checkpoint that verifies or from the start.

    Args:
      config: the run; also what `get_config` of a config file returns.
      workdir: its folder; made if it does not exist.
      display: shows progress, samples, and the messages of charjax's loggers; None: the one for
        standard output, such as the cell of a notebook.
      allow: what may have changed since the run was saved, such as
        "config.optim.learning_rate" or "corpus".

    Returns:
      How far the run has come.

    Raises:
      InputError: a field of the config is outside its limits, or contradicts another.
      CharjaxError: see `charjax.errors`; the checkpoints stay.
    """
    config = from_config_dict(config)  # checks a config that Python code has made
    resume.check_allowed(allow)
    display = display or make_display(sys.stdout)
    files = Workdir(Path(workdir))
    checkpoints = Checkpoints(files.checkpoints, keep=config.train.keep)
    # Process 0 makes and locks the folder for all.
    claim = files.claim() if distributed.is_primary() else contextlib.nullcontext()
    with show_messages(display), claim, checkpoints:
        run, state = set_up(config, files, checkpoints, display, allow)
        try:
            with display.task("training") as update:
                signal = _train(run, state, update)
        except DivergedError as error:
            raise DivergedError(
                f"{files.path}: diverged: {error}; what was saved is kept; in another --workdir, "
                f"try a smaller config.optim.learning_rate than {config.optim.learning_rate:g}"
            ) from None
        if signal is not None:
            raise InterruptedRunError(
                signal,
                f"{workdir}: stopped at step {state.step}; the same command goes on from there",
            )
        _finish(run, state.progress)
    return state.progress


def _train(run: Run, state: RunState, update: Callable[..., None]) -> int | None:
    """Trains until the run ends; returns the signal that stopped it, or None."""
    stop, is_compiled, had_ended = Stopping(run, state), False, bool(state.progress.ended)
    is_done = stop.stops_here()
    if is_done and not had_ended:
        _note_last_step(run, state)
    is_due = bool(state.progress.pending or state.progress.unsampled)
    _write_run(run, state, is_finished=is_done and not is_due)
    wait = compile_ahead.start(run.meta.resolved_config, state.train_state.eval_params, run.dataset)

    def do_what_is_due() -> bool:
        state.metrics.flush()
        with state.clock.paused():
            wait()
            return _do_what_is_due(run, state, stop, update)

    if is_due:
        with stop.signals:
            is_done = do_what_is_due()
    with contextlib.ExitStack() as handlers:
        while not is_done:
            metrics = _dispatch(run, state)
            if not is_compiled:  # before, a signal may end the process: there is nothing to save
                handlers.enter_context(stop.signals)
                is_compiled = True
            stop.sync()
            # While the devices compute these steps, the host reads metrics of the previous ones,
            # and logs them: no device waits for a record.
            read = state.metrics.push(metrics, state.step)
            if read is not None and read % run.intervals.log == 0:
                run.log.write(_next_record(run, state, read))
            # Checked once: a signal after this line must not end the loop before a save.
            is_done = stop.stops_here()
            if is_done or stop.checkpoint_is_due or run.intervals.needs_state(state.step):
                is_done = do_what_is_due()
            status = messages.status(state.record, state.progress)
            update(state.step, run.intervals.total, messages.progress_note(status), status)
    return stop.signal


def _note_last_step(run: Run, state: RunState) -> None:
    """Notes what the last step still needs, where it was saved before it became the last one."""
    progress, has_val = state.progress, run.dataset.splits.val.ids.size > 1
    if progress.pending or progress.unsampled:
        return
    if _saved_val_loss(run, state) is None and (has_val or progress.losses.count):
        progress.pending = _next_record(run, state, state.step)
    else:
        progress.unsampled = state.step % run.intervals.sample != 0


def _write_run(run: Run, state: RunState, *, is_finished: bool) -> None:
    """Writes `run.json`; process 0 does it for all. That of a finished run is as it was saved."""
    if distributed.is_primary():
        meta = run.meta
        if is_finished:
            record = run.checkpoints.read_meta(which=state.step)
            meta = CheckpointMeta.of(record, run.workdir.checkpoints).run
        run.workdir.write_run(meta.to_json())


def _dispatch(run: Run, state: RunState) -> StepMetrics:
    """Sends the next steps to the devices, and does not wait for them."""
    steps, started = range(state.step, state.step + run.intervals.dispatch), time.monotonic()
    inputs = run.backend.inputs(run.dataset.batches, steps)
    if state.metrics.is_idle:
        state.clock.stalled_s += time.monotonic() - started
    state.train_state, metrics = run.backend.run(state.train_state, inputs)
    state.step += run.intervals.dispatch
    return metrics


def _do_what_is_due(run: Run, state: RunState, stop: Stopping, update: Callable[..., None]) -> bool:
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
            val_loss = _saved_val_loss(run, state)
        elif ended or progress.pending or step % intervals.evaluate == 0:
            progress.pending = progress.pending or _next_record(run, state, step)
            if save:
                _save(run, state)
            val_loss, is_best = _evaluate(run, state, stop, update)
        elif step % intervals.log == 0:
            run.log.write(_next_record(run, state, step))
        if progress.unsampled or ended or step % intervals.sample == 0:
            _sample(run, state, stop)
    except _StoppedError:
        _save(run, state, val_loss)
        return True
    stops = stop.stops_here()
    if save or is_best or stops:
        _save(run, state, val_loss)
    return stops


def _saved_val_loss(run: Run, state: RunState) -> float | None:
    """The validation loss saved with this step, if it was measured on the text of today."""
    saved = run.checkpoints.read_meta(which=state.step)
    val_text_id = run.meta.corpus.sha256, state.progress.validation.val_record
    return saved.val_loss if saved.val_text_id == val_text_id else None


def _next_record(run: Run, state: RunState, step: int) -> dict[str, Any]:
    flops = step_flops(run.meta.config, len(run.dataset.vocab))
    state.record = state.metrics.pop_record(step, run.dataset.batches, state.clock, flops)
    if val_record := state.progress.validation.val_record:
        state.record["val_record"] = val_record
    return state.record


def _evaluate(
    run: Run, state: RunState, stop: Stopping, update: Callable[..., None]
) -> tuple[float | None, bool]:
    """Evaluates the model and logs the pending record.

    Returns:
      The validation loss in nats per character, or None if the split is empty; whether it is the
      best so far.

    Raises:
      _StoppedError: a signal stopped the evaluation; nothing was logged.
      DivergedError: the validation loss is not finite.
    """

    def after_chunk(done: int, total: int) -> None:
        doing = f"evaluating {done:,}/{total:,}" if total else "evaluating"
        update(state.step, 0, doing)  # without a total, as no step is done meanwhile
        if stop.sync_signal() is not None:
            raise _StoppedError

    after_chunk(0, 0)
    val_loss, is_best = None, False
    record = state.record = dict(state.progress.pending or {})
    params = run.backend.to_global(state.train_state).eval_params
    if result := validate(run.meta.resolved_config, params, run.dataset, after_chunk):
        val_loss = result.nats_per_char
        record |= {"val_loss": val_loss, "val_bpc": result.bits_per_char}
        if not math.isfinite(val_loss):
            raise DivergedError(f"the validation loss at step {state.step} is not finite")
        is_best = state.progress.validation.update_best(val_loss)
    state.progress.pending = None
    run.log.write(record)
    _logger.info(messages.evaluation(record, is_best=is_best))
    return val_loss, is_best


def _sample(run: Run, state: RunState, stop: Stopping) -> None:
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
        if samples:
            _write_samples(run, state.step, samples)
    state.progress.unsampled = False


def _write_samples(run: Run, step: int, samples: Sequence[tuple[float, str]]) -> None:
    """Appends (temperature, text) of each sample to the logs, and shows them."""
    titled = [(f"step {step}, temperature {temperature:g}", text) for temperature, text in samples]
    log = "".join(f"=== {title} ===\n{text}\n\n" for title, text in titled)
    append_content(run.workdir.samples, log.encode())
    for temperature, text in samples:
        run.log.add_text(f"sample, temperature {temperature:g}", text, step)
    run.display.samples(titled)


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
