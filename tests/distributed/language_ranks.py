"""What two gloo processes do in test_language_ranks.py; rank 0 writes what came out as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from each_rank import run_on_each
from tiny_task import Curve

from plant_dist.config.schema import LmConfig, LstmConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.models.language_model import LanguageModel
from plant_dist.runtime.context import RunContext
from plant_dist.train.language_task import LanguageModelTask
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.splits import SplitArrays

ALONE = RunContext(seed=5)
V = 20


def split(size: int, seed: int) -> SplitArrays:
    random = np.random.default_rng(seed)
    tokens = [random.integers(4, V, random.integers(0, 25)).tolist() for _ in range(size)]
    return SplitArrays(
        csr_from_lists(tokens), csr_from_lists([[]] * size), list(map(str, range(size)))
    )


def train_language(folder: Path, context: RunContext = ALONE) -> dict[str, Any]:
    """Train a language model without dropout; masks are drawn by rank and would differ."""
    torch.manual_seed(1)
    lstm = LstmConfig(
        width=6, inner_width=9, layers=2, window=5, embedding_dropout=0.0, input_dropout=0.0,
        hidden_dropout=0.0, output_dropout=0.0, weight_dropout=0.0,
    )  # fmt: skip
    segmentation = Segmentation(8, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
    # A budget so small that some batches are single documents, and one rank reads a filler.
    config = LmConfig(epochs=2, tokens_per_batch=60, learning_rate=0.01)
    model = LanguageModel.from_config(lstm, V)
    task = LanguageModelTask(model, split(23, 1), split(7, 2), segmentation, config, context)
    settings = LoopSettings.for_language_model(config, task.best_metric)
    curve = Curve()
    result = Trainer(task, settings, context, folder, hooks=[curve]).run()
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    return {"losses": curve.losses, "best": result.best_metrics, "weights": weights.tolist()}


if __name__ == "__main__":
    run_on_each(train_language, ALONE.seed)
