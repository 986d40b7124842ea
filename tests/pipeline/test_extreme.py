"""An extreme-classification corpus end to end: its filter files and published figures arrive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import LABELS, UNSEEN, rows, settings, write_config, write_encoder, write_jsonl

from plant_dist.cli import main
from plant_dist.data.prepared import PreparedDataset

pytestmark = pytest.mark.pipeline
NAMES = [*LABELS, UNSEEN]


def write_corpus(folder: Path) -> list[dict[str, Any]]:
    """The tiny corpus as raw JSON of the repository; returns the test documents."""
    by_split: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for row in rows():
        by_split[row["split"]].append(row)
    for stem, split in (("trn", "train"), ("tst", "test")):
        write_jsonl(folder / f"{stem}.json", [
            {"uid": row["id"], "title": row["text"], "content": "",
             "target_ind": [NAMES.index(label) for label in row["labels"]]}
            for row in by_split[split]
        ])  # fmt: skip
    write_jsonl(folder / "lbl.json", [{"title": name} for name in NAMES])
    return by_split["test"]


@pytest.fixture(scope="module")
def run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose filter takes every first gold label out of the test ranking."""
    folder = tmp_path_factory.mktemp("extreme")
    # A folder of its own: what is written into the corpus's folder makes it another corpus.
    corpus = folder / "corpus"
    corpus.mkdir()
    test = write_corpus(corpus)
    pairs = [f"{n} {NAMES.index(row['labels'][0])}\n" for n, row in enumerate(test)]
    (corpus / "filter_labels_test.txt").write_text("".join(pairs))
    (corpus / "filter_labels_train.txt").write_text("0 1\n3 12\n")
    write_encoder(folder / "encoder")
    evaluate = settings(folder)["evaluate"]
    published = {"Renee": {"source": "a table", "metrics": {"p@1": 46.05, "psp@5": 50.33}}}
    write_config(
        folder, data={"reader": "xmc", "path": str(corpus)},
        evaluate=evaluate | {"published": published},
    )  # fmt: skip
    assert main(["run", "--config", str(folder / "config.yaml"), "--debug"]) == 0
    return folder


def test_filtered_pairs_are_out_of_every_ranking(run: Path) -> None:
    report = json.loads((run / "run" / "report" / "report.json").read_text())
    dataset = PreparedDataset.load(run / "run" / "dataset")
    assert dataset.statistics["ignored"]["test"] == {"pairs": 20, "gold": 20}
    # Validation is drawn from training, and takes the pairs of its documents along.
    kept = [dataset.statistics["ignored"][split]["pairs"] for split in ("train", "validation")]
    assert sum(kept) == 2
    counts = dataset.label_csr("test").lengths()
    for name, system in report["systems"].items():
        assert 0 < system["definitions"]["ignored_pairs"] <= 20, name
        # A document whose only label is filtered has none; of the others one is gone.
        assert system["definitions"]["documents_without_gold"] == (counts == 1).sum() > 0
    assert "Filter file: the scores of 20 pairs" in (run / "run/report/report.md").read_text()


def test_published_figures_are_in_the_report_and_in_the_closing_words(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(run / "config.yaml")
    assert main(["evaluate", "--config", config]) == 0
    said = capsys.readouterr().out
    assert "beside published figures" in said
    assert "Renee: a table" in said
    assert "46.05" in said
    text = (run / "run" / "report" / "report.md").read_text()
    assert "## Published figures" in text
    assert "- Renee: a table" in text
    # Another figure makes the report anew, and trains nothing again.
    before = (run / "run/classifier/manifest.json").read_text()
    words = ["--set", "evaluate.published.Renee.metrics={map: 12.5}"]
    assert main(["run", "--config", config, *words]) == 0
    assert "MAP" in capsys.readouterr().out
    assert (run / "run/classifier/manifest.json").read_text() == before


def test_bags_of_words_are_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_text("2 3 2\n0 0:1 1:0.5\n0,1 2:1\n")
    write_encoder(tmp_path / "encoder")
    config = str(write_config(tmp_path, data={"reader": "xmc", "path": str(tmp_path)}))
    assert main(["prepare", "--config", config]) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "bag-of-words features only (train.txt) and no text to train on" in said
    assert "plant_dist.data.files.sparse.open_matrices" in said
    assert not (tmp_path / "run" / "dataset").exists()
    assert main(["prepare", "--config", config, "--dry-run"]) == 0
    assert "cannot run yet" in capsys.readouterr().out
