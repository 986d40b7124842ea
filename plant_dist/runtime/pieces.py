"""Tensors on disk in pieces, written by any number of ranks and read by any other number.

`KIND-00002-of-00003.safetensors` is what one of three ranks wrote: under `NAME@START` the numbers
of a tensor from START on, in the order of its flattened form; whole tensors keep their shape. The
file's metadata holds the shape of every tensor. A reader joins whatever pieces cover what it wants,
so that neither the number of ranks nor how an engine cuts tensors needs to be the same.
Knows nothing of models, optimizers or engines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plant_dist.errors import ArtifactError


class Piece(NamedTuple):
    """A stretch of a tensor.

    Attributes:
        kind: the group of files that it goes to.
        name: the tensor's.
        shape: of the whole tensor.
        start: index of its first number in the flattened tensor.
        values: (n,) the numbers; or of `shape`, where it is the whole.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


def whole(kind: str, name: str, values: Tensor) -> Piece:
    """Return a tensor as one piece."""
    return Piece(kind, name, tuple(values.shape), 0, values)


def write_pieces(folder: Path, pieces: Iterable[Piece], rank: int, world: int) -> list[Path]:
    """Write this rank's pieces, a file for each kind among them; return the files."""
    content: dict[str, dict[str, Tensor]] = {}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    written: set[int] = set()
    for kind, name, shape, start, values in pieces:
        # safetensors writes contiguous memory only, and none under two names.
        values = values.detach().contiguous()
        values = values.clone() if values.data_ptr() in written else values
        written.add(values.data_ptr())
        content.setdefault(kind, {})[f"{name}@{start}"] = values
        shapes.setdefault(kind, {})[name] = shape
    paths = []
    for kind, tensors in content.items():
        paths.append(folder / f"{kind}-{rank + 1:05d}-of-{world:05d}.safetensors")
        save_file(tensors, paths[-1], metadata={"shapes": json.dumps(shapes[kind])})
    return paths


class Pieces:
    """The tensors of one kind in a folder; a context that closes its files.

    Raises:
        ArtifactError: a file cannot be opened.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[tuple[int, int, Any, str]]] = {}
        self._files = ExitStack()
        for path in sorted(folder.glob(f"{kind}-*-of-*.safetensors")):
            self._open(path)
        for places in self._places.values():
            places.sort(key=lambda place: place[:2])

    def _open(self, path: Path) -> None:
        try:
            # Mapped, not read: what is not asked for costs neither time nor memory.
            file = self._files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); copy it again") from None
        shapes = json.loads(file.metadata()["shapes"])
        self.shapes.update({name: tuple(shape) for name, shape in shapes.items()})
        for key in file.keys():  # noqa: SIM118 (no mapping)
            name, _, start = key.rpartition("@")
            numbers = math.prod(file.get_slice(key).get_shape())
            place = (int(start), int(start) + numbers, file, key)
            self._places.setdefault(name, []).append(place)

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def under(self, name: str) -> list[str]:
        """Return the KEYs for which there is a tensor `KEY/name`."""
        return [one.partition("/")[0] for one in self.shapes if one.partition("/")[2] == name]

    def read(self, name: str) -> Tensor:
        """Return a whole tensor.

        Raises:
            ArtifactError: as `stretch`.
        """
        shape = self.shapes.get(name, ())
        return self.stretch(name, 0, math.prod(shape)).view(shape)

    def stretch(self, name: str, start: int, stop: int) -> Tensor:
        """Return (stop - start,) numbers of a flattened tensor.

        Raises:
            ArtifactError: no rank has written some of them.
        """
        found, reached = [], start
        for low, high, file, key in self._places.get(name, ()):
            if low <= reached < high or start == stop == low == high:
                taken = min(stop, high)
                found.append(_numbers(file.get_slice(key), reached - low, taken - low))
                reached = taken
        if reached < stop or not found:
            raise ArtifactError(
                f"{self.folder} lacks {self.kind} {name}, numbers {reached} to {stop}; copy the "
                "whole folder, every file of it"
            )
        return found[0] if len(found) == 1 else torch.cat(found)


def _numbers(stored: Any, start: int, stop: int) -> Tensor:
    """Return a stretch of a stored tensor, reading the rows that it touches and no others."""
    shape = stored.get_shape()
    if not shape:
        scalar: Tensor = stored[...]
        return scalar.reshape(1)
    width = max(1, math.prod(shape[1:]))
    first = start // width
    rows: Tensor = stored[first : max(first, -(-stop // width))]
    return rows.reshape(-1)[start - first * width : stop - first * width]
