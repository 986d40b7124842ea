"""Tables whose rows are fetched, learn and are saved a few at a time: what both engines share.

A batch's distinct labels are fetched once. What the step computes from them ends at the fetched
copies, whose gradients are handed to the rows' own optimizer after the backward pass: neither a
gradient nor an optimizer state of the size of the table is ever made by a step, and gradients may
be accumulated or thrown away. Where the rows lie is the business of `replicated` and `sharded`.

Shapes: B documents, K labels considered, U distinct labels of a batch, L labels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plant_dist.errors import ConfigError, TrainingError
from plant_dist.labels.fetched import FetchedRows, check_ids
from plant_dist.labels.files import RowsSnapshot, SavedTable, load_rows
from plant_dist.labels.table import fields_from_zero
from plant_dist.labels.updates import RowOptimizer
from plant_dist.runtime.apart import KeptApart, Snapshot

DRAWN_ROWS = 65_536  # drawn at once; a multiple of 16, see `drawn_rows`


@dataclass
class Touched:
    """Rows of one forward pass.

    Attributes:
        ids_U: (U,) int64, rising. copies: field → (U, width), whose `grad` is awaited.
        source: what the engine needs to send gradients home; its own business.
    """

    ids_U: Tensor
    copies: dict[str, Tensor]
    source: Mapping[str, Tensor] = field(default_factory=dict)


class SparseRows(KeptApart):
    """Rows of label parameters, updated where they were touched.

    `fields` holds this rank's rows, each field (len(own), width), as parameters that never have a
    `grad`; `requires_grad` says whether a field learns.

    Args:
        count: labels L.
        widths: numbers per label of each field.
        optimizer: moves the rows.
        zero: fields that start at 0 whatever their width.

    Raises:
        ConfigError: no label, or a field without width.
    """

    own: range

    def __init__(
        self, count: int, widths: Mapping[str, int], optimizer: RowOptimizer,
        zero: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        if count < 1:
            raise ConfigError(f"label table has {count} labels; it needs at least one")
        for name, width in widths.items():
            if width < 1:
                raise ConfigError(f"label field {name} has width {width}; it must be at least 1")
        self.count, self.widths, self.optimizer = count, dict(widths), optimizer
        self.steps = 0
        self.fields = nn.ParameterDict()
        self._zero = fields_from_zero(self.widths, zero)
        self._touched: list[Touched] = []
        self._rates: dict[str, float] = {}

    # What engines bring.

    @abstractmethod
    def _look_up(self, ids_U: Tensor) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Return fresh copies of rows by field, and the `source` of `Touched`."""

    @abstractmethod
    def _send(self, touched: Touched, gradients: Mapping[str, Tensor]) -> None:
        """Let every owner move its rows by the mean over ranks of their gradients.

        All ranks call, with the same fields: those that learn.
        """

    @abstractmethod
    def state_of(self, name: str) -> dict[str, Tensor]:
        """Return the optimizer's state of a field on this rank, by name: (len(own), width)."""

    def _resume(self, filled: SavedTable) -> None:
        """Take in what `load` has read, where `state_of` gives no views."""

    @property
    def counts(self) -> list[int]:
        """Labels of each owner, in the order of ranks."""
        return [self.count]

    # What the decoder asks.

    def fetch(self, label_ids_BK: Tensor | None = None) -> FetchedRows:
        """Rows for one batch; see `LabelRows.fetch`. All ranks must call.

        Raises:
            DataError: a label id is out of range.
        """
        if label_ids_BK is None and not torch.is_grad_enabled():
            self.settle()
            return FetchedRows(dict(self.fields.items()), first=self.own.start)
        if label_ids_BK is None:
            every = torch.arange(self.count, device=self._device)
            return FetchedRows(self._copies(every))
        check_ids(label_ids_BK, self.count)
        ids_U, places_BK = torch.unique(label_ids_BK, return_inverse=True)
        return FetchedRows(self._copies(ids_U), places_BK, label_ids_BK)

    @property
    def _device(self) -> torch.device:
        rows: Tensor = next(iter(self.fields.values()))
        return rows.device

    def _learns(self) -> list[str]:
        return [name for name, rows in self.fields.items() if rows.requires_grad]

    def _copies(self, ids_U: Tensor) -> dict[str, Tensor]:
        recorded = torch.is_grad_enabled()
        found, source = self._look_up(ids_U)
        # The graph of the step ends here; `step` sends the gradients on.
        copies = {
            name: rows.detach().requires_grad_(recorded and self.fields[name].requires_grad)
            for name, rows in found.items()
        }
        if recorded:
            self._touched.append(Touched(ids_U, copies, source))
        return copies

    # What the loop asks.

    def begin(self, optimizer: Optimizer) -> None:
        """Take the rates of the coming step. Fields in no group do not move.

        Passes before it that no step followed, such as a probe's, count for nothing.
        """
        rates = {
            id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]
        }
        self._rates = {name: float(rates.get(id(p), 0.0)) for name, p in self.fields.items()}
        self._touched = []

    @torch.no_grad()
    def step(self) -> None:
        """Update the touched rows. All ranks must call."""
        touched, self._touched = self._touched, []
        learning = self._learns()
        if not touched or not learning:
            return
        whole, gradients = self._merged(touched, learning)
        self.steps += 1
        self._send(whole, gradients)

    def _merged(
        self, touched: Sequence[Touched], learning: Sequence[str]
    ) -> tuple[Touched, dict[str, Tensor]]:
        """Sum the gradients of several passes, so that accumulation updates a row once."""
        each = [{name: _gradient(one.copies[name]) for name in learning} for one in touched]
        if len(touched) == 1:
            return touched[0], each[0]
        ids_U, places = torch.unique(torch.cat([one.ids_U for one in touched]), return_inverse=True)
        sums = {
            name: _summed(places, torch.cat([one[name] for one in each]), len(ids_U))
            for name in learning
        }
        # Fetched anew: what each pass holds leads home its own ids only.
        with torch.enable_grad():
            copies, source = self._look_up(ids_U)
        return Touched(ids_U, copies, source), sums

    # Starting values and files.

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draw every field anew: the same rows as `LabelTable.reset`, whatever the ranks."""
        for name, rows in self.fields.items():
            rows.zero_()
            if name in self._zero:
                continue
            width = self.widths[name]
            for start, drawn in drawn_rows(self.count, width, generator):
                low, high = max(start, self.own.start), min(start + len(drawn), self.own.stop)
                if low < high:
                    place = slice(low - self.own.start, high - self.own.start)
                    rows[place] = drawn[low - start : high - start]

    def _saved(self, resume: bool) -> SavedTable:
        tensors = {name: {"rows": rows.detach()} for name, rows in self.fields.items()}
        # What does not learn has no state.
        for name in self._learns() if resume else ():
            tensors[name].update(self.state_of(name))
        return SavedTable(self.count, self.widths, self.optimizer.name, tensors, self.own)

    def snapshot(self, resume: bool = True) -> Snapshot | None:
        """Return this rank's rows, with their optimizer's state to `resume`; see `files`."""
        self.settle()
        return RowsSnapshot(self._saved(resume), self.steps)

    @torch.no_grad()
    def load(self, folder: Path, resume: bool = True) -> None:
        """Read this rank's rows, however many ranks saved them."""
        self._touched = []
        self.settle()
        filled = self._saved(resume)
        self.steps = load_rows(folder, filled, resume)
        if resume:
            self._resume(filled)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"count={self.count}, own={self.own}, widths={self.widths}"


def drawn_rows(
    count: int, width: int, generator: torch.Generator | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, rows) of N(0, 1/√width) draws, in pieces that are a whole table's.

    Torch fills 16 numbers at a time, so that pieces of multiples of 16 rows draw what one tensor
    would; and a tail under 16 numbers is drawn otherwise, hence with the piece before.
    """
    start = 0
    while start < count:
        stop = min(start + DRAWN_ROWS, count)
        if (count - stop) * width < 16:
            stop = count
        yield start, torch.empty(stop - start, width).normal_(0.0, width**-0.5, generator=generator)
        start = stop


def _gradient(copy: Tensor) -> Tensor:
    # None where the loss did not depend on a field; its owners must hear from every rank all same.
    gradient = torch.zeros_like(copy) if copy.grad is None else copy.grad
    if gradient.dtype != torch.float32:
        raise TrainingError(f"gradients of label rows are {gradient.dtype}; they must be float32")
    return gradient


def _summed(places: Tensor, values: Tensor, count: int) -> Tensor:
    return values.new_zeros(count, values.shape[1]).index_add_(0, places, values)
