"""The files of one checkpoint: how each part of a training state is written and read back.

safetensors for tensors, JSON for the rest, and a manifest with every file's size and sha256, so
that a torn or damaged file is noticed before anything is loaded. Every rank writes its share. Which
checkpoint is written, kept or chosen is decided in `checkpoint.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plant_dist.artifacts import file_digest, flush_to_disk, write_json
from plant_dist.errors import ArtifactError
from plant_dist.runtime.apart import Snapshot, kept_apart
from plant_dist.runtime.held import Held, fill_weights
from plant_dist.runtime.pieces import Piece, Pieces, whole, write_pieces

# Raise it when older checkpoints can no longer be read.
FORMAT = 3
MANIFEST, STATE = "manifest.json", "state.json"
GENERATORS = "generators"


Named = Mapping[str, Tensor]
Measured = Mapping[str, Mapping[str, Any]]


class Attachment(Protocol):
    """Files that a training wants in its checkpoints, such as an index."""

    def ready(self) -> None:
        """Bring the files to where rank 0 can see them. All ranks call."""

    def write(self, folder: Path) -> None:
        """Write or link the files into a checkpoint's folder. Rank 0 calls."""

    def read(self, folder: Path) -> None:
        """Go on from the files of a checkpoint. All ranks call."""


@dataclass
class TrainingState:
    """The live objects a checkpoint holds; loading fills them in place.

    Attributes:
        model: the bare module, outside any wrapper.
        optimizer, schedule: torch's own.
        averages: moving averages by parameter name; empty where none are kept.
        scaler: the fp16 gradient scaler, or None.
        attachments: what adds files of its own.
        held: what of model and optimizer lies on this rank; None where it is all of them.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    averages: Named = field(default_factory=dict)
    scaler: Any | None = None
    attachments: Sequence[Attachment] = ()
    held: Held | None = None

    def part(self, rank: int, world: int) -> Held:
        """Return what lies on a rank."""
        return self.held or Held(self.model, self.optimizer, self.averages, rank, world)


@dataclass(frozen=True)
class Part:
    """What one rank writes of a training state: tensors that steps change, or copies of them.

    Attributes:
        pieces: its share of the tensors, and the states of its generators.
        apart: what its modules kept apart write.
    """

    pieces: Sequence[Piece]
    apart: Sequence[Snapshot]
    rank: int
    world: int

    @classmethod
    def of(cls, state: TrainingState, generators: Named, rank: int, world: int) -> Part:
        """Return a rank's part. Args: generators: as `capture_generators` gives them."""
        # Ranks have dropout masks of their own.
        own = (whole(GENERATORS, f"{rank}.{name}", one) for name, one in generators.items())
        apart = [module.snapshot() for module in kept_apart(state.model)]
        return cls(
            [*state.part(rank, world).pieces(), *own],
            [one for one in apart if one is not None], rank, world,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """The size of the tensors: what a copy of them takes."""
        pieces = sum(one.values.nbytes for one in self.pieces)
        return pieces + sum(one.nbytes for one in self.apart)

    def copied(self) -> Part:
        """Return the same in host memory, where no step changes it."""
        pieces = [
            one._replace(values=one.values.detach().to("cpu", copy=True)) for one in self.pieces
        ]
        return replace(self, pieces=pieces, apart=[one.copied() for one in self.apart])

    def write(self, folder: Path) -> list[Path]:
        """Write it; return the files, which are on disk.

        Raises:
            ArtifactError, OSError, SafetensorError: they cannot be written.
        """
        paths = [path for one in self.apart for path in one.write(folder)]
        paths += write_pieces(folder, self.pieces, self.rank, self.world)
        for path in paths:
            flush_to_disk(path)
        return paths


def write_part(folder: Path, part: Part, shared: Iterable[str] = ()) -> Measured:
    """Write a rank's part, and bring files that lie there already to disk.

    Args: shared: names of these.
    Returns: size and sha256 of all of them, by name.

    Raises:
        ArtifactError, OSError, SafetensorError: they cannot be written.
    """
    own = [path.relative_to(folder).as_posix() for path in part.write(folder)]
    for name in shared:
        flush_to_disk(folder / name)
    return measure(folder, [*own, *shared])


def write_shared(folder: Path, state: TrainingState, position: Mapping[str, Any]) -> None:
    """Write what is the same on every rank. Rank 0 calls."""
    content = {
        "position": dict(position),
        "optimizer": state.part(0, 1).groups(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
    }
    write_json(folder / STATE, content)
    for attachment in state.attachments:
        attachment.write(folder)


def read_state(folder: Path, state: TrainingState) -> dict[str, Any]:
    """Fill a training state from a checked folder, whatever ranks wrote it. All ranks must call.

    Returns: the position that was saved.

    Raises:
        ArtifactError: it holds another model or optimizer.
    """
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    state.part(0, 1).fill(folder, content["optimizer"])
    for module in kept_apart(state.model):
        module.load(folder, resume=True)
    state.schedule.load_state_dict(content["schedule"])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    for attachment in state.attachments:
        attachment.read(folder)
    position: dict[str, Any] = content["position"]
    return position


def read_generators(folder: Path, rank: int) -> dict[str, Tensor]:
    """Return the states of the generators of a rank."""
    mine = f"{rank}."
    with Pieces(folder, GENERATORS) as saved:
        return {n.removeprefix(mine): saved.read(n) for n in saved if n.startswith(mine)}


def read_weights(folder: Path, model: nn.Module) -> None:
    """Fill a bare model, and its modules kept apart, with a checkpoint's weights alone."""
    fill_weights(model, folder)
    for module in kept_apart(model):
        module.load(folder, resume=False)


def files_of(folder: Path) -> list[str]:
    """Return the names of all files in a checkpoint but the manifest, in one order."""
    every = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in every if name != MANIFEST)


def measure(folder: Path, names: Iterable[str]) -> Measured:
    """Return the size and sha256 of some files."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in names
    }


def write_manifest(folder: Path, about: Mapping[str, Any], files: Measured) -> None:
    """Write what a checkpoint is, and the size and hash of each of its files."""
    write_json(folder / MANIFEST, {"format": FORMAT, **about, "files": dict(sorted(files.items()))})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest after checking every file against it.

    Raises:
        ArtifactError: a file is missing, truncated or changed; names it.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found_format = manifest["format"]
        for name, expected in manifest["files"].items():
            path = folder / name
            # Size before hash: the usual damage is a file cut short, and costs no reading.
            if path.stat().st_size != expected["bytes"]:
                raise ArtifactError(
                    f"{path} is truncated: {path.stat().st_size} of {expected['bytes']} bytes"
                )
            if file_digest(path) != expected["sha256"]:
                raise ArtifactError(f"{path} is damaged: its sha256 is not the manifest's")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} is unreadable ({_first_line(error)})") from None
    if found_format != FORMAT:
        raise ArtifactError(f"{folder} has checkpoint format {found_format}; this is {FORMAT}")
    return manifest


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
