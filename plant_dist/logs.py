"""How the program speaks to a person: log lines and progress bars, on standard error.

Standard output belongs to results (`predict`, `config`). Nothing is configured at import; the
command line calls `configure` once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

T = TypeVar("T")
ROOT = "plant_dist"
QUIET_SECONDS = 30.0  # between refreshes of a progress bar that no terminal shows


def configure(rank: int = 0, verbose: bool = False) -> None:
    """Send the package's log lines to standard error; ranks above 0 speak there from WARNING up.

    Args:
        rank: global rank, shown in every line when it is not 0.
        verbose: also show DEBUG lines.
    """
    logger = logging.getLogger(ROOT)
    # A second call, as tests make, must not double every line.
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    where = f" [rank {rank}]" if rank else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s{where} %(message)s", "%H:%M:%S"))
    # On the handler, not the logger: a rank's own file (`also_to`) takes what the console does not.
    handler.setLevel(logging.WARNING if rank and not verbose else logging.DEBUG)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    # The root logger belongs to the program we may be part of; it would print the line again.
    logger.propagate = False
    if not verbose:
        # Read when the libraries are imported, which is later: their own bars and advice would
        # stand among our lines. What the user has set stays.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _RankFile(logging.FileHandler):
    """A log file that falls silent where it cannot be written: a full disk is told elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the line."""


def also_to(path: Path, rank: int, node: str) -> logging.Handler:
    """Append the package's log lines to a file as well, each with date, rank and node.

    Returns: the handler, for `no_longer_to`.
    """
    handler = _RankFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(f"%(asctime)s [rank {rank} {node}] %(message)s"))
    logging.getLogger(ROOT).addHandler(handler)
    return handler


def no_longer_to(handler: logging.Handler) -> None:
    """Close a file that `also_to` opened."""
    logging.getLogger(ROOT).removeHandler(handler)
    try:
        handler.close()
    except OSError:
        # What its buffer still held found no room either.
        return


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module; pass `__name__`."""
    return logging.getLogger(name)


def progress(
    items: Iterable[T], title: str, unit: str, total: int | None = None, shown: bool = True
) -> Iterator[T]:
    """Wrap an iterable in a progress bar with a rate; log lines are printed above it."""
    # Of what has no length the hint is 0, and a bar to 0 would say 0 %.
    known = total if total is not None else length_hint(items) or None
    with progress_bar(title, unit, known, shown) as bar:
        for item in items:
            yield item
            bar.update()


@contextmanager
def progress_bar(title: str, unit: str, total: int | None, shown: bool = True) -> Iterator[Any]:
    """A bar to be advanced by hand with `.update(n)`; `total` is None where nobody knows it."""
    # In a file, every refresh stays: a line now and then says enough.
    pause = 0.1 if sys.stderr.isatty() else QUIET_SECONDS
    # Its handler takes the place of ours and forgets its level: only where there is a bar.
    with logging_redirect_tqdm([logging.getLogger(ROOT)]) if shown else nullcontext():
        with tqdm(
            desc=title, unit=f" {unit}", total=total, disable=not shown, dynamic_ncols=True,
            mininterval=pause, maxinterval=max(pause, 10.0),
        ) as bar:  # fmt: skip
            yield bar
