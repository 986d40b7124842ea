"""The pages as HTML: what stands where, nothing from outside, nothing that a text can inject."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.evidence.index import IndexWriter
from plant_dist.evidence.page import Cuts, PageFrame, document_page
from plant_dist.evidence.records import AttendedToken, DocumentEvidence, LabelEvidence

ROOT = Path(__file__).parents[3]
HOSTILE = "</script><script>alert('x')</script> & \"quoted\" <img src=http://x.test/y onerror=z>\0"
FRAME = PageFrame("labels above their threshold", rare=10, after="000002.html")


def label(id: str = "A", **changes: Any) -> LabelEvidence:
    values: dict[str, Any] = {
        "id": id, "name": f"name of {id}", "score": 0.75, "threshold": 0.5, "predicted": True,
        "gold": True, "train_documents": 3,
    }  # fmt: skip
    return LabelEvidence(**{**values, **changes})


class Parsed(HTMLParser):
    """Tags with their attributes, the text of the article, the content of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self.article: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag in self.code:
            self.code[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.code:
            self.code[self._open[-1]][-1] += data
        elif "article" in self._open:
            self.article.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(text: str, *labels: LabelEvidence, read_until: int | None = None) -> Parsed:
    until = len(text) if read_until is None else read_until
    return Parsed(document_page(DocumentEvidence("d/1", text, labels, until), FRAME))


def test_the_text_is_whole_and_cut_at_tokens_and_gold() -> None:
    text = "Acute appendicitis,\n no fever — café."
    attended = (AttendedToken(6, 18, 0.8), AttendedToken(0, 5, 0.2), AttendedToken(24, 29, 0.005))
    one = label(attention={"combined": attended}, gold_spans=((6, 18),))
    page = page_of(text, one, label("B", gold=False))
    assert "".join(page.article) == text
    assert page.article == ["Acute", " ", "appendicitis", ",\n no ", "fever", " — café."]
    [found, bare] = json.loads(page.code["script"][0])["labels"]
    # Pieces, depth (share of the largest weight in fifths), weight; rising, below 1 % left out.
    assert found["attention"]["combined"]["tokens"] == [[0, 1, 2, 0.2], [2, 3, 5, 0.8]]
    assert found["attention"]["combined"]["words"] == [[2, 3, 0.8], [0, 1, 0.2]]
    assert found["gold"] == [[2, 3]]
    assert bare["attention"] == {}
    gold = [one for one in page.of("span") if (one.get("class") or "") == "gold" and "id" in one]
    assert [one["id"] for one in gold] == ["p2"]
    assert gold[0]["title"] == "gold evidence of A"


@given(st.lists(st.floats(1e-6, 9.0), min_size=1, max_size=6))
def test_the_heaviest_word_is_darkest_and_every_depth_has_a_colour(
    weights: list[float],
) -> None:
    words = [AttendedToken(2 * n, 2 * n + 1, weight) for n, weight in enumerate(weights)]
    page = page_of("a " * len(words), label(attention={"combined": tuple(words)}))
    data = json.loads(page.code["script"][0])
    depths = [depth for *_, depth, _ in data["labels"][0]["attention"]["combined"]["tokens"]]
    assert max(depths) == len(data["level"]) - 1
    assert min(depths) >= 1


@given(st.text(max_size=60), st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_span_are_its_characters(text: str, data: st.DataObject) -> None:
    places = st.integers(0, len(text))
    spans = [sorted(pair) for pair in data.draw(st.lists(st.tuples(places, places), max_size=6))]
    tokens = tuple(AttendedToken(start, end, 1.0) for start, end in spans)
    document = DocumentEvidence("1", text, [label(attention={"combined": tokens})], len(text))
    cuts = Cuts.of(document)
    for start, end in spans:
        first, last = cuts.pieces(start, end)
        pieces = [text[a:b] for a, b in zip(cuts.places, cuts.places[1:], strict=False)]
        assert "".join(pieces[first:last]) == text[start:end]


def test_nothing_is_fetched_and_only_our_own_code_may_run() -> None:
    for html in (document_page(DocumentEvidence("1", "a", [label()], 1), FRAME), index_of()):
        page = Parsed(html)
        [policy] = [
            one["content"] or "" for one in page.of("meta")
            if one.get("http-equiv") == "Content-Security-Policy"
        ]  # fmt: skip
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        for kind, code in (("script", page.code["script"][-1]), ("style", page.code["style"][0])):
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        fetching = [a for _, a in page.tags if {"src", "srcset", "style", "data"} & set(a)]
        assert fetching == []
        assert not page.of("link")
        assert not re.search(r"https?:|url\(|@import|fetch\(", html)
        assert all(not str(one.get("href")).startswith("/") for one in page.of("a"))


def test_hostile_texts_and_names_stay_text() -> None:
    hostile = label(HOSTILE, name=HOSTILE, attention={"combined": (AttendedToken(0, 9, 1.0),)},
                    gold_spans=((3, 20),))  # fmt: skip
    document = DocumentEvidence(HOSTILE, HOSTILE, [hostile], len(HOSTILE))
    page = Parsed(document_page(document, FRAME))
    assert len(page.code["script"]) == 2
    assert not page.of("img")
    assert "".join(page.article) == HOSTILE.replace("\0", "\ufffd")
    assert json.loads(page.code["script"][0])["labels"][0]["id"] == HOSTILE
    index = Parsed(index_of(document))
    assert len(index.code["script"]) == 1
    assert not index.of("img")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "✓ right · score 0.750, threshold 0.500"),
        ({"gold": False, "threshold": None}, "✗ not gold · score 0.750"),
        ({"predicted": False}, "○ missed · score 0.750, threshold 0.500"),
        ({"gold": None}, "→ predicted · score 0.750"),
        ({"predicted": False, "score": None}, "○ missed · unknown to the model"),
    ],
)
def test_a_label_says_how_it_stands(changes: dict[str, Any], words: str) -> None:
    html = document_page(DocumentEvidence("1", "a", [label(**changes)], 1), FRAME)
    assert words in html
    assert "rare: 3 in training" in html


def test_what_was_not_read_is_marked() -> None:
    page = page_of("read. not read", label(), read_until=5)
    [unread] = [one for one in page.of("span") if one.get("class") == "unread"]
    assert unread["id"] == "p1"
    html = document_page(DocumentEvidence("1", "read. not read", [], 5), FRAME)
    assert "has not read it" in html
    assert "has not read it" not in document_page(DocumentEvidence("1", "read.\n", [], 5), FRAME)


def test_a_document_without_labels_still_has_a_page() -> None:
    assert "".join(page_of("nothing found").article) == "nothing found"


def index_of(*documents: DocumentEvidence) -> str:
    stream = io.StringIO()
    writer = IndexWriter(stream, "Evidence", "Chosen: all", rare=5)
    for number, document in enumerate(documents):
        writer.add(document, f"documents/{number}.html")
    writer.close()
    return stream.getvalue()


def test_the_index_counts_what_was_missed_and_what_is_rare() -> None:
    labels = [
        label("A"),
        label("B", gold=False, train_documents=6),
        label("C", predicted=False, train_documents=5),
        label("D", predicted=False, train_documents=70),
    ]
    page = Parsed(index_of(DocumentEvidence("Doc", "some text", labels, 9)))
    [row] = [one for one in page.of("tr") if "data-missed" in one]
    assert (row["data-missed"], row["data-rare"], row["data-missed-rare"]) == ("2", "2", "1")
    assert row["data-words"] == "doc a name of a b name of b c name of c d name of d"
    assert page.of("a")[0]["href"] == "documents/0.html"


def test_spans_as_json_are_characters_of_the_text() -> None:
    text = "née fever"
    one = label(attention={"static": (AttendedToken(4, 9, 0.5),)}, gold_spans=((0, 3),))
    [found] = DocumentEvidence("1", text, [one], 9).as_json()["labels"]
    assert found["attention"]["static"] == [{"start": 4, "end": 9, "weight": 0.5, "text": "fever"}]
    assert found["gold_evidence"] == [{"start": 0, "end": 3, "text": "née"}]


def test_the_templates_travel_with_the_package() -> None:
    [line] = re.findall(r"^plant_dist = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    package, named = ROOT / "plant_dist", json.loads(line)
    shipped = {path for pattern in named for path in package.glob(pattern)}
    ours = {
        one.name for one in resources.files("plant_dist.evidence").joinpath("templates").iterdir()
    }
    assert ours == {path.name for path in shipped if path.parent.name == "templates"}
    assert len(ours) >= 5
