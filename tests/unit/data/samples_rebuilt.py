"""Corpora that any machine rebuilds: Debian's package index, WordNet."""

from __future__ import annotations

from damage import BINARY, Sample, cut, files, latin, swap

PACKAGES = """Package: alpha
Source: greek (1.0)
Description: first letter
 It is the first é of them all.
Tag: role::program, use::learning
Depends: libc6 (>= 2), beta | gamma

Package: beta
Description: second letter
 It comes after alpha.
Tag: role::program
"""
# Offsets, pointers and glosses as wndb(5) has them.
NOUNS = """  1 licence é
00000001 03 n 01 entity 0 000 | that which is
00000002 03 n 01 thing 0 001 @ 00000001 n 0000 | a separate entity
00000003 03 n 02 tree 0 plant 0 001 @ 00000002 n 0000 | a tall plant
"""


SAMPLES = {
    "debian": Sample(
        files(Packages=PACKAGES),
        {"reader": "debian", "path": "{}/Packages"},
        {
            "no field": ("Packages", swap(b"Package: beta\n", b"")),
            "encoding": ("Packages", latin),
            "no colon": ("Packages", swap(b"Source: ", b"Source ")),
            "binary": ("Packages", BINARY),
            "no description": ("Packages", swap(b"Description: second", b"Descr: second")),
        },
    ),
    "wordnet": Sample(
        files(data__noun=NOUNS),
        {"reader": "wordnet", "path": "{}"},
        {
            "truncated": ("data.noun", cut(0.8)),
            "encoding": ("data.noun", latin),
            "wrong count": ("data.noun", swap(b"03 n 02 tree", b"03 n 0f tree")),
            "no gloss": ("data.noun", swap(b" | that", b" that")),
            "binary": ("data.noun", BINARY),
            "parent gone": ("data.noun", swap(b"@ 00000001", b"@ 00000009")),
        },
    ),
}
