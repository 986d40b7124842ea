"""The list of documents: what was right, missed and rare in each, and filters over it.

Written while documents arrive, a row at a time, so that any number of them costs no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from plant_dist.evidence.filling import escaped, filled
from plant_dist.evidence.records import DocumentEvidence, LabelEvidence

_ROWS = "\0rows\0"  # no text can hold it: `escaped` takes NUL out


class IndexWriter:
    """Writes `index.html`.

    Args:
        stream: where to; `close` writes the end.
        title: heading of the page.
        summary: how labels were chosen, in words.
        rare: training documents up to which a label counts as rare.
    """

    def __init__(self, stream: IO[str], title: str, summary: str, rare: int) -> None:
        page = filled(
            "index.html",
            "index.js",
            {
                "title": escaped(title), "summary": escaped(summary), "rows": _ROWS,
                "rare": f"at most {rare} training documents",
            },
        )  # fmt: skip
        self._stream, self._rare = stream, rare
        head, self._tail = page.split(_ROWS)
        stream.write(head)

    def add(self, document: DocumentEvidence, link: str) -> None:
        """Add a document whose page is at `link`."""
        labels = document.labels
        rare = [one for one in labels if one.train_documents <= self._rare]
        missed = [one for one in labels if one.missed]
        missed_rare = sum(one.missed for one in rare)
        words = " ".join([document.id, *(f"{one.id} {one.name}" for one in labels)]).lower()
        right = [one for one in labels if one.predicted and one.gold is True]
        # Where nobody has said what is gold, what was predicted stands in neither column.
        wrong = [one for one in labels if one.predicted and one.gold is False]
        cells = (("Right", right), ("Not gold", wrong), ("Missed", missed), ("Rare", rare))
        self._stream.write(
            f'<tr data-missed="{len(missed)}" data-rare="{len(rare)}" '
            f'data-missed-rare="{missed_rare}" data-words="{escaped(words)}">'
            f'<td><a href="{escaped(link)}">{escaped(document.id)}</a> '
            f'<span class="faint">{_beginning(document)}</span></td>'
            + "".join(_cell(head, some) for head, some in cells)
            + "</tr>\n"
        )

    def close(self) -> None:
        """Write the end of the page."""
        self._stream.write(self._tail)


def _beginning(document: DocumentEvidence) -> str:
    labels = sum(one.predicted for one in document.labels)
    text = " ".join(document.text[:200].split())
    shown = text if len(text) <= 80 else text[:79] + "…"
    return f"{labels} predicted · {escaped(shown)}"


def _cell(head: str, labels: Sequence[LabelEvidence]) -> str:
    named = " ".join(
        f'<span title="{escaped(one.name)}">{escaped(one.id)}</span>' for one in labels
    )
    return f'<td data-head="{head}">{len(labels)} <span class="faint">{named}</span></td>'
