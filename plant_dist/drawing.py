"""How pictures look, whoever draws them: colours, line styles, and a figure that becomes a file.

Colours are those of Okabe and Ito, told apart by colour-blind readers, and line styles differ as
well. Knows nothing of what is drawn. Matplotlib is imported when something is drawn, and never
opens a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
LINES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1)), (0, (8, 2)))
_STYLE: Any = {
    "figure.figsize": (6.4, 4.2),
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


# Of a logarithmic axis' length: a name nearer than this to the last would run into it.
_ROOM_OF_A_NAME = 0.06


def look(order: int) -> dict[str, Any]:
    """Return the colour and the line style of the curve that is drawn `order`-th, from 0.

    They repeat beyond six curves, rather than fail.
    """
    return {"color": COLOURS[order % len(COLOURS)], "linestyle": LINES[order % len(LINES)]}


@contextmanager
def drawn(path: Path) -> Iterator[Any]:
    """Offer axes to draw on; at the end of the block the figure is the file `path`."""
    with panels(path, 1) as [axes]:
        yield axes


@contextmanager
def panels(path: Path, count: int) -> Iterator[list[Any]]:
    """Offer `count` axes side by side; at the end of the block the figure is the file `path`.

    Curves that the axes share have one legend, above them, where it hides none.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        width, height = matplotlib.rcParams["figure.figsize"]
        # Not pyplot, which keeps every figure alive and looks for a window system.
        figure = Figure(figsize=(width * (1 if count == 1 else 0.75 * count), height))
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        yield axes
        if count > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=max(len(labels), 1))
        figure.savefig(path)


def name_sizes(axes: Any, sizes: Sequence[int]) -> None:
    """Make x logarithmic and name sizes on it, not the powers of ten; crowded ones are not named.

    Args: sizes: ascending, above 0. The last is always named.
    """
    first, last = sizes[0], sizes[-1]
    apart = (last / first) ** _ROOM_OF_A_NAME
    named = [size for size in sizes[:-1] if last / size > apart] + [last]
    axes.set_xscale("log")
    axes.set_xticks(named, [f"{size:,}" for size in named])
    axes.minorticks_off()
