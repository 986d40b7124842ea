"""Pretraining the contextual ranker: a frozen encoder reads documents, labels learn to rank tokens.

A label's factor is its query over hidden states, so what is learnt here is attention: the later
paper's first stage. A list ranks positions of one document for one of its gold labels, among
strangers from other documents. Must not know where artifacts lie or what the ranker is planted
into.

B documents, T tokens, S strangers, D encoder width, N lists of M positions, K labels of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from plant_dist.config.schema import RankConfig
from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.labels.table import LabelTable
from plant_dist.logs import progress
from plant_dist.mig.graded import GradedLists, Ints
from plant_dist.mig.heldout import HeldOutScores
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.models.ranker import ContextualScorer, token_label_scores
from plant_dist.models.segments import Segment, joined
from plant_dist.objectives.ranking import ndcg_at_k, ranking_loss
from plant_dist.runtime.collectives import gather_objects, sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.train.loop import BatchSize
from plant_dist.train.position_lists import (
    LabelPairs,
    PositionLists,
    held_out_lists,
    label_pairs,
    stream,
    training_lists,
)
from plant_dist.train.ranker_task import RankerTask
from plant_dist.train.splits import SplitArrays
from plant_dist.train.strangers import Strangers, read_strangers

# Steps from one reading of a batch: lists are drawn anew, the hidden states stay.
STEPS_PER_READING = 4
# Pairs of document and label that validation ranks, about; it reads no more documents than needed.
VALIDATION_PAIRS = 1000

ScorePositions = Callable[[Batch, Strangers, PositionLists], Tensor]
"""(documents, strangers, N lists of both) -> (N, M) scores of the lists' positions."""


class ContextualRanker(nn.Module):
    """What is trained of a contextual ranker: token biases, and label factors as rows.

    Args:
        scorer: the token side.
        label_count: labels L.
    """

    def __init__(self, scorer: ContextualScorer, label_count: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.labels = LabelTable(label_count, {"factor": scorer.width}, zero=("factor",))

    @torch.no_grad()
    def start_from_rarity(self, token_documents: Ints) -> None:
        """Start the token biases from `rarity`: what every label would learn of them first.

        Args:
            token_documents: (n,) training documents of the token ids below n.
        """
        self.scorer.bias[: len(token_documents)] = rarity(token_documents)

    def forward(
        self,
        hidden_BTD: Tensor,
        input_ids_BT: Tensor,
        strangers: Strangers,
        document_N: Tensor,
        label_N: Tensor,
        positions_NM: Tensor,
    ) -> Tensor:
        """Return (N, M) scores of lists of positions.

        Every label of a document is scored for all its tokens at once, a product of (K, D) and
        (D, T) a document, and for all strangers; no hidden state is copied for a list.

        Args:
            document_N: (N,) int64, rising, the document of each list.
            label_N: (N,) int64. positions_NM: (N, M) int64 in [0, S + T), strangers first.
        """
        count_B = torch.bincount(document_N, minlength=len(hidden_BTD))
        first_B = count_B.cumsum(0) - count_B
        # Lists come document by document, so a list's column is its place behind the first.
        place_N = torch.arange(len(document_N), device=document_N.device) - first_B[document_N]
        most = max(int(count_B.max()), 1)
        # Padding asks for label 0; those scores are not picked below and get no gradient.
        label_BK = document_N.new_zeros(len(hidden_BTD), most)
        label_BK[document_N, place_N] = label_N
        factor_BKD = self.labels.rows(label_BK)["factor"]
        scores_BKX = torch.cat(
            [
                token_label_scores(*self.scorer.token_factors(ids, hidden), factor_BKD)
                for ids, hidden in (strangers, (input_ids_BT, hidden_BTD))
            ],
            dim=2,
        )
        return scores_BKX[document_N[:, None], place_N[:, None], positions_NM]


@dataclass(frozen=True)
class ReadingBatch:
    """One rank's documents of a step, and what its lists are drawn from.

    Attributes:
        documents: the documents; several steps in a row share them.
        pairs: their gold labels with graded tokens.
        seed: of the step's draws.
    """

    documents: Batch
    pairs: LabelPairs
    seed: int


class ContextualRankTask(RankerTask[ScorePositions]):
    """Trains a `ContextualRanker` on documents that a frozen encoder reads; see `train.loop.Task`.

    Args:
        model: what is trained.
        encoder: what reads; it is put on the context's device, in evaluation mode, and left as is.
        split: the training documents; hidden states are taken from it where it holds them.
        segmentation: how the encoder reads them.
        lists: graded tokens of every label, some held out.
        config: `labels_per_batch` says how many documents make a step: so many that their gold
            labels are about as many; no document gives more lists than that.
    """

    def __init__(
        self,
        model: ContextualRanker,
        encoder: SegmentEncoder,
        split: SplitArrays,
        segmentation: Segmentation,
        lists: GradedLists,
        config: RankConfig,
        context: RunContext,
    ) -> None:
        super().__init__(model, config, context)
        # Without dropout and frozen: what is read once serves several steps and needs no backward.
        self._encoder = encoder.to(context.device).eval().requires_grad_(False)
        self._split, self._lists = split, lists
        self._collator = Collator(segmentation)
        labels_per_document = max(len(split.labels.values) / max(split.labels.size, 1), 1.0)
        self._documents_per_batch = max(round(config.labels_per_batch / labels_per_document), 1)
        self._sampler = BatchSampler(
            split.tokens.lengths(), segmentation, documents_per_batch=self._documents_per_batch,
            seed=context.seed, rank=context.rank, world=context.world,
        )  # fmt: skip
        self._reading: tuple[Batch, Segment] | None = None
        # Here, where every rank passes, and not when first asked for: it is a collective.
        self.held_out = self._labels_held_out()

    def idle(self) -> Sequence[nn.Module]:
        """Return nothing: all parts run."""
        return ()

    def batches_per_epoch(self, epoch: int) -> int:
        """Return the steps of a pass over the documents."""
        return self._sampler.count(epoch) * STEPS_PER_READING

    def batches(self, epoch: int, start: int) -> Iterator[ReadingBatch]:
        """Yield this rank's documents, each reading for a few steps in a row."""
        # A run may go on inside a reading: it is read again, and only the steps left are made.
        seed, first, done = self._context.seed, *divmod(start, STEPS_PER_READING)
        loader = batch_loader(
            self._split.tokens, self._split.labels, self._collator, self._sampler, epoch, first
        )
        for number, documents in enumerate(loader, first):
            most = self._config.labels_per_batch
            pairs = label_pairs(documents, self._lists, most, stream(seed, epoch, number))
            for draw in range(done if number == first else 0, STEPS_PER_READING):
                # Draws hang on these numbers alone, so that a resumed step is the same bit for bit.
                yield ReadingBatch(documents, pairs, stream(seed, epoch, number, draw))

    def loss(self, model: nn.Module, batch: ReadingBatch) -> Tensor:
        """Return the ranking loss; the mean over ranks is the mean over all lists. All ranks call.

        How many lists the other ranks have hangs on their documents' tokens, so ranks add up.
        """
        context = self._context
        segment = self._read(batch.documents)
        strangers = self.strangers_of(batch)
        lists = training_lists(
            batch.pairs.to(context.device), segment.input_ids, segment.keep, strangers.input_ids,
            self._lists.reserved, self._config, batch.seed,
        )  # fmt: skip
        own = len(lists.label)
        total = sum_across(context, torch.tensor(own, device=context.device))
        scores_NM = _scores(model, segment, strangers, lists)
        loss = ranking_loss(scores_NM, lists.grades, lists.mask, self._config)
        # Times world, since gradients are averaged over ranks and not added.
        return loss * (own * context.world / total.clamp(min=1))

    def size(self, batch: ReadingBatch) -> BatchSize:
        """Return the documents of all ranks, and this rank's real tokens."""
        documents = batch.documents
        return BatchSize(documents.global_weight, int(documents.attention_mask.sum()))

    def identify(self, batch: ReadingBatch) -> list[str]:
        """Return the ids of this rank's documents."""
        return [self._split.ids[row] for row in batch.documents.rows.tolist() if row >= 0]

    def strangers_of(self, batch: ReadingBatch) -> Strangers:
        """Return the strangers of a step, the same on every rank: half of a list's other tokens."""
        return self._strangers.drawn(self._config.sampled_tokens // 2, batch.seed)

    @cached_property
    def _strangers(self) -> Strangers:
        """All strangers, read when first asked for."""
        return read_strangers(
            self._split, self._collator, self._documents_per_batch, stream(self._context.seed),
            self._read_anew,
        )  # fmt: skip

    def _read(self, documents: Batch) -> Segment:
        """Return the documents' tokens with hidden states; the last reading is kept."""
        # By identity: steps of one reading share the very batch.
        if self._reading is None or self._reading[0] is not documents:
            self._reading = documents, self._read_anew(documents)
        return self._reading[1]

    @torch.no_grad()
    def _read_anew(self, documents: Batch) -> Segment:
        on_device = documents.to(self._context.device)
        hidden = self._split.hidden(documents, self._context.device)
        if hidden is None:
            with Engine(self._context).autocast():
                hidden = self._encoder(on_device.input_ids, on_device.attention_mask)
        return joined(hidden.float(), on_device.input_ids, on_device.keep)

    # Validation: reserved pairs in training documents.

    @cached_property
    def _held_out_lists(self) -> list[tuple[Batch, PositionLists]]:
        """This rank's documents to validate on, each batch with its lists; drawn once."""
        rows = self._validation_rows()
        context, segmentation = self._context, self._collator.segmentation
        tokens, labels = self._split.tokens.take(rows), self._split.labels.take(rows)
        sampler = BatchSampler(
            tokens.lengths(), segmentation, documents_per_batch=self._documents_per_batch,
            rank=context.rank, world=context.world, shuffle=False,
        )  # fmt: skip
        seed, most = stream(context.seed), self._config.labels_per_batch
        found = []
        for taken in batch_loader(tokens, labels, self._collator, sampler):
            # Rows of the split, where states are looked up; fillers stay fillers.
            of_split = torch.from_numpy(rows)[taken.rows]
            documents = replace(taken, rows=of_split.where(taken.rows >= 0, -1))
            pairs = label_pairs(documents, self._lists, most, seed)
            ids_BT, keep_BT = documents.input_ids.flatten(1), documents.keep.flatten(1)
            lists = held_out_lists(
                pairs, ids_BT, keep_BT, self._strangers.input_ids.cpu(), self._lists.reserved, seed
            )
            found.append((documents, lists))
        return found

    def _validation_rows(self) -> Ints:
        """Training documents in an order fixed by the seed, until their labels are enough."""
        labels = self._split.labels
        order = np.random.default_rng(self._context.seed).permutation(labels.size)
        pairs_before = np.cumsum(labels.lengths()[order]) - labels.lengths()[order]
        return order[pairs_before < VALIDATION_PAIRS]

    def _labels_held_out(self) -> Ints:
        """Labels, ascending, with lists to validate on, over all ranks. All ranks must call."""
        own = [lists.label.numpy() for _, lists in self._held_out_lists]
        parts = gather_objects(self._context, own)
        empty = np.zeros(0, np.int64)
        return np.unique(np.concatenate([empty, *(one for part in parts for one in part)]))

    def measure(self, score: ScorePositions) -> HeldOutScores:
        """Return nDCG@k of each held-out label, the mean of its lists. All ranks call."""
        context, ks = self._context, self._config.ndcg_at
        shown = progress(self._held_out_lists, "rank", "batch", shown=context.is_main)
        # A rank may have nothing to validate and still has to gather, so both begin with nothing.
        own_labels, own_ndcg = [np.zeros(0, np.int64)], [np.zeros((0, len(ks)))]
        for documents, lists in shown:
            scores_NM = score(documents, self._strangers, lists).double().cpu()
            found = [ndcg_at_k(scores_NM, lists.grades, lists.mask, k) for k in ks]
            own_labels.append(lists.label.numpy())
            own_ndcg.append(torch.stack(found, dim=1).numpy())
        own = np.concatenate(own_labels), np.concatenate(own_ndcg)
        gathered = gather_objects(context, own)
        labels, ndcg = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
        distinct, place, count = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(distinct), len(ks)))
        # Not `+=`, which adds to a repeated place once only.
        np.add.at(sums, place, ndcg)
        return HeldOutScores(distinct, sums / count[:, None], tuple(ks))

    def score_with(self, model: nn.Module) -> ScorePositions:
        """Return the scoring function of a bare model."""

        @torch.no_grad()
        def score(documents: Batch, strangers: Strangers, lists: PositionLists) -> Tensor:
            on_device = PositionLists(*(part.to(self._context.device) for part in lists))
            return _scores(model, self._read(documents), strangers, on_device)

        return score


def _scores(
    model: nn.Module, segment: Segment, strangers: Strangers, lists: PositionLists
) -> Tensor:
    scores_NM: Tensor = model(
        segment.hidden, segment.input_ids, strangers, lists.document, lists.label, lists.positions
    )
    return scores_NM.float()


def rarity(token_documents: Ints) -> Tensor:
    """-ln of the share of training documents that hold a token, about its mean over seen tokens.

    Inside a document, a rare label's best tokens are little else than the rarest ones. Tokens that
    training never saw get 0, as of average rarity: they are evidence of nothing.

    Returns: (n,) float32, for token_documents (n,).
    """
    documents_n = torch.from_numpy(np.array(token_documents)).float()
    seen_n = documents_n > 0
    log_n = documents_n.clamp(min=1).log()
    return (log_n[seen_n].mean() - log_n) * seen_n


def by_token_frequency(token_documents: Ints, rarest: bool = False) -> ScorePositions:
    """Baseline: every label ranks tokens by the number of training documents that hold them."""
    sign = -1 if rarest else 1
    frequency_V = torch.from_numpy(np.array(token_documents)) * sign

    def score(documents: Batch, strangers: Strangers, lists: PositionLists) -> Tensor:
        own_NT = documents.input_ids.flatten(1)[lists.document]
        others_NS = strangers.input_ids.cpu().expand(len(own_NT), -1)
        return frequency_V[torch.cat([others_NS, own_NT], dim=1).gather(1, lists.positions)]

    return score


def by_chance() -> ScorePositions:
    """Baseline: equal scores, which fall as the lists' order does, drawn at random."""
    return lambda documents, strangers, lists: torch.zeros(lists.positions.shape)
