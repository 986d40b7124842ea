"""Rows of labels as a step sees them: fetched once, read by blocks of labels.

Knows neither where rows live nor what reads them.

Shapes: B documents, K labels considered, U rows fetched, n labels of a block, G = B or 1 (rows
shared by all documents).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding

from plant_dist.errors import DataError


@dataclass(frozen=True)
class FetchedRows:
    """Rows that one batch needs, each of them once.

    Attributes:
        rows: field → (U, width).
        places: (B, K) int64 into the rows, the labels of each document; None where all documents
            consider all of the rows, in order.
        label_ids: (B, K) int64, the ids of those labels; None as `places`.
        first: the label of row 0, where `places` is None.
    """

    rows: Mapping[str, Tensor]
    places: Tensor | None = None
    label_ids: Tensor | None = None
    first: int = 0

    @property
    def count(self) -> int:
        """Labels that a document considers: K or U."""
        if self.places is not None:
            return self.places.shape[1]
        return len(next(iter(self.rows.values())))

    def columns(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows of the columns start … stop-1, each field (G, n, width)."""
        if self.places is None:
            # G = 1: all documents read the same rows, which are not copied for each.
            return {name: rows[start:stop][None] for name, rows in self.rows.items()}
        places = self.places[:, start:stop]
        return {name: embedding(places, rows) for name, rows in self.rows.items()}


class LabelRows(Protocol):
    """What the decoder asks of a label table: replicated, or sharded over ranks.

    Attributes:
        count: labels L.
        own: the labels whose rows lie on this rank; `fields` holds those.
    """

    count: int
    own: range

    @property
    def counts(self) -> list[int]:
        """Labels of each owner, in the order of ranks; one owner where rows are replicated."""

    def fetch(self, label_ids_BK: Tensor | None = None) -> FetchedRows:
        """Rows for one batch: of the labels given, (B, K) int64, or of all.

        Without a gradient, "all" are those of `own`: who scores all labels asks every rank.

        Raises:
            DataError: a label id is out of range.
        """


def check_ids(label_ids: Tensor, count: int) -> None:
    """Check that label ids are rows of a table.

    Raises:
        DataError: one is not; names it.
    """
    if not label_ids.numel():
        return
    lowest, highest = torch.aminmax(label_ids)
    found = int(lowest) if int(lowest) < 0 else int(highest)
    if not 0 <= found < count:
        raise DataError(
            f"label id {found} is out of range: the label table has {count} labels, 0 to "
            f"{count - 1}; shortlists and gold labels must be of the model's own label space"
        )
