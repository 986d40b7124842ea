import math
from dataclasses import replace

from tiny_task import PLAIN

from plant_dist.config.schema import OptimConfig, RankConfig, TrainConfig
from plant_dist.train.state import LoopSettings, LoopState


def test_an_epoch_ends_with_its_last_batch() -> None:
    state = LoopState()
    for expected in ((0, 2, 1), (0, 4, 2), (1, 0, 3), (1, 2, 4)):
        state.advance(2 if expected != (1, 0, 3) else 1, 16.0, batches_in_epoch=5)
        assert (state.epoch, state.batch, state.step) == expected
    assert state.documents == 64.0


def judged(values: list[float], metric: str) -> list[tuple[bool, int]]:
    settings = replace(PLAIN, best_metric=metric)
    state = LoopState()
    found = []
    for step, value in enumerate(values, start=1):
        state.step = step
        found.append((state.judge({metric: value, "other": 0.0}, settings), state.stale))
    return found


def test_higher_is_better_except_for_losses() -> None:
    values = [0.5, 0.6, 0.6, 0.4]
    assert judged(values, "map") == [(True, 0), (True, 0), (False, 1), (False, 2)]
    assert judged(values, "loss") == [(True, 0), (False, 1), (False, 2), (True, 0)]


def test_nan_is_never_the_best() -> None:
    assert judged([math.nan, 0.1, math.nan], "map") == [(False, 1), (True, 0), (False, 1)]


def test_settings_come_from_the_sections() -> None:
    optim = OptimConfig(schedule="sgdr", warmup_fraction=0.2, clip_norm=None, betas=(0.8, 0.9))
    train = TrainConfig(
        epochs=4, accumulation=3, patience=2, max_steps=9, ema_decay=0.5, optim=optim
    )
    settings = LoopSettings.for_classifier(train)
    assert (settings.epochs, settings.accumulation, settings.max_steps) == (4, 3, 9)
    assert (settings.schedule, settings.warmup_fraction, settings.clip_norm) == ("sgdr", 0.2, None)
    assert (settings.betas, settings.ema_decay, settings.patience) == ((0.8, 0.9), 0.5, 2)
    ranker = LoopSettings.for_ranker(RankConfig(epochs=6, patience=5), "ndcg@16")
    assert (ranker.epochs, ranker.patience, ranker.best_metric) == (6, 5, "ndcg@16")
