"""XMC corpora: JSON and one text a line, their filter files, and what must be refused."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, DataError

TITLES = ["fever", "cough pain", "", "fever"]
TRAIN = [
    {"uid": "B0", "title": "acute fever", "content": "of the chest", "target_ind": [0, 2]},
    {"uid": "B1", "title": "left pain", "content": "", "target_ind": [], "target_rel": []},
    {"uid": "B2", "title": "cough", "content": "no cough", "target_ind": [3], "target_rel": [1.0]},
]
TEST = [
    {"uid": "B0", "title": "pain", "content": "chest", "target_ind": [1, 0]},
    {"uid": "C1", "title": "", "content": "", "target_ind": [2]},
]


def write_json(path: Path, rows: list[dict], encoding: str = "utf-8") -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "LF-made-up"
    place.mkdir()
    write_json(place / "trn.json.gz", TRAIN)
    write_json(place / "tst.json", TEST)
    write_json(place / "lbl.json.gz", [{"uid": f"L{n}", "title": t} for n, t in enumerate(TITLES)])
    return place


def read(folder: Path, **data) -> list[Document]:
    return list(open_corpus(DataConfig(reader="xmc", path=str(folder), **data)).documents())


def test_json_field_by_field(folder: Path) -> None:
    corpus = open_corpus(DataConfig(reader="xmc", path=str(folder)))
    # Two labels of one title stay two, and a title may be empty.
    assert list(corpus.labels()) == [Label(str(n), title) for n, title in enumerate(TITLES)]
    assert list(corpus.documents()) == [
        Document("train-0", "acute fever\nof the chest", ("0", "2"), "train",
                 where=f"{folder}/trn.json.gz:1"),
        Document("train-1", "left pain", (), "train", where=f"{folder}/trn.json.gz:2"),
        Document("train-2", "cough\nno cough", ("3",), "train", where=f"{folder}/trn.json.gz:3"),
        Document("test-0", "pain\nchest", ("1", "0"), "test", where=f"{folder}/tst.json:1"),
        Document("test-1", "", ("2",), "test", where=f"{folder}/tst.json:2"),
    ]  # fmt: skip
    assert corpus.describe() == f"xmc, {folder}: trn.json.gz, tst.json; filters: none"


def test_options_choose_fields_and_ids(folder: Path) -> None:
    titles = read(folder, reader_options={"fields": ["title"], "ids": "uid"})
    assert [(one.id, one.text) for one in titles][:2] == [
        ("B0", "acute fever"),
        ("B1", "left pain"),
    ]
    options = {"label_fields": ["uid", "title"]}
    corpus = open_corpus(DataConfig(reader="xmc", path=str(folder), reader_options=options))
    assert next(iter(corpus.labels())) == Label("0", "L0\nfever")


def test_latin_1_is_named_and_can_be_read(folder: Path) -> None:
    write_json(folder / "tst.json", [{**TEST[0], "title": "fièvre"}], "latin-1")
    with pytest.raises(DataError, match=r"tst\.json:1:\d+: bytes that are not utf-8 .*latin-1"):
        read(folder)
    assert read(folder, encoding="latin-1")[-1].text == "fièvre\nchest"


def test_sets_without_label_features_have_the_width_of_their_matrix(folder: Path) -> None:
    (folder / "lbl.json.gz").unlink()
    (folder / "trn_X_Y.txt").write_text("3 6\n0:1 2:1\n\n3:1\n")
    corpus = open_corpus(DataConfig(reader="xmc", path=str(folder)))
    assert list(corpus.labels()) == [Label(str(n), "") for n in range(6)]
    assert len(list(corpus.documents())) == 5
    (folder / "Yf.txt").write_bytes("é\nb\nc\nd\n".encode("latin-1"))
    named = open_corpus(DataConfig(reader="xmc", path=str(folder), encoding="latin-1"))
    assert [label.text for label in named.labels()] == ["é", "b", "c", "d"]


@pytest.mark.parametrize("matrix", ["txt", "npz"])
@pytest.mark.parametrize("place", ["", "raw"])
def test_one_text_a_line(tmp_path: Path, matrix: str, place: str) -> None:
    texts = tmp_path / place
    texts.mkdir(exist_ok=True)
    (texts / "trn_X.txt").write_bytes("one\u2028still one\ntwo\x0c\n\nfour\r\n".encode())
    (texts / "Y.txt").write_text("a, b\nc;d\n e/f \n")
    targets = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    if matrix == "npz":
        sparse.save_npz(tmp_path / "Y.trn.npz", sparse.csr_array(targets))
    else:
        (tmp_path / "trn_X_Y.txt").write_text("4 3\n0:1 2:1\n1:0\n1:1\n2:1.0\n")
    corpus = open_corpus(DataConfig(reader="xmc", path=str(tmp_path)))
    assert [label.text for label in corpus.labels()] == ["a, b", "c;d", " e/f "]
    assert [(one.text, one.labels) for one in corpus.documents()] == [
        ("one\u2028still one", ("0", "2")), ("two\x0c", ()), ("", ("1",)), ("four", ("2",)),
    ]  # fmt: skip


def test_filters_are_attached_to_their_documents(folder: Path) -> None:
    (folder / "filter_labels_train.txt").write_text("2 0\n0 2\n2 3\n")
    (folder / "tst_filter_labels.txt").write_text("")
    assert [one.ignored for one in read(folder)] == [("2",), (), ("0", "3"), (), ()]
    assert not any(one.ignored for one in read(folder, reader_options={"filters": False}))
    described = open_corpus(DataConfig(reader="xmc", path=str(folder))).describe()
    assert described.endswith("filters: filter_labels_train.txt, tst_filter_labels.txt")
    for line, message in (("3 0", "number 3, the largest allowed is 2"), ("0 4", "number 4")):
        (folder / "filter_labels_train.txt").write_text(f"{line}\n")
        with pytest.raises(DataError, match=rf"filter_labels_train\.txt:1: found {message}"):
            read(folder)


@pytest.fixture
def prepare(tmp_path: Path, tokenizer):
    numbers = itertools.count()

    def run(folder: Path, **settings) -> PreparedDataset:
        place = tmp_path / f"prepared-{next(numbers)}"
        place.mkdir()
        data = DataConfig(reader="xmc", path=str(folder), empty_text="keep", **settings)
        return prepare_dataset(
            open_corpus(data), data, TokensConfig(segment_tokens=8), tokenizer, place, seed=0
        )

    return run


def test_a_prepared_dataset_carries_the_filters(folder: Path, prepare) -> None:
    (folder / "filter_labels_train.txt").write_text("0 2\n2 1\n")
    (folder / "filter_labels_test.txt").write_text("1 0\n")
    found = prepare(folder, validation_fraction=0.0)
    assert [found.ignored_csr("train").row(n).tolist() for n in range(3)] == [[2], [], [1]]
    assert [found.ignored_csr("test").row(n).tolist() for n in range(2)] == [[], [0]]
    assert found.ignored_csr("validation").size == 0
    nothing = {"pairs": 0, "gold": 0}
    assert found.statistics["ignored"] == {
        "train": {"pairs": 2, "gold": 1}, "validation": nothing, "test": {"pairs": 1, "gold": 0},
    }  # fmt: skip
    # L is that of the label file: no document carries all of 0 … 3 in training.
    assert list(found.label_space.ids) == ["0", "1", "2", "3"]
    assert found.statistics["documents"]["test"]["without_tokens"] == 1


def test_filters_follow_documents_that_validation_borrows(folder: Path, prepare) -> None:
    rows = [{"title": f"fever {n}", "target_ind": [n % 4]} for n in range(30)]
    write_json(folder / "trn.json.gz", rows)
    pairs = [(n, (n + 1) % 4) for n in range(30)]
    (folder / "filter_labels_train.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs))
    found = prepare(folder, validation_fraction=0.4)
    lent = found.documents("validation")["id"]
    assert len(lent) == 12
    for split in ("train", "validation"):
        numbers = [int(name.removeprefix("train-")) for name in found.documents(split)["id"]]
        ignored = found.ignored_csr(split)
        rows_found = [ignored.row(n).tolist() for n in range(ignored.size)]
        assert rows_found == [[(n + 1) % 4] for n in numbers]


def test_documents_without_text_are_refused_unless_kept(
    folder: Path, tmp_path: Path, tokenizer
) -> None:
    data = DataConfig(reader="xmc", path=str(folder))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"tst\.json:2: document 'test-1' has no text; .*=keep"):
        prepare_dataset(
            open_corpus(data), data, TokensConfig(), tokenizer, tmp_path / "out", seed=0
        )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "t"}, r"target_ind is None, expected a list of numbers"),
        ({"title": "t", "target_ind": ["1"]}, r"target_ind is \['1'\]"),
        ({"title": "t", "target_ind": [True]}, r"target_ind is \[True\]"),
        ({"title": "t", "target_ind": [4]}, r"label 4 is not among the 4 of .*lbl\.json\.gz"),
        ({"title": "t", "target_ind": [-1]}, r"label -1 is not among"),
        ({"name": "t", "target_ind": []}, r"none of the fields title, content; found: name, targ"),
        ({"title": 3, "target_ind": []}, r"title holds '3', expected text"),
    ],
)
def test_wrong_values_are_named(folder: Path, row: dict, message: str) -> None:
    write_json(folder / "trn.json.gz", [TRAIN[0], row])
    with pytest.raises(DataError, match=rf"trn\.json\.gz:2: {message}"):
        read(folder)


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ids is 'name'; choose line or uid"):
        read(folder, reader_options={"ids": "name"})
    write_json(folder / "trn.json.gz", [{"title": "t", "target_ind": []}])
    with pytest.raises(DataError, match=r"trn\.json\.gz:1: no uid; .*ids: line"):
        read(folder, reader_options={"ids": "uid"})
    (folder / "lbl.json.gz").unlink()
    with pytest.raises(
        DataError, match=r"has no lbl\.json, Yf\.txt or trn_X_Y\.txt to say how many"
    ):
        read(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"holds no raw text; name the folder that holds"):
        read(folder)
    (folder / "trn_X_Xf.txt").write_text("0 3\n")
    with pytest.raises(
        DataError, match=r"bag-of-words features only \(trn_X_Xf\.txt\) .*open_matr"
    ):
        read(folder)
    (folder / "trn_X.txt").write_text("a\nb\n")
    for content, message in (
        ("1 2\n0:1\n", "different numbers of documents"),
        ("3 2\n0:1\n0:1\n0:1\n", "different numbers of documents"),
        ("2 2\n0:1\n0:1\n", r"Y\.txt names 1 labels, .* has 2 columns"),
    ):
        (folder / "trn_X_Y.txt").write_text(content)
        if "names" in message:
            (folder / "Y.txt").write_text("a\n")
        with pytest.raises(DataError, match=message):
            read(folder)


@given(cut=st.integers(0, 400), junk=st.binary(max_size=8))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mangled_bytes_give_documents_or_one_line(folder: Path, cut: int, junk: bytes) -> None:
    path = folder / "tst.json"
    write_json(path, TEST)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + junk + whole[cut + 2 :])
    message = None
    try:
        read(folder)
    except DataError as error:
        message = str(error)
    assert message is None or ("tst.json" in message and "\n" not in message)


@pytest.mark.parametrize(
    ("filters", "options", "said"),
    [(False, {}, True), (True, {}, False), (False, {"filters": False}, False)],
)
def test_a_missing_filter_file_is_mentioned(
    folder: Path, caplog, filters: bool, options: dict, said: bool
) -> None:
    if filters:
        (folder / "filter_labels_test.txt").write_text("")
    with caplog.at_level("WARNING", logger="plant_dist"):
        read(folder, reader_options=options)
    assert (f"no filter file beside {folder}/tst.json" in caplog.text) == said


def test_no_filter_file_is_missed_without_label_texts(folder: Path, caplog) -> None:
    (folder / "lbl.json.gz").unlink()
    (folder / "trn_X_Y.txt").write_text("3 4\n0:1 2:1\n\n3:1\n")
    with caplog.at_level("WARNING", logger="plant_dist"):
        assert len(read(folder)) == 5
    assert "no filter file" not in caplog.text
