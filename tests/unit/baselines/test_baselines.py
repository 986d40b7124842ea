"""Baselines against scikit-learn, brute force and votes counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier

from plant_dist.baselines.nearest import NearestTexts, Voting
from plant_dist.baselines.popularity import Popularity
from plant_dist.baselines.shortlist import Shortlist, best_of_rows, label_matrix
from plant_dist.baselines.vectors import CharacterNgrams, EncoderVectors, nearest_rows
from plant_dist.errors import DataError

TRAIN = [
    "typhoid fever", "paratyphoid fever", "cholera", "type 2 diabetes mellitus",
    "type 1 diabetes mellitus", "acute myocardial infarction",
]  # fmt: skip
# Labels: 0 infection, 1 typhoid, 2 cholera, 3 diabetes, 4 heart, 5 rabies (never in training).
LABELS = label_matrix([0, 2, 4, 6, 7, 8, 9], [0, 1, 0, 1, 0, 2, 3, 3, 4], 6)
NAMES = ["infection", "typhoid", "cholera", "diabetes", "heart", "rabies"]


def angle(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


DIRECTIONS = {
    "a": angle(0), "b": angle(60), "c": angle(90), "query": [3 * x for x in angle(0)],
    "named l1": angle(45), "opposite": angle(215), "nothing": [0.0, 0.0],
}  # fmt: skip


def embed(texts: Sequence[str]) -> np.ndarray:
    return np.array([DIRECTIONS[text] for text in texts])


def compass(voting: Voting, names: Sequence[str] = ("", "named l1", "")) -> NearestTexts:
    """Training texts at 0, 60 and 90 degrees with labels {0}, {1, 2} and {2}."""
    baseline = NearestTexts(EncoderVectors(embed), voting=voting)
    baseline.fit(["a", "b", "c"], label_matrix([0, 1, 3, 4], [0, 1, 2, 2], 3), names)
    return baseline


def as_dicts(shortlist: Shortlist) -> list[dict[int, float]]:
    pairs = zip(shortlist.label_ids.tolist(), shortlist.scores.tolist(), strict=True)
    return [
        {label: score for label, score in zip(ids, scores, strict=True) if label >= 0}
        for ids, scores in pairs
    ]


def test_popularity_ranks_by_training_share_and_ties_by_id() -> None:
    popularity = Popularity(keep=4)
    popularity.fit(TRAIN, LABELS, NAMES)
    shortlist = popularity.shortlist(["anything", "else"])
    assert shortlist.label_ids.tolist() == [[0, 1, 3, 2]] * 2
    assert shortlist.scores[1].tolist() == pytest.approx([3 / 6, 2 / 6, 2 / 6, 1 / 6])


def test_votes_by_cosine_worked_by_hand() -> None:
    """Cosines to the query are 1, 1/2 and 0; the votes 2/3, 1/3 and 0."""
    (votes,) = as_dicts(compass(Voting(3, None, 0.0)).shortlist(["query"]))
    assert votes == pytest.approx({0: 2 / 3, 1: 1 / 3, 2: 1 / 3})


def test_votes_by_softmax_worked_by_hand() -> None:
    (votes,) = as_dicts(compass(Voting(2, 0.5, 0.0)).shortlist(["query"]))
    share = 1 / (1 + np.exp(-1.0))
    assert votes == pytest.approx({0: share, 1: 1 - share, 2: 1 - share})


def test_label_text_adds_its_cosine_and_unnamed_labels_none() -> None:
    (votes,) = as_dicts(compass(Voting(1, 0.5, 0.4)).shortlist(["query"]))
    assert votes == pytest.approx({0: 0.6, 1: 0.4 * np.cos(np.pi / 4)})


def test_without_label_texts_only_documents_vote() -> None:
    (votes,) = as_dicts(compass(Voting(1, 0.5, 0.4), names=["", " ", ""]).shortlist(["query"]))
    assert votes == pytest.approx({0: 0.6})


@pytest.mark.parametrize("label_text", [0.0, 0.5])
def test_a_text_near_nothing_lists_nothing(label_text: float) -> None:
    baseline = compass(Voting(3, None, label_text))
    shortlist = baseline.shortlist(["nothing", "opposite", "query"])
    first, second, third = as_dicts(shortlist)
    assert (first, second) == ({}, {})
    assert len(third) == 3
    assert np.isneginf(shortlist.scores[0]).all()


def test_blocks_of_texts_do_not_change_the_votes() -> None:
    texts = ["query", "b", "opposite", "c", "a"]
    whole, small = compass(Voting(2, None, 0.2)), compass(Voting(2, None, 0.2))
    small._block = 2
    assert as_dicts(small.shortlist(texts)) == as_dicts(whole.shortlist(texts))
    assert small.shortlist([]).label_ids.shape == (0, 1)


def test_votes_equal_scikit_learns_neighbours() -> None:
    """One label a document and equal votes of the 5 nearest: the classifier's probabilities."""
    generator = np.random.default_rng(0)
    rows, classes = generator.normal(size=(80, 6)), generator.integers(0, 4, 80)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    baseline = NearestTexts(
        EncoderVectors(lambda texts: rows[[int(text) for text in texts]]),
        voting=Voting(5, 1e9, 0.0),
    )
    train = [str(row) for row in range(60)]
    baseline.fit(train, label_matrix(np.arange(61), classes[:60], 4), [""] * 4)
    ours = as_dicts(baseline.shortlist([str(row) for row in range(60, 80)]))
    theirs = KNeighborsClassifier(5).fit(unit[:60], classes[:60]).predict_proba(unit[60:])
    for votes, wanted in zip(ours, theirs, strict=True):
        assert votes == pytest.approx({int(c): wanted[c] for c in wanted.nonzero()[0]})


def test_character_ngrams_find_a_misspelt_disease() -> None:
    baseline = NearestTexts(CharacterNgrams(), voting=Voting(1, None, 0.0))
    baseline.fit(TRAIN, LABELS, NAMES)
    first, second = as_dicts(baseline.shortlist(["tyfoid feverish", "diabetis type 2"]))
    assert set(first) == {0, 1}
    assert set(second) == {3}


def test_a_label_without_training_documents_is_found_by_its_text() -> None:
    baseline = NearestTexts(CharacterNgrams(), voting=Voting(3, None, 0.5))
    baseline.fit(TRAIN, LABELS, NAMES)
    assert baseline.shortlist(["rabies"]).label_ids[0, 0] == 5


def test_character_ngrams_equal_scikit_learns_cosines() -> None:
    vectors = CharacterNgrams()
    vectors.fit(TRAIN)
    queries = ["typhoid cholera", "heart infarction"]
    indices, products = nearest_rows(vectors.transform(queries), vectors.transform(TRAIN), 6)
    reference = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    known = reference.fit_transform(TRAIN)
    wanted = cosine_similarity(reference.transform(queries), known)
    np.testing.assert_allclose(products, -np.sort(-wanted, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(wanted, indices, 1), products, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 12), st.booleans())
@settings(max_examples=40, deadline=None)
def test_nearest_rows_equal_a_full_sort(seed: int, count: int, sparse: bool) -> None:
    generator = np.random.default_rng(seed)
    queries, rows = (generator.normal(size=(n, 3)).astype(np.float32) for n in (7, 10))
    given_rows = [csr_array(part) if sparse else part for part in (queries, rows)]
    indices, products = nearest_rows(given_rows[0], given_rows[1], count)
    wanted = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(indices, wanted)
    taken = np.take_along_axis(queries @ rows.T, wanted, axis=1)
    np.testing.assert_allclose(products, taken, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_best_of_rows_equals_a_plain_sort(seed: int, keep: int) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.integers(0, 4, (6, 5)).astype(np.float32)
    shortlist = best_of_rows(csr_array(dense), keep)
    for row, ids, scores in zip(dense, shortlist.label_ids, shortlist.scores, strict=True):
        wanted = sorted(np.flatnonzero(row), key=lambda label: (-row[label], label))[:keep]
        assert ids[ids >= 0].tolist() == wanted
        assert scores[ids >= 0].tolist() == row[wanted].tolist()


def test_tuning_takes_the_voting_of_highest_quality() -> None:
    baseline = compass(Voting(1, None, 0.0))

    def mean_score_of_label_2(shortlist: Shortlist) -> float:
        assert len(shortlist.label_ids) == 2
        return float(np.mean([votes.get(2, 0.0) for votes in as_dicts(shortlist)]))

    votings = [Voting(1, None, 0.0), Voting(3, None, 0.0), Voting(2, None, 0.0)]
    chosen = baseline.tune(["query", "a"], mean_score_of_label_2, votings)
    # One neighbour gives label 2 nothing, two and three give it 1/3: the first of equals.
    assert as_dicts(chosen) == as_dicts(baseline.shortlist(["query", "a"]))
    assert mean_score_of_label_2(chosen) == pytest.approx(1 / 3)
    assert baseline.voting == votings[1]
    assert "chosen on validation" in baseline.describe()
    assert baseline.describe().startswith("3 nearest")


def test_an_empty_training_split_is_refused() -> None:
    with pytest.raises(DataError, match="no training texts"):
        NearestTexts(CharacterNgrams()).fit([], label_matrix([0], [], 2), ["x", "y"])
