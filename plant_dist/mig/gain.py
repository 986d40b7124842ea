"""Mutual-information gain between a token's and a label's presence: pure elementwise maths.

Holds formulas on document counts, in float64 and nats; must not know where the counts come from,
how they are stored or who ranks by them. The counts of a pair are n_tl (documents with both), n_t,
n_l and N; with them p11 = n_tl/N, p10 = (n_t-n_tl)/N, p01 = (n_l-n_tl)/N, p00 = 1-p11-p10-p01.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def _cell_information(cell: Counts, row: Counts, column: Counts, documents: int) -> Floats:
    """p·ln(p / (row·column)) of one cell of the joint, exactly 0 where the cell is empty."""
    shape = np.broadcast_shapes(cell.shape, row.shape, column.shape)
    # An empty cell may lie in an empty row or column: the ratio is then 0/0 and is never formed.
    ratio = np.ones(shape)
    expected = row.astype(np.float64) * column
    np.divide(cell * float(documents), expected, out=ratio, where=np.broadcast_to(cell > 0, shape))
    return np.asarray(cell / documents * np.log(ratio), dtype=np.float64)


def mutual_information(
    joint: Counts, token_documents: Counts, label_documents: Counts, documents: int
) -> Floats:
    """Information I(t,l) that a token's presence gives about a label's.

    I = Σ over the four cells of p·ln(p/(row·column)), with 0·ln 0 = 0 (Cover and Thomas,
    *Elements of Information Theory*, eq. 2.28; PLANT, arXiv 2410.23066, §3).

    Args:
        joint, token_documents, label_documents: n_tl, n_t, n_l; int64, shapes that broadcast.
        documents: N, at least 1.

    Returns:
        Broadcast shape, float64, nats, never negative.
    """
    without_token = documents - token_documents
    without_label = documents - label_documents
    only_token = token_documents - joint
    only_label = label_documents - joint
    neither = without_token - only_label
    total = _cell_information(joint, token_documents, label_documents, documents)
    total += _cell_information(only_token, token_documents, without_label, documents)
    total += _cell_information(only_label, without_token, label_documents, documents)
    total += _cell_information(neither, without_token, without_label, documents)
    # Rounding may leave an independent pair a few 1e-17 below zero.
    return np.maximum(total, 0.0)


def entropy(counts: Counts, documents: int) -> Floats:
    """Entropy H of presence: -p·ln p - (1-p)·ln(1-p) with p = counts/N, in nats.

    Args:
        counts: documents that hold the token (or label), int64, 0 to N.
        documents: N, at least 1.
    """
    # H(x) = I(x, x): the joint of a variable with itself has two cells, both on the diagonal.
    return mutual_information(counts, counts, counts, documents)


def normalised_gain(information: Floats, token_entropy: Floats, label_entropy: Floats) -> Floats:
    """Normalised gain J = I / (H_t + H_l - I), the information shared over all there is.

    1 where token and label always come together, 0 where they are independent; 1 - J is a metric
    (Kraskov et al., *Hierarchical clustering using mutual information*, 2005, eq. 8).

    Args:
        information, token_entropy, label_entropy: nats, float64, shapes that broadcast.

    Returns:
        float64 in [0, 1]; 0 where both are constant (no information to share).
    """
    union = token_entropy + label_entropy - information
    gain = np.zeros(np.broadcast_shapes(information.shape, union.shape))
    np.divide(information, union, out=gain, where=union > 0)
    return np.minimum(gain, 1.0)


def association(
    joint: Counts, token_documents: Counts, label_documents: Counts, documents: int
) -> Counts:
    """Sign of n_tl·N - n_t·n_l: +1 together more than by chance, -1 less, 0 independent.

    Integer arithmetic, hence exact for N below 3e9.
    """
    signs: Counts = np.sign(joint * np.int64(documents) - token_documents * label_documents)
    return signs
