"""How pictures look, whoever draws them: colours, line styles, and a figure that becomes a file.

Colours are those of Okabe and Ito, told apart by colour-blind readers, and line styles differ as
well. Knows nothing of what is drawn. Matplotlib is imported when something is drawn, and never
opens a window.
"""

from __future__ import annotations

from collections.abc import Iterator
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


@contextmanager
def drawn(path: Path) -> Iterator[Any]:
    """Offer axes to draw on; at the end of the block the figure is the file `path`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        # Not pyplot, which keeps every figure alive and looks for a window system.
        figure = Figure()
        yield figure.add_subplot()
        figure.savefig(path)
