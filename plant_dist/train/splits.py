"""Splits as flat arrays, with hidden states where they are kept: what tasks read.

Must not know what is learnt from them, nor where a dataset lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plant_dist.data.batches import Batch
from plant_dist.data.csr import Csr
from plant_dist.data.segments import Segmentation
from plant_dist.train.states import HiddenStates


@dataclass(frozen=True)
class SplitArrays:
    """A split as flat arrays.

    Attributes:
        tokens: token ids by document. labels: gold label indices by document.
        ids: document ids, in the same order.
        states: what a frozen encoder gives for them; None runs the encoder.
        ignored: label indices by document whose score does not count; None where there are none.
    """

    tokens: Csr
    labels: Csr
    ids: Sequence[str]
    states: HiddenStates | None = None
    ignored: Csr | None = None

    def hidden(self, batch: Batch, device: torch.device) -> Tensor | None:
        """Return a batch's hidden states, as `PlantForMultiLabelClassification.forward` takes."""
        return None if self.states is None else _sent(self.states.of(batch), device)

    def ignored_of(self, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return offsets (B+1,) and label ids of a batch's ignored pairs, int64."""
        if self.ignored is None:
            return None
        # A filler has row -1; it weighs nothing, so any row may stand for it.
        rows = self.ignored.take(batch.rows.clamp_min(0).cpu().numpy())
        arrays = (rows.offsets.astype(np.int64), rows.values.astype(np.int64))
        offsets, ids = (_sent(torch.from_numpy(one), device) for one in arrays)
        return offsets, ids


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device, without waiting where it is a GPU."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Corpus:
    """What the classifier is trained and judged on.

    Attributes:
        train_frequency: (L,) int64, training documents of each label.
    """

    train: SplitArrays
    validation: SplitArrays
    train_frequency: Tensor
    segmentation: Segmentation
