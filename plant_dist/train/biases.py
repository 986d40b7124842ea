"""Biases fitted to validation after training, label by label.

A label fits its training documents more closely than others, by an amount of its own. Its bias is
moved by the d_l of least

    Σ_b [ln(1 + e^(z_bl + d_l)) - y_bl (z_bl + d_l)] + RIDGE · d_l²

over the validation documents b that consider it, z and y its logit and whether it is gold: its
cross-entropy, and a normal prior, so that a label of few validation documents hardly moves. Labels
do not depend on each other, so that Newton's method serves all at once. Labels that no training
document carries stay: theirs would be learnt from validation. Must not know what else a logit
consists of.

B documents of a batch, K labels considered, P pairs of a document and a label, U distinct labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plant_dist.logs import get_logger
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.runtime.collectives import gather_objects, sum_across
from plant_dist.runtime.context import RunContext
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.read_validation import Read, read_validation

RIDGE = 3.0  # nats at a distance of 1; 1 to 20 were tried (docs/findings.md)
STEPS = 30
# Newton's step is cut to where the curvature it relies on still holds.
LONGEST_STEP = 1.0
log = get_logger(__name__)


@dataclass(frozen=True)
class Judgements:
    """What this rank's validation documents say of labels.

    Attributes:
        label_ids: (P,) int64. logits: (P,) float32. gold: (P,) float32, 0 or 1.
    """

    label_ids: Tensor
    logits: Tensor
    gold: Tensor


@torch.no_grad()
def refit_biases(task: ClassifyTask, model: PlantForMultiLabelClassification) -> None:
    """Fit biases on validation and write them into the rows. All ranks must call."""
    seen_L = task.corpus.train_frequency > 0
    judged = [_judged(read, seen_L) for read in read_validation(task, model, "biases")]
    label_ids, logits, gold = (torch.cat(one) for one in zip(*judged, strict=True))
    labels_U, moved_U = fit_biases(task.context, Judgements(label_ids, logits, gold))
    own, bias = model.labels.own, model.labels.fields["bias"]
    mine_U = (labels_U >= own.start) & (labels_U < own.stop)
    bias[labels_U[mine_U] - own.start, 0] += moved_U[mine_U].to(bias)
    if len(labels_U):
        log.info("train: biases of %s labels moved, by %.2f (root mean square)",
                 f"{len(labels_U):,}", float(moved_U.square().mean().sqrt()))  # fmt: skip


def fit_biases(context: RunContext, judged: Judgements) -> tuple[Tensor, Tensor]:
    """Return the labels considered on any rank, (U,) rising, and what their biases move by, (U,).

    All ranks must call, each with what its own documents say.
    """
    mine = np.unique(judged.label_ids.numpy())
    labels_U = torch.from_numpy(np.unique(np.concatenate(gather_objects(context, mine))))
    place_P = torch.searchsorted(labels_U, judged.label_ids)
    moved_U = torch.zeros(len(labels_U))
    for _ in range(STEPS):
        chance_P = (judged.logits + moved_U[place_P]).sigmoid()
        each_P2 = torch.stack([chance_P - judged.gold, chance_P * (1 - chance_P)], 1)
        sums_U2 = torch.zeros(len(labels_U), 2).index_add_(0, place_P, each_P2)
        slope_U, curve_U = sum_across(context, sums_U2).unbind(1)
        step_U = (slope_U + 2 * RIDGE * moved_U) / (curve_U + 2 * RIDGE)
        moved_U -= step_U.clamp(-LONGEST_STEP, LONGEST_STEP)
    return labels_U, moved_U


def _judged(read: Read, seen_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, logits and gold of a batch's pairs that count."""
    gold_BK = torch.zeros_like(read.logits)
    rows_G = torch.repeat_interleave(read.gold_counts)
    gold_BK[rows_G, read.gold_columns] = 1.0
    counts_BK = read.real & seen_L[read.label_ids] & (read.batch.weights.cpu() > 0)[:, None]
    return read.label_ids[counts_BK], read.logits[counts_BK], gold_BK[counts_BK]
