"""Plausibility: how well scores of tokens agree with the evidence that a person marked.

Pure functions of arrays over one document's tokens, and `Plausibility`, which gathers many
(document, label) pairs. The same serves words, whose scores `words.py` makes. Must not know where
scores come from. Span agreement follows ERASER (DeYoung et al., ACL 2020). Faithfulness, which
asks the model instead of a person, is a neighbouring file.

T tokens of a document; n, m spans; D documents, P pairs, R resamples, X parts of the sums.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Spans = NDArray[np.int64]

SPAN_IOU = 0.5  # ERASER: a span is found where it shares half of the union or more


class SpanCounts(NamedTuple):
    """Predicted spans that are right, and all; gold spans that were found, and all.

    One predicted span may find two gold ones, so that the two hits differ.
    """

    right: int
    predicted: int
    found: int
    gold: int


def token_iou(predicted_T: Mask, gold_T: Mask) -> float:
    """Tokens in both, over tokens in either; 0 where both are empty."""
    return int((predicted_T & gold_T).sum()) / max(int((predicted_T | gold_T).sum()), 1)


def runs(mask_T: Mask) -> Spans:
    """Return the unbroken runs of True: (n, 2) int64, first and one past the last, rising."""
    # A step up begins a run and a step down ends it.
    steps = np.diff(np.concatenate([[0], mask_T.astype(np.int8), [0]]))
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def span_counts(predicted_n2: Spans, gold_m2: Spans, least: float = SPAN_IOU) -> SpanCounts:
    """Count spans that share `least` of their union or more with one of the other side."""
    shared_nm = _shared(predicted_n2, gold_m2)
    found_nm = shared_nm >= least
    hits, found = found_nm.any(axis=1).sum(), found_nm.any(axis=0).sum()
    return SpanCounts(int(hits), len(predicted_n2), int(found), len(gold_m2))


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
    """Scores and gold tokens of many (document, label) pairs, or of words in their place."""

    def __init__(self) -> None:
        self._pairs: list[_Pair] = []

    def add(
        self, scores_T: NDArray[np.floating], gold_T: Mask, document: str = "", group: str = ""
    ) -> None:
        """Add a pair.

        Args:
            scores_T: any scores, higher for more evidence. gold_T: what is gold.
            document: whose pairs are drawn together by a bootstrap.
            group: what `sums` may choose by, such as a band of label frequency.
        """
        scores = np.asarray(scores_T, dtype=np.float64)
        self._pairs.append(_Pair(scores, gold_T, document, group))

    def __len__(self) -> int:
        return len(self._pairs)

    def best_threshold(self) -> float:
        """Return the relative score from which predicting maximises F1 over all tokens, exactly.

        Of equals the highest. To be called on validation documents.
        """
        if not self._pairs:
            return 1.0
        scores = np.concatenate([relative(pair.scores) for pair in self._pairs])
        gold = np.concatenate([pair.gold for pair in self._pairs])
        order = np.argsort(-scores, kind="stable")
        hits, last = np.cumsum(gold[order]), _last_of_ties(scores[order])
        f1 = 2.0 * hits[last] / (last + 1 + hits[-1])
        # A score of 0 is no evidence, and predicting it would predict every token.
        f1[scores[order][last] <= 0] = -1.0
        return float(scores[order][last[int(np.argmax(f1))]])

    def sums(self, threshold: float, groups: Collection[str] | None = None) -> AgreementSums:
        """Return what the measures are made of, tokens being predicted from a relative score up.

        Args: groups: pairs of these alone; of all if None. Every document keeps its row.
        """
        documents = dict.fromkeys(pair.document for pair in self._pairs)
        place = {name: row for row, name in enumerate(documents)}
        sums_DX = np.zeros((len(place), len(_PARTS)))
        for pair in self._pairs:
            if groups is None or pair.group in groups:
                sums_DX[place[pair.document]] += pair.parts(threshold)
        return AgreementSums(sums_DX)

    def results(self, threshold: float) -> dict[str, float]:
        """Return every measure, the number of pairs and the threshold; see `AgreementSums`."""
        sums = self.sums(threshold)
        return {"pairs": sums.pairs, "threshold": threshold, **sums.measures()}


class _Pair(NamedTuple):
    """Scores and gold of one label's tokens in one document."""

    scores: Floats
    gold: Mask
    document: str
    group: str

    def parts(self, threshold: float) -> Floats:
        """Return the pair's own share of every sum, in the order of `_PARTS`."""
        shares = relative(self.scores)
        predicted = (shares >= threshold) & (shares > 0)
        spans = span_counts(runs(predicted), runs(self.gold))
        marked = self.gold.any()
        precision = average_precision(self.scores, self.gold) if marked else 0.0
        return np.array(
            [1, marked, precision, token_iou(predicted, self.gold),
             (predicted & self.gold).sum(), predicted.sum(), self.gold.sum(), *spans],
            dtype=np.float64,
        )  # fmt: skip


_PARTS = (
    "pairs", "marked", "average precision", "iou", "hits", "predicted", "gold",
    "spans right", "spans predicted", "spans found", "spans gold",
)  # fmt: skip
MEASURES = (
    "auprc", "iou", "token_precision", "token_recall", "token_f1",
    "span_precision", "span_recall", "span_f1",
)  # fmt: skip


@dataclass(frozen=True)
class AgreementSums:
    """What plausibility is made of, added up by document.

    `auprc` and `iou` are means over pairs (AUPRC over those with gold); `token_*` and `span_*` are
    precision, recall and F1 over all tokens and spans together. 0 where there is nothing to divide.

    Attributes:
        sums_DX: (D, 11) float64, the parts of `_PARTS`.
    """

    sums_DX: Floats

    @property
    def pairs(self) -> int:
        """P."""
        return int(self.sums_DX[:, 0].sum())

    def measures(self) -> dict[str, float]:
        """Return every measure of `MEASURES`."""
        found = self._measures(self.sums_DX.sum(0, keepdims=True))
        return {name: float(values[0]) for name, values in found.items()}

    def measure(self, name: str) -> AgreementMeasure:
        """Return one measure as a sum over documents that can be drawn anew."""
        return AgreementMeasure(self, name)

    def _measures(self, sums_RX: Floats) -> dict[str, Floats]:
        (
            pairs, marked, precision, iou, hits, predicted, gold,
            right, spans, found, gold_spans,
        ) = sums_RX.T  # fmt: skip
        span_precision, span_recall = _ratio(right, spans), _ratio(found, gold_spans)
        return {
            "auprc": _ratio(precision, marked),
            "iou": _ratio(iou, pairs),
            "token_precision": _ratio(hits, predicted),
            "token_recall": _ratio(hits, gold),
            "token_f1": _ratio(2 * hits, predicted + gold),
            "span_precision": span_precision,
            "span_recall": span_recall,
            "span_f1": _ratio(2 * span_precision * span_recall, span_precision + span_recall),
        }


@dataclass(frozen=True)
class AgreementMeasure:
    """One measure over documents counted any number of times (`significance.DocumentSums`)."""

    sums: AgreementSums
    name: str

    @property
    def documents(self) -> int:
        """D."""
        return len(self.sums.sums_DX)

    def of(self, weights_RD: Floats) -> Floats:
        """Return the measure (R,) of R sets of documents."""
        return self.sums._measures(weights_RD @ self.sums.sums_DX)[self.name]


def _ratio(numerators: Floats, denominators: Floats) -> Floats:
    return numerators / np.where(denominators > 0, denominators, 1.0)
