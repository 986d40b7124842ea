"""A prepared corpus in other tools' files: read again it is the same, and what is lost is said."""

from __future__ import annotations

import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from plant_dist.artifacts import Manifest, written_artifact
from plant_dist.cli import main
from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.export import FORMATS, Exported, export_corpus
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.records import Corpus, Span
from plant_dist.exchange import DATASET_FORMATS

ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
LABELS = [
    "plain", "heart failure", "a,b;c/d", "50%", "50%25", "a%20b", "حمى حادة", "急性", "é",
    "e\u0301", "tab\there", "line\nend", "http://example.org/c/1", "urn:x-label:plain", "<b>",
    "__label__x", "0", "no\u00a0break", "\ufeffmark",
]  # fmt: skip
TEXTS = [
    "fever, cough; pain/chest", "two\nlines\r\nand\rmore", "a\ttab", "\ufeffmark first",
    "急性发热。", "حُمَّى حادة", "line\u2028separator \x85 \x0b \x0c", 'quotes " and \\ and \'',
    "fever",
]  # fmt: skip


@pytest.fixture
def prepare(tmp_path: Path, write_jsonl, tokenizer):
    numbers = itertools.count()

    def run(rows: list[dict[str, Any]], **data: Any) -> PreparedDataset:
        folder = tmp_path / f"dataset-{next(numbers)}"
        folder.mkdir()
        config = DataConfig(**{"path": write_jsonl(rows), "validation_fraction": 0.0, **data})
        return prepare_dataset(
            open_corpus(config),
            config,
            TokensConfig(segment_tokens=16),
            tokenizer,
            folder,
            0,
        )

    return run


@pytest.fixture
def exported(tmp_path: Path):
    """Export, and open the folder with the settings that the export names."""
    numbers = itertools.count()

    def run(dataset: PreparedDataset, name: str) -> tuple[Corpus, Path, Exported]:
        folder = tmp_path / f"export-{next(numbers)}"
        folder.mkdir()
        made = export_corpus(dataset, name, folder)
        options = {key: value for key, value in made.options.items() if key != "reader"}
        paths = {key: str(folder / value) for key, value in made.settings.items()}
        config = DataConfig(
            reader=made.options["reader"], **paths,
            reader_options={key.removeprefix("reader_options."): options[key] for key in options},
        )  # fmt: skip
        return open_corpus(config), folder, made

    return run


def rows_of(texts: list[str], labels: list[str]) -> list[dict[str, Any]]:
    """Each label once and more, over three splits; the last document has none."""
    splits = ("train", "train", "validation", "test")
    return [
        {"id": f"id {n}, é%20", "text": text, "split": splits[n % 4] if n else "train",
         "labels": labels[n :: len(texts)] + labels[:1] if n < len(texts) - 1 else []}
        for n, text in enumerate(texts)
    ]  # fmt: skip


def expected_of(dataset: PreparedDataset) -> list[tuple[str, str, str, set[str]]]:
    ids = dataset.label_space.ids
    return [
        (split, one["id"], one["text"], {ids[label] for label in one["labels"]})
        for split in ("train", "validation", "test")
        for one in dataset.documents(split)
    ]


def read_lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")[:-1]


def read_again(name: str, corpus: Corpus, folder: Path, ids: list[str]) -> list[tuple]:
    """(split, id, text, labels) of an exported folder, escapes undone."""
    stems = {"train": "trn", "validation": "val", "test": "tst"}
    own = {split: read_lines(folder / f"document_ids.{stem}.txt")
           for split, stem in stems.items() if name == "pecos"
           and (folder / f"document_ids.{stem}.txt").exists()}  # fmt: skip
    found = []
    for one in corpus.documents():
        undo = {"annif": own_id, "libmultilabel": unquote, "jsonl": str}.get(
            name, lambda at: ids[int(at)]
        )
        labels = set(map(undo, one.labels))
        identity = one.id
        if name == "pecos":
            identity = unquote(own[one.split][int(one.id.rpartition("-")[2])])
        if name == "libmultilabel":
            identity = unquote(one.id)
        found.append((one.split, identity, one.text, labels))
    return found


def own_id(uri: str) -> str:
    """The label that a URI of Annif's files stands for."""
    made = "urn:x-label:"
    return unquote(uri.removeprefix(made)) if uri.startswith(made) else uri


def flattened(text: str, name: str) -> str:
    if name not in ("pecos", "libmultilabel"):
        return text
    ends = "\r\n|\r|\n|^\ufeff" + ("|\t" if name == "libmultilabel" else "")
    return re.sub(ends, " ", text)


def assert_comes_back(name: str, dataset: PreparedDataset, exported) -> Exported:
    corpus, folder, made = exported(dataset, name)
    ids = list(dataset.label_space.ids)
    expected = [
        (split, one, flattened(text, name), labels)
        for split, one, text, labels in expected_of(dataset)
    ]
    assert read_again(name, corpus, folder, ids) == expected
    names = [
        re.sub("\r\n|\r|\n|^\ufeff" + ("|\t" if name == "annif" else ""), " ", text)
        if name in ("pecos", "annif") else text
        for text in dataset.label_space.texts
    ]  # fmt: skip
    declared = list(corpus.labels())
    assert [one.text for one in declared] == names
    if name == "annif":
        assert [own_id(one.id) for one in declared] == ids
    if name in ("libmultilabel", "jsonl"):
        undo = unquote if name == "libmultilabel" else str
        assert [undo(one.id) for one in declared] == ids
        assert [list(map(undo, one.parents)) for one in declared] == list(
            dataset.label_space.parents
        )
    return made


def test_the_command_knows_the_formats() -> None:
    assert tuple(FORMATS) == DATASET_FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_corpus_comes_back(prepare, exported, write_jsonl, name: str) -> None:
    declared = [{"id": one, "text": f"name of {one}", "parents": LABELS[:1]} for one in LABELS]
    dataset = prepare(rows_of(TEXTS, LABELS), labels_path=write_jsonl(declared, "labels.jsonl"))
    made = assert_comes_back(name, dataset, exported)
    # Names of labels with a line end (or, in Annif's table, a tab), and such texts.
    flattened = {"pecos": 1 + 2, "libmultilabel": 0 + 3, "annif": 2 + 0}
    assert made.flattened == flattened.get(name, 0)
    held = name in ("libmultilabel", "jsonl")
    assert made.left_out == ({} if held else {"labels with parents": len(LABELS)})


@given(rows=st.lists(st.tuples(ANY, st.lists(ANY, max_size=4)), min_size=1, max_size=5))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_and_any_label_come_back(prepare, exported, rows) -> None:
    made = [{"id": str(n), "text": text, "labels": labels or ["none"], "split": "train"}
            for n, (text, labels) in enumerate(rows)]  # fmt: skip
    dataset = prepare(made)
    for name in FORMATS:
        assert_comes_back(name, dataset, exported)


def test_files_are_those_that_the_tools_read(prepare, exported) -> None:
    rows = [
        {"id": "a", "text": "fever", "labels": ["x y", "z"], "split": "train"},
        {"id": "b", "text": "cough", "labels": [], "split": "train"},
        {"id": "c", "text": "pain", "labels": ["z"], "split": "test"},
    ]
    dataset = prepare(rows)
    _, xmc, _ = exported(dataset, "xmc")
    with gzip.open(xmc / "trn.json.gz", "rt", encoding="utf-8") as stream:
        assert [json.loads(line) for line in stream] == [
            {"uid": "a", "title": "", "content": "fever", "target_ind": [0, 1]},
            {"uid": "b", "title": "", "content": "cough", "target_ind": []},
        ]
    assert (xmc / "trn_X_Y.txt").read_text() == "2 2\n0:1 1:1\n\n"
    assert (xmc / "tst_X_Y.txt").read_text() == "1 2\n1:1\n"
    assert not (xmc / "val.json.gz").exists()
    _, pecos, _ = exported(dataset, "pecos")
    matrix = sparse.load_npz(pecos / "Y.trn.npz")
    assert matrix.toarray().tolist() == [[1, 1], [0, 0]]
    assert matrix.dtype == np.float32
    assert read_lines(pecos / "X.trn.txt") == ["fever", "cough"]
    assert read_lines(pecos / "output-items.txt") == ["x y", "z"]
    _, libmultilabel, _ = exported(dataset, "libmultilabel")
    assert read_lines(libmultilabel / "train.txt") == ["a\tx%20y z\tfever", "b\t\tcough"]
    _, annif, _ = exported(dataset, "annif")
    assert read_lines(annif / "vocabulary.tsv") == [
        "<urn:x-label:x%20y>\tx y", "<urn:x-label:z>\tz",
    ]  # fmt: skip
    with gzip.open(annif / "test.jsonl.gz", "rt", encoding="utf-8") as stream:
        assert json.loads(stream.read()) == {
            "document_id": "c", "text": "pain", "subjects": [{"uri": "urn:x-label:z"}],
        }  # fmt: skip


def test_filter_pairs_travel_with_xmc_and_are_said_elsewhere(prepare, exported, tmp_path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "trn.json").write_text('{"title": "fever", "target_ind": [0, 2]}\n')
    (source / "tst.json").write_text(
        '{"title": "pain", "target_ind": [1]}\n{"title": "cough", "target_ind": [2, 0]}\n'
    )
    (source / "lbl.json").write_text('{"title": "a"}\n{"title": "b"}\n{"title": "c"}\n')
    (source / "filter_labels_test.txt").write_text("0 2\n1 0\n1 1\n")
    dataset = prepare([], reader="xmc", path=str(source))
    corpus, folder, made = exported(dataset, "xmc")
    assert (folder / "filter_labels_test.txt").read_text() == "0 2\n1 0\n1 1\n"
    assert {one.id: one.ignored for one in corpus.documents()} == {
        "train-0": (), "test-0": ("2",), "test-1": ("0", "1"),
    }  # fmt: skip
    assert made.left_out == {}
    assert exported(dataset, "pecos")[2].left_out == {"filtered pairs": 3}


def test_evidence_travels_with_json_lines(prepare, exported) -> None:
    rows = rows_of(TEXTS, LABELS)
    spans = [{"label": LABELS[1], "start": 2, "end": 5}, {"label": "plain", "start": 0, "end": 1}]
    rows[1]["evidence"] = spans
    corpus, _, made = exported(prepare(rows), "jsonl")
    found = {one.id: one.evidence for one in corpus.documents() if one.evidence}
    assert found == {rows[1]["id"]: tuple(Span(**span) for span in spans)}
    assert made.left_out == {}


def test_the_command_says_what_is_lost_and_how_to_read_it(
    prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(TEXTS, LABELS)
    rows[0]["evidence"] = [{"label": "plain", "start": 0, "end": 5}] * 2
    dataset = prepare(rows)
    out = tmp_path / "given away"
    words = ["export", "--dataset", str(dataset.folder), "--format", "libmultilabel"]
    assert main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"written to {out}"
    assert "2 evidence spans: left out, the format has no place for them" in printed
    assert printed[-1].endswith(
        f"--set data.reader=libmultilabel --set data.path={out} "
        f"--set data.labels_path={out}/labels.jsonl"
    )
    # What is there already is never replaced.
    assert main([*words, "--out", str(out)]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert main(["export", "--dataset", str(tmp_path), "--format", "xmc", "--out", "x"]) == 4
    assert "is not a prepared dataset" in capsys.readouterr().err
    with written_artifact(tmp_path / "run" / "dataset", Manifest("prepare", {}, {})):
        pass
    words = ["export", "--dataset", str(tmp_path / "run"), "--format", "xmc", "--out", "x"]
    assert main(words) == 2
    assert f"name its dataset: {tmp_path}/run/dataset" in capsys.readouterr().err
