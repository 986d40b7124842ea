"""The nearest-text baseline: training documents near a text vote for their labels.

A label's own text may vote for it as well. How many neighbours vote, how sharply, and how much
label texts weigh is chosen on validation by a quality that the caller hands in, so that the
baseline is as strong as its space allows. Must not know metrics or models. Letters: B texts, N
training documents, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plant_dist.baselines.shortlist import Shortlist, best_of_rows
from plant_dist.baselines.vectors import Rows, Vectors, nearest_rows
from plant_dist.errors import DataError


@dataclass(frozen=True)
class Voting:
    """How neighbours vote.

    neighbours: training documents, and label texts, that vote.
    temperature: a vote is exp(cosine / temperature), or the cosine itself where it is None;
        the votes of a text sum to 1.
    label_text: share of the score that is the cosine with the label's own text.
    """

    neighbours: int = 10
    temperature: float | None = 0.05
    label_text: float = 0.25


# A coarse grid over three settings; scoring one is cheap once neighbours are found.
VOTINGS = tuple(
    Voting(neighbours, temperature, label_text)
    for neighbours, temperature, label_text in product(
        (1, 3, 10, 30, 100), (None, 0.1, 0.05, 0.02), (0.0, 0.1, 0.3, 0.6, 0.9)
    )
)


@dataclass(frozen=True)
class _Neighbours:
    """Nearest training documents and label texts of B texts: columns and cosines, best first."""

    documents: tuple[NDArray[np.int64], NDArray[np.float32]]
    labels: tuple[NDArray[np.int64], NDArray[np.float32]]


class NearestTexts:
    """Votes of the nearest training documents and label texts.

    Args:
        vectors: the space in which texts are near.
        keep: labels listed for a text.
        voting: how neighbours vote, unless `tune` chooses.
        block: texts handled at once.
    """

    def __init__(
        self,
        vectors: Vectors,
        keep: int = 1000,
        voting: Voting | None = None,
        block: int = 1024,
    ) -> None:
        self.name = vectors.name
        self.voting = voting or Voting()
        self._vectors = vectors
        self._keep = keep
        self._block = block
        self._tuned = False
        self._documents: Rows
        self._labels: csr_array
        self._label_rows: Rows
        self._named: NDArray[np.int64]

    def fit(self, texts: Sequence[str], labels: csr_array, label_texts: Sequence[str]) -> None:
        """Place the training texts and the label texts in the space.

        Raises:
            DataError: there is no training text.
        """
        if not len(texts):
            raise DataError(f"baseline {self.name}: no training texts; the training split is empty")
        # An empty text is near nothing, and would only be a row of zeros.
        named = [(label, text) for label, text in enumerate(label_texts) if text.strip()]
        own_texts = [text for _, text in named]
        # Each distinct text is placed once: labels are often described by a training text.
        places = {text: place for place, text in enumerate(dict.fromkeys([*texts, *own_texts]))}
        self._vectors.fit([*texts, *own_texts])
        rows = self._vectors.transform(list(places))
        self._documents = rows[np.array([places[text] for text in texts])]
        # The type is said, since an empty list of labels would index as floats.
        self._label_rows = rows[np.array([places[text] for text in own_texts], dtype=np.int64)]
        self._labels = labels
        self._named = np.array([label for label, _ in named], dtype=np.int64)

    def tune(
        self,
        texts: Sequence[str],
        quality: Callable[[Shortlist], float],
        votings: Sequence[Voting] = VOTINGS,
    ) -> Shortlist:
        """Choose the voting of highest quality on validation texts.

        Args:
            texts: validation texts.
            quality: judges the shortlists of all of them, in their order; larger is better.
            votings: candidates; the first of equals wins.

        Returns:
            The shortlists of the validation texts under the voting chosen, for thresholds.
        """
        # Searched once for the greediest voting; the others take a prefix.
        most = max(voting.neighbours for voting in votings)
        neighbours = list(self._neighbours(texts, most))

        def listed(voting: Voting) -> Shortlist:
            return _stacked([self._vote(part, voting) for part in neighbours])

        qualities = [quality(listed(voting)) for voting in votings]
        self.voting, self._tuned = votings[int(np.argmax(qualities))], True
        return listed(self.voting)

    def shortlist(self, texts: Sequence[str]) -> Shortlist:
        """Rank the labels that a neighbour votes for."""
        parts = self._neighbours(texts, self.voting.neighbours)
        return _stacked([self._vote(part, self.voting) for part in parts])

    def describe(self) -> str:
        """Name the voting."""
        voting = self.voting
        weight = f"exp(cosine/{voting.temperature})" if voting.temperature else "cosine"
        return (
            f"{voting.neighbours} nearest training documents vote by {weight}, "
            f"{voting.label_text:.0%} of the score from the label's own text"
            f"{', chosen on validation' if self._tuned else ''}"
        )

    def _neighbours(self, texts: Sequence[str], count: int) -> Iterator[_Neighbours]:
        for start in range(0, len(texts), self._block):
            rows = self._vectors.transform(texts[start : start + self._block])
            yield _Neighbours(
                nearest_rows(rows, self._documents, count),
                nearest_rows(rows, self._label_rows, count),
            )

    def _vote(self, near: _Neighbours, voting: Voting) -> Shortlist:
        """List the labels voted for; scipy leaves zeros out of products and sums."""
        count, (documents, labels) = voting.neighbours, self._labels.shape
        # Best first, so a prefix is the nearest `count`, and their votes sum to 1 anew.
        votes = _weights(near.documents[1][:, :count], voting.temperature)
        ballots = _sparse(near.documents[0][:, :count], votes, documents)
        scores = (1 - voting.label_text) * (ballots @ self._labels)
        if voting.label_text:
            # A negative cosine is no vote against a label: it counts as none.
            cosines = np.maximum(near.labels[1][:, :count], 0.0)
            own = _sparse(self._named[near.labels[0][:, :count]], cosines, labels)
            scores = scores + voting.label_text * own
        return best_of_rows(scores, self._keep)


def _weights(cosines_BN: NDArray[np.float32], temperature: float | None) -> NDArray[np.float32]:
    """Votes of each row's neighbours; they sum to 1, or 0 where no neighbour is near at all."""
    if temperature is None:
        votes = np.maximum(cosines_BN, 0.0)
    else:
        # Less the largest cosine, so that no exponent overflows at a small temperature.
        votes = np.exp((cosines_BN - cosines_BN[:, :1]) / temperature)
    total = votes.sum(axis=1, keepdims=True)
    return np.asarray(votes / np.where(total > 0, total, 1.0), dtype=np.float32)


def _sparse(columns: NDArray[Any], values: NDArray[np.float32], width: int) -> csr_array:
    rows, count = columns.shape
    # Every row has as many entries, so the offsets need no counting.
    starts = np.arange(rows + 1) * count
    return csr_array((values.ravel(), columns.ravel(), starts), shape=(rows, width))


def _stacked(parts: Sequence[Shortlist]) -> Shortlist:
    """Put shortlists under one another, padded to the longest."""
    # Texts differ in the labels voted for; -1 and -inf mark what is not there.
    width = max((part.label_ids.shape[1] for part in parts), default=1)

    def widened(array: NDArray[Any], filling: float) -> NDArray[Any]:
        margin = ((0, 0), (0, width - array.shape[1]))
        return np.pad(array, margin, constant_values=filling)

    if not parts:
        return Shortlist(np.zeros((0, width), np.int32), np.zeros((0, width), np.float32))
    return Shortlist(
        np.concatenate([widened(part.label_ids, -1) for part in parts]),
        np.concatenate([widened(part.scores, -np.inf) for part in parts]),
    )
