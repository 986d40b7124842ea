"""Pairs of a filter file: out of the ranking in every form of scores, and through merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from plant_dist.config.published import published_figures
from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import ConfigError, DataError
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.metrics.ignored import without_ignored
from plant_dist.metrics.report import markdown

LABELS = 9
FREQUENCY = np.arange(1, LABELS + 1)
CONFIG = EvaluateConfig(ks=(1, 3))


def csr(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, ids = pairs.nonzero()
    return np.searchsorted(rows, np.arange(len(pairs) + 1)), ids


def problem(seed: int, documents: int = 7) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, gold, and ignored pairs of which some are gold."""
    random = np.random.default_rng(seed)
    scores = random.integers(-4, 5, (documents, LABELS)).astype(np.float32)
    gold, ignored = (random.random((documents, LABELS)) < share for share in (0.3, 0.25))
    return scores, gold, ignored


def evaluator() -> Evaluator:
    return Evaluator(FREQUENCY, 100, CONFIG, documents=7)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_ignored_pairs_are_as_if_never_scored(seed: int) -> None:
    scores, gold, ignored = problem(seed)
    found = evaluator()
    before = scores.copy()
    found.add(scores, *csr(gold), ignored=csr(ignored))
    assert (scores == before).all()
    # By hand: each document ranks its other labels, and has no other gold ones.
    precisions = {1: [], 3: []}
    recalls = {1: [], 3: []}
    for row, truth, left_out in zip(scores, gold & ~ignored, ignored, strict=True):
        if not truth.any():
            continue
        ranked = [n for n in np.lexsort((np.arange(LABELS), -row)) if not left_out[n]]
        for k in precisions:
            hits = truth[ranked[:k]].sum()
            precisions[k].append(hits / k)
            recalls[k].append(hits / truth.sum())
    if precisions[1]:
        measured = found.ranking()
        for k in precisions:
            assert measured[f"p@{k}"] == pytest.approx(np.mean(precisions[k]))
            assert measured[f"r@{k}"] == pytest.approx(np.mean(recalls[k]))
    kept = found.predictions().label_ids
    assert not any(ignored[n, label] for n, row in enumerate(kept) for label in row if label >= 0)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_areas_are_those_of_the_other_pairs(seed: int) -> None:
    """scikit-learn's of what is left: a pair that does not count is not won either."""
    scores, gold, ignored = problem(seed)
    found = evaluator()
    found.add(scores, *csr(gold), ignored=csr(ignored))
    metrics = found.results().metrics
    truth, kept = gold & ~ignored, ~ignored
    if 0 < truth[kept].sum() < kept.sum():
        assert metrics["micro_auc"] == pytest.approx(roc_auc_score(truth[kept], scores[kept]))
    by_label = [
        roc_auc_score(truth[rows, n], scores[rows, n])
        for n, rows in enumerate(kept.T) if 0 < truth[rows, n].sum() < rows.sum()
    ]  # fmt: skip
    if by_label:
        assert metrics["macro_auc"] == pytest.approx(np.mean(by_label))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_shortlist_loses_the_same_pairs(seed: int) -> None:
    scores, gold, ignored = problem(seed)
    random = np.random.default_rng(seed)
    shuffled = np.array([random.permutation(LABELS) for _ in scores])
    dense, listed = evaluator(), evaluator()
    dense.add(torch.from_numpy(scores), *csr(gold), ignored=csr(ignored))
    # All labels in another order, with a column of padding.
    ids = np.hstack([shuffled, np.full((len(scores), 1), -1)])
    values = np.take_along_axis(np.hstack([scores, scores[:, :1]]), ids, 1)
    listed.add(values, *csr(gold), label_ids=ids, ignored=csr(ignored))
    for name, value in dense.ranking().items():
        assert listed.ranking()[name] == pytest.approx(value, nan_ok=True)
    assert without_ignored(values, ids, csr(ignored), LABELS)[1].tolist() == ignored.sum(1).tolist()


def test_only_candidates_are_removed_from_a_shortlist() -> None:
    scores, counts = without_ignored(
        torch.tensor([[3.0, 2.0], [1.0, 4.0]]), np.array([[8, 0], [-1, 5]]),
        (np.array([0, 2, 3]), np.array([0, 7, 5])), LABELS,
    )  # fmt: skip
    assert scores.tolist() == [[3.0, -np.inf], [1.0, -np.inf]]
    assert counts.tolist() == [1, 1]


def test_counts_survive_merging_and_fillers_do_not_count() -> None:
    scores, gold, ignored = problem(3)
    whole, parts = evaluator(), [evaluator(), evaluator()]
    whole.add(scores, *csr(gold), ignored=csr(ignored))
    for part, rows in zip(parts, (slice(0, 4), slice(4, 7)), strict=True):
        filled = [np.vstack([one[rows], one[:1]]) for one in (scores, gold, ignored)]
        keep = np.array([True] * (len(filled[0]) - 1) + [False])
        part.add(filled[0], *csr(filled[1]), keep=keep, ignored=csr(filled[2]))
    parts[0].merge(parts[1])
    one, other = whole.results(), parts[0].results()
    assert one.definitions["ignored_pairs"] == other.definitions["ignored_pairs"] == ignored.sum()
    assert one.metrics == pytest.approx(other.metrics)
    assert f"the scores of {ignored.sum()} pairs" in markdown({"PLANT": one}, "test")
    plain = evaluator()
    plain.add(scores, *csr(gold))
    assert "Filter file" not in markdown({"PLANT": plain.results()}, "test")
    assert plain.ranking()["p@3"] != whole.ranking()["p@3"]


@pytest.mark.parametrize(
    ("ignored", "message"),
    [
        (([0, 1], [2]), "ignored labels have 1 rows for 7 documents"),
        (([0] * 7 + [2], [2]), "want CSR rows"),
        (([0] * 7 + [1], [LABELS]), rf"ignored label {LABELS}; ids must be 0\.\.{LABELS - 1}"),
    ],
)
def test_wrong_pairs_are_refused(ignored, message: str) -> None:
    scores, gold, _ = problem(1)
    with pytest.raises(DataError, match=message):
        evaluator().add(scores, *csr(gold), ignored=tuple(map(np.array, ignored)))


def test_published_figures_stand_beside_the_result() -> None:
    scores, gold, _ = problem(5)
    measured = evaluator()
    measured.add(scores, *csr(gold))
    table = {
        "AttentionXML": {"source": "You et al. 2019", "metrics": {"p@1": 87.12, "p@5": 61}},
        "other|one": {"source": "Table 3", "metrics": {"psp@3": 12.5, "p@1": 1}},
    }
    text = markdown({"PLANT": measured.results()}, "test", published=published_figures(table))
    own = measured.ranking()
    assert f"| P@1 | {100 * own['p@1']:.2f} | 87.12 | 1.00 |" in text
    # Our own figure at a cut-off that was not asked for, and a metric that another lacks.
    assert "| P@5 | – | 61.00 | – |" in text
    assert f"| PSP@3 | {100 * own['psp@3']:.2f} | – | 12.50 |" in text
    assert "- AttentionXML: You et al. 2019\n- other|one: Table 3" in text
    assert "Published" not in markdown({"PLANT": measured.results()}, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("87.1", r"evaluate\.published\.X must hold `source` and `metrics`"),
        ({"metrics": {"p@1": 1}}, "must hold `source` and `metrics`"),
        ({"source": " ", "metrics": {"p@1": 1}}, r"X\.source is ' '; say where"),
        ({"source": "s", "metrics": {}}, r"X\.metrics must name at least one"),
        ({"source": "s", "metrics": {"p@0": 1}}, r"X\.metrics\.p@0 is no metric of a report"),
        ({"source": "s", "metrics": {"P@1": 1}}, "is no metric of a report"),
        ({"source": "s", "metrics": {"map": 101}}, "is 101; give a percentage, 0 to 100"),
        ({"source": "s", "metrics": {"map": True}}, "is True; give a percentage"),
        ({"source": "s", "metrics": {"map": float("nan")}}, "is nan; give a percentage"),
    ],
)
def test_published_figures_are_checked_with_the_config(content, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(published={"X": content})
