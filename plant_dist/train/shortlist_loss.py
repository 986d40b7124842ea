"""The loss of documents over their shortlists: the classifier's, and the learned retriever's.

Must not know how an index is made, nor the loop.

B documents, K labels considered, L labels, X width of the vectors.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from plant_dist.config.schema import LossConfig
from plant_dist.data.batches import Batch
from plant_dist.data.csr import Csr
from plant_dist.logs import get_logger
from plant_dist.objectives.multilabel import multilabel_loss
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.candidates import Candidates, CandidateSampler
from plant_dist.shortlist.index import Int64
from plant_dist.train.shortlists import Shortlists

log = get_logger(__name__)


class ShortlistLoss:
    """Σ over documents of the loss over their candidate labels, as an estimate of that over all.

    Args:
        shortlists: what mines labels.
        loss: the section.
        train_frequency: (L,) training documents of each label.
        seen_only: draw negatives from labels with training documents, whatever the config says.
    """

    def __init__(
        self,
        shortlists: Shortlists,
        loss: LossConfig,
        train_frequency: Int64,
        context: RunContext,
        seen_only: bool = False,
    ) -> None:
        config = shortlists.config
        self._shortlists, self._loss, self._context = shortlists, loss, context
        self._labels = len(train_frequency)
        narrowed = seen_only or config.negatives == "seen"
        seen = np.flatnonzero(train_frequency) if narrowed else None
        self._sampler = CandidateSampler(
            self._labels, config.labels_per_document, config.mined_share, context.seed, seen
        )
        self._warned = False

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        hidden: Tensor | None,
        epoch: int,
        positive_weights: Tensor | None = None,
        ignored: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the sum over this rank's documents. All ranks must call.

        Args:
            model: the classifier, or a wrapper of it.
            batch: on the device. hidden: what a frozen encoder gave for it.
            positive_weights: (L,) weights of gold labels.
            ignored: offsets (B+1,) and labels that documents must not consider.
        """
        choice = _Choice(self._shortlists, self._sampler, batch, epoch, ignored)
        # Through `model`, which may be wrapped: the shortlist is chosen between its two halves.
        said = model(
            batch.input_ids, batch.attention_mask, batch.keep, label_ids=choice, hidden=hidden
        )
        drawn = choice.drawn
        assert drawn is not None  # the forward pass has asked for it
        self._warn(drawn, batch)
        device = said.logits.device
        gold = torch.from_numpy(drawn.gold_offsets), torch.from_numpy(drawn.gold_columns)
        offsets, columns = (one.to(device) for one in gold)
        stands_for = torch.from_numpy(drawn.weights).to(device)
        weights = None
        if positive_weights is not None:
            kept = torch.from_numpy(drawn.gold_places).to(device)
            weights = positive_weights[batch.label_ids[kept]]
        total = multilabel_loss(
            said.logits, offsets, columns, batch.weights, self._loss, weights,
            stands_for=stands_for, labels=1 if self._loss.reduction == "sum" else self._labels,
        )  # fmt: skip
        if said.similarities is None:
            return total
        # Softmax: which of the shortlist is gold is all that retrieval must know.
        told = multilabel_loss(
            said.similarities, offsets, columns, batch.weights,
            replace(self._loss, kind="softmax"), stands_for=stands_for, labels=1,
        )  # fmt: skip
        # Per gold label, so that documents of many do not weigh more than the classifier's do.
        gold_each = max(len(columns) / max(batch.documents, 1), 1.0)
        return total + told * (self._shortlists.config.retrieval_weight / gold_each)

    def _warn(self, drawn: Candidates, batch: Batch) -> None:
        if self._warned or len(drawn.gold_columns) == len(batch.label_ids):
            return
        most = int(batch.label_offsets.diff().max())
        if most > self._sampler.most_gold:
            self._warned = True
            log.warning(
                "shortlist: a document has %d gold labels, and shortlist.labels_per_document %d "
                "has room for %d; a sample of them is taken, weighted so that the loss is the "
                "same on average", most, self._sampler.width, self._sampler.most_gold,
            )  # fmt: skip


class _Choice:
    """Chooses the labels of one training batch; see `models.classifier.Considers`."""

    def __init__(
        self,
        shortlists: Shortlists,
        sampler: CandidateSampler,
        batch: Batch,
        epoch: int,
        ignored: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.vectors = shortlists.vectors
        self._shortlists, self._sampler, self._epoch = shortlists, sampler, epoch
        self._gold = _csr(batch.label_offsets, batch.label_ids)
        self._ignored = None if ignored is None else _csr(*ignored)
        # A filler weighs nothing; any row may stand for its draws.
        self._rows = batch.rows.clamp_min(0).cpu().numpy()
        self.drawn: Candidates | None = None

    def __call__(self, document_vectors_BX: Tensor) -> Tensor:
        vectors = document_vectors_BX.float().cpu().numpy()
        _, mined = self._shortlists.search(vectors, self._sampler.width)
        self.drawn = self._sampler.draw(self._gold, mined, self._rows, self._epoch, self._ignored)
        return torch.from_numpy(self.drawn.label_ids).to(document_vectors_BX.device)


def _csr(offsets: Tensor, ids: Tensor) -> Csr:
    return Csr(offsets.cpu().numpy(), ids.cpu().numpy().astype(np.int32))
