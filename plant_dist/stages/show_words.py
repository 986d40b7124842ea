"""The words that tokens stand in: what a piece such as `##eb` is a piece of, to a reader.

Looks into a few training documents for each token, so that it costs little on any corpus.

C tokens asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.tokens import encode_with_spans
from plant_dist.data.words import words_of

DOCUMENTS = 20  # looked into for each token
WORDS = 3  # shown of each token


class TokenWords:
    """Finds words in the documents that gains and ranker have learnt from."""

    def __init__(self, dataset: PreparedDataset, tokenizer: PreTrainedTokenizerBase) -> None:
        self._dataset, self._tokenizer = dataset, tokenizer

    def of(self, tokens: Sequence[int], label: int | None = None) -> Mapping[int, str]:
        """Return for each token its most frequent words, or "" where it is in no document.

        Args: label: whose documents are looked into first; all alike if None.
        """
        rows = self._rows(np.array(list(dict.fromkeys(tokens)), dtype=np.int64), label)
        texts = self._dataset.documents(self._dataset.planting_set)["text"]
        found: dict[int, Counter[str]] = {token: Counter() for token in tokens}
        for row in sorted(set().union(*rows.values())):
            text = texts[row]
            [ids], [spans] = encode_with_spans(self._tokenizer, [text])
            word_T, places = words_of(text, spans)
            for place, token in enumerate(ids):
                if row in rows.get(token, ()):
                    start, end = places[word_T[place]]
                    found[token][text[start:end].casefold()] += 1
        return {token: _best(counts) for token, counts in found.items()}

    def _rows(self, tokens_C: NDArray[np.int64], label: int | None) -> dict[int, set[int]]:
        """Return for each token a few documents that hold it."""
        name = self._dataset.planting_set
        offsets, values = self._dataset.token_csr(name)
        hits = np.flatnonzero(np.isin(values, tokens_C))
        owners = np.searchsorted(offsets, hits, side="right") - 1
        first = np.zeros(len(offsets) - 1, dtype=np.bool_)
        if label is not None:
            labels = self._dataset.label_csr(name)
            first[labels.owners()[labels.values == label]] = True
        found = {}
        for token in tokens_C.tolist():
            own = np.unique(owners[values[hits] == token])
            # Stable: of equal standing the earlier documents.
            found[token] = set(own[np.argsort(~first[own], kind="stable")][:DOCUMENTS].tolist())
        return found


def _best(counts: Counter[str]) -> str:
    ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(word for word, _ in ranked[:WORDS])
