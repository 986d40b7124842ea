"""Row-wise optimizers against dense arithmetic and against torch's SparseAdam."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.labels.updates import LazyAdam, RowAdagrad


def touched(seed: int, steps: int, labels: int, width: int) -> list[tuple[torch.Tensor, ...]]:
    """Distinct rows and their gradients, by step."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(steps):
        count = int(torch.randint(1, labels + 1, (), generator=generator))
        ids = torch.randperm(labels, generator=generator)[:count]
        made.append((ids, torch.randn(count, width, generator=generator)))
    return made


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 7), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_adagrad_is_its_formula_row_by_row(seed: int, steps: int, labels: int, width: int) -> None:
    rows = torch.randn(labels, width, generator=torch.Generator().manual_seed(seed + 1))
    wanted, sums = rows.double().clone(), [0.0] * labels
    state = {"sum": torch.zeros(labels, 1)}
    for step, (ids, gradient) in enumerate(touched(seed, steps, labels, width), 1):
        RowAdagrad(eps=1e-3).update(rows, state, ids, gradient.clone(), 0.1, step)
        for row, g in zip(ids.tolist(), gradient.double(), strict=True):
            sums[row] += g.square().mean().item()
            wanted[row] -= 0.1 * g / (sums[row] ** 0.5 + 1e-3)
    torch.testing.assert_close(rows.double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["sum"][:, 0], torch.tensor(sums))


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 7), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_lazy_adam_is_sparse_adam(seed: int, steps: int, labels: int, width: int) -> None:
    rows = torch.randn(labels, width, generator=torch.Generator().manual_seed(seed + 1))
    oracle = torch.nn.Parameter(rows.clone())
    # SparseAdam adds ε before it corrects the bias, we after, as Adam: so a tiny one.
    sparse = torch.optim.SparseAdam([oracle], lr=0.1, betas=(0.8, 0.95), eps=1e-12)
    state = {name: torch.zeros(labels, width) for name in ("mean", "square")}
    for step, (ids, gradient) in enumerate(touched(seed, steps, labels, width), 1):
        LazyAdam((0.8, 0.95), 1e-12).update(rows, state, ids, gradient.clone(), 0.1, step)
        oracle.grad = torch.sparse_coo_tensor(
            ids[None], gradient, rows.shape, check_invariants=True
        )
        sparse.step()
    torch.testing.assert_close(rows, oracle.detach(), atol=1e-5, rtol=1e-4)


def test_rows_that_were_not_touched_keep_their_bits() -> None:
    rows = torch.randn(5, 3)
    before, ids = rows.clone(), torch.tensor([1, 4])
    for optimizer in (RowAdagrad(), LazyAdam()):
        state = {n: torch.zeros(5, w) for n, w in optimizer.widths(3).items()}
        optimizer.update(rows, state, ids, torch.ones(2, 3), 0.5, 1)
        assert all(not part[[0, 2, 3]].any() for part in state.values())
        assert all(part[ids].all() for part in state.values())
    assert rows[[0, 2, 3]].equal(before[[0, 2, 3]])
    assert not rows[ids].isclose(before[ids]).any()
