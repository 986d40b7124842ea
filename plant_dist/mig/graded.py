"""Graded lists: a label's tokens with relevance grades, some held out, and batches drawn to train.

Turns the order of the gain table into grades 0..G, keeps validation pairs out of training, and
draws batches of lists with sampled tokens of grade 0. Must not know the model that learns from
them. N lists of M tokens, V vocabulary, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plant_dist.config.schema import RankConfig
from plant_dist.errors import DataError
from plant_dist.mig.counts import IntArray
from plant_dist.mig.lists import GainTable

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# A sampled token that is barred from a list is drawn again, and masked after this many draws.
DRAWS = 5


@dataclass(frozen=True)
class ReservedPairs:
    """The share of all label-token pairs, of whatever grade, that training never sees.

    Whether a pair is reserved is a hash of it, so every process agrees and nothing is stored. Were
    only graded tokens kept from training, the one kind of token never pushed down would be the
    held-out kind, and a ranker could place it well without having learnt anything about it.

    Attributes:
        fraction: share of pairs, 0 to 1.
        seed: another seed reserves other pairs.
    """

    fraction: float
    seed: int

    def holds(self, labels: IntArray, tokens: IntArray) -> Bools:
        """Which pairs are reserved: bool, of the broadcast shape of labels and tokens."""
        # Label and token side by side: token ids lie below 2^32, so no two pairs share a key.
        pairs = np.asarray(labels, dtype=np.uint64) << np.uint64(32)
        pairs = pairs + np.asarray(tokens, dtype=np.uint64)
        seed = np.asarray([self.seed], dtype=np.uint64)
        # 53 bits of the hash are a float in [0, 1) exactly.
        share = (_scrambled(pairs ^ _scrambled(seed)) >> np.uint64(11)) * 2.0**-53
        return np.asarray(share < self.fraction)


def _scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, 2014): one well-mixed 64-bit number for another."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class GradedLists:
    """Every label's tokens with their grades; what is held out is never trained on.

    Attributes:
        offsets: (L+1,) int64; label l owns the entries offsets[l] to offsets[l+1].
        tokens: (nnz,) int32 token ids, best first inside a label.
        grades: (nnz,) uint8, from G (best) down to 1; every other token has grade 0.
        held_out: (nnz,) bool, pairs kept for validation.
        reserved: the rule behind `held_out`, which tokens of grade 0 obey as well.
    """

    offsets: Ints
    tokens: npt.NDArray[np.int32]
    grades: npt.NDArray[np.uint8]
    held_out: Bools
    reserved: ReservedPairs

    def labels_to_train(self) -> Ints:
        """Labels, ascending, with at least one token to learn from."""
        return np.flatnonzero(np.diff(self._cumulated(~self.held_out)))

    def labels_held_out(self) -> Ints:
        """Labels, ascending, with at least one token to validate on."""
        return np.flatnonzero(np.diff(self._cumulated(self.held_out)))

    def _cumulated(self, chosen: Bools) -> Ints:
        # Sums up to each offset, since `reduceat` is wrong for empty lists.
        return np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])[self.offsets]


def graded_lists(table: GainTable, grades: int) -> GradedLists:
    """Grades from ranks by quantile: a label's best 1/G of its tokens get G, its last 1/G get 1.

    Tokens of equal gain share the grade of the first of them, so that no grade depends on the order
    of token ids.

    Args:
        table: tokens of every label, best first.
        grades: G, the highest grade, 1 to 255.
    """
    offsets, entries = np.asarray(table.offsets), np.arange(len(table.tokens))
    counts = np.diff(offsets)
    is_tied = np.zeros(len(entries), dtype=np.bool_)
    # Both figures, so that it does not matter by which of them the table was ranked.
    is_tied[1:] = (table.gains[1:] == table.gains[:-1]) & (
        table.information[1:] == table.information[:-1]
    )
    # The first of each label is tied with nobody before it.
    is_tied[offsets[:-1][counts > 0]] = False
    # The running maximum carries the place of a tie's first token over the others.
    first_of_tie = np.maximum.accumulate(np.where(is_tied, 0, entries))
    rank = first_of_tie - np.repeat(offsets[:-1], counts)
    # In integers: rank r of n gets G - floor(r·G/n), from G for r = 0 to at least 1 for r = n-1.
    grade = grades - rank * grades // np.repeat(counts, counts)
    nothing = np.zeros(len(entries), dtype=np.bool_)
    return GradedLists(
        offsets, table.tokens, grade.astype(np.uint8), nothing, ReservedPairs(0.0, 0)
    )


def hold_out(lists: GradedLists, fraction: float, seed: int) -> GradedLists:
    """Hold out the graded tokens that fall into a reserved share of all label-token pairs.

    A label of which every token is reserved keeps its best one for training.

    Args:
        fraction: 0 to 1.
        seed: the same seed reserves the same pairs.
    """
    reserved = ReservedPairs(fraction, seed)
    counts = np.diff(lists.offsets)
    labels = np.repeat(np.arange(len(counts)), counts)
    held_out = reserved.holds(labels, lists.tokens)
    kept = np.bincount(labels[~held_out], minlength=len(counts))
    # A list's first entry is its best token.
    held_out[lists.offsets[:-1][(counts > 0) & (kept == 0)]] = False
    return replace(lists, held_out=held_out, reserved=reserved)


class PaddedEntries(NamedTuple):
    """The tokens of some labels side by side, (n, longest list); `there` marks what is no padding.

    tokens int64 · grades int64 · held_out bool · there bool.
    """

    tokens: Ints
    grades: Ints
    held_out: Bools
    there: Bools


def padded_entries(lists: GradedLists, labels: Ints) -> PaddedEntries:
    """Gather the lists of `labels` (n,) into rows of equal length."""
    starts = lists.offsets[labels]
    counts = lists.offsets[labels + 1] - starts
    columns = np.arange(max(int(counts.max(initial=0)), 1))
    there = columns < counts[:, None]
    # Padding reads entry 0, which `there` hides again; without any entry there is none to read.
    entries = np.where(there, starts[:, None] + columns, 0)
    if not len(lists.tokens):
        empty = np.zeros(entries.shape, dtype=np.int64)
        return PaddedEntries(empty, empty, there, there)
    return PaddedEntries(
        lists.tokens[entries].astype(np.int64),
        lists.grades[entries].astype(np.int64),
        lists.held_out[entries] & there,
        there,
    )


class Membership:
    """Answers which tokens stand in the list of their row, held out or not."""

    def __init__(self, rows: PaddedEntries, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        row = np.arange(len(rows.tokens), dtype=np.int64)[:, None]
        # The last key belongs to no row; it spares the search a bound to check.
        last = np.asarray([np.iinfo(np.int64).max])
        self._keys = np.concatenate([np.sort(self._key(row, rows.tokens)[rows.there]), last])

    def _key(self, rows: Ints, tokens: Ints) -> Ints:
        # Token ids lie below V, so no two pairs share a key.
        return rows * self._vocabulary_size + tokens

    def holds(self, rows: Ints, tokens: Ints) -> Bools:
        """Membership of tokens in rows: bool, of the broadcast shape of both."""
        keys = self._key(rows, tokens)
        return np.asarray(self._keys[np.searchsorted(self._keys, keys)] == keys)


class TokenLists(NamedTuple):
    """A batch of lists: tokens (N, M) int64, grades (N, M) int64, mask (N, M) bool.

    The first `rank.list_tokens` columns are graded tokens, the rest sampled tokens of grade 0. What
    the mask leaves out is padding, with token 0 and grade 0.
    """

    tokens: npt.NDArray[Any]
    grades: npt.NDArray[Any]
    mask: npt.NDArray[Any]


class ListSampler:
    """Draws lists for labels: graded tokens and, as grade 0, tokens the label does not own.

    Half of the sampled tokens come uniformly from all seen tokens, half by document frequency, so
    that frequent function words are learnt as low for every label. Reserved pairs never appear,
    neither as positives nor as grade 0.
    """

    def __init__(self, lists: GradedLists, token_documents: Ints, config: RankConfig) -> None:
        """Prepare to draw.

        Args:
            lists: graded lists with what is held out.
            token_documents: (V,) training documents that hold each token; 0 is never drawn.
            config: `list_tokens` and `sampled_tokens`.

        Raises:
            DataError: no token was seen in training.
        """
        self._lists = lists
        self._config = config
        self._vocabulary_size = len(token_documents)
        self._seen = np.flatnonzero(token_documents)
        if not len(self._seen):
            raise DataError("rank: no token occurs in training documents; run the stage mig again")
        # A number drawn uniformly below the last total falls into a token's share of them.
        self._cumulated = np.cumsum(token_documents[self._seen], dtype=np.float64)

    def draw(self, labels: Ints, generator: np.random.Generator) -> TokenLists:
        """One list for each of `labels` (N,), all random choices from `generator`."""
        rows = padded_entries(self._lists, labels)
        graded = self._graded(rows, generator)
        sampled = self._sampled(labels, rows, generator)
        return TokenLists(
            np.concatenate([graded.tokens, sampled.tokens], axis=1),
            np.concatenate([graded.grades, sampled.grades], axis=1),
            np.concatenate([graded.mask, sampled.mask], axis=1),
        )

    def _graded(self, rows: PaddedEntries, generator: np.random.Generator) -> TokenLists:
        """All of a label's training tokens, or `list_tokens` of them at random."""
        width, wanted = rows.tokens.shape[1], self._config.list_tokens
        usable = rows.there & ~rows.held_out
        # Unusable entries sort behind every usable one.
        keys = generator.random(usable.shape, dtype=np.float32) + ~usable
        chosen = np.argsort(keys, axis=1)[:, : min(width, wanted)]
        mask = np.take_along_axis(usable, chosen, axis=1)
        tokens = np.take_along_axis(rows.tokens, chosen, axis=1) * mask
        grades = np.take_along_axis(rows.grades, chosen, axis=1) * mask
        # As many columns in every batch as `TokenLists` promises, however short its lists.
        padding = [(0, 0), (0, max(wanted - width, 0))]
        return TokenLists(*(np.pad(each, padding) for each in (tokens, grades, mask)))

    def _sampled(
        self, labels: Ints, rows: PaddedEntries, generator: np.random.Generator
    ) -> TokenLists:
        """`sampled_tokens` seen tokens that the label's list does not hold and none reserves."""
        shape = (len(labels), self._config.sampled_tokens)
        listed = Membership(rows, self._vocabulary_size)
        tokens = np.zeros(shape, dtype=np.int64)
        row, column = (each.ravel() for each in np.indices(shape))
        for _ in range(DRAWS):
            drawn = self._mixture(column < shape[1] // 2, generator)
            # Only what was barred before is drawn again.
            tokens[row, column] = drawn
            barred = listed.holds(row, drawn) | self._lists.reserved.holds(labels[row], drawn)
            row, column = row[barred], column[barred]
            if not len(row):
                break
        there = np.ones(shape, dtype=np.bool_)
        # Still barred after the last draw, so left out.
        there[row, column] = False
        return TokenLists(tokens * there, np.zeros(shape, dtype=np.int64), there)

    def _mixture(self, uniform: Bools, generator: np.random.Generator) -> Ints:
        """One seen token for each entry: drawn uniformly, or else by document frequency."""
        draws = generator.random(len(uniform))
        places = np.empty(len(uniform), dtype=np.int64)
        # Storing as int64 cuts the fraction off.
        places[uniform] = draws[uniform] * len(self._seen)
        weighted = draws[~uniform] * self._cumulated[-1]
        places[~uniform] = np.searchsorted(self._cumulated, weighted, side="right")
        # A draw that rounds up to the total would point one past the end.
        return np.asarray(self._seen[np.minimum(places, len(self._seen) - 1)], dtype=np.int64)
