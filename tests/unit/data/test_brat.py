"""Folders annotated with brat: each kind of line by hand, texts made up by us."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document, Span
from plant_dist.errors import ConfigError, DataError, PlantError

TEXT = "Tumor of the\r\nleft breast and the right one: carcinoma 😀 ductal.\n"
NOTES = (
    "#1\tAnnotatorNotes T1\t8500/3\n"
    "T1\tMORPHOLOGY 45 54;57 63\tcarcinoma ductal\n"
    "T2\tSITE 30 43\tthe right one\n"
    "N1\tReference T2 ICD10:C50.9\tbreast\n"
    "#2\tAnnotatorNotes R1\tunsure\n"
    "R1\tLocatedIn Arg1:T1 Arg2:T2\n"
    "A1\tNegated T2\n"
    "*\tEquiv T1 T2\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, name in (("train-set", "a"), ("dev-set1", "b"), ("test-set", "c")):
        place = tmp_path / part / "norm"
        place.mkdir(parents=True)
        (place / f"{name}.txt").write_bytes(TEXT.encode())
        (place / f"{name}.ann").write_text(NOTES, encoding="utf-8")
    (tmp_path / "README.txt").write_text("no document", encoding="utf-8")
    return tmp_path


def read(path: Path, **options: Any) -> list[Document]:
    data = DataConfig(reader="brat", path=str(path), reader_options=options)
    return list(open_corpus(data).documents())


def test_notes_are_labels_and_fragments_are_evidence(folder: Path) -> None:
    found = {one.id: one for one in read(folder)}
    assert {name: one.split for name, one in found.items()} == {
        "a": "train", "b": "validation", "c": "test",
    }  # fmt: skip
    one = found["a"]
    # Line ends as they are: positions count them, and the emoji as one character.
    assert one.text == TEXT
    assert one.labels == ("8500/3",)
    assert one.evidence == (Span("8500/3", 45, 54), Span("8500/3", 57, 63))
    assert [TEXT[span.start : span.end] for span in one.evidence] == ["carcinoma", "ductal"]


def test_labels_from_normalisations_and_from_types(folder: Path) -> None:
    assert read(folder, label_from="reference")[0].evidence == (Span("C50.9", 30, 43),)
    typed = read(folder, label_from="type")[0]
    assert typed.labels == ("MORPHOLOGY", "SITE")
    assert read(folder, label_from="type", types=["SITE"])[0].labels == ("SITE",)


def test_spans_without_a_label_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("plant_dist").propagate = True
    read(folder)
    assert "3 spans have no note and give no label" in caplog.text


def test_only_the_folders_asked_for(folder: Path) -> None:
    other = folder / "train-set" / "ner"
    other.mkdir()
    (other / "a.txt").write_text("again", encoding="utf-8")
    (other / "a.ann").write_text("", encoding="utf-8")
    assert sorted(one.id for one in read(folder)) == ["a", "a", "b", "c"]
    assert sorted(one.id for one in read(folder, within="norm")) == ["a", "b", "c"]


def test_a_path_a_split_and_label_names(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("id,text\n8500/3,Ductal carcinoma\n", encoding="utf-8")
    data = DataConfig(
        reader="brat", train_path=str(folder / "test-set"), labels_path=str(names)
    )  # fmt: skip
    one = open_corpus(data)
    assert [(found.id, found.split) for found in one.documents()] == [("c", "train")]
    assert [(label.id, label.text) for label in one.labels()] == [("8500/3", "Ductal carcinoma")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("30 43", "30", r"a\.ann:3: positions '30' are not"),
        ("30 43", "30 2500", r"a\.ann:3: .*30 to 2500, but the text has 74"),
        ("\tthe right one", "", r"a\.ann:3: expected `T1<tab>type start end<tab>text`"),
        ("Notes T1\t8500/3", "Notes T9\t8500/3", r"a\.ann:1: no span T9"),
        ("Notes T1\t8500/3", "Notes T1\t ", r"a\.ann:1: an empty label"),
        ("#1\tAnnotatorNotes T1", "#1\tAnnotatorNotes", r"a\.ann:1: .* no note or normalisation"),
        ("A1\t", "Q1\t", r"a\.ann:7: found 'Q1.*', no annotation of brat"),
    ],
)
def test_what_breaks_the_format_is_named(folder: Path, old: str, new: str, message: str) -> None:
    assert old in NOTES
    (folder / "train-set" / "norm" / "a.ann").write_text(NOTES.replace(old, new))
    with pytest.raises(DataError, match=message.replace("74", str(len(TEXT)))):
        read(folder)


def test_annotations_need_their_text(folder: Path) -> None:
    (folder / "train-set" / "norm" / "a.txt").unlink()
    with pytest.raises(DataError, match=r"annotations without their text: .*a\.txt does not exist"):
        read(folder)


def test_a_text_of_other_line_ends_is_refused(folder: Path) -> None:
    """Git and some archives change line ends; every position after the first is then wrong."""
    for path in folder.rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(
        DataError, match=r"of 6 annotations do not fit .* undo changes of line ends"
    ):
        read(folder)


def test_settings_are_checked(folder: Path) -> None:
    with pytest.raises(ConfigError, match="label_from is 'colour'; it must be one of note"):
        read(folder, label_from="colour")
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        open_corpus(DataConfig(reader="brat"))
    with pytest.raises(DataError, match="does not exist"):
        read(folder / "none")


@settings(deadline=None, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(folder: Path, data: st.DataObject) -> None:
    raw = bytearray(NOTES.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "train-set" / "norm" / "a.ann"
    path.write_bytes(bytes(raw))
    message = None
    try:
        read(path.parent)
    except PlantError as error:
        message = str(error)
    assert message is None or (str(path) in message and "\n" not in message)
