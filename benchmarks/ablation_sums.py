"""What is kept of a row's test predictions for paired comparisons: small, plain, and by document.

Everything a bootstrap over documents needs adds up over documents, so that lists of labels need not
be kept. Knows the metrics that are compared, not the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plant_dist.metrics.evaluator import Evaluator
from plant_dist.metrics.significance import (
    DocumentSums,
    MacroF1,
    RatioOfSums,
    macro_f1_sums,
    precision_sums,
    recall_sums,
)
from plant_dist.metrics.thresholds import Thresholds

RARE = (1, 10)  # training documents of the labels that planting is for
RATIOS = ("P@1", "P@5", "R@50, labels of 1-10")
MACRO = "macro F1, labels of 1-10"


@dataclass(frozen=True)
class MeanOfSeeds:
    """A metric's mean over seeds, all on the same draw of documents."""

    parts: Sequence[DocumentSums]

    @property
    def documents(self) -> int:
        """D."""
        return self.parts[0].documents

    def of(self, weights_RD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean (R,)."""
        found: NDArray[np.float64] = np.mean([one.of(weights_RD) for one in self.parts], axis=0)
        return found


def packed(evaluator: Evaluator, thresholds: Thresholds) -> dict[str, Any]:
    """Return what is compared of a test split, as plain numbers."""
    predictions, frequency = evaluator.predictions(), evaluator.train_frequency
    rare = (frequency >= RARE[0]) & (frequency <= RARE[1])
    ratios = (
        precision_sums(predictions, 1), precision_sums(predictions, 5),
        recall_sums(predictions, 50, rare),
    )  # fmt: skip
    found: dict[str, Any] = {
        name: [_plain(one.numerators), _plain(one.denominators)]
        for name, one in zip(RATIOS, ratios, strict=True)
    }
    macro = macro_f1_sums(predictions, thresholds, rare)
    found[MACRO] = {
        "shape": list(macro.gold.shape),
        **{part: _pairs(getattr(macro, part)) for part in ("right", "decided", "gold")},
    }
    return found


def unpacked(kept: Mapping[str, Any]) -> dict[str, DocumentSums]:
    """Return the metrics of what was packed."""
    macro = kept[MACRO]
    documents = macro["shape"][0]
    found: dict[str, DocumentSums] = {
        name: RatioOfSums(*(np.broadcast_to(np.array(part, np.float64), documents)
                            for part in kept[name]))
        for name in RATIOS
    }  # fmt: skip
    found[MACRO] = MacroF1(*(_matrix(macro[part], macro["shape"])
                             for part in ("right", "decided", "gold")))  # fmt: skip
    return found


def _plain(numbers: NDArray[np.float64]) -> list[float] | float:
    """As one number where all are the same, and as whole ones where they are: that is shorter."""
    plain = [int(one) if one == int(one) else round(one, 4) for one in numbers.tolist()]
    return plain[0] if len(set(plain)) == 1 else plain


def _pairs(ones: csr_array) -> list[list[int]]:
    rows, columns = ones.nonzero()
    return [rows.tolist(), columns.tolist()]


def _matrix(pairs: Sequence[Sequence[int]], shape: tuple[int, int]) -> csr_array:
    rows, columns = pairs
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
