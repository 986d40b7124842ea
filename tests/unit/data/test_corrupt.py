"""Every reader on broken files: documents or one line, never a traceback, never a silent loss.

A sample of each format (`samples_*.py`) is small, valid and independent of our writers. Its
`broken` names one kind of damage each that must be refused; the seeded mutator below finds the
kinds that nobody has named.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import samples_annif
import samples_clinical
import samples_extreme
import samples_rebuilt
import samples_tables
from damage import Sample, latin

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus, readers
from plant_dist.data.gather import gather
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import PlantError

FAMILIES = (samples_tables, samples_extreme, samples_annif, samples_clinical, samples_rebuilt)
SAMPLES = {name: sample for family in FAMILIES for name, sample in family.SAMPLES.items()}


def settings_of(sample: Sample, folder: Path) -> DataConfig:
    values = {
        key: value.format(folder) if isinstance(value, str) else value
        for key, value in sample.settings.items()
    }
    # Texts that lose all their words are no damage of a format.
    return DataConfig(**values, empty_text="keep")


def outcome(sample: Sample, folder: Path) -> tuple[str | None, int]:
    """What is said of a folder, and how many documents it gives; other errors pass through."""
    try:
        corpus = open_corpus(settings_of(sample, folder))
        LabelSpace.create(corpus.labels())
        gathered = gather(corpus, folder / "gathered.arrow", keep_empty=True)
        corpus.fingerprint()
        corpus.describe()
    except PlantError as error:
        return str(error), 0
    finally:
        (folder / "gathered.arrow").unlink(missing_ok=True)
    return None, len(gathered.splits)


def assert_one_line(message: str, folder: Path) -> None:
    assert "\n" not in message
    # Whoever reads it can find the file, or the setting that names it.
    assert str(folder) in message or "data.reader_options" in message, message
    assert len(message) < 600


def test_every_reader_has_a_sample() -> None:
    tried = {sample.settings.get("reader", "generic") for sample in SAMPLES.values()}
    # This one reads a Python package, and no file of the user's.
    assert tried == set(readers()) - {"icd10cm"}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_read(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    sample.write(tmp_path)
    message, documents = outcome(sample, tmp_path)
    assert message is None
    assert documents == (sample.units(tmp_path) if sample.units else documents) > 0


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, sample in SAMPLES.items() for kind in sample.broken]
)
def test_damage_is_refused_in_one_line(name: str, kind: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    sample.write(tmp_path)
    file, edit = sample.broken[kind]
    path = tmp_path / file
    if edit is None:
        path.unlink()
    else:
        raw = path.read_bytes()
        path.write_bytes(edit(raw))
        assert path.read_bytes() != raw
    message, _ = outcome(sample, tmp_path)
    assert message is not None
    assert_one_line(message, tmp_path)


NUMBERS = (b"99999999999999999999", b"-1", b"1e5", "٣".encode(), b"NaN", b"", b"0x1", b"1_0")


def mangle(raw: bytes, chance: random.Random) -> bytes:
    """One or two of the things that happen to files."""
    place = chance.randrange(len(raw) + 1)
    size = chance.randrange(1, 9)
    numbers = list(re.finditer(rb"\d+", raw))
    rows = raw.splitlines(keepends=True)
    kinds: list[Callable[[], bytes]] = [
        lambda: raw[:place],
        lambda: raw[:place] + raw[place + size :],
        lambda: raw[:place] + chance.randbytes(size) + raw[place:],
        lambda: raw[:place] + b"\x00\xff\xfe" + raw[place:],
        lambda: (
            raw[:place] + chance.choice([b"\n", b"\r", b"\t", b",", b'"', b" ", b"{"]) + raw[place:]
        ),
        lambda: latin(raw),
        lambda: raw.decode(errors="replace").encode("utf-16"),
        lambda: b"",
    ]
    if rows:
        at = chance.randrange(len(rows))
        kinds += [
            lambda: b"".join(rows[:at] + rows[at + 1 :]),
            lambda: b"".join(rows[: at + 1] + rows[at:]),
            lambda: b"".join(chance.sample(rows, len(rows))),
            lambda: b"".join([*rows[:at], rows[at].replace(b"\t", b"", 1), *rows[at + 1 :]]),
        ]
    if numbers:
        found = chance.choice(numbers)
        kinds += [lambda: raw[: found.start()] + chance.choice(NUMBERS) + raw[found.end() :]] * 3
    return chance.choice(kinds)()


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_happens_to_a_file_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    sample, chance = SAMPLES[name], random.Random(name)
    refused = 0
    sample.write(tmp_path)
    whole = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for _ in range(60):
        path = chance.choice(list(whole))
        raw = whole[path]
        for _ in range(chance.choice((1, 1, 2))):
            raw = mangle(raw, chance)
        path.write_bytes(raw)
        try:
            message, documents = outcome(sample, tmp_path)
            if message is not None:
                assert_one_line(message, tmp_path)
                refused += 1
            elif sample.units is not None:
                assert documents == sample.units(tmp_path)
        except BaseException as error:
            error.add_note(f"{path.relative_to(tmp_path)}: {raw[:2000]!r}")
            raise
        finally:
            path.write_bytes(whole[path])
    # A mutator that breaks nothing proves nothing.
    assert refused >= 5
