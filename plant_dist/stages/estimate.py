"""What training would take of a device: memory by part, and steps. Arithmetic only.

An estimate: weights, gradients and moments are counted, activations follow from the sizes of the
layers, and what torch and the device's libraries take for themselves is left out. Must not read
files, models or documents.

B documents of a device's batch, T their padded tokens, D encoder width, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from plant_dist.config.schema import Config, RuntimeConfig
from plant_dist.labels.choice import RowsPlan
from plant_dist.models.fields import label_fields
from plant_dist.models.retriever import FIELD, LEARNED
from plant_dist.models.shapes import KEPT_BYTES, EncoderShape
from plant_dist.runtime.zero_settings import STAGES

FLOAT = 4  # bytes
LABEL_TABLES = "label tables"
_MIB = 2**20
# Logits, their gradient, and two more of their size inside the loss.
_LOGIT_ARRAYS = 4


@dataclass(frozen=True)
class CorpusSizes:
    """What is known of the training split.

    Attributes:
        labels: L. documents: N.
        padded: tokens of a document's (S, T) array, on the mean. widest: of the largest.
        batches: global batches of an epoch; None where documents have not been counted.
    """

    labels: int
    documents: int
    padded: float
    widest: int
    batches: int | None = None


@dataclass(frozen=True)
class Share:
    """The largest batch that a device reads at once."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class Part:
    """Bytes that a part of the model takes of a device.

    Attributes:
        copies: averages, starting weights, and half-precision copies of weights.
    """

    name: str
    weights: float
    gradients: float = 0.0
    moments: float = 0.0
    copies: float = 0.0

    @property
    def total(self) -> float:
        """Return the bytes of all."""
        return self.weights + self.gradients + self.moments + self.copies


def share_of(config: Config, sizes: CorpusSizes, world: int) -> Share:
    """Return what one of `world` devices reads at once, at most."""
    train = config.train
    if train.tokens_per_batch is None:
        documents = math.ceil(train.documents_per_batch / world)
        # Batches are sorted by length, so that the longest documents meet in one.
        return Share(documents, documents * sizes.widest)
    # A document that is over the budget makes a batch of its own.
    tokens = max(train.tokens_per_batch / world, sizes.widest)
    return Share(max(1, math.ceil(train.tokens_per_batch / world / sizes.padded)), round(tokens))


def steps_of(config: Config, sizes: CorpusSizes) -> tuple[int, int]:
    """Return (batches of an epoch, optimizer steps of the training)."""
    train, batches = config.train, sizes.batches
    if batches is None:
        budget = train.tokens_per_batch
        several = train.documents_per_batch if budget is None else max(1.0, budget / sizes.padded)
        batches = math.ceil(sizes.documents / several)
    steps = math.ceil(batches / train.accumulation) * train.epochs
    return batches, min(steps, train.max_steps or steps)


def parts_of(
    config: Config, encoder: EncoderShape, labels: int, rows: RowsPlan, world: int = 1
) -> list[Part]:
    """Return what the weights, and all that comes with training them, take of one of `world`."""
    copies = _kept_copies(config) * (rows.gradient_bytes if rows.dense else rows.rows_bytes)
    engine = config.runtime
    return [
        shared_out(_encoder_part(config, encoder), engine, world),
        # Rows are whole on every device, or shared out by their own engine.
        Part(LABEL_TABLES, rows.rows_bytes, rows.gradient_bytes, rows.state_bytes, copies),
        *(shared_out(part, engine, world) for part in _ranker_part(config, encoder)),
        *_gain_part(config, labels),
        *(shared_out(part, engine, world) for part in _bag_part(config, encoder)),
    ]


def shared_out(part: Part, runtime: RuntimeConfig, world: int) -> Part:
    """Return what is left of a part on each of `world` devices under ZeRO; DDP leaves all.

    DeepSpeed moves a copy of its own of what a device is to update; stage 3 fetches weights layer
    by layer, which is left out here.
    """
    stage = STAGES.get(runtime.engine, 0)
    if stage == 0 or part.gradients == 0.0:
        return part
    moved = part.gradients / world
    moments = part.moments / world
    if runtime.offload != "none":
        # The copy that is updated and what Adam remembers of it.
        moved = moments = 0.0
    weights = part.weights / world if stage == 3 else part.weights
    if runtime.offload == "parameters":
        weights = 0.0
    gradients = part.gradients / world if stage >= 2 else part.gradients
    return Part(part.name, weights, gradients, moments, part.copies + moved)


def _encoder_part(config: Config, encoder: EncoderShape) -> Part:
    own = encoder.parameters - (encoder.trained if config.encoder.lora_rank else 0)
    learning = 0 if config.train.optim.freeze_encoder else encoder.trained
    each = {"fp32": 4.0, "bf16": 2.0, "4bit": 0.55}[config.encoder.load_in]
    adapters = encoder.parameters - own
    # Autocast keeps the half-precision form of trained weights from forward to backward pass.
    halved = 2.0 * learning if config.runtime.precision != "fp32" else 0.0
    return Part(
        "encoder", own * each + adapters * FLOAT, learning * FLOAT, 2 * learning * FLOAT,
        halved + _kept_copies(config) * learning * FLOAT,
    )  # fmt: skip


def _ranker_part(config: Config, encoder: EncoderShape) -> Iterator[Part]:
    if "planted" not in config.model.branches:
        return
    # A bias for each token; factors too, where they are a table and not the encoder's states.
    width = 1 + (config.rank.width if config.rank.kind == "lexical" else 0)
    size = encoder.vocabulary * width * FLOAT
    learns = 0 if config.model.freeze_ranker else size
    yield Part("ranker", size, learns, 2 * learns, _kept_copies(config) * learns)


def _gain_part(config: Config, labels: int) -> Iterator[Part]:
    if "static" in config.model.branches:
        # Token and gain of each pair, and as much again for finding labels by token.
        yield Part("static gains", 2 * labels * config.mig.top_tokens * 8)


def _bag_part(config: Config, encoder: EncoderShape) -> Iterator[Part]:
    if "bag" in config.model.branches:
        size = (encoder.vocabulary + config.model.bag_pairs) * config.model.bag_width * FLOAT
        yield Part("bag", size, size, 2 * size, _kept_copies(config) * size)


def _kept_copies(config: Config) -> int:
    return (config.train.ema_decay is not None) + (config.train.start_share > 0)


def label_widths(config: Config, width: int) -> dict[str, int]:
    """Return the fields of a label's row and their widths, for an encoder of width D."""
    # A contextual factor is a query over hidden states, hence as wide as they are.
    factor = width if config.rank.kind == "contextual" else config.rank.width
    fields = label_fields(config.model, width, factor)
    if config.train.labels == "shortlist" and config.shortlist.vectors == LEARNED:
        fields[FIELD] = config.shortlist.width
    return fields


def considered_labels(config: Config, labels: int) -> int:
    """Return K, the labels that a document of a training step considers."""
    shortlisted = config.train.labels == "shortlist"
    return min(labels, config.shortlist.labels_per_document) if shortlisted else labels


def distinct_labels(labels: int, share: Share, considered: int) -> float:
    """Return U to expect of shortlists drawn evenly: the most there can be on the mean."""
    if considered >= labels:
        return float(labels)
    return labels * -math.expm1(share.documents * considered * math.log1p(-1 / labels))


def step_of(
    config: Config, encoder: EncoderShape, labels: int, share: Share, rows: RowsPlan
) -> dict[str, float]:
    """Return bytes that a step holds beside weights, gradients and optimizer, by part."""
    considered = considered_labels(config, labels)
    # Copies and their gradients; between ranks also what the owners gather for others.
    copies = 0 if rows.dense else 3 if rows.engine == "sharded" else 2
    fetched = copies * distinct_labels(labels, share, considered)
    # Laid out for each document, with gradients; those that consider all labels read the same rows.
    laid_out = 2 * share.documents * considered if config.train.labels == "shortlist" else 0
    return {
        **activations_of(config, encoder, labels, share),
        "fetched rows": fetched * rows.numbers * FLOAT,
        "rows by document": laid_out * rows.numbers * FLOAT,
    }


def activations_of(
    config: Config, encoder: EncoderShape, labels: int, share: Share
) -> dict[str, float]:
    """Return bytes of what a step computes from the weights, by part."""
    frozen = config.train.optim.freeze_encoder
    labels = considered_labels(config, labels)
    # A frozen encoder forgets a block once the next has read it.
    kept = encoder.kept // max(encoder.blocks, 1) if frozen else encoder.activations(
        config.encoder.gradient_checkpointing
    )  # fmt: skip
    states = 2 * share.tokens * encoder.width * FLOAT
    # Scores, weights and their gradients; above the budget blocks are computed again.
    attended = 6 * share.tokens * labels * FLOAT
    budget = 2 * config.model.block_memory_mb * _MIB
    return {
        "encoder": kept * share.tokens * KEPT_BYTES[config.runtime.precision],
        "hidden states": states,
        "label attention": min(attended, budget),
        "logits": _LOGIT_ARRAYS * share.documents * labels * FLOAT,
    }
