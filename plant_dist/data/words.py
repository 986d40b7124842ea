"""Words of a text, and what scores of tokens say of them.

Tokenizers cut words into pieces, each its own way, while a person marks words: scored by word,
models of other tokenizers compare. Must not know where scores come from.

T tokens of a document, W words that hold one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
# Thai to Burmese, Khmer, kana and Han: no space stands between their words.
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
# Accents and vowel signs that are characters of their own: parts of words, and no letters to `re`.
_MARKS = "".join(
    sign
    for sign in map(chr, range(0x300, 0xFFFF))
    if unicodedata.category(sign).startswith("M") and not re.match(f"[{_UNSPACED}]", sign)
)
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}(?:{_LETTER}|[{_MARKS}])*|[^\w\s]")


def words_of(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Find the words of a text and the word of each of its tokens.

    A word is a run of letters and digits, or any other sign but space, by itself: whatever pieces
    a tokenizer makes of it. Scripts without spaces have no such words: there a character is one,
    and what a token holds of them.

    Args: spans: characters of the T tokens, in order.
    Returns: (T,) the word at each token's last character; (W, 2) the characters that a word's
        tokens hold, less space in front.
    """
    places = np.array([match.span() for match in _WORD.finditer(text)]).reshape(-1, 2)
    ends_T = np.array([end for _, end in spans], dtype=np.int64)
    # The last word that begins before: some tokenizers count the space in front as a token's own.
    word_T = np.maximum(np.searchsorted(places[:, 0], ends_T, side="left") - 1, 0)
    kept, number_T = np.unique(word_T, return_inverse=True)
    starts_T = np.array([_first_letter(text, *span) for span in spans], dtype=np.int64)
    found = np.stack([np.full(len(kept), len(text)), np.zeros(len(kept), np.int64)], axis=1)
    np.minimum.at(found[:, 0], number_T, starts_T)
    np.maximum.at(found[:, 1], number_T, ends_T)
    return number_T.astype(np.int64), found


def _first_letter(text: str, start: int, end: int) -> int:
    """Return the place of a token's first character that is no space; `start` if all are."""
    return next((place for place in range(start, end) if not text[place].isspace()), start)


def by_word(scores_T: NDArray[np.floating], word_T: Ints) -> NDArray[np.float64]:
    """Return the scores of words, (W,): the sums of their tokens'."""
    return np.asarray(np.bincount(word_T, weights=scores_T), dtype=np.float64)


def touched(spans_n2: Ints, start: int, end: int) -> NDArray[np.bool_]:
    """Return which of n spans share a character with those from `start` to before `end`, (n,)."""
    return np.asarray((spans_n2[:, 0] < end) & (spans_n2[:, 1] > start))
