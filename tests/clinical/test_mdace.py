"""MDACE's spans onto documents of several notes, against places known when they were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from made_up_mimic import CODES, Admission, Written, made_up, write_release

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
import datasets
from tiny_corpus import settings, write_encoder

from plant_dist.cli import main
from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.errors import ConfigError, DataError

NOTES = [
    Written(
        31, False, "2110-01-01 00:00:00", ' \nSepsis, "severe";\n congestive heart failure µg\n'
    ),
    Written(12, True, "2110-01-02 00:00:00", "\nAddendum: café, transfused 2 units\n"),
]
SAID = [
    (31, "Sepsis", "038.9", "ICD-9-CM"),
    (31, "congestive heart failure", "4280", "ICD-9-CM"),  # without its dot
    (12, "transfused", "99.04", "ICD-9-PCS"),
]
IGNORED = [
    (31, "severe", "99291", "CPT"),
    (31, "severe", "R65.20", "ICD-10-CM"),
    (31, "severe", "995.92", "ICD-9-CM"),  # no label of this corpus
    (77, "radiology", "038.9", "ICD-9-CM"),  # a note of another kind
]


def annotation(number: int, words: str, code: str, system: str) -> dict:
    text = next((note.text for note in NOTES if note.number == number), words)
    begin = text.index(words)
    return {"begin": begin, "end": begin + len(words), "code": code, "code_system": system,
            "type": "human", "covered_text": words}  # fmt: skip


def write_annotations(folder: Path, hadm: int, said) -> Path:
    folder.mkdir(exist_ok=True)
    numbers = sorted({one[0] for one in said})
    notes = [{"note_id": n, "category": "Discharge summary", "annotations":
              [annotation(*one) for one in said if one[0] == n]} for n in numbers]  # fmt: skip
    path = folder / f"{hadm}.json"
    path.write_text(json.dumps({"hadm_id": hadm, "comment": "", "notes": notes}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release in which admission 42 is annotated, and says the codes that are annotated."""
    codes = [place for place, row in enumerate(CODES) if row[3] in ("038.9", "428.0", "99.04")]
    admissions = [*made_up(10), Admission(99, 42, NOTES, codes)]
    # Windows line ends: characters are counted as PhysioNet's file has them.
    write_release(tmp_path, admissions, line_end="\r\n")
    write_annotations(tmp_path / "mdace", 42, [*SAID, *IGNORED])
    return tmp_path


def corpus(folder: Path, **options):
    options = {"annotations": "mdace", **options}
    return open_corpus(DataConfig(reader="mdace", path=str(folder), reader_options=options))


def test_spans_cover_in_the_document_what_they_covered_in_the_note(folder):
    found = {one.id: one for one in corpus(folder).documents()}
    one = found["42"]
    assert [(span.label, one.text[span.start : span.end]) for span in one.evidence] == [
        ("038.9", "Sepsis"), ("428.0", "congestive heart failure"), ("99.04", "transfused"),
    ]  # fmt: skip
    assert {document.id for document in found.values() if document.evidence} == {"42"}
    plain = open_corpus(DataConfig(reader="mimic", path=str(folder)))
    assert {one.id: (one.text, one.labels, one.split) for one in plain.documents()} == {
        one.id: (one.text, one.labels, one.split) for one in found.values()
    }
    assert [one.id for one in plain.labels()] == [one.id for one in corpus(folder).labels()]


def test_others_can_be_left_out(folder):
    assert [one.id for one in corpus(folder, only_annotated=True).documents()] == ["42"]


def test_kinds_that_are_no_labels_have_no_evidence(folder):
    (one,) = corpus(folder, only_annotated=True, codes=["procedures"]).documents()
    assert [span.label for span in one.evidence] == ["99.04"]


def test_evidence_outside_its_note_is_refused(folder):
    path = folder / "mdace" / "42.json"
    content = json.loads(path.read_text())
    content["notes"][0]["annotations"][0]["end"] = 999
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"42.json note 12: evidence for 99.04 .* to 999, but"):
        list(corpus(folder).documents())


def test_a_classifier_of_mimic_is_explained_on_what_coders_marked(folder, tmp_path, monkeypatch):
    """The way of docs/corpora/mimic.md: run mimic, prepare and export mdace, explain."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_encoder(tmp_path / "encoder")
    content = settings(tmp_path) | {"data": {"reader": "mimic", "path": str(folder)}}
    content["train"]["epochs"] = 1
    content["evaluate"]["baselines"] = []
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(content))
    assert main(["run", "--config", str(config), "--debug"]) == 0
    options = {"annotations": "mdace"}
    content["data"] = {"reader": "mdace", "path": str(folder), "reader_options": options}
    config.write_text(yaml.safe_dump(content))
    output, out, pages = (str(tmp_path / name) for name in ("prepared", "jsonl", "pages"))
    assert main(["prepare", "--config", str(config), "--output", output, "--debug"]) == 0
    words = ["export", "--dataset", f"{output}/dataset", "--format", "jsonl", "--out", out]
    assert main([*words, "--debug"]) == 0
    documents = {one.id: one for one in corpus(folder).documents()}
    source = tmp_path / "jsonl" / f"{documents['42'].split}.jsonl.gz"
    model = str(tmp_path / "run" / "classifier")
    words = ["explain", "--model", model, str(source), "--output", pages, "--debug"]
    assert main(words) == 0
    records = map(json.loads, (tmp_path / "pages" / "spans.jsonl").read_text().splitlines())
    record, text = next(one for one in records if one["id"] == "42"), documents["42"].text
    marked = {
        label["id"]: [text[span["start"] : span["end"]] for span in label["gold_evidence"]]
        for label in record["labels"] if label["gold_evidence"]
    }  # fmt: skip
    assert marked == {
        "038.9": ["Sepsis"], "428.0": ["congestive heart failure"], "99.04": ["transfused"],
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", '{"hadm_id": "x", "notes": []}', '{"hadm_id": 1}'])
def test_a_file_of_another_form_is_named(folder, content):
    (folder / "mdace" / "1.json").write_text(content)
    with pytest.raises(DataError, match=r"1\.json"):
        list(corpus(folder).documents())


def test_what_cannot_work_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="annotations is not set"):
        corpus(folder, annotations=None)
    with pytest.raises(ConfigError, match="evidence counts characters"):
        corpus(folder, text="caml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no JSON file"):
        list(corpus(folder, annotations="empty").documents())


def test_the_fingerprint_notices_other_annotations(folder):
    before = corpus(folder).fingerprint()
    write_annotations(folder / "mdace", 43, SAID)
    assert corpus(folder).fingerprint() != before
