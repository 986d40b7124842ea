"""Texts as one vector each: the mean of an encoder's hidden states, as sentence encoders pool.

Used for label texts (what boosts and queries start from) and for the untrained-encoder baseline.

n texts, D encoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from plant_dist.data.batches import Collator, batch_loader
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import encode
from plant_dist.logs import progress
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.runtime.collectives import sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine

TEXTS_PER_BATCH = 128


class KeptMeans(Protocol):
    """Keeps mean states of texts."""

    def means(self, tokens: Csr, compute: Callable[[Csr], Tensor]) -> Tensor:
        """Return (n, D) of texts; what is not kept is computed."""


class TextEmbedder:
    """Embeds texts with an encoder as it is.

    Args:
        encoder: on the context's device.
        tokenizer: the encoder's.
        segmentation: longer texts are read by their first segment.
        context: every rank embeds its share.
        kept: a frozen encoder's means of an earlier run; None reads every text.
    """

    def __init__(
        self,
        encoder: SegmentEncoder,
        tokenizer: PreTrainedTokenizerBase,
        segmentation: Segmentation,
        context: RunContext,
        kept: KeptMeans | None = None,
    ) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer
        self._segmentation, self._context = segmentation, context
        self._kept = kept

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self._context.device

    def mean_states(self, texts: Sequence[str], title: str = "embed") -> Tensor:
        """Return the mean hidden state of each text, (n, D) float32 on the CPU. All ranks call.

        Special tokens count in the mean, as sentence encoders are trained.
        """
        content = self._segmentation.content
        ids = encode(self._tokenizer, texts, max_tokens=content)
        return self.mean_states_of(csr_from_lists(ids), title)

    def mean_states_of(self, tokens: Csr, title: str = "embed") -> Tensor:
        """As `mean_states`, for texts that are token ids already; the first segment is read."""
        tokens = tokens.cut(self._segmentation.content)
        if self._kept is None:
            return self._computed(tokens, title)
        return self._kept.means(tokens, lambda missing: self._computed(missing, title))

    @torch.no_grad()
    def _computed(self, tokens: Csr, title: str) -> Tensor:
        context, engine = self._context, Engine(self._context)
        # Rows that other ranks read stay 0 here, so that the sum over ranks is the whole.
        means_ND = torch.zeros(tokens.size, self._encoder.width, device=context.device)
        # Without dropout; the mode is put back, since the caller may be about to train.
        was_training = self._encoder.training
        self._encoder.eval()
        for batch in progress(self._batches(tokens), title, "batch", shown=context.is_main):
            ids, mask = batch.input_ids.to(context.device), batch.attention_mask.to(context.device)
            # Cut above to one segment each, so S is 1.
            with engine.autocast():
                hidden_BTD = self._encoder(ids, mask)[:, 0].float()
            mask_BT1 = mask[:, 0, :, None]
            sums_BD = (hidden_BTD * mask_BT1).sum(1)
            # Fillers, which even out the ranks' batches, have no row to write to.
            real = batch.rows >= 0
            means_ND[batch.rows[real]] = (sums_BD / mask_BT1.sum(1).clamp_min(1)).float()[real]
        self._encoder.train(was_training)
        return sum_across(context, means_ND).cpu()

    def _batches(self, tokens: Csr) -> torch.utils.data.DataLoader[object]:
        context = self._context
        sampler = BatchSampler(
            tokens.lengths(), self._segmentation,
            documents_per_batch=TEXTS_PER_BATCH * context.world,
            rank=context.rank, world=context.world, shuffle=False,
        )  # fmt: skip
        empty = csr_from_lists([[] for _ in range(tokens.size)])
        return batch_loader(tokens, empty, Collator(self._segmentation), sampler)


def prototypes(label_vectors_LD: Tensor, document_vectors_ND: Tensor, labels: Csr) -> Tensor:
    """Directions of labels: the mean of a label's own text and its training documents' texts.

    p_l = unit((t_l + Σ_d∈l u_d) / (n_l + 1) - mean_d u_d). What all texts share tells no label from
    another and is taken out. A label without documents has its text alone.

    Args:
        label_vectors_LD: t, unit vectors of the label texts; 0 where there is none.
        document_vectors_ND: u, unit vectors of the training documents.
        labels: label indices by training document.

    Returns: (L, D), rows of length 1 (0 where nothing is left).
    """
    owners = torch.from_numpy(labels.owners())
    label_ids = torch.from_numpy(labels.values.astype("int64"))
    sums_LD = label_vectors_LD.clone().index_add_(0, label_ids, document_vectors_ND[owners])
    # One more than its documents: the label's own text counts as one of them.
    counts_L = torch.bincount(label_ids, minlength=len(label_vectors_LD)) + 1
    return normalize(sums_LD / counts_L[:, None] - document_vectors_ND.mean(0), dim=-1)


def name_directions(means_LD: Tensor, common_D: Tensor) -> Tensor:
    """Directions of label texts less what all have in common, (L, D) of length 1.

    Args:
        means_LD: mean hidden states of label texts; 0 where there is none, and stays 0.
        common_D: the mean of those of all labels that have a text.
    """
    named_L1 = means_LD.any(dim=1, keepdim=True)
    return normalize((means_LD - common_D) * named_L1, dim=-1)
