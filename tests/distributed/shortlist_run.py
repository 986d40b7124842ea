"""A training on shortlists, for one process or for two that each own half of the index.

shortlist_run.py --folder-of-results FOLDER [--dies-after STEP] [--rows replicated|sharded]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_task import Settled
from torch.nn.functional import normalize

from plant_dist.config.schema import (
    EvaluateConfig,
    LossConfig,
    RuntimeConfig,
    ShortlistConfig,
    TrainConfig,
)
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.sharded import ShardedRows
from plant_dist.labels.updates import RowAdagrad
from plant_dist.models.classifier import (
    AnyRows,
    PlantConfig,
    PlantForMultiLabelClassification,
    RowsMaker,
)
from plant_dist.runtime.collectives import end_run
from plant_dist.runtime.context import RunContext, start_run
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.hooks import Hook, Report
from plant_dist.train.label_vectors import LabelTexts, VectorMaker
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.refresh import IndexRefresh
from plant_dist.train.shortlists import Probe, Shortlists
from plant_dist.train.splits import Corpus, SplitArrays

L, V = 41, 128
DIED = 9  # the code of a rank that dies
ALONE = RunContext(seed=7)
SEGMENTATION = Segmentation(16, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
CONFIG = ShortlistConfig(
    labels_per_document=9, candidates=12, refresh_steps=6, swap_after=3, width=16,
    probe_documents=9,
)  # fmt: skip


class Words:
    """A tokenizer whose words are numbers."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


class Watch(Hook):
    """Keeps losses and metrics; on rank 1 dies while an index is being made, where asked to."""

    def __init__(self, dies_after: int | None) -> None:
        self.losses: list[float] = []
        self.metrics: list[float] = []
        self._dies_after = dies_after

    def reported(self, loop: Any, report: Report) -> None:
        self.losses += report.losses

    def validated(self, loop: Any, metrics: Any) -> None:
        self.metrics += [metrics["map"], metrics["shortlist_recall"]]

    def stepped(self, loop: Any) -> None:
        if loop.context.rank == 1 and loop.state.step == self._dies_after:
            os._exit(DIED)


def split(size: int, seed: int) -> SplitArrays:
    random = np.random.default_rng(seed)
    labels = [sorted(random.choice(L - 1, 2, replace=False).tolist()) for _ in range(size)]
    tokens = [[4 + 2 * one for one in row] + random.integers(4, V, 5).tolist() for row in labels]
    return SplitArrays(
        csr_from_lists(tokens), csr_from_lists(labels), [f"doc{row}" for row in range(size)]
    )


def rows_maker(engine: str, context: RunContext) -> RowsMaker:
    def make(count: int, widths: Mapping[str, int], zero: tuple[str, ...]) -> AnyRows:
        if engine == "sharded":
            return ShardedRows(count, widths, RowAdagrad(), zero)
        return ReplicatedRows(count, widths, RowAdagrad(), zero, context.world)

    return make


@torch.no_grad()
def name_labels(model: PlantForMultiLabelClassification) -> None:
    """Give every label a name, and the last one nothing else."""
    rows, own = model.labels.fields, model.labels.own
    names = torch.randn(L, 32, generator=torch.Generator().manual_seed(1))
    rows["name"].copy_(normalize(names, dim=1)[own.start : own.stop])
    rows["prior"].fill_(-3.0)
    if L - 1 in own:
        rows["alone"][L - 1 - own.start] = 1.0


@torch.no_grad()
def best_of_all(model: PlantForMultiLabelClassification, documents: SplitArrays) -> list[list[int]]:
    model.eval()
    ids = torch.tensor([[[2, *documents.tokens.row(n).tolist(), 3]] for n in range(4)])
    encoded = model.encode(ids, torch.ones_like(ids, dtype=torch.bool), ids > 3)
    found: list[list[int]] = model.score_best(*encoded, 7)[1].tolist()
    return found


def train_shortlisted(
    folder: Path,
    context: RunContext,
    dies_after: int | None = None,
    rows: str | None = None,
    engine: str = "ddp",
) -> dict[str, Any]:
    torch.manual_seed(3)
    branches = ["learned", "planted"] if rows is None else ["learned", "planted", "named"]
    model = PlantForMultiLabelClassification(
        PlantConfig(
            # No dropout: ranks draw masks of their own.
            encoder={"model_type": "bert", "vocab_size": V, "hidden_size": 32,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                     "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            decoder={"branches": branches, "planted_k": 4, "dropout": 0.0},
            ranker={"width": 5}, label_count=L, special_ids=[0, 2, 3],
            retriever={"vectors": "learned", "width": 16, "temperature": 0.1, "candidates": 12},
        ),
        make_rows=rows_maker(rows, context) if rows else None,
    )  # fmt: skip
    if rows:
        name_labels(model)
    train, validation = split(48, 1), split(9, 2)
    frequency = torch.bincount(torch.from_numpy(train.labels.values).long(), minlength=L)
    texts = LabelTexts(frequency.numpy(), [f"{4 + 2 * one}" for one in range(L)], Words())
    maker = VectorMaker(model, texts, SEGMENTATION, context)
    lists = Shortlists(
        maker, train.tokens, Probe(validation.tokens, validation.labels).evenly(9), CONFIG,
        folder / "shortlists", "abc",
    )  # fmt: skip
    task = ClassifyTask(
        model, Corpus(train, validation, frequency, SEGMENTATION),
        TrainConfig(documents_per_batch=6, loss=LossConfig(reduction="sum")),
        EvaluateConfig(ks=(1, 3)), context, lists,
    )  # fmt: skip
    watch = Watch(dies_after)
    settings = LoopSettings(epochs=3, best_metric="map", checkpoint_steps=4, log_steps=1)
    Trainer(
        task, settings, context, folder / "checkpoints",
        # What was saved before is whole when the rank dies.
        hooks=[watch, IndexRefresh(lists, frequency.numpy()), Settled(dies_after or 0)],
        attachments=[lists], runtime=RuntimeConfig(device="cpu", engine=engine),
    ).run()  # fmt: skip
    measured = lists.rebuild(24)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    best = best_of_all(model, validation) if rows else []
    return {
        "losses": watch.losses, "metrics": watch.metrics, "weights": float(weights.abs().sum()),
        "recall": measured.recall, "overlap": measured.overlap,
        "best": best, "shards": [(shard.start, shard.stop) for shard in measured.about.shards],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    parser.add_argument("--dies-after", type=int)
    parser.add_argument("--rows", choices=("replicated", "sharded"))
    parser.add_argument("--engine", default="ddp")
    options = parser.parse_args()
    torch.set_num_threads(1)
    context = start_run(RuntimeConfig(device="cpu", processes=2), 7)
    found = train_shortlisted(
        options.folder_of_results / "run",
        context,
        options.dies_after,
        options.rows,
        options.engine,
    )
    if context.is_main:
        (options.folder_of_results / "found.json").write_text(json.dumps(found))
    end_run(context)


if __name__ == "__main__":
    main()
