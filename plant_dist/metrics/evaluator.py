"""The evaluation of one split: takes batches of scores, gives thresholds and results.

Joins the other files of this room. Only sums, gold labels and each document's best N predictions
are kept, and two evaluators of disjoint documents merge into that of the whole. Must not know
models, tokenizers or processes: the caller moves `state()` between ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import DataError
from plant_dist.metrics.auc import label_auc, micro_auc
from plant_dist.metrics.bands import BandResult, band_results
from plant_dist.metrics.calibration import Calibration, fit_calibration
from plant_dist.metrics.classification import LabelTally, decision_scores
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.ignored import gold_without, without_ignored
from plant_dist.metrics.order import rank_labels
from plant_dist.metrics.ranking import RankingSums, inverse_propensities
from plant_dist.metrics.reliability import CalibrationReport, calibration_report
from plant_dist.metrics.retained import Predictions, Retained
from plant_dist.metrics.sweep import Sweep, micro_sweep
from plant_dist.metrics.thresholds import RULES, Thresholds, tune_thresholds

# Enough for a smooth plot; every step of a million predictions would bloat the report.
_CURVE_POINTS = 512


@dataclass(frozen=True)
class Curve:
    """Micro precision and recall along the global threshold, from the strictest down.

    Points lie evenly in the logarithm of the number of predictions; all arrays have equal length.
    """

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / np.where(both > 0, both, 1.0)


@dataclass(frozen=True)
class Results:
    """Everything measured on one split.

    metrics: flat names (`p@1`, `map`, `micro_f1`, ...), fractions; the F1 family at the rule of
        the thresholds.
    decisions: the F1 family at each rule; empty without thresholds.
    bands: by label frequency. definitions: what the numbers mean. curve: micro, all labels.
    """

    metrics: dict[str, float]
    decisions: dict[str, dict[str, float]]
    bands: tuple[BandResult, ...]
    definitions: dict[str, Any]
    curve: Curve

    def as_json(self) -> dict[str, Any]:
        """Plain containers at full precision; what is not a number is None."""
        curve = {name: values.tolist() for name, values in vars(self.curve).items()}
        plain: dict[str, Any] = _without_nan(
            {
                "metrics": self.metrics,
                "decisions": self.decisions,
                "bands": [asdict(band) for band in self.bands],
                "definitions": self.definitions,
                "curve": curve,
            }
        )
        return plain


class Evaluator:
    """Measures the documents of one split, batch by batch.

    Documents without gold labels count in AUC and F1 (their predictions are wrong) and are left
    out of the ranking means or counted as 0, as `config.empty_gold` says.

    Args:
        train_frequency: (L,) training documents of each label.
        train_documents: N, for the propensities.
        config: cut-offs, propensity constants, budget and rules.
        documents: documents of the split, over all processes; the retained budget is shared
            among them.
    """

    def __init__(
        self,
        train_frequency: NDArray[np.int64],
        train_documents: int,
        config: EvaluateConfig,
        documents: int,
    ) -> None:
        self._frequency = np.asarray(train_frequency, dtype=np.int64)
        self._train_documents = train_documents
        self._config = config
        self._inverse_propensity = inverse_propensities(
            self._frequency, train_documents, config.propensity_a, config.propensity_b
        )
        self._sums = RankingSums(config.ks, self._inverse_propensity, config.empty_gold)
        # The largest cut-off is kept whatever the budget: bands rank within what is retained.
        self._retained = Retained(
            documents, self.labels, config.retained_scores, at_least=max(config.ks)
        )
        self._widest = 0  # most candidates any document had
        self._ignored = 0  # candidates that filter files removed
        self._ignored_L: NDArray[np.int64] | None = None  # and pairs, candidates or not

    @property
    def train_frequency(self) -> NDArray[np.int64]:
        """(L,) training documents of each label."""
        return self._frequency

    @property
    def labels(self) -> int:
        """L."""
        return len(self._frequency)

    def add(
        self,
        scores: Any,
        gold_offsets: Any,
        gold_ids: Any,
        label_ids: Any = None,
        keep: Any = None,
        ignored: tuple[Any, Any] | None = None,
    ) -> None:
        """Add a batch of B documents.

        Args:
            scores: (B, L), or (B, K) with `label_ids`; torch (any device) or numpy, any floating
                type; -inf removes a label from the ranking. Use one scale in all batches.
            gold_offsets, gold_ids: (B+1,) and (nnz,), CSR of the gold labels.
            label_ids: (B, K) the label of each score; -1 is padding. A label that is not listed
                ranks below all that are.
            keep: (B,) bool, documents that count; all if unset. Fillers of a distributed batch
                are False.
            ignored: offsets (B+1,) and label ids, CSR of the pairs that a filter file removes,
                from the ranking and from the gold labels.

        Raises:
            DataError: shapes disagree, a score is NaN, a label is unknown or repeated.
        """
        gold = Gold.checked(gold_offsets, gold_ids, self.labels)
        if label_ids is None and scores.shape[-1] != self.labels:
            raise DataError(
                f"scores are {scores.shape[-1]} wide for {self.labels} labels; pass label_ids"
            )
        if ignored is not None:
            scores, removed_B = without_ignored(scores, label_ids, ignored, self.labels)
            gold = gold_without(gold, ignored, self.labels)
            # A filler repeats a document, whose pairs would count twice.
            counted = slice(None) if keep is None else np.asarray(keep, dtype=np.bool_)
            self._ignored += int(removed_B[counted].sum())
            self._count_ignored(ignored, keep)
        # Most batches have no filler, and indexing would copy their scores.
        if keep is not None and not all(keep):
            keep = np.asarray(keep, dtype=np.bool_)
            scores, gold = scores[keep], gold.documents_where(keep)
            label_ids = None if label_ids is None else label_ids[keep]
        if label_ids is not None:
            label_ids = torch.as_tensor(label_ids)
            # Here, since only the retained ones come back from the ranking.
            if len(label_ids) and (largest := int(label_ids.max())) >= self.labels:
                raise DataError(f"label {largest} ranked; L is {self.labels}")
        # Sums read exact ranks among all candidates, so retention cannot change P@k or MAP.
        ranking = rank_labels(scores, gold, self._retained.width, label_ids)
        self._widest = max(self._widest, scores.shape[1])
        self._sums.add(gold, ranking.gold_ranks)
        self._retained.add(ranking, gold)

    def _count_ignored(self, ignored: tuple[Any, Any], keep: Any) -> None:
        offsets, ids = (np.asarray(one, np.int64) for one in ignored)
        if keep is not None:
            ids = ids[np.repeat(np.asarray(keep, dtype=np.bool_), np.diff(offsets))]
        if len(ids):
            found_L = np.bincount(ids, minlength=self.labels)
            self._ignored_L = found_L if self._ignored_L is None else self._ignored_L + found_L

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays that `merge_state` of another rank's evaluator takes."""
        own = {
            "sums": self._sums.state(),
            "widest": np.array([self._widest]),
            "ignored": np.array([self._ignored]),
            # Nothing to send where nothing is ignored, as in most corpora.
            "ignored_labels": np.zeros(0, np.int64) if self._ignored_L is None else self._ignored_L,
        }
        return own | self._retained.state()

    def merge_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the documents behind a `state()`; they must be disjoint from this one's."""
        self._sums.merge_state(state["sums"])
        self._widest = max(self._widest, int(state["widest"][0]))
        self._ignored += int(state["ignored"][0])
        if len(state["ignored_labels"]):
            mine = 0 if self._ignored_L is None else self._ignored_L
            self._ignored_L = mine + state["ignored_labels"]
        own = ("sums", "widest", "ignored", "ignored_labels")
        self._retained.merge_state(
            {name: array for name, array in state.items() if name not in own}
        )

    def merge(self, other: Evaluator) -> None:
        """Add the documents of another evaluator of the same split."""
        self.merge_state(other.state())

    def ranking(self) -> dict[str, float]:
        """The ranking metrics alone: cheap, and needs no thresholds."""
        return self._sums.results()

    def predictions(self) -> Predictions:
        """The retained predictions of the documents added, for curves of one's own."""
        return self._retained.predictions()

    def calibration(self) -> Calibration | None:
        """Fit the calibration of the config: call this on validation only.

        Returns: None where the config has none, or nothing that was retained is gold.
        """
        kind, least = self._config.calibration, self._config.min_band_positives
        if kind == "none":
            return None
        return fit_calibration(self.predictions(), self._frequency, kind, least)

    def reliability(self, calibration: Calibration | None = None) -> CalibrationReport:
        """Compare scores, read as logits, with outcomes on the documents added.

        Args:
            calibration: fitted on validation; without it only the scores as they are.
        """
        return calibration_report(self.predictions(), self._frequency, self._config.ks, calibration)

    def found_gold(self) -> float:
        """Return the share of gold labels that were among the candidates at all."""
        ranks = self.predictions().gold_ranks
        return float((ranks > 0).mean()) if len(ranks) else float("nan")

    def thresholds(self, calibration: Calibration | None = None) -> Thresholds:
        """Tune the decision rules on the documents added: call this on validation only.

        Args:
            calibration: of the scores that will be decided on.
        """
        predictions = self.predictions()
        tuned = tune_thresholds(
            predictions if calibration is None else calibration.apply(predictions),
            self.labels,
            self._config.threshold,
            self._config.min_label_positives,
        )
        return replace(tuned, calibrated=calibration is not None)

    def results(
        self, thresholds: Thresholds | None = None, calibration: Calibration | None = None
    ) -> Results:
        """Measure everything on the documents added.

        Args:
            thresholds: tuned on validation; without them nothing is decided and there is no F1.
            calibration: of the scores that the thresholds were tuned on. It changes decisions and
                the curve; rankings and AUC are of the model's own scores.
        """
        predictions = self.predictions()
        # One sort serves the micro AUC and, without a calibration, the curve.
        ignored_L = self._ignored_L
        left_out = 0 if ignored_L is None else int(ignored_L.sum())
        sweep, auc = micro_sweep(predictions), label_auc(predictions, self.labels, ignored_L)
        scored, scored_sweep = predictions, sweep
        if calibration is not None:
            scored = calibration.apply(predictions)
            scored_sweep = micro_sweep(scored)
        tallies = {} if thresholds is None else _tallies(scored, thresholds)
        decisions = {rule: decision_scores(tally) for rule, tally in tallies.items()}
        # The rule that `predict` will use is the one whose F1 stands among the metrics.
        chosen = thresholds.rule if thresholds else ""
        # Labels that are gold nowhere have no AUC: they are left out, and their number is reported.
        areas = auc[~np.isnan(auc)]
        metrics = self._sums.results() | {
            "micro_auc": micro_auc(predictions, self.labels, sweep, left_out),
            "macro_auc": float(areas.mean()) if len(areas) else float("nan"),
        }
        return Results(
            metrics=metrics | decisions.get(chosen, {}),
            decisions=decisions,
            bands=band_results(
                predictions,
                self._frequency,
                self._sums.ks,
                auc,
                tallies.get(chosen),
                self._inverse_propensity,
            ),
            definitions=self._definitions(scored, thresholds, len(areas)),
            curve=_curve(scored_sweep, len(predictions.gold.ids)),
        )

    def _definitions(
        self, predictions: Predictions, thresholds: Thresholds | None, auc_labels: int
    ) -> dict[str, Any]:
        gold = predictions.gold
        retained = predictions.width
        return {
            "documents": gold.documents,
            "documents_without_gold": int(np.count_nonzero(gold.counts == 0)),
            "empty_gold": self._config.empty_gold,
            "labels": self.labels,
            "labels_present": len(np.unique(gold.ids)),
            "labels_with_auc": auc_labels,
            "candidates": self._widest,
            "ignored_pairs": self._ignored,
            "retained": retained,
            "propensity_a": self._config.propensity_a,
            "propensity_b": self._config.propensity_b,
            "train_documents": self._train_documents,
            "ties": "equal scores rank by label id",
            "thresholds": None if thresholds is None else _rules_used(thresholds, predictions),
        }


def _tallies(predictions: Predictions, thresholds: Thresholds) -> dict[str, LabelTally]:
    """Count the decisions of every rule in one pass."""
    labels = thresholds.labels
    # Empty tallies to add to, block by block.
    none = np.zeros(0, dtype=np.int64)
    tallies = {rule: LabelTally.of(labels, none, none, none) for rule in RULES}
    for block in predictions.blocks():
        # One walk for all rules: hits are the dear part, comparing scores is cheap.
        hits_DN, ids_DN = block.hits(), block.label_ids
        for rule in RULES:
            chosen_DN = thresholds.decide(ids_DN, block.scores, rule)
            right, wrong = ids_DN[chosen_DN & hits_DN], ids_DN[chosen_DN & ~hits_DN]
            tallies[rule] += LabelTally.of(labels, right, wrong, block.gold.ids)
    return tallies


def _rules_used(thresholds: Thresholds, predictions: Predictions) -> dict[str, Any]:
    # A document whose last retained label was chosen might have chosen more.
    last = thresholds.decide(predictions.label_ids[:, -1:], predictions.scores[:, -1:])
    may_go_on = thresholds.rule != "top_k" and predictions.width < thresholds.labels
    return {
        "rule": thresholds.rule,
        "calibrated": thresholds.calibrated,
        "global": thresholds.global_score,
        "labels_with_own": len(thresholds.label_ids),
        "top_k": thresholds.top_k,
        # Their decisions may go on below the last prediction retained.
        "documents_at_limit": int(last.sum()) if may_go_on else 0,
    }


def _curve(sweep: Sweep, gold: int) -> Curve:
    steps = len(sweep.scores)
    # Logarithmic, because the first few predictions make the steep part of the curve.
    even = np.geomspace(1, max(steps, 1), _CURVE_POINTS).round().astype(np.int64) - 1
    chosen = np.unique(even)[: steps or 0]
    true = sweep.true_positives[chosen].astype(np.float64)
    return Curve(
        thresholds=sweep.scores[chosen].astype(np.float64),
        precision=true / sweep.predicted[chosen],
        recall=true / max(gold, 1),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    # JSON has no NaN; Python would write one that other readers refuse.
    return None if isinstance(value, float) and not np.isfinite(value) else value
