from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.errors import ArtifactError, ConfigError
from plant_dist.shortlist.factory import choose_factory
from plant_dist.shortlist.index import (
    ABOUT,
    About,
    LabelIndex,
    Shard,
    build_shard,
    exact_search,
    merge,
    write_about,
    write_shard,
)

L, X = 500, 12
VECTORS = np.random.default_rng(1).normal(size=(L, X)).astype(np.float32)
QUERIES = np.random.default_rng(2).normal(size=(7, X)).astype(np.float32)


def source(start: int, stop: int) -> np.ndarray:
    return VECTORS[start:stop]


def built(folder: Path, factory: str = "Flat", cuts: tuple[int, ...] = (0, L)) -> Path:
    folder.mkdir(exist_ok=True)
    shards = []
    for start, stop in pairwise(cuts):
        index = build_shard(source, start, stop, X, factory, seed=0)
        shards.append(write_shard(folder, index, start, stop, factory))
    about = About("abc", L, X, "learned", 3, 0.1, tuple(shards))
    write_about(folder, about)
    return folder


def brute_force(k: int) -> np.ndarray:
    return np.argsort(-(QUERIES @ VECTORS.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("cuts", [(0, L), (0, 100, 101, L)])
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_shards_find_what_a_product_with_all_labels_finds(
    tmp_path: Path, factory: str, cuts: tuple[int, ...]
) -> None:
    if factory != "Flat" and len(cuts) > 2:
        cuts = (0, 200, L)
    index = LabelIndex.load(built(tmp_path / "index", factory, cuts), "abc", X)
    if factory != "Flat":
        index.set_search("nprobe=4")
    scores, ids = index.search(QUERIES, 20)
    assert (ids == brute_force(20)).all()
    assert scores == pytest.approx(np.take_along_axis(QUERIES @ VECTORS.T, ids, 1), abs=1e-4)


def test_finer_codes_put_what_packed_ones_find_in_order(tmp_path: Path) -> None:
    found = {}
    for factory in ("IVF4,PQ6x4fs", "IVF4,PQ6x4fs,Refine(SQ8)"):
        index = LabelIndex.load(built(tmp_path / factory[-9:], factory), "abc", X)
        assert index.tunable == "nprobe"
        index.set_search("nprobe=4")
        assert index.lists == 4
        _, ids = index.search(QUERIES, 10)
        pairs = zip(ids, brute_force(10), strict=True)
        found[factory] = np.mean([len(np.intersect1d(*pair)) / 10 for pair in pairs])
    packed, refined = found.values()
    assert refined > 0.95 > packed


def test_exact_search_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plant_dist.shortlist.index.LABELS_AT_ONCE", 64)
    _, ids = exact_search(source, 0, L, QUERIES, 30)
    assert (ids == brute_force(30)).all()
    _, part = exact_search(source, 490, L, QUERIES, 30)
    assert part.shape == (7, 10)
    assert part.min() == 490


def test_queries_one_by_one_and_together_find_the_same(tmp_path: Path) -> None:
    # Few queries are compared one by one, more of them by a product of matrices.
    index = LabelIndex.load(built(tmp_path / "index", cuts=(0, 300, L)))
    together = index.search(QUERIES, 20)
    for row in range(len(QUERIES)):
        scores, ids = index.search(QUERIES[row : row + 1], 20)
        assert (ids == together[1][row : row + 1]).all()
        assert scores == pytest.approx(together[0][row : row + 1], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 25), st.integers(0, 2**32))
def test_merging_shards_is_searching_the_whole(pieces: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few values, so that ties cross the shards.
    scores = random.integers(0, 5, (3, 20)).astype(np.float32)
    ids = np.broadcast_to(random.permutation(20), (3, 20))
    cuts = np.sort(random.integers(0, 21, pieces - 1))
    found = merge(np.split(scores, cuts, 1), np.split(ids, cuts, 1), k)
    whole = np.lexsort((ids, -scores), axis=1)[:, :k]
    filled = min(k, 20)
    assert found[1].shape == (3, k)
    assert (found[1][:, :filled] == np.take_along_axis(ids, whole, 1)).all()
    assert (found[1][:, filled:] == -1).all()
    assert np.isneginf(found[0][:, filled:]).all()


def test_more_candidates_than_labels_gives_all_labels(tmp_path: Path) -> None:
    index = LabelIndex.load(built(tmp_path / "index", cuts=(0, 300, L)))
    _, ids = index.search(QUERIES, 10 * L)
    assert (np.sort(ids, axis=1) == np.arange(L)).all()


def test_places_that_are_not_filled_hold_no_label(tmp_path: Path) -> None:
    index = LabelIndex.load(built(tmp_path / "index", "IVF50,Flat"))
    scores, ids = index.search(QUERIES, 100)
    empty = ids == -1
    assert empty.any()
    assert np.isneginf(scores[empty]).all()
    assert not empty[:, 0].any()


def test_an_index_of_another_label_space_or_width_is_refused(tmp_path: Path) -> None:
    folder = built(tmp_path / "index")
    with pytest.raises(ArtifactError, match="label space abc, the classifier has other"):
        LabelIndex.load(folder, "other", X)
    with pytest.raises(ArtifactError, match="vectors of 12 numbers, the classifier's have 13"):
        LabelIndex.load(folder, "abc", 13)
    with pytest.raises(ArtifactError, match=r"vectors of 5 numbers and holds some of 12"):
        LabelIndex.load(folder).search(QUERIES[:, :5], 3)


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF4,SQ8", "HNSW8,SQ8", "PQ6x4fs", "IVF4,PQ6x4fs,Refine(SQ8)"]
)
def test_a_file_cut_short_is_refused(tmp_path: Path, factory: str) -> None:
    folder = built(tmp_path / "index", factory)
    assert LabelIndex.load(folder).search(QUERIES, 3)[1].min() >= 0
    path = folder / Shard(0, L, 0, factory).name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"is cut short: .* run: plant-dist shortlist"):
        LabelIndex.load(folder)
    path.unlink()
    with pytest.raises(ArtifactError, match="is cut short: 0 of"):
        LabelIndex.load(folder)


def test_a_folder_without_its_description_is_no_index(tmp_path: Path) -> None:
    folder = built(tmp_path / "index")
    (folder / ABOUT).write_text(json.dumps({"labels": 3}))
    with pytest.raises(ArtifactError, match="holds no index of labels"):
        LabelIndex.load(folder)


def test_auto_goes_by_labels_and_memory() -> None:
    assert choose_factory("auto", 200_000, 256, 4096) == "Flat"
    assert choose_factory("auto", 1_000_000, 256, 4096) == "IVF2048,PQ128x4fs,Refine(SQ8)"
    assert choose_factory("auto", 200_000, 256, 100) == "IVF1024,PQ128x4fs,Refine(SQ8)"
    # Without room for finer codes, packed ones alone.
    assert choose_factory("auto", 100_000_000, 256, 10_000) == "IVF16384,PQ128x4fs"
    with pytest.raises(ConfigError, match=r"memory_mb is 1, .* takes .* MiB"):
        choose_factory("auto", 100_000_000, 256, 1)
    # An odd width is padded, and FAISS takes the string.
    odd = choose_factory("auto", 400, 63, 1)
    assert odd == "Flat"
    packed = choose_factory("auto", 20_000, 63, 1)
    assert packed == "Pad64,IVF256,PQ32x4fs"
    assert choose_factory(packed, 400, 63, 1) == packed


def test_a_factory_or_setting_that_faiss_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Nonsense', which FAISS cannot make for vectors of 8"):
        choose_factory("Nonsense", 10, 8, 100)
    with pytest.raises(ConfigError, match=r"multiple of the number of subquantizers"):
        choose_factory("PQ3x4", 10, 8, 100)
    index = LabelIndex.load(built(tmp_path / "index", "IVF4,Flat"))
    assert index.tunable == "nprobe"
    with pytest.raises(ConfigError, match=r"efSearch=3.*does not know; name nprobe"):
        index.set_search("efSearch=3")
