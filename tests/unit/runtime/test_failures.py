"""Errors as codes and lines; the loss of another rank is told apart from an error of one's own."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from plant_dist.errors import DataError
from plant_dist.runtime.failures import explain, is_loss_of_a_rank


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
        dist.DistNetworkError("The client socket has timed out"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection ..."),
        RuntimeError("Application timeout caused pair closure: Connection closed by peer [::1]:1"),
    ],
)
def test_the_loss_of_a_rank_has_its_own_code(error: Exception) -> None:
    code, line = explain(error, "train")
    assert code == 7
    assert line.startswith("train: another rank ended or cannot be reached (")
    assert "plant-dist status" in line


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("gloo/transport"), DataError("bad line")]
)
def test_other_errors_are_one_s_own(error: Exception) -> None:
    assert not is_loss_of_a_rank(error)


def test_an_error_of_the_program_itself() -> None:
    assert explain(RuntimeError("a\nb"), "mig") == (
        70, "internal error in mig: RuntimeError: a (run again with --debug for the traceback)"
    )  # fmt: skip
