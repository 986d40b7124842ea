"""A run whose documents consider a shortlist: every command, and what is wrong with an index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import UNSEEN, settings, write_config

from plant_dist.cli import main
from plant_dist.errors import ArtifactError, ConfigError

pytestmark = pytest.mark.pipeline
SHORTLIST = {
    "labels_per_document": 6, "candidates": 11, "refresh_steps": 8, "swap_after": 3, "width": 16,
    "index": "IVF3,Flat",
}  # fmt: skip


@pytest.fixture(scope="module")
def narrowed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with `train.labels: shortlist`; must not be changed."""
    folder = tmp_path_factory.mktemp("narrowed")
    for name in ("docs.jsonl", "labels.jsonl"):
        shutil.copy(inputs / name, folder)
    shutil.copytree(inputs / "encoder", folder / "encoder")
    base = settings(folder)
    write_config(folder, train={**base["train"], "labels": "shortlist"}, shortlist=SHORTLIST)
    assert main(["run", "--config", str(folder / "config.yaml"), "--debug"]) == 0
    return folder


@pytest.fixture
def spoilt(narrowed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(narrowed / "run" / "classifier", tmp_path / "classifier"))


def predicted(folder: Path, texts: Path, out: Path, *words: str) -> list[dict[str, Any]]:
    assert main(["predict", "--model", str(folder), str(texts), "--out", str(out), "--debug",
                 *words]) == 0  # fmt: skip
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_classifier_folder_holds_its_index_and_no_checkpoint_is_left(narrowed: Path) -> None:
    about = json.loads((narrowed / "run/classifier/shortlist/about.json").read_text())
    assert about["labels"] == 13
    assert about["shards"][0]["search"].startswith("nprobe=")
    assert not (narrowed / "run" / "checkpoints" / "train").exists()
    report = json.loads((narrowed / "run" / "report" / "report.json").read_text())
    assert report["systems"]["PLANT"]["definitions"]["candidates"] == 11


def test_labels_added_later_are_found_by_their_text(narrowed: Path, tmp_path: Path) -> None:
    new = [{"id": "NEW", "text": "alphal03 betal03"}, {"id": "FAR", "text": "history of patient"}]
    (tmp_path / "add.jsonl").write_text("".join(json.dumps(one) + "\n" for one in new))
    (tmp_path / "remove.txt").write_text("L01\n")
    assert main(["labels", "--model", str(narrowed / "run" / "classifier"), "--debug",
                 "--add", str(tmp_path / "add.jsonl"), "--remove", str(tmp_path / "remove.txt"),
                 "--output", str(tmp_path / "new")]) == 0  # fmt: skip
    (tmp_path / "text.txt").write_text("alphal03 betal03\n")
    (record,) = predicted(tmp_path / "new", tmp_path / "text.txt", tmp_path / "o.jsonl",
                          "--top-k", "14")  # fmt: skip
    found = [label["id"] for label in record["labels"]]
    assert "NEW" in found
    assert "L01" not in found
    about = json.loads((tmp_path / "new" / "shortlist" / "about.json").read_text())
    assert about["labels"] == 14


def test_retrieved_labels_are_scored_as_all_labels_are(narrowed: Path, tmp_path: Path) -> None:
    """Scores come from the decoder: the index only says of which labels."""
    model, texts = narrowed / "run" / "classifier", narrowed / "docs.jsonl"
    indexed = predicted(model, texts, tmp_path / "a.jsonl", "--top-k", "11")
    exact = predicted(model, texts, tmp_path / "b.jsonl", "--top-k", "11", "--exact")
    assert all(len(record["labels"]) == 11 for record in exact)
    common = 0
    for one, other in zip(indexed, exact, strict=True):
        scores = {label["id"]: label["score"] for label in other["labels"]}
        for label in one["labels"]:
            if label["id"] in scores:
                common += 1
                assert label["score"] == pytest.approx(scores[label["id"]], abs=2e-6)
        # Best first, as the decoder scores and not as the index does.
        assert [x["score"] for x in one["labels"]] == sorted(
            (x["score"] for x in one["labels"]), reverse=True
        )
    assert common > 0.8 * 11 * len(exact)


def test_explain_scores_gold_that_was_not_retrieved(narrowed: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages"
    assert main(["explain", "--model", str(narrowed / "run" / "classifier"),
                 str(narrowed / "docs.jsonl"), "--output", str(out), "--top-k", "1", "--split",
                 "test", "--debug"]) == 0  # fmt: skip
    lines = [json.loads(line) for line in (out / "spans.jsonl").read_text().splitlines()]
    labels = [label for line in lines for label in line["labels"]]
    missed = [label for label in labels if not label["predicted"] and label["id"] != UNSEEN]
    assert len(lines) == 20
    assert missed
    assert all(0 <= label["score"] <= 1 for label in labels if label["score"] is not None)


def test_the_command_builds_anew_and_tunes(
    narrowed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(narrowed / "run", tmp_path / "run"))
    words = ["--config", str(narrowed / "config.yaml"), "--output", str(run), "--debug"]
    assert main(["shortlist", *words, "--set", "shortlist.index=IVF4,SQ8"]) == 0
    said = capsys.readouterr().out
    assert "13 labels" in said
    assert "IVF4,SQ8" in said
    assert "ms per document" in said
    assert main(["shortlist", *words, "--tune", "1.0"]) == 0
    said = capsys.readouterr().out
    tried = [f"nprobe={probes}" for probes in (1, 2, 3, 4)]
    assert [line.split()[0] for line in said.splitlines()[1:5]] == tried
    curve = json.loads((run / "report" / "shortlist_curve.json").read_text())
    assert [point["search"] for point in curve["points"]] == tried
    assert (run / "report" / "shortlist_curve.png").stat().st_size > 1000
    if curve["chosen"] is not None:
        about = json.loads((run / "classifier" / "shortlist" / "about.json").read_text())
        assert about["shards"][0]["search"] == curve["chosen"]
    assert main(["shortlist", *words, "--set", "shortlist.index=Flat"]) == 0
    with pytest.raises(ConfigError, match="Flat, which has no search setting to tune"):
        main(["shortlist", *words, "--tune"])
    assert main(["evaluate", *words, "--exact"]) == 0


def test_two_processes_build_one_index(narrowed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(narrowed / "run", tmp_path / "run"))
    words = ["--config", str(narrowed / "config.yaml"), "--output", str(run)]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "plant_dist", "shortlist", *words],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    # Rank 0 says it, once.
    assert ended.stdout.count("index    13 labels") == 1
    about = json.loads((run / "classifier" / "shortlist" / "about.json").read_text())
    assert [(one["start"], one["stop"]) for one in about["shards"]] == [(0, 6), (6, 13)]
    assert not list((run / "classifier").glob(".shortlist*"))
    texts = narrowed / "docs.jsonl"
    assert predicted(run / "classifier", texts, tmp_path / "o.jsonl", "--top-k", "3")


def test_an_index_of_another_label_space_is_refused(spoilt: Path, narrowed: Path) -> None:
    path = spoilt / "shortlist" / "about.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "label_space": "f" * 64}))
    with pytest.raises(ArtifactError, match=r"label space ffffffffffff.*run: plant-dist shortlist"):
        main(["predict", "--model", str(spoilt), str(narrowed / "docs.jsonl"), "--debug"])
    path.write_text(json.dumps({**about, "width": 15}))
    with pytest.raises(ArtifactError, match="vectors of 15 numbers, which the classifier does"):
        main(["predict", "--model", str(spoilt), str(narrowed / "docs.jsonl"), "--debug"])


def test_exact_scoring_needs_no_index(spoilt: Path, narrowed: Path, tmp_path: Path) -> None:
    shutil.rmtree(spoilt / "shortlist")
    with pytest.raises(ArtifactError, match="holds no index of labels"):
        main(["predict", "--model", str(spoilt), str(narrowed / "docs.jsonl"), "--debug"])
    records = predicted(spoilt, narrowed / "docs.jsonl", tmp_path / "c.jsonl", "--exact")
    assert len(records) == 120


def test_settings_that_contradict_shortlists_are_refused(narrowed: Path) -> None:
    words = ["train", "--config", str(narrowed / "config.yaml"), "--debug"]
    for change, said in (
        (["shortlist.vectors=ranker", "model.branches=[learned]"], "no planted branch to take it"),
        (["model.narrower_share=0.5"], "adds up the scores of all labels"),
        (["shortlist.swap_after=8"], r"swap_after is 8; it must be below shortlist.refresh_steps"),
        (["shortlist.labels_per_document=1"], "must be at least 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            main([*words, *(word for one in change for word in ("--set", one))])


def test_a_classifier_of_all_labels_has_no_index(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A copy: the command is written into the run's log, and others ask how the run ended.
    run = shutil.copytree(finished / "run", tmp_path / "run")
    with pytest.raises(ArtifactError, match="trained on all labels and has no shortlists"):
        main(["shortlist", "--config", str(finished / "config.yaml"), "--output", str(run),
              "--debug"])  # fmt: skip
