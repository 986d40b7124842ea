"""A bag's rows may start from texts: a document is then nearest to the label it repeats."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plant_dist.data.csr import csr_from_lists
from plant_dist.models.bag import smooth_idf
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.stages import start

TEXTS = ["4 5 6", "7 8", "9 10 11 12", ""]
DOCUMENTS = [[4, 5, 6], [7, 8], [9, 10, 11, 12], [13, 14], [13, 15]]
LABELS = [[0], [1], [2], [3], [3]]


def started(init: str, monkeypatch: pytest.MonkeyPatch) -> PlantForMultiLabelClassification:
    torch.manual_seed(0)
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={
                "branches": ["bag"],
                "bag_width": 2048,
                "bag_pairs": 0,
                "bag_init": init,
                "bag_scale": 5.0,
            },
            label_count=len(TEXTS),
        )
    )
    rows = csr_from_lists(DOCUMENTS)
    counts = torch.bincount(torch.from_numpy(np.array(rows.values)).long(), minlength=128)
    model.decoder.bag.idf.copy_(smooth_idf(counts, len(DOCUMENTS)))
    dataset: Any = SimpleNamespace(
        token_csr=lambda split: rows, label_csr=lambda split: csr_from_lists(LABELS),
        label_space=SimpleNamespace(texts=TEXTS),
    )  # fmt: skip
    monkeypatch.setattr(
        start, "encode", lambda tokenizer, texts, max_tokens: [
            [int(word) for word in text.split()] for text in texts
        ],
    )  # fmt: skip
    tools: Any = SimpleNamespace(content=10)
    start.start_bag(model, dataset, tools, tools)
    return model


def evidence(model: PlantForMultiLabelClassification) -> torch.Tensor:
    with torch.no_grad():
        vectors = [
            model.decoder.bag(torch.tensor([one]), torch.ones(1, len(one), dtype=torch.bool))[0]
            for one in DOCUMENTS
        ]
        return torch.stack(vectors) @ model.labels.fields["bag"].T


def test_a_row_that_starts_from_its_text_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = evidence(started("label_text", monkeypatch))
    assert said[:3].argmax(1).tolist() == [0, 1, 2]
    # Of cosine 1 but for what all texts share; the label without a text says nothing.
    assert said[:3].diagonal().tolist() == pytest.approx([4.5, 4.5, 4.5], abs=1.0)
    assert (said[:, 3] == 0).all()


def test_a_prototype_holds_the_documents_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said = evidence(started("prototype", monkeypatch))
    assert said.argmax(1).tolist() == [0, 1, 2, 3, 3]


def test_nothing_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (evidence(started("zero", monkeypatch)) == 0).all()
