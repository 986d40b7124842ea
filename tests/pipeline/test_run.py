"""The whole pipeline on a tiny corpus: what it writes, what it skips, what it refuses."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_corpus import LABELS, SIZES, UNSEEN, write_jsonl

from plant_dist.artifacts import digest_of
from plant_dist.cli import main
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.lock import alone_in

pytestmark = pytest.mark.pipeline
# The losses of 20 steps after every stage before them; whoever renews it says what moved it.
GOLDEN = Path(__file__).parents[1] / "golden" / "planted_curve.json"
ARTIFACTS = {
    "dataset": [],
    "gains": ["dataset"],
    "ranker": ["dataset", "gains"],
    "classifier": ["dataset", "gains", "ranker"],
    "report": ["dataset", "gains", "ranker", "classifier"],
}


def manifest(run: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / name / "manifest.json").read_text())
    return content


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of everything in a folder, but for what every launch logs."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] != "logs"
    }


def remade(before: dict[str, tuple[int, int]], run: Path) -> list[str]:
    """The artifacts whose folder is another one than before."""
    after = stamps(run)
    return [name for name in ARTIFACTS if before.get(name) != after.get(name)]


def test_every_artifact_has_a_manifest_that_names_its_parents(finished: Path) -> None:
    run = finished / "run"
    for name, parents in ARTIFACTS.items():
        content = manifest(run, name)
        # The digest by its definition: what decides the content, and nothing else.
        parts = [content[key] for key in ("stage", "settings", "parents", "sources")]
        assert content["digest"] == digest_of(parts)
        assert content["parents"] == {one: manifest(run, one)["digest"] for one in parents}
        assert content["carries"] == manifest(run, "dataset")["carries"]
        assert set(content["carries"]) == {"tokenizer", "label_space"}
        assert content["versions"]["torch"]
        assert 0 < content["seconds"] < 600
        assert content["peak_memory_bytes"] > 50 * 2**20
    assert not list(run.rglob("*.partial"))
    assert not list(run.glob("checkpoints/*"))


def test_the_label_of_test_alone_is_kept_and_reported(finished: Path) -> None:
    run = finished / "run"
    space = LabelSpace.load(run / "dataset" / "label_space")
    assert list(space.ids) == [*LABELS, UNSEEN]
    assert space.train_frequency[-1] == 0
    statistics = json.loads((run / "dataset" / "statistics.json").read_text())
    assert statistics["labels"]["unseen"]["test"]["labels"] == 1
    assert {k: v["documents"] for k, v in statistics["documents"].items()} == SIZES
    report = json.loads((run / "report" / "report.json").read_text())
    bands = {band["name"]: band for band in report["systems"]["PLANT"]["bands"]}
    assert bands["unseen"]["labels_present"] == 1


def test_the_report_holds_what_is_promised(finished: Path) -> None:
    folder = finished / "run" / "report"
    report = json.loads((folder / "report.json").read_text())
    assert (report["system"], report["split"]) == ("PLANT", "test")
    assert list(report["systems"]) == ["PLANT", "popularity", "TF-IDF"]
    for system in report["systems"].values():
        names = set(system["metrics"])
        assert {f"{m}@{k}" for m in ("p", "r", "ndcg", "psp", "psndcg") for k in (1, 3)} <= names
        assert {
            "map", "r_precision", "micro_f1", "macro_f1", "macro_f1_caml", "micro_auc",
            "macro_auc", "micro_precision", "micro_recall",
        } <= names  # fmt: skip
        assert set(system["decisions"]) == {"global", "per_label", "top_k"}
        assert system["definitions"]["propensity_a"] == 0.55
        assert system["definitions"]["propensity_b"] == 1.5
    # The words are evident: a classifier that reads them must find the labels.
    plant, popular = (report["systems"][name]["metrics"] for name in ("PLANT", "popularity"))
    assert plant["p@1"] >= 0.9 > 0.3 > popular["p@1"]
    assert "A = 0.55, B = 1.5" in (folder / "report.md").read_text()
    assert len(list(folder.glob("*.png"))) >= 3
    ranker = json.loads((finished / "run" / "ranker" / "report.json").read_text())
    assert set(ranker["bands"]) == {"ranker", "token frequency", "chance"}


def test_a_second_run_does_nothing(
    finished: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(finished / "run")
    assert main(["run", "--config", config]) == 0
    said = capsys.readouterr()
    assert said.err.count("up to date") == 5
    assert "tiny: test split, percent" in said.out
    assert stamps(finished / "run") == before


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (["mig.top_tokens=4", "train.max_steps=2"], "gains"),
        (["train.max_steps=2"], "classifier"),
        (["evaluate.baselines=[popularity]"], "report"),
    ],
)
def test_a_changed_setting_remakes_its_stage_and_those_after(
    run_copy: Path,
    config: str,
    changes: list[str],
    first: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = stamps(run_copy)
    overrides = [word for change in changes for word in ("--set", change)]
    assert main(["run", "--config", config, "--output", str(run_copy), *overrides]) == 0
    names = list(ARTIFACTS)
    assert remade(before, run_copy) == names[names.index(first) :]
    section = changes[0].split(".")[0]
    assert f"settings changed: {section}" in capsys.readouterr().err


def test_a_setting_of_comfort_remakes_nothing(run_copy: Path, config: str) -> None:
    before = stamps(run_copy)
    words = ["--set", "train.log_steps=7", "--set", "mig.block_labels=3", "--set", "name=other"]
    assert main(["run", "--config", config, "--output", str(run_copy), *words]) == 0
    assert remade(before, run_copy) == []


def test_another_parent_is_refused_with_both_hashes_and_the_command(
    run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / "dataset" / "manifest.json"
    content = json.loads(path.read_text())
    old = content["digest"]
    content["sources"]["corpus"] = "0" * 64
    path.write_text(json.dumps(content))
    new = digest_of([content[key] for key in ("stage", "settings", "parents", "sources")])
    before = stamps(run_copy)
    assert main(["rank", "--config", config, "--output", str(run_copy)]) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert f"made from dataset {old[:12]}, but the dataset beside it is {new[:12]}" in line
    assert line.endswith(f"run: plant-dist mig --config {config} --output {run_copy}")
    assert stamps(run_copy) == before
    # The command that it names mends it; here the dataset itself is made anew first.
    assert main(["prepare", "--config", config, "--output", str(run_copy)]) == 0
    assert main(["rank", "--config", config, "--output", str(run_copy)]) == 0


def test_another_tokenizer_is_refused_with_both_hashes(
    run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / "gains" / "manifest.json"
    content = json.loads(path.read_text())
    right = content["carries"]["tokenizer"]
    content["carries"]["tokenizer"] = "f" * 64
    path.write_text(json.dumps(content))
    assert main(["train", "--config", config, "--output", str(run_copy)]) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert f"made with tokenizer {'f' * 12}, found tokenizer {right[:12]}" in line
    assert "run: plant-dist mig" in line


def test_a_run_of_another_config_is_not_taken_for_this_one(
    run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--output", str(run_copy)]
    before = stamps(run_copy)
    assert main(["evaluate", *words, "--set", "data.split=random"]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{run_copy}/dataset was made with other settings (data.split: given → random)" in line
    assert "run: plant-dist prepare --config" in line
    assert stamps(run_copy) == before
    # What there is of a classifier may be wanted as it is; that is said and done.
    assert main(["evaluate", *words, "--set", "train.epochs=1"]) == 0
    said = capsys.readouterr().err
    assert "classifier was made with other settings (train.epochs: 3 → 1); evaluate goes" in said


def test_two_launches_do_not_work_in_one_folder(
    run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--config", config, "--output", str(run_copy)]
    with alone_in(run_copy, RunContext()):
        assert main(words) == 4
        said = capsys.readouterr().err
        assert f"{run_copy}: process {os.getpid()} works there, on " in said
        assert "wait until it has ended, or name another run folder with --output" in said
        # To look is always allowed.
        assert main(["status", str(run_copy)]) == 0
    assert main(words) == 0


def test_a_corpus_without_a_test_split_is_noticed_before_training(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (finished / "docs.jsonl").read_text().splitlines()]
    kept = write_jsonl(tmp_path / "docs.jsonl", [one for one in rows if one["split"] != "test"])
    words = ["--config", str(finished / "config.yaml"), "--output", str(tmp_path / "run"),
             "--set", f"data.path={kept}"]  # fmt: skip
    assert main(["run", *words]) == 3
    assert "there is no test document to evaluate on" in capsys.readouterr().err
    assert (tmp_path / "run" / "dataset").exists()
    assert not (tmp_path / "run" / "gains").exists()
    # One who wants no figures can train all the same.
    assert main(["mig", *words]) == 0


def test_force_makes_one_artifact_anew(run_copy: Path, config: str) -> None:
    before = stamps(run_copy)
    assert main(["evaluate", "--config", config, "--output", str(run_copy), "--force"]) == 0
    assert remade(before, run_copy) == ["report"]


def test_a_stage_alone_makes_what_run_makes(finished: Path, run_copy: Path, config: str) -> None:
    """Random choices depend on the seed, not on which stages ran in the same process."""
    assert main(["train", "--config", config, "--output", str(run_copy), "--force"]) == 0
    weights = [run / "classifier" / "model.safetensors" for run in (run_copy, finished / "run")]
    assert weights[0].stat().st_ino != weights[1].stat().st_ino
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_dry_run_writes_nothing(
    finished: Path, tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", config, "--output", str(tmp_path / "new"), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "prepare  would run: not there yet" in plan
    assert not (tmp_path / "new").exists()
    before = stamps(finished)
    assert main(["run", "--config", config, "--set", "rank.sigma=2", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "mig      up to date" in plan
    assert "rank     would run: settings changed: rank" in plan
    assert "train    after the stage above" in plan
    assert "steps    30: 3 epochs of 80 documents in 10 batches" in plan
    assert stamps(finished) == before


def test_a_stage_without_its_parents_names_the_command(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "--config", config, "--output", str(tmp_path / "new")]) == 4
    [line] = capsys.readouterr().err.splitlines()
    assert "dataset does not exist (or is incomplete); run: plant-dist prepare --config" in line


def curves(run: Path) -> EventAccumulator:
    """The event files of a run's training."""
    reader = EventAccumulator(str(run / "tensorboard" / "train"), size_guidance={"scalars": 0})
    reader.Reload()
    return reader


def test_twenty_steps_of_a_planted_classifier_have_the_losses_they_had(finished: Path) -> None:
    losses = [point.value for point in curves(finished / "run").Scalars("1_loss/train")][:20]
    print(json.dumps([round(loss, 6) for loss in losses]))
    expected = json.loads(GOLDEN.read_text())
    assert len(expected) == 20
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("change", ["model.static_k=2", "mig.top_tokens=7", "rank.sigma=0.9"])
def test_the_curve_feels_what_was_planted(finished: Path, tmp_path: Path, change: str) -> None:
    config, run = str(finished / "config.yaml"), tmp_path / "run"
    words = ["--set", change, "--set", "train.max_steps=1", "--set", "evaluate.baselines=[]"]
    assert main(["run", "--config", config, "--output", str(run), *words]) == 0
    # The first loss comes before any step: it knows the planting and nothing of the schedule.
    [loss] = [point.value for point in curves(run).Scalars("1_loss/train")]
    assert loss != pytest.approx(json.loads(GOLDEN.read_text())[0], rel=1e-3)


def test_cached_states_train_as_a_frozen_encoder_does(finished: Path, tmp_path: Path) -> None:
    losses = {}
    for cache in ("none", "fp16"):
        words = ["--config", str(finished / "config.yaml"), "--output", str(tmp_path / cache)]
        for setting in ("train.optim.freeze_encoder=true", "encoder.dropout=0.0",
                        f"encoder.cache={cache}", "evaluate.baselines=[]"):  # fmt: skip
            words += ["--set", setting]
        assert main(["run", *words]) == 0
        losses[cache] = [one.value for one in curves(tmp_path / cache).Scalars("1_loss/train")]
    assert losses["fp16"] == pytest.approx(losses["none"], rel=2e-3)
    # Training, validation and test documents and label texts, each computed once.
    assert len(list((tmp_path / "fp16" / "states").iterdir())) == 4


def test_other_weights_do_not_share_a_cache(finished: Path, tmp_path: Path) -> None:
    base = ["--config", str(finished / "config.yaml"), "--set", "train.optim.freeze_encoder=true"]
    base += ["--set", "encoder.cache=fp16", "--set", f"encoder.cache_folder={tmp_path / 'states'}"]
    base += ["--set", "train.max_steps=1", "--set", "evaluate.baselines=[]"]
    found = []
    for name, changes in {
        "file": [], "again": [], "noise": ["encoder.random_weights=true"],
        "other noise": ["encoder.random_weights=true", "seed=1"], "half": ["encoder.load_in=bf16"],
    }.items():  # fmt: skip
        words = [word for change in changes for word in ("--set", change)]
        assert main(["run", *base, *words, "--output", str(tmp_path / name)]) == 0
        found.append(len(list((tmp_path / "states").iterdir())))
    assert found == [4, 4, 8, 12, 16]


def test_a_cache_of_an_encoder_that_trains_is_refused(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", config, "--output", str(tmp_path / "new")]
    assert main(["run", *words, "--set", "encoder.cache=bf16"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "set train.optim.freeze_encoder=true or encoder.cache=none" in line


def test_tensorboard_holds_what_is_promised(finished: Path) -> None:
    reader = curves(finished / "run")
    tags = reader.Tags()
    scalars = set(tags["scalars"])
    for wanted in (
        "1_loss/train", "2_validation/map", "2_validation/micro_f1", "5_learning_rate/rows",
        "6_gradient_norm/rows", "7_speed/documents_per_second", "7_speed/tokens_per_second",
        "8_memory/peak_gib", "9_saved/map",
    ):  # fmt: skip
        assert wanted in scalars
    assert any(tag.startswith("3_bands_macro_f1/") for tag in scalars)
    for tag in scalars:
        assert all(math.isfinite(point.value) for point in reader.Scalars(tag)), tag
    losses = [point.value for point in reader.Scalars("1_loss/train")]
    assert losses[-1] < losses[0]
    # The best validation is the model that was saved, which is judged once more.
    best = max(point.value for point in reader.Scalars("2_validation/map"))
    assert reader.Scalars("9_saved/map")[-1].value == pytest.approx(best)
    assert any(tag.startswith("validation/micro") for tag in tags["tensors"])
    assert any(tag.startswith("config") for tag in tags["tensors"])
