"""Decision rules: which of a document's ranked labels are predicted, tuned on validation.

Three rules: one score for all labels, a score for each label, or a number of labels a document.
Holds their tuning, their use and their JSON form; must never be tuned on the documents it is
reported on, which is the caller's promise. Letters: D documents, N predictions of each.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plant_dist.errors import ArtifactError
from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.sweep import Sweep, label_sweeps, micro_sweep

RULES = ("global", "per_label", "top_k")


@dataclass(frozen=True)
class Thresholds:
    """Decision rules for one label space, and the one that `predict` uses.

    rule: one of `RULES`.
    global_score: a label is predicted from this score up.
    label_ids, label_scores: (n,) labels whose own threshold differs; all others use global_score.
    top_k: labels predicted for each document by the rule "top_k".
    labels: L, the size of the label space.
    calibrated: the scores are those of a `Calibration`, not the model's own.
    """

    rule: str
    global_score: float
    label_ids: NDArray[np.int32]
    label_scores: NDArray[np.float32]
    top_k: int
    labels: int
    calibrated: bool = False

    def decide(
        self,
        label_ids_DN: NDArray[np.int32],
        scores_DN: NDArray[np.float32],
        rule: str | None = None,
    ) -> NDArray[np.bool_]:
        """Choose among ranked labels.

        Args:
            label_ids_DN, scores_DN: best first; label -1 is no prediction.
            rule: another rule than `self.rule`.

        Returns:
            (D, N) bool, never True where the label is -1.
        """
        rule = rule or self.rule
        if rule == "top_k":
            chosen = np.broadcast_to(np.arange(scores_DN.shape[1]) < self.top_k, scores_DN.shape)
        elif rule == "per_label":
            # Padding (-1) reads the last label's threshold; the mask below takes it out again.
            chosen = scores_DN >= self.by_label()[label_ids_DN]
        else:
            # In float32, as the scores are: a score equal to its threshold must reach it.
            chosen = scores_DN >= np.float32(self.global_score)
        return chosen & (label_ids_DN >= 0)

    def by_label(self) -> NDArray[np.float32]:
        """(L,) threshold of every label under the rule "per_label"."""
        # Dense only while deciding; stored are those that differ.
        scores = np.full(self.labels, self.global_score, dtype=np.float32)
        scores[self.label_ids] = self.label_scores
        return scores

    def save(self, path: Path) -> None:
        """Write JSON; the scores read back to the same float32."""
        fields = {
            "rule": self.rule,
            "global": self.global_score,
            "per_label": {"ids": self.label_ids.tolist(), "scores": self.label_scores.tolist()},
            "top_k": self.top_k,
            "labels": self.labels,
            "calibrated": self.calibrated,
        }
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Thresholds:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, is not such JSON, or names a label outside 0..L-1.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            per_label = fields["per_label"]
            thresholds = cls(
                rule=str(fields["rule"]),
                global_score=float(fields["global"]),
                label_ids=np.array(per_label["ids"], dtype=np.int32),
                label_scores=np.array(per_label["scores"], dtype=np.float32),
                top_k=int(fields["top_k"]),
                labels=int(fields["labels"]),
                # Files of before there was a calibration say nothing of it.
                calibrated=bool(fields.get("calibrated", False)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: no readable thresholds ({type(error).__name__}: {error}); "
                "run the train stage again"
            ) from error
        thresholds._check(path)
        return thresholds

    def _check(self, path: Path) -> None:
        ids = self.label_ids
        # A negative id would wrap round to another label without an error.
        inside = bool(((ids >= 0) & (ids < self.labels)).all())
        if self.rule not in RULES or not inside or len(ids) != len(self.label_scores):
            raise ArtifactError(
                f"{path}: rule {self.rule!r}, {len(ids)} label ids and {len(self.label_scores)} "
                f"scores do not fit {self.labels} labels; run the train stage again"
            )


def tune_thresholds(
    predictions: Predictions,
    labels: int,
    rule: str,
    min_label_positives: int,
    sweep: Sweep | None = None,
) -> Thresholds:
    """Maximise F1 over validation documents, exactly, for each rule.

    The global score and top_k maximise micro-F1. A label's own score maximises its F1 where it has
    at least `min_label_positives` gold documents of which one at least can be found.

    Args:
        predictions: of the validation documents.
        sweep: their micro sweep, where it is at hand.
    """
    sweep = micro_sweep(predictions) if sweep is None else sweep
    global_score = _best_score(sweep, len(predictions.gold.ids))
    label_ids, label_scores = _best_label_scores(predictions, labels, min_label_positives)
    # What equals the global score need not be kept: L may be millions.
    differs = label_scores != np.float32(global_score)
    return Thresholds(
        rule=rule,
        global_score=global_score,
        label_ids=label_ids[differs],
        label_scores=label_scores[differs],
        top_k=_best_top_k(predictions),
        labels=labels,
    )


def f1_of(
    true_positives: NDArray[np.int64],
    predicted: NDArray[np.int64],
    gold: NDArray[np.int64] | int,
) -> NDArray[np.float64]:
    """2 TP / (predicted + gold); 0 where nothing is predicted and nothing gold."""
    return np.asarray(2.0 * true_positives / np.maximum(predicted + gold, 1), dtype=np.float64)


def _best_score(sweep: Sweep, gold: int) -> float:
    if not len(sweep.scores):
        # Nothing was predicted: nothing shall be. JSON has no infinity.
        return float(np.finfo(np.float32).max)
    # The first of equals is the highest score: the fewest predictions of equal F1.
    best = int(np.argmax(f1_of(sweep.true_positives, sweep.predicted, gold)))
    return float(sweep.thresholds()[best])


def _best_label_scores(
    predictions: Predictions, labels: int, min_positives: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    positives = np.bincount(predictions.gold.ids, minlength=labels)
    ids: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for sweep in label_sweeps(predictions):
        f1 = f1_of(sweep.true_positives, sweep.predicted, positives[sweep.groups])
        best = _first_best(f1, sweep)
        groups = sweep.groups[best]
        # A threshold fitted to one or two positives is noise; such labels keep the global one.
        tuned = (positives[groups] >= min_positives) & (f1[best] > 0)
        ids.append(groups[tuned])
        scores.append(sweep.thresholds()[best][tuned])
    return np.concatenate(ids).astype(np.int32), np.concatenate(scores)


def _first_best(values: NDArray[np.float64], sweep: Sweep) -> NDArray[np.int64]:
    """Step of the largest value in each group; of equals the first, the highest threshold."""
    starts = sweep.starts
    largest = np.maximum.reduceat(values, starts)
    reached = np.flatnonzero(values == np.repeat(largest, np.diff(np.append(starts, len(values)))))
    return reached[np.searchsorted(reached, starts)]


def _best_top_k(predictions: Predictions) -> int:
    # Gold beyond the retained predictions counts as missed, for every k alike.
    ranks = predictions.gold_ranks[predictions.kept_gold]
    width = predictions.width
    true_positives = np.cumsum(np.bincount(ranks, minlength=width + 1)[1:])
    # A document with fewer predictions than k has no more to give: count those it has.
    sizes = np.count_nonzero(predictions.label_ids >= 0, axis=1)
    predicted = np.cumsum(np.bincount(sizes, minlength=width + 1)[::-1])[::-1][1:].cumsum()
    return int(np.argmax(f1_of(true_positives, predicted, len(predictions.gold.ids)))) + 1
