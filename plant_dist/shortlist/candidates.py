"""A training document's candidate labels: its gold labels, what the index mined, a random sample.

Each candidate carries the number of labels it stands for, 1/probability of being drawn, so that a
weighted sum over the shortlist has the sum over all labels as its expectation. Everything is index
arithmetic on flat arrays. Must not know models, indices or losses.

B documents, K candidates, L labels, N labels that negatives are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plant_dist.data.csr import Csr
from plant_dist.errors import DataError

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

# Gold labels take no more than this share of K, or nothing were left to tell them from.
GOLD_SHARE = 0.75


@dataclass(frozen=True)
class Candidates:
    """The shortlists of a batch.

    Attributes:
        label_ids: (B, K) int64: gold labels first, then mined, then sampled; no label twice. A row
            with less is padded by label 0.
        weights: (B, K) float32, labels that each candidate stands for: 1 for gold and mined ones,
            1/probability for sampled ones; 0 is padding.
        gold_offsets: (B + 1,) int64, where each document's gold columns start.
        gold_columns: (G,) int64, columns of the gold labels.
        gold_places: (G,) int64, which of the given gold labels each of them is.
        mined, sampled: (B,) int64, how many of each kind.
    """

    label_ids: Int64
    weights: NDArray[np.float32]
    gold_offsets: Int64
    gold_columns: Int64
    gold_places: Int64
    mined: Int64
    sampled: Int64


class CandidateSampler:
    """Draws shortlists.

    Args:
        labels: L.
        per_document: K; all labels where there are fewer.
        mined_share: share of the columns left by gold labels that mined labels may take.
        seed: with epoch and row of a document it decides its draws, on any number of ranks.
        population: rising ids that negatives are drawn from; all labels if None.
    """

    def __init__(
        self,
        labels: int,
        per_document: int,
        mined_share: float,
        seed: int,
        population: Int64 | None = None,
    ) -> None:
        self.labels, self.width = labels, min(per_document, labels)
        self._share, self._seed = mined_share, seed
        self._population = population
        # Where every label fits, none need be left out.
        whole = per_document >= labels
        self.most_gold = self.width if whole else max(1, int(GOLD_SHARE * self.width))

    def draw(
        self, gold: Csr, mined: Int64, rows: Int64, epoch: int, ignored: Csr | None = None
    ) -> Candidates:
        """Return the shortlists of a batch.

        Of a document with more than `most_gold` gold labels a sample is taken, each weighing the
        labels it stands for, so that the expectation is kept.

        Args:
            gold: (B rows) gold labels. mined: (B, M) labels, best first, -1 for none.
            rows: (B,) each document's row in the split. epoch: from 0.
            ignored: (B rows) labels that the document must not consider (filter files).

        Raises:
            DataError: a label is outside 0..L-1.
        """
        _check(gold, self.labels, "gold")
        documents = gold.size
        skipped = _Pairs.none() if ignored is None else _Pairs.of(ignored)
        listed = _Pairs.of(gold)
        places = np.flatnonzero(~skipped.hold(listed.rows, listed.ids, self.labels))
        kept, weights_G = self._keep_gold(listed.at(places), rows, epoch)
        gold_places, kept_gold = places[kept], listed.at(places[kept])
        room_B = self.width - kept_gold.counts(documents)
        mined_pairs = self._keep_mined(mined, room_B, listed, skipped)
        room_B = room_B - mined_pairs.counts(documents)
        # All gold, also what had no room: drawn as a negative it would be charged as one.
        taken = _Pairs.joined(listed, mined_pairs, skipped)
        sampled, weights_S = self._sample(taken, room_B, rows, epoch)
        return self._laid_out(documents, (kept_gold, mined_pairs, sampled),
                              (weights_G, np.ones(len(mined_pairs.ids)), weights_S),
                              gold_places)  # fmt: skip

    def _keep_gold(self, gold: _Pairs, rows: Int64, epoch: int) -> tuple[Int64, Float64]:
        """Return which gold labels are kept, and the labels that each stands for."""
        counts_B = gold.counts(len(rows))
        order = np.arange(len(gold.ids))
        if (counts_B > self.most_gold).any():
            # By chance within a document; documents stay in order.
            chance = uniforms(self._seed, epoch, rows[gold.rows], gold.ids + self.labels)
            order = np.lexsort((chance, gold.rows))
        first = order[gold.places(len(rows)) < self.most_gold]
        first.sort()
        stands_for = counts_B / np.clip(counts_B, 1, self.most_gold)
        return first, stands_for[gold.rows[first]]

    def _keep_mined(self, mined_BM: Int64, room_B: Int64, gold: _Pairs, skipped: _Pairs) -> _Pairs:
        """Return each document's best mined labels that are neither gold nor ignored."""
        documents, width = mined_BM.shape
        rows = np.repeat(np.arange(documents), width)
        found = _Pairs(rows, mined_BM.reshape(-1))
        usable = found.ids >= 0
        for others in (gold, skipped):
            usable &= ~others.hold(found.rows, found.ids, self.labels)
        if self._population is not None:
            usable &= _contains(self._population, found.ids)
        # A label twice keeps its first, better place.
        found = found.at(np.flatnonzero(usable))
        _, first = np.unique(found.keys(self.labels), return_index=True)
        found = found.at(np.sort(first))
        allowed_B = np.floor(self._share * room_B).astype(np.int64)
        return found.at(np.flatnonzero(found.places(documents) < allowed_B[found.rows]))

    def _sample(
        self, taken: _Pairs, room_B: Int64, rows: Int64, epoch: int
    ) -> tuple[_Pairs, Float64]:
        """Cut the remaining labels into as many strata as there is room; draw a label from each.

        Strata need no rejection and give every label an exactly known probability.
        """
        documents, size = len(room_B), self.labels
        positions = taken
        if self._population is not None:
            size = len(self._population)
            inside = np.flatnonzero(_contains(self._population, taken.ids))
            taken = taken.at(inside)
            positions = _Pairs(taken.rows, np.searchsorted(self._population, taken.ids))
        positions = positions.unique(size)
        left_B = size - positions.counts(documents)
        draws_B = np.minimum(room_B, left_B)
        row_S = np.repeat(np.arange(documents), draws_B)
        stratum_S = np.arange(len(row_S)) - np.repeat(np.cumsum(draws_B) - draws_B, draws_B)
        # Bounds in integers: rounded ones would overlap or leave gaps.
        low_S = stratum_S * left_B[row_S] // draws_B[row_S]
        high_S = (stratum_S + 1) * left_B[row_S] // draws_B[row_S]
        chance_S = uniforms(self._seed, epoch, rows[row_S], stratum_S)
        rank_S = np.minimum(low_S + (chance_S * (high_S - low_S)).astype(np.int64), high_S - 1)
        drawn_S = _skip(row_S, rank_S, positions, documents, size)
        if self._population is not None:
            drawn_S = self._population[drawn_S]
        return _Pairs(row_S, drawn_S), (high_S - low_S).astype(np.float64)

    def _laid_out(
        self, documents: int, kinds: tuple[_Pairs, ...], weights: tuple[Float64, ...],
        gold_places: Int64,
    ) -> Candidates:  # fmt: skip
        label_ids = np.zeros((documents, self.width), np.int64)
        label_weights = np.zeros((documents, self.width), np.float32)
        counts = [pairs.counts(documents) for pairs in kinds]
        start_B = np.zeros(documents, np.int64)
        columns = []
        for pairs, weight, count_B in zip(kinds, weights, counts, strict=True):
            columns.append(start_B[pairs.rows] + pairs.places(documents))
            label_ids[pairs.rows, columns[-1]] = pairs.ids
            label_weights[pairs.rows, columns[-1]] = weight
            start_B = start_B + count_B
        offsets = np.concatenate([[0], np.cumsum(counts[0])]).astype(np.int64)
        return Candidates(
            label_ids, label_weights, offsets, columns[0], gold_places, counts[1], counts[2]
        )


@dataclass(frozen=True)
class _Pairs:
    """Document and label of some pairs, sorted by document."""

    rows: Int64
    ids: Int64

    @classmethod
    def none(cls) -> _Pairs:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, labels: Csr) -> _Pairs:
        return cls(labels.owners(), np.asarray(labels.values, np.int64))

    @classmethod
    def joined(cls, *parts: _Pairs) -> _Pairs:
        rows = np.concatenate([part.rows for part in parts])
        return cls(rows, np.concatenate([part.ids for part in parts]))

    def at(self, places: Int64) -> _Pairs:
        return _Pairs(self.rows[places], self.ids[places])

    def keys(self, labels: int) -> Int64:
        """Each pair as one number, rising by document and then label."""
        return self.rows * np.int64(labels) + self.ids

    def unique(self, labels: int) -> _Pairs:
        keys = np.unique(self.keys(labels))
        return _Pairs(keys // labels, keys % labels)

    def hold(self, rows: Int64, ids: Int64, labels: int) -> NDArray[np.bool_]:
        """Which of the given pairs are among these; an id of -1 never is."""
        found: NDArray[np.bool_] = np.isin(rows * np.int64(labels) + ids, self.keys(labels))
        return found & (ids >= 0)

    def counts(self, documents: int) -> Int64:
        return np.bincount(self.rows, minlength=documents).astype(np.int64)

    def places(self, documents: int) -> Int64:
        """Number of each pair within its document, from 0."""
        counts = self.counts(documents)
        return np.arange(len(self.rows)) - (np.cumsum(counts) - counts)[self.rows]


def _skip(row_S: Int64, rank_S: Int64, taken: _Pairs, documents: int, size: int) -> Int64:
    """Return the rank-th label of each document that is not taken; `taken` rises within rows."""
    before_B = np.concatenate([[0], np.cumsum(taken.counts(documents))])
    # A taken label is passed once as many free ones as lie before it have been counted.
    free_before_E = taken.ids - taken.places(documents)
    lift = np.int64(size + 1)
    passed_S = np.searchsorted(
        taken.rows * lift + free_before_E, row_S * lift + rank_S, side="right"
    )
    skipped: Int64 = rank_S + passed_S - before_B[row_S]
    return skipped


def _contains(rising: Int64, ids: Int64) -> NDArray[np.bool_]:
    if not len(rising):
        return np.zeros(len(ids), np.bool_)
    place = np.searchsorted(rising, ids).clip(max=len(rising) - 1)
    return np.asarray(rising[place] == ids)


def _check(labels: Csr, count: int, what: str) -> None:
    values = labels.values
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
        raise DataError(
            f"{what} label {int(values.max() if values.max() >= count else values.min())} is "
            f"outside 0..{count - 1}; prepare the dataset with this label space"
        )


def uniforms(seed: int, epoch: int, rows: Int64, draws: Int64) -> Float64:
    """Numbers in [0, 1) that follow from seed, epoch, row and draw alone (splitmix64).

    Unlike a generator they are the same whichever rank holds the document, and after resuming.
    """
    key = np.zeros(len(rows), np.uint64)
    for part in (np.full(len(rows), seed), np.full(len(rows), epoch), rows, draws):
        key = _mixed(key ^ np.asarray(part).astype(np.uint64))
    return np.asarray((key >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64 (Steele, Lea, Flood 2014); sums and products wrap around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
