"""Annif: every document and vocabulary format, by field; SKOS in several serialisations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import rdflib

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, DataError

A, B, C = (f"http://example.org/{name}" for name in "abc")
TURTLE = f"""
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
<{B}> a skos:Concept ; skos:prefLabel "kissat"@fi, "cats"@en ; skos:broader <{A}> .
<{A}> a skos:Concept ; skos:prefLabel "eläimet"@fi, "animals"@en ; skos:narrower <{C}> .
<{C}> a skos:Concept ; skos:prefLabel "كلاب"@fi ; skos:altLabel "dogs"@en .
<http://example.org/old> a skos:Concept ; skos:prefLabel "old"@en ; owl:deprecated true .
<http://example.org/scheme> a skos:ConceptScheme ; skos:prefLabel "all"@en .
"""


def read(path: Path, **data) -> list[Document]:
    return list(open_corpus(DataConfig(reader="annif", path=str(path), **data)).documents())


def labels(path: Path, **options) -> list[Label]:
    data = DataConfig(reader="annif", path="unread", labels_path=str(path), reader_options=options)
    return list(open_corpus(data).labels())


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "short.tsv.gz"
    path.write_bytes(gzip.compress(f'"quoted, one\t<{A}> <{B}>\nnone\t\n'.encode()))
    assert read(path) == [
        Document("short.tsv-1", '"quoted, one', (A, B), where=f"{path}:1"),
        Document("short.tsv-2", "none", (), where=f"{path}:2"),
    ]
    with pytest.raises(DataError, match=r"a\.tsv:1: no tab; expected `text<TAB><uri> <uri>`"):
        read(write(tmp_path / "a.tsv", "text only\n"))
    with pytest.raises(DataError, match=r"a\.tsv:1: found '<half' where a URI should be"):
        read(write(tmp_path / "a.tsv", "text\t<half\n"))


def test_csv(tmp_path: Path) -> None:
    lines = f'document_id,title,text,subject_uris\n7,T,"a, ""b""\nc",<{A}> {B}\n,T,d,\n'
    path = write(tmp_path / "docs.csv", lines)
    assert read(path) == [
        Document("7", 'a, "b"\nc', (A, B), where=f"{path}:2"),
        Document("docs-2", "d", (), where=f"{path}:4"),
    ]
    with pytest.raises(DataError, match=r"no column 'subject_uris'; columns found: text"):
        read(write(tmp_path / "a.csv", "text\nx\n"))


def test_jsonl_by_uri_and_by_name(tmp_path: Path) -> None:
    rows = [
        {"document_id": "x", "text": "a", "subjects": [{"uri": A, "label": "z"}, {"label": "Two"}]},
        {"text": "b", "metadata": {"title": "t"}},
        {"text": "c", "subjects": [{"label": "nowhere"}]},
    ]
    path = write(tmp_path / "docs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    names = write(tmp_path / "v.tsv", f"<{A}>\tOne\n<{B}>\tTwo\tnotation\n")
    found = read(path, labels_path=str(names))
    # A name that the vocabulary lacks is a label of its own: nothing is dropped.
    assert [(one.id, one.text, one.labels) for one in found] == [
        ("x", "a", (A, B)), ("docs-2", "b", ()), ("docs-3", "c", ("nowhere",)),
    ]  # fmt: skip
    write(tmp_path / "v.tsv", f"<{A}>\tTwo\n<{B}>\tTwo\n")
    with pytest.raises(DataError, match=rf"'Two' is the name of {A} and of {B}; give the URI"):
        read(path, labels_path=str(names))
    for row, message in (
        ({"subjects": []}, "expected `text` and a list"),
        ({"text": "a", "subjects": "x"}, "expected `text` and a list"),
        ({"text": "a", "subjects": [3]}, "subject 3 has neither uri nor label"),
    ):
        with pytest.raises(DataError, match=rf"docs\.jsonl:1: {message}"):
            read(write(path, json.dumps(row)))


def test_full_text_folders(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "b.txt", "line one\nline two\n")
    write(folder / "b.tsv", f"<{A}>\tOne\n<{B}>\tTwo\n")
    write(folder / "a.txt", "keyed")
    write(folder / "a.key", "Two\n\nOne\n")
    write(folder / "c.txt", "unlabelled")
    write(folder / "d.json", json.dumps({"text": "j", "subjects": [{"uri": A}]}, indent=2))
    names = write(tmp_path / "v.tsv", f"<{A}>\tOne\n<{B}>\tTwo\n")
    data = DataConfig(reader="annif", train_path=str(folder), labels_path=str(names))
    found = list(open_corpus(data).documents())
    assert [(one.id, one.text, one.labels, one.split) for one in found] == [
        ("a", "keyed", (B, A), "train"), ("b", "line one\nline two", (A, B), "train"),
        ("c", "unlabelled", (), "train"), ("d", "j", (A,), "train"),
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.txt or \.json document"):
        read(tmp_path / "empty")


def test_tsv_and_csv_vocabularies(tmp_path: Path) -> None:
    tsv = write(tmp_path / "v.tsv", f"<{A}>\ta, b; c/d\tnot\n<{B}>\n")
    assert labels(tsv) == [Label(A, "a, b; c/d"), Label(B, "")]
    one = write(tmp_path / "v.csv", f"uri,label_fi,notation\n<{A}>,kissa,1\n")
    assert labels(one) == [Label(A, "kissa")]
    two = write(tmp_path / "w.csv", f"uri,label_fi,label_en\n{A},kissa,cat\n")
    assert labels(two, language="en") == [Label(A, "cat")]
    for language in (None, "sv"):
        with pytest.raises(DataError, match=r"label columns label_fi, label_en; set .*language"):
            labels(two, language=language)


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".ttl", "turtle"), (".rdf", "xml"), (".nt", "nt"), (".jsonld", "json-ld")]
)
def test_skos_in_any_serialisation(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"vocabulary{suffix}"
    graph = rdflib.Graph().parse(data=TURTLE, format="turtle")
    graph.serialize(str(path), format=kind, encoding="utf-8")
    assert labels(path, language="fi") == [
        Label(A, "eläimet"), Label(B, "kissat", (A,)), Label(C, "كلاب", (A,)),
    ]  # fmt: skip
    # No English name: the label stays, and its id will stand for it.
    assert labels(path, language="en")[2] == Label(C, "", (A,))
    with pytest.raises(DataError, match=rf"{A} has 2 preferred labels \(en, fi\); set .*language"):
        labels(path)


def test_broken_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v\.ttl is no whole \.ttl file of RDF"):
        labels(write(tmp_path / "v.ttl", TURTLE[:200]))
    with pytest.raises(DataError, match=r"w\.ttl holds no skos:Concept"):
        labels(write(tmp_path / "w.ttl", ""))
    with pytest.raises(DataError, match=r"nowhere\.ttl does not exist"):
        labels(tmp_path / "nowhere.ttl")
    with pytest.raises(ConfigError, match=r"unknown option .*languages.*mean language"):
        labels(tmp_path / "v.ttl", languages="fi")
