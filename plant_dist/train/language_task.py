"""Training the AWD-LSTM as a language model: whole documents, next-token loss, perplexity.

A step reads documents from end to end, so nothing is carried from step to step and a run resumes
exactly; gradients are cut off after every window inside the LSTM. Must not know what becomes of
the LSTM.

V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from plant_dist.config.schema import LmConfig
from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.logs import progress
from plant_dist.models.language_model import LanguageModel, Prediction, unigram
from plant_dist.runtime.collectives import sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.train.loop import BatchSize
from plant_dist.train.optim import ParameterGroup
from plant_dist.train.splits import SplitArrays


class LanguageModelTask:
    """Trains a `LanguageModel`; see `train.loop.Task`.

    Args:
        model: what is trained.
        train, validation: documents; their labels are not read.
        segmentation: how the classifier will read them, special tokens included.
        config: rates, penalties, batch size.
        context: the place of this process.
    """

    name = "language model"
    best_metric = "loss"

    def __init__(
        self,
        model: LanguageModel,
        train: SplitArrays,
        validation: SplitArrays,
        segmentation: Segmentation,
        config: LmConfig,
        context: RunContext,
    ) -> None:
        self.model: nn.Module = model
        self._language_model = model
        self._train, self._validation = train, validation
        self._collator = Collator(segmentation)
        self._config, self._context = config, context
        self._sampler = self._plan(train, shuffle=True)
        vocabulary = model.lstm.config.vocab_size
        counts_V = np.bincount(train.tokens.values, minlength=vocabulary)
        self.token_counts = torch.from_numpy(counts_V)
        self.metric_names: Sequence[str] = (
            ["loss", "perplexity", "unigram_perplexity"] if validation.tokens.size else []
        )

    def _plan(self, split: SplitArrays, shuffle: bool) -> BatchSampler:
        context = self._context
        return BatchSampler(
            split.tokens.lengths(), self._collator.segmentation,
            tokens_per_batch=self._config.tokens_per_batch,
            seed=context.seed, rank=context.rank, world=context.world, shuffle=shuffle,
        )  # fmt: skip

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group: nothing here is pretrained more than the rest."""
        config = self._config
        parameters = list(self.model.parameters())
        return [
            ParameterGroup("language_model", parameters, config.learning_rate, config.weight_decay)
        ]

    def idle(self) -> Sequence[nn.Module]:
        """Return nothing: all parts run."""
        return ()

    def batches_per_epoch(self, epoch: int) -> int:
        """Return the number of global batches of an epoch."""
        return self._sampler.count(epoch)

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        """Return this rank's batches of an epoch from a position on."""
        split = self._train
        return batch_loader(split.tokens, split.labels, self._collator, self._sampler, epoch, start)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return nats per token and penalties; the mean over ranks is that over all tokens."""
        found: Prediction = model(*self._inputs(batch))
        config = self._config
        penalty = (
            config.activation_penalty * found.activation + config.slowness_penalty * found.slowness
        )
        # Ranks hold documents of unlike lengths, so they add up what they predict.
        total = sum_across(self._context, found.tokens.detach())
        # Times world, since gradients are averaged over ranks and not added.
        return (found.nll + penalty) * (self._context.world / total.clamp(min=1))

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        on_device = batch.to(self._context.device)
        # Special tokens are read and never asked for; fillers would count documents twice.
        counted = on_device.keep & (on_device.weights > 0)[:, None, None]
        return on_device.input_ids, on_device.attention_mask, counted

    def size(self, batch: Batch) -> BatchSize:
        """Return the documents of all ranks, and this rank's real tokens."""
        return BatchSize(batch.global_weight, int(batch.attention_mask.sum()))

    def identify(self, batch: Batch) -> list[str]:
        """Return the ids of this rank's documents."""
        # Fillers have row -1 and no id.
        return [self._train.ids[row] for row in batch.rows.tolist() if row >= 0]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return nats per token, perplexity, and that of token frequencies alone. All ranks call.

        Every system is asked for the same tokens: document tokens, each once, but for those that
        are read first.
        """
        assert isinstance(model, LanguageModel)
        context, engine = self._context, Engine(self._context)
        unigram_V = unigram(self.token_counts).to(context.device)
        split = self._validation
        plan = self._plan(split, shuffle=False)
        batches = batch_loader(split.tokens, split.labels, self._collator, plan)
        # Double: sums of millions of tokens.
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in progress(batches, self.name, "batch", shown=context.is_main):
            inputs = self._inputs(batch)
            with engine.autocast():
                found: Prediction = model(*inputs)
            ids_BN, counted_BN = model.targets(*inputs)
            by_frequency = -unigram_V[ids_BN[counted_BN]].double().sum()
            sums += torch.stack([found.nll.double(), by_frequency, found.tokens.double()]).cpu()
        nll, by_frequency, count = sum_across(context, sums).tolist()
        loss, baseline = nll / max(count, 1.0), by_frequency / max(count, 1.0)
        return {
            "loss": loss,
            "perplexity": _perplexity(loss),
            "unigram_perplexity": _perplexity(baseline),
        }


def _perplexity(nats: float) -> float:
    # A model gone astray must show as a number, not end in an overflow.
    return math.exp(min(nats, 700.0))
