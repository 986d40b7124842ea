"""What rows and names say, fitted to validation after training, by band of label frequency.

Training documents are where rows were learnt, so that a rare label's rows are too sure of
themselves elsewhere, and what a name is worth to a label never seen was learnt of labels that were.
Four numbers a band set that right: a logit z = b + a + g + n of bias, attentions, bag and name
becomes b + c + r a + s g + t n, with c, r, s and t of the label's band the ones of least
cross-entropy among the labels considered for validation documents: of each label by itself, or,
where training used the softmax loss, of the gold labels among the others. They are written into the
rows, so that nothing else knows of them.

B documents of a batch, N of this rank, K labels considered, G gold labels among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from plant_dist.config.schema import LossConfig
from plant_dist.logs import get_logger, progress
from plant_dist.metrics.bands import BANDS, band_numbers
from plant_dist.models.branches import LabelBlock
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.models.decoder import LabelDecoder
from plant_dist.objectives.multilabel import multilabel_loss, shortlist_columns
from plant_dist.runtime.apart import kept_apart
from plant_dist.runtime.collectives import sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.train.classify_task import ClassifyTask, Scorer

CONSIDERED = 256  # best labels of a document, where all are scored
# A number is expected within half of where it starts (a normal prior), in nats over all documents;
# bands without gold labels stay what they are.
RIDGE = 2.0
SMALLEST = 0.05  # a slope is no less, so that the order inside a band stays that of the model
STEPS = 60
log = get_logger(__name__)


@dataclass(frozen=True)
class _Considered:
    """The labels considered for this rank's validation documents.

    Attributes:
        band: (N, K) int64 band of each label. parts: (N, K, 4) of its logit, see `_parts`.
        real: (N, K) float32, 0 where an index found no label.
        gold_offsets, gold_columns: (N + 1,) and (G,) int64. weights: (N,), 0 for fillers.
    """

    band: Tensor
    parts: Tensor
    real: Tensor
    gold_offsets: Tensor
    gold_columns: Tensor
    weights: Tensor


@torch.no_grad()
def refit_bands(task: ClassifyTask, model: PlantForMultiLabelClassification) -> Tensor:
    """Fit the bands on validation and write them into the rows. All ranks must call.

    Returns: (bands, 4) what is added to logits, and what attentions, bag and names are scaled by.
    """
    frequency = task.corpus.train_frequency.numpy()
    bands_L = torch.from_numpy(band_numbers(frequency).astype(np.int64))
    # The other losses bend cross-entropy for training; what is fitted should be probable.
    loss = LossConfig(kind="softmax" if task.loss_config.kind == "softmax" else "bce")
    considered = _considered(task, model, bands_L)
    fitted = _fit(task.context, considered, loss, task.corpus.validation.tokens.size)
    _write(model, bands_L, fitted)
    for band, numbers in zip(BANDS, fitted.tolist(), strict=True):
        log.info("train: labels of %s training documents: %+.2f, attentions x %.2f, bag x %.2f, "
                 "names x %.2f", "–".join("" if end is None else str(end) for end in band),
                 *numbers)  # fmt: skip
    return fitted


def _considered(
    task: ClassifyTask, model: PlantForMultiLabelClassification, bands_L: Tensor
) -> _Considered:
    context, scoring, split = task.context, task.scoring(model), task.corpus.validation
    scorer = Scorer(model, task.corpus.segmentation, task.evaluate_config, context, scoring)
    engine = Engine(context)
    found: list[tuple[Tensor, ...]] = []
    model.eval()  # type: ignore[no-untyped-call]
    for batch in progress(scorer.batches(split), "bands", "batch", shown=context.is_main):
        hidden, on_device = split.hidden(batch, context.device), batch.to(context.device)
        with engine.autocast():
            encoded = model.encode(
                on_device.input_ids, on_device.attention_mask, on_device.keep, hidden
            )
            scored = scorer.score(*encoded)
            ids_BK = scored.label_ids
            if ids_BK is None:
                ids_BK = scored.logits.topk(min(CONSIDERED, scored.logits.shape[1])).indices
            parts_BK4 = _parts(model.decoder, *encoded, ids_BK.clamp_min(0)).cpu()
        ids_BK = ids_BK.cpu()
        # What an index did not find is no label, and the gold one of no document.
        listed_BK = ids_BK.masked_fill(ids_BK < 0, len(bands_L))
        if (ignored := split.ignored_of(batch, torch.device("cpu"))) is not None:
            # Neither right nor wrong, as where they are measured.
            starts, columns, _ = shortlist_columns(listed_BK, *ignored)
            listed_BK[torch.repeat_interleave(starts.diff()), columns] = len(bands_L)
        offsets, columns, _ = shortlist_columns(listed_BK, batch.label_offsets, batch.label_ids)
        band_BK = bands_L[ids_BK.clamp_min(0)]
        real_BK = (listed_BK < len(bands_L)).float()
        found.append((band_BK, parts_BK4, real_BK, offsets.diff(), columns, batch.weights.cpu()))
    band, parts, real, golds, columns, weights = (
        torch.cat(one) for one in zip(*found, strict=True)
    )
    return _Considered(band, parts, real, pad(golds.cumsum(0), (1, 0)), columns, weights)


def _parts(
    decoder: LabelDecoder, hidden: Tensor, input_ids: Tensor, keep: Tensor, ids_BK: Tensor
) -> Tensor:
    """Return bias (or prior), evidence of attentions, of the bag and of the name, (B, K, 4)."""
    wanted = decoder.labels.fetch(ids_BK)
    rows = wanted.columns(0, wanted.count)
    base_BK = rows["bias"][..., 0]
    if decoder.names is not None:
        base_BK = torch.where(rows["alone"][..., 0] > 0, rows["prior"][..., 0], base_BK)
    logits_BK = decoder(hidden, input_ids, keep, wanted).float()
    with _nameless(decoder):
        nameless_BK = decoder(hidden, input_ids, keep, wanted).float()
        bagless_BK = nameless_BK
        if decoder.bag is not None:
            nothing = torch.zeros_like(wanted.rows["bag"])
            bagless = replace(wanted, rows={**wanted.rows, "bag": nothing})
            bagless_BK = decoder(hidden, input_ids, keep, bagless).float()
    parts = base_BK, bagless_BK - base_BK, nameless_BK - bagless_BK, logits_BK - nameless_BK
    return torch.stack(parts, dim=-1)


@contextmanager
def _nameless(decoder: LabelDecoder) -> Iterator[None]:
    """Let names count nothing for a while."""
    names = decoder.names
    if names is None:
        yield
        return
    kept = names.beside.clone(), names.alone.clone()
    names.beside.zero_()
    names.alone.zero_()
    try:
        yield
    finally:
        names.beside.copy_(kept[0])
        names.alone.copy_(kept[1])


@torch.enable_grad()
def _fit(
    context: RunContext, considered: _Considered, config: LossConfig, documents: int
) -> Tensor:
    """Return (bands, 4) of least loss, close to (0, 1, 1, 1) where little is known.

    All ranks must call, each with its own documents: they sum gradients, so that none holds the
    labels considered by all, and take the same steps.

    Args: documents: of all ranks.
    """
    start = torch.tensor([[0.0, 1.0, 1.0, 1.0]]).repeat(len(BANDS), 1)
    fitted = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([fitted], max_iter=STEPS, line_search_fn="strong_wolfe")
    parts = considered.parts

    def loss() -> Tensor:
        by_band = fitted[considered.band]
        logits = parts[..., 0] + by_band[..., 0] + (by_band[..., 1:] * parts[..., 1:]).sum(-1)
        own = multilabel_loss(
            logits, considered.gold_offsets, considered.gold_columns, considered.weights, config,
            stands_for=considered.real, labels=1,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(own, fitted)
        summed = sum_across(context, torch.cat([own.detach()[None], gradient.flatten()]))
        away = fitted.detach() - start
        fitted.grad = summed[1:].view_as(start) / documents + 2 * RIDGE / documents * away
        return (summed[0] + RIDGE * away.square().sum()) / documents

    if documents:
        optimizer.step(loss)
    found = fitted.detach()
    found[:, 1:] = found[:, 1:].clamp_min(SMALLEST)
    return found


def _write(model: PlantForMultiLabelClassification, bands_L: Tensor, fitted: Tensor) -> None:
    """Write what was fitted into this rank's rows."""
    for module in kept_apart(model):
        module.settle()
    decoder, fields, own = model.decoder, model.labels.fields, model.labels.own
    device = fields["bias"].device
    by_label = fitted[bands_L[own.start : own.stop], :, None].to(device)
    shift_L1, attentions_L1, bag_L1, name_L1 = by_label.unbind(1)
    for field, scale_L1 in (("boost", attentions_L1), ("bag", bag_L1)):
        if field in fields:
            fields[field].mul_(scale_L1)
    fields["bias"].add_(shift_L1)
    names = decoder.names
    if names is None:
        return
    block = LabelBlock(0, len(own), None, {name: one[None] for name, one in fields.items()})
    gates = decoder.gates(block).reshape(-1, len(decoder.config.branches))
    gate = gates[:, decoder.config.branches.index("named"), None]
    # Only similarities scale with a name's row; what is taken off them is shared by all labels.
    worth = names.unit * names.beside * gate
    fields["bias"].sub_((name_L1 - 1) * worth * names.offset)
    level = names.unit * (names.alone[1] - names.alone[0] * names.offset)
    fields["prior"].add_(shift_L1 + (name_L1 - 1) * level)
    fields["name"].mul_(name_L1)
