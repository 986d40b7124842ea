"""What the loop is told, and what it remembers: its settings and its position.

Both are plain values; the position goes into every checkpoint. Neither knows a task, a model or
an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from plant_dist.config.schema import LmConfig, RankConfig, TrainConfig


@dataclass(frozen=True)
class LoopSettings:
    """How long and how the loop trains; the part of a stage's config that it obeys.

    Attributes:
        epochs: passes over the task's batches, at most.
        best_metric: the validation metric that chooses the best checkpoint.
        accumulation: batches per optimizer step; the last step of an epoch may have fewer.
        clip_norm: largest gradient norm; None never clips.
        betas: Adam's.
        schedule, warmup_fraction, sgdr_cycles: see `optim.multiplier`.
        unfreeze_epochs: see `optim.Thaw`.
        evaluate_epochs: epochs between validations.
        patience: validations without a better metric before stopping; None never stops early.
        checkpoint_steps: optimizer steps between periodic checkpoints.
        keep_checkpoints: newest checkpoints kept.
        log_steps: optimizer steps between reports; also how late a loss that is not finite shows.
        max_steps: stop after so many optimizer steps.
        ema_decay: decay of the moving averages of the weights; None keeps none.
        unused_parameters: a step may leave trainable parameters without a gradient.
    """

    epochs: int
    best_metric: str
    accumulation: int = 1
    clip_norm: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "constant"
    warmup_fraction: float = 0.0
    sgdr_cycles: int = 1
    unfreeze_epochs: tuple[float, ...] = ()
    evaluate_epochs: float = 1.0
    patience: int | None = None
    checkpoint_steps: int = 500
    keep_checkpoints: int = 2
    log_steps: int = 10
    max_steps: int | None = None
    ema_decay: float | None = None
    unused_parameters: bool = False

    @classmethod
    def for_classifier(cls, config: TrainConfig) -> LoopSettings:
        """Return the settings of the classifier's training."""
        optim = config.optim
        return cls(
            epochs=config.epochs,
            best_metric=config.best_metric,
            accumulation=config.accumulation,
            clip_norm=optim.clip_norm,
            betas=(optim.betas[0], optim.betas[1]),
            schedule=optim.schedule,
            warmup_fraction=optim.warmup_fraction,
            sgdr_cycles=optim.sgdr_cycles,
            unfreeze_epochs=optim.unfreeze_epochs,
            evaluate_epochs=config.evaluate_epochs,
            patience=config.patience,
            checkpoint_steps=config.checkpoint_steps,
            keep_checkpoints=config.keep_checkpoints,
            log_steps=config.log_steps,
            max_steps=config.max_steps,
            ema_decay=config.ema_decay,
        )

    @classmethod
    def for_ranker(cls, config: RankConfig, best_metric: str) -> LoopSettings:
        """Return the settings of the ranker's pretraining, judged by `best_metric`."""
        return cls(epochs=config.epochs, best_metric=best_metric, patience=config.patience)

    @classmethod
    def for_language_model(cls, config: LmConfig, best_metric: str) -> LoopSettings:
        """Return the settings of the language model's training, judged by `best_metric`."""
        return cls(
            epochs=config.epochs,
            best_metric=best_metric,
            clip_norm=config.clip_norm,
            schedule=config.schedule,
            warmup_fraction=config.warmup_fraction,
            patience=config.patience,
        )

    @property
    def smaller_is_better(self) -> bool:
        """True for losses, False for every other metric."""
        return "loss" in self.best_metric


@dataclass
class LoopState:
    """Where the loop is, between two optimizer steps.

    Attributes:
        epoch: the epoch in progress, from 0; its first `batch` batches are done.
        batch: batches of the epoch that are done, on each rank.
        step: optimizer steps done.
        documents: documents seen so far, over all ranks, repeats counted.
        intervals: validation intervals (`evaluate_epochs`) done with.
        validated_step: the step of the last validation.
        best_step: the step of the best validation, None before the first.
        best_metrics: what that validation measured.
        stale: validations since the best one.
        stopped_early: patience ran out.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    documents: float = 0.0
    intervals: int = 0
    validated_step: int | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    stopped_early: bool = False

    def advance(self, batches: int, documents: float, batches_in_epoch: int) -> None:
        """Count one optimizer step; the last of an epoch begins the next."""
        self.step += 1
        self.documents += documents
        self.batch += batches
        if self.batch >= batches_in_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def judge(self, metrics: Mapping[str, float], settings: LoopSettings) -> bool:
        """Remember a validation; return True where it is the best so far. NaN never is."""
        self.validated_step = self.step
        value = metrics[settings.best_metric]
        sign = -1.0 if settings.smaller_is_better else 1.0
        # Before the first, the worst there is: any validation but NaN is better.
        before = self.best_metrics.get(settings.best_metric, -sign * math.inf)
        # Strictly: of equals the earlier stays, and NaN compares false with everything.
        better = sign * value > sign * before
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best_step, self.best_metrics = self.step, dict(metrics)
        return better

    def as_json(self) -> dict[str, Any]:
        """Return the position as plain values, for a checkpoint."""
        return asdict(self)
