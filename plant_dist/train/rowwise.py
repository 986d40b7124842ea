"""AdamW that can scale a label's row as a whole.

Adam divides every number of a gradient by its own running magnitude. A label with one training
document gets one real gradient an epoch, along that document's states, and Adam turns it into
little more than its signs. Scaled by the row's mean square instead, the step keeps the document's
direction, and the second moment is one number a row. Knows nothing of labels or models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowwiseAdamW(torch.optim.AdamW):
    """AdamW, whose groups with `rowwise: True` keep one second moment per row.

    For a row w with gradient g of width n, at step t:
    m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)·mean(g²),
    w ← w - η·λ·w - η·m̂ / (√v̂ + ε), with m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ).

    At width 1 this is AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__([{"rowwise": False, **group} for group in groups], **settings)
        # A scaler must unscale the gradients itself: the step by rows knows no loss scale.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step of every group."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["rowwise"]]
        try:
            loss: float | None = super().step(closure) if self.param_groups else None
        finally:
            self.param_groups = every
        for group in every:
            if group["rowwise"]:
                for rows in group["params"]:
                    if rows.grad is not None:
                        self._step_rows(rows, group)
        return loss

    def _step_rows(self, rows: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[rows], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(rows)
            state["exp_avg_sq"] = rows.new_zeros(len(rows), 1)
        # Of the host, also where loading has moved it: to read it there waits for no device.
        state["step"] = state["step"].cpu() + 1
        step = int(state["step"])
        gradient = rows.grad
        assert gradient is not None  # the caller looked
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square().mean(dim=1, keepdim=True), 1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        rows.mul_(1 - group["lr"] * group["weight_decay"])
        rows.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**step))
