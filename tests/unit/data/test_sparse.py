"""Sparse matrices and bags of words, against SciPy and scikit-learn's reader of the same lines."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napkinxc.metrics import precision_at_k
from scipy import sparse
from sklearn.datasets import load_svmlight_file
from sklearn.preprocessing import MultiLabelBinarizer

from plant_dist.config.schema import EvaluateConfig
from plant_dist.data.files.sparse import (
    load_label_rows,
    matrix_shape,
    open_matrices,
    read_bag_of_words,
    read_matrix,
    read_pairs,
)
from plant_dist.errors import DataError
from plant_dist.metrics.evaluator import Evaluator


def dense(seed: int, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.integers(1, 50, (rows, columns)) / 8
    return np.where(random.random((rows, columns)) < 0.4, values, 0).astype(np.float32)


def lines_of(matrix: np.ndarray) -> list[str]:
    return [" ".join(f"{c}:{row[c]:g}" for c in row.nonzero()[0]) for row in matrix]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@given(seed=st.integers(0, 10**6), rows=st.integers(0, 5), columns=st.integers(1, 6))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_matrix_comes_back(tmp_path: Path, seed: int, rows: int, columns: int) -> None:
    matrix = dense(seed, rows, columns)
    path = write(tmp_path / "m.txt", f"{rows} {columns}", *lines_of(matrix))
    assert (read_matrix(path).toarray() == matrix).all()
    assert matrix_shape(path) == (rows, columns)
    packed = tmp_path / "m.npz"
    sparse.save_npz(packed, sparse.csr_array(matrix))
    assert (read_matrix(packed).toarray() == matrix).all()
    assert matrix_shape(packed) == (rows, columns)
    gold = load_label_rows(packed)
    assert [gold.row(n).tolist() for n in range(rows)] == [r.nonzero()[0].tolist() for r in matrix]


def test_a_bag_of_words_equals_scikit_learn_s_reading(tmp_path: Path) -> None:
    features = dense(1, 7, 5)
    labels = ["0,3", "", "2", "1,2,3", "", "0", "3"]
    body = [f"{named} {row}" for named, row in zip(labels, lines_of(features), strict=True)]
    found, gold = read_bag_of_words(write(tmp_path / "train.txt", "7 5 4", *body))
    stream = io.BytesIO("".join(f"{line}\n" for line in body).encode())
    expected, sets = load_svmlight_file(stream, n_features=5, multilabel=True, zero_based=True)
    assert np.allclose(found.toarray(), expected.toarray())
    binary = MultiLabelBinarizer(classes=range(4)).fit_transform(sets)
    assert (gold.toarray() == binary).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), r"m\.txt:1: found '', expected the header `rows columns`"),
        (("2",), r":1: found '2', expected the header"),
        (("1 2", "0:1 2:1"), r":2: found number 2, the largest allowed is 1"),
        (("1 2", "0:1 0:1"), r":2: a column comes twice"),
        (("1 2", "0:x"), r":2: found '0:x', expected `column:value`"),
        (("1 2", "0:inf"), r":2: found '0:inf'"),
        (("1 2", "0"), r":2: found '0', expected `column:value`"),
        (("1 2", "-1:1"), r":2: found '-1' where a number"),
        (("1 2", "١:1"), r":2: found .* where a number"),
        (("3 2", "0:1"), r"announces 3 rows, found 1"),
        (("0 2", "0:1"), r"announces 0 rows, found 1"),
    ],
)
def test_broken_matrices_are_named(tmp_path: Path, lines, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_matrix(write(tmp_path / "m.txt", *lines))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x00" * 99])
def test_broken_npz_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    for read in (read_matrix, matrix_shape, load_label_rows):
        with pytest.raises(DataError, match=r"m\.npz is no sparse matrix of SciPy"):
            read(tmp_path / "m.npz")


def test_pickled_arrays_are_not_run(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "m.npz", format=objects, shape=objects)
    with pytest.raises(DataError, match="is no sparse matrix"):
        read_matrix(tmp_path / "m.npz")


def test_pairs_become_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "f.txt", "3 1", "0 4", "3 0", "0 4", "")
    offsets, values = read_pairs(path, 5, 6)
    assert offsets.tolist() == [0, 1, 1, 1, 3, 3]
    assert values.tolist() == [4, 0, 1]
    assert read_pairs(write(tmp_path / "e.txt"), 2, 2).offsets.tolist() == [0, 0, 0]
    for line, message in (("5 0", "number 5, .*is 4"), ("0 6", "number 6"), ("0", "expected `doc")):
        with pytest.raises(DataError, match=message):
            read_pairs(write(tmp_path / "g.txt", line), 5, 6)


@pytest.mark.parametrize("layout", ["bags", "matrices"])
def test_features_serve_metrics_and_linear_rankings(tmp_path: Path, layout: str) -> None:
    random = np.random.default_rng(4)
    labels = {"train": random.random((30, 6)) < 0.4, "test": random.random((9, 6)) < 0.4}
    features = {name: dense(n, len(gold), 8) for n, (name, gold) in enumerate(labels.items())}
    for split, gold in labels.items():
        stem = split if layout == "bags" else {"train": "trn", "test": "tst"}[split]
        rows = lines_of(features[split])
        if layout == "bags":
            named = [",".join(map(str, one.nonzero()[0])) for one in gold]
            body = [f"{left} {right}" for left, right in zip(named, rows, strict=True)]
            write(tmp_path / f"{stem}.txt", f"{len(gold)} 8 6", *body)
        else:
            write(tmp_path / f"{stem}_X_Xf.txt", f"{len(gold)} 8", *rows)
            write(tmp_path / f"{stem}_X_Y.txt", f"{len(gold)} 6", *lines_of(gold * 1.0))
    write(tmp_path / "filter_labels_test.txt", "0 1", "0 2", "8 5")
    found = open_matrices(tmp_path)
    train, test = found["train"], found["test"]
    assert train.features is not None
    assert test.features is not None
    assert test.ignored is not None
    assert train.ignored is None
    # Scores of the documents that resemble a test document, as a shortlist would use them.
    scores = (test.features @ train.features.T @ train.labels).toarray()
    evaluator = Evaluator(
        np.asarray(train.labels.sum(0), np.int64), 30, EvaluateConfig(ks=(1, 3)), 9
    )
    gold = test.labels
    evaluator.add(scores, gold.indptr, gold.indices, ignored=test.ignored)
    # The oracle ranks by hand: the pairs of the filter go last.
    scores[[0, 0, 8], [1, 2, 5]] = -np.inf
    ranked = [np.lexsort((np.arange(6), -row)).tolist() for row in scores]
    answers = [row.nonzero()[0].tolist() for row in labels["test"]]
    kept = [n for n, one in enumerate(answers) if one]
    expected = precision_at_k([answers[n] for n in kept], [ranked[n] for n in kept], k=3)
    measured = evaluator.ranking()
    assert [measured["p@1"], measured["p@3"]] == pytest.approx([expected[0], expected[2]])


def test_an_empty_folder_is_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no trn_X_Y\.txt"):
        open_matrices(tmp_path)
