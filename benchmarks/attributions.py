"""Scores of a document's tokens for a label, by every method that plausibility.py compares.

Attention by branch and combined, mutual-information gain alone, chance, and gradients through
captum. Each gives one number a token of the document, in order.

Letters: S segments, T tokens of a segment, N tokens of the document, K labels, D encoder width,
X copies that captum makes of a document.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from plant_dist.data.batches import Batch, Collator
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.sampling import Share
from plant_dist.mig.lists import GainTable
from plant_dist.models.contributions import contributions
from plant_dist.stages.saved import SavedClassifier
from plant_dist.train.states import HiddenStates

RANDOM, GAIN, CONTRIBUTION = "random", "gain alone (static MIG)", "contribution to the logit"
GRADIENTS = {
    "gradient × input, sum": ("gradient", "sum"),
    "gradient × input, norm": ("gradient", "norm"),
    "integrated gradients, sum": ("integrated", "sum"),
    "integrated gradients, norm": ("integrated", "norm"),
}
Scores = NDArray[np.floating]


Encoded = tuple[Tensor, Tensor, Tensor]


class Reader:
    """A model that reads documents given as token ids."""

    def __init__(self, saved: SavedClassifier) -> None:
        self.saved = saved
        self._last: tuple[int, ...] | None = None
        self._held: tuple[Batch, Encoded]

    def batch(self, ids: Sequence[int]) -> Batch:
        """Return one document as a batch of one."""
        share = Share(np.zeros(1, np.int64), np.ones(1, np.float32), 1.0)
        collator = Collator(self.saved.segmentation)
        batch = collator(csr_from_lists([list(ids)]), csr_from_lists([[]]), share)
        return batch.to(self.saved.model.device)

    @torch.no_grad()
    def probability(self, ids: Sequence[int], label: int) -> float:
        """Return the probability of a label."""
        logit = self._scored(*self._encoded(ids)[1], label)
        return float(torch.sigmoid(logit)[0])

    @torch.no_grad()
    def attention(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, Scores]:
        """Return branch, or `combined` -> (K, N) attention."""
        batch, encoded = self._encoded(ids)
        weights = self.saved.model.decoder.attention_weights(*encoded, _wanted(labels))
        # Each of the document's tokens is kept once, and in order.
        kept = batch.keep.flatten()
        return {branch: one[0][:, kept].numpy() for branch, one in weights.items()}

    @torch.no_grad()
    def contributions(self, ids: Sequence[int], labels: Sequence[int]) -> Scores:
        """Return what each token adds to the labels' logits, (K, N)."""
        batch, encoded = self._encoded(ids)
        added = contributions(self.saved.model.decoder, *encoded, _wanted(labels))
        found: Scores = added[0][:, batch.keep.flatten()].numpy()
        return found

    def recall(self, ids: Sequence[int], states: HiddenStates, number: int) -> None:
        """Take a document's hidden states from disk: the encoder need not run for it."""
        if tuple(ids) == self._last:
            return
        batch = self.batch(ids)
        own = replace(batch, rows=torch.tensor([number]))
        read = (batch.input_ids, batch.attention_mask, batch.keep)
        self._held = batch, self.saved.model.encode(*read, states.of(own))
        self._last = tuple(ids)

    def _encoded(self, ids: Sequence[int]) -> tuple[Batch, Encoded]:
        """Read a document; the last one is kept, since its labels are asked for one by one."""
        key = tuple(ids)
        if key != self._last:
            batch, model = self.batch(ids), self.saved.model
            self._held = batch, model.encode(batch.input_ids, batch.attention_mask, batch.keep)
            self._last = key
        return self._held

    def gradients(self, ids: Sequence[int], label: int, steps: int) -> dict[str, Scores]:
        """Return method -> (N,) attribution of a label's logit to the encoder's input embeddings.

        What the planted and the static branch know of token ids themselves takes no gradient.
        Integrated gradients start from padding in the place of every document token. `sum` adds
        up the embedding's parts, so that evidence against a label is negative; `norm` is their
        Euclidean length.
        """
        batch = self.batch(ids)
        embed = self.saved.model.encoder.backbone.get_input_embeddings()
        keep = batch.keep
        pad = self.saved.segmentation.special.pad
        with torch.no_grad():
            embedded_1STD = embed(batch.input_ids)
            blank_1STD = embed(batch.input_ids.masked_fill(keep, pad))

        def logit(copies_XSTD: Tensor) -> Tensor:
            return self._logit(copies_XSTD, batch, label)

        found = {
            "gradient": InputXGradient(logit).attribute(embedded_1STD.clone().requires_grad_()),
            "integrated": IntegratedGradients(logit).attribute(
                embedded_1STD, blank_1STD, n_steps=steps, internal_batch_size=4
            ),
        }
        parts = {name: one.detach()[keep].double() for name, one in found.items()}
        return {
            method: (parts[kind].sum(-1) if how == "sum" else parts[kind].norm(dim=-1)).numpy()
            for method, (kind, how) in GRADIENTS.items()
        }

    def _logit(self, copies_XSTD: Tensor, batch: Batch, label: int) -> Tensor:
        """Return the label's logit for each copy of the document, (X,)."""
        model, count = self.saved.model, len(copies_XSTD)
        mask, shape = batch.attention_mask.expand(count, -1, -1), copies_XSTD.shape
        hidden = model.encoder.backbone(
            inputs_embeds=copies_XSTD.flatten(0, 1), attention_mask=mask.flatten(0, 1).long()
        ).last_hidden_state
        ids, keep = (one.expand(count, -1, -1) for one in (batch.input_ids, batch.keep))
        encoded = model.encode(ids, mask, keep, hidden.view(*shape[:3], -1))
        return self._scored(*encoded, label)

    def _scored(self, hidden: Tensor, ids: Tensor, keep: Tensor, label: int) -> Tensor:
        """Return the label's logit for each document of a batch."""
        model = self.saved.model
        # Where no label's score depends on another's, one alone is a fraction of the work.
        alone = model.narrower is None and model.rivals_after is None
        if alone and model.decoder.config.state != "logit_state":
            logits: Tensor = model.score(hidden, ids, keep, torch.full((len(keep), 1), label))
            return logits[:, 0]
        return model.score(hidden, ids, keep)[:, label]


@dataclass(frozen=True)
class KeptGradients:
    """Gradients that are computed once, and kept in a folder.

    Attributes:
        folder: of this very classifier.
        steps: of integrated gradients.
    """

    reader: Reader
    folder: Path
    steps: int

    def of(self, document: str, ids: Sequence[int], label: int) -> dict[str, Scores]:
        """Return method -> (N,) attribution, as `Reader.gradients`."""
        path = self.folder / f"{zlib.crc32(document.encode()):08x}-{label}-{self.steps}.npz"
        if not path.is_file():
            found: dict[str, Any] = {**self.reader.gradients(ids, label, self.steps)}
            self.folder.mkdir(parents=True, exist_ok=True)
            # Renamed when whole: a run may be stopped at any moment.
            part = path.with_suffix(".part.npz")
            np.savez(part, **found)
            part.replace(path)
        with np.load(path) as kept:
            return {method: kept[method] for method in GRADIENTS}


def _wanted(labels: Sequence[int]) -> Tensor:
    return torch.tensor([list(labels)])


def gain_alone(gains: GainTable, ids: Sequence[int], label: int) -> Scores:
    """Return the gain J of each token of a document for a label, (N,); 0 for tokens not kept."""
    by_token = np.zeros(gains.vocabulary_size)
    tokens, values = gains.label(label)
    by_token[tokens] = values
    return np.asarray(by_token[np.asarray(ids)])


def at_random(document: str, label: int, count: int, seed: int) -> Scores:
    """Return scores that mean nothing, the same for the same document, label and seed."""
    key = [seed, zlib.crc32(document.encode()), label]
    return np.random.default_rng(key).random(count)
