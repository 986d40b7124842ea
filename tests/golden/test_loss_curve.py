"""The losses of 20 CPU steps, as they were when loop, optimizer and schedule were last trusted.

A change of them must be meant: the failing test prints the new curve, and whoever renews
`loss_curve.json` says in the commit what moved it.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_task import PLAIN, train_tiny

GOLDEN = Path(__file__).with_name("loss_curve.json")
SETTINGS = replace(
    PLAIN,
    epochs=10,
    max_steps=20,
    accumulation=2,
    clip_norm=0.5,
    schedule="cosine",
    warmup_fraction=0.2,
    unfreeze_epochs=(1.0, 3.0),
)


def test_twenty_steps_have_the_losses_they_had(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    curve, _ = train_tiny(tmp_path, SETTINGS, batch=6)
    print(json.dumps([round(loss, 6) for loss in curve.losses]))
    expected = json.loads(GOLDEN.read_text())
    assert len(expected) == 20
    assert curve.losses == pytest.approx(expected, abs=1e-4)


def test_the_curve_feels_the_settings(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    for number, change in enumerate(({"clip_norm": 0.1}, {"unfreeze_epochs": ()},
                                     {"schedule": "linear"}, {"accumulation": 1})):  # fmt: skip
        curve, _ = train_tiny(tmp_path / str(number), replace(SETTINGS, **change), batch=6)
        assert curve.losses != pytest.approx(expected, abs=1e-4), change
