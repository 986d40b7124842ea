"""Attention weights to characters: the tokens or words that each label attends most.

Must not know models or labels; it is given weights and where the tokens stand.

Shapes: B documents, S segments, T tokens (of all segments, or of one), K labels; N tokens and W
words of one document.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plant_dist.data.words import Ints
from plant_dist.evidence.records import AttendedToken


def best_tokens(
    weights_BKT: Tensor, keep_BST: Tensor, spans: Sequence[Sequence[tuple[int, int]]], count: int
) -> list[list[list[AttendedToken]]]:
    """Return for each document and label its most attended tokens, falling.

    Args:
        weights_BKT: (B, K, T) attention over the tokens of all segments.
        keep_BST: (B, S, T) bool, the document's own tokens, each exactly once.
        spans: the characters of each document's tokens.
        count: tokens at most; those of weight 0 are left out.
    """
    keep_BT = keep_BST.flatten(1)
    # Special tokens that labels may attend have no characters to show.
    weights_BKT = weights_BKT.masked_fill(~keep_BT[:, None], 0.0)
    # Every token of a document is kept exactly once, so the running count is its number.
    number_BT = keep_BT.cumsum(1) - 1
    best = weights_BKT.topk(min(count, weights_BKT.shape[-1]), dim=-1)
    numbers = number_BT[:, None].expand(weights_BKT.shape).gather(-1, best.indices).tolist()
    # Weights are exactly 0 for padding and for what inattention drops: no evidence, not shown.
    weights = best.values.tolist()
    return [
        [
            [
                AttendedToken(spans[b][n][0], spans[b][n][1], round(w, 6))
                for n, w in zip(*one, strict=True)
                if w > 0
            ]
            for one in zip(numbers[b], weights[b], strict=True)
        ]
        for b in range(len(spans))
    ]


def best_words(
    weights_KN: Tensor, word_N: Ints, places_W2: Ints, count: int
) -> list[list[AttendedToken]]:
    """Return for each label the words of one document that got most, falling.

    A tokenizer's pieces are no words to a reader, so their weights are added up by word.

    Args:
        weights_KN: over the document's own N tokens; may be below 0.
        word_N, places_W2: the word of each token, and the characters of each word
            (`words.words_of`).
        count: words at most; those of weight 0 or below are left out.
    """
    weights_KW = weights_KN.new_zeros(len(weights_KN), len(places_W2))
    weights_KW.index_add_(1, torch.from_numpy(word_N).to(weights_KN.device), weights_KN)
    whole_1SW = torch.ones(1, 1, len(places_W2), dtype=torch.bool, device=weights_KN.device)
    spans = [(int(start), int(end)) for start, end in places_W2]
    return best_tokens(weights_KW[None], whole_1SW, [spans], count)[0]


def touching(tokens: Sequence[AttendedToken]) -> list[AttendedToken]:
    """Join tokens whose characters touch, such as the pieces of a word; weights add up.

    Returns: runs by falling weight, earlier ones first among equals.
    """
    runs: list[AttendedToken] = []
    for token in sorted(token for token in tokens if token.end > token.start):
        if runs and token.start <= runs[-1].end:
            last = runs.pop()
            end = max(last.end, token.end)
            runs.append(AttendedToken(last.start, end, last.weight + token.weight))
        else:
            runs.append(token)
    return sorted(runs, key=lambda run: -run.weight)
