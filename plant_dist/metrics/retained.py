"""The best N predictions of every document, sparse: the only predictions an evaluation keeps.

Thresholds, F1, AUC, curves and per-band rankings are made from them after the last batch. Holds
storage, joining and walking in bounded blocks; must not know any metric. Letters: D documents, N
predictions kept of each, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.order import Ranking

_BLOCK = 1 << 22  # predictions handled at once; bounds the memory of every later pass
_STATE = ("label_ids", "scores", "gold_counts", "gold_ids", "gold_ranks")


@dataclass(frozen=True)
class Predictions:
    """Retained predictions of D documents.

    label_ids: (D, N) int32, best first, -1 where a document has fewer.
    scores: (D, N) float32, -inf where label_ids is -1.
    gold, gold_ranks: gold labels and their ranks among *all* candidates, 0 for none.
    """

    label_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    gold: Gold
    gold_ranks: NDArray[np.int32]

    @property
    def width(self) -> int:
        """N."""
        return int(self.label_ids.shape[1])

    @property
    def kept_gold(self) -> NDArray[np.bool_]:
        """(nnz,) gold labels that are among the retained predictions."""
        return (self.gold_ranks > 0) & (self.gold_ranks <= self.width)

    def hits(self) -> NDArray[np.bool_]:
        """(D, N): the prediction is a gold label."""
        hits_DN = np.zeros(self.label_ids.shape, dtype=np.bool_)
        kept = self.kept_gold
        # A gold label of rank r stands in column r - 1: no search is needed.
        hits_DN[self.gold.rows[kept], self.gold_ranks[kept] - 1] = True
        return hits_DN

    def blocks(self) -> Iterator[Predictions]:
        """The documents in order, few enough at a time to work on freely."""
        step = max(1, _BLOCK // max(1, self.width))
        for start in range(0, len(self.label_ids), step):
            # Cut between documents: later passes need whole rows.
            stop = min(start + step, len(self.label_ids))
            entries = slice(self.gold.offsets[start], self.gold.offsets[stop])
            yield Predictions(
                self.label_ids[start:stop],
                self.scores[start:stop],
                Gold.of_counts(self.gold.counts[start:stop], self.gold.ids[entries]),
                self.gold_ranks[entries],
            )

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays that join along their first axis."""
        arrays = (
            self.label_ids, self.scores, self.gold.counts, self.gold.ids, self.gold_ranks
        )  # fmt: skip
        return dict(zip(_STATE, arrays, strict=True))


class Retained:
    """Collects predictions batch by batch.

    Args:
        documents: how many documents will come, over all processes.
        labels: L.
        budget: predictions kept at most, over all processes.
        at_least: the least N, whatever the budget.
    """

    def __init__(self, documents: int, labels: int, budget: int, at_least: int) -> None:
        # Rounded down: the budget is a promise about memory, over all processes.
        self.width = min(labels, max(at_least, budget // max(1, documents)))
        self._expected = documents
        self._documents = 0
        self._parts: list[Predictions] = []

    def add(self, ranking: Ranking, gold: Gold) -> None:
        """Keep a batch, ranked to at most `width` labels.

        Raises:
            DataError: more documents arrive than the budget was shared among.
        """
        self._append(Predictions(ranking.label_ids, ranking.scores, gold, ranking.gold_ranks))

    def _append(self, part: Predictions) -> None:
        # Counted here, since parts of other ranks come this way as well.
        self._documents += part.gold.documents
        if self._documents > self._expected:
            raise DataError(
                f"the evaluator was made for {self._expected} documents and got "
                f"{self._documents}; pass the number of documents of the split"
            )
        self._parts.append(part)

    def predictions(self) -> Predictions:
        """Everything kept so far, as one table.

        Raises:
            DataError: nothing was added.
        """
        if not self._parts:
            raise DataError("no document was evaluated; the split is empty")
        if len(self._parts) > 1:
            # Kept joined, since thresholds, results and curves all ask for it.
            self._parts = [_joined(self._parts)]
        return self._parts[0]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays for another process; empty for a process that saw no document."""
        # A rank may have had no document; the others' states are whole without it.
        return self.predictions().state() if self._parts else {}

    def merge_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Add a `state()`."""
        if not state:
            return
        label_ids, scores, counts, ids, ranks = (state[name] for name in _STATE)
        gold = Gold.of_counts(counts.astype(np.int64), ids.astype(np.int32))
        self._append(
            Predictions(
                label_ids.astype(np.int32), scores.astype(np.float32), gold, ranks.astype(np.int32)
            )
        )


def _joined(parts: list[Predictions]) -> Predictions:
    """Put tables under one another, padded to the widest."""
    documents, width = sum(part.gold.documents for part in parts), max(p.width for p in parts)
    # Batches of shortlists may be of different widths.
    label_ids_DN = np.full((documents, width), -1, dtype=np.int32)
    scores_DN = np.full((documents, width), -np.inf, dtype=np.float32)
    start = 0
    for part in parts:
        stop = start + part.gold.documents
        label_ids_DN[start:stop, : part.width] = part.label_ids
        scores_DN[start:stop, : part.width] = part.scores
        start = stop
    gold = Gold.joined([part.gold for part in parts])
    return Predictions(
        label_ids_DN, scores_DN, gold, np.concatenate([part.gold_ranks for part in parts])
    )
