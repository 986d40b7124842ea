"""Modules that wrappers, optimizers and model files leave alone: they look after their own rows.

A table of millions of rows, of which a step touches a few, is not for DistributedDataParallel
(which would exchange all of it), nor for an optimizer that moves every row, nor for one file that
rank 0 writes. Such a table exchanges, updates and saves itself; engine, loop and checkpoints look
for modules of this class inside a model and know nothing else of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from torch import nn
from torch.optim import Optimizer


class Snapshot(Protocol):
    """What a rank writes of a module: tensors that training goes on changing, or copies of them."""

    @property
    def nbytes(self) -> int:
        """The size of the tensors."""

    def copied(self) -> Snapshot:
        """Return the same in host memory, where no step changes it."""

    def write(self, folder: Path) -> list[Path]:
        """Write it into a folder that all ranks share; return the files.

        Raises:
            ArtifactError: it cannot be written.
        """


class KeptApart(nn.Module, ABC):
    """A module whose parameters are this rank's own, and never have a `grad`.

    Its parameters stand in the optimizer's groups for the sake of their learning rates, which
    schedules move. A training step is `begin`, forward and backward passes, and `step`, or nothing
    where the loop skips the update.
    """

    @abstractmethod
    def begin(self, optimizer: Optimizer) -> None:
        """Take the learning rates of the coming step from the optimizer's groups.

        Gradients that no `step` has taken are dropped.
        """

    @abstractmethod
    def step(self) -> None:
        """Update what the backward passes since `begin` gave gradients. All ranks must call."""

    def settle(self) -> None:
        """Have the parameters hold the newest values and nothing but them count from here on.

        Before they are read, or written by anything but `step`: a module may keep copies in a
        cache, which would hide what is written and later be laid over it.
        """

    @abstractmethod
    def snapshot(self, resume: bool = True) -> Snapshot | None:
        """Return what this rank writes, as it is now; None where it writes nothing.

        Args:
            resume: the optimizer's state as well.
        """

    def save(self, folder: Path, resume: bool = True) -> None:
        """Write this rank's part, here and now; arguments and errors as there."""
        snapshot = self.snapshot(resume)
        if snapshot is not None:
            snapshot.write(folder)

    @abstractmethod
    def load(self, folder: Path, resume: bool = True) -> None:
        """Read this rank's part of what any number of ranks saved.

        Args:
            resume: the optimizer's state as well.

        Raises:
            ArtifactError: a file is missing or cut short, or is of another model.
        """


def kept_apart(model: nn.Module) -> list[KeptApart]:
    """Return the modules inside a model that look after themselves."""
    return [module for module in model.modules() if isinstance(module, KeptApart)]


def names_kept_apart(model: nn.Module) -> set[str]:
    """Return the names, in the model's state dict, of all tensors of such modules."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, KeptApart)
        for name in module.state_dict()
    }
