"""Gain formulas against hand-worked cells, scikit-learn and brute force over tiny corpora."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from plant_dist.mig import gain


def arrays(*counts: int) -> list[np.ndarray]:
    return [np.array([count], dtype=np.int64) for count in counts]


def test_information_of_a_hand_worked_pair() -> None:
    # N=4: both in 1 document, token alone in 1, label alone in 0, neither in 2.
    joint, token, label = arrays(1, 2, 1)
    expected = 0.25 * math.log(0.25 / (0.5 * 0.25)) + 0.25 * math.log(0.25 / (0.5 * 0.75))
    expected += 0.5 * math.log(0.5 / (0.5 * 0.75))
    assert gain.mutual_information(joint, token, label, 4)[0] == pytest.approx(expected, abs=1e-15)


def test_token_and_label_that_always_come_together_share_everything() -> None:
    joint, token, label = arrays(3, 3, 3)
    information = gain.mutual_information(joint, token, label, 10)
    entropy = gain.entropy(token, 10)
    assert entropy[0] == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7), abs=1e-15)
    assert information[0] == pytest.approx(entropy[0], abs=1e-15)
    assert gain.normalised_gain(information, entropy, entropy)[0] == 1.0


def test_constant_variables_share_nothing_and_divide_nothing() -> None:
    for counts in [(0, 0, 0), (5, 5, 5), (0, 0, 5), (2, 2, 5), (0, 0, 3)]:
        joint, token, label = arrays(*counts)
        with np.errstate(all="raise"):
            information = gain.mutual_information(joint, token, label, 5)
            parts = (information, gain.entropy(token, 5), gain.entropy(label, 5))
            assert information[0] == 0.0
            assert gain.normalised_gain(*parts)[0] == 0.0


def test_association_is_exact_where_floats_would_round() -> None:
    documents = 3_000_000_000
    joint, token, label = arrays(1_000_000_001, 1_500_000_001, 2_000_000_001)
    exact = 1_000_000_001 * documents - 1_500_000_001 * 2_000_000_001
    assert gain.association(joint, token, label, documents)[0] == np.sign(exact)
    assert gain.association(*arrays(2, 4, 5), 10)[0] == 0
    assert gain.association(*arrays(1, 4, 5), 10)[0] == -1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_information_equals_scikit_learn(documents: list[tuple[bool, bool]]) -> None:
    token, label = np.array(documents).T
    counts = arrays(int((token & label).sum()), int(token.sum()), int(label.sum()))
    information = gain.mutual_information(*counts, len(documents))
    assert information[0] == pytest.approx(max(mutual_info_score(token, label), 0), abs=1e-12)
    assert information[0] >= 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_normalised_gain_follows_from_scikit_learn(documents: list[tuple[bool, bool]]) -> None:
    token, label = np.array(documents).T
    joint, n_t, n_l = arrays(int((token & label).sum()), int(token.sum()), int(label.sum()))
    entropies = gain.entropy(n_t, len(documents)), gain.entropy(n_l, len(documents))
    information = gain.mutual_information(joint, n_t, n_l, len(documents))
    ours = gain.normalised_gain(information, *entropies)[0]
    # scikit-learn's arithmetic normalisation is NMI = 2I/(H_t+H_l), hence J = NMI/(2-NMI).
    if (entropies[0] + entropies[1])[0] > 0:
        nmi = normalized_mutual_info_score(token, label)
        assert ours == pytest.approx(nmi / (2 - nmi), abs=1e-9)
    assert 0 <= ours <= 1
