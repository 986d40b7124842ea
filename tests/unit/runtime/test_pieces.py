"""Tensors cut at any place, by any number of ranks, and joined at any other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.errors import ArtifactError
from plant_dist.runtime.held import shared_out
from plant_dist.runtime.pieces import Piece, Pieces, whole, write_pieces


def cut(name: str, tensor: torch.Tensor, cuts: list[int]) -> list[Piece]:
    flat = tensor.flatten()
    edges = [0, *cuts, len(flat)]
    return [
        Piece("model", name, tuple(tensor.shape), low, flat[low:high])
        for low, high in itertools.pairwise(edges)
    ]


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_any_stretch_comes_back_from_any_cuts(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.sampled_from([(1,), (7,), (3, 4), (2, 3, 4)]))
    tensor = torch.randn(shape)
    size = tensor.numel()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, size - 1)), max_size=3)) - {size})
    folder = tmp_path_factory.mktemp("pieces")
    # As one, in its own shape, beside one that is cut.
    parts = [*cut("cut", tensor, cuts), whole("model", "whole", tensor.clone())]
    for rank in range(2):
        write_pieces(folder, parts[rank::2], rank, 2)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start, size))
    with Pieces(folder, "model") as saved:
        assert sorted(saved) == ["cut", "whole"]
        for name in saved:
            assert torch.equal(saved.read(name), tensor)
            assert torch.equal(saved.stretch(name, start, stop), tensor.flatten()[start:stop])


@pytest.mark.parametrize("tensor", [torch.tensor(3), torch.empty(0), torch.empty(0, 4)])
def test_scalars_and_empty_tensors(tmp_path: Path, tensor: torch.Tensor) -> None:
    write_pieces(tmp_path, [whole("model", "one", tensor)], 0, 1)
    with Pieces(tmp_path, "model") as saved:
        found = saved.read("one")
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


def test_numbers_that_no_rank_has_written_are_named(tmp_path: Path) -> None:
    first, _, last = cut("one", torch.arange(9.0), [3, 6])
    write_pieces(tmp_path, [first, last], 0, 1)
    with Pieces(tmp_path, "model") as saved:
        assert saved.stretch("one", 6, 9).tolist() == [6.0, 7.0, 8.0]
        with pytest.raises(ArtifactError, match="lacks model one, numbers 3 to 9"):
            saved.read("one")


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_tensor_is_written_once_and_bytes_are_alike(world: int) -> None:
    pieces = [whole("model", f"t{n}", torch.zeros(n)) for n in range(40)]
    shares = [list(shared_out(pieces, rank, world)) for rank in range(world)]
    assert sorted(one.name for share in shares for one in share) == sorted(p.name for p in pieces)
    sizes = [sum(one.values.numel() for one in share) for share in shares]
    assert max(sizes) - min(sizes) <= 40
