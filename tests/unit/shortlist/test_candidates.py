from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.errors import DataError
from plant_dist.shortlist import candidates
from plant_dist.shortlist.candidates import Candidates, CandidateSampler, uniforms


@st.composite
def batches(draw: st.DrawFn, most: int = 30) -> dict[str, Any]:
    labels = draw(st.integers(2, most))
    some = st.lists(st.integers(0, labels - 1), max_size=labels, unique=True)
    documents = draw(st.integers(1, 4))
    rows = [(draw(some), draw(some), draw(some)) for _ in range(documents)]
    width = max(len(mined) for _, mined, _ in rows)
    mined = np.full((documents, width), -1, np.int64)
    for row, (_, found, _) in enumerate(rows):
        mined[row, : len(found)] = found
    return {
        "labels": labels, "width": draw(st.integers(2, 40)), "share": draw(st.floats(0, 1)),
        "gold": [sorted(gold) for gold, _, _ in rows], "mined": mined,
        "ignored": [sorted(left) for _, _, left in rows], "epoch": draw(st.integers(0, 3)),
    }  # fmt: skip


def drawn(batch: dict[str, Any], population: Any = None, **changes: Any) -> Candidates:
    sampler = CandidateSampler(batch["labels"], batch["width"], batch["share"], 7, population)
    return sampler.draw(
        csr_from_lists(batch["gold"]), batch["mined"], np.arange(len(batch["gold"])),
        changes.get("epoch", batch["epoch"]), csr_from_lists(batch["ignored"]),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(batches())
def test_a_shortlist_holds_what_it_may_and_no_label_twice(batch: dict[str, Any]) -> None:
    found = drawn(batch)
    labels, width = batch["labels"], min(batch["width"], batch["labels"])
    assert found.label_ids.shape == (len(batch["gold"]), width)
    for row, (gold, ignored) in enumerate(zip(batch["gold"], batch["ignored"], strict=True)):
        real = found.weights[row] > 0
        ids = found.label_ids[row][real]
        assert len(set(ids.tolist())) == len(ids) <= width
        assert not set(ids.tolist()) & set(ignored)
        # Nothing is left out that there was room for.
        usable = labels - len(ignored)
        over = len(set(gold) - set(ignored)) > width * 0.75 and batch["width"] < labels
        assert len(ids) == min(width, usable) or over
        columns = found.gold_columns[found.gold_offsets[row] : found.gold_offsets[row + 1]]
        assert set(found.label_ids[row][columns].tolist()) <= set(gold) - set(ignored)
        # Gold labels stand in their columns and nowhere else.
        others = np.delete(found.label_ids[row], columns)
        beside = np.delete(found.weights[row], columns) > 0
        assert not set(others[beside].tolist()) & set(gold)
    flat = np.concatenate([np.asarray(gold, np.int64) for gold in batch["gold"]])
    rows = np.repeat(np.arange(len(batch["gold"])), np.diff(found.gold_offsets))
    assert (flat[found.gold_places] == found.label_ids[rows, found.gold_columns]).all()


@settings(max_examples=25, deadline=None)
@given(batches(most=6))
def test_on_average_each_label_counts_once(batch: dict[str, Any]) -> None:
    """Strata of up to 6 labels are drawn from independently: a grid of 60 is exact for each."""
    width = min(batch["width"], batch["labels"])
    if any(len(gold) > int(0.75 * width) for gold in batch["gold"]):
        batch = {**batch, "gold": [[] for _ in batch["gold"]]}
    labels, grid = batch["labels"], 60
    counted = np.zeros((len(batch["gold"]), labels))
    for step in range(grid):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                candidates, "uniforms",
                lambda seed, epoch, rows, draws, step=step: np.full(len(rows), (step + 0.5) / grid),
            )  # fmt: skip
            found = drawn(batch)
        for row in range(len(batch["gold"])):
            np.add.at(counted[row], found.label_ids[row], found.weights[row] / grid)
    for row, ignored in enumerate(batch["ignored"]):
        expected = np.ones(labels)
        expected[ignored] = 0
        assert counted[row] == pytest.approx(expected, abs=1e-5)


def test_the_average_over_many_epochs_is_one_for_gold_beyond_the_list_too() -> None:
    batch = {
        "labels": 20, "width": 8, "share": 0.5, "gold": [list(range(10)), [3]],
        "mined": np.array([[11, 3, 12, -1], [3, 4, 4, 5]]), "ignored": [[], [19]], "epoch": 0,
    }  # fmt: skip
    counted = np.zeros((2, 20))
    runs = 4000
    for epoch in range(runs):
        found = drawn(batch, epoch=epoch)
        for row in range(2):
            np.add.at(counted[row], found.label_ids[row], found.weights[row] / runs)
    # A label drawn with probability p and counted 1/p has deviation below √(1/p / runs) ≈ 0.04.
    assert np.abs(counted[0] - 1).max() < 0.2
    assert counted[1][19] == 0
    assert np.abs(counted[1][:19] - 1).max() < 0.2
    assert np.diff(found.gold_offsets).tolist() == [6, 1]
    assert found.mined.tolist() == [1, 2]
    assert found.label_ids[1, :3].tolist() == [3, 4, 5]


def test_negatives_come_from_the_population_alone() -> None:
    population = np.arange(0, 20, 2)
    batch = {
        "labels": 20, "width": 9, "share": 0.5, "gold": [[1]],
        "mined": np.array([[3, 4]]), "ignored": [[6]], "epoch": 0,
    }  # fmt: skip
    found = drawn(batch, population)
    real = found.label_ids[0][found.weights[0] > 0].tolist()
    assert real[:2] == [1, 4]
    assert set(real[2:]) <= {0, 2, 8, 10, 12, 14, 16, 18}
    assert found.weights[0].sum() == 1 + 9


def test_ranks_draw_alike_and_epochs_do_not() -> None:
    rows, draws = np.array([5, 5, 9]), np.array([0, 1, 0])
    once = uniforms(3, 1, rows, draws)
    assert (uniforms(3, 1, rows[2:], draws[2:]) == once[2:]).all()
    assert len(set(once.tolist())) == 3
    assert not (uniforms(3, 2, rows, draws) == once).any()
    many = uniforms(0, 0, np.zeros(20_000, np.int64), np.arange(20_000))
    assert abs(many.mean() - 0.5) < 0.01
    assert np.histogram(many, 10, (0, 1))[0].min() > 1800


def test_a_gold_label_outside_the_label_space_is_refused() -> None:
    sampler = CandidateSampler(4, 3, 0.5, 0)
    with pytest.raises(DataError, match=r"label 4 is outside 0\.\.3"):
        sampler.draw(
            Csr(np.array([0, 1]), np.array([4], np.int32)), np.zeros((1, 0), np.int64),
            np.array([0]), 0,
        )  # fmt: skip
