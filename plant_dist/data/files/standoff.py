"""Annotations that stand apart from their text: character positions, and whether they fit.

What brat's files and the tables of shared tasks have in common. Must not know any file layout.
"""

from __future__ import annotations

from plant_dist.errors import DataError
from plant_dist.logs import get_logger

_log = get_logger(__name__)


def parse_positions(value: str, where: str) -> list[tuple[int, int]]:
    """Read `start end`, or several of them with semicolons: characters, the end excluded.

    Raises:
        DataError: it is anything else.
    """
    try:
        pairs = [tuple(map(int, part.split())) for part in value.split(";")]
        return [(start, end) for start, end in pairs]
    except ValueError:
        raise DataError(
            f"{where}: positions {value!r} are not `start end`, with `;` between several"
        ) from None


class Fit:
    """Counts annotations whose quoted text is not what their positions cover.

    Released corpora hold a few such slips, which are kept as they are; many of them say that the
    positions belong to another text (another encoding, line end or language).
    """

    def __init__(self) -> None:
        self._checked = self._wrong = 0
        self._first = ""

    def check(self, text: str, fragments: list[tuple[int, int]], quoted: str, where: str) -> None:
        """Compare what fragments cover, joined in their order, with the annotation's own words.

        Raises:
            DataError: a fragment lies outside the text.
        """
        for start, end in fragments:
            if not 0 <= start <= end <= len(text):
                raise DataError(
                    f"{where}: annotation of characters {start} to {end}, but the text has "
                    f"{len(text)}; is it the text that was annotated?"
                )
        covered = " ".join(text[start:end] for start, end in fragments)
        self._checked += 1
        # An annotation is quoted on one line whatever line ends the text has.
        if covered.split() != quoted.split():
            self._wrong += 1
            self._first = self._first or f"{where} ({covered[:40]!r} is quoted as {quoted[:40]!r})"

    def report(self) -> None:
        """Log what did not fit.

        Raises:
            DataError: most annotations do not fit, so that the positions are of another text.
        """
        if 2 * self._wrong > self._checked:
            raise DataError(
                f"{self._wrong} of {self._checked} annotations do not fit their text, first "
                f"{self._first}; positions count characters of the released text: set "
                "data.encoding, and undo changes of line ends"
            )
        if self._wrong:
            _log.warning(
                "%d of %d annotations do not fit their text, first %s; kept as they are",
                self._wrong, self._checked, self._first,
            )  # fmt: skip
