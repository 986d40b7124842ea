"""The named branch: how like a label's name the most similar stretch of a document is.

Words that stand side by side in a document are compared with what the label is called, by the
encoder that reads both. A label needs no training document for that, so this branch is what speaks
for labels never seen. Knows nothing of how names become vectors, of segments or of other branches.

Shapes: B documents, S segments, T tokens, W windows, K labels considered, D encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from plant_dist.models.attention import DROPPED, wide

_LOW = 2**32 - 1


class NameMatcher(nn.Module):
    """Windows of a document as directions, and what a similarity counts.

    Beside other branches the evidence is scale · (cos − offset). A label that has nothing but its
    name is scored by prior + scale' · (cos − offset) + level. These numbers are learned and
    shared by all labels, so that what names of frequent labels teach holds for all others.

    Buffers: `center` (D), the mean hidden state of a text, which tells no text from another;
    `draws`, how often labels were drawn to be scored alone.

    Args:
        width: D. window: tokens of a stretch, at least 1; None takes a segment as one.
        scale, offset: where they start; the level starts at 0.
    """

    center: Tensor
    draws: Tensor

    def __init__(self, width: int, window: int | None, scale: float, offset: float) -> None:
        super().__init__()
        self.window = window
        self.unit = scale
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.offset = nn.Parameter(torch.tensor([offset]))
        # In units of the scale: at the rate of label rows they could hardly move otherwise.
        self.beside = nn.Parameter(torch.ones(1))
        self.alone = nn.Parameter(torch.tensor([2.0, 0.0]))

    def directions(self, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Mean hidden state of the window around each token, less `center`, of length 1.

        A window holds kept tokens of the same segment only, so it is shorter at the ends.

        Args: hidden_BTD: one segment of each document. keep_BT: bool.
        Returns: (B, T, D) float32 or wider; 0 at tokens that are not kept. (B, 1, D) where a
            segment is one window.
        """
        keep_BT1 = keep_BT[..., None]
        centred_BTD = (wide(hidden_BTD) - self.center) * keep_BT1
        # Sums, not means: dividing by the count of tokens would not change a direction.
        if self.window is None:
            return normalize(centred_BTD.sum(1, keepdim=True), dim=-1)
        sums_BTD = windowed_sums(centred_BTD, self.window)
        return normalize(sums_BTD, dim=-1) * keep_BT1

    def excess(self, similarity: Tensor) -> Tensor:
        """Similarity (any shape) above the offset; 0 where there is none, at -inf."""
        return (similarity - self.offset).masked_fill(similarity == DROPPED, 0.0)

    def evidence(self, excess: Tensor) -> Tensor:
        """What it counts in the logit of a label that other branches speak for too."""
        return self.unit * self.beside * excess

    def evidence_alone(self, excess: Tensor) -> Tensor:
        """What it counts in the logit of a label that has nothing else, beside its prior."""
        return self.unit * (self.alone[0] * excess + self.alone[1])

    def drawn(self, label_ids: Tensor, share: float) -> Tensor:
        """Which labels this step scores by their names alone; int64 ids of any shape -> bool.

        A hash of the label and of the draw's number, so that ranks agree without talking, wherever
        rows live, and a run that is resumed draws what it would have drawn.
        """
        mixed = (label_ids * 2654435761 + self.draws * 2246822519) & _LOW
        # The last steps of MurmurHash3 (Appleby 2011): every bit of both numbers reaches all bits.
        mixed = ((mixed ^ (mixed >> 16)) * 2246822507) & _LOW
        mixed = ((mixed ^ (mixed >> 13)) * 3266489909) & _LOW
        return (mixed ^ (mixed >> 16)) < share * 2**32

    def marked(self, alone_GK1: Tensor, ids_GK: Tensor, share: float) -> Tensor:
        """Mark the labels that this step of training scores by their names alone.

        Args: alone_GK1: 1 for labels that have nothing else anyway. ids_GK: int64.
        Returns: (G, K, 1) of the same type.
        """
        drawn_GK = self.drawn(ids_GK.to(alone_GK1.device), share)
        return alone_GK1.maximum(drawn_GK[..., None].to(alone_GK1.dtype))

    def attention(self, chosen_BKW: Tensor, keep_BST: Tensor) -> Tensor:
        """Attention of the windows chosen, evenly over the kept tokens that each holds.

        Args:
            chosen_BKW: 1 at the window that a label chose, else 0; windows lie around the tokens of
                all segments, or are the segments.
            keep_BST: (B, S, T of one segment) bool.
        Returns: (B, K, S·T), summing to 1 for a label that chose a window.
        """
        documents, labels = chosen_BKW.shape[:2]
        if self.window is None:
            inside_BKT = (chosen_BKW[..., None] * keep_BST[:, None]).flatten(2)
            return normalize(inside_BKT, p=1.0, dim=-1)
        segments, tokens = keep_BST.shape[1:]
        middles = chosen_BKW.reshape(documents * labels * segments, tokens, 1)
        # Backwards, since the tokens of a window see its middle on their other side.
        covered = windowed_sums(middles.flip(1), self.window).flip(1)
        covered_BKT = covered.view(chosen_BKW.shape) * keep_BST.flatten(1)[:, None]
        return normalize(covered_BKT, p=1.0, dim=-1)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"width={len(self.center)}, window={self.window}"


def windowed_sums(numbers_BTX: Tensor, window: int) -> Tensor:
    """Sum over the window around each place: `window` places, the odd one to the right.

    Returns: (B, T, X); windows are cut at the ends.
    """
    tokens = numbers_BTX.shape[1]
    # Differences of running sums: the cost does not grow with the window.
    before_BTX = torch.cat([numbers_BTX.new_zeros(*numbers_BTX[:, :1].shape),
                            numbers_BTX.cumsum(1)], dim=1)  # fmt: skip
    place_T = torch.arange(tokens, device=numbers_BTX.device)
    first_T = (place_T - (window - 1) // 2).clamp_min(0)
    beyond_T = (place_T + window // 2 + 1).clamp_max(tokens)
    return before_BTX[:, beyond_T] - before_BTX[:, first_T]
