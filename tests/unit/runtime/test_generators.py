import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from plant_dist.runtime.context import seed_everything
from plant_dist.runtime.generators import capture_generators, restore_generators

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [
        random.random(), random.gauss(0, 1), float(np.random.normal()), float(np.random.random()),
        float(torch.rand(1)), float(torch.randn(1)),
    ]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), warm=st.integers(0, 700), gauss=st.booleans())
def test_restored_generators_repeat_themselves(seed: int, warm: int, gauss: bool) -> None:
    seed_everything(seed)
    for _ in range(warm):
        random.random()
        np.random.random()
    if gauss:  # one of a pair of normal numbers waits inside the generator
        random.gauss(0, 1)
        np.random.normal()
    stored = load(save(capture_generators(CPU)))
    expected = [draws() for _ in range(3)]
    assert [draws() for _ in range(3)] != expected
    restore_generators(stored, CPU)
    assert [draws() for _ in range(3)] == expected
