"""Faithfulness: whether a model itself rests on the tokens that an explanation names.

Comprehensiveness and sufficiency of ERASER (DeYoung et al., ACL 2020), averaged over shares of the
tokens: what becomes of a probability when the best tokens are taken away, and when only they are
left. Must not know models: it is given the probabilities.

T tokens of a document, n shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # ERASER's bins


def best_share(scores_T: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    """Return which ⌈share · T⌉ tokens score highest, (T,) bool; of equals the earlier."""
    # Rounded first: 0.1 · 30 is above 3 in binary, and 3 tokens are meant.
    count = ceil(round(share * len(scores_T), 9))
    best = np.zeros(len(scores_T), dtype=np.bool_)
    best[np.argsort(-scores_T, kind="stable")[:count]] = True
    return best


def comprehensiveness(full: float, without_n: Sequence[float]) -> float:
    """Return the mean fall of the probability when the best tokens are taken away.

    Args:
        full: probability given the whole text.
        without_n: probabilities without the best tokens, one a share.
    Returns: high where the model needs those tokens.
    """
    return float(full - np.mean(without_n))


def sufficiency(full: float, only_n: Sequence[float]) -> float:
    """Return the mean fall of the probability when only the best tokens are left.

    Args: as `comprehensiveness`; `only_n` are the probabilities given the best tokens alone.
    Returns: low, or below 0, where those tokens are enough.
    """
    return float(full - np.mean(only_n))
