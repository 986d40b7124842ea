"""A small classifier and the task that judges it on validation, for what is fitted to that."""

from __future__ import annotations

import numpy as np
import torch

from plant_dist.config.schema import EvaluateConfig, LossConfig, TrainConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.context import RunContext
from plant_dist.train.classify_task import ClassifyTask, Corpus, SplitArrays

L, V, DOCUMENTS = 24, 128, 40
SEGMENTATION = Segmentation(16, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
BRANCHES = {
    "all": ["learned", "static", "named", "bag"], "rows alone": ["learned", "bag"],
    "names alone": ["named"],
}  # fmt: skip


def made(branches: list[str], gates: str) -> tuple[ClassifyTask, PlantForMultiLabelClassification]:
    torch.manual_seed(0)
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": branches, "dropout": 0.0, "gates": gates, "name_window": 3},
            label_count=L, special_ids=[0, 2, 3],
        )
    ).eval()  # fmt: skip
    frequency = torch.tensor([0, 3, 8, 30, 60, 200] * (L // 6))
    with torch.no_grad():
        for name, rows in model.labels.fields.items():
            torch.nn.init.normal_(rows, std=0.1 if name == "bag" else 1.0)
        if model.decoder.names is not None:
            model.labels.fields["alone"][:, 0] = (frequency == 0).float()
            for parameter in model.decoder.names.parameters():
                parameter.uniform_(0.2, 0.6)
        if model.decoder.bag is not None:
            model.decoder.bag.idf.uniform_(1, 2)
    random = np.random.default_rng(1)
    tokens = csr_from_lists([random.integers(4, V, 9).tolist() for _ in range(DOCUMENTS)])
    labels = csr_from_lists([sorted(random.choice(L, 3, replace=False).tolist())
                             for _ in range(DOCUMENTS)])  # fmt: skip
    split = SplitArrays(tokens, labels, [f"doc{row}" for row in range(DOCUMENTS)])
    corpus = Corpus(split, split, frequency, SEGMENTATION)
    settings = TrainConfig(loss=LossConfig(reduction="sum"))
    task = ClassifyTask(model, corpus, settings, EvaluateConfig(ks=(1, 3)), RunContext())
    return task, model
