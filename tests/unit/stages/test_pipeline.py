"""The order of stages on made-up stages: what is made, skipped, refused; nothing is trained."""

from __future__ import annotations

import random
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plant_dist.artifacts import Manifest, read_manifest, written_artifact
from plant_dist.cli import build_parser
from plant_dist.config.schema import Config, MigConfig, ModelConfig, RankConfig
from plant_dist.errors import ArtifactError, TrainingError
from plant_dist.runtime.context import RunContext
from plant_dist.stages import evaluate, lm, rank, train
from plant_dist.stages.pipeline import (
    Job,
    Stage,
    check_lineage,
    command_words,
    expected_manifest,
    force,
    run_folder,
    run_stage,
    state_of,
    training_folders,
)


def job(folder: Path, **changes: Any) -> Job:
    config = replace(Config(output=str(folder)), **changes)
    return Job(config, RunContext(seed=config.seed), "--config a.yaml")


def made_stage(
    name: str, makes: str, needs: tuple[str, ...] = (), sources: Mapping[str, str] | None = None
) -> Stage:
    """A stage that depends on the section mig and writes a random number."""

    def build(job: Job, folder: Path | None) -> Mapping[str, str]:
        assert folder is not None
        (folder / "number").write_text(str(random.random()))
        return {"tokenizer": "tt"}

    def settings(config: Config) -> Mapping[str, Any]:
        return {"top": config.mig.top_tokens} if name == "mig" else {}

    return Stage(name, makes, needs, settings, build, lambda job: dict(sources or {}))


PREPARE = made_stage("prepare", "dataset")
MIG = made_stage("mig", "gains", ("dataset",))
RANK = made_stage("rank", "ranker", ("dataset", "gains"))
THREE = (PREPARE, MIG, RANK)


def numbers(folder: Path) -> list[str]:
    return [(folder / stage.makes / "number").read_text() for stage in THREE]


def test_stages_are_made_once(tmp_path: Path) -> None:
    assert [run_stage(stage, job(tmp_path)) for stage in THREE] == [True] * 3
    before = numbers(tmp_path)
    assert [run_stage(stage, job(tmp_path)) for stage in THREE] == [False] * 3
    assert numbers(tmp_path) == before


def test_a_changed_setting_remakes_what_follows(tmp_path: Path) -> None:
    for stage in THREE:
        run_stage(stage, job(tmp_path))
    changed = job(tmp_path, mig=MigConfig(top_tokens=3))
    assert [run_stage(stage, changed) for stage in THREE] == [False, True, True]


def test_every_draw_depends_on_the_seed_and_not_on_the_stages_before(tmp_path: Path) -> None:
    for stage in THREE:
        run_stage(stage, job(tmp_path / "together"))
    for stage in THREE:
        random.seed()
        run_stage(stage, job(tmp_path / "apart"))
    assert numbers(tmp_path / "together") == numbers(tmp_path / "apart")
    run_stage(PREPARE, job(tmp_path / "other", seed=1))
    assert (tmp_path / "other/dataset/number").read_text() != numbers(tmp_path / "apart")[0]


def test_what_differs_is_said(tmp_path: Path) -> None:
    here = job(tmp_path)

    def state(stage: Stage, of: Job = here) -> str:
        return state_of(stage, of, expected_manifest(stage, of))

    assert state(PREPARE) == "not there yet"
    for stage in THREE:
        run_stage(stage, here)
    assert state(MIG) == "up to date"
    assert state(MIG, job(tmp_path, mig=MigConfig(top_tokens=3))) == "settings changed: top"
    assert state(made_stage("prepare", "dataset", sources={"corpus": "c"})) == (
        "sources changed: corpus"
    )
    assert state(made_stage("other", "dataset")) == "made by another stage"
    with written_artifact(tmp_path / "dataset", Manifest("prepare", {"x": 1}, {})):
        pass
    assert state(MIG) == "parents changed: dataset"


def test_force_remakes_and_forgets_checkpoints(tmp_path: Path) -> None:
    run_stage(PREPARE, job(tmp_path))
    before = (tmp_path / "dataset/number").stat().st_ino
    force([PREPARE], job(tmp_path))
    assert run_stage(PREPARE, job(tmp_path))
    assert not run_stage(PREPARE, job(tmp_path))
    assert (tmp_path / "dataset/number").stat().st_ino != before
    kept = tmp_path / "checkpoints/rank/step-1"
    kept.mkdir(parents=True)
    curves = tmp_path / "tensorboard/rank"
    curves.mkdir(parents=True)
    assert training_folders(RANK, job(tmp_path)) == (kept.parent, curves)
    assert kept.exists()  # there is something to go on from, with its curves
    assert curves.exists()
    run_stage(MIG, job(tmp_path))
    force([RANK], job(tmp_path))
    seen = []

    def build(job: Job, folder: Path | None) -> Mapping[str, str]:
        training_folders(RANK, job)
        seen.append((kept.exists(), curves.exists()))
        raise TrainingError("lost a node")

    with pytest.raises(TrainingError):
        run_stage(replace(RANK, build=build), job(tmp_path))
    assert seen == [(False, False)]
    # What it had saved by then is gone on with, though the same words are said again.
    kept.mkdir(parents=True)
    with pytest.raises(TrainingError):
        run_stage(replace(RANK, build=build), job(tmp_path))
    assert seen[1] == (True, False)
    assert run_stage(RANK, job(tmp_path))
    assert not kept.exists()
    assert not curves.exists()


def test_checkpoints_go_when_the_artifact_is_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/prepare/step-1").mkdir(parents=True)
    run_stage(PREPARE, job(tmp_path))
    assert not (tmp_path / "checkpoints/prepare").exists()


def test_a_failing_stage_leaves_the_old_artifact(tmp_path: Path) -> None:
    run_stage(PREPARE, job(tmp_path))
    before = (tmp_path / "dataset/number").read_text()

    def build(job: Job, folder: Path | None) -> Mapping[str, str]:
        assert folder is not None
        (folder / "number").write_text("half")
        raise TrainingError("no")

    force([PREPARE], job(tmp_path))
    with pytest.raises(TrainingError):
        run_stage(replace(PREPARE, build=build), job(tmp_path))
    assert (tmp_path / "dataset/number").read_text() == before


def test_a_missing_parent_names_its_command(tmp_path: Path) -> None:
    run_stage(PREPARE, job(tmp_path))
    with pytest.raises(ArtifactError, match=r"gains does not exist .* plant-dist mig --config a"):
        run_stage(RANK, job(tmp_path))


@pytest.mark.parametrize(
    ("sections", "read"),
    [
        ({}, True),
        ({"model": ModelConfig(branches=("learned", "static"))}, False),
        (
            {
                "model": ModelConfig(branches=("learned",), query_init="planted"),
                "rank": RankConfig(kind="contextual"),
            },
            True,
        ),
    ],
)
def test_a_ranker_is_part_of_a_run_where_something_is_taken_of_it(
    sections: dict[str, Any], read: bool
) -> None:
    config = replace(Config(), **sections)
    assert ("ranker" in train.STAGE.parents(config)) == read
    assert ("ranker" in evaluate.STAGE.parents(config)) == read
    assert rank.STAGE.belongs(config) == read
    # By its name it is made all the same: it can be read as a vocabulary.
    assert rank.STAGE.applies(config)
    assert rank.STAGE.parents(config) == ("dataset", "gains")
    assert not lm.STAGE.belongs(config)


def test_parents_of_two_families_are_refused(tmp_path: Path) -> None:
    for stage in THREE:
        run_stage(stage, job(tmp_path))
    other = Manifest("prepare", {"other": 1}, {})
    with written_artifact(tmp_path / "dataset", other):
        pass
    gains = read_manifest(tmp_path / "gains")
    assert gains is not None
    with pytest.raises(ArtifactError) as caught:
        run_stage(RANK, job(tmp_path))
    for part in (gains.parents["dataset"][:12], other.digest[:12], "plant-dist mig --config a"):
        assert part in str(caught.value)


def test_parents_that_carry_different_tokenizers_are_refused(tmp_path: Path) -> None:
    dataset = Manifest("prepare", {}, {}, carries={"tokenizer": "a" * 64})
    gains = Manifest("mig", {}, {"dataset": dataset.digest}, carries={"tokenizer": "a" * 64})
    check_lineage({"dataset": dataset, "gains": gains}, job(tmp_path))
    other = replace(gains, carries={"tokenizer": "b" * 64})
    with pytest.raises(ArtifactError, match="made with tokenizer bbbbbbbbbbbb, found tokenizer aa"):
        check_lineage({"dataset": dataset, "gains": other}, job(tmp_path))


def test_the_repair_command_is_one_that_the_program_takes(tmp_path: Path) -> None:
    words = command_words(Path("my config.yaml"), ("data.path='a b'", "seed=3"), "out dir")
    command = Job(Config(), RunContext(), words).repair("gains")
    program, *arguments = shlex.split(command)
    assert program == "plant-dist"
    options = build_parser().parse_args(arguments)
    assert options.command == "mig"
    assert options.config == Path("my config.yaml")
    assert options.overrides == ["data.path='a b'", "seed=3"]
    assert options.output == "out dir"


def test_the_run_folder(tmp_path: Path) -> None:
    assert run_folder(Config(name="x")) == Path("runs/x")
    assert run_folder(Config(name="x", output=str(tmp_path))) == tmp_path
