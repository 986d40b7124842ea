"""The evaluator as a whole: against scikit-learn and plain loops, merged, truncated, sharded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, label_ranking_average_precision_score, roc_auc_score

from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import DataError
from plant_dist.metrics.evaluator import Evaluator, Results
from plant_dist.metrics.report import markdown, write_report

LABELS = 23
CONFIG = EvaluateConfig(ks=(1, 3, 5), min_label_positives=2)
FREQUENCY = np.array(
    [0] * 6 + [1, 3, 5, 6, 8, 10, 11, 20, 50, 51, 70, 100, 101, 150, 200, 300, 999]
)


def corpus(seed: int, documents: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Truth skewed to frequent labels, two of band 0 never gold; scores that partly know it."""
    generator = np.random.default_rng(seed)
    truth = generator.random((documents, LABELS)) < np.linspace(0.03, 0.4, LABELS)
    truth[:, :2] = False
    truth[generator.integers(documents, size=3)] = False
    scores = truth * 1.2 + generator.normal(size=truth.shape)
    return np.round(scores, 2).astype(np.float32), truth


def csr(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, ids = truth.nonzero()
    return np.searchsorted(rows, np.arange(len(truth) + 1)), ids


def evaluate(
    scores: np.ndarray, truth: np.ndarray, config: EvaluateConfig = CONFIG, batch: int = 16
) -> Evaluator:
    evaluator = Evaluator(FREQUENCY, 1000, config, documents=len(truth))
    for start in range(0, len(truth), batch):
        part = slice(start, start + batch)
        evaluator.add(torch.from_numpy(scores[part]), *csr(truth[part]))
    return evaluator


def assert_same(one: Any, other: Any) -> None:
    """Compare nested results to 1e-12."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-12)
    else:
        assert one == other


@pytest.fixture(scope="module")
def tuned() -> tuple[Results, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Results on one corpus at thresholds tuned on another, and the decisions they imply."""
    thresholds = evaluate(*corpus(1)).thresholds()
    scores, truth = corpus(2)
    order = np.argsort(-scores, axis=1, kind="stable")
    top_k = np.zeros_like(truth)
    np.put_along_axis(top_k, order[:, : thresholds.top_k], True, axis=1)
    decisions = {
        "global": scores >= np.float32(thresholds.global_score),
        "per_label": scores >= thresholds.by_label(),
        "top_k": top_k,
    }
    return evaluate(scores, truth).results(thresholds), scores, truth, decisions


def test_overall_figures_equal_scikit_learn(tuned: Any) -> None:
    results, scores, truth, decisions = tuned
    with_gold = truth.any(axis=1)
    # scikit-learn lets ties share the worst place; a shift below the grid applies our order.
    shifted = scores.astype(np.float64) - np.arange(LABELS) * 1e-6
    wanted_map = label_ranking_average_precision_score(truth[with_gold], shifted[with_gold])
    assert results.metrics["map"] == pytest.approx(wanted_map, rel=1e-12)
    assert results.metrics["micro_auc"] == pytest.approx(
        roc_auc_score(truth, scores, average="micro"), rel=1e-12
    )
    present = truth.any(axis=0)
    wanted_auc = roc_auc_score(truth[:, present], scores[:, present], average="macro")
    assert results.metrics["macro_auc"] == pytest.approx(wanted_auc, rel=1e-12)
    for rule, chosen in decisions.items():
        ours = results.decisions[rule]
        for average in ("micro", "macro"):
            wanted = f1_score(truth, chosen, average=average, zero_division=0)
            assert ours[f"{average}_f1"] == pytest.approx(wanted, rel=1e-12)
    assert results.metrics["micro_f1"] == results.decisions["global"]["micro_f1"]


def test_bands_equal_plain_loops(tuned: Any) -> None:
    results, scores, truth, decisions = tuned
    shifted = scores.astype(np.float64) - np.arange(LABELS) * 1e-6
    places = (-shifted).argsort(axis=1).argsort(axis=1) + 1
    ranges = {
        "0": (0, 0), "1-5": (1, 5), "6-10": (6, 10), "11-50": (11, 50), "51-100": (51, 100),
        ">100": (101, 10**9),
    }  # fmt: skip
    members = {n: (low <= FREQUENCY) & (high >= FREQUENCY) for n, (low, high) in ranges.items()}
    members["unseen"] = (FREQUENCY == 0) & truth.any(axis=0)
    assert {band.name for band in results.bands} == set(members)
    for band in results.bands:
        labels = members[band.name]
        gold, holds = truth[:, labels], truth[:, labels].any(axis=1)
        assert (band.labels, band.gold, band.documents) == (labels.sum(), gold.sum(), holds.sum())
        assert band.labels_present == gold.any(axis=0).sum()
        found = (places[:, labels] <= 3)[gold].mean()
        assert band.metrics["r@3"] == pytest.approx(found, rel=1e-12)
        inside, gold_inside = shifted[:, labels][holds], gold[holds]
        wanted = label_ranking_average_precision_score(gold_inside, inside)
        assert band.metrics["within_map"] == pytest.approx(wanted, rel=1e-12)
        best = np.take_along_axis(gold_inside, (-inside).argsort(axis=1)[:, :3], axis=1)
        assert band.metrics["within_p@3"] == pytest.approx(best.sum(axis=1).mean() / 3)
        # Jain et al. 2016: weights of 1/propensity, over the most that any ranking could reach.
        weights = 1 + (np.log(1000) - 1) * 2.5**0.55 * (FREQUENCY[labels] + 1.5) ** -0.55
        weighted = gold_inside * weights
        hits = np.take_along_axis(weighted, (-inside).argsort(axis=1)[:, :3], axis=1).sum()
        ideal = np.sort(weighted, axis=1)[:, -3:].sum()
        assert band.metrics["within_psp@3"] == pytest.approx(hits / ideal, rel=1e-12)
        chosen, present = decisions["global"][:, labels], gold.any(axis=0)
        wanted = f1_score(gold[:, present], chosen[:, present], average="macro", zero_division=0)
        assert band.metrics["macro_f1"] == pytest.approx(wanted, rel=1e-12)
        wanted = f1_score(gold, chosen, average="micro", zero_division=0)
        assert band.metrics["micro_f1"] == pytest.approx(wanted, rel=1e-12)


def test_unseen_is_band_zero_without_labels_absent_from_the_split(tuned: Any) -> None:
    bands = {band.name: band for band in tuned[0].bands}
    assert (bands["0"].labels, bands["unseen"].labels) == (6, 4)
    assert bands["0"].gold == bands["unseen"].gold
    assert bands["unseen"].metrics["within_map"] > bands["0"].metrics["within_map"]


@pytest.mark.parametrize("rule", ["global", "per_label", "top_k"])
@pytest.mark.parametrize("retained", [1_000, 50_000_000])
def test_three_merged_evaluators_equal_the_whole(rule: str, retained: int) -> None:
    config = EvaluateConfig(ks=(1, 3, 5), retained_scores=retained, threshold=rule)
    scores, truth = corpus(3, documents=100)
    whole = evaluate(scores, truth, config)
    parts = [Evaluator(FREQUENCY, 1000, config, documents=100) for _ in range(3)]
    for rank, part in enumerate(parts):
        rows = slice(rank, None, 3)
        part.add(scores[rows], *csr(truth[rows]))
    merged = Evaluator(FREQUENCY, 1000, config, documents=100)
    for part in reversed(parts):
        merged.merge(part)
    thresholds = whole.thresholds()
    assert_same(merged.thresholds().by_label().tolist(), thresholds.by_label().tolist())
    wanted = whole.results(thresholds)
    assert wanted.definitions["retained"] == min(LABELS, max(5, retained // 100))
    assert_same(merged.results(merged.thresholds()).as_json(), wanted.as_json())
    assert_same(merged.ranking(), whole.ranking())


def test_truncation_changes_auc_but_no_ranking_metric() -> None:
    scores, truth = corpus(4, documents=200)
    whole = evaluate(scores, truth).results()
    cut = evaluate(scores, truth, EvaluateConfig(ks=(1, 3, 5), retained_scores=1000)).results()
    assert cut.definitions["retained"] == 5
    assert whole.definitions["retained"] == LABELS
    for name, value in whole.metrics.items():
        if "auc" not in name:
            assert cut.metrics[name] == pytest.approx(value, rel=1e-12)
    assert cut.metrics["micro_auc"] < whole.metrics["micro_auc"] - 0.01


def test_no_more_than_the_budget_is_kept() -> None:
    config = EvaluateConfig(ks=(1, 3), retained_scores=1000)
    scores, truth = corpus(5, documents=150)
    state = evaluate(scores, truth, config).state()
    assert state["scores"].shape == (150, 6)
    assert state["scores"].size <= 1000
    assert {array.size for name, array in state.items() if name.startswith("gold_")} == {
        150,
        int(truth.sum()),
    }


def test_shortlists_of_different_lengths_count_as_dense_rows_with_the_rest_removed() -> None:
    scores, truth = corpus(6, documents=30)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :8]
    ids[:10, 5:] = -1
    removed = np.full_like(scores, -np.inf)
    for row, labels in enumerate(ids):
        removed[row, labels[labels >= 0]] = scores[row, labels[labels >= 0]]
    ranks = []
    for rows, width in ((slice(10, 30), 8), (slice(0, 10), 5)):
        part = ids[rows, :width]
        values = np.take_along_axis(scores[rows], part, axis=1)
        ranks.append(Evaluator(FREQUENCY, 1000, CONFIG, documents=30))
        ranks[-1].add(values, *csr(truth[rows]), label_ids=torch.from_numpy(part))
    listed = ranks[0]
    listed.merge(ranks[1])
    dense = evaluate(removed, truth)
    thresholds = dense.thresholds()
    assert_same(listed.thresholds().by_label().tolist(), thresholds.by_label().tolist())
    ours, wanted = listed.results(thresholds), dense.results(thresholds)
    assert_same(ours.metrics, wanted.metrics)
    assert_same(ours.decisions, wanted.decisions)
    assert (ours.definitions["candidates"], ours.definitions["retained"]) == (8, 8)


def test_fillers_do_not_count() -> None:
    scores, truth = corpus(7, documents=20)
    wanted = evaluate(scores, truth).results()
    keep = np.ones(25, dtype=bool)
    keep[[0, 6, 7, 12, 24]] = False
    padded_scores, padded_truth = np.zeros((25, LABELS), np.float32), np.ones((25, LABELS), bool)
    padded_scores[keep], padded_truth[keep] = scores, truth
    filtered = Evaluator(FREQUENCY, 1000, CONFIG, documents=20)
    filtered.add(torch.from_numpy(padded_scores), *csr(padded_truth), keep=torch.from_numpy(keep))
    assert_same(filtered.results().as_json(), wanted.as_json())
    unfiltered = evaluate(padded_scores, padded_truth).results()
    assert unfiltered.metrics["p@1"] != wanted.metrics["p@1"]


def test_a_batch_of_fillers_alone_changes_nothing() -> None:
    scores, truth = corpus(8, documents=10)
    evaluator = evaluate(scores, truth)
    before = evaluator.results().as_json()
    evaluator.add(scores[:2], *csr(truth[:2]), keep=[False, False])
    assert_same(evaluator.results().as_json(), before)


def test_half_precision_and_dtype_of_gold_do_not_matter() -> None:
    scores, truth = corpus(9, documents=12)
    scores = np.round(scores * 4) / 4  # exact in bfloat16
    offsets, ids = csr(truth)
    evaluator = Evaluator(FREQUENCY, 1000, CONFIG, documents=12)
    evaluator.add(
        torch.from_numpy(scores).bfloat16(), torch.from_numpy(offsets), torch.from_numpy(ids)
    )
    assert_same(evaluator.results().as_json(), evaluate(scores, truth).results().as_json())


def test_misuse_is_refused() -> None:
    scores, truth = corpus(0, documents=3)
    evaluator = Evaluator(FREQUENCY, 1000, CONFIG, documents=2)
    with pytest.raises(DataError, match="the split is empty"):
        evaluator.results()
    with pytest.raises(DataError, match="22 wide for 23 labels"):
        evaluator.add(scores[:, 1:], *csr(truth))
    with pytest.raises(DataError, match="label 23 ranked"):
        evaluator.add(scores[:1, :1], [0, 0], [], label_ids=[[LABELS]])
    # Also where it ranks below all that are retained.
    config = EvaluateConfig(ks=(1,), retained_scores=1000)
    narrow = Evaluator(np.zeros(1500, np.int64), 1000, config, documents=1)
    ranked = np.append(np.arange(1000), 1500)[None]
    with pytest.raises(DataError, match="label 1500 ranked"):
        narrow.add(-np.arange(1001.0)[None], [0, 0], [], label_ids=ranked)
    with pytest.raises(DataError, match="made for 2 documents and got 3"):
        evaluator.add(scores, *csr(truth))
    other = Evaluator(FREQUENCY, 1000, EvaluateConfig(ks=(1,)), documents=2)
    with pytest.raises(DataError, match="other ks"):
        evaluator.merge(other)


def test_report_files_hold_the_figures(tuned: Any, tmp_path: Path) -> None:
    results, _, truth, _ = tuned
    constant = np.broadcast_to(np.linspace(0, 1, LABELS, dtype=np.float32), truth.shape).copy()
    popularity = evaluate(constant, truth)
    baseline = popularity.results(popularity.thresholds())
    paths = write_report(tmp_path, "PLANT", results, {"popularity": baseline})
    assert [path.name for path in paths] == [
        "report.json", "report.md", "precision_recall.png", "f1_by_frequency.png",
        "f1_by_threshold.png",
    ]  # fmt: skip
    content = json.loads((tmp_path / "report.json").read_text())
    assert_same(content["systems"]["PLANT"], results.as_json())
    text = (tmp_path / "report.md").read_text()
    ours, theirs = (100 * one.metrics["p@1"] for one in (results, baseline))
    best = max(ours, theirs)
    cells = [f"**{value:.2f}**" if value == best else f"{value:.2f}" for value in (ours, theirs)]
    assert f"| P@1 | {cells[0]} | {cells[1]} |" in text
    assert "A = 0.55, B = 1.5, N = 1000" in text
    assert "left out of the ranking means, kept in AUC and F1" in text
    for path in paths[2:]:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.name in text


def test_missing_values_become_null_and_a_dash(tmp_path: Path) -> None:
    evaluator = Evaluator(FREQUENCY, 1000, CONFIG, documents=2)
    evaluator.add(np.zeros((2, LABELS), np.float32), [0, 0, 0], [])
    results = evaluator.results(evaluator.thresholds())
    assert math.isnan(results.metrics["map"])
    assert results.as_json()["metrics"]["map"] is None
    assert "| MAP | – |" in markdown({"PLANT": results}, "test")
    assert len(write_report(tmp_path, "PLANT", results)) == 5
