"""Plausibility: how well scores of tokens agree with the evidence that a person marked.

Pure functions of arrays over one document's tokens, and `Plausibility`, which gathers many
(document, label) pairs. Must not know where scores come from. Span agreement follows ERASER
(DeYoung et al., ACL 2020). Faithfulness, which asks the model instead of a person, is a
neighbouring file.

T tokens of a document; n, m spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Spans = NDArray[np.int64]

SPAN_IOU = 0.5  # ERASER: a span is found where it shares half of the union or more


@dataclass(frozen=True)
class Counts:
    """Hits and sizes of two sets, added up over pairs.

    Attributes:
        predicted_hits: predicted things that are right. For tokens the same as `gold_hits`; one
            span may cover two.
        predicted: predicted things.
        gold_hits: gold things that were found.
        gold: gold things.
    """

    predicted_hits: int = 0
    predicted: int = 0
    gold_hits: int = 0
    gold: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.predicted_hits + other.predicted_hits,
            self.predicted + other.predicted,
            self.gold_hits + other.gold_hits,
            self.gold + other.gold,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted that is right; 0 where nothing is predicted."""
        return self.predicted_hits / max(self.predicted, 1)

    @property
    def recall(self) -> float:
        """Share of the gold that was found; 0 where there is none."""
        return self.gold_hits / max(self.gold, 1)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def token_counts(predicted_T: Mask, gold_T: Mask) -> Counts:
    """Count tokens."""
    hits = int((predicted_T & gold_T).sum())
    return Counts(hits, int(predicted_T.sum()), hits, int(gold_T.sum()))


def token_iou(predicted_T: Mask, gold_T: Mask) -> float:
    """Tokens in both, over tokens in either; 0 where both are empty."""
    return int((predicted_T & gold_T).sum()) / max(int((predicted_T | gold_T).sum()), 1)


def runs(mask_T: Mask) -> Spans:
    """Return the unbroken runs of True: (n, 2) int64, first and one past the last, rising."""
    # A step up begins a run and a step down ends it.
    steps = np.diff(np.concatenate([[0], mask_T.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def span_counts(predicted_n2: Spans, gold_m2: Spans, least: float = SPAN_IOU) -> Counts:
    """Count spans that share `least` of their union or more with one of the other side."""
    shared_nm = _shared(predicted_n2, gold_m2)
    found_nm = shared_nm >= least
    hits, found = found_nm.any(axis=1).sum(), found_nm.any(axis=0).sum()
    return Counts(int(hits), len(predicted_n2), int(found), len(gold_m2))


def _shared(first_n2: Spans, second_m2: Spans) -> Floats:
    """Return intersection over union of each two spans, (n, m)."""
    start_nm = np.maximum(first_n2[:, None, 0], second_m2[None, :, 0])
    end_nm = np.minimum(first_n2[:, None, 1], second_m2[None, :, 1])
    both_nm = np.maximum(end_nm - start_nm, 0)
    sizes_n = first_n2[:, 1] - first_n2[:, 0]
    sizes_m = second_m2[:, 1] - second_m2[:, 0]
    return np.asarray(both_nm / (sizes_n[:, None] + sizes_m[None, :] - both_nm), dtype=np.float64)


def average_precision(scores_T: Floats, gold_T: Mask) -> float:
    """Area under the precision-recall curve, Σ (R_i - R_i-1) P_i over the distinct scores.

    Tied tokens enter together, so that their order in the text cannot help. As scikit-learn's.

    Returns: NaN where no token is gold.
    """
    if not gold_T.any():
        return float("nan")
    order = np.argsort(-scores_T, kind="stable")
    hits, last = np.cumsum(gold_T[order]), _last_of_ties(scores_T[order])
    precision = hits[last] / (last + 1)
    recall = hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _last_of_ties(falling: Floats) -> NDArray[np.int64]:
    """Return the place of the last of each run of equal numbers."""
    return np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1).astype(np.int64)


def relative(scores_T: Floats) -> Floats:
    """Return scores as shares of the largest; what speaks against a label counts as 0.

    One threshold then fits labels and documents of any scale.
    """
    positive_T = np.maximum(scores_T, 0.0)
    most = positive_T.max(initial=0.0)
    return positive_T / most if most > 0 else positive_T


class Plausibility:
    """Scores and gold tokens of many (document, label) pairs."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Floats, Mask]] = []

    def add(self, scores_T: NDArray[np.floating], gold_T: Mask) -> None:
        """Add a pair: (T,) any scores, higher for more evidence, and (T,) what is gold."""
        self._pairs.append((np.asarray(scores_T, dtype=np.float64), gold_T))

    def __len__(self) -> int:
        return len(self._pairs)

    def best_threshold(self) -> float:
        """Return the relative score from which predicting maximises F1 over all tokens, exactly.

        Of equals the highest. To be called on validation documents.
        """
        if not self._pairs:
            return 1.0
        scores = np.concatenate([relative(scores) for scores, _ in self._pairs])
        gold = np.concatenate([gold for _, gold in self._pairs])
        order = np.argsort(-scores, kind="stable")
        hits, last = np.cumsum(gold[order]), _last_of_ties(scores[order])
        f1 = 2.0 * hits[last] / (last + 1 + hits[-1])
        # A score of 0 is no evidence, and predicting it would predict every token.
        f1[scores[order][last] <= 0] = -1.0
        return float(scores[order][last[int(np.argmax(f1))]])

    def results(self, threshold: float) -> dict[str, float]:
        """Return every measure, tokens and spans being predicted from a relative score up.

        Returns: `auprc` and `iou`, means over pairs; `token_*` and `span_*` precision, recall and
            F1 over all tokens and spans together; `pairs`; `threshold`.
        """
        tokens, spans, iou, auprc = Counts(), Counts(), [], []
        for scores, gold in self._pairs:
            shares = relative(scores)
            predicted = (shares >= threshold) & (shares > 0)
            tokens += token_counts(predicted, gold)
            spans += span_counts(runs(predicted), runs(gold))
            iou.append(token_iou(predicted, gold))
            auprc.append(average_precision(scores, gold))
        return {
            "pairs": len(self._pairs),
            "threshold": threshold,
            "auprc": _mean([one for one in auprc if not np.isnan(one)]),
            "iou": _mean(iou),
            **_measures("token", tokens),
            **_measures("span", spans),
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _measures(name: str, counts: Counts) -> dict[str, float]:
    return {
        f"{name}_precision": counts.precision,
        f"{name}_recall": counts.recall,
        f"{name}_f1": counts.f1,
    }
