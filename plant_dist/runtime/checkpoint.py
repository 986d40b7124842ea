"""Checkpoints: everything a run needs to go on exactly, in folders written whole or not at all.

`checkpoints/step-00000123/` holds safetensors and JSON only: weights, optimizer, schedule, scaler,
averages, the generators of every rank, the loop's position, and a manifest with the size and
sha256 of each file. The files `latest` and `best` name a folder. A checkpoint is written by rank 0
to a file system that all ranks share; modules kept apart (`apart.py`) are written by every rank.
This module does not know what is trained, nor how.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from plant_dist.artifacts import flush_to_disk, short, written_whole
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.runtime.apart import kept_apart
from plant_dist.runtime.checkpoint_files import (
    TrainingState,
    fill_averages,
    fill_model,
    read_manifest,
    read_state,
    write_manifest,
    write_state,
)
from plant_dist.runtime.collectives import broadcast_object, gather_objects
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.generators import capture_generators, restore_generators

__all__ = ["Checkpoints", "TrainingState"]

log = get_logger(__name__)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when first written.
        context: the place of this process.
        keep: how many of the newest are kept; the best is kept besides.
        identity: digest of what the run was started from; another one's checkpoints are refused.
    """

    def __init__(
        self, folder: Path, context: RunContext, keep: int = 2, identity: str = ""
    ) -> None:
        self.folder = folder
        self.context = context
        self.keep = keep
        self.identity = identity

    def save(
        self, state: TrainingState, position: Mapping[str, Any], step: int, best: int | None = None
    ) -> Path:
        """Write a checkpoint; afterwards `latest` names it. All ranks must call.

        Args:
            state: what is saved.
            position: where the loop is, JSON-able; returned as it is by `load`.
            step: optimizer steps done; names the folder.
            best: the step whose checkpoint is the best so far; never removed.
        Returns: the checkpoint's folder.

        Raises:
            ArtifactError: the disk is full or cannot be written; the older checkpoints stay.
        """
        # Before rank 0 turns to its files: all ranks take part, and each has its own dropout.
        generators = gather_objects(self.context, capture_generators(self.context.device))
        if self.context.is_main:
            trouble = self._write(state, position, generators, step, best)
        else:
            trouble = self._write_apart(state.model, None)
        # An error that only rank 0 raised would leave the others waiting at the next collective.
        trouble = broadcast_object(self.context, trouble)
        if trouble is not None:
            raise ArtifactError(trouble)
        return self.path(step)

    def _write(
        self, state: TrainingState, position: Mapping[str, Any], generators: Sequence[Any],
        step: int, best: int | None,
    ) -> str | None:  # fmt: skip
        """Write a checkpoint, on rank 0; return what went wrong."""
        others_wait = True
        try:
            with written_whole(self.path(step)) as fresh:
                write_state(fresh, state, position, generators)
                others_wait = False
                trouble = self._write_apart(state.model, fresh)
                if trouble is not None:
                    raise ArtifactError(trouble)
                write_manifest(fresh, step, self.context.world, self.identity)
            # Files, pointer, removal: killed between any two, the pointer names a whole one.
            self._point(step, best)
            self._prune(step, best)
        except (ArtifactError, OSError, SafetensorError) as error:
            if others_wait:
                self._write_apart(state.model, None)
            if isinstance(error, ArtifactError):
                return str(error)
            return f"{self.path(step)} cannot be written ({error}); free some space there"
        return None

    def _write_apart(self, model: nn.Module, folder: Path | None) -> str | None:
        """Let every rank write what it keeps apart; return what went wrong on any. All ranks call.

        Args: folder: where to, as rank 0 says; None there writes nothing.
        """
        modules = kept_apart(model)
        if not modules:
            return None
        place, trouble = broadcast_object(self.context, folder), None
        try:
            if place is not None:
                for module in modules:
                    module.save(place)
        except ArtifactError as error:
            trouble = str(error)
        return next(filter(None, gather_objects(self.context, trouble)), None)

    def load(self, state: TrainingState) -> dict[str, Any] | None:
        """Fill `state` from the newest readable checkpoint. All ranks must call.

        One that is truncated or unreadable is passed over with a warning for the one before.

        Returns: the position that was saved, or None where there is no checkpoint.

        Raises:
            ArtifactError: none is readable; or the newest readable one is of another number of
                processes, another configuration, or another model.
        """
        chosen: Path | None = None
        trouble: str | None = None
        if self.context.is_main:
            try:
                chosen = self._choose()
            except ArtifactError as error:
                trouble = str(error)
        # One choice for all: ranks that each looked could find different files on a slow disk.
        chosen, trouble = broadcast_object(self.context, (chosen, trouble))
        if trouble is not None:
            raise ArtifactError(trouble)
        if chosen is None:
            return None
        position, generators = read_state(chosen, state, self.context.rank)
        # Last: loading itself must not draw from what it restores.
        restore_generators(generators, self.context.device)
        return position

    def load_weights(self, step: int, model: nn.Module) -> None:
        """Fill a model with the weights of one checkpoint: its averages where it has them.

        Raises:
            ArtifactError: the checkpoint is unreadable or of another model.
        """
        folder = self.path(step)
        read_manifest(folder)
        fill_model(model, folder)
        fill_averages(model, folder)

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the folder that `latest` names, or None."""
        return self._pointed("latest")

    def best(self) -> Path | None:
        """Return the folder that `best` names, or None."""
        return self._pointed("best")

    def _pointed(self, pointer: str) -> Path | None:
        path = self.folder / pointer
        if not path.is_file():
            return None
        # An empty pointer file would name the folder itself.
        target = self.folder / path.read_text(encoding="utf-8").strip()
        return target if target.is_dir() and target != self.folder else None

    def _point(self, step: int, best: int | None) -> None:
        _replace_file(self.folder / "latest", self.path(step).name)
        if best is None:
            (self.folder / "best").unlink(missing_ok=True)
        elif self.path(best).is_dir():
            _replace_file(self.folder / "best", self.path(best).name)

    def _prune(self, step: int, best: int | None) -> None:
        # After going back to an older checkpoint, those of later steps belong to a run that is
        # no more; left alone they would push out the new ones.
        older = [one for one in self._steps() if one <= step]
        kept = {*older[: self.keep], best}
        for one in self._steps():
            if one not in kept:
                shutil.rmtree(self.path(one), ignore_errors=True)
        for partial in self.folder.glob(".step-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)

    def _steps(self) -> list[int]:
        found = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted((int(digits) for digits in found if digits.isdigit()), reverse=True)

    def _candidates(self) -> Iterator[Path]:
        """Newest first, beginning with the one that `latest` names."""
        latest = self.latest()
        for step in self._steps():
            # One newer than `latest` was never announced: its run was killed before.
            if latest is None or self.path(step).name <= latest.name:
                yield self.path(step)

    def _choose(self) -> Path | None:
        passed = 0
        for folder in self._candidates():
            try:
                manifest = read_manifest(folder)
            except ArtifactError as error:
                passed += 1
                log.warning("%s; trying the checkpoint before it", error)
                continue
            self._check_origin(folder, manifest)
            return folder
        if passed:
            raise ArtifactError(
                f"{self.folder}: none of its {passed} checkpoints is readable; add --force "
                "to train from the start"
            )
        return None

    def _check_origin(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        if manifest["processes"] != self.context.world:
            raise ArtifactError(
                f"{folder} was saved by {manifest['processes']} processes, this run has "
                f"{self.context.world}; start {manifest['processes']}, or add --force to train "
                "from the start"
            )
        if manifest["identity"] != self.identity:
            raise ArtifactError(
                f"{self.folder}: its checkpoints are of another configuration "
                f"({short(manifest['identity'])}, this one is {short(self.identity)}); restore its "
                "settings, add --force to train from the start, or name another run folder with "
                "--output"
            )


def _replace_file(path: Path, text: str) -> None:
    """Write a small file so that it has the old or the new content at any moment."""
    fresh = path.with_name(f".{path.name}.partial")
    try:
        fresh.write_text(text + "\n", encoding="utf-8")
        # The bytes before the name: a rename may reach the disk ahead of what it names.
        flush_to_disk(fresh)
        fresh.replace(path)
    finally:
        # A disk that is full has room for the name of a file and none for its bytes.
        fresh.unlink(missing_ok=True)
    flush_to_disk(path.parent)
