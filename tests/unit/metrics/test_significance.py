from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.metrics import f1_score

from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import DataError
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.significance import (
    MacroF1,
    RatioOfSums,
    bootstrap_interval,
    macro_f1_sums,
    paired_bootstrap,
    precision_sums,
    recall_sums,
)
from plant_dist.metrics.thresholds import Thresholds

D, L = 23, 9
RANDOM = np.random.default_rng(4)
GOLD_DL = RANDOM.random((D, L)) < 0.25
SCORES_DL = (RANDOM.permutation(D * L).reshape(D, L) / (D * L) + GOLD_DL * 0.4).astype(np.float32)
# The sixth label has no gold in any document.
GOLD_DL[:, 5] = False
COUNTED = np.array([1, 1, 0, 1, 0, 1, 1, 0, 1], dtype=bool)


def predictions(rows: NDArray[np.integer] | None = None) -> Predictions:
    rows = np.arange(D) if rows is None else rows
    made = Evaluator(np.ones(L, np.int64), 10, EvaluateConfig(ks=(1, 3)), len(rows))
    offsets = np.concatenate([[0], np.cumsum(GOLD_DL[rows].sum(1))])
    made.add(SCORES_DL[rows], offsets, np.nonzero(GOLD_DL[rows])[1])
    return made.predictions()


def thresholds() -> Thresholds:
    made = Evaluator(np.ones(L, np.int64), 10, EvaluateConfig(ks=(1, 3)), D)
    offsets = np.concatenate([[0], np.cumsum(GOLD_DL.sum(1))])
    made.add(SCORES_DL, offsets, np.nonzero(GOLD_DL)[1])
    return made.thresholds()


def weights() -> tuple[NDArray[np.float64], NDArray[np.integer]]:
    """A resample as counts, and as the rows themselves."""
    rows = np.sort(np.random.default_rng(2).integers(0, D, D))
    return np.bincount(rows, minlength=D)[None].astype(np.float64), rows


def test_precision_and_recall_are_those_of_the_documents_drawn() -> None:
    counts_1D, rows = weights()
    gold, order = GOLD_DL[rows], np.argsort(-SCORES_DL[rows], axis=1)[:, :3]
    hits = np.take_along_axis(gold, order, 1)
    with_gold = gold.any(1)
    precision = precision_sums(predictions(), 3).of(counts_1D)
    assert precision == pytest.approx(hits[with_gold].mean(1).mean())
    counted_hits = (hits & COUNTED[order]).sum()
    recall = recall_sums(predictions(), 3, COUNTED).of(counts_1D)
    assert recall == pytest.approx(counted_hits / gold[:, COUNTED].sum())


def test_macro_f1_is_scikit_learns_on_the_documents_drawn() -> None:
    counts_1D, rows = weights()
    decided = np.float32(thresholds().global_score) <= SCORES_DL
    present = COUNTED & GOLD_DL[rows].any(0)
    expected = f1_score(
        GOLD_DL[rows][:, present], decided[rows][:, present], average="macro", zero_division=0
    )
    sums = macro_f1_sums(predictions(), thresholds(), COUNTED)
    assert sums.of(counts_1D) == pytest.approx(expected)
    assert sums.gold.shape == (D, (COUNTED & GOLD_DL.any(0)).sum())


def test_macro_f1_of_labels_with_one_document_each_lies_within_its_interval() -> None:
    # Four of ten labels found, each in a document of its own: the mean is 0.4 whatever is drawn.
    one = csr_array(np.eye(10))
    found = bootstrap_interval(MacroF1(csr_array(np.diag([1.0] * 4 + [0.0] * 6)), one, one))
    assert found.value == pytest.approx(0.4)
    # A hypergeometric mean of 6.5 labels drawn of ten.
    assert 0.05 <= found.low < 0.2
    assert 0.6 < found.high <= 0.95


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.3, 1.0, 400), random.normal(0.0, 1.0, 400)
    ones = np.ones(400)
    found = paired_bootstrap(RatioOfSums(a, ones), RatioOfSums(b, ones), resamples=4000)
    assert found.difference == pytest.approx((a - b).mean())
    # The middle 95 % of a mean's distribution: 1.96 standard errors to each side.
    half = 1.96 * (a - b).std() / np.sqrt(400)
    assert found.high - found.difference == pytest.approx(half, rel=0.1)
    assert found.difference - found.low == pytest.approx(half, rel=0.1)
    assert found.worse < 0.01


def test_pairs_are_drawn_together() -> None:
    values = np.random.default_rng(1).normal(size=50)
    a, b = RatioOfSums(values + 0.01, np.ones(50)), RatioOfSums(values, np.ones(50))
    found = paired_bootstrap(a, b, resamples=300)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    assert found.worse == 0.0
    assert paired_bootstrap(b, b, resamples=300).worse == 1.0


def test_other_documents_are_refused() -> None:
    few, many = (RatioOfSums(np.ones(n), np.ones(n)) for n in (3, 4))
    with pytest.raises(DataError, match="A has 3, B 4"):
        paired_bootstrap(few, many)


def test_an_interval_covers_the_mean_as_often_as_the_formula_says() -> None:
    # Of a mean the percentile interval is near mean ± 1.96 s/√n.
    values = np.random.default_rng(7).random(400)
    found = bootstrap_interval(RatioOfSums(values, np.ones(400)), resamples=4000)
    error = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    with pytest.raises(DataError, match="needs documents"):
        bootstrap_interval(RatioOfSums(values[:0], values[:0]))
