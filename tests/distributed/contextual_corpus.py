"""A small corpus for tests of the contextual ranker, its tiny encoders, and a task on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_task import Curve
from transformers import BertConfig, BertModel

from plant_dist.config.schema import RankConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.mig.graded import GradedLists, Ints, ReservedPairs, hold_out
from plant_dist.mig.lists import offsets_of
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.models.ranker import ContextualScorer
from plant_dist.runtime.context import RunContext
from plant_dist.train.contextual_task import ContextualRanker, ContextualRankTask, ReadingBatch
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.position_lists import PositionLists, training_lists
from plant_dist.train.splits import SplitArrays

VOCABULARY, LABELS, WIDTH, GRADED = 160, 12, 32, 10
SPECIAL = SpecialTokens(prefix=(1,), suffix=(2,), pad=0)
SEGMENTATION = Segmentation(segment_tokens=16, overlap_tokens=3, special=SPECIAL)
CONFIG = RankConfig(
    kind="contextual", list_tokens=6, sampled_tokens=8, truncation=4, labels_per_batch=16,
    learning_rate=0.02, ndcg_at=(2, 4),
)  # fmt: skip
ALONE = RunContext(seed=5)


@dataclass(frozen=True)
class Corpus:
    """Documents in which a label's own tokens stand among tokens of other labels or none."""

    split: SplitArrays
    lists: GradedLists
    token_documents: Ints


def made_corpus(documents: int = 30, fraction: float = 0.3, seed: int = 0) -> Corpus:
    """Label l owns tokens 10+l·10 … 19+l·10, best first; a document has 1 to 3 labels."""
    random = np.random.default_rng(seed)
    texts, golds = [], []
    for _ in range(documents):
        gold = sorted(random.choice(LABELS, size=random.integers(1, 4), replace=False).tolist())
        own = [10 + 10 * label + place for label in gold for place in random.choice(10, size=6)]
        others = random.integers(3, VOCABULARY, size=random.integers(4, 40)).tolist()
        texts.append(random.permutation(own + others).tolist())
        golds.append(gold)
    tokens = np.arange(10, 10 + LABELS * GRADED, dtype=np.int32)
    grades = np.tile(4 - np.arange(GRADED) * 4 // GRADED, LABELS).astype(np.uint8)
    lists = GradedLists(
        offsets_of([GRADED] * LABELS), tokens, grades, np.zeros(len(tokens), dtype=np.bool_),
        ReservedPairs(0.0, 0),
    )  # fmt: skip
    counts = Counter(token for text in texts for token in set(text))
    return Corpus(
        split=SplitArrays(
            csr_from_lists(texts), csr_from_lists(golds), [f"d{i}" for i in range(documents)]
        ),
        lists=hold_out(lists, fraction, seed=1),
        token_documents=np.array([counts[token] for token in range(VOCABULARY)]),
    )


def tiny_encoder(spread: float = 0.5) -> SegmentEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=spread,
    )  # fmt: skip
    return SegmentEncoder(BertModel(config, add_pooling_layer=False))


def related_encoder() -> SegmentEncoder:
    """An encoder in which the tokens of a label differ, about a centre of their own."""
    encoder = tiny_encoder(spread=0.1)
    with torch.no_grad():
        table = encoder.input_embeddings()
        own = table[10 : 10 + LABELS * GRADED].view(LABELS, GRADED, WIDTH)
        own.add_(torch.randn(LABELS, 1, WIDTH) * 0.3)
    return encoder


def random_ranker() -> ContextualRanker:
    """Factors and biases that make scores differ."""
    generator = torch.Generator().manual_seed(3)
    model = ContextualRanker(ContextualScorer(WIDTH, VOCABULARY), LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def task_of(
    corpus: Corpus,
    config: RankConfig = CONFIG,
    model: ContextualRanker | None = None,
    encoder: SegmentEncoder | None = None,
    context: RunContext = ALONE,
) -> ContextualRankTask:
    """A task; without a model, one whose scores differ."""
    return ContextualRankTask(
        model or random_ranker(), encoder or tiny_encoder(), corpus.split, SEGMENTATION,
        corpus.lists, config, context,
    )  # fmt: skip


def zero_ranker() -> ContextualRanker:
    """What a ranker starts from."""
    return ContextualRanker(ContextualScorer(WIDTH, VOCABULARY), LABELS)


def lists_of(task: ContextualRankTask, batch: ReadingBatch) -> PositionLists:
    """Draw the lists that a step trains on."""
    segment, strangers = task._read(batch.documents), task.strangers_of(batch)
    return training_lists(
        batch.pairs, segment.input_ids, segment.keep, strangers.input_ids, task._lists.reserved,
        task._config, batch.seed,
    )  # fmt: skip


def shown(lists: PositionLists) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(document, label) -> sorted (position, grade) of what the mask leaves."""
    return {
        (document, label): sorted(
            (p, g) for p, g, there in zip(positions, grades, mask, strict=True) if there
        )
        for document, label, positions, grades, mask in zip(
            *(part.tolist() for part in lists), strict=True
        )
    }


def train_contextual(folder: Path, context: RunContext = ALONE) -> dict[str, Any]:
    """Train two epochs on documents of unlike numbers of lists; return what can be compared."""
    task = task_of(made_corpus(documents=29), model=zero_ranker(), context=context)
    curve = Curve()
    loop = LoopSettings(epochs=2, best_metric=task.best_metric, log_steps=1)
    Trainer(task, loop, context, folder, hooks=[curve]).run()
    weights = torch.cat([part.detach().flatten() for part in task.model.parameters()])
    return {
        "losses": curve.losses,
        "metrics": curve.metrics,
        "weights": weights.tolist(),
        "held out": task.held_out.tolist(),
    }
