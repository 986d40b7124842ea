"""What of a model and its optimizer lies on a rank: what it writes, and where it reads it back to.

`Held` is the form in which every process has all of it (one process, DDP); an engine that cuts
tensors up brings a form of its own. All of them write the same names, so that one engine goes on
from what another saved.

Names: `model` NAME; `optimizer` KEY/NAME, such as `exp_avg/head.weight`; `averages` NAME.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plant_dist.errors import ArtifactError
from plant_dist.runtime.apart import names_kept_apart
from plant_dist.runtime.pieces import Piece, Pieces, whole

MODEL, OPTIMIZER, AVERAGES = "model", "optimizer", "averages"


class Held:
    """A model, its optimizer and its averages, whole on every rank.

    Args:
        model: the bare module.
        optimizer: torch's own, with every group that learns.
        averages: moving averages by parameter name.
        rank, world: which of the tensors this rank writes.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, averages: Mapping[str, Tensor],
        rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.averages = model, optimizer, averages
        self.rank, self.world = rank, world

    def pieces(self) -> Iterator[Piece]:
        """Yield what this rank writes; all ranks together yield every number once."""
        yield from shared_out(self.tensors(), self.rank, self.world)

    def tensors(self, skip: Callable[[str], bool] = lambda name: False) -> list[Piece]:
        """Return everything that is whole on every rank.

        Args: skip: says of a parameter's name that it is not, nor what the optimizer keeps of it.
        """
        found = [whole(MODEL, name, one) for name, one in own_tensors(self.model) if not skip(name)]
        for name, parameter in self._learning():
            if not skip(name):
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found.append(whole(OPTIMIZER, f"{key}/{name}", value))
        return found + [whole(AVERAGES, name, one) for name, one in self.averages.items()]

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, their parameters by name, as JSON holds them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [
            {**group, "params": [names[id(one)] for one in group["params"]]}
            for group in self.optimizer.param_groups
        ]

    def _learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters of the optimizer, but for rows that look after themselves."""
        apart = names_kept_apart(self.model)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for group in self.optimizer.param_groups:
            for one in group["params"]:
                if names[id(one)] not in apart:
                    yield names[id(one)], one

    def fill(self, folder: Path, groups: Sequence[Mapping[str, Any]]) -> None:
        """Read back what any number of ranks wrote. All ranks must call.

        Raises:
            ArtifactError: it is another model's, or of another optimizer.
        """
        # The model first: its error says more than the optimizer's would.
        self.fill_model(folder)
        self._check_groups(folder, groups)
        with Pieces(folder, OPTIMIZER) as saved:
            self.fill_optimizer(saved)
        for here, there in zip(self.optimizer.param_groups, groups, strict=True):
            # JSON has no tuples; Adam's betas are one.
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in there.items()}
            here.update({key: value for key, value in settings.items() if key != "params"})
        with Pieces(folder, AVERAGES) as saved:
            _require_same(folder, AVERAGES, self.averages, saved)
            for name, average in self.averages.items():
                average.copy_(saved.read(name).to(average.device))

    def _check_groups(self, folder: Path, groups: Sequence[Mapping[str, Any]]) -> None:
        here = [(group.get("name"), group["params"]) for group in self.groups()]
        there = [(group.get("name"), group["params"]) for group in groups]
        if here != there:
            differing = [a for a, b in zip(here, there, strict=False) if a != b]
            what = f"group {differing[0][0]}" if differing else f"{len(there)} groups"
            raise ArtifactError(
                f"{folder} holds the optimizer of another model (it differs in {what}); add "
                "--force to train from the start"
            )

    def fill_model(self, folder: Path) -> None:
        """Read the weights back."""
        fill_weights(self.model, folder)

    def fill_optimizer(self, saved: Pieces) -> None:
        """Read back what the optimizer remembers."""
        self.fill_whole(saved)

    def fill_whole(self, saved: Pieces, skip: Callable[[str], bool] = lambda name: False) -> None:
        """Read back what the optimizer remembers of whole parameters; `skip` as `tensors`."""
        state = {}
        numbers = {id(one): number for number, one in enumerate(
            one for group in self.optimizer.param_groups for one in group["params"]
        )}  # fmt: skip
        keys = keys_by_name(saved)
        for name, parameter in self._learning():
            if name in keys and not skip(name):
                state[numbers[id(parameter)]] = {
                    key: saved.read(f"{key}/{name}") for key in keys[name]
                }
        groups = self.optimizer.state_dict()["param_groups"]
        # torch moves what it loads to where each parameter lies.
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def keys_by_name(saved: Pieces) -> dict[str, list[str]]:
    """Return what an optimizer remembers of each parameter: `exp_avg`, `step` …"""
    found: dict[str, list[str]] = {}
    for one in saved:
        key, _, name = one.partition("/")
        found.setdefault(name, []).append(key)
    return found


def shared_out(pieces: Sequence[Piece], rank: int, world: int) -> Iterator[Piece]:
    """Yield a rank's share of pieces that every rank has, alike in bytes."""
    loads = [0] * world
    # From the largest down, each to whom has least; all ranks reckon alike.
    for piece in sorted(pieces, key=lambda one: (-one.values.nbytes, one.kind, one.name)):
        least = loads.index(min(loads))
        # A tensor of no bytes is one to write all the same.
        loads[least] += max(1, piece.values.nbytes)
        if least == rank:
            yield piece


def own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers that a checkpoint of a model holds, each once.

    Not among them: what a module kept apart saves by itself, what the model says it was given
    (`is_given`), and second names of tied weights.
    """
    given: Callable[[str], bool] = getattr(model, "is_given", lambda name: False)
    apart = names_kept_apart(model)
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    first = dict(model.named_parameters())
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied = name in every and name not in first
        if not (tied or name in apart or given(name)):
            yield name, tensor


@torch.no_grad()
def fill_weights(
    model: nn.Module, folder: Path, fill: Callable[[str, Tensor, Pieces], bool] | None = None
) -> None:
    """Read a checkpoint's weights into a model.

    Args: fill: reads a tensor that is not whole here, and says whether it has.

    Raises:
        ArtifactError: they are another model's.
    """
    wanted = dict(own_tensors(model))
    with Pieces(folder, MODEL) as saved:
        _require_same(folder, MODEL, wanted, saved)
        for name, tensor in wanted.items():
            if fill is not None and fill(name, tensor, saved):
                continue
            if tuple(tensor.shape) != saved.shapes[name]:
                raise _another(folder, MODEL, f"{name} is {list(saved.shapes[name])} there and "
                               f"{list(tensor.shape)} here")  # fmt: skip
            tensor.copy_(saved.read(name))


def fill_averages(model: nn.Module, folder: Path) -> None:
    """Replace a model's parameters by a checkpoint's moving averages, where it has them."""
    with Pieces(folder, AVERAGES) as saved, torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in saved:
                parameter.copy_(saved.read(name))


def _require_same(folder: Path, kind: str, here: Iterable[str], there: Iterable[str]) -> None:
    differing = sorted(set(here) ^ set(there))
    if differing:
        raise _another(folder, kind, f"{len(differing)} tensors differ, such as {differing[0]}")


def _another(folder: Path, kind: str, why: str) -> ArtifactError:
    return ArtifactError(
        f"{folder} holds another {kind} than this run's ({why}); add --force to train from the "
        "start"
    )
