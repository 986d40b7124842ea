"""Debian's control files (deb822): paragraphs of `Field: value` lines, as a stream.

The format of package indices, of `apt-cache` output and of the vocabulary of debtags. Must not
know what any field means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plant_dist.data.files.tables import open_text
from plant_dist.errors import DataError


class Stanza(NamedTuple):
    """One paragraph: `file:line` of its first line, and its fields as written.

    A field of several lines keeps its line ends, without the space that begins each.
    """

    where: str
    fields: dict[str, str]


def read_stanzas(path: Path, encoding: str = "utf-8") -> Iterator[Stanza]:
    """Stream the paragraphs of a control file, compressed or not.

    Raises:
        DataError: the file is missing or cannot be read, or a line is neither a field nor the
            continuation of one.
    """
    if not path.is_file():
        raise DataError(f"file {path} does not exist; check data.path and its like")
    start, name, fields = 1, "", dict[str, str]()
    with open_text(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                if fields:
                    yield Stanza(f"{path}:{start}", fields)
                start, name, fields = number + 1, "", {}
            elif line[0] in " \t" and name:
                fields[name] += "\n" + line[1:]
            else:
                name, colon, value = line.partition(":")
                if not colon or not name or " " in name:
                    raise DataError(
                        f"{path}:{number}: found {line[:60]!r}, expected `Field: value`; is this "
                        "an index of packages?"
                    )
                fields[name] = value.strip()
    if fields:
        yield Stanza(f"{path}:{start}", fields)


def flat_text(value: str) -> str:
    """Return a field of several lines as running text.

    A line of one full stop stands for an empty line; line ends and runs of white space become one
    space.
    """
    # Exactly so: a full stop further to the right is text that keeps its layout.
    lines = (line for line in value.split("\n") if line != ".")
    return " ".join(" ".join(lines).split())
