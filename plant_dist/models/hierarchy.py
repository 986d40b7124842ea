"""Evidence of narrower labels: how a label's score takes in the scores of the labels below it.

With a share s, z'_l = ln((1 − s)·e^{z_l} + s·Σ_c e^{z'_c}) over the labels c right below l; a label
with none below keeps its score. Thus a text that speaks for one rare code speaks for its chapter,
as the votes of near texts do, and no label falls far below one that implies it. A smooth form of
the maximum of Giunchiglia and Lukasiewicz ("Coherent Hierarchical Multi-Label Classification
Networks", NeurIPS 2020). Must not know where the hierarchy comes from, nor any attention.

B documents, L labels, W broad labels (with some below), P pairs (broad label, it or one below).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from plant_dist.data.csr import Csr
from plant_dist.errors import ArtifactError, DataError


class NarrowerPairs(NamedTuple):
    """Which labels speak for a broad label, and how loud; sorted by broad label.

    Attributes:
        broad: (W,) int64, labels with some below them, rising.
        place: (P,) int64, the broad label's place in `broad`.
        narrow: (P,) int64, the label itself or one below.
        log_weights: (P,) float32.
    """

    broad: Tensor
    place: Tensor
    narrow: Tensor
    log_weights: Tensor


def narrower_pairs(parents: Csr, share: float) -> NarrowerPairs:
    """Unroll the recursion of the module docstring: e^{z'} = Σ_k (s·C)^k D e^z, C children by row.

    A label below another by several paths speaks by each of them.

    Args:
        parents: row l = the labels right above l.
        share: s, in [0, 1).

    Raises:
        DataError: a label is above itself.
    """
    labels = parents.size
    child, parent = parents.owners(), parents.values.astype(np.int64)
    children = csr_array((np.ones(len(child)), (parent, child)), shape=(labels, labels))
    _refuse_cycles(children)
    # A label with none below keeps all of its score.
    broad = np.diff(children.indptr) > 0
    step = diags_array(np.where(broad, 1.0 - share, 1.0), format="csr")
    weights = step
    # Without cycles the paths end, after as many steps as the hierarchy is deep.
    while step.nnz:
        step = share * (children @ step)
        weights = weights + step
    # Labels with none below are left out: scoring does not touch them.
    pairs = weights[np.flatnonzero(broad)].tocoo()
    # A share of 0 stores zeros, whose logarithm would be -inf.
    speaks = pairs.data > 0
    return NarrowerPairs(
        torch.from_numpy(np.flatnonzero(broad)),
        torch.from_numpy(pairs.row[speaks].astype(np.int64)),
        torch.from_numpy(pairs.col[speaks].astype(np.int64)),
        torch.from_numpy(np.log(pairs.data[speaks]).astype(np.float32)),
    )


def _refuse_cycles(children: csr_array) -> None:
    """Labels that reach each other form one strong component; a loop shows on the diagonal."""
    count, component = connected_components(children, connection="strong")
    looped = children.diagonal() > 0
    if count == children.shape[0] and not looped.any():
        return
    # Any label of the circle will do: the message names the first.
    crowded = np.bincount(component)[component] > 1
    label = int(np.flatnonzero(crowded | looped)[0])
    raise DataError(
        f"label number {label} is above itself in the label hierarchy; mend the parents of the "
        "label file, or set model.narrower_share to 0"
    )


class NarrowerEvidence(nn.Module):
    """Adds the evidence of narrower labels to logits over all labels.

    Buffers, saved with the model: `broad` (W), `place` and `narrow` (P) int32, `log_weights` (P)
    float32, as in `NarrowerPairs`.

    Args:
        broad_labels, pairs: W and P, so that a checkpoint finds buffers of its own size.
    """

    broad: Tensor
    place: Tensor
    narrow: Tensor
    log_weights: Tensor

    def __init__(self, broad_labels: int, pairs: int) -> None:
        super().__init__()
        # int32 halves what is saved; indexing widens it.
        self.register_buffer("broad", torch.zeros(broad_labels, dtype=torch.int32))
        self.register_buffer("place", torch.zeros(pairs, dtype=torch.int32))
        self.register_buffer("narrow", torch.zeros(pairs, dtype=torch.int32))
        self.register_buffer("log_weights", torch.zeros(pairs))

    @torch.no_grad()
    def fill(self, pairs: NarrowerPairs) -> None:
        """Store the pairs.

        Raises:
            ArtifactError: their number is not the one this module was made for.
        """
        found, wanted = (len(pairs.broad), len(pairs.place)), (len(self.broad), len(self.place))
        if found != wanted:
            raise ArtifactError(
                f"label hierarchy: found {found} broad labels and pairs, the model was made for "
                f"{wanted}; run `plant-dist train` again"
            )
        self.broad.copy_(pairs.broad)
        self.place.copy_(pairs.place)
        self.narrow.copy_(pairs.narrow)
        self.log_weights.copy_(pairs.log_weights)

    def forward(self, logits_BL: Tensor) -> Tensor:
        """Return logits (B, L) in which broad labels hold the evidence of those below."""
        if not len(self.broad):
            return logits_BL
        broad_W, place_P = self.broad.long(), self.place.long()
        terms_BP = logits_BL[:, self.narrow.long()] + self.log_weights
        empty_BW = terms_BP.new_full((len(terms_BP), len(broad_W)), -torch.inf)
        # The largest term is taken out of each sum, so that none overflows or vanishes.
        highest_BW = empty_BW.scatter_reduce(
            1, place_P.expand(len(terms_BP), -1), terms_BP.detach(), "amax"
        )
        scaled_BP = torch.exp(terms_BP - highest_BW[:, place_P])
        # The largest term is e^0, so no sum is below 1 and its logarithm is finite.
        sums_BW = torch.zeros_like(highest_BW).index_add(1, place_P, scaled_BP)
        return logits_BL.index_copy(1, broad_W, highest_BW + sums_BW.log())
