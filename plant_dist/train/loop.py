"""The only training loop: it trains any `Task`, on one process or on many.

A task says what a batch, a loss and a metric are; the loop decides when: epochs, accumulation,
steps, resuming. Reporting, validating, stopping and saving are hooks (`hooks.py`). It must not
know what a document, a label or a ranker is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import ConfigError, TrainingError
from plant_dist.logs import get_logger
from plant_dist.runtime.apart import kept_apart
from plant_dist.runtime.checkpoint import Attachment, Checkpoints, TrainingState
from plant_dist.runtime.collectives import broadcast_object
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.runtime.engines import build_engine
from plant_dist.runtime.launch import note_failure
from plant_dist.runtime.tracking import Tracker
from plant_dist.runtime.watchdog import Watchdog
from plant_dist.train.finite import require_finite
from plant_dist.train.hooks import (
    Bar,
    Evaluate,
    Hook,
    Reports,
    Save,
    StopEarly,
    StopOnSignal,
    Window,
    summarise,
)
from plant_dist.train.optim import (
    Averages,
    Thaw,
    build_optimizer,
    build_schedule,
    check_groups,
    group_rates,
)
from plant_dist.train.state import LoopSettings, LoopState
from plant_dist.train.task import BatchSize, Task
from plant_dist.train.throughput import Speed

__all__ = ["BatchSize", "LoopResult", "LoopSettings", "LoopState", "Task", "Trainer"]

log = get_logger(__name__)


@dataclass(frozen=True)
class LoopResult:
    """How a run ended. The task's model holds the best weights.

    Attributes:
        steps: optimizer steps done.
        best_step: the step whose weights were kept; None without validation.
        best_metrics: what its validation measured.
        stopped_early: patience ran out.
        documents: documents seen, repeats counted.
    """

    steps: int
    best_step: int | None
    best_metrics: dict[str, float]
    stopped_early: bool
    documents: float


class Trainer:
    """Trains a task, going on from its checkpoints where there are any.

    Args:
        task: what is trained.
        settings: how long and how.
        context: the place of this process.
        checkpoints: the folder of this training's checkpoints, on a disk all ranks share.
        tracker: where curves go; None writes none.
        identity: digest of everything the result depends on; others' checkpoints are refused.
        hooks: called before the loop's own, at every point.
        attachments: files that checkpoints hold beside the state.
        runtime: the engine to train on; DDP if None.
        config: every setting, for checkpoints to say what has changed.

    Raises:
        ConfigError: the task does not report `settings.best_metric`.
        TrainingError: there is nothing to train, or a parameter is in no group.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        context: RunContext,
        checkpoints: Path,
        tracker: Tracker | None = None,
        identity: str = "",
        hooks: Sequence[Hook] = (),
        attachments: Sequence[Attachment] = (),
        runtime: RuntimeConfig | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        # First of all: a misspelt metric should not show after an epoch of training.
        _check_metric(settings.best_metric, task.metric_names)
        self.task = task
        self.settings = settings
        self.context = context
        self.tracker = tracker or Tracker(None, context)
        self.state = LoopState()
        self.window = Window()
        # The order counts. A signal stops before a validation, which may outlast the grace period;
        # saving comes last, so that a checkpoint knows what the others have judged.
        judging: list[Hook] = [Evaluate(), StopEarly()] if task.metric_names else []
        self.hooks = [*hooks, Reports(), Bar(), StopOnSignal(), *judging, Save()]
        runtime = runtime or RuntimeConfig()
        self.checkpoints = Checkpoints(
            checkpoints, context, keep=settings.keep_checkpoints, identity=identity, config=config,
            beside=runtime.async_checkpoints,
        )  # fmt: skip
        self.total_steps = count_steps(task, settings)
        self._watchdog = Watchdog(context, checkpoints, runtime.hang_seconds)
        self._prepare(attachments, runtime)

    def _prepare(self, attachments: Sequence[Attachment], runtime: RuntimeConfig) -> None:
        task, settings = self.task, self.settings
        self._groups = task.parameter_groups()
        # Before any group is frozen: a parameter in no group would silently never train.
        check_groups(task.model, self._groups)
        self._thaw = Thaw(self._groups, settings.unfreeze_epochs)
        # DDP must be told beforehand that frozen groups give no gradient, or it waits for them.
        unused = settings.unused_parameters or self._thaw.waits
        self._engine = build_engine(self.context, runtime, settings.clip_norm, unused)
        # Counted while every weight is whole.
        self.speed = Speed.of(task.model, task.idle(), self.context)
        optimizer = build_optimizer(self._groups, settings.betas, self.context.device)
        # Not prepared by the engine: Accelerate steps a prepared schedule once for every process.
        schedule = build_schedule(optimizer, settings, self.total_steps)
        self._optimizer = optimizer
        self._model = self._engine.prepare(task.model, optimizer)
        self._bare = self._engine.unwrap(self._model)
        # Rows that exchange, update and save themselves.
        self._apart = kept_apart(self._bare)
        self._averages = Averages(self._bare, settings.ema_decay) if settings.ema_decay else None
        averages = self._averages.tensors if self._averages else {}
        self._kept = TrainingState(
            # Bare: names in checkpoints are the same with and without a wrapper.
            model=self._bare,
            optimizer=optimizer,
            schedule=schedule,
            averages=averages,
            scaler=self._engine.scaler,
            attachments=attachments,
            held=self._engine.held(self._bare, optimizer, averages),
        )

    def run(self) -> LoopResult:
        """Train to the end and return how it went. All ranks must call.

        Raises:
            TrainingError: a loss or gradient is not finite.
            StopRequested: a signal came; everything is saved.
            ArtifactError: a checkpoint cannot be read or written, or is another run's.
        """
        self._resume()
        self._model.train()
        try:
            for hook in self.hooks:
                hook.started(self)
            self._watchdog.beat(self.state.step)
            with self._watchdog:
                while not self.finished:
                    self._train_epoch()
                with self.patience():
                    self.checkpoints.finish()
        except BaseException as error:
            note_failure(error)
            self.checkpoints.abandon()
            raise
        # After errors as well: signal handlers are put back, and the last curves written.
        finally:
            for hook in self.hooks:
                hook.closed(self)
            self.tracker.flush()
        return self._finish()

    def _resume(self) -> None:
        # Ranks draw different dropout masks; a checkpoint brings its own generators.
        seed_everything(self.context.seed, stream=self.context.rank)
        position = self.checkpoints.load(self._kept)
        if position is not None:
            self.state = LoopState(**position)
            self.tracker.resume(self.state.step)
            log.info("%s: going on after step %d", self.task.name, self.state.step)

    def _train_epoch(self) -> None:
        """Train what is left of the epoch in progress."""
        epoch = self.state.epoch
        batches = iter(self.task.batches(epoch, self.state.batch))
        while group := self._next(batches):
            self._step(group)
            self.checkpoints.poll()
            for hook in self.hooks:
                hook.stepped(self)
            self._watchdog.beat(self.state.step)
            if self.finished:
                return
        assert self.state.epoch > epoch, "the task promised more batches than it gave"

    def _next(self, batches: Iterator[Any]) -> list[Any]:
        """Return the batches of a step; what they are waited for is time that nothing trains."""
        began = time.monotonic()
        group = list(islice(batches, self.settings.accumulation))
        self.window.waited += time.monotonic() - began
        return group

    def _step(self, batches: list[Any]) -> None:
        """Make one optimizer step of a few batches, each weighing its documents."""
        # Before the forward pass, which records what will need a gradient.
        self._thaw.apply(self.progress)
        for module in self._apart:
            module.begin(self._optimizer)
        sizes = [self.task.size(batch) for batch in batches]
        # Batches of fillers alone weigh 0 and must not divide by it.
        documents = sum(size.documents for size in sizes) or 1.0
        loss = torch.zeros((), device=self.context.device)
        for number, (batch, size) in enumerate(zip(batches, sizes, strict=True), start=1):
            # Ranks exchange gradients with the last batch only, once a step.
            with self._engine.accumulate(self._model, last=number == len(batches)):
                with self._engine.autocast():
                    share = self.task.loss(self._model, batch) * (size.documents / documents)
                self._engine.backward(share)
            # Summed on the device: to read it here would wait for the device at every batch.
            loss += share.detach()
        norms, applied = self._engine.update(
            [group.parameters for group in self._groups], self.settings.clip_norm
        )
        # False where fp16 overflowed: no update, so neither schedule nor averages move on.
        if applied:
            for module in self._apart:
                module.step()
            self._kept.schedule.step()
            if self._averages:
                self._averages.update(self.state.step + 1)
        self.window.add(batches, loss, norms, documents, sum(size.tokens for size in sizes))
        length = self.task.batches_per_epoch(self.state.epoch)
        self.state.advance(len(batches), documents, length)

    # What hooks see and ask (the `Loop` protocol).

    @property
    def title(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def progress(self) -> float:
        """Epochs done, with fractions."""
        done = self.state.batch / max(1, self.task.batches_per_epoch(self.state.epoch))
        return self.state.epoch + done

    @property
    def finished(self) -> bool:
        """True after the last step."""
        return self.state.stopped_early or self.state.step >= self.total_steps

    @property
    def group_names(self) -> list[str]:
        """The parameter groups, in the order of the window's norms."""
        return [group.name for group in self._groups]

    def learning_rates(self) -> dict[str, float]:
        """Return the rate of each group for the next step."""
        return group_rates(self._optimizer)

    def flush(self) -> None:
        """Check the window's losses, report it to every hook, begin another. All ranks must call.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        if not self.window.losses:
            return
        require_finite(self, self.task.identify, self.checkpoints)
        report = summarise(self)
        for hook in self.hooks:
            hook.reported(self, report)
        self.window = Window()

    def patience(self) -> AbstractContextManager[None]:
        """Let what the block does take as long as it likes (`runtime.hang_seconds`)."""
        return self._watchdog.paused()

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights on every rank inside the block, to read. All ranks must call."""
        return self._engine.whole()

    def validate(self) -> Mapping[str, float]:
        """Flush, validate (the averages, where they are kept), judge, tell. All ranks must call."""
        self.flush()
        with self.patience():
            # What is written is not lost where a validation is killed, nor takes memory meanwhile.
            self.checkpoints.finish()
            metrics = self._validated()
        self.state.judge(metrics, self.settings)
        for hook in self.hooks:
            hook.validated(self, metrics)
        # The seconds that validation took do not count against the speed of training.
        self.window = Window()
        return metrics

    def _validated(self) -> dict[str, float]:
        self._swap_averages()
        self._bare.eval()
        # The bare module: ranks may call it unlike numbers of times; a wrapper would wait.
        with torch.no_grad(), self.whole():
            measured = dict(self.task.validate(self._bare))
        self._bare.train()
        self._swap_averages()
        # Ranks that judged differently in the last bit would part ways.
        return broadcast_object(self.context, measured)

    def save(self, wait: bool = False) -> Path:
        """Write a checkpoint, of finite weights only. All ranks must call."""
        require_finite(self, self.task.identify, self.checkpoints)
        with self.patience():
            return self.checkpoints.save(
                self._kept, self.state.as_json(), self.state.step, self.state.best_step, wait
            )

    def _swap_averages(self) -> None:
        if self._averages:
            self._averages.swap()

    def _finish(self) -> LoopResult:
        """Leave the best weights in the task's model: averaged, where averages are kept."""
        best = self.state.best_step
        if best is None:
            self._swap_averages()
        # Before loading, which fills whole tensors.
        bare = self._engine.release(self._model).eval()
        if best is not None:
            self.checkpoints.load_weights(best, bare)
        return LoopResult(
            steps=self.state.step,
            best_step=best,
            best_metrics=self.state.best_metrics,
            stopped_early=self.state.stopped_early,
            documents=self.state.documents,
        )


def count_steps(task: Task, settings: LoopSettings) -> int:
    """Return the optimizer steps of a whole run.

    Raises:
        TrainingError: the task has no batches.
    """
    planned = sum(
        math.ceil(task.batches_per_epoch(epoch) / settings.accumulation)
        for epoch in range(settings.epochs)
    )
    if planned == 0:
        raise TrainingError(f"{task.name}: there is no training document; check the train split")
    return min(planned, settings.max_steps or planned)


def _check_metric(name: str, reported: Sequence[str]) -> None:
    if reported and name not in reported:
        raise ConfigError(
            f"best_metric is {name!r}, which validation does not report; choose one of: "
            f"{', '.join(reported)}"
        )
