"""WordNet's nouns: a hierarchy made up by us, and the shared corpus where a database is here."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.corpora.wordnet import DEBIAN_FOLDER
from plant_dist.data.splits import split_by_hash
from plant_dist.errors import ConfigError, DataError, PlantError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "wordnet_hypernyms"
HEAD = "  1 This is where the licence stands.\n"


def line(offset: str, words: list[str], gloss: str, pointers: list[tuple[str, str]]) -> str:
    """A line as wndb(5) has it: counts of words in hexadecimal, of pointers in decimal."""
    named = "".join(f"{word} 0 " for word in words)
    pointed = "".join(f"{kind} {target} n 0000 " for kind, target in pointers)
    return f"{offset} 03 n {len(words):02x} {named}{len(pointers):03d} {pointed}| {gloss}  \n"


NOUNS = HEAD + "".join(
    [
        line("00000100", ["thing"], "what is", [("~", "00000200")]),
        line("00000200", ["instrument"], "a thing to play", [("@", "00000100")]),
        line("00000300", ["harp", "clarsach"], 'it is plucked; "her harp"', [("@", "00000200")]),
        line("00000400", ["Boru_harp"], "an old harp", [("@i", "00000300"), ("!", "00000100")]),
        line("00000500", ["gift"], "a thing to give", [("@", "00000100")]),
        line("00000600", ["harp_as_gift"], "both", [("@", "00000300"), ("@", "00000500")]),
    ]
)  # fmt: skip


def corpus(path: Path, **options: Any):
    return open_corpus(DataConfig(reader="wordnet", path=str(path), reader_options=options))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "data.noun").write_text(NOUNS, encoding="utf-8")
    return tmp_path


def test_a_gloss_carries_all_that_is_above(database: Path) -> None:
    found = {one.id: one for one in corpus(database).documents()}
    assert {name: one.labels for name, one in found.items()} == {
        "n00000200": ("n00000100",),
        "n00000300": ("n00000100", "n00000200"),
        "n00000400": ("n00000100", "n00000200", "n00000300"),
        "n00000500": ("n00000100",),
        "n00000600": ("n00000100", "n00000200", "n00000300", "n00000500"),
    }
    assert found["n00000300"].text == 'it is plucked; "her harp"'
    assert found["n00000400"].split == split_by_hash("n00000400", 80, 5)
    assert found["n00000200"].where.endswith("data.noun:3")


def test_labels_have_words_gloss_and_parents(database: Path) -> None:
    labels = {one.id: one for one in corpus(database).labels()}
    assert list(labels) == ["n00000100", "n00000200", "n00000300", "n00000500"]
    assert labels["n00000300"].text == 'harp, clarsach: it is plucked; "her harp"'
    assert labels["n00000300"].parents == ("n00000200",)


def test_labels_with_too_many_or_too_few_documents_are_left_out(database: Path) -> None:
    # Below are five of 100, three of 200, two of 300, one of 500.
    some = corpus(database, max_documents=3, min_documents=2)
    assert [one.id for one in some.labels()] == ["n00000200", "n00000300"]
    assert [one.id for one in some.documents()] == ["n00000300", "n00000400", "n00000600"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("00000100 03 n\n", ":2: found '00000100 03 n.*no line of a WordNet database"),
        ("00000100 03 n 01 thing 0 001 @ 1 n 0000 | x\n", ":2: hypernym 1 is not in the file"),
        ("00000100 03 n 01 thing 0 002 @ 1 n 0000 | x\n", "no line of a WordNet database"),
        ("00000100 03 n 01 thing 0 000\n", "no line of a WordNet database"),
    ],
)
def test_what_is_no_database_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.noun"
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(corpus(path).documents())


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no data\.noun in .*apt-get install"):
        corpus(tmp_path)
    (tmp_path / "data.noun").write_text(NOUNS, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"min_documents is 0; it must be 1 to"):
        corpus(tmp_path, min_documents=0)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_graph_has_the_closure_that_walking_it_finds(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also circles, which editors have left in."""
    count = data.draw(st.integers(1, 8))
    names = [f"{number:08d}" for number in range(count)]
    arrows = {name: data.draw(st.lists(st.sampled_from(names), max_size=3)) for name in names}
    path = tmp_path_factory.mktemp("wordnet") / "data.noun"
    path.write_text(
        "".join(line(one, ["w"], "g", [("@", up) for up in arrows[one]]) for one in names)
    )
    above = {one: set(arrows[one]) for one in names}
    for _ in names:
        above = {one: near.union(*(above[up] for up in near)) for one, near in above.items()}
    expected = {f"n{one}": {f"n{up}" for up in far - {one}} for one, far in above.items()}
    found = {one.id: set(one.labels) for one in corpus(path).documents()}
    assert found == {name: far for name, far in expected.items() if far}


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_database_is_read_or_refused_in_one_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(NOUNS.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("wordnet") / "data.noun"
    path.write_bytes(bytes(raw))
    message = None
    try:
        list(corpus(path).documents())
    except PlantError as error:
        message = str(error)
    assert message is None or (str(path) in message and "\n" not in message)


def test_debians_wordnet_gives_the_shape_of_the_shared_corpus() -> None:
    """Debian has version 3.0, the shared corpus 3.1: offsets differ, glosses mostly do not."""
    if not SHARED.is_dir() or not Path(DEBIAN_FOLDER).is_dir():
        pytest.skip(f"{SHARED} or {DEBIAN_FOLDER} (apt-get install wordnet-base) is not there")
    with gzip.open(SHARED / "docs.jsonl.gz", "rt", encoding="utf-8") as stream:
        known = [json.loads(line) for line in stream]
    one = open_corpus(DataConfig(reader="wordnet"))
    found = list(one.documents())
    assert abs(len(found) - len(known)) < 0.002 * len(known)
    assert abs(len(list(one.labels())) - 17_083) < 20
    sizes = Counter(document.split for document in found)
    for split, share in (("train", 0.8), ("validation", 0.05), ("test", 0.15)):
        assert sizes[split] / len(found) == pytest.approx(share, abs=0.005)
    glosses = {one["text"] for one in known}
    assert sum(document.text in glosses for document in found) > 0.98 * len(found)
