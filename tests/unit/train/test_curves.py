"""What is drawn beside the losses: the numbers, not the pictures."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plant_dist.config.schema import EvaluateConfig
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.context import RunContext
from plant_dist.train.curves import ClassifierCurves

FREQUENCY = torch.tensor([0, 3, 3, 8, 500])


class Book:
    """Keeps what would go to TensorBoard."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.texts: dict[str, str] = {}
        self.curves: list[tuple[str, Any, Any, int]] = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.values |= values

    def text(self, name: str, text: str) -> None:
        self.texts[name] = text

    def pr_curve(self, name: str, hits: Any, scores: Any, step: int) -> None:
        self.curves.append((name, hits, scores, step))


def drawn(gates: str, branches: list[str] | None = None) -> tuple[ClassifierCurves, Any, Book]:
    torch.manual_seed(0)
    config = PlantConfig(
        decoder={"branches": branches or ["learned", "planted"], "gates": gates},
        ranker={"width": 4}, label_count=5,
    )  # fmt: skip
    model = PlantForMultiLabelClassification(config)
    book = Book()
    task: Any = SimpleNamespace(
        classifier=model, corpus=SimpleNamespace(train_frequency=FREQUENCY), validated=None
    )
    loop = SimpleNamespace(state=SimpleNamespace(step=0), tracker=book, context=RunContext())
    return ClassifierCurves(task, "a: 1\nb:\n  c: 2\n"), loop, book


def test_gates_by_band_add_up_to_the_number_of_branches() -> None:
    curves, loop, book = drawn("learned")
    rows = curves._task.classifier.labels.fields["gate"].data
    rows[:] = torch.tensor([[0.0, 9.0], [0.0, 1.0], [0.0, 3.0], [2.0, 0.0], [0.0, 0.0]])
    curves.started(loop)

    def planted(*gates: float) -> float:
        return sum(2 / (1 + math.exp(-gate)) for gate in gates) / len(gates)

    expected = {"0": planted(9), "1-5": planted(1, 3), "6-10": planted(-2), ">100": planted(0)}
    for band, value in expected.items():
        assert book.values[f"4_gates_planted/{band}"] == pytest.approx(value, rel=1e-5)
        assert book.values[f"4_gates_learned/{band}"] == pytest.approx(2 - value, rel=1e-4)
    assert len(book.values) == 8


def test_shared_and_summed_gates() -> None:
    curves, loop, book = drawn("shared")
    curves._task.classifier.decoder.gate.data = torch.tensor([0.0, math.log(3.0)])
    curves.started(loop)
    assert book.values == pytest.approx({"4_gates/learned": 0.5, "4_gates/planted": 1.5})
    curves, loop, book = drawn("sum")
    curves.started(loop)
    assert book.values == {}


def test_the_config_is_text_that_keeps_its_indentation() -> None:
    curves, loop, book = drawn("sum")
    curves.started(loop)
    assert book.texts == {"config": "    a: 1\n    b:\n      c: 2"}
    curves, loop, book = drawn("sum")
    loop.state.step = 4  # resumed: it is there already
    curves.started(loop)
    assert book.texts == {}


def test_a_validation_is_drawn_with_its_bands() -> None:
    curves, loop, book = drawn("sum")
    evaluator = Evaluator(FREQUENCY.numpy(), 600, EvaluateConfig(ks=(1, 10)), 2)
    logits = np.array([[0.0, 2, -1, 1, -2], [1, -1, 3, 0, 2]], np.float32)
    gold = [[1], [2, 4]]
    evaluator.add(torch.from_numpy(logits), torch.tensor([0, 1, 3]), torch.tensor([1, 2, 4]))
    curves._task.validated = evaluator, evaluator.results(evaluator.thresholds())
    loop.state.step = 6
    curves.validated(loop, {})
    [(name, hits, scores, step)] = book.curves
    assert (name, step) == ("validation/micro", 6)
    found = sorted(zip(scores.tolist(), hits.tolist(), strict=True))
    expected = sorted(
        (1 / (1 + math.exp(-logits[d, label])), label in gold[d])
        for d in range(2) for label in range(5)
    )  # fmt: skip
    assert [hit for _, hit in found] == [hit for _, hit in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected])
    # Labels of 3 training documents: both found first. The label of 500 is found second.
    assert book.values["3_bands_within_map/1-5"] == pytest.approx(1.0)
    assert book.values["3_bands_r@10/>100"] == pytest.approx(1.0)
    # No gold label has 11 to 50 training documents: nothing to draw, not an empty chart.
    assert all(math.isfinite(value) for value in book.values.values())


def test_other_ranks_draw_nothing() -> None:
    curves, loop, book = drawn("sum")
    curves._task.validated = "anything", "at all"  # type: ignore[assignment]
    loop.context = RunContext(rank=1, world=2)
    curves.validated(loop, {})
    assert not book.curves
