"""The rows of label parameters: one table a field, addressed by block or by label id.

All that a model has per label (query, ranker factor, boost, bias, gate; its name) is a field here.
This table's gradients are dense, for training on all labels at once; `replicated.py` and
`sharded.py` touch only the rows of a shortlist, behind the same `count`, `widths`, `own`, `fields`
and `fetch`.
Knows nothing of attention, documents or the names of labels.

Shapes: B documents, K labels considered, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from plant_dist.errors import ConfigError
from plant_dist.labels.fetched import FetchedRows, check_ids

# Planted and then left alone: what a label is called and whether it was seen is not learnt.
FROZEN_FIELDS = ("name", "prior", "alone")


class LabelTable(nn.Module):
    """Rows of label parameters, replicated on every rank.

    Fields keep the order in which they were given; each is an (L, width) float parameter named
    `fields.NAME` in the state dict. A field starts at 0 where its width is 1 or its name is in
    `zero`, else as N(0, 1/√width), which gives a row the length 1.

    Args:
        count: labels L.
        widths: numbers per label of each field.
        zero: fields that start at 0 whatever their width.

    Raises:
        ConfigError: no label, or a field without width.
    """

    def __init__(self, count: int, widths: Mapping[str, int], zero: tuple[str, ...] = ()) -> None:
        super().__init__()
        if count < 1:
            raise ConfigError(f"label table has {count} labels; it needs at least one")
        self.count = count
        self.own = range(count)
        self.widths = dict(widths)
        # One parameter a field, not one wide table: fields may learn at rates of their own.
        self.fields = nn.ParameterDict()
        for name, width in self.widths.items():
            if width < 1:
                raise ConfigError(f"label field {name} has width {width}; it must be at least 1")
            # Empty until `reset`: drawing L × width twice would double the start of a large model.
            self.fields[name] = nn.Parameter(torch.empty(count, width))
        self._zero = fields_from_zero(self.widths, zero)
        self.reset()

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw every field anew; the same generator state gives the same rows."""
        for name, rows in self.fields.items():
            if name in self._zero:
                rows.zero_()
            else:
                rows.normal_(0.0, self.widths[name] ** -0.5, generator=generator)

    @property
    def counts(self) -> list[int]:
        """Labels of each owner: all are here."""
        return [self.count]

    def fetch(self, label_ids_BK: Tensor | None = None) -> FetchedRows:
        """Rows for one batch, as `FetchedRows`.

        Args: label_ids_BK: (B, K) int64, repeats allowed; None fetches all labels.

        Raises:
            DataError: a label id is out of range.
        """
        if label_ids_BK is not None:
            check_ids(label_ids_BK, self.count)
        return FetchedRows(dict(self.fields.items()), label_ids_BK, label_ids_BK)

    def rows(self, label_ids_BK: Tensor) -> dict[str, Tensor]:
        """Rows of the given labels.

        Args: label_ids_BK: (B, K) int64 in [0, L), repeats allowed.
        Returns: each field (B, K, width).
        """
        return {name: embedding(label_ids_BK, rows) for name, rows in self.fields.items()}

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"count={self.count}, widths={self.widths}"


def fields_from_zero(widths: Mapping[str, int], zero: tuple[str, ...]) -> frozenset[str]:
    """Return the fields that start at 0: the named ones, and those of one number a label."""
    return frozenset(zero) | {name for name, width in widths.items() if width == 1}
