"""Validation documents as the trained classifier reads and scores them, for what is fitted to them.

Must not know what is fitted.

B documents of a batch, K labels considered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from plant_dist.data.batches import Batch
from plant_dist.logs import progress
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.objectives.multilabel import shortlist_columns
from plant_dist.runtime.engine import Engine
from plant_dist.train.classify_task import ClassifyTask, Scorer

CONSIDERED = 256  # best labels of a document, where all are scored


class Read(NamedTuple):
    """A batch of validation documents.

    Attributes:
        batch: on the CPU; fillers weigh 0. encoded: what the decoder takes, on the device.
        label_ids: (B, K) int64, 0 where an index found no label. real: (B, K) bool, where it did.
        logits: (B, K) float32. gold_counts: (B,) and gold_columns: (G,) int64, as
            `shortlist_columns` gives them. All on the CPU.
    """

    batch: Batch
    encoded: tuple[Tensor, Tensor, Tensor]
    label_ids: Tensor
    real: Tensor
    logits: Tensor
    gold_counts: Tensor
    gold_columns: Tensor


def read_validation(
    task: ClassifyTask, model: PlantForMultiLabelClassification, title: str
) -> Iterator[Read]:
    """Yield this rank's validation documents. All ranks must call, and take as many batches."""
    context, split = task.context, task.corpus.validation
    scorer = Scorer(
        model, task.corpus.segmentation, task.evaluate_config, context, task.scoring(model)
    )
    model.eval()  # type: ignore[no-untyped-call]
    for batch in progress(scorer.batches(split), title, "batch", shown=context.is_main):
        hidden, on_device = split.hidden(batch, context.device), batch.to(context.device)
        with Engine(context).autocast():
            encoded = model.encode(
                on_device.input_ids, on_device.attention_mask, on_device.keep, hidden
            )
            scored = scorer.score(*encoded)
        logits_BK, ids_BK = scored.logits.float(), scored.label_ids
        if ids_BK is None:
            logits_BK, ids_BK = logits_BK.topk(min(CONSIDERED, logits_BK.shape[1]))
        ids_BK = ids_BK.cpu()
        # What an index did not find is no label, and the gold one of no document.
        listed_BK = ids_BK.masked_fill(ids_BK < 0, model.labels.count)
        offsets, columns, _ = shortlist_columns(listed_BK, batch.label_offsets, batch.label_ids)
        yield Read(batch, encoded, ids_BK.clamp_min(0), ids_BK >= 0, logits_BK.cpu(),
                   offsets.diff(), columns)  # fmt: skip
