"""The configs of EURLEX57K and MultiEURLEX, over saved folders with those datasets' columns."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from plant_dist.cli import main
from plant_dist.config import load_config
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document

CONFIGS = Path(__file__).parents[3] / "configs"


def save(folder: Path, features: dict, rows: dict) -> str:
    """Save three splits of one row each, as `datasets` would."""
    part = datasets.Dataset.from_dict(rows, datasets.Features(features))
    names = ("train", "validation", "test")
    splits = {name: part.select([n]) for n, name in enumerate(names)}
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def documents(config: str, path: str) -> list[tuple]:
    data = load_config(CONFIGS / config, [f"data.path={path}"]).data
    found: list[Document] = list(open_corpus(data).documents())
    return [(one.id, one.text, one.labels, one.split) for one in found]


def test_eurlex57k(tmp_path: Path) -> None:
    text = datasets.Value("string")
    features = {
        "celex_id": text, "title": text, "text": text, "eurovoc_concepts": datasets.List(text)
    }  # fmt: skip
    rows = {
        "celex_id": ["32006D0213", "b", "c"], "title": ["t"] * 3, "text": ["one", "two", "three"],
        "eurovoc_concepts": [["1", "20", "0077"], ["20"], []],
    }  # fmt: skip
    # Concepts are strings of digits: as numbers, 0077 and 77 would be one.
    assert documents("eurlex57k.yaml", save(tmp_path / "saved", features, rows)) == [
        ("32006D0213", "one", ("1", "20", "0077"), "train"), ("b", "two", ("20",), "validation"),
        ("c", "three", (), "test"),
    ]  # fmt: skip


def test_multieurlex(tmp_path: Path) -> None:
    text = datasets.Value("string")
    concepts = datasets.ClassLabel(names=["100149", "100160", "100148"])
    features = {"celex_id": text, "text": text, "labels": datasets.List(concepts)}
    rows = {"celex_id": ["a", "b", "c"], "text": ["één", "δύο", "три"],
            "labels": [[2, 0], [1], [0]]}  # fmt: skip
    assert documents("multieurlex.yaml", save(tmp_path / "saved", features, rows)) == [
        ("a", "één", ("100148", "100149"), "train"), ("b", "δύο", ("100160",), "validation"),
        ("c", "три", ("100149",), "test"),
    ]  # fmt: skip


def test_lexglue_has_no_ids_of_documents(tmp_path: Path) -> None:
    concepts = datasets.ClassLabel(names=["100163", "100168"])
    features = {"text": datasets.Value("string"), "labels": datasets.List(concepts)}
    rows = {"text": ["one", "two", "three"], "labels": [[1], [1, 0], []]}
    assert documents("lexglue_eurlex.yaml", save(tmp_path / "saved", features, rows)) == [
        ("row-1", "one", ("100168",), "train"),
        ("row-2", "two", ("100168", "100163"), "validation"), ("row-3", "three", (), "test"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["eurlex57k", "multieurlex", "lexglue_eurlex"])
def test_nothing_is_fetched_unasked(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def refuse(*_, **__) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    data = load_config(CONFIGS / f"{name}.yaml").data
    with pytest.raises(Exception, match=r"set data\.reader_options\.allow_download: true"):
        list(open_corpus(data).documents())
    assert main(["prepare", "--config", str(CONFIGS / f"{name}.yaml"), "--dry-run"]) == 0
    assert data.path in capsys.readouterr().out


def test_an_allowed_fetch_asks_for_the_hub_s_own_conversion(monkeypatch) -> None:
    asked = []

    def answer(*words, **named):
        asked.append((words, named))
        return datasets.DatasetDict()

    monkeypatch.setattr(datasets, "load_dataset", answer)
    words = ["data.reader_options.allow_download=true"]
    data = load_config(CONFIGS / "multieurlex.yaml", words).data
    assert list(open_corpus(data).documents()) == []
    revision = {"revision": "refs/convert/parquet"}
    assert asked == [(("coastalcph/multi_eurlex", "en"), revision)]
