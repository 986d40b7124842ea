"""AttentionXML, LibMultiLabel, fastText, PECOS: what is written comes back, errors are named."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, DataError

# Any script, white space of any kind but what ends a line or a word of these formats.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t")).filter(
    lambda text: "/SEP/" not in text
)
WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t "), min_size=1)
ROW = st.tuples(TEXT, st.lists(WORD, max_size=4))
ROWS = st.lists(ROW, min_size=1, max_size=6)
Row = tuple[str, Sequence[str]]
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(**data) -> list[Document]:
    return list(open_corpus(DataConfig(**data)).documents())


def complaint(**data) -> str | None:
    """What a reader says of broken files; any other error than the one-line one fails the test."""
    try:
        read(**data)
    except DataError as error:
        return str(error)
    return None


def content(documents: Sequence[Document]) -> list[tuple[str, list[str]]]:
    return [(one.text, list(one.labels)) for one in documents]


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    # Bytes, so that no line end is translated.
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def write_attentionxml(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    write_lines(folder / "train_raw_texts.txt", [text for text, _ in rows])
    write_lines(folder / "train_labels.txt", [" ".join(labels) for _, labels in rows])
    return {"reader": "attentionxml", "path": str(folder)}


def write_libmultilabel(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    lines = [f"{n}\t{' '.join(labels)}\t{text}" for n, (text, labels) in enumerate(rows)]
    return {"reader": "libmultilabel", "path": str(write_lines(folder / "train.txt", lines).parent)}


def write_fasttext(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    lines = [" ".join([*(f"__label__{one}" for one in labels), text]) for text, labels in rows]
    return {"reader": "fasttext", "train_path": str(write_lines(folder / "train.txt", lines))}


def write_pecos(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    names = sorted({label for _, labels in rows for label in labels}) or ["none"]
    lines = [
        f"{','.join(str(names.index(one)) for one in labels)}\t{text}" for text, labels in rows
    ]
    write_lines(folder / "labels.txt", names)
    return {
        "reader": "pecos", "train_path": str(write_lines(folder / "train.txt", lines)),
        "labels_path": str(folder / "labels.txt"),
    }  # fmt: skip


@pytest.mark.parametrize("write", [write_attentionxml, write_libmultilabel])
@given(rows=ROWS)
@QUICK
def test_texts_and_labels_come_back(write: Callable, rows, tmp_path: Path) -> None:
    assert content(read(**write(tmp_path, rows))) == [(text, list(labels)) for text, labels in rows]


# Blanks of fastText that are letters elsewhere end its labels.
@given(
    rows=st.lists(
        st.tuples(TEXT, st.lists(WORD.filter(lambda w: not set(w) & set("\v\f\0")))), min_size=1
    )
)
@QUICK
def test_fasttext_comes_back_but_for_blanks_before_the_text(rows, tmp_path: Path) -> None:
    expected = [
        (text.lstrip(" \v\f\0") if labels else f"{text}", list(labels)) for text, labels in rows
    ]
    found = content(read(**write_fasttext(tmp_path, rows)))
    # A text that itself spells a label is one, wherever it stands; that case has its own test.
    kept = [n for n, (text, _) in enumerate(rows) if "__label__" not in text]
    assert [found[n] for n in kept] == [expected[n] for n in kept]


@given(rows=ROWS)
@QUICK
def test_pecos_comes_back_by_number_and_name(rows, tmp_path: Path) -> None:
    corpus = open_corpus(DataConfig(**write_pecos(tmp_path, rows)))
    names = {label.id: label.text for label in corpus.labels()}
    found = [(one.text, [names[label] for label in one.labels]) for one in corpus.documents()]
    assert found == [(text, list(labels)) for text, labels in rows]


def test_attentionxml_finds_splits_titles_and_label_names(tmp_path: Path) -> None:
    for stem, texts, labels in (
        ("train", "A /SEP/ b\nc\n", "x_y 4\n\n"),
        ("test", "d\r\n", "4\r\n"),
    ):
        (tmp_path / f"{stem}_texts.txt").write_bytes(texts.encode())
        (tmp_path / f"{stem}_labels.txt").write_bytes(labels.encode())
    names = write_lines(tmp_path / "names.txt", ["x_y", "4", "unused label"])
    corpus = open_corpus(
        DataConfig(reader="attentionxml", path=str(tmp_path), labels_path=str(names))
    )
    assert list(corpus.documents()) == [
        Document("train-0", "A \n b", ("x_y", "4"), "train", where=f"{tmp_path}/train_texts.txt:1"),
        Document("train-1", "c", (), "train", where=f"{tmp_path}/train_texts.txt:2"),
        Document("test-0", "d", ("4",), "test", where=f"{tmp_path}/test_texts.txt:1"),
    ]
    assert [label.id for label in corpus.labels()] == ["x_y", "4", "unused label"]
    # Raw texts go before tokenised ones, unless the tokenised are asked for.
    with gzip.open(tmp_path / "train_raw_texts.txt.gz", "wt") as stream:
        stream.write("raw A\nraw c\n")
    found = read(reader="attentionxml", path=str(tmp_path))
    assert [one.text for one in found] == ["raw A", "raw c", "d"]
    tokenised = read(
        reader="attentionxml", path=str(tmp_path), reader_options={"texts": "tokenised"}
    )
    assert tokenised[0].text == "A \n b"


def test_libmultilabel_with_and_without_ids(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.txt", ["a b\tone text", "\ttwo"])
    write_lines(tmp_path / "valid.txt", ["17\ta\tthree"])
    assert read(reader="libmultilabel", path=str(tmp_path)) == [
        Document("train-1", "one text", ("a", "b"), "train", where=f"{tmp_path}/train.txt:1"),
        Document("train-2", "two", (), "train", where=f"{tmp_path}/train.txt:2"),
        Document("17", "three", ("a",), "validation", where=f"{tmp_path}/valid.txt:1"),
    ]


def test_fasttext_labels_count_wherever_they_stand(tmp_path: Path) -> None:
    line = "__label__a,b  __label__c one  two __label__d three my__label__e"
    write_lines(tmp_path / "test.txt", [line, "no label", "__label__only"])
    found = read(reader="fasttext", path=str(tmp_path))
    assert content(found) == [
        ("one  two three my__label__e", ["a,b", "c", "d"]), ("no label", []), ("", ["only"]),
    ]  # fmt: skip
    options = {"prefix": "#"}
    write_lines(tmp_path / "test.txt", ["#x y"])
    assert content(read(reader="fasttext", path=str(tmp_path), reader_options=options)) == [
        ("y", ["x"])
    ]


def test_pecos_folder_and_relevances(tmp_path: Path) -> None:
    write_lines(tmp_path / "X.trn.txt", ["one", "", "three"])
    targets = sparse.csr_array(np.array([[0, 0.5, 1], [0, 0, 0], [2, 0, 0]], np.float32))
    sparse.save_npz(tmp_path / "Y.trn.npz", targets)
    corpus = open_corpus(DataConfig(reader="pecos", path=str(tmp_path)))
    assert content(list(corpus.documents())) == [("one", ["1", "2"]), ("", []), ("three", ["0"])]
    # Labels of the matrix that no document carries are labels all the same.
    assert list(corpus.labels()) == [Label("0", ""), Label("1", ""), Label("2", "")]
    write_lines(tmp_path / "output-items.txt", ["same name", "same name", "z"])
    named = open_corpus(DataConfig(reader="pecos", path=str(tmp_path)))
    assert [label.text for label in named.labels()] == ["same name", "same name", "z"]
    combined = write_lines(tmp_path / "all.tsv", ["0::0.1,2::0.8\tone\ttab", "1::0\tx", "\ty"])
    found = read(
        reader="pecos", test_path=str(combined), labels_path=str(tmp_path / "output-items.txt")
    )
    assert content(found) == [("one\ttab", ["0", "2"]), ("x", []), ("y", [])]


@pytest.mark.parametrize(
    ("reader", "files", "message"),
    [
        ("attentionxml", {"train_texts.txt": "a\nb\n", "train_labels.txt": "x\n"},
         r"train_labels\.txt ends after 1 lines, .*train_texts\.txt goes on; .*fetch them again"),
        ("attentionxml", {"train_texts.txt": "a\n"}, r"add train_labels\.txt"),
        ("attentionxml", {"other.txt": "a\n"}, r"holds no train_raw_texts\.txt or train_texts"),
        ("attentionxml", {"train.txt": "1 2 3\n0 1:1\n"}, r"bag-of-words features only \(train\."),
        ("libmultilabel", {"train.txt": "a\tb\nid\ta\tb\n"}, r":2: found 3 .*expected 2:"),
        ("libmultilabel", {"train.txt": "a\n"}, r"train\.txt:1: found 1 fields, expected 2 or 3"),
        ("libmultilabel", {"x.txt": "a\n"}, r"holds no train\.txt, train\.tsv"),
        ("fasttext", {"train.txt": "a\n__label__ b\n"}, r"train\.txt:2: __label__ without a name"),
        ("pecos", {"X.trn.txt": "a\n"}, r"add Y\.trn\.npz"),
        ("pecos", {"X.trn.npz": "a\n"}, r"bag-of-words features only \(X\.trn\.npz\)"),
        ("pecos", {"X.trn.txt": "a\n", "Y.trn.npz": "junk"}, r"Y\.trn\.npz is no sparse matrix"),
        ("xmc", {"trn_X.txt": "a\n"}, r"add trn_X_Y\.txt or Y\.trn\.npz"),
    ],
)  # fmt: skip
def test_broken_folders_are_refused_in_one_line(tmp_path, reader, files, message) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(reader=reader, path=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,3 text", r":1: no tab; expected `0,3<TAB>text`"),
        ("0,-1\tt", r":1: found label '-1'"),
        ("0,x\tt", r":1: found label 'x'"),
        ("0::nan\tt", r":1: found label '0::nan'"),
        ("5\tt", r":1: label 5 is not among the 2 of .*names\.txt"),
    ],
)
def test_broken_pecos_lines(tmp_path: Path, line: str, message: str) -> None:
    path, names = write_lines(tmp_path / "a.txt", [line]), write_lines(tmp_path / "names.txt", "ab")
    with pytest.raises(DataError, match=message):
        read(reader="pecos", train_path=str(path), labels_path=str(names))


def test_pecos_without_label_names_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.txt", ["0\tt"])
    with pytest.raises(DataError, match=r"data\.labels_path is not set"):
        read(reader="pecos", train_path=str(path))


def test_sizes_of_pecos_must_agree(tmp_path: Path) -> None:
    sparse.save_npz(tmp_path / "Y.trn.npz", sparse.csr_array(np.eye(2, dtype=np.float32)))
    for texts in (["a"], ["a", "b", "c"]):
        write_lines(tmp_path / "X.trn.txt", texts)
        with pytest.raises(DataError, match=r"has 2 rows, .*another number of lines"):
            read(reader="pecos", path=str(tmp_path))
    write_lines(tmp_path / "Y.txt", ["one"])
    with pytest.raises(DataError, match=r"has 2 columns, .*1 labels"):
        read(reader="pecos", path=str(tmp_path))


@pytest.mark.parametrize(
    "reader", ["attentionxml", "libmultilabel", "fasttext", "pecos", "xmc", "annif"]
)
def test_unknown_options_and_missing_places(reader: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown option data\.reader_options\.x of reader {reader}|no options"
    ):
        read(reader=reader, path=str(tmp_path), reader_options={"x": 1})
    with pytest.raises((ConfigError, DataError), match=r"data\.path is not set"):
        read(reader=reader)
    with pytest.raises(DataError, match=r"is not a folder|does not exist|neither a file nor"):
        read(reader=reader, path=str(tmp_path / "nowhere"), labels_path=str(tmp_path / "l.txt"))


@pytest.mark.parametrize(
    "write", [write_attentionxml, write_libmultilabel, write_fasttext, write_pecos]
)
@given(cut=st.integers(0, 200), junk=st.binary(max_size=8))
@QUICK
def test_mangled_bytes_give_documents_or_one_line(
    write: Callable, cut, junk, tmp_path: Path
) -> None:
    data = write(tmp_path, [("é one", ["a", "b"]), ("two", []), ("three", ["c"])])
    path = next(tmp_path.glob("train*.txt"))
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % (len(whole) + 1)] + junk + whole[cut % (len(whole) + 1) + 2 :])
    message = complaint(**data)
    assert message is None or (str(tmp_path) in message and "\n" not in message)


@pytest.mark.parametrize("write", [write_attentionxml, write_libmultilabel, write_fasttext])
def test_the_fingerprint_follows_the_files(write: Callable, tmp_path: Path) -> None:
    data = DataConfig(**write(tmp_path, [("one", ["a"])]))
    before = open_corpus(data).fingerprint()
    assert open_corpus(data).fingerprint() == before
    write(tmp_path, [("one", ["a"]), ("two", [])])
    assert open_corpus(data).fingerprint() != before
