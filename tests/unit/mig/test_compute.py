"""The gain table against a dense brute force, over hand-made, random and multi-process corpora."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from plant_dist.config.schema import MigConfig
from plant_dist.errors import ArtifactError, DataError
from plant_dist.mig import select
from plant_dist.mig.compute import compute_gains
from plant_dist.mig.counts import Cooccurrence, Csr, document_chunks, joint_counts, presence
from plant_dist.mig.lists import GainTable

Corpus = list[tuple[list[int], list[int]]]
VOCABULARY, LABELS = 12, 6

documents_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, VOCABULARY - 1), max_size=10),
        st.lists(st.integers(0, LABELS - 1), max_size=4),
    ),
    min_size=1,
    max_size=20,
).filter(lambda corpus: any(labels for _, labels in corpus))


def csr(rows: list[list[int]]) -> Csr:
    offsets = np.cumsum([0, *map(len, rows)])
    return offsets, np.array([each for row in rows for each in row], dtype=np.int32)


def both_csr(corpus: Corpus) -> tuple[Csr, Csr]:
    return csr([tokens for tokens, _ in corpus]), csr([labels for _, labels in corpus])


def brute_force(corpus: Corpus, token: int, label: int) -> tuple[float, float, float]:
    """I, J and p11 - p_t·p_l of one pair, straight from the definition, document by document."""
    n, cells = len(corpus), {}
    for tokens, labels in corpus:
        cell = (token in tokens, label in labels)
        cells[cell] = cells.get(cell, 0) + 1 / n
    row = {side: sum(p for (t, _), p in cells.items() if t == side) for side in (True, False)}
    column = {
        side: sum(p for (_, lab), p in cells.items() if lab == side) for side in (True, False)
    }
    information = sum(p * math.log(p / (row[t] * column[lab])) for (t, lab), p in cells.items())
    joint_entropy = -sum(p * math.log(p) for p in cells.values())
    together = cells.get((True, True), 0.0) - row[True] * column[True]
    return information, information / joint_entropy if joint_entropy > 1e-15 else 0.0, together


def brute_table(corpus: Corpus, label: int, association: str) -> dict[int, tuple[float, float]]:
    """(J, I) of every pair that `association` admits."""
    found = {}
    for token in range(VOCABULARY):
        information, normalised, together = brute_force(corpus, token, label)
        if information > 1e-13 and (association == "any" or together > 1e-13):
            found[token] = (normalised, information)
    return found


def assert_equals_brute_force(table: GainTable, corpus: Corpus, config: MigConfig) -> None:
    for label in range(LABELS):
        expected = brute_table(corpus, label, config.association)
        column = 0 if config.score == "normalised" else 1
        scores = sorted((scores[column] for scores in expected.values()), reverse=True)
        tokens, gains = table.label(label)
        informations = table.information[table.offsets[label] : table.offsets[label + 1]]
        assert len(tokens) == len(set(tokens.tolist())) == min(len(expected), config.top_tokens)
        for rank, (token, j, i) in enumerate(zip(tokens, gains, informations, strict=True)):
            assert expected[int(token)] == pytest.approx((j, i), abs=1e-7)
            # The r-th token has the r-th best score, whichever token a tie puts there.
            assert expected[int(token)][column] == pytest.approx(scores[rank], abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    documents_strategy,
    st.sampled_from(["positive", "any"]),
    st.sampled_from(["normalised", "information"]),
    st.integers(1, VOCABULARY),
    st.integers(1, LABELS),
    st.integers(1, 30),
)
def test_table_equals_brute_force(
    corpus: Corpus, association: str, score: str, top: int, block: int, chunk: int
) -> None:
    config = MigConfig(
        association=association, score=score, top_tokens=top, block_labels=block, workers=1
    )
    arrays = both_csr(corpus)
    table = compute_gains(*arrays, VOCABULARY, LABELS, config, shown=False, tokens_per_chunk=chunk)
    assert_equals_brute_force(table, corpus, config)
    assert table.documents == len(corpus)


@settings(deadline=None, max_examples=40)
@given(documents_strategy)
def test_float64_gains_agree_with_brute_force_to_1e_12(corpus: Corpus) -> None:
    tokens, labels = both_csr(corpus)
    counts = Cooccurrence.count(
        presence(tokens, VOCABULARY, "token"), presence(labels, LABELS, "label")
    )
    eligible = counts.token_documents >= 1
    for config in (MigConfig(association="any", top_tokens=VOCABULARY),):
        together = select._joint_pairs(counts, eligible, positive=False)
        apart = select._absent_pairs(counts, eligible, config)
        for pairs in (together, apart):
            for row, token, j, i in zip(*pairs, strict=True):
                information, normalised, _ = brute_force(corpus, int(token), int(row))
                assert i == pytest.approx(information, abs=1e-12)
                assert j == pytest.approx(normalised, abs=1e-12)


def random_corpus(documents: int, seed: int) -> Corpus:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.integers(0, VOCABULARY, generator.integers(1, 9)).tolist(),
            generator.integers(0, LABELS, generator.integers(0, 4)).tolist(),
        )
        for _ in range(documents)
    ]


def test_stored_information_equals_scikit_learn() -> None:
    corpus = random_corpus(200, seed=3)
    config = MigConfig(association="any", top_tokens=VOCABULARY)
    table = compute_gains(*both_csr(corpus), VOCABULARY, LABELS, config, shown=False)
    assert len(table.tokens) == VOCABULARY * LABELS
    for label, token, information in zip(
        table.labels_of_entries(), table.tokens, table.information, strict=True
    ):
        token_there = [token in tokens for tokens, _ in corpus]
        label_there = [label in labels for _, labels in corpus]
        assert information == pytest.approx(mutual_info_score(token_there, label_there), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(documents_strategy, st.integers(0, 20))
def test_merged_counts_equal_counts_of_the_whole(corpus: Corpus, cut: int) -> None:
    def count(part: Corpus) -> Cooccurrence:
        tokens, labels = both_csr(part)
        return Cooccurrence.count(
            presence(tokens, VOCABULARY, "token"), presence(labels, LABELS, "label")
        )

    whole, merged = count(corpus), count(corpus[:cut]).merge(count(corpus[cut:]))
    assert merged.documents == whole.documents == len(corpus)
    np.testing.assert_array_equal(merged.token_documents, whole.token_documents)
    np.testing.assert_array_equal(merged.label_documents, whole.label_documents)
    np.testing.assert_array_equal(merged.joint.toarray(), whole.joint.toarray())
    dense = np.zeros((LABELS, VOCABULARY), dtype=int)
    for tokens, labels in corpus:
        for label in set(labels):
            dense[label, list(set(tokens))] += 1
    np.testing.assert_array_equal(whole.joint.toarray(), dense)


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    tokens, labels = both_csr(random_corpus(300, seed=1))
    tables = [
        compute_gains(
            tokens,
            labels,
            VOCABULARY,
            LABELS,
            MigConfig(workers=workers, block_labels=4),
            scratch=tmp_path,
            shown=False,
            tokens_per_chunk=400,
        )
        for workers in (1, 2)
    ]
    for name in ("offsets", "tokens", "gains", "information", "token_documents", "documents"):
        np.testing.assert_array_equal(getattr(tables[0], name), getattr(tables[1], name))
    assert not list(tmp_path.iterdir()), "scratch files are removed"


def test_slices_of_a_block_give_the_same_table(monkeypatch) -> None:
    tokens, labels = both_csr(random_corpus(100, seed=5))
    config = MigConfig(top_tokens=4)
    whole = compute_gains(tokens, labels, VOCABULARY, LABELS, config, shown=False)
    monkeypatch.setattr(select, "PAIRS_PER_SLICE", 13)
    sliced = compute_gains(tokens, labels, VOCABULARY, LABELS, config, shown=False)
    np.testing.assert_array_equal(whole.tokens, sliced.tokens)
    np.testing.assert_array_equal(whole.gains, sliced.gains)


def test_ties_fall_to_the_lower_token_id() -> None:
    corpus: Corpus = [([7, 3, 5], [0]), ([1], [1]), ([2], [1])]
    table = compute_gains(*both_csr(corpus), 8, 2, MigConfig(top_tokens=2), shown=False)
    tokens, gains = table.label(0)
    assert tokens.tolist() == [3, 5]
    assert gains.tolist() == [1.0, 1.0]


def test_excluded_tokens_and_rare_tokens_are_left_out() -> None:
    corpus: Corpus = [([0, 1, 2], [0]), ([0, 1], [0]), ([3], [1])]
    arrays = both_csr(corpus)
    plain = compute_gains(*arrays, 4, 2, MigConfig(), shown=False)
    assert sorted(plain.label(0)[0].tolist()) == [0, 1, 2]
    without = compute_gains(*arrays, 4, 2, MigConfig(), excluded=[1], shown=False)
    assert sorted(without.label(0)[0].tolist()) == [0, 2]
    assert without.token_documents.tolist() == [2, 0, 1, 1]
    frequent = compute_gains(*arrays, 4, 2, MigConfig(min_token_documents=2), shown=False)
    assert sorted(frequent.label(0)[0].tolist()) == [0, 1]
    assert len(frequent.label(1)[0]) == 0


def test_unsigned_association_keeps_a_token_whose_absence_speaks() -> None:
    corpus: Corpus = [([0], [0]), ([0], [0]), ([1], [1]), ([1], [1])]
    signed = compute_gains(*both_csr(corpus), 2, 2, MigConfig(), shown=False)
    unsigned = compute_gains(*both_csr(corpus), 2, 2, MigConfig(association="any"), shown=False)
    assert signed.label(0)[0].tolist() == [0]
    assert unsigned.label(0)[0].tolist() == [0, 1]
    assert unsigned.label(0)[1].tolist() == [1.0, 1.0]


def test_blocks_of_joint_counts_rebuild_the_whole() -> None:
    tokens, labels = both_csr(random_corpus(50, seed=2))
    tokens_NV, labels_NL = presence(tokens, VOCABULARY, "t"), presence(labels, LABELS, "l")
    by_label = labels_NL.T.tocsr()
    parts = [
        joint_counts(by_label[start : start + 2], [tokens_NV[:20], tokens_NV[20:]]).toarray()
        for start in (0, 2, 4)
    ]
    np.testing.assert_array_equal(np.vstack(parts), labels_NL.toarray().T @ tokens_NV.toarray())


def test_chunks_cover_the_corpus_and_keep_to_the_budget() -> None:
    tokens, labels = both_csr(random_corpus(60, seed=4))
    chunks = list(document_chunks(tokens, labels, tokens_per_chunk=16))
    assert len(chunks) > 10
    np.testing.assert_array_equal(np.concatenate([t[1] for t, _ in chunks]), tokens[1])
    np.testing.assert_array_equal(np.concatenate([part[1] for _, part in chunks]), labels[1])
    assert all(len(t[1]) <= 16 for t, _ in chunks)
    long_document = document_chunks(csr([[1] * 9, [2]]), csr([[0], [0]]), tokens_per_chunk=3)
    assert [len(t[1]) for t, _ in long_document] == [9, 1]


def test_table_survives_the_disk_and_stays_there(tmp_path: Path) -> None:
    arrays = both_csr(random_corpus(40, seed=6))
    table = compute_gains(*arrays, VOCABULARY, LABELS, MigConfig(), shown=False)
    table.save(tmp_path)
    loaded = GainTable.load(tmp_path)
    assert isinstance(loaded.tokens, np.memmap)
    for label in range(LABELS):
        np.testing.assert_array_equal(loaded.label(label), table.label(label))
    assert loaded.documents == 40
    (tmp_path / "gains.npy").write_bytes(b"cut short")
    with pytest.raises(ArtifactError, match=r"gains\.npy"):
        GainTable.load(tmp_path)
    np.save(tmp_path / "gains.npy", table.gains[:-1])
    with pytest.raises(ArtifactError, match="run the stage mig again"):
        GainTable.load(tmp_path)


def test_table_without_entries_survives_the_disk(tmp_path: Path) -> None:
    config = MigConfig(min_token_documents=9)
    table = compute_gains(csr([[1], [2]]), csr([[0], [1]]), 3, 2, config, shown=False)
    table.save(tmp_path)
    assert GainTable.load(tmp_path).offsets.tolist() == [0, 0, 0]


def test_token_index_is_the_inverse() -> None:
    arrays = both_csr(random_corpus(40, seed=7))
    table = compute_gains(*arrays, VOCABULARY, LABELS, MigConfig(top_tokens=3), shown=False)
    index = table.token_index()
    turned = {
        (int(label), token, float(gain))
        for token in range(VOCABULARY)
        for label, gain in zip(
            index.labels[index.offsets[token] : index.offsets[token + 1]],
            index.gains[index.offsets[token] : index.offsets[token + 1]],
            strict=True,
        )
    }
    straight = {
        (label, int(token), float(gain))
        for label in range(LABELS)
        for token, gain in zip(*table.label(label), strict=True)
    }
    assert turned == straight
    assert len(straight) == len(table.tokens)


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        ([[12]], [[0]], "token ids from 12 to 12 but only 12"),
        ([[-1]], [[0]], "token ids from -1"),
        ([[1]], [[6]], "label ids from 6 to 6 but only 6"),
        ([[1], [2]], [[0]], "tokens of 2 documents but labels of 1"),
        ([[1]], [[]], "no training document carries a label"),
        ([], [], "no training documents"),
    ],
)
def test_bad_corpora_are_refused(
    tokens: list[list[int]], labels: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compute_gains(csr(tokens), csr(labels), VOCABULARY, LABELS, MigConfig(), shown=False)
