"""The best tokens of each label in a block of labels, from their co-occurrence counts.

Holds the choice of pairs: which are eligible, how they are scored, which M of a label stay. Must
not know where counts come from or what is done with the lists. V vocabulary, L labels of the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plant_dist.config.schema import MigConfig
from plant_dist.mig import gain
from plant_dist.mig.counts import Cooccurrence

Ints = npt.NDArray[np.int64]

# Float64 temporaries of one slice stay near 200 MB.
PAIRS_PER_SLICE = 1 << 21


class TopTokens(NamedTuple):
    """Kept pairs, label by label, best first: counts (L,) int64 of pairs a label keeps, then flat
    tokens int32, gains float32 (J) and information float32 (nats)."""

    counts: Ints
    tokens: npt.NDArray[np.int32]
    gains: npt.NDArray[np.float32]
    information: npt.NDArray[np.float32]


class ScoredPairs(NamedTuple):
    """Candidate pairs in float64: label row in the block, token id, J and I (nats)."""

    rows: Ints
    tokens: Ints
    gains: gain.Floats
    information: gain.Floats


def top_tokens(counts: Cooccurrence, config: MigConfig) -> TopTokens:
    """Keep each label's M best tokens (`mig.top_tokens`), best score first, ties by token id.

    `association: positive` keeps pairs that occur together more than by chance; `any` keeps every
    informative pair, those that never occur together included. Scores are compared in float64 and
    stored in float32.
    """
    parts = [_slice_top_tokens(part, config) for part in _slices(counts)]
    return TopTokens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _slices(counts: Cooccurrence) -> Iterator[Cooccurrence]:
    """Runs of labels with at most PAIRS_PER_SLICE pairs (a single label may hold more)."""
    ends, labels = counts.joint.indptr.astype(np.int64), len(counts.label_documents)
    start = 0
    while start < labels:
        # ends[i] pairs lie before label i: the search finds the last label that still fits.
        limit = ends[start] + PAIRS_PER_SLICE
        stop = max(int(np.searchsorted(ends, limit, side="right")) - 1, start + 1)
        yield counts.label_block(start, stop)
        start = stop


def _slice_top_tokens(counts: Cooccurrence, config: MigConfig) -> TopTokens:
    eligible = counts.token_documents >= config.min_token_documents
    pairs = _joint_pairs(counts, eligible, positive=config.association == "positive")
    if config.association == "any":
        absent = _absent_pairs(counts, eligible, config)
        pairs = ScoredPairs(*(np.concatenate(both) for both in zip(pairs, absent, strict=True)))
    # Label by label, so that counts alone say where each label's tokens begin.
    kept = _best_of_rows(pairs, _scores(pairs, config), config.top_tokens)
    return TopTokens(
        np.bincount(pairs.rows[kept], minlength=len(counts.label_documents)).astype(np.int64),
        pairs.tokens[kept].astype(np.int32),
        pairs.gains[kept].astype(np.float32),
        pairs.information[kept].astype(np.float32),
    )


def _joint_pairs(
    counts: Cooccurrence, eligible: npt.NDArray[np.bool_], positive: bool
) -> ScoredPairs:
    """Score the pairs that occur together, over all four cells of each."""
    joint_LV, documents = counts.joint, counts.documents
    labels = len(counts.label_documents)
    rows = np.repeat(np.arange(labels, dtype=np.int64), np.diff(joint_LV.indptr))
    # int64: products of two int32 counts wrap from 50,000 documents on.
    tokens, joint = joint_LV.indices.astype(np.int64), joint_LV.data.astype(np.int64)
    n_t, n_l = counts.token_documents[tokens], counts.label_documents[rows]
    # Exact in integers: rounding cannot make an independent pair look informative.
    sign = gain.association(joint, n_t, n_l, documents)
    kept = eligible[tokens] & (sign > 0 if positive else sign != 0)
    rows, tokens, joint = rows[kept], tokens[kept], joint[kept]
    n_t, n_l = n_t[kept], n_l[kept]
    information = gain.mutual_information(joint, n_t, n_l, documents)
    # Entropies once a token and once a label, then looked up for the pairs.
    gains = gain.normalised_gain(
        information,
        gain.entropy(counts.token_documents, documents)[tokens],
        gain.entropy(counts.label_documents, documents)[rows],
    )
    return ScoredPairs(rows, tokens, gains, information)


def _absent_pairs(
    counts: Cooccurrence, eligible: npt.NDArray[np.bool_], config: MigConfig
) -> ScoredPairs:
    """Score pairs that never occur together, the M best of each label.

    With n_tl = 0 a gain depends on n_t and n_l alone, so one order of the vocabulary serves all
    labels of one frequency, and a label's M best lie among the first M + (tokens it occurs with).
    """
    tokens = np.flatnonzero(eligible & (counts.token_documents > 0))
    starts = counts.joint.indptr
    # One mask for all labels, set and cleared again: a fresh one would cost V for each.
    seen = np.zeros(len(counts.token_documents), dtype=np.bool_)
    found = []
    for n_l in np.unique(counts.label_documents):
        order, gains, information = _absent_order(tokens, int(n_l), counts, config)
        for row in np.flatnonzero(counts.label_documents == n_l):
            together = counts.joint.indices[starts[row] : starts[row + 1]]
            seen[together] = True
            prefix = slice(None, config.top_tokens + len(together))
            best = np.flatnonzero(~seen[order[prefix]])[: config.top_tokens]
            seen[together] = False
            rows = np.full(len(best), row, dtype=np.int64)
            found.append(ScoredPairs(rows, order[best], gains[best], information[best]))
    return ScoredPairs(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _absent_order(
    tokens: Ints, n_l: int, counts: Cooccurrence, config: MigConfig
) -> tuple[Ints, gain.Floats, gain.Floats]:
    """Informative tokens by falling score for labels of frequency n_l, their J and I, n_tl = 0."""
    documents = counts.documents
    # A label that training never shows has entropy 0: no token can tell anything of it.
    if not n_l:
        tokens = tokens[:0]
    # A token in more than N - n_l documents cannot miss such a label: none will ask for it.
    tokens = tokens[counts.token_documents[tokens] + n_l <= documents]
    # Frequencies are few where tokens are many: a gain is computed once a frequency.
    n_t, which = np.unique(counts.token_documents[tokens], return_inverse=True)
    label = np.asarray([n_l], dtype=np.int64)
    information = gain.mutual_information(np.zeros_like(n_t), n_t, label, documents)
    gains = gain.normalised_gain(
        information, gain.entropy(n_t, documents), gain.entropy(label, documents)
    )
    score = gains if config.score == "normalised" else information
    # Stable over ascending ids, so that ties fall by token id, as in `_best_of_rows`.
    order = np.argsort(-score[which], kind="stable")
    which = which[order]
    return tokens[order], gains[which], information[which]


def _scores(pairs: ScoredPairs, config: MigConfig) -> gain.Floats:
    return pairs.gains if config.score == "normalised" else pairs.information


def _best_of_rows(pairs: ScoredPairs, scores: gain.Floats, top: int) -> Ints:
    """Positions of each row's `top` best pairs, rows ascending, then score falling, then token."""
    # lexsort's last key counts first.
    order = np.lexsort((pairs.tokens, -scores, pairs.rows))
    rows = pairs.rows[order]
    # Rows are sorted, so a search for a row finds where it begins.
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return np.asarray(order[rank < top], dtype=np.int64)
