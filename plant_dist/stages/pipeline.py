"""How stages follow one another: what each needs and makes, what is up to date, what is refused.

A stage is a `Stage` value in its own file. This module runs one: it checks the parents, skips
what is up to date, and writes the artifact whole. It knows the order of the stages, and nothing
of what they compute.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plant_dist.artifacts import (
    Manifest,
    read_manifest,
    require_content,
    require_parent,
    written_artifact,
)
from plant_dist.config.load import differences
from plant_dist.config.load import run_folder as run_folder
from plant_dist.config.schema import Config, EncoderConfig
from plant_dist.errors import ArtifactError, ConfigError
from plant_dist.logs import get_logger
from plant_dist.runtime.collectives import barrier, broadcast_object
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.runtime.launch import launch_name
from plant_dist.runtime.progress import Progress, read_progress, write_progress
from plant_dist.stages.forcing import ask, begin_stage, is_forced, stage_made

log = get_logger(__name__)

LANGUAGE_MODEL, RANKER = "language_model", "ranker"
# Which stage makes an artifact, in the order of the data: what repair commands name.
MAKER = {
    "dataset": "prepare",
    "gains": "mig",
    LANGUAGE_MODEL: "lm",
    RANKER: "rank",
    "classifier": "train",
    "report": "evaluate",
}


@dataclass(frozen=True)
class Job:
    """One run of the program: its config, its folder, its place among the ranks.

    Attributes:
        command: the words that repair commands repeat, such as `--config configs/x.yaml`.
        profile: record what some early steps of a training spend their time on.
    """

    config: Config
    context: RunContext
    command: str = ""
    profile: bool = False

    @property
    def folder(self) -> Path:
        """The run folder: `output`, or runs/NAME."""
        return run_folder(self.config)

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder that stages run: the one named, or the AWD-LSTM that `lm` has trained."""
        section = self.config.encoder
        if not trains_language_model(self.config):
            return section
        return replace(section, name=str(self.artifact(LANGUAGE_MODEL)))

    def artifact(self, name: str) -> Path:
        """Return the folder of an artifact."""
        return self.folder / name

    def repair(self, name: str) -> str:
        """Return the command that makes an artifact anew."""
        return f"plant-dist {MAKER[name]} {self.command}".strip()


def trains_language_model(config: Config) -> bool:
    """True where the encoder is an AWD-LSTM, so that the stage `lm` is a part of the run."""
    return config.encoder.kind == "awd_lstm"


def plants_ranker(config: Config) -> bool:
    """True where the classifier takes something of the ranker, so that `rank` is a part of the run.

    Queries may be planted without a planted branch.
    """
    return "planted" in config.model.branches or config.model.query_init == "planted"


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: the word on the command line.
        makes: the artifact it writes.
        needs: the artifacts it reads, oldest first.
        settings: the settings its result depends on, for the manifest.
        sources: hashes of what else it reads.
        build: writes the artifact into a folder (None on ranks that write nothing) and returns
            the hashes that the manifest carries.
        alone: True where one process does the work and the others wait.
        encodes: True where it runs the encoder; what `lm` makes is then one of its parents.
        applies: False for configs under which the stage cannot be.
        used: False for configs whose classifier takes nothing of what the stage makes, so that a
            whole run leaves it out; by its name it is run all the same.
        check: refuses, before any stage begins, what the stage would refuse after others have run.
    """

    name: str
    makes: str
    needs: tuple[str, ...]
    settings: Callable[[Config], Mapping[str, Any]]
    build: Callable[[Job, Path | None], Mapping[str, str]]
    sources: Callable[[Job], Mapping[str, str]] = lambda job: {}
    alone: bool = False
    encodes: bool = False
    applies: Callable[[Config], bool] = _always
    used: Callable[[Config], bool] = _always
    check: Callable[[Job], None] = lambda job: None

    def parents(self, config: Config) -> tuple[str, ...]:
        """Return the artifacts that it reads under a config.

        These are `needs`, less a ranker that nothing is taken of, and the trained encoder.
        """
        read = [name for name in self.needs if name != RANKER or plants_ranker(config)]
        if self.encodes and trains_language_model(config):
            read.append(LANGUAGE_MODEL)
        return tuple(read)

    def belongs(self, config: Config) -> bool:
        """True where the stage is a part of a whole run under a config."""
        return self.applies(config) and self.used(config)


def run_stage(stage: Stage, job: Job) -> bool:
    """Make a stage's artifact unless it is up to date. All ranks must call.

    Returns: True where it was made, False where it was up to date.

    Raises:
        ArtifactError: a parent is missing, unreadable, or was made from other parents.
        ConfigError: the config has no use for the stage.
    """
    if not stage.applies(job.config):
        raise ConfigError(
            f"encoder.kind is {job.config.encoder.kind}, which needs no stage {stage.name}; "
            "leave it out, or set encoder.kind=awd_lstm"
        )
    expected = expected_manifest(stage, job)
    # Rank 0 decides for all: ranks that read a shared disk at unlike moments would part ways.
    current = broadcast_object(job.context, state_of(stage, job, expected))
    if current == "up to date":
        log.info("%s: up to date (%s)", stage.name, job.artifact(stage.makes))
        return False
    log.info("%s: %s", stage.name, current)
    if job.context.is_main:
        begin_stage(job.folder, stage.name, job.folder / "checkpoints" / stage.name)
        write_progress(job.folder, Progress(stage.name))
    # A stage draws the same numbers whether `run` made the stages before it or another process.
    seed_everything(job.context.seed)
    with _writing(stage, job, expected) as folder:
        if job.context.is_main or not stage.alone:
            # In time for the manifest, which is written as the block ends, after the content.
            expected.carries.update(stage.build(job, folder))
    if job.context.is_main:
        # The artifact is there: what a killed run would have gone on from is of no more use.
        shutil.rmtree(job.folder / "checkpoints" / stage.name, ignore_errors=True)
        stage_made(job.folder, stage.name)
        # What its training told stays, as the last figures of the stage that has ended.
        told = read_progress(job.folder) or Progress(stage.name)
        write_progress(job.folder, replace(told, made=True, seconds_left=None))
    # No rank goes on to read an artifact that is not in its place yet.
    barrier(job.context)
    return True


def force(stages: Iterable[Stage], job: Job) -> None:
    """Have stages make their artifacts from nothing, also those up to date. All ranks must call."""
    if job.context.is_main:
        ask(job.folder, [stage.name for stage in stages], launch_name())
    # No rank looks at what the main process is about to change.
    barrier(job.context)


def training_folders(stage: Stage, job: Job) -> tuple[Path, Path]:
    """Return the folders of a training's checkpoints and of its curves. All ranks must call.

    Curves of an earlier training are removed when there is nothing to resume, so that TensorBoard
    never shows two trainings as one.
    """
    checkpoints = job.folder / "checkpoints" / stage.name
    curves = job.folder / "tensorboard" / stage.name
    if job.context.is_main and not checkpoints.exists():
        shutil.rmtree(curves, ignore_errors=True)
    barrier(job.context)
    return checkpoints, curves


@contextlib.contextmanager
def _writing(stage: Stage, job: Job, manifest: Manifest) -> Iterator[Path | None]:
    if not job.context.is_main:
        yield None
        return
    with written_artifact(job.artifact(stage.makes), manifest) as folder:
        yield folder


def expected_manifest(stage: Stage, job: Job) -> Manifest:
    """Return the manifest that an up-to-date artifact of a stage would have.

    Raises:
        ArtifactError: as `run_stage`.
    """
    parents = {name: parent_manifest(name, job) for name in stage.parents(job.config)}
    check_lineage(parents, job)
    return Manifest(
        stage=stage.name,
        settings=dict(stage.settings(job.config)),
        parents={name: manifest.digest for name, manifest in parents.items()},
        sources=dict(stage.sources(job)),
    )


def parent_manifest(name: str, job: Job) -> Manifest:
    """Return the manifest of an artifact that must be there.

    Raises:
        ArtifactError: it is missing; names the command that makes it.
    """
    manifest = read_manifest(job.artifact(name))
    if manifest is None:
        raise ArtifactError(
            f"{job.artifact(name)} does not exist (or is incomplete); run: {job.repair(name)}"
        )
    return manifest


def check_lineage(parents: Mapping[str, Manifest], job: Job) -> None:
    """Check that artifacts used together were made from one another.

    Raises:
        ArtifactError: one was made from another dataset, tokenizer or label space.
    """
    for child_name, child in parents.items():
        for name in child.parents:
            # An artifact may have parents that this stage does not read, so need not check.
            if name in parents:
                require_parent(child, name, parents[name], job.repair(child_name))
        for kind, digest in child.carries.items():
            for name in set(child.parents) & set(parents):
                # A parent that says nothing of this kind contradicts nothing.
                found = parents[name].carries.get(kind, digest)
                where = str(job.artifact(child_name))
                require_content(kind, digest, found, where, job.repair(child_name))


def check_config(stage: Stage, makers: Iterable[Stage], job: Job) -> None:
    """Check that what a stage reads was made under the config at hand; a whole run makes it so.

    Args: makers: all stages, those that have made it among them.

    Raises:
        ArtifactError: the dataset is of another corpus, or its tokens are other ones. That
            anything else has changed is only said: what there is may be wanted as it is.
    """
    by_artifact = {one.makes: one for one in makers}
    for name in stage.parents(job.config):
        manifest = read_manifest(job.artifact(name))
        if manifest is None:
            continue  # said when the stage begins
        changed = differences(manifest.settings, by_artifact[name].settings(job.config))
        said = f"{job.artifact(name)} was made with other settings ({', '.join(changed)})"
        if name == "dataset" and any(one.startswith(("data.", "tokens.")) for one in changed):
            raise ArtifactError(
                f"{said}; run: {job.repair(name)}, or take the config that it was made with"
            )
        if changed:
            log.warning("%s; %s goes on with it", said, stage.name)


def state_of(stage: Stage, job: Job, expected: Manifest) -> str:
    """Say whether an artifact is up to date, and if not, what differs."""
    found = read_manifest(job.artifact(stage.makes))
    if found is None:
        return "not there yet"
    if is_forced(job.folder, stage.name):
        return "made anew (--force)"
    if found.digest == expected.digest:
        return "up to date"
    # Parents first: that one was made anew explains more than any setting.
    for what in ("parents", "sources", "settings"):
        here, there = getattr(expected, what), getattr(found, what)
        keys = sorted(k for k in {*here, *there} if here.get(k) != there.get(k))
        if keys:
            return f"{what} changed: {', '.join(keys)}"
    return "made by another stage"


def command_words(config_path: Path | None, overrides: tuple[str, ...], output: str | None) -> str:
    """Return the options that name a run, quoted for a shell."""
    words = ["--config", str(config_path)] if config_path else []
    for override in overrides:
        words += ["--set", override]
    if output:
        words += ["--output", output]
    return shlex.join(words)
