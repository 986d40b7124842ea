"""Debian's package index: every rule of the recipe by hand, and the shared corpora themselves."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document
from plant_dist.data.splits import split_by_hash
from plant_dist.errors import ConfigError, DataError, PlantError

SHARED = Path(__file__).parents[4] / "shared" / "data"

INDEX = """\
Package: harp
Version: 1.0
Depends: libc6 (>= 2.34), libstring7, tuner:any | pitch-pipe, harp
Pre-Depends: dpkg (>= 1.15)
Recommends: sheet-music [amd64] <!nocheck>
Suggests: audience
Description: plucked string instrument
Description-md5: 1111
Tag: role::program, sound::TODO,
 interface::graphical

Package: harp-doc
Source: harp (0.9)
Description: harp manual
 How to tune it.
 .
 And  how to carry it.
   * indented
Tag: role::documentation

Package: libstring7
Source: string
Description: strings
Description-md5: 2222
Depends: libc6
Tag: role::TODO

Package: harp
Version: 0.9
Description: an older harp
 With a text of its own.
Tag: role::data
"""
TRANSLATION = """\
Package: harp
Description-md5: 1111
Description-en: plucked string instrument
 It has a
 column.
 .
 Angels prefer it.
"""
VOCABULARY = """\
Facet: role
Description: What a package is for

Tag: role::program
Description: Program
 Something
 to run.
"""


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "archive_main_Packages").write_text(INDEX, encoding="utf-8")
    (tmp_path / "archive_main_i18n_Translation-en").write_text(TRANSLATION, encoding="utf-8")
    (tmp_path / "vocabulary").write_text(VOCABULARY, encoding="utf-8")
    return tmp_path


def read(path: Path, **settings: Any) -> dict[str, Document]:
    options = {key: settings.pop(key) for key in ("labels", "translations") if key in settings}
    data = DataConfig(reader="debian", path=str(path), reader_options=options, **settings)
    return {one.id: one for one in open_corpus(data).documents()}


def test_descriptions_become_tags(lists: Path) -> None:
    found = read(lists)
    # Nobody has yet said what libstring7 is; the older harp comes second.
    assert list(found) == ["harp", "harp-doc"]
    harp, manual = found.values()
    assert harp.text == "plucked string instrument It has a column. Angels prefer it."
    assert harp.labels == ("interface::graphical", "role::program")
    assert harp.where.endswith("Packages:1")
    assert manual.text == "harp manual How to tune it. And how to carry it. * indented"
    assert (harp.group, manual.group) == ("harp", "harp")
    assert harp.split == manual.split == split_by_hash("harp", 75, 7)


def test_descriptions_become_dependencies(lists: Path) -> None:
    found = read(lists, labels="depends")
    # The first alternative, no version, no architecture, not itself; suggestions are no needs.
    assert found["harp"].labels == ("dpkg", "libc6", "libstring7", "sheet-music", "tuner")
    assert list(found) == ["harp", "libstring7"]


def test_labels_carry_what_is_known_of_them(lists: Path) -> None:
    data = DataConfig(reader="debian", path=str(lists), labels_path=str(lists / "vocabulary"))
    texts = {one.id: one.text for one in open_corpus(data).labels()}
    assert texts == {
        "interface::graphical": "interface graphical",
        "role::documentation": "role documentation",
        "role::program": "Program Something to run.",
    }
    data = DataConfig(reader="debian", path=str(lists), reader_options={"labels": "depends"})
    texts = {one.id: one.text for one in open_corpus(data).labels()}
    assert list(texts) == sorted(texts) == ["dpkg", "libc6", "libstring7", "sheet-music", "tuner"]
    assert (texts["libstring7"], texts["dpkg"]) == ("strings", "dpkg")


def test_a_stanza_without_tags_hides_no_later_one_that_has_them(tmp_path: Path) -> None:
    """Lists of security updates have no tags, and `apt-cache dumpavail` prints them first."""
    path = tmp_path / "dump.txt"
    bare = "Package: harp\nDescription: newer\n Text.\n\n"
    path.write_text(bare + INDEX, encoding="utf-8")
    assert read(path)["harp"].labels == ("interface::graphical", "role::program")


def test_short_descriptions_are_said(lists: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("plant_dist").propagate = True  # `configure` of another test stops it
    found = read(lists / "archive_main_Packages")
    assert found["harp"].text == "plucked string instrument"
    assert "1 packages have no long description" in caplog.text


def test_what_apt_cache_show_prints_needs_no_translation(tmp_path: Path) -> None:
    path = tmp_path / "shown.txt"
    path.write_text("Package: a\nDescription-en: b\n c\n d\nTag: e::f\n", encoding="utf-8")
    assert read(path)["a"].text == "b c d"


PACKERS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".lz4": lambda raw: pa.compress(raw, codec="lz4", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_index_reads_as_the_plain_one(lists: Path, suffix: str) -> None:
    packed = lists / f"Packages{suffix}"
    packed.write_bytes(PACKERS[suffix](INDEX.encode()))
    translation = str(lists / "archive_main_i18n_Translation-en")
    plain = read(lists / "archive_main_Packages", translations=translation)
    found = read(packed, translations=translation)
    strip = [(one.id, one.text, one.labels, one.split) for one in plain.values()]
    assert [(one.id, one.text, one.labels, one.split) for one in found.values()] == strip
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"Packages\.\w+ .*fetch it again"):
        read(packed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Package: a\nwhat is this\n", r":2: found 'what is this', expected `Field: value`"),
        (" continues nothing\n", r":1: found ' continues nothing'"),
        ("Version: 1\nTag: a::b\n", r":1: no field 'Package'; fields found: Version, Tag"),
        ("\n\nPackage: a\nTag: a::b\n", r":3: no field 'Description'"),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "Packages"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(path)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels is 'verbs'; it must be tags or depends"):
        read(tmp_path, labels="verbs")
    with pytest.raises(DataError, match=r"holds no list of packages; run `apt-get update"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "none")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_is_read_or_refused_in_one_line(lists: Path, data: st.DataObject) -> None:
    raw = bytearray(INDEX.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = lists / "Packages"
    path.write_bytes(bytes(raw))
    message = None
    try:
        read(path)
    except PlantError as error:
        message = str(error)
    assert message is None or (str(path) in message and "\n" not in message)


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
def test_a_split_by_hash_is_that_of_md5(name: str, train: int, validation: int) -> None:
    place = int.from_bytes(hashlib.md5(name.encode()).digest(), "big") % 100
    bounds = {"train": range(train), "validation": range(train, train + validation)}
    expected = next((split for split, inside in bounds.items() if place in inside), "test")
    assert split_by_hash(name, train, validation) == expected


@pytest.mark.parametrize(("corpus", "labels"), [("debtags", "tags"), ("debdepends", "depends")])
def test_this_machines_index_gives_the_shared_corpus(corpus: str, labels: str) -> None:
    """Documents that both know are equal, but for packages that changed since."""
    shared = SHARED / corpus / "docs.jsonl.gz"
    if not shared.is_file():
        pytest.skip(f"{shared} is not there")
    data = DataConfig(reader="debian", reader_options={"labels": labels})
    try:
        found = {one.id: one for one in islice(open_corpus(data).documents(), 3000)}
    except DataError as error:
        pytest.skip(f"no package lists here: {error}")
    with gzip.open(shared, "rt", encoding="utf-8") as stream:
        known = [json.loads(line) for line in islice(stream, 3000)]
    common = [one for one in known if one["id"] in found]
    if len(common) < 0.9 * len(known):
        pytest.skip("the package lists of this machine are of another release")
    same = [one for one in common if list(found[one["id"]].labels) == one["labels"]]
    assert len(same) > 0.98 * len(common)
    assert all(found[one["id"]].split == one["split"] for one in same)
    assert all(found[one["id"]].group == one["group"] for one in same)
    # This machine may lack the long descriptions; then the texts begin alike.
    assert all(one["text"].startswith(found[one["id"]].text[:20]) for one in same)


def test_apt_of_this_machine_prints_what_the_reader_reads(tmp_path: Path) -> None:
    try:
        shown = subprocess.run(["apt-cache", "show", "dpkg"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no apt-cache here, or it knows no package")
    path = tmp_path / "shown.txt"
    path.write_bytes(shown.stdout)
    assert read(path, labels="depends")["dpkg"].group == "dpkg"
