from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from plant_dist.data.csr import csr_from_lists
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist import across
from plant_dist.shortlist.across import owned_labels, search_across
from plant_dist.shortlist.index import (
    About,
    LabelIndex,
    build_shard,
    exact_search,
    write_about,
    write_shard,
)
from plant_dist.shortlist.quality import (
    SearchPoint,
    cheapest,
    found_gold,
    overlap,
    settings_of,
    tuning_curve,
)

L, X = 2000, 16
VECTORS = np.random.default_rng(1).normal(size=(L, X)).astype(np.float32)
QUERIES = np.random.default_rng(2).normal(size=(20, X)).astype(np.float32)


def opened(folder: Path, factory: str, start: int = 0, stop: int = L) -> LabelIndex:
    folder.mkdir()
    index = build_shard(lambda a, b: VECTORS[a:b], start, stop, X, factory, seed=0)
    shard = write_shard(folder, index, start, stop, factory)
    write_about(folder, About("abc", L, X, "ranker", 0, 0.0, (shard,)))
    return LabelIndex.load(folder)


def test_gold_labels_found_by_hand() -> None:
    listed = np.array([[3, 1, -1], [0, 2, 5]])
    gold = csr_from_lists([[1, 2], [5]])
    assert found_gold(listed, gold).tolist() == [True, False, True]
    # The missing place of the first document is not the last label of another.
    assert found_gold(np.array([[-1], [-1]]), csr_from_lists([[0], [5]])).tolist() == [False, False]
    assert overlap(listed, np.array([[3, 1, 7], [5, 2, 9]]), top=2) == 1.0
    assert overlap(listed, np.array([[3, 1, 7], [5, 2, 9]]), top=3) == pytest.approx(4 / 6)


def test_the_curve_rises_to_exact_and_the_cheapest_is_taken(tmp_path: Path) -> None:
    index = opened(tmp_path / "index", "IVF32,Flat")
    _, exact = exact_search(lambda a, b: VECTORS[a:b], 0, L, QUERIES, 100)
    points = tuning_curve(index, QUERIES, exact, 100)
    steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [point.search for point in points] == [f"nprobe={step}" for step in steps]
    recalls = [point.recall for point in points]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.9
    assert recalls[-1] == 1.0
    assert all(point.milliseconds > 0 for point in points)
    stopped = tuning_curve(index, QUERIES, exact, 100, target=0.9)
    assert stopped[-1].recall >= 0.9
    assert all(point.recall < 0.9 for point in stopped[:-1])
    assert index.search_settings == stopped[-1].search


def test_the_cheapest_is_the_fastest_that_is_good_enough() -> None:
    points = [SearchPoint("a", 0.5, 1), SearchPoint("b", 0.96, 3), SearchPoint("c", 0.99, 2)]
    found = cheapest(points, 0.95)
    assert found is not None
    assert found.search == "c"
    assert cheapest(points, 0.999) is None


def test_settings_of_each_kind(tmp_path: Path) -> None:
    assert settings_of(opened(tmp_path / "flat", "Flat")) == [""]
    graph = settings_of(opened(tmp_path / "graph", "HNSW8,Flat"))
    assert graph[:2] == ["efSearch=1", "efSearch=2"]


def test_ranks_own_all_labels_between_them() -> None:
    for world in (1, 3, 7):
        parts = [owned_labels(20, rank, world) for rank in range(world)]
        assert parts[0][0] == 0
        assert parts[-1][1] == 20
        assert all(one[1] == two[0] for one, two in pairwise(parts))


def test_shards_of_two_ranks_answer_as_one_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks in one process: a first round says what the other would send."""
    shards = [opened(tmp_path / str(r), "Flat", *owned_labels(L, r, 2)) for r in range(2)]
    parts = [QUERIES[:13], QUERIES[13:]]
    sent: dict[int, Sequence[np.ndarray]] = {}

    def exchange(context: RunContext, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        sent[context.rank] = arrays
        return [sent.get(rank, arrays)[context.rank].reshape(-1) for rank in range(2)]

    monkeypatch.setattr(across, "gather_objects", lambda context, value: parts)
    monkeypatch.setattr(across, "exchange_arrays", exchange)
    for _ in range(2):
        found = [
            search_across(shards[rank], RunContext(rank=rank, world=2), parts[rank], 50)[1]
            for rank in range(2)
        ]
    _, exact = exact_search(lambda a, b: VECTORS[a:b], 0, L, QUERIES, 50)
    assert (np.concatenate(found) == exact).all()
    # To each rank the answers to its own questions, from one shard.
    assert [one.shape for one in sent[0]] == [(13, 50), (7, 50)]
