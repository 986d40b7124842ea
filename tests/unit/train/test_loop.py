import math
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_task import DOCUMENTS, PLAIN, AtStep, Curve, TinyTask, train_tiny
from torch import nn

from plant_dist.errors import ArtifactError, ConfigError, StopRequested, TrainingError
from plant_dist.runtime.context import RunContext
from plant_dist.train.loop import LoopSettings, Trainer

DROPOUT = 0.3


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.task.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def stop_after(step: int, number: int = signal.SIGUSR1) -> AtStep:
    return AtStep(step, lambda: os.kill(os.getpid(), number))


def interrupted_curve(folder: Path, settings: LoopSettings, steps: list[int]) -> tuple[list, dict]:
    """Train with a real signal after each of some steps; return all losses, final weights."""
    losses: list[float] = []
    for step in steps:
        stopped = Curve()
        with pytest.raises(StopRequested, match=f"after step {step} of"):
            train_tiny(folder, settings, hooks=(stopped, stop_after(step)), dropout=DROPOUT)
        losses += stopped.losses
    curve, trainer = train_tiny(folder, settings, dropout=DROPOUT)
    return losses + curve.losses, weights(trainer)


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, epochs=1, schedule="cosine", warmup_fraction=0.3),
        replace(PLAIN, epochs=1, clip_norm=0.1, ema_decay=0.6, schedule="linear"),
        replace(PLAIN, epochs=2, accumulation=2, schedule="one_cycle", warmup_fraction=0.5),
        replace(PLAIN, epochs=2, max_steps=6, unfreeze_epochs=(0.3, 0.8), evaluate_epochs=0.5),
    ],
    ids=["cosine", "clipped-averaged", "accumulated", "thawing"],
)
def test_six_steps_are_three_then_three(tmp_path: Path, settings: LoopSettings) -> None:
    straight, trainer = train_tiny(tmp_path / "straight", settings, dropout=DROPOUT)
    assert len(straight.losses) == 6
    losses, final = interrupted_curve(tmp_path / "stopped", settings, [3])
    assert losses == straight.losses
    assert_same(final, weights(trainer))


def test_a_stop_before_a_validation_does_not_lose_it(tmp_path: Path) -> None:
    settings = replace(PLAIN, epochs=2)
    straight, _ = train_tiny(tmp_path / "straight", settings, dropout=DROPOUT)
    stopped = Curve()
    with pytest.raises(StopRequested):
        train_tiny(tmp_path / "b", settings, hooks=(stopped, stop_after(6)), dropout=DROPOUT)
    assert stopped.metrics == []
    resumed, _ = train_tiny(tmp_path / "b", settings, dropout=DROPOUT)
    assert resumed.metrics == straight.metrics
    assert len(straight.metrics) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_and_stop_and_handlers_come_back(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StopRequested, match=signal.Signals(number).name) as stop:
        train_tiny(tmp_path, hooks=(stop_after(2, number),))
    assert stop.value.exit_code == 75
    assert (tmp_path / "latest").read_text().strip() == "step-00000002"
    assert signal.getsignal(number) == before


def test_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    first, trainer = train_tiny(tmp_path)
    again, other = train_tiny(tmp_path)
    assert again.losses == []
    assert first.losses
    assert other.result == trainer.result
    assert_same(weights(trainer), weights(other))


def test_the_loss_falls_and_documents_are_counted(tmp_path: Path) -> None:
    curve, trainer = train_tiny(tmp_path, replace(PLAIN, epochs=10))
    assert sum(curve.losses[-6:]) < 0.5 * sum(curve.losses[:6])
    assert trainer.result.documents == 10 * DOCUMENTS
    assert trainer.result.steps == 60


@pytest.mark.parametrize(("small", "accumulation"), [(4, 2), (4, 3), (6, 2)])
def test_accumulation_equals_a_larger_batch(tmp_path: Path, small: int, accumulation: int) -> None:
    # 44 documents: the last group of an epoch has fewer batches, or a shorter one.
    large, _ = train_tiny(tmp_path / "large", batch=small * accumulation)
    settings = replace(PLAIN, accumulation=accumulation)
    accumulated, _ = train_tiny(tmp_path / "small", settings, batch=small)
    assert accumulated.losses == pytest.approx(large.losses, abs=1e-5)


def test_clipping_limits_the_step_and_reports_the_norm_before(tmp_path: Path) -> None:
    free, _ = train_tiny(tmp_path / "free")
    clipped, _ = train_tiny(tmp_path / "clipped", replace(PLAIN, clip_norm=1e-3))
    assert clipped.reports[0].gradient_norms == pytest.approx(free.reports[0].gradient_norms)
    assert clipped.losses[1] == pytest.approx(free.losses[1], abs=1e-4)  # Adam's first step
    assert clipped.losses != free.losses


def test_reported_norms_are_the_gradients_norms(tmp_path: Path) -> None:
    curve, _ = train_tiny(tmp_path)
    task = TinyTask(RunContext())
    task.loss(task.model, next(iter(task.batches(0, 0)))).backward()
    norms = curve.reports[0].gradient_norms
    for group in task.parameter_groups():
        squares = sum(float((p.grad**2).sum()) for p in group.parameters if p.grad is not None)
        assert norms[group.name] == pytest.approx(math.sqrt(squares), rel=1e-5)
    total = math.sqrt(sum(norm**2 for name, norm in norms.items() if name != "total"))
    assert norms["total"] == pytest.approx(total, rel=1e-5)


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path) -> None:
    class Scripted(TinyTask):
        values = (0.3, 0.9, 0.5, 0.4)
        seen: tuple = ()

        def validate(self, model: nn.Module) -> Mapping[str, float]:
            self.seen = (*self.seen, {k: v.clone() for k, v in model.state_dict().items()})
            return {"loss": 1.0, "accuracy": self.values[len(self.seen) - 1]}

    settings = replace(PLAIN, epochs=9, best_metric="accuracy", patience=2)
    task = Scripted(RunContext())
    result = Trainer(task, settings, RunContext(), tmp_path).run()
    assert result.stopped_early
    assert (result.steps, result.best_step) == (24, 12)
    assert result.best_metrics["accuracy"] == 0.9
    assert_same(task.model.state_dict(), task.seen[1])
    assert not torch.equal(task.model.head.weight, task.seen[3]["head.weight"])
    assert (tmp_path / "best").read_text().strip() == "step-00000012"


def test_averages_are_validated_and_returned(tmp_path: Path) -> None:
    settings = replace(PLAIN, ema_decay=0.5, max_steps=3, clip_norm=None)
    by_hand: dict[str, torch.Tensor] = {}

    class Follow(Curve):
        def stepped(self, loop: object) -> None:
            for name, one in loop.task.model.named_parameters():  # type: ignore[attr-defined]
                before = by_hand.get(name, one.detach().clone())
                by_hand[name] = 0.5 * before + 0.5 * one.detach()

    _, trainer = train_tiny(tmp_path, settings, hooks=(Follow(),))
    for name, one in trainer.task.model.named_parameters():
        assert torch.allclose(one, by_hand[name], atol=1e-6), name
    _, other = train_tiny(tmp_path / "plain", replace(settings, ema_decay=None))
    assert not torch.allclose(other.task.model.head.weight, trainer.task.model.head.weight)
    assert trainer.result.best_metrics != other.result.best_metrics


@pytest.mark.parametrize("log_steps", [1, 4, 50])
def test_a_loss_that_is_not_finite_names_step_and_documents(tmp_path: Path, log_steps: int) -> None:
    poisoned = 5
    task = TinyTask(RunContext())
    batches = [batch.rows for batch in task.batches(0, 0)]
    place = next(n for n, rows in enumerate(batches) if poisoned in rows)
    settings = replace(PLAIN, log_steps=log_steps, checkpoint_steps=1 if place else 1000)
    with pytest.raises(TrainingError) as error:
        train_tiny(tmp_path, settings, poisoned=poisoned)
    line = str(error.value)
    assert f"the loss is nan at step {place + 1}, documents doc" in line
    assert all(f"doc{row}" in line for row in batches[place])
    good = f"step-{place:08d}" if place else "none yet"
    assert good in line
    assert not list(tmp_path.glob(f"step-{place + 1:08d}"))


def test_an_infinite_gradient_is_noticed_though_the_loss_is_finite(tmp_path: Path) -> None:
    class Steep(TinyTask):
        def loss(self, model: nn.Module, batch: object) -> torch.Tensor:
            # sqrt has an infinite slope at 0, where its value is 0.
            return super().loss(model, batch) + (model.head.bias * 0).sum().sqrt()  # type: ignore

    with pytest.raises(TrainingError, match="a gradient is not finite at step 1, documents doc"):
        Trainer(Steep(RunContext()), PLAIN, RunContext(), tmp_path).run()


def test_an_unknown_best_metric_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'map'.*choose one of: loss, accuracy"):
        train_tiny(tmp_path, replace(PLAIN, best_metric="map"))


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    task = TinyTask(RunContext())
    task.metric_names = ()
    result = Trainer(task, PLAIN, RunContext(), tmp_path).run()
    assert (result.best_step, result.best_metrics, result.steps) == (None, {}, 18)


@pytest.mark.parametrize(
    ("evaluate_epochs", "validated"), [(1.0, [6, 12]), (0.5, [3, 6, 9, 12]), (5.0, [12])]
)
def test_validations_fall_where_they_should(
    tmp_path: Path, evaluate_epochs: float, validated: list[int]
) -> None:
    steps: list[int] = []

    class Steps(Curve):
        def validated(self, loop: object, metrics: Mapping[str, float]) -> None:
            steps.append(loop.state.step)  # type: ignore[attr-defined]

    train_tiny(
        tmp_path, replace(PLAIN, epochs=2, evaluate_epochs=evaluate_epochs), hooks=(Steps(),)
    )
    assert steps == validated


def test_max_steps_ends_inside_an_epoch(tmp_path: Path) -> None:
    curve, trainer = train_tiny(tmp_path, replace(PLAIN, max_steps=8))
    assert (len(curve.losses), trainer.result.steps) == (8, 8)
    assert len(curve.metrics) == 2  # after the first epoch, and at the end


def test_frozen_blocks_do_not_move_until_they_thaw(tmp_path: Path) -> None:
    moved: dict[int, list[bool]] = {}
    before = weights_of(TinyTask(RunContext()).model)

    class Watch(Curve):
        def stepped(self, loop: object) -> None:
            now = weights_of(loop.task.model)  # type: ignore[attr-defined]
            step = loop.state.step  # type: ignore[attr-defined]
            moved[step] = [not torch.equal(a, b) for a, b in zip(now, before, strict=True)]

    settings = replace(PLAIN, unfreeze_epochs=(1.0, 2.0))
    train_tiny(tmp_path, settings, hooks=(Watch(),))
    # Order: blocks bottom, middle, top, then the head; the top two of three thaw first.
    assert moved[6] == [False, False, False, True]
    assert moved[7] == [False, True, True, True]
    assert moved[12] == [False, True, True, True]
    assert moved[13] == [True, True, True, True]


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    blocks = [block[0].weight for block in model.blocks]  # type: ignore[union-attr, index]
    return [one.detach().clone() for one in (*blocks, model.head.weight)]  # type: ignore[union-attr]


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path) -> None:
    train_tiny(tmp_path, identity="a" * 64)
    with pytest.raises(ArtifactError, match="another configuration"):
        train_tiny(tmp_path, identity="b" * 64)


def test_validation_is_without_dropout(tmp_path: Path) -> None:
    _, trainer = train_tiny(tmp_path, replace(PLAIN, max_steps=4), dropout=0.5)
    assert not trainer.task.model.training
    with torch.no_grad():
        again = trainer.task.validate(trainer.task.model)
    assert trainer.result.best_metrics == again


def test_another_seed_draws_other_dropout_masks(tmp_path: Path) -> None:
    one, _ = train_tiny(tmp_path / "a", dropout=DROPOUT)
    same, _ = train_tiny(tmp_path / "b", dropout=DROPOUT)
    other, _ = train_tiny(tmp_path / "c", dropout=DROPOUT, context=RunContext(seed=1))
    assert one.losses == same.losses
    assert one.losses != other.losses


def test_bfloat16_is_near_float32_and_leaves_the_model_plain(tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState

    exact, _ = train_tiny(tmp_path / "fp32")
    AcceleratorState._reset_state()
    try:
        half, trainer = train_tiny(tmp_path / "bf16", context=RunContext(precision="bf16"))
    finally:
        AcceleratorState._reset_state()
    assert half.losses != exact.losses
    assert half.losses == pytest.approx(exact.losses, abs=0.02)
    assert "forward" not in vars(trainer.task.model)
    assert trainer.task.model(torch.zeros(1, 8)).dtype == torch.float32
