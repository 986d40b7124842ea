"""How well a ranker places held-out tokens: nDCG@k per label, and means by label frequency.

The ranker is any function from labels and tokens to scores, so that a trained model and the two
baselines (global token frequency, chance) are measured on the very same lists. n labels of a
batch, C candidate tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plant_dist.mig.graded import GradedLists, Ints, padded_entries

Floats = npt.NDArray[np.floating]
ScoreTokens = Callable[[Ints, Ints], Floats]
"""(labels (n,), tokens (C,)) -> scores (n, C) of every token for every label."""

FREQUENCY_BANDS: tuple[tuple[str, int, int], ...] = (
    ("1-5", 1, 5),
    ("6-10", 6, 10),
    ("11-50", 11, 50),
    ("51-100", 51, 100),
    (">100", 101, np.iinfo(np.int64).max),
)
"""Name, fewest and most training documents of the bands that label metrics are reported by."""


@dataclass(frozen=True)
class HeldOutScores:
    """nDCG@k of each label with held-out tokens; scores of disjoint labels concatenate.

    labels (n,) int64 · ndcg (n, number of ks) float64 in [0, 1], a column for each of `ks`.
    """

    labels: Ints
    ndcg: npt.NDArray[np.float64]
    ks: tuple[int, ...]


def evaluate_held_out(
    score: ScoreTokens,
    lists: GradedLists,
    token_documents: Ints,
    ks: Sequence[int],
    seed: int,
    labels: Ints | None = None,
    candidates: int | None = 10_000,
    labels_per_batch: int = 256,
) -> HeldOutScores:
    """Rank each label's held-out tokens among the other tokens that are reserved for it.

    The others come from all seen tokens, or from a sample of them fixed by `seed`, and count as
    grade 0; like the held-out tokens they were never in the label's training lists, so chance
    scores as chance. With a tenth of all pairs reserved a label has about `candidates` / 10 of
    them. Candidates stand in an order fixed by `seed`, so that equal scores fall by chance and not
    by token id, which follows frequency in wordpiece vocabularies.

    Args:
        score: the ranker; called once a batch of labels with their shared candidates.
        token_documents: (V,) training documents that hold each token.
        ks: cut-offs of nDCG@k.
        labels: labels to measure, such as one rank's share; those with held-out tokens if None.
        candidates: seen tokens that the reserved others are taken from; None takes all seen tokens.
    """
    generator = np.random.default_rng(seed)
    # Both orders are drawn before any label is looked at: ranks with other labels draw the same.
    others = generator.permutation(np.flatnonzero(token_documents))[:candidates]
    place = generator.permutation(len(token_documents))
    held = lists.labels_held_out()
    chosen = held if labels is None else np.intersect1d(labels, held)
    batches = range(0, len(chosen), labels_per_batch)
    found = [
        _batch_ndcg(score, lists, chosen[start : start + labels_per_batch], others, place, ks)
        for start in batches
    ]
    empty = np.zeros((0, len(ks)))
    return HeldOutScores(chosen, np.concatenate([empty, *found]), tuple(ks))


def _batch_ndcg(
    score: ScoreTokens,
    lists: GradedLists,
    labels: Ints,
    others: Ints,
    place: Ints,
    ks: Sequence[int],
) -> npt.NDArray[np.float64]:
    rows = padded_entries(lists, labels)
    # One set for all labels of the batch, so that scoring them is one matrix product.
    candidates = np.union1d(others, rows.tokens[rows.held_out])
    candidates = candidates[np.argsort(place[candidates])]
    column_of = np.full(len(place), -1)
    column_of[candidates] = np.arange(len(candidates))

    # Another label's held-out token is no candidate here, unless it is among the others; nor is a
    # reserved token that had to stay in training for want of any other.
    ranked = np.isin(candidates, others) & lists.reserved.holds(labels[:, None], candidates)
    trained = rows.there & ~rows.held_out & (column_of[rows.tokens] >= 0)
    ranked[np.nonzero(trained)[0], column_of[rows.tokens[trained]]] = False
    held = np.nonzero(rows.held_out)[0], column_of[rows.tokens[rows.held_out]]
    ranked[held] = True
    # 2^grade - 1; what was trained on and what is padding has no gain.
    gains_of_rows = np.where(rows.held_out, np.exp2(rows.grades) - 1.0, 0.0)
    gains = np.zeros(ranked.shape)
    gains[held] = gains_of_rows[rows.held_out]
    # What is not ranked sorts last and has no gain, so that it changes no DCG.
    scores = np.where(ranked, score(labels, candidates), -np.inf)
    # The ideal DCG is above 0, since every label here has a token held out, of grade 1 or more.
    return _dcg(_in_order_of(scores, gains, max(ks)), ks) / _dcg(
        _in_order_of(gains_of_rows, gains_of_rows, max(ks)), ks
    )


def _in_order_of(scores: Floats, gains: Floats, deepest: int) -> Floats:
    """Gains of each row's `deepest` best items by score, best first."""
    deepest = min(deepest, scores.shape[1])
    # Only the first `deepest` need to be in order, out of what may be the whole vocabulary.
    top = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(gains, np.take_along_axis(top, order, axis=1), axis=1)


def _dcg(gains: Floats, ks: Sequence[int]) -> npt.NDArray[np.float64]:
    """DCG@k of rows of gains in ranked order: (n, len(ks))."""
    discounted = gains / np.log2(np.arange(2, gains.shape[1] + 2))
    return np.stack([discounted[:, :k].sum(axis=1) for k in ks], axis=1)


def report_by_band(
    scores: HeldOutScores, label_documents: Ints
) -> dict[str, dict[str, float | int]]:
    """Mean nDCG@k over all labels and over each band of training frequency, with label counts.

    Returns:
        {"all" or band: {"labels": n, "ndcg@k": mean, …}}; bands without labels are left out.
    """
    frequency = label_documents[scores.labels]
    bands = [("all", np.ones(len(frequency), dtype=np.bool_))]
    bands += [
        (name, (frequency >= low) & (frequency <= high)) for name, low, high in FREQUENCY_BANDS
    ]
    return {
        name: {"labels": int(members.sum())}
        | {
            f"ndcg@{k}": float(scores.ndcg[members, column].mean())
            for column, k in enumerate(scores.ks)
        }
        for name, members in bands
        if members.any()
    }


def by_token_frequency(token_documents: Ints) -> ScoreTokens:
    """Baseline: every label ranks tokens by the number of training documents that hold them."""

    def score(labels: Ints, tokens: Ints) -> Floats:
        frequency = token_documents[tokens].astype(np.float64)
        # A view: the row is not copied for every label.
        return np.broadcast_to(frequency, (len(labels), len(tokens)))

    return score


def by_chance(seed: int) -> ScoreTokens:
    """Baseline: uniform random scores."""
    generator = np.random.default_rng(seed)
    return lambda labels, tokens: generator.random((len(labels), len(tokens)))
