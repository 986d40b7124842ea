"""Preparing: a corpus worked by hand, its statistics, and every refusal."""

from __future__ import annotations

import gzip
import itertools
import json
import locale
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.prepared import COLUMNS, PreparedDataset
from plant_dist.data.records import SPLITS
from plant_dist.data.tokens import encode, tokenizer_digest
from plant_dist.errors import ArtifactError, DataError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "codiesp_en"
ROWS = [
    ("d1", "train", "acute fever", ["B", "A"]),
    ("d2", "train", "chest pain of the left", ["A"]),
    ("d3", "train", "no cough", []),
    ("d4", "validation", "Acute  FEVER", ["A", "new"]),
    ("d5", "test", "chest pain", ["seen late", "new", "B"]),
    ("d6", "test", "fever", []),
]


@pytest.fixture
def prepare(tmp_path: Path, tokenizer):
    """Prepare rows or a file into a fresh folder."""
    numbers = itertools.count()

    def run(path: str, seed: int = 0, tokens: TokensConfig | None = None, **settings):
        folder = tmp_path / f"dataset-{next(numbers)}"
        folder.mkdir()
        data = DataConfig(path=path, **settings)
        tokens = tokens or TokensConfig(segment_tokens=8)
        return prepare_dataset(open_corpus(data), data, tokens, tokenizer, folder, seed)

    return run


@pytest.fixture
def corpus(write_jsonl) -> str:
    keys = ("id", "split", "text", "labels")
    return write_jsonl(dict(zip(keys, row, strict=True)) for row in ROWS)


def test_documents_labels_and_arrays_are_those_of_the_corpus(prepare, corpus, write_jsonl):
    names = write_jsonl([{"id": "B", "text": "second"}, {"id": "never", "text": "n"}], "l.jsonl")
    found = prepare(corpus, labels_path=names)
    space = found.label_space
    assert list(space.ids) == ["B", "never", "A", "new", "seen late"]
    assert space.train_frequency.tolist() == [1, 0, 2, 0, 0]
    assert list(space.texts)[:3] == ["second", "n", "A"]
    for split in SPLITS:
        documents = found.documents(split)
        assert tuple(documents.column_names) == COLUMNS
        expected = [row for row in ROWS if row[1] == split]
        assert documents["id"][:] == [row[0] for row in expected]
        assert documents["text"][:] == [row[2] for row in expected]
        ids = [sorted(map(space.index, row[3])) for row in expected]
        assert documents["labels"][:] == ids
        tokens = encode(found.tokenizer(), [row[2] for row in expected])
        assert documents["input_ids"][:] == tokens
        for csr, rows in ((found.label_csr(split), ids), (found.token_csr(split), tokens)):
            offsets, values = csr
            assert offsets.tolist() == np.cumsum([0, *map(len, rows)]).tolist()
            assert values.tolist() == [one for row in rows for one in row]
            assert (offsets.dtype, values.dtype) == (np.int64, np.int32)
    assert found.documents("train").features["labels"].feature.dtype == "int32"


def test_the_folder_is_complete_and_loads_alone(prepare, corpus, tokenizer):
    folder = prepare(corpus).folder
    assert sorted(one.name for one in folder.iterdir()) == [
        "arrays", "documents", "label_space", "split_ids", "statistics.json", "tokenizer",
    ]  # fmt: skip
    moved = folder.rename(folder.with_name("moved"))
    again = PreparedDataset.load(moved)
    assert again.documents("test")["id"][:] == ["d5", "d6"]
    assert tokenizer_digest(again.tokenizer()) == tokenizer_digest(tokenizer)
    assert again.statistics == json.loads((moved / "statistics.json").read_text())


def test_statistics_worked_by_hand(prepare, corpus):
    found = prepare(corpus, tokens=TokensConfig(segment_tokens=8, max_document_tokens=4))
    statistics = found.statistics
    assert statistics["labels"] == {
        "total": 4, "declared": 0, "only_in_documents": 4, "with_training_documents": 2,
        "unseen": {
            "validation": {"labels": 1, "occurrences": 1, "share_of_occurrences": 0.5},
            "test": {"labels": 2, "occurrences": 2, "share_of_occurrences": pytest.approx(2 / 3)},
        },
    }  # fmt: skip
    assert statistics["documents"]["train"] == {
        "documents": 3, "without_labels": 1, "without_tokens": 0, "cut": 1, "segments": 3,
        "labels_per_document": {"mean": 1.0, "median": 1.0, "max": 2},
        "tokens_per_document": {"mean": pytest.approx(8 / 3), "median": 2.0, "max": 4},
    }  # fmt: skip
    assert found.token_csr("train").lengths().tolist() == [2, 4, 2]
    assert statistics["documents"]["test"]["without_labels"] == 1
    assert statistics["duplicates"] == {
        "within": {"train": 0, "validation": 0, "test": 0},
        "across": [
            {
                "splits": ["train", "validation"], "texts": 1, "documents": [1, 1],
                "examples": [["d1", "d4"]],
            }
        ],
    }  # fmt: skip
    assert statistics["split"]["how"] == "given"
    assert statistics["corpus"] == f"generic, {corpus}"


def test_long_documents_are_segmented_not_cut(prepare, write_jsonl):
    text = " ".join(["fever"] * 100)
    path = write_jsonl([{"text": text, "labels": ["a"], "split": "train"}])
    found = prepare(path, tokens=TokensConfig(segment_tokens=8, overlap_tokens=2))
    assert found.token_csr("train").lengths().tolist() == [100]
    # 6 tokens fit in the first segment, 4 new ones in each of the others.
    assert found.statistics["documents"]["train"]["segments"] == 1 + -(-94 // 4)


def test_evidence_is_kept_as_label_indices_and_characters(prepare, write_jsonl):
    spans = [{"label": "z", "start": 6, "end": 11}, {"label": "a", "start": 0, "end": 0}]
    row = {"text": "acute fever", "labels": ["z", "a"], "split": "train", "evidence": spans}
    document = prepare(write_jsonl([row])).documents("train")[0]
    assert document["labels"] == [0, 1]
    assert document["evidence_label"] == [1, 0]
    assert (document["evidence_start"], document["evidence_end"]) == ([6, 0], [11, 0])


def many(write_jsonl, count: int = 60) -> str:
    return write_jsonl(
        {"id": f"d{at}", "text": f"fever {at}", "labels": [f"l{at % 4}"], "group": f"g{at // 3}"}
        for at in range(count)
    )


def ids(found: PreparedDataset, split: str) -> set[str]:
    return set(found.documents(split)["id"][:])


@pytest.mark.parametrize("how", ["random", "stratified"])
def test_made_splits_follow_the_seed_and_keep_groups_whole(prepare, write_jsonl, how):
    path = many(write_jsonl)
    one, same, other = (prepare(path, seed, split=how) for seed in (0, 0, 1))
    parts = [ids(one, split) for split in SPLITS]
    assert set.union(*parts) == {f"d{at}" for at in range(60)}
    sizes = [len(part) for part in parts]
    assert np.abs(np.subtract(sizes, [42, 6, 12])).max() <= (0 if how == "random" else 3)
    groups = [{int(name[1:]) // 3 for name in part} for part in parts]
    assert sum(map(len, groups)) == 20
    assert ids(same, "test") == ids(one, "test")
    assert ids(other, "test") != ids(one, "test")


def test_training_subsets_are_nested_and_counted_after_drawing(prepare, write_jsonl, own_cache):
    path = many(write_jsonl)
    small, large, whole = (prepare(path, split="random", train_documents=n) for n in (5, 20, None))
    assert len(ids(small, "train")) == 5
    assert ids(small, "train") < ids(large, "train") < ids(whole, "train")
    assert ids(small, "test") == ids(whole, "test")
    count = Counter(f"l{int(name[1:]) % 4}" for name in ids(small, "train"))
    found = dict(zip(small.label_space.ids, small.label_space.train_frequency, strict=True))
    assert found == {name: count[name] for name in ("l0", "l1", "l2", "l3")}
    assert small.statistics["split"]["training_documents_left_out"] == 42 - 5
    assert small.label_space.digest == whole.label_space.digest
    assert len(list(own_cache.rglob("*.arrow"))) == 1  # three datasets, tokenised once


def test_a_corpus_without_validation_lends_some_of_training(prepare, write_jsonl):
    rows = [
        {"id": f"{split}{at}", "text": "fever", "labels": ["a"], "split": split}
        for split in ("train", "test") for at in range(20)
    ]  # fmt: skip
    found = prepare(write_jsonl(rows), validation_fraction=0.25)
    assert len(ids(found, "validation")) == 5
    assert ids(found, "train") | ids(found, "validation") == {f"train{at}" for at in range(20)}
    assert found.statistics["split"]["validation_taken_from_train"] is True


def test_odd_labels_and_unicode_survive(prepare, write_jsonl):
    odd = ["a;b", "  4", "é", "e\u0301", "𝛼", "q'\"", "n\nl"]
    text = "naïve\tcafé e\u0301 𝛼 ﬁ\r\nend "
    found = prepare(write_jsonl([{"text": text, "labels": odd, "split": "train"}]))
    document = found.documents("train")[0]
    assert document["text"] == text
    assert {found.label_space.ids[at] for at in document["labels"]} == set(odd)


def test_a_split_may_be_empty(prepare, write_jsonl):
    found = prepare(
        write_jsonl([{"text": "fever", "labels": ["a"], "split": "train"}]),
        validation_fraction=0.0,
    )
    assert len(found.documents("test")) == 0
    assert found.token_csr("test").size == 0
    assert found.statistics["documents"]["test"]["tokens_per_document"]["max"] == 0


GOOD = {"id": "a", "text": "fever", "labels": ["x"], "split": "train"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"the corpus holds no document \(generic, .*\); check data\.path"),
        ([GOOD, {**GOOD, "id": "b", "text": " \n"}], r":2: document 'b' has no text"),
        ([GOOD, {**GOOD, "id": "b", "text": None}], r":2: document 'b' has no text"),
        ([{**GOOD, "labels": []}], r"no training document carries a label"),
        ([{**GOOD, "split": "test"}], r"none of the 1 documents is for training"),
        ([GOOD, GOOD], r"id 'a' is at .*docs\.jsonl:1 and again at .*docs\.jsonl:2"),
        ([GOOD, {**GOOD, "id": "b", "split": None}], r"document 'b' and 0 more are in no split"),
        (
            [{**GOOD, "evidence": [{"label": "x", "start": 2, "end": 6}]}],
            r":1: document 'a' has evidence for 'x' at characters 2 to 6, but its text has 5",
        ),
        (
            [{**GOOD, "evidence": [{"label": "x", "start": -1, "end": 2}]}],
            r"characters -1 to 2",
        ),
        ([{**GOOD, "text": "half \ud800"}], r"the text of document 'a' holds half a surrogate"),
        ([{**GOOD, "labels": ["\udfff"]}], r"a label of document 'a' holds half a surrogate"),
        ([{**GOOD, "group": "g\udc00"}], r"the group of document 'a' holds half a surrogate"),
    ],
)  # fmt: skip
def test_bad_corpora_are_refused_in_one_line(prepare, write_jsonl, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare(write_jsonl(rows))
    assert "\n" not in str(caught.value)


def test_labels_without_a_name_and_ids_spelt_otherwise_are_said(
    prepare, corpus, write_jsonl, caplog
):
    names = [{"id": "a", "text": "in another case"}, {"id": "B", "text": "bee"}]
    prepare(corpus, labels_path=write_jsonl(names, "l.jsonl"))
    assert "3 labels of documents, such as 'A', are not among the 2 that the corpus lists, such " \
        "as 'a'; are ids spelt alike?" in caplog.text  # fmt: skip
    assert "3 of 5 labels have no name, such as 'A' (data.labels_path, data.label" in caplog.text
    caplog.clear()
    # Another column than the config says: all names are lost.
    titled = [{"id": one, "title": one.lower()} for one in ("A", "B", "new", "seen late")]
    prepare(corpus, labels_path=write_jsonl(titled, "m.jsonl"))
    assert "4 of 4 labels have no name, such as 'A'" in caplog.text
    assert "not among" not in caplog.text
    caplog.clear()
    # A corpus that has no names to give is told so, and not warned.
    prepare(corpus)
    assert not [one for one in caplog.records if one.levelname == "WARNING" and "name" in one.msg]


def test_groups_are_only_assured_where_there_are_any(prepare, corpus, write_jsonl, caplog):
    with caplog.at_level("INFO", logger="plant_dist"):
        prepare(corpus)
    assert "groups: none given (data.group_column); each document is one of its own" in caplog.text
    caplog.clear()
    rows = [{"text": f"t {n}", "labels": ["A"], "group": n // 2} for n in range(12)]
    with caplog.at_level("INFO", logger="plant_dist"):
        prepare(write_jsonl(rows, "grouped.jsonl"), split="random")
    assert "none stands in two splits" in caplog.text


def test_labels_in_test_only_are_reported_and_kept(prepare, corpus, caplog):
    with caplog.at_level("INFO", logger="plant_dist"):
        found = prepare(corpus)
    assert "test: 2 labels have no training document (66.7 % of its label" in caplog.text
    assert "1 texts are in train and in validation, such as documents d1 and d4" in caplog.text
    assert "seen late" in list(found.label_space.ids)


def test_statistics_are_utf8_in_every_locale(prepare, write_jsonl):
    rows = [
        {"id": name, "text": "fever", "labels": ["x"], "split": split}
        for name, split in (("ärztin", "train"), ("λ", "validation"), ("c", "test"))
    ]
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    try:
        found = prepare(write_jsonl(rows))
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    [pair, *_] = found.statistics["duplicates"]["across"]
    assert pair["examples"] == [["ärztin", "λ"]]


def test_a_folder_that_is_no_dataset(tmp_path: Path, prepare, corpus):
    with pytest.raises(ArtifactError, match=r"not a prepared dataset .*plant-dist prepare"):
        PreparedDataset.load(tmp_path)
    found = prepare(corpus)
    with pytest.raises(DataError, match="'dev' is none of train, validation, test"):
        found.documents("dev")
    (found.folder / "documents" / "train" / "state.json").unlink()
    with pytest.raises(ArtifactError, match="documents/train cannot be read"):
        found.documents("train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not on this machine")
def test_a_slice_of_real_clinical_cases(prepare, tmp_path: Path):
    with gzip.open(SHARED / "docs.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = list(itertools.islice(stream, 0, None, 6))
    path = tmp_path / "slice.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(lines)
    found = prepare(str(path), labels_path=str(SHARED / "labels.jsonl.gz"))
    rows = [json.loads(line) for line in lines]
    assert len(found.label_space) == 2194
    for split in SPLITS:
        expected = {row["id"]: row for row in rows if row["split"] == split}
        documents = found.documents(split)
        assert documents["id"][:] == list(expected)
        for document in documents:
            row = expected[document["id"]]
            assert document["text"] == row["text"]
            assert {found.label_space.ids[at] for at in document["labels"]} == set(row["labels"])
    train = [set(row["labels"]) for row in rows if row["split"] == "train"]
    frequency = Counter(label for labels in train for label in labels)
    assert found.label_space.train_frequency.sum() == frequency.total()
    unseen = {
        label for row in rows if row["split"] == "test" for label in row["labels"]
        if label not in frequency
    }  # fmt: skip
    assert found.statistics["labels"]["unseen"]["test"]["labels"] == len(unseen) > 0
