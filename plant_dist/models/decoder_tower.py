"""What the decoder says of a document as a whole, as an inner product: a tower without weights.

Attention that was even over a document's tokens would make a logit linear in three vectors: what a
named branch compares, the mean state, the bag. Labels that score high by it are those that the
decoder scores high, so nothing has to be learned beside the decoder, and an index of it holds
frequent labels by their biases, and labels never seen by their names.

Shapes: B documents, S segments, T tokens, D encoder width, R width of the bag, n labels, N
branches, X width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from plant_dist.models.attention import wide
from plant_dist.models.branches import LabelBlock
from plant_dist.models.decoder import LabelDecoder


class DecoderTower:
    """Vectors of documents and labels whose inner product is the logit of even attention.

    Of a label that has nothing but its name it is the decoder's own logit, where the whole of a
    document is what names are compared with.

    Args:
        decoder: what scores. width: D.
    """

    def __init__(self, decoder: LabelDecoder, width: int) -> None:
        self._decoder = decoder
        branches = decoder.config.branches
        self._boosted = [one for one, _ in enumerate(branches) if branches[one] in decoder.kept
                         and branches[one] != "named"]  # fmt: skip
        self.width = 1
        self.width += width * (decoder.names is not None) + width * bool(self._boosted)
        self.width += decoder.config.bag_width if decoder.bag is not None else 0

    @property
    def needs_hidden(self) -> bool:
        """Whether document vectors need the encoder's states."""
        return self._decoder.names is not None or bool(self._boosted)

    @torch.no_grad()
    def document_vectors(self, hidden: Tensor | None, input_ids: Tensor, keep: Tensor) -> Tensor:
        """Return (B, X) from (B, S, T, D), (B, S, T), (B, S, T)."""
        ids_BT, keep_BT, parts = input_ids.flatten(1), keep.flatten(1), []
        if self.needs_hidden:
            assert hidden is not None  # `needs_hidden` says so
            kept_BTD = wide(hidden).flatten(1, 2) * keep_BT[..., None]
            count_B1 = keep_BT.sum(1, keepdim=True)
            sums_BD = kept_BTD.sum(1)
            if self._decoder.names is not None:
                # As a named branch that compares whole documents.
                centred_BD = sums_BD - count_B1 * self._decoder.names.center
                parts.append(normalize(centred_BD, dim=-1))
            if self._boosted:
                parts.append(sums_BD / count_B1.clamp_min(1))
        if self._decoder.bag is not None:
            parts.append(self._decoder.bag(ids_BT, keep_BT))
        one_B1 = torch.ones(len(ids_BT), 1, device=ids_BT.device)
        return torch.cat([*(one.float() for one in parts), one_B1], dim=1)

    @torch.no_grad()
    def label_vectors(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return (n, X) of label rows, each field (n, width)."""
        names, branches = self._decoder.names, self._decoder.config.branches
        count = len(rows["bias"])
        block = LabelBlock(0, count, None, {name: one[None] for name, one in rows.items()})
        gates_nN = self._decoder.gates(block).reshape(-1, len(branches)).expand(count, -1)

        def gate(branch: str) -> Tensor:
            return gates_nN[:, branches.index(branch), None]

        parts: list[Tensor] = []
        constant_n1 = rows["bias"]
        if names is not None:
            worth_n1 = names.unit * names.beside * gate("named")
            parts.append(rows["name"] * worth_n1)
            constant_n1 = constant_n1 - worth_n1 * names.offset
        if self._boosted:
            parts.append(rows["boost"] * gates_nN[:, self._boosted].sum(1, keepdim=True))
        if self._decoder.bag is not None:
            parts.append(rows["bag"] * gate("bag"))
        vectors_nX = torch.cat([*(wide(one) for one in parts), constant_n1], dim=1)
        if names is None:
            return vectors_nX
        alone_nX = torch.zeros_like(vectors_nX)
        width = rows["name"].shape[1]
        alone_nX[:, :width] = rows["name"] * names.unit * names.alone[0]
        level = names.unit * (names.alone[1] - names.alone[0] * names.offset[0])
        alone_nX[:, -1:] = rows["prior"] + level
        return torch.where(rows["alone"] > 0, alone_nX, vectors_nX)
