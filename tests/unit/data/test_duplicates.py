"""Repeated texts, by hand."""

from __future__ import annotations

import numpy as np

from plant_dist.data.duplicates import find_duplicates, text_key


def test_keys_ignore_case_and_white_space_and_nothing_else():
    assert text_key("Acute  Fever\n") == text_key(" acute fever")
    assert text_key("STRASSE") == text_key("straße")
    assert text_key("acute fever") != text_key("acute, fever")
    assert text_key("acutefever") != text_key("acute fever")


def test_duplicates_are_counted_per_pair_of_splits_with_examples():
    #        train  train  train  val  test  test  left out
    texts = ["a", "A ", "b", "a", "b", "c", "c"]
    keys = np.array([text_key(text) for text in texts], np.uint64)
    splits = np.array([0, 0, 0, 1, 2, 2, -1], np.int8)
    assert find_duplicates(keys, splits, "ABCDEFG".__getitem__) == {
        "within": {"train": 1, "validation": 0, "test": 0},
        "across": [
            {
                "splits": ["train", "validation"], "texts": 1, "documents": [2, 1],
                "examples": [["A", "D"]],
            },
            {
                "splits": ["train", "test"], "texts": 1, "documents": [1, 1],
                "examples": [["C", "E"]],
            },
        ],
    }  # fmt: skip
