"""Pretraining the lexical ranker: batches of graded lists, a ranking loss, held-out nDCG.

Labels are independent of one another, so a batch is a slice of the labels and each rank draws the
lists of its share. Must not know where the gain table lies or what the ranker is planted into.

N lists of M tokens, R ranker width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from plant_dist.config.schema import RankConfig
from plant_dist.labels.table import LabelTable
from plant_dist.mig.graded import Bools, GradedLists, Ints, ListSampler, TokenLists
from plant_dist.mig.heldout import Floats, HeldOutScores, ScoreTokens, evaluate_held_out
from plant_dist.models.ranker import LexicalScorer, list_scores, token_label_scores
from plant_dist.objectives.ranking import ranking_loss
from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext
from plant_dist.train.loop import BatchSize
from plant_dist.train.ranker_task import RankerTask


class LexicalRanker(nn.Module):
    """Both sides of a lexical ranker: token tables, and label factors as rows.

    Args:
        scorer: the token side.
        label_count: labels L.
    """

    def __init__(self, scorer: LexicalScorer, label_count: int) -> None:
        super().__init__()
        self.scorer = scorer
        # From 0: before a label has learnt anything it ranks by the token biases alone.
        self.labels = LabelTable(label_count, {"factor": scorer.width}, zero=("factor",))

    def forward(self, labels_N: Tensor, tokens_NM: Tensor) -> Tensor:
        """Return (N, M) scores of lists of tokens, the n-th list for the n-th label."""
        factors_NMR, bias_NM = self.scorer.token_factors(tokens_NM, None)
        factor_NR = self.labels.rows(labels_N[:, None])["factor"][:, 0]
        return list_scores(factors_NMR, bias_NM, factor_NR)


@dataclass(frozen=True)
class ListBatch:
    """One rank's lists of a step, as tensors.

    Attributes:
        labels: (N,) int64. tokens, grades: (N, M) int64. mask: (N, M) bool.
        share: this rank's part of the step's lists that have a pair to order.
        total: lists of the step over all ranks.
    """

    labels: Tensor
    tokens: Tensor
    grades: Tensor
    mask: Tensor
    share: float
    total: int


class LexicalRankTask(RankerTask[ScoreTokens]):
    """Trains a `LexicalRanker` on graded lists; see `train.loop.Task`."""

    def __init__(
        self,
        model: LexicalRanker,
        lists: GradedLists,
        token_documents: Ints,
        config: RankConfig,
        context: RunContext,
    ) -> None:
        super().__init__(model, config, context)
        self._lists, self._token_documents = lists, token_documents
        self._labels = lists.labels_to_train()
        self._sampler = ListSampler(lists, token_documents, config)
        self.held_out = lists.labels_held_out()

    def idle(self) -> Sequence[nn.Module]:
        """Return all of it: factors of tokens are looked up."""
        return (self.model,)

    def batches_per_epoch(self, epoch: int) -> int:
        """Return the steps of a pass over the labels."""
        return math.ceil(len(self._labels) / self._config.labels_per_batch)

    def batches(self, epoch: int, start: int) -> Iterator[ListBatch]:
        """Yield this rank's lists; every draw depends on seed, epoch and step alone."""
        size, seed = self._config.labels_per_batch, self._context.seed
        # The same on every rank, which then takes its share of each slice.
        order = np.random.default_rng([seed, epoch]).permutation(self._labels)
        for step in range(start, self.batches_per_epoch(epoch)):
            labels = order[step * size : (step + 1) * size]
            # A generator a step and not one for all: resuming need not draw again what is done.
            yield self._draw(labels, np.random.default_rng([seed, epoch, step]))

    def _draw(self, labels: Ints, generator: np.random.Generator) -> ListBatch:
        # Each rank draws all lists and takes its own, so that the draws do not depend on ranks.
        lists = self._sampler.draw(labels, generator)
        mine = slice(self._context.rank, None, self._context.world)
        # The loss is a mean over lists with a pair, so those are what a rank's mean weighs.
        paired = _has_pair(lists)
        share = float(paired[mine].sum() / max(1, paired.sum()))
        # The last slice may be shorter than the ranks are many. A rank left over takes a list that
        # counts nothing (its share is 0), so that it still meets the others in the backward pass.
        if not len(labels[mine]):
            mine = slice(0, 1)
        return ListBatch(
            labels=torch.from_numpy(labels[mine].copy()),
            tokens=torch.from_numpy(lists.tokens[mine].copy()),
            grades=torch.from_numpy(lists.grades[mine].copy()),
            mask=torch.from_numpy(lists.mask[mine].copy()),
            share=share,
            total=len(labels),
        )

    def loss(self, model: nn.Module, batch: ListBatch) -> Tensor:
        """Return the ranking loss; the mean over ranks is the mean over all lists."""
        device = self._context.device
        labels, tokens, grades, mask = (
            part.to(device) for part in (batch.labels, batch.tokens, batch.grades, batch.mask)
        )
        loss = ranking_loss(model(labels, tokens), grades, mask, self._config)
        # Times world, since gradients are averaged over ranks and not added.
        return loss * (batch.share * self._context.world)

    def size(self, batch: ListBatch) -> BatchSize:
        """Return the lists of all ranks, and this rank's tokens."""
        return BatchSize(batch.total, batch.tokens.numel())

    def identify(self, batch: ListBatch) -> list[str]:
        """Return the label indices of a batch."""
        return [f"label {label}" for label in batch.labels.tolist()]

    def measure(self, score: ScoreTokens) -> HeldOutScores:
        """Return nDCG@k of each held-out label under any scoring. All ranks call."""
        context = self._context
        mine = self.held_out[context.rank :: context.world]
        own = evaluate_held_out(
            score, self._lists, self._token_documents, self._config.ndcg_at, context.seed, mine
        )
        parts = gather_objects(context, own)
        labels = np.concatenate([part.labels for part in parts])
        return HeldOutScores(labels, np.concatenate([part.ndcg for part in parts]), own.ks)

    def score_with(self, model: nn.Module) -> ScoreTokens:
        """Return the scoring function of a bare model."""
        assert isinstance(model, LexicalRanker)
        device = self._context.device

        @torch.no_grad()
        def score(labels: Ints, tokens: Ints) -> Floats:
            # All labels of a call rank the same candidates, whose factors are looked up once.
            factors_CR, bias_C = model.scorer.token_factors(
                torch.from_numpy(tokens).to(device), None
            )
            ids = torch.from_numpy(labels).to(device)[:, None]
            factor_NR = model.labels.rows(ids)["factor"][:, 0]
            found: Floats = token_label_scores(factors_CR, bias_C, factor_NR).cpu().numpy()
            return found

        return score


def _has_pair(lists: TokenLists) -> Bools:
    """Say which lists hold tokens of unlike grades, (N,)."""
    # Padding is given grades that can be neither the best nor the worst.
    best = np.where(lists.mask, lists.grades, -1).max(axis=1)
    worst = np.where(lists.mask, lists.grades, np.iinfo(np.int64).max).min(axis=1)
    return np.asarray(best > worst)
