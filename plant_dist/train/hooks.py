"""What happens between steps: report, show progress, stop on a signal, validate, stop early, save.

The loop calls every hook on every rank at the same points, in the order of its list, so a hook may
use collectives. A hook sees the loop through the `Loop` protocol; the step itself knows no hook.
Stages bring hooks of their own (curves, histograms) without touching the loop.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from plant_dist.errors import StopRequested
from plant_dist.logs import get_logger, progress_bar
from plant_dist.runtime.collectives import any_rank, gather_objects, mean_across, sum_across
from plant_dist.runtime.context import RunContext, peak_memory_bytes
from plant_dist.runtime.tracking import Tracker
from plant_dist.train.state import LoopSettings, LoopState
from plant_dist.train.throughput import Speed

log = get_logger(__name__)

# What SLURM sends before it ends a job: TERM by itself, USR1 where `--signal` asks for it.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


RANKS_SHOWN = 16  # more curves of memory than these hide the others


@dataclass
class Window:
    """The steps since the last report. Losses and norms stay on the device until it is read.

    Attributes:
        losses: one () tensor a step: this rank's loss, of which the mean over ranks is the loss.
        norms: one (G + 1,) tensor a step: the gradient norm of each group, and of all.
        batches: the batches of each step, kept to name the documents of a loss gone wrong.
        documents: over all ranks.
        tokens: on this rank.
        waited: seconds that batches were waited for, on this rank.
        began: `time.monotonic()` at the first step.
    """

    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    batches: list[Sequence[Any]] = field(default_factory=list)
    documents: float = 0.0
    tokens: int = 0
    waited: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    def add(
        self, batches: Sequence[Any], loss: Tensor, norms: Tensor, documents: float, tokens: int
    ) -> None:
        """Count a step, without waiting for the device."""
        self.losses.append(loss)
        self.norms.append(norms)
        self.batches.append(batches)
        self.documents += documents
        self.tokens += tokens


@dataclass(frozen=True)
class Report:
    """What a window of steps looked like, over all ranks.

    Attributes:
        losses: the loss of each step of the window, oldest first.
        gradient_norms: by group, and `total`: of the window's last step, before clipping.
        learning_rates: by group, of the next step.
        data_wait_share: of the seconds, those in which a rank waited for batches; mean over ranks.
        peak_memory_bytes: the largest of any rank; memory_by_rank: of each.
        teraflops: of all ranks together, forward and backward, by the rule of `throughput`.
        utilisation: the same as a share of what matrix products alone reach on these devices.
    """

    step: int
    epoch: float
    losses: list[float]
    gradient_norms: dict[str, float]
    learning_rates: dict[str, float]
    documents_per_second: float
    tokens_per_second: float
    data_wait_share: float
    memory_by_rank: list[int]
    teraflops: float
    utilisation: float

    @property
    def loss(self) -> float:
        """The mean loss of the window."""
        return sum(self.losses) / len(self.losses)

    @property
    def peak_memory_bytes(self) -> int:
        """The most that any rank has used."""
        return max(self.memory_by_rank)

    def scalars(self) -> dict[str, float]:
        """Return the report as TensorBoard tags."""
        # TensorBoard sorts its groups by name: the number puts what is looked at first on top.
        return {
            "1_loss/train": self.loss,
            "5_learning_rate/epoch": self.epoch,
            "7_speed/documents_per_second": self.documents_per_second,
            "7_speed/tokens_per_second": self.tokens_per_second,
            "7_speed/data_wait_share": self.data_wait_share,
            "7_speed/teraflops_per_second": self.teraflops,
            "7_speed/model_flops_utilisation": self.utilisation,
            "8_memory/peak_gib": self.peak_memory_bytes / 2**30,
            **{
                f"8_memory/rank_{rank}_gib": used / 2**30
                for rank, used in enumerate(self.memory_by_rank[:RANKS_SHOWN])
            },
            **{f"5_learning_rate/{name}": rate for name, rate in self.learning_rates.items()},
            **{f"6_gradient_norm/{name}": norm for name, norm in self.gradient_norms.items()},
        }


class Loop(Protocol):
    """What a hook sees of the loop, and what it may ask of it."""

    settings: LoopSettings
    state: LoopState
    context: RunContext
    tracker: Tracker
    window: Window
    speed: Speed

    @property
    def title(self) -> str:
        """The task's name."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, if nothing stops it early."""

    @property
    def progress(self) -> float:
        """Epochs done, with fractions."""

    @property
    def finished(self) -> bool:
        """True after the last step."""

    @property
    def group_names(self) -> list[str]:
        """The parameter groups, in the order of the window's norms."""

    def learning_rates(self) -> dict[str, float]:
        """Return the rate of each group for the next step."""

    def flush(self) -> None:
        """Check the window's losses, report it to every hook, begin another. All ranks must call.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """

    def patience(self) -> AbstractContextManager[None]:
        """Let what the block does take as long as it likes."""

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights on every rank inside the block, to read. All ranks must call."""

    def validate(self) -> Mapping[str, float]:
        """Flush, validate, judge, and tell every hook. All ranks must call."""

    def save(self, wait: bool = False) -> Path:
        """Write a checkpoint; it may go on beside the next steps, unless `wait`. All ranks call."""


class Hook:
    """The points at which the loop calls; each does nothing unless overridden."""

    def started(self, loop: Loop) -> None:
        """Before the first step, or the first after resuming."""

    def stepped(self, loop: Loop) -> None:
        """After every optimizer step."""

    def reported(self, loop: Loop, report: Report) -> None:
        """After every `log_steps` steps, and after the last."""

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """After every validation; `loop.state` has judged it."""

    def closed(self, loop: Loop) -> None:
        """When the loop ends, however it ends."""


class Reports(Hook):
    """Reports every `log_steps` steps, to TensorBoard: the one place that waits for the device."""

    def stepped(self, loop: Loop) -> None:
        """Report where it is due."""
        if loop.state.step % loop.settings.log_steps == 0 or loop.finished:
            loop.flush()

    def reported(self, loop: Loop, report: Report) -> None:
        """Write the curves."""
        loop.tracker.scalars(report.step, report.scalars())

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Write the metrics, and say the one that counts."""
        tags = {f"2_validation/{name}": value for name, value in metrics.items()}
        loop.tracker.scalars(loop.state.step, tags)
        # On disk at every validation, so that a killed run loses little of its curves.
        loop.tracker.flush()
        name, state = loop.settings.best_metric, loop.state
        best = state.best_metrics.get(name, math.nan)
        note = "the best so far" if state.best_step == state.step else f"best: {best:.4f}"
        place = f"{loop.title}, step {state.step}, epoch {loop.progress:.2f}"
        log.info("%s: validation %s %.4f, %s", place, name, metrics[name], note)


def summarise(loop: Loop) -> Report:
    """Return the report of the window. All ranks must call."""
    window = loop.window
    losses = mean_across(loop.context, torch.stack(window.losses))
    counted = torch.tensor([window.tokens, window.waited], dtype=torch.float64)
    tokens, waited = sum_across(loop.context, counted).tolist()
    norms = window.norms[-1].tolist()
    # Reading the norms has waited for the device, so that the seconds are those of the work.
    seconds = max(time.monotonic() - window.began, 1e-9)
    return Report(
        step=loop.state.step,
        epoch=loop.progress,
        losses=losses.tolist(),
        gradient_norms=dict(zip([*loop.group_names, "total"], norms, strict=True)),
        learning_rates=loop.learning_rates(),
        documents_per_second=window.documents / seconds,
        tokens_per_second=tokens / seconds,
        data_wait_share=min(1.0, waited / loop.context.world / seconds),
        memory_by_rank=gather_objects(loop.context, peak_memory_bytes(loop.context.device)),
        teraflops=loop.speed.teraflops(tokens / seconds),
        utilisation=loop.speed.utilisation(tokens / seconds),
    )


class Bar(Hook):
    """A progress bar on rank 0, with the loss and documents per second."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._bar: Any = None

    def started(self, loop: Loop) -> None:
        """Show the bar, at the step where the run goes on."""
        shown = loop.context.is_main and not loop.finished
        self._bar = self._open.enter_context(
            progress_bar(loop.title, "step", loop.total_steps, shown=shown)
        )
        # tqdm takes its rate from `initial` on: steps of an earlier run took no time in this one.
        self._bar.initial = self._bar.n = loop.state.step

    def stepped(self, loop: Loop) -> None:
        """Advance by one."""
        self._bar.update(1)

    def reported(self, loop: Loop, report: Report) -> None:
        """Show the newest figures."""
        rate = f"{report.documents_per_second:.1f}"
        self._bar.set_postfix({"loss": f"{report.loss:.4f}", "documents/s": rate}, refresh=False)

    def closed(self, loop: Loop) -> None:
        """Leave the bar as it stands."""
        self._open.close()


class StopOnSignal(Hook):
    """SIGTERM or SIGUSR1 on any rank: the step is finished, a checkpoint saved, the run stops.

    Every rank stops at the same step, also where only one got the signal.
    """

    def __init__(self) -> None:
        self._caught: int | None = None
        self._before: dict[int, Any] = {}

    def started(self, loop: Loop) -> None:
        """Begin to listen. Python takes signals in its main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._catch) for one in STOP_SIGNALS}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        # Only noted: a handler runs between two lines of a step, which must end whole.
        self._caught = number

    def stepped(self, loop: Loop) -> None:
        """Save and stop where a signal came.

        Raises:
            StopRequested: always after saving.
        """
        # Asked at every step: a rank that stopped alone would leave the others in a collective.
        if not any_rank(loop.context, self._caught is not None):
            return
        folder = loop.save(wait=True)
        name = signal.Signals(self._caught).name if self._caught else "a signal on another rank"
        raise StopRequested(
            f"{loop.title} stopped by {name} after step {loop.state.step} of {loop.total_steps}; "
            f"saved in {folder}; run the same command again to go on"
        )

    def closed(self, loop: Loop) -> None:
        """Listen no more."""
        # The next stage in this process may run without a loop: signals must end it as usual.
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class Evaluate(Hook):
    """Validates every `evaluate_epochs` epochs and after the last step."""

    def started(self, loop: Loop) -> None:
        """Catch up on a validation that a signal came before."""
        self.stepped(loop)

    def stepped(self, loop: Loop) -> None:
        """Validate where it is due."""
        # A millionth of an interval is far less than a step, and far more than rounding.
        intervals = int(loop.progress / loop.settings.evaluate_epochs + 1e-6)
        last = loop.finished and loop.state.validated_step != loop.state.step
        if intervals > loop.state.intervals or last:
            # Before validating, whose hooks save the state: resuming must not validate again.
            loop.state.intervals = intervals
            loop.validate()


class StopEarly(Hook):
    """Ends the run after `patience` validations without a better one."""

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Count."""
        patience = loop.settings.patience
        if patience is not None and loop.state.stale >= patience:
            loop.state.stopped_early = True
            log.info("%s: no better for %d validations; stopping", loop.title, patience)


class Save(Hook):
    """Saves every `checkpoint_steps` steps, when a validation is the best, and at the end."""

    def __init__(self) -> None:
        self._saved_step = 0

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Save the best."""
        if loop.state.best_step == loop.state.step:
            self._save(loop)

    def stepped(self, loop: Loop) -> None:
        """Save where it is due and not done."""
        due = loop.state.step % loop.settings.checkpoint_steps == 0 or loop.finished
        # A validation after this very step may have saved it as the best.
        if due and loop.state.step != self._saved_step:
            self._save(loop)

    def _save(self, loop: Loop) -> None:
        loop.save()
        self._saved_step = loop.state.step
