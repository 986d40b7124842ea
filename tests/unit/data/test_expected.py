"""Counts of the literature beside those found, worked by hand on six documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from plant_dist.config import load_config
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.expected import (
    NAMES,
    Found,
    check_expected,
    compare_counts,
    count_cells,
    describe_count,
)
from plant_dist.errors import ConfigError

LABELS = {"train": [[0], [0, 1], [1, 2]], "validation": [[0]], "test": [[2], []]}
TOKENS = {"train": [10, 20, 31], "validation": [4], "test": [7, 8]}
TEXTS = {"train": ["a b", " c\td \n e ", ""], "validation": ["é é"], "test": ["f", "g h"]}
GROUPS = {"train": [1, 1, 2], "validation": [3], "test": [4, 5]}
FIGURES = {
    "labels": 9, "documents": 6, "train_documents": 3, "test_documents": 2, "groups": 5,
    "train_groups": 2, "labels_per_document": 1.17, "train_labels_per_document": 1.7,
    "test_labels_per_document": 0.5, "tokens_per_document": 13, "train_tokens_per_document": 20.33,
    "words_per_document": 1.7, "train_words_per_document": 1.667, "validation_documents": 1,
}  # fmt: skip


@pytest.fixture
def found() -> Found:
    return Found(
        {split: csr_from_lists(rows) for split, rows in LABELS.items()},
        {split: np.array(some) for split, some in TOKENS.items()},
        9,
        {split: np.array(some, np.uint64) for split, some in GROUPS.items()},
        lambda split: pa.chunked_array([TEXTS[split][:1], TEXTS[split][1:]], pa.string()),
    )


def test_figures_that_hold_are_not_marked(found):
    lines = compare_counts({"source": "by hand", **FIGURES}, found)
    assert [line["count"] for line in lines] == list(FIGURES)
    assert {"labels", "train_documents", "tokens_per_document"} <= set(FIGURES)
    assert not [line for line in lines if line["differs"]]
    assert {line["source"] for line in lines} == {"by hand"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_off_by_its_last_decimal_is_marked(found, name):
    wanted = FIGURES[name]
    decimals = len(str(wanted).partition(".")[2])
    wrong = round(wanted + 10**-decimals, decimals) if decimals else wanted + 1
    line, *others = compare_counts({name: wrong}, found)
    assert line["differs"]
    assert line["count"] == name
    assert not any(one["differs"] or one["source"] for one in others)
    # Beside the figure that is met, another of the literature does no harm, in any order.
    for several in ([wrong, wanted], [wanted, wrong]):
        assert not compare_counts({name: several}, found)[0]["differs"]


def test_a_mean_over_no_document_is_nothing_and_differs(found):
    empty = Found(
        {**found.labels, "test": csr_from_lists([])}, {**found.tokens, "test": np.zeros(0, int)},
        9, {**found.groups, "test": np.zeros(0, np.uint64)}, found.texts,
    )  # fmt: skip
    line = compare_counts({"test_labels_per_document": 1.5}, empty)[0]
    assert (line["found"], line["differs"]) == (None, True)
    assert describe_count(line) == ("test_labels_per_document: –, DIFFERS from data.expected: 1.5")


def test_what_training_lends_to_validation_counts_as_training(found):
    lent = replace(found, lent=True)
    stated = {
        "train_documents": 4, "validation_documents": 0, "test_documents": 2, "documents": 6,
        "train_groups": 3, "train_labels_per_document": 1.5, "train_tokens_per_document": 16.25,
    }  # fmt: skip
    assert not [one for one in compare_counts(stated, lent) if one["differs"]]


def test_a_line_reads_aloud(found):
    agrees, differs = compare_counts(
        {"source": "X 2018", "train_labels_per_document": 1.67, "labels": [8922, 8929]}, found
    )[:2]
    assert describe_count(agrees) == "train_labels_per_document: 1.67, as in X 2018: 1.67"
    assert describe_count(differs) == "labels: 9, DIFFERS from X 2018: 8,922 or 8,929"


def test_the_usual_counts_are_shown_of_every_corpus(found):
    lines = compare_counts({"source": "X", "train_words_per_document": 2}, found)
    assert [count_cells(line) for line in lines] == [
        ("train_words_per_document", "2", "2", ""),
        ("train_documents", "3", "–", ""),
        ("validation_documents", "1", "–", ""),
        ("test_documents", "2", "–", ""),
        ("labels", "9", "–", ""),
        ("labels_per_document", "1.17", "–", ""),
        ("tokens_per_document", "13.33", "–", ""),
    ]


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"train_document": 1}, "did you mean train_documents?"),
        ({"labels": "many"}, "data.expected.labels is 'many'; give a number"),
        ({"labels": True}, "give a number"),
        ({"labels": [3, None]}, "give a number, or a list of them"),
        ({"labels": []}, "give a number, or a list of them"),
    ],
)
def test_wrong_expectations_are_refused(expected, words):
    with pytest.raises(ConfigError) as caught:
        check_expected(expected)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "configs").glob("*.yaml")), ids=lambda one: one.stem
)
def test_expectations_of_the_configs_can_be_met(path):
    expected = load_config(path).data.expected
    check_expected(expected)
    # A figure without a source says nothing to whoever finds another.
    assert not expected or expected["source"]
    assert set(expected) <= {"source", *NAMES}
