"""The training loop: composes all the rooms, and reads like the story of a run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from charjax.checkpoint import Checkpoints
from charjax.config import Config, from_config_dict, to_dict
from charjax.data.batches import Batch
from charjax.data.dataset import Dataset, load_dataset
from charjax.errors import InputError, InterruptedRunError
from charjax.model.network import parameter_count
from charjax.model.recurrence.api import resolve
from charjax.runtime import distributed
from charjax.runtime.display import Display, show_messages
from charjax.runtime.dtypes import resolve_dtype
from charjax.runtime.signals import StopSignals
from charjax.train import messages
from charjax.train.backends import make_backend
from charjax.train.evaluate import evaluate
from charjax.train.intervals import make_intervals
from charjax.train.metrics import Log, MetricsLog, NoLog, draw_curves, read_metrics
from charjax.train.optimizer import make_optimizer, make_schedule
from charjax.train.progress import Clock, Progress
from charjax.train.resume import check_allowed, check_same_run, describe
from charjax.train.samples import check_samples, write_samples
from charjax.train.step import TrainState, init_state
from charjax.train.step_metrics import Tally
from charjax.train.stopping import Stopping, why_over
from charjax.workdir import Workdir


def train(
    config: Config, workdir: Path, display: Display, *, allow: Sequence[str] = ()
) -> Progress:
    """Trains, or resumes, the run in a folder.

    Args:
      config: the run.
      workdir: its folder; made where there is none.
      display: shows progress, samples, and the messages of charjax's loggers.
      allow: what may have changed since the run was saved, such as
        "config.optim.learning_rate" or "corpus".

    Returns:
      How far it came.

    Raises:
      CharjaxError: see `charjax.errors`; what was trained before is kept.
    """
    check_allowed(allow)
    folder = Workdir(workdir)
    with (
        show_messages(display),
        _held(folder),
        Checkpoints(folder.checkpoints, keep=config.train.keep) as saved,
    ):
        with display.task("reading the text") as update, distributed.primary_first():
            text = load_dataset(config, progress=update)
        folder.check_lock()
        steps = saved.steps()
        distributed.require_same(f"{folder.checkpoints}", f"{steps}")
        begun = saved.read_meta().meta if steps else None
        config = resolve_dtype(config, begun["config"] if begun else None)
        distributed.require_same(
            "the config or the text", f"{to_dict(config)} {text.corpus.sha256}"
        )
        run = _Run(config, folder, text, display, saved)
        run.begin(begun, allow)
        with contextlib.closing(run.log):
            run.work()
        run.finish()
        return run.progress


@contextlib.contextmanager
def _held(folder: Workdir) -> Iterator[None]:
    """Makes and locks the folder, which one process does for all."""
    if not distributed.is_primary():
        yield
        return
    folder.create()
    with folder.lock():
        yield


class _Run:
    """One run: its collaborators, and the state and progress that move."""

    state: TrainState
    progress: Progress
    tally: Tally
    clock: Clock
    log: Log
    stopping: Stopping

    def __init__(
        self,
        config: Config,
        folder: Workdir,
        text: Dataset,
        display: Display,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.folder, self.text, self.display = config, folder, text, display
        self.checkpoints, self.signals = checkpoints, StopSignals()
        self.first = distributed.is_primary()  # and so the one that writes
        self.plan = make_intervals(config.train, text.batches.steps_per_epoch)
        rows = config.data.batch_size // (jax.device_count() * config.parallel.accumulate)
        self.recurrence = resolve(config.model, rows)
        optimizer = make_optimizer(config.optim, self.plan.total)
        self.learning_rate = make_schedule(config.optim, self.plan.total)
        self.backend = make_backend(config, len(text.vocab), optimizer)
        self.new_state: Callable[[], TrainState] = lambda: init_state(
            config, len(text.vocab), optimizer
        )
        self.parameters = parameter_count(jax.eval_shape(self.new_state).params)
        self.step = 0
        self.record: Mapping[str, Any] = {}

    def begin(self, begun: Mapping[str, Any] | None, allow: Sequence[str]) -> None:
        """Takes up the newest good checkpoint, or starts anew where there is none.

        Args:
          begun: what that checkpoint says of the run; None: there is none.
          allow: what may have changed since.
        """
        check_samples(self.config, self.text.vocab)  # before there is work to lose
        for line in messages.opening(
            self.config, self.text, self.plan, self.parameters, self.recurrence
        ):
            self.display.report(line)
        if begun:
            changes = check_same_run(self.folder.path, begun, self.config, self.text, allow=allow)
            for change in changes:
                self.display.report(f"allowed: {change}")
            self._resume()
            before, an_epoch = from_config_dict(begun["config"]), self.text.batches.steps_per_epoch
            for line in messages.rescheduled(before, self.config, an_epoch, self.step):
                self.display.report(line)
        else:
            self._cut_logs(dict.fromkeys(self.folder.log_sizes(), 0))
            self._take_up(self.new_state(), Progress())
        for line in messages.dispatch(self.config.train, self.plan, self.step):
            self.display.report(line)
        self.clock = Clock(self.progress.elapsed_s)
        self.stopping = Stopping(self.signals, self._late)
        if self.first:
            self.log = MetricsLog(self.folder.metrics, tensorboard=self.config.train.tensorboard)
            self.folder.write_run(describe(self.config, self.text, self.parameters))
        else:
            self.log = NoLog()

    def _resume(self) -> None:
        restored = self.checkpoints.restore(jax.eval_shape(self.new_state))
        distributed.require_same(f"{self.folder.checkpoints}", f"restored {restored.step}")
        self._take_up(restored.state, Progress.from_json(restored.meta["progress"]))
        self.step = restored.step
        self.plan = make_intervals(self.config.train, self.text.batches.steps_per_epoch, self.step)
        self._cut_logs(restored.meta["logs"])
        self.display.report(f"resuming {self.folder.path} at step {self.step:,}")

    def _take_up(self, state: TrainState, progress: Progress) -> None:
        """Puts the state on the devices, and goes on from what is known of the past."""
        self.tally = Tally(
            self.config,
            self.folder.path,
            progress,
            skipped=int(state.skipped),
            report=self.display.report,
        )
        self.state, self.progress = self.backend.place(state), progress

    def _cut_logs(self, sizes: Mapping[str, int]) -> None:
        if self.first:
            self.folder.truncate_logs(sizes)

    def work(self) -> None:
        """Steps until a limit, a signal or divergence ends the run."""
        first, over = True, self._over()
        with self.display.task("training") as update, contextlib.ExitStack() as stack:
            while not over:
                self.state, metrics = self.backend.run(self.state, self._next_batches())
                self.step += self.plan.dispatch
                if first:  # compiled just now; until here there was nothing to save
                    stack.enter_context(self.signals)
                    first = False
                self.stopping.ask()
                # The devices work on these steps while the host reads the metrics
                # of those before them.
                self.tally.add(metrics, self.step)
                # Asked once a turn: a signal must not end the loop after a turn that did not save.
                over = self._over()
                if over or any(map(self._due, self.plan.intervals)):
                    self.tally.catch_up()
                    with self.clock.paused():
                        over = self._do_what_is_due()
                update(
                    self.step, self.plan.total, messages.beside_the_bar(self.record, self.progress)
                )
        if self.stopping.signal is not None:
            raise InterruptedRunError(
                self.stopping.signal,
                f"{self.folder.path}: stopped at step {self.step}; "
                "the same command goes on from there",
            )

    def finish(self) -> None:
        """Draws the curves and tells the person what came of it and what to do next."""
        try:
            if self.first:
                draw_curves(read_metrics(self.folder.metrics), self.folder.curves)
        except InputError as error:
            self.display.report(f"{self.folder.curves}: not drawn: {error}")
        for line in messages.closing(self.config, self.folder, self.text, self.progress):
            self.display.report(line)

    def _over(self) -> bool:
        """Whether the run stops here; notes why, unless it is for a signal."""
        self.progress.ended = why_over(
            self.config.train, self.plan, self.step, self.progress, late=self.stopping.late
        )
        return bool(self.progress.ended) or self.stopping.signal is not None

    def _late(self) -> bool:
        limit = 60 * self.config.train.max_minutes
        return limit > 0 and self.clock.seconds() >= limit

    def _due(self, interval: int) -> bool:
        return self.step % interval == 0

    def _next_batches(self) -> Batch:
        steps = range(self.step, self.step + self.plan.dispatch)
        batches = [self.text.batches(step, self.backend.rows) for step in steps]
        return Batch(*map(np.stack, zip(*batches, strict=True)))

    def _do_what_is_due(self) -> bool:
        """Record, evaluation, samples; then the checkpoint, which notes how long the logs are.

        Returns:
          Whether the run stops here; then it is saved.
        """
        plan, ended = self.plan, bool(self.progress.ended)
        val_loss, better = None, False
        if self._due(plan.evaluate) or ended:
            record = self._new_record()
            val_loss = self._evaluate(record)
            better = val_loss is not None and self.progress.note_loss(val_loss)
            self.log.write(record)
            self.display.report(messages.evaluation(record, better=better))
        elif self._due(plan.log):
            self.log.write(self._new_record())
        if self.first and (self._due(plan.sample) or ended):
            write_samples(
                self.config,
                self.state.eval_params,
                self.text.vocab,
                step=self.step,
                file=self.folder.samples,
                show=self.display.text,
            )
        over = self._over()
        if self._due(plan.checkpoint) or better or over:
            self._checkpoint(val_loss)
        return over

    def _new_record(self) -> dict[str, Any]:
        """The training record since the last one."""
        record = self.tally.take_record(
            self.step, self.text.batches, self.clock, self.learning_rate
        )
        self.record = record
        return record

    def _evaluate(self, record: dict[str, Any]) -> float | None:
        """Adds the validation loss to the record; None where there is no validation text."""
        params = self.backend.whole(self.state).eval_params
        record |= evaluate(self.config.model, params, self.text.splits.val.ids)
        val_loss: float | None = record.get("val_loss")
        if val_loss is not None and not math.isfinite(val_loss):
            raise self.tally.diverged(f"the validation loss at step {self.step} is not finite")
        return val_loss

    def _checkpoint(self, val_loss: float | None) -> None:
        self.progress.elapsed_s = self.clock.seconds()
        meta = describe(self.config, self.text, self.parameters) | {
            "progress": self.progress.to_json(),
            "logs": self.folder.log_sizes(),
        }
        self.checkpoints.save(self.step, self.backend.whole(self.state), meta, val_loss=val_loss)
