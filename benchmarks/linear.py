"""Linear systems on TF-IDF features, which every ablation is measured against.

Each takes training texts and labels and lists the best labels of other texts, as the baselines of
the package do; the libraries that train them are the extra `dev`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napkinxc.models import PLT
from scipy.sparse import csr_array, csr_matrix, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from plant_dist.baselines.shortlist import Shortlist, best_of_rows

Lister = Callable[[csr_matrix], Shortlist]


class LinearSystem:
    """TF-IDF of words and word pairs, and a linear model on top.

    Args:
        name: for the table.
        train: takes (N, F) features, (N, L) labels and the number of labels to list.
    """

    def __init__(
        self, name: str, train: Callable[[csr_matrix, csr_array, int], Lister], keep: int
    ) -> None:
        self.name, self._train, self._keep = name, train, keep

    def fit(self, texts: Sequence[str], labels: csr_array, label_texts: Sequence[str]) -> None:
        """Take the training split; label texts are not used."""
        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(texts) > 1000 else 1,
            max_features=500_000, dtype=np.float32,
        )  # fmt: skip
        features = csr_matrix(self._vectorizer.fit_transform(texts))
        self._list = self._train(features, labels, min(self._keep, labels.shape[1]))

    def shortlist(self, texts: Sequence[str]) -> Shortlist:
        """List the best labels of texts."""
        return self._list(csr_matrix(self._vectorizer.transform(texts)))

    def describe(self) -> str:
        """One line for a report."""
        return f"{self.name}: a linear model of TF-IDF features of words and word pairs"


def one_vs_rest(features: csr_matrix, labels: csr_array, keep: int) -> Lister:
    """LinearSVC for each label that has both a document with it and one without."""
    counts = np.asarray(labels.sum(axis=0)).ravel()
    learnt = np.flatnonzero((counts > 0) & (counts < labels.shape[0]))
    model = OneVsRestClassifier(LinearSVC(C=1.0), n_jobs=1)
    model.fit(features, csr_matrix(labels)[:, learnt])

    def list_labels(rows: csr_matrix) -> Shortlist:
        blocks = []
        for start in range(0, rows.shape[0], 256):
            margins = np.asarray(model.decision_function(rows[start : start + 256]))
            # As a sparse matrix, in which a margin of exactly 0 must stay an entry.
            rank = np.argsort(-margins, axis=1)[:, :keep]
            data = np.take_along_axis(margins, rank, 1)
            offsets = np.arange(len(rank) + 1) * rank.shape[1]
            shape = (len(rank), labels.shape[1])
            blocks.append(csr_array((data.ravel(), learnt[rank].ravel(), offsets), shape=shape))
        return best_of_rows(csr_array(vstack(blocks)), keep)

    return list_labels


def probabilistic_label_tree(
    features: csr_matrix, labels: csr_array, keep: int, *, seed: int
) -> Lister:
    """NapkinXC's PLT with its default tree."""
    folder = tempfile.TemporaryDirectory()
    # From 1 on: its generator (std::default_random_engine) takes 0 for 1.
    model = PLT(folder.name, seed=seed + 1, threads=2, verbose=False)
    model.fit(features, csr_matrix(labels))

    def list_labels(rows: csr_matrix, folder: Any = folder) -> Shortlist:  # the folder lives on
        found = model.predict_proba(rows, top_k=min(keep, 100))
        return _listed(found, labels.shape[1], keep)

    return list_labels


def parabel(features: csr_matrix, labels: csr_array, keep: int) -> Lister:
    """Omikuji with its default (Parabel-like) trees; it takes no seed and is no two times alike."""
    # Of the extra `bench`, which the other systems do without.
    import omikuji

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.txt")
        _write_xmc(path, features, csr_matrix(labels))
        model = omikuji.Model.train_on_data(str(path), n_threads=2)

    def list_labels(rows: csr_matrix) -> Shortlist:
        found = [
            model.predict(
                list(zip(row.indices.tolist(), row.data.tolist(), strict=True)),
                beam_size=50, top_k=min(keep, 100),
            )
            for row in rows
        ]  # fmt: skip
        return _listed(found, labels.shape[1], keep)

    return list_labels


def _write_xmc(path: Path, features: csr_matrix, labels: csr_matrix) -> None:
    """Write the text format of the extreme classification repository."""
    # Omikuji refuses a whole file for a line without features, from which nothing is to be learnt.
    full = np.flatnonzero((np.diff(features.indptr) > 0) & (np.diff(labels.indptr) > 0))
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f"{full.size} {features.shape[1]} {labels.shape[1]}\n")
        for row in full:
            own = slice(*features.indptr[row : row + 2])
            gold = labels.indices[slice(*labels.indptr[row : row + 2])]
            found = zip(features.indices[own], features.data[own], strict=True)
            pairs = " ".join(f"{index}:{value:.6g}" for index, value in found)
            stream.write(f"{','.join(map(str, gold))} {pairs}\n")


def _listed(found: Sequence[Sequence[tuple[int, float]]], labels: int, keep: int) -> Shortlist:
    lengths = [len(row) for row in found]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = [pair for row in found for pair in row]
    ids = np.array([pair[0] for pair in flat], np.int64)
    scores = np.array([pair[1] for pair in flat], np.float64)
    return best_of_rows(csr_array((scores, ids, offsets), shape=(len(found), labels)), keep)
