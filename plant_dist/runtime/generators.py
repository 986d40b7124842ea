"""The state of every random generator of a process, as named tensors that a file can hold.

Restoring what was captured makes Python, NumPy and torch draw the same numbers again. Knows
nothing of checkpoints or ranks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def capture_generators(device: torch.device) -> dict[str, Tensor]:
    """Return the states of Python's, NumPy's, torch's and the device's generators.

    Returns: CPU tensors: python (625,) int64, python_gauss (2,) float64, numpy (624,) int64,
        numpy_position (2,) int64, numpy_gauss (1,) float64, torch and (off the CPU) device uint8.
    """
    _, words, gauss = random.getstate()
    # The dictionary form; the legacy tuple lacks names and is going away.
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    twister = state["state"]
    # Unsigned words as int64: torch knows little of unsigned types.
    captured = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(twister["key"].astype(np.int64)),
        "numpy_position": torch.tensor([twister["pos"], state["has_gauss"]]),
        "numpy_gauss": torch.tensor([state["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        captured["device"] = torch.get_device_module(device).get_rng_state().cpu()
    return captured


def restore_generators(captured: Mapping[str, Tensor], device: torch.device) -> None:
    """Put every generator back to a state that `capture_generators` returned."""
    has_gauss, gauss = captured["python_gauss"].tolist()
    words = tuple(captured["python"].tolist())
    # 3 is the version of Python's state format since 2.3.
    random.setstate((3, words, gauss if has_gauss else None))
    position, numpy_has_gauss = captured["numpy_position"].tolist()
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": captured["numpy"].numpy().astype(np.uint32), "pos": position},
            "has_gauss": numpy_has_gauss,
            "gauss": captured["numpy_gauss"].item(),
        }
    )
    torch.set_rng_state(captured["torch"])
    if device.type != "cpu" and "device" in captured:
        torch.get_device_module(device).set_rng_state(captured["device"])
