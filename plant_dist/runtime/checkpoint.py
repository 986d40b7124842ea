"""Checkpoints: everything a run needs to go on exactly, in folders written whole or not at all.

`checkpoints/step-00000123/` holds safetensors and JSON only: weights, optimizer, schedule, scaler,
averages, the generators of every rank, the loop's position, the config, and a manifest with the
size and sha256 of each file. The files `latest` and `best` name a folder. Every rank writes its
share to a file system that all ranks share (`pieces.py`), and any number of ranks, under any
engine, goes on from it.

Writing goes on beside training: ranks copy their shares to host memory, a thread of each writes its
own, and at a later boundary of steps, when no rank writes any more, the checkpoint gets its name.
Threads never speak to other ranks: their collectives would mix with those of the steps.
This module does not know what is trained, nor how.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from safetensors import SafetensorError
from torch import nn

from plant_dist.artifacts import flush_to_disk, short, written_whole
from plant_dist.config.load import differences
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.runtime.checkpoint_files import (
    Attachment,
    Measured,
    Part,
    TrainingState,
    files_of,
    read_generators,
    read_manifest,
    read_state,
    read_weights,
    write_manifest,
    write_part,
    write_shared,
)
from plant_dist.runtime.collectives import any_rank, broadcast_object, gather_objects
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.runtime.generators import capture_generators, restore_generators
from plant_dist.runtime.held import fill_averages
from plant_dist.runtime.memory import free_host_bytes

__all__ = ["Attachment", "Checkpoints", "TrainingState"]

P = ParamSpec("P")
T = TypeVar("T")
log = get_logger(__name__)


class Writing(NamedTuple):
    """A checkpoint that is not yet whole.

    Attributes:
        step, best: as in `Checkpoints.save`.
        about: what its manifest says.
        fresh: the folder that it is written to.
        naming: on rank 0, closes to give the folder its name.
        files: size and hash of those that this rank writes, when it has.
    """

    step: int
    best: int | None
    about: Mapping[str, Any]
    fresh: Path
    naming: ExitStack
    files: Future[Measured]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when first written.
        context: the place of this process.
        keep: how many of the newest are kept; the best is kept besides.
        identity: digest of what the run was started from; another one's checkpoints are refused.
        config: every setting, to say what has changed when a run goes on.
        beside: whether they are written while training goes on, `runtime.async_checkpoints`.
    """

    def __init__(
        self, folder: Path, context: RunContext, keep: int = 2, identity: str = "",
        config: Mapping[str, Any] | None = None, beside: str = "auto",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.context = context
        self.keep = keep
        self.identity = identity
        self.config = dict(config or {})
        self._beside = beside
        self._writing: Writing | None = None

    def save(
        self, state: TrainingState, position: Mapping[str, Any], step: int, best: int | None = None,
        wait: bool = True,
    ) -> Path:  # fmt: skip
        """Write a checkpoint; when it is whole, `latest` names it. All ranks must call.

        Args:
            state: what is saved, as it is now.
            position: where the loop is, JSON-able; returned as it is by `load`.
            step: optimizer steps done; names the folder.
            best: the step whose checkpoint is the best so far; never removed.
            wait: return when it is whole; else `poll` and `finish` see to it.
        Returns: the checkpoint's folder.

        Raises:
            ArtifactError: it cannot be written, or the one before it could not; older ones stay.
        """
        self.finish()
        for attachment in state.attachments:
            attachment.ready()
        generators = capture_generators(self.context.device)
        about = {"step": step, "processes": self.context.world, "identity": self.identity,
                 "config": self.config, "precision": self.context.precision}  # fmt: skip
        with ExitStack() as naming:

            def begin() -> tuple[Path, list[str]]:
                fresh = naming.enter_context(written_whole(self.path(step)))
                write_shared(fresh, state, position)
                return fresh, files_of(fresh)

            fresh, shared = self._on_main(step, begin)
            part = Part.of(state, generators, self.context.rank, self.context.world)
            beside = not wait and self._fits(part)
            part = part.copied() if beside else part
            files = in_thread(write_part, fresh, part, shared if self.context.is_main else ())
            self._writing = Writing(step, best, about, fresh, naming.pop_all(), files)
        if not beside:
            self.finish()
        return self.path(step)

    def _fits(self, part: Part) -> bool:
        """Say whether a copy of what is to be written may be made. All ranks must call."""
        if self._beside != "auto":
            return self._beside == "always"
        free = free_host_bytes(self.context)
        if any_rank(self.context, part.nbytes > free / 2):
            log.warning(
                "a copy of what checkpoints hold, %.1f GiB on this rank, is more than half of the "
                "%.1f GiB that are free: training waits while they are written",
                part.nbytes / 2**30, free / 2**30,
            )  # fmt: skip
            return False
        return True

    @property
    def writing(self) -> bool:
        """True while this rank writes."""
        return self._writing is not None and not self._writing.files.done()

    def poll(self) -> None:
        """Give the checkpoint in writing its name, if no rank writes any more. All ranks must call.

        Raises:
            ArtifactError: as `save`.
        """
        if self._writing is not None and not any_rank(self.context, self.writing):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint in writing, and give it its name. All ranks must call.

        Raises:
            ArtifactError: as `save`.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        step, best = writing.step, writing.best
        # Without a name after an error, the folder is removed.
        with writing.naming:
            parts = self._on_each(step, writing.files.result)
            files = {name: one for part in parts for name, one in part.items()}
            self._on_main(step, lambda: write_manifest(writing.fresh, writing.about, files))
            # Files, pointer, removal: killed between any two, the pointer names a whole one.
            self._on_main(step, writing.naming.close)
            self._on_main(step, lambda: self._point(step, best))
            self._on_main(step, lambda: self._prune(step, best))

    def abandon(self) -> None:
        """Leave the checkpoint in writing, after an error that other ranks may not have met."""
        if self.context.world == 1:
            # Nobody else is needed to finish it.
            with suppress(ArtifactError):
                self.finish()
            return
        writing, self._writing = self._writing, None
        if writing is not None:
            # Its files are written into the folder that goes.
            writing.files.exception()
            with suppress(CancelledError, ArtifactError), writing.naming:
                raise CancelledError

    def _on_main(self, step: int, compute: Callable[[], T]) -> T:
        """Return on every rank what rank 0 computes; fail on every rank where it fails."""
        found = self._tried(step, compute) if self.context.is_main else None
        result, trouble = broadcast_object(self.context, found) or (None, None)
        if trouble is not None:
            raise ArtifactError(trouble)
        return result  # type: ignore[return-value]

    def _on_each(self, step: int, compute: Callable[[], T]) -> list[T]:
        """Return what each rank computes; fail on every rank where one fails."""
        # An error that one rank alone raised would leave the others waiting at the next collective.
        found = gather_objects(self.context, self._tried(step, compute))
        if trouble := next((trouble for _, trouble in found if trouble), None):
            raise ArtifactError(trouble)
        return [result for result, _ in found]  # type: ignore[misc]

    def _tried(self, step: int, compute: Callable[[], T]) -> tuple[T | None, str | None]:
        """Return a result, or what went wrong."""
        try:
            return compute(), None
        except ArtifactError as error:
            return None, str(error)
        except (OSError, SafetensorError) as error:
            return None, f"{self.path(step)} cannot be written ({error}); free some space there"

    def load(self, state: TrainingState) -> dict[str, Any] | None:
        """Fill `state` from the newest readable checkpoint. All ranks must call.

        One that is truncated or unreadable is passed over with a warning for the one before.

        Returns: the position that was saved, or None where there is no checkpoint.

        Raises:
            ArtifactError: none is readable; or the newest readable one is of another
                configuration, or another model.
        """
        chosen: tuple[Path, Mapping[str, Any]] | None = None
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
        folder, manifest = chosen
        position = read_state(folder, state)
        # Last: loading itself must not draw from what it restores.
        self._restore_generators(folder, manifest)
        return position

    def _restore_generators(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        if manifest["processes"] == self.context.world:
            generators = read_generators(folder, self.context.rank)
            restore_generators(generators, self.context.device)
            return
        log.info(
            "%s was saved by %d processes, this run has %d: dropout masks are drawn anew",
            folder, manifest["processes"], self.context.world,
        )  # fmt: skip
        # Not the masks of the first steps over again, and other ones on every rank.
        stream = manifest["step"] * self.context.world + self.context.rank
        seed_everything(self.context.seed + 1, stream=stream)

    def load_weights(self, step: int, model: nn.Module) -> None:
        """Fill a model with the weights of one checkpoint: its averages where it has them.

        Raises:
            ArtifactError: the checkpoint is unreadable or of another model.
        """
        folder = self.path(step)
        read_manifest(folder)
        read_weights(folder, model)
        fill_averages(model, folder)

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """Return the folder that `latest` names, or None."""
        return pointed(self.folder, "latest")

    def best(self) -> Path | None:
        """Return the folder that `best` names, or None."""
        return pointed(self.folder, "best")

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

    def _choose(self) -> tuple[Path, Mapping[str, Any]] | None:
        passed = 0
        for folder in self._candidates():
            try:
                manifest = read_manifest(folder)
            except ArtifactError as error:
                passed += 1
                log.warning("%s; trying the checkpoint before it", error)
                continue
            self._check_origin(folder, manifest)
            return folder, manifest
        if passed:
            raise ArtifactError(
                f"{self.folder}: none of its {passed} checkpoints is readable; add --force "
                "to train from the start"
            )
        return None

    def _check_origin(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        changed = ", ".join(differences(manifest["config"], self.config)) or "nothing in the config"
        if manifest["identity"] != self.identity:
            raise ArtifactError(
                f"{self.folder}: its checkpoints are of another configuration "
                f"({short(manifest['identity'])}, this one is {short(self.identity)}; changed: "
                f"{changed}); restore its settings, add --force to train from the start, or name "
                "another run folder with --output"
            )
        before, now = manifest["precision"], self.context.precision
        if before != now:  # both of `auto`, on unlike devices
            raise ArtifactError(
                f"{folder} was computed in {before}, this run would be in {now}; go on where there "
                f"is {before}, or add --force to train from the start"
            )
        if manifest["config"] != self.config:
            log.info("%s: going on with changed settings: %s", folder, changed)


def in_thread(compute: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Future[T]:
    """Begin something in a thread of its own, which ends with it; errors are raised by `result`."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
    try:
        return thread.submit(compute, *arguments, **options)
    finally:
        thread.shutdown(wait=False)


def pointed(folder: Path, pointer: str) -> Path | None:
    """Return the checkpoint that a pointer of a folder of checkpoints names, or None."""
    path = folder / pointer
    if not path.is_file():
        return None
    # An empty pointer file would name the folder itself.
    target = folder / path.read_text(encoding="utf-8").strip()
    return target if target.is_dir() and target != folder else None


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
