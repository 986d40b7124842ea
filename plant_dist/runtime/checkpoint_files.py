"""The files of one checkpoint: how each part of a training state is written and read back.

safetensors for tensors, JSON for the rest, and a manifest with every file's size and sha256, so
that a torn or damaged file is noticed before anything is loaded. Which checkpoint is written,
kept or chosen is decided in `checkpoint.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from plant_dist.artifacts import file_digest, write_json
from plant_dist.errors import ArtifactError
from plant_dist.runtime.apart import kept_apart, names_kept_apart

# Raise it when older checkpoints can no longer be read.
FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
AVERAGES, GENERATORS = "averages.safetensors", "generators.safetensors"


Named = Mapping[str, Tensor]


@dataclass
class TrainingState:
    """The live objects a checkpoint holds; loading fills them in place.

    Attributes:
        model: the bare module, outside any wrapper.
        optimizer, schedule: torch's own.
        averages: moving averages by parameter name; empty where none are kept.
        scaler: the fp16 gradient scaler, or None.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    averages: Named = field(default_factory=dict)
    scaler: Any | None = None


def write_state(
    folder: Path, state: TrainingState, position: Mapping[str, Any], generators: Sequence[Named]
) -> None:
    """Write everything but the manifest, and what modules kept apart write, into an empty folder.

    Args:
        generators: the named tensors of `capture_generators`, one mapping a rank.
    """
    tensors, scalars = flatten_optimizer(state.optimizer)
    _save_model(state.model, folder / MODEL)
    save_file(tensors, folder / OPTIMIZER)
    if state.averages:
        save_file(dict(state.averages), folder / AVERAGES)
    by_rank = {
        f"{rank}.{name}": tensor
        for rank, own in enumerate(generators)
        for name, tensor in own.items()
    }
    save_file(by_rank, folder / GENERATORS)
    content = {
        "position": dict(position),
        "optimizer": scalars,
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
    }
    write_json(folder / STATE, content)


def read_state(folder: Path, state: TrainingState, rank: int) -> tuple[dict[str, Any], Named]:
    """Fill a training state from a checked folder.

    Returns: the position that was saved, and the generators of `rank`.

    Raises:
        ArtifactError: it holds another model or optimizer.
    """
    # The model first: its error says more than the optimizer's would.
    fill_model(state.model, folder, resume=True)
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    try:
        restore_optimizer(state.optimizer, load_file(folder / OPTIMIZER), content["optimizer"])
        averages = load_file(folder / AVERAGES) if state.averages else {}
        for name, average in state.averages.items():
            average.copy_(averages[name])
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder} holds the optimizer of another model ({_first_line(error)}); add --force "
            "to train from the start"
        ) from None
    state.schedule.load_state_dict(content["schedule"])
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    mine = f"{rank}."
    generators = {
        name.removeprefix(mine): tensor
        for name, tensor in load_file(folder / GENERATORS).items()
        if name.startswith(mine)
    }
    return content["position"], generators


def write_manifest(folder: Path, step: int, processes: int, identity: str) -> None:
    """Write sizes and hashes of the files in a folder, and whose they are."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    content = {
        "format": FORMAT,
        "step": step,
        "processes": processes,
        "identity": identity,
        "files": files,
    }
    write_json(folder / MANIFEST, content)


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


def flatten_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors, for safetensors, and plain values, for JSON.

    Returns: tensors named `PARAMETER_INDEX.NAME`, and {"state": {index: {name: value}},
        "param_groups": [...]}.
    """
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in content["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                # safetensors writes contiguous memory only.
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"state": scalars, "param_groups": content["param_groups"]}


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Load what `flatten_optimizer` returned into an optimizer of the same groups.

    Raises:
        ValueError: the groups or their sizes differ.
    """
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in scalars["state"].items()
    }
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = [
        # JSON has no tuples; Adam's betas are one.
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in scalars["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def fill_model(model: nn.Module, folder: Path, resume: bool = False) -> None:
    """Load a checkpoint's weights into a model.

    Args:
        resume: for modules kept apart, their optimizer's state as well.

    Raises:
        ArtifactError: they are another model's.
    """
    try:
        _load_model(model, folder / MODEL)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{folder / MODEL} holds another model than this run's ({_first_line(error)}); "
            "add --force to train from the start"
        ) from None
    for module in kept_apart(model):
        module.load(folder, resume=resume)


def _given(model: nn.Module) -> Callable[[str], bool]:
    """Say of a tensor's name whether the model's maker brings it, or a module saves it itself."""
    found: Callable[[str], bool] = getattr(model, "is_given", lambda name: False)
    apart = names_kept_apart(model)
    return lambda name: name in apart or found(name)


def _save_model(model: nn.Module, path: Path) -> None:
    given, tensors = _given(model), model.state_dict()
    if any(map(given, tensors)):
        own = {name: one.contiguous() for name, one in tensors.items() if not given(name)}
        save_file(own, path)
    else:
        # Not `save_file`: tied weights are one storage, which it refuses to write twice.
        save_model(model, str(path))


def _load_model(model: nn.Module, path: Path) -> None:
    given = _given(model)
    if not any(map(given, model.state_dict())):
        load_model(model, path)
        return
    missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    amiss = [*unexpected, *(name for name in missing if not given(name))]
    if amiss:
        raise RuntimeError(f"{len(amiss)} tensors differ, such as {amiss[0]}")


def fill_averages(model: nn.Module, folder: Path) -> None:
    """Replace a model's parameters by a checkpoint's moving averages, where it has them."""
    if not (folder / AVERAGES).exists():
        return
    averages = load_file(folder / AVERAGES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in averages:
                parameter.copy_(averages[name])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
