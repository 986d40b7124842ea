"""Vectors of labels and of documents, as the index wants them: blocks of numpy arrays.

A label that training documents carry has the vector of its row; any other that of its text. Must
not know the index.

N documents, n labels of a block, X width of the vectors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import encode
from plant_dist.errors import ConfigError
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.models.retriever import DECODER, LEARNED, RANKER, Retriever
from plant_dist.runtime.collectives import sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.shortlist.across import owned_labels
from plant_dist.shortlist.index import LABELS_AT_ONCE, Float32, Int64, VectorSource
from plant_dist.train.embed import KeptMeans, TextEmbedder
from plant_dist.train.states import HiddenStates

TEXTS_PER_BATCH = 64
FITTED_DOCUMENTS = 2048  # what the ranker's mean and deviation over documents are taken from


class LabelTexts(NamedTuple):
    """What the labels are called, and which of them training documents carry.

    Attributes:
        train_frequency: (L,) int64. texts: names by index.
    """

    train_frequency: np.ndarray[tuple[int], np.dtype[np.int64]]
    texts: Sequence[str]
    tokenizer: PreTrainedTokenizerBase


class VectorMaker:
    """Makes vectors with a classifier as it is at the moment.

    Args:
        model: one with a retriever, on the context's device.
        labels: their texts.
        segmentation: how documents are cut.
        context: the place of this process.
        kept: keeps what a frozen encoder says of label texts.
    """

    def __init__(
        self,
        model: PlantForMultiLabelClassification,
        labels: LabelTexts,
        segmentation: Segmentation,
        context: RunContext,
        kept: KeptMeans | None = None,
    ) -> None:
        self.model, self.segmentation, self.context = model, segmentation, context
        self._labels = labels
        # Ranks read the texts of their own labels, each at its own time.
        self._kept = kept if context.world == 1 else None
        # Of the labels last asked for, where the encoder is frozen.
        self._means: dict[tuple[int, int, int], NDArray[np.floating[Any]]] = {}

    @property
    def retriever(self) -> Retriever:
        """The classifier's retriever.

        Raises:
            ConfigError: it has none.
        """
        if self.model.retriever is None:
            raise ConfigError(
                "the classifier was trained on all labels and has no retriever; train it with "
                "train.labels=shortlist"
            )
        return self.model.retriever

    @property
    def own(self) -> tuple[int, int]:
        """(start, stop) of the labels whose vectors this rank makes: those whose rows it has."""
        rows = self.model.labels.own
        if len(rows) < self.model.labels.count:
            return rows.start, rows.stop
        # Rows are everywhere: each rank takes its share.
        return owned_labels(self.model.labels.count, self.context.rank, self.context.world)

    def labels(self, kind: str, start: int, stop: int) -> VectorSource:
        """Return the vectors of the labels start … stop-1; texts are embedded now, rows later."""
        frequency = np.asarray(self._labels.train_frequency[start:stop])
        unseen = start + np.flatnonzero(frequency == 0)
        if kind == DECODER:
            # The decoder has rows for what they are called.
            unseen = unseen[:0]
        # Rows are read when asked for, block by block; texts cost the encoder and are few.
        of_texts = self._of_texts(kind, unseen) if len(unseen) else np.zeros((0, 0), np.float32)

        @torch.no_grad()
        def vectors(low: int, high: int) -> Float32:
            held = self.model.labels.fetch()
            rows = held.columns(low - held.first, high - held.first)
            rows = {name: one[0] for name, one in rows.items()}
            found: Float32 = self.retriever.label_vectors(kind, rows).float().cpu().numpy()
            first, last = np.searchsorted(unseen, (low, high))
            if last > first:
                # numpy may share the memory of the rows themselves.
                found = found.copy()
                found[unseen[first:last] - low] = of_texts[first:last]
            return found

        return vectors

    @torch.no_grad()
    def documents(self, kind: str, tokens: Csr, states: HiddenStates | None = None) -> Float32:
        """Return the vectors of documents, (N, X).

        Args: states: what a frozen encoder says of them, where it is kept.
        """
        found = np.zeros((tokens.size, self.retriever.width_of(kind)), np.float32)
        for batch, hidden in self._read(kind, tokens, states):
            vectors = self.retriever.document_vectors(kind, hidden, batch.input_ids, batch.keep)
            found[batch.rows.cpu().numpy()] = vectors.float().cpu().numpy()
        return found

    @torch.no_grad()
    def fit(self, tokens: Csr) -> None:
        """Fit the ranker's tower to training documents, as it must be when factors have moved.

        All ranks must call.
        """
        tower = self.retriever.ranker
        if tower is None:
            return
        # Evenly spaced over all documents, and shared out among ranks.
        wanted = min(tokens.size, FITTED_DOCUMENTS)
        rows = np.arange(wanted, dtype=np.int64) * tokens.size // max(wanted, 1)
        mine = tokens.take(rows[self.context.rank :: self.context.world])
        width = len(tower.mean)
        sums = torch.zeros(1 + width + width * width, dtype=torch.float64)
        for batch, hidden in self._read(RANKER, mine):
            pooled = self.retriever.pooled(hidden, batch.input_ids, batch.keep).double().cpu()
            sums[0] += len(pooled)
            sums[1 : 1 + width] += pooled.sum(0)
            sums[1 + width :] += (pooled.T @ pooled).reshape(-1)
        sums = sum_across(self.context, sums).to(tower.mean.device)
        products = sums[1 + width :].view(width, width)
        tower.fit(sums[0].clamp_min(1), sums[1 : 1 + width], products)

    @torch.no_grad()
    def _of_texts(self, kind: str, labels: Int64) -> Float32:
        """Return the vectors (n, X) of labels' texts."""
        if kind == LEARNED:
            return self._of_means(self._means_of_texts(labels))
        found = np.zeros((len(labels), self.retriever.width_of(kind)), np.float32)
        texts = [self._labels.texts[label] for label in labels.tolist()]
        ids = encode(self._labels.tokenizer, texts, max_tokens=self.segmentation.content)
        for batch, hidden in self._read(kind, csr_from_lists(ids)):
            vectors = self.retriever.text_vectors(hidden, batch.input_ids, batch.keep)
            found[batch.rows.cpu().numpy()] = vectors.float().cpu().numpy()
        return found

    def _means_of_texts(self, labels: Int64) -> NDArray[np.floating[Any]]:
        """Return mean hidden states (n, D) of labels' texts, as planting took them for rows.

        Only so do labels with and without documents compare: special tokens, which a document's
        vector leaves out, shift all label vectors alike.
        """
        asked = (int(labels[0]), int(labels[-1]), len(labels))
        if asked in self._means:
            return self._means[asked]
        # Each rank reads its own labels' texts.
        alone = replace(self.context, rank=0, world=1)
        embedder = TextEmbedder(
            self.model.encoder, self._labels.tokenizer, self.segmentation, alone, self._kept
        )
        texts = [self._labels.texts[label] for label in labels.tolist()]
        means = embedder.mean_states(texts, "texts of labels without documents").numpy()
        if any(weight.requires_grad for weight in self.model.encoder.parameters()):
            return means
        # A frozen encoder says the same at every refresh. In a file that has no name and that the
        # kernel may write out: there may be millions.
        with tempfile.TemporaryFile() as file:
            kept = np.memmap(file, np.float16, "w+", shape=means.shape)
        kept[:] = means
        self._means = {asked: kept}
        return kept

    def _of_means(self, means_nD: NDArray[np.floating[Any]]) -> Float32:
        parts = [
            self.retriever.vectors_of_means(
                torch.from_numpy(np.asarray(means_nD[low : low + LABELS_AT_ONCE], np.float32))
                .to(self.context.device)
            ).float().cpu().numpy()
            for low in range(0, len(means_nD), LABELS_AT_ONCE)
        ]  # fmt: skip
        return np.concatenate(parts)

    @torch.no_grad()
    def _read(
        self, kind: str, tokens: Csr, states: HiddenStates | None = None
    ) -> Iterable[tuple[Batch, Tensor | None]]:
        """Yield batches on the device, with hidden states where the vectors need them."""
        if not tokens.size:
            return
        sampler = BatchSampler(
            tokens.lengths(), self.segmentation, documents_per_batch=TEXTS_PER_BATCH, shuffle=False
        )
        none = csr_from_lists([[] for _ in range(tokens.size)])
        needed, engine = self.retriever.needs_hidden(kind), Engine(self.context)
        # Without dropout; the mode is put back, since training may go on.
        was_training = self.model.training
        self.model.eval()  # type: ignore[no-untyped-call]
        for batch in batch_loader(tokens, none, Collator(self.segmentation), sampler):
            on_device = batch.to(self.context.device)
            hidden = None
            if needed:
                kept = None if states is None else states.of(batch).to(self.context.device)
                with engine.autocast():
                    hidden, _, _ = self.model.encode(
                        on_device.input_ids, on_device.attention_mask, on_device.keep, kept
                    )
            yield on_device, hidden
        self.model.train(was_training)
