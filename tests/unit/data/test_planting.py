"""Documents that only planting may learn from: none of a group that validates or tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.splits import PLANTING, TEST, TRAIN, UNSAID, VALIDATION, planting_rows
from plant_dist.errors import ConfigError

ROWS = [
    ("d1", "train", "acute fever", ["A"], "p1"),
    ("d2", "train", "chest pain", ["B"], "p2"),
    ("d3", "validation", "no cough", ["A"], "p3"),
    ("d4", "test", "left fever", ["B"], "p4"),
    ("d5", "planting", "fever of the chest", ["A"], "p5"),
    ("d6", "planting", "cough", [], "p1"),
    ("d7", "planting", "left fever", ["B"], "p4"),  # the patient is tested
    ("d8", "planting", "right pain", ["A"], "p3"),  # the patient validates
]


@pytest.fixture
def prepare(tmp_path, tokenizer, write_jsonl):
    keys = ("id", "split", "text", "labels", "group")
    path = write_jsonl(dict(zip(keys, row, strict=True)) for row in ROWS)

    def run(**settings):
        folder = tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        data = DataConfig(path=path, **settings)
        tokens = TokensConfig(segment_tokens=8)
        return prepare_dataset(open_corpus(data), data, tokens, tokenizer, folder, 0)

    return run


def test_planting_counts_training_and_what_is_free_of_held_out_groups(prepare):
    dataset = prepare()
    assert dataset.planting_set == "planting"
    assert dataset.documents("planting")["id"][:] == ["d1", "d2", "d5", "d6"]
    assert dataset.documents("train")["id"][:] == ["d1", "d2"]
    labels = [[dataset.label_space.ids[i] for i in row] for row in
              (dataset.label_csr("planting").row(n) for n in range(4))]  # fmt: skip
    assert labels == [["A"], ["B"], ["A"], []]
    assert dataset.token_csr("planting").size == 4
    assert dataset.statistics["planting"] == {
        "corpus": "training_split", "documents": 4, "with_labels": 3,
        "struck_for_groups_held_out": 2,
    }  # fmt: skip
    # The classifier's own counts are those of its own documents.
    assert dataset.label_space.train_frequency.tolist() == [1, 1]
    assert dataset.statistics["split"]["groups"] == {"train": 2, "validation": 1, "test": 1}
    assert dataset.statistics["split"]["groups_across_splits"] == 0


def test_an_experiment_may_plant_from_its_own_documents_alone(prepare):
    dataset = prepare(planting_corpus="experiment")
    assert dataset.planting_set == "train"
    assert dataset.statistics["planting"] is None
    assert not (dataset.folder / "documents" / "planting").exists()


def test_a_training_subset_and_a_larger_planting_corpus_contradict_each_other(prepare):
    with pytest.raises(ConfigError, match=r"set data\.planting_corpus=experiment"):
        prepare(train_documents=1)
    assert prepare(train_documents=1, planting_corpus="experiment").planting_set == "train"


def test_the_split_is_written_for_others(prepare):
    folder = prepare().folder / "split_ids"
    assert {one.name: one.read_text().split() for one in folder.iterdir()} == {
        "train.csv": ["d1", "d2"], "validation.csv": ["d3"], "test.csv": ["d4"],
        "planting.csv": ["d1", "d2", "d5", "d6"],
    }  # fmt: skip


codes = st.sampled_from([UNSAID, TRAIN, VALIDATION, TEST, PLANTING])


@given(st.lists(st.tuples(codes, st.integers(0, 5)), max_size=30))
def test_no_group_of_validation_or_test_is_ever_counted(rows):
    splits = np.array([row[0] for row in rows], np.int8)
    groups = np.array([row[1] for row in rows], np.uint64)
    found, struck = planting_rows(splits, groups)
    held_out = {g for s, g in rows if s in (VALIDATION, TEST)}
    free = [n for n, (s, g) in enumerate(rows) if s == PLANTING and g not in held_out]
    expected = sorted(free + [n for n, (s, _) in enumerate(rows) if s == TRAIN]) if free else []
    assert found.tolist() == expected
    assert struck == sum(s == PLANTING for s, _ in rows) - len(free)
