"""The generic reader: every form of labels, ids, splits, evidence and source."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus, readers
from plant_dist.data.files.tables import read_rows
from plant_dist.data.records import Document, Label, Span
from plant_dist.errors import ConfigError, DataError


def documents(**settings) -> list[Document]:
    return list(open_corpus(DataConfig(**settings)).documents())


def test_a_whole_record(write_jsonl):
    row = {
        "id": "d1", "text": "Acute fever", "labels": ["R50.9", "x y"], "split": "dev",
        "group": 17, "evidence": [{"label": "R50.9", "start": 6, "end": 11}], "other": None,
    }  # fmt: skip
    path = write_jsonl([row])
    assert documents(path=path) == [
        Document(
            "d1", "Acute fever", ("R50.9", "x y"), "validation", "17",
            (Span("R50.9", 6, 11),), f"{path}:1",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["a", "b"], ("a", "b")),
        ([3, "04"], ("3", "04")),
        (7, ("7",)),
        ("a; b c ;;d;", ("a", "b c", "d")),
        ([' 4 "quoted"', "é;\u0301", "#\t|"], (' 4 "quoted"', "é;\u0301", "#\t|")),
        ("", ()),
        ([], ()),
        (None, ()),
    ],
)
def test_forms_of_labels(write_jsonl, value, labels):
    path = write_jsonl([{"text": "t", "labels": value}])
    assert documents(path=path)[0].labels == labels


def test_other_separators(write_jsonl):
    path = write_jsonl([{"text": "t", "labels": "a|b;c"}, {"text": "t", "labels": "a b"}])
    assert [one.labels for one in documents(path=path, labels_separator="|")] == [
        ("a", "b;c"), ("a b",),
    ]  # fmt: skip
    assert documents(path=path, labels_separator=" ")[1].labels == ("a", "b")


def test_rows_are_numbered_over_all_files_where_there_is_no_id(write_jsonl):
    row = {"text": "t", "labels": [], "split": "train"}
    paths = {
        "path": write_jsonl([row], "a.jsonl"),
        "train_path": write_jsonl([row, row], "b.jsonl"),
        "validation_path": write_jsonl([row], "c.jsonl"),
        "test_path": write_jsonl([row], "d.jsonl"),
    }
    found = documents(**paths)
    assert [one.id for one in found] == ["row-1", "row-2", "row-3", "row-4", "row-5"]
    assert [one.split for one in found] == ["train", "train", "train", "validation", "test"]


def test_columns_of_other_names_in_csv(tmp_path: Path):
    spans = json.dumps([{"label": "b", "start": 0, "end": 3}]).replace('"', '""')
    content = f'note,TEXT,codes,part,spans\n9,"one, two",a;b,val,"{spans}"\n'
    (tmp_path / "a.csv").write_text(content)
    found = documents(
        path=str(tmp_path / "a.csv"), id_column="note", text_column="TEXT", labels_column="codes",
        split_column="part", evidence_column="spans",
    )  # fmt: skip
    assert found[0].id == "9"
    assert found[0].text == "one, two"
    assert found[0].labels == ("a", "b")
    assert found[0].split == "validation"
    assert found[0].evidence == (Span("b", 0, 3),)


@pytest.mark.parametrize("setting", ["group_column", "id_column", "evidence_column"])
def test_a_column_that_is_named_must_be_there(write_jsonl, setting):
    rows = [{"text": "a", "labels": [], "patient": 7}, {"text": "b", "labels": []}]
    path = write_jsonl(rows)
    # In one document is enough: a column may be optional.
    if setting == "group_column":
        assert [one.group for one in documents(path=path, group_column="patient")] == ["7", None]
    with pytest.raises(DataError) as error:
        documents(path=path, **{setting: "pateint"})
    assert f"no document has the column 'pateint' that data.{setting} names" in str(error.value)
    assert "columns found: text, labels" in str(error.value)


def test_the_corpus_own_split_words_are_not_read_where_we_split(write_jsonl):
    path = write_jsonl([{"text": "t", "labels": [], "split": "fold-3"}])
    assert documents(path=path, split="random")[0].split is None
    with pytest.raises(DataError, match=r":1: split 'fold-3' is not train"):
        documents(path=path)


@pytest.mark.parametrize("column", ["parent", "parents"])
def test_labels_with_text_and_parents(write_jsonl, column):
    path = write_jsonl(
        [
            {"id": "1", "text": "Infections", column: ""},
            {"id": "A00", "text": "Cholera", column: "1"},
            {"id": "A00.0", "text": None, column: ["A00", "1"]},
            {"id": 7},
        ]
    )
    corpus = open_corpus(DataConfig(path=path, labels_path=path))
    assert list(corpus.labels()) == [
        Label("1", "Infections"), Label("A00", "Cholera", ("1",)),
        Label("A00.0", "", ("A00", "1")), Label("7", ""),
    ]  # fmt: skip
    assert list(open_corpus(DataConfig(path=path)).labels()) == []


def saved_splits() -> datasets.DatasetDict:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "labels": datasets.List(datasets.ClassLabel(names=["flu", "cold"])),
        }
    )
    rows = {"text": ["a", "b"], "labels": [[1], [0, 1]]}
    part = datasets.Dataset.from_dict(rows, features)
    return datasets.DatasetDict({"train": part, "dev": part.select([1])})


def test_a_saved_datasets_folder_with_class_labels(tmp_path: Path):
    saved_splits().save_to_disk(str(tmp_path / "saved"))
    found = documents(path=str(tmp_path / "saved"))
    assert [(one.id, one.labels, one.split) for one in found] == [
        ("row-1", ("cold",), "train"),
        ("row-2", ("flu", "cold"), "train"),
        ("row-3", ("flu", "cold"), "validation"),
    ]
    assert found[2].where.endswith("saved[dev] row 1")
    saved_splits()["train"].save_to_disk(str(tmp_path / "alone"))
    assert [one.split for one in documents(path=str(tmp_path / "alone"))] == [None, None]


def test_a_folder_of_files_is_read_by_datasets(tmp_path: Path):
    folder = tmp_path / "files"
    folder.mkdir()
    for split, part in saved_splits().items():
        part.to_parquet(folder / f"{split.replace('dev', 'validation')}.parquet")
    found = documents(path=str(folder))
    assert [(one.labels, one.split) for one in found] == [
        (("cold",), "train"), (("flu", "cold"), "train"), (("flu", "cold"), "validation"),
    ]  # fmt: skip


def test_a_hub_name_is_not_fetched_unasked():
    with pytest.raises(DataError, match=r"neither a file nor a folder.*allow_download: true"):
        documents(path="someone/corpus")


def test_a_folder_that_datasets_cannot_read(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot be read by `datasets`.*data\.reader$") as caught:
        documents(path=str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": []}, r":1: no column 'text'; columns found: labels; set data\.text_column"),
        ({"text": "t"}, r":1: no column 'labels'; columns found: text; set data\.labels_column"),
        ({"text": 5, "labels": []}, r":1: column 'text' holds 5, expected text"),
        ({"text": "t", "labels": ["a", ""]}, r"column 'labels' holds '', expected a name"),
        ({"text": "t", "labels": [250.0]}, r"column 'labels' holds 250.0, expected a name"),
        ({"text": "t", "labels": [True]}, r"column 'labels' holds True, expected a name"),
        ({"text": "t", "labels": [], "id": None}, r"column 'id' holds None, expected a name"),
        ({"text": "t", "labels": [], "evidence": [{"label": "a"}]}, r"data\.evidence_column"),
        ({"text": "t", "labels": [], "evidence": "yes"}, r"expected a list of \{label, start"),
        ({"text": "t", "labels": [], "split": 3}, r"split 3 is not train"),
    ],
)
def test_wrong_values_are_named_with_their_place(write_jsonl, row, message):
    with pytest.raises(DataError, match=message) as caught:
        documents(path=write_jsonl([row]))
    assert "docs.jsonl:1" in str(caught.value)


def test_wrong_settings_name_the_nearest_right_one():
    assert {"generic", "icd10cm", "mimic", "mdace"} <= set(readers())
    with pytest.raises(ConfigError, match=r"data\.reader is 'genric'; did you mean 'generic'"):
        open_corpus(DataConfig(reader="genric", path="x"))
    with pytest.raises(ConfigError, match=r"reader_options\.allow_downloads .*mean allow_download"):
        open_corpus(DataConfig(path="x", reader_options={"allow_downloads": True}))
    with pytest.raises(ConfigError, match=r"quotes must be bool, found 'no'"):
        open_corpus(DataConfig(path="x", reader_options={"quotes": "no"}))
    with pytest.raises(ConfigError, match=r"unknown option data\.reader_options\.1 of reader"):
        open_corpus(DataConfig(path="x", reader_options={1: True}))
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        open_corpus(DataConfig())


def test_a_number_that_should_be_text_and_a_folder_are_told_how_to_be_right(tmp_path: Path):
    with pytest.raises(ConfigError, match=r'must be str or null, found 3; in quotes, .subset="3"'):
        open_corpus(DataConfig(path="a.jsonl", reader_options={"subset": 3}))
    with pytest.raises(DataError, match="is a folder; name a file in it"):
        list(read_rows(tmp_path))


def test_describe_names_every_source():
    corpus = open_corpus(DataConfig(path="a.jsonl", test_path="b.csv"))
    assert corpus.describe() == "generic, a.jsonl, test: b.csv"
