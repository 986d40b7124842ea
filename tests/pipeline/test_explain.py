"""`explain`: the pages of a finished model, by their files and in a real browser."""

from __future__ import annotations

import gzip
import html
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, chromium
from tiny_corpus import UNSEEN, rows, with_evidence, write_jsonl

from plant_dist.cli import main
from plant_dist.data.batches import Collator
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.sampling import Share
from plant_dist.models.contributions import contributions
from plant_dist.stages.saved import SavedClassifier

pytestmark = pytest.mark.pipeline


TEST = [with_evidence(row) for row in rows() if row["split"] == "test"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of all splits, with gold evidence, gzipped."""
    path = tmp_path_factory.mktemp("explain") / "docs.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for row in rows():
            stream.write(json.dumps(with_evidence(row)) + "\n")
    return path


@pytest.fixture(scope="module")
def pages(finished: Path, source: Path) -> Path:
    """What `explain` writes for the test documents."""
    folder = source.parent / "pages"
    words = ["explain", "--model", str(finished / "run/classifier"), str(source), "--split", "test"]
    assert main([*words, "--threshold", "0.3", "--output", str(folder), "--debug"]) == 0
    return folder


def spans_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "spans.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_page_for_each_document_of_the_split(pages: Path) -> None:
    found = spans_of(pages)
    assert [one["id"] for one in found] == [row["id"] for row in TEST]
    assert sorted(path.name for path in (pages / "documents").iterdir()) == [
        f"{number:06d}.html" for number in range(1, len(TEST) + 1)
    ]
    index = (pages / "index.html").read_text(encoding="utf-8")
    for one, row in zip(found, TEST, strict=True):
        page = (pages / one["page"]).read_text(encoding="utf-8")
        article = page.split('<article id="text">')[1].split("</article>")[0]
        assert html.unescape(re.sub("<[^>]*>", "", article)) == row["text"]
        assert f'href="{one["page"]}"' in index
    first, last = ((pages / found[place]["page"]).read_text() for place in (0, -1))
    assert ("previous" in first, "next</a>" in first) == (False, True)
    assert ("previous" in last, "next</a>" in last) == (True, False)


def test_labels_are_those_of_predict_and_the_gold_that_it_missed(
    pages: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", TEST)
    model = str(finished / "run/classifier")
    capsys.readouterr()
    words = ["predict", "--model", model, str(texts), "--threshold", "0.3", "--tokens", "3"]
    assert main(words) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, record, row in zip(spans_of(pages), predicted, TEST, strict=True):
        chosen = [label for label in one["labels"] if label["predicted"]]
        expected = [(label["id"], label["name"]) for label in record["labels"]]
        assert [(label["id"], label["name"]) for label in chosen] == expected
        for ours, theirs in zip(chosen, record["labels"], strict=True):
            # Batches of other sizes round otherwise, so that the sixth digit may differ.
            assert ours["score"] == pytest.approx(theirs["score"], abs=1.5e-6)
            best = ours["attention"]["combined"][: len(theirs["tokens"])]
            assert [t["weight"] for t in best] == pytest.approx(
                [t["weight"] for t in theirs["tokens"]], abs=1e-5
            )
            assert ours["threshold"] == pytest.approx(0.3)
        missed = [label["id"] for label in one["labels"] if not label["predicted"]]
        assert sorted(missed) == sorted({*row["labels"]} - {label["id"] for label in chosen})
        assert [label["gold"] for label in one["labels"]] == [
            label["id"] in row["labels"] for label in one["labels"]
        ]
    assert UNSEEN in [
        label["id"] for label in spans_of(pages)[-1]["labels"] if not label["predicted"]
    ]


def test_branches_add_up_to_the_combined_attention(pages: Path, finished: Path) -> None:
    saved = SavedClassifier.load(finished / "run/classifier", torch.device("cpu"))
    decoder, ids = saved.model.decoder, saved.label_space.ids
    assert decoder.config.gates == "sum"
    never_seen = {ids[row] for row in decoder.labels.fields["alone"][:, 0].nonzero()[:, 0].tolist()}
    for document, row in zip(spans_of(pages), TEST, strict=True):
        for label in document["labels"]:
            assert [*label["attention"]] == [
                "learned", "planted", "static", "named", "combined", "contribution",
            ]  # fmt: skip
            total: dict[int, float] = {}
            # Labels that have nothing but their names rest on the named branch.
            every = ("learned", "planted", "static", "named")
            for branch in ("named",) if label["id"] in never_seen else every:
                for token in label["attention"][branch]:
                    assert row["text"][token["start"] : token["end"]] == token["text"]
                    total[token["start"]] = total.get(token["start"], 0.0) + token["weight"]
            for token in label["attention"]["combined"]:
                if len(label["attention"]["learned"]) < 50:  # else its tail is not shown
                    assert token["weight"] == pytest.approx(total[token["start"]], abs=1e-5)


def test_what_tokens_add_to_a_score_is_the_logit_less_the_bias(pages: Path, finished: Path) -> None:
    saved = SavedClassifier.load(finished / "run/classifier", torch.device("cpu"))
    fields, space = saved.model.decoder.labels.fields, saved.label_space
    names = saved.model.decoder.names
    document, row = spans_of(pages)[0], TEST[0]
    ids = saved.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    no_labels, share = csr_from_lists([[]]), Share(np.zeros(1, int), np.ones(1, np.float32), 1.0)
    batch = Collator(saved.segmentation)(csr_from_lists([ids]), no_labels, share)
    read = saved.model.encode(batch.input_ids, batch.attention_mask, batch.keep)
    for label in document["labels"]:
        number = space.index(label["id"])
        added = contributions(saved.model.decoder, *read, torch.tensor([[number]]))[0, 0]
        unlike = names.evidence(-names.offset).item()
        logit = added.sum().item() + fields["bias"][number, 0].item() + unlike
        assert 1 / (1 + math.exp(-logit)) == pytest.approx(label["score"], abs=2e-6)
        # Of these the page shows what raises the score, most first.
        expected = sorted(added[added > 0].tolist(), reverse=True)[:50]
        shown = [token["weight"] for token in label["attention"]["contribution"]]
        assert shown == pytest.approx(expected, abs=1e-5)


def test_gold_evidence_is_carried_and_attention_finds_it(pages: Path) -> None:
    hits = []
    for document, row in zip(spans_of(pages), TEST, strict=True):
        for label in document["labels"]:
            marked = [(e["start"], e["end"]) for e in label["gold_evidence"]]
            assert marked == sorted(
                (e["start"], e["end"]) for e in row["evidence"] if e["label"] == label["id"]
            )
            if label["gold"] and label["predicted"] and marked:
                best = label["attention"]["static"][0]
                hits.append((best["start"], best["end"]) in marked)
    assert sum(hits) / len(hits) > 0.9


def test_without_gold_the_page_says_so(finished: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(TEST[0]["text"] + "\n", encoding="utf-8")
    words = ["explain", "--model", str(finished / "run/classifier"), str(texts), "--top-k", "2"]
    assert main([*words, "--output", str(tmp_path / "pages"), "--words", "3"]) == 0
    [found] = spans_of(tmp_path / "pages")
    assert [(one["gold"], one["threshold"]) for one in found["labels"]] == [(None, None)] * 2
    assert all(len(t) <= 3 for one in found["labels"] for t in one["attention"].values())
    page = (tmp_path / "pages" / found["page"]).read_text(encoding="utf-8")
    assert "gold labels are not known" in page
    assert 'id="gold"' not in page


def test_what_was_cut_off_and_labels_the_model_does_not_know(
    model_copy: Path, tmp_path: Path
) -> None:
    path = model_copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_document_tokens": 4}))
    row = {**TEST[0], "labels": [*TEST[0]["labels"], "NOVEL"]}
    texts = write_jsonl(tmp_path / "texts.jsonl", [row])
    words = ["explain", "--model", str(model_copy), str(texts), "--top-k", "1"]
    assert main([*words, "--output", str(tmp_path / "pages"), "--debug"]) == 0
    [found] = spans_of(tmp_path / "pages")
    assert found["read_until"] == len(" ".join(row["text"].split()[:4]))
    page = (tmp_path / "pages" / found["page"]).read_text(encoding="utf-8")
    assert "has not read it" in page
    last = found["labels"][-1]
    assert (last["id"], last["score"], last["gold"], last["predicted"]) == (
        "NOVEL", None, True, False
    )  # fmt: skip
    assert all(
        token["end"] <= found["read_until"]
        for label in found["labels"] for tokens in label["attention"].values() for token in tokens
    )  # fmt: skip


def test_a_dry_run_writes_nothing(
    finished: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", "--config", str(finished / "config.yaml"), str(source), "--dry-run"]
    assert main([*words, "--output", str(tmp_path / "pages")]) == 0
    assert "labels above their threshold" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()


def test_what_is_not_ours_is_not_replaced(
    finished: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(finished / "run/classifier")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/love.txt").write_text("dear")
    words = ["explain", "--model", model, str(source), "--top-k", "1", "--output"]
    assert main([*words, str(tmp_path / "letters")]) == 2
    assert "was not written by explain" in capsys.readouterr().err
    assert (tmp_path / "letters/love.txt").read_text() == "dear"
    for split, code in (("test", 0), ("train", 0), ("nosuch", 3)):
        assert main([*words, str(tmp_path / "pages"), "--split", split]) == code
    # A failure leaves what was there: the pages of the training split.
    assert spans_of(tmp_path / "pages")[0]["id"].startswith("train")
    assert "holds no document of split 'nosuch'" in capsys.readouterr().err


def test_evidence_outside_of_the_text_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"text": "short", "evidence": [{"label": "L00", "start": 2, "end": 9}]}
    path = write_jsonl(tmp_path / "bad.jsonl", [row])
    words = ["explain", "--model", str(finished / "run/classifier"), str(path), "--output"]
    assert main([*words, str(tmp_path / "pages")]) == 3
    said = capsys.readouterr().err
    assert "bad.jsonl:1: evidence 2 to 9 of 'L00' lies outside the text of 5 characters" in said
    assert not (tmp_path / "pages").exists()


def test_a_span_that_marks_nothing_is_no_error(finished: Path, tmp_path: Path) -> None:
    """Annotators leave some, and preparing takes them; CodiEsp has three."""
    spans = [{"label": "L00", "start": 5, "end": 5}, {"label": "L01", "start": 0, "end": 3}]
    path = write_jsonl(tmp_path / "some.jsonl", [{"text": "alphal01", "evidence": spans}])
    words = ["explain", "--model", str(finished / "run/classifier"), str(path), "--output"]
    assert main([*words, str(tmp_path / "pages"), "--debug"]) == 0
    [line] = (tmp_path / "pages" / "spans.jsonl").read_text().splitlines()
    found = {label["id"]: label["gold_evidence"] for label in json.loads(line)["labels"]}
    assert [(one["start"], one["end"]) for one in found["L01"]] == [(0, 3)]


# In the browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


MARKED = "[...document.querySelectorAll('#text [class*=w]')].map(e => e.textContent)"
CHOSEN = "document.querySelector('input[name=label]:checked').value"


def darkest(label: dict[str, Any], branch: str) -> list[str]:
    """Tokens above four fifths of the largest weight, in the order of the text."""
    tokens = label["attention"][branch]
    dark = [one for one in tokens if one["weight"] > 0.8 * tokens[0]["weight"]]
    return [one["text"] for one in sorted(dark, key=lambda one: one["start"])]


def highest(browser: Browser) -> list[str]:
    script = "[...document.querySelectorAll('#text .w5')].map(e => e.textContent)"
    return list(browser.value(script))


def a_page_with_two_labels(pages: Path) -> tuple[Path, dict[str, Any]]:
    def full(label: dict[str, Any]) -> bool:
        return bool(label["attention"]["static"] and label["gold_evidence"])

    found = next(one for one in spans_of(pages) if sum(map(full, one["labels"][:2])) > 1)
    return pages / found["page"], found


def test_choosing_a_label_by_keyboard_highlights_what_it_attended(
    browser: Browser, pages: Path
) -> None:
    path, document = a_page_with_two_labels(pages)
    browser.resize(1200, 900)
    browser.open(path, "#branch=static")
    first, second = document["labels"][:2]
    assert highest(browser) == darkest(first, "static")
    browser.value("document.getElementById('label0').focus()")
    browser.press("ArrowDown")
    assert browser.value(CHOSEN) == "1"
    assert first["id"] != second["id"]
    assert highest(browser) == darkest(second, "static")
    assert browser.value("document.getElementById('told').textContent").startswith(second["id"])
    mine = browser.value("[...document.querySelectorAll('.mine[id]')].map(e => e.textContent)")
    assert "".join(mine) == "".join(one["text"] for one in second["gold_evidence"])
    # The address now says the same view, so that it can be sent.
    assert browser.value("location.hash") == f"#label={second['id']}&branch=static"
    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.complaints() == []


def test_branches_and_gold_can_be_switched(browser: Browser, pages: Path) -> None:
    path, document = a_page_with_two_labels(pages)
    browser.open(path)
    label = document["labels"][0]
    for branch in ("static", "planted", "learned", "combined"):
        browser.value(f"document.querySelector('input[value={branch}]').click()")
        tokens = label["attention"][branch]
        shown = [t["text"] for t in tokens if t["weight"] >= 0.01 * tokens[0]["weight"]]
        assert sorted(browser.value(MARKED)) == sorted(shown), branch
    look = "getComputedStyle(document.querySelector('.mine[id]')).textDecorationStyle"
    assert browser.value(look) == "dashed"
    browser.value("document.getElementById('gold').click()")
    assert browser.value(look) == "solid"
    browser.value("document.querySelector('#words button').click()")
    assert (
        browser.value("document.querySelector('.found').textContent")
        == (label["attention"]["combined"][0]["text"])
    )


@pytest.mark.parametrize("width", [1200, 380])
def test_no_window_is_too_narrow(browser: Browser, pages: Path, width: int, tmp_path: Path) -> None:
    browser.resize(width, 800)
    for name in ("documents/000001.html", "index.html"):
        browser.open(pages / name)
        assert browser.value("document.documentElement.scrollWidth") <= width
        place = Path(os.environ.get("PLANT_SCREENSHOTS", tmp_path))
        picture = place / f"{Path(name).stem}-{width}.png"
        browser.screenshot(picture)
        assert picture.stat().st_size > 5000
    browser.open(pages / "documents/000001.html")
    box = "document.getElementById('{}').getBoundingClientRect().{}"
    beside = browser.value(box.format("text", "left")) >= browser.value(
        box.format("choice", "right")
    )
    assert beside == (width > 1000)


def test_the_index_filters(browser: Browser, pages: Path) -> None:
    browser.resize(1200, 900)
    browser.open(pages / "index.html")
    found = spans_of(pages)
    missed = [
        one["id"] for one in found
        if any(label["gold"] and not label["predicted"] for label in one["labels"])
    ]  # fmt: skip
    rare = [
        one["id"] for one in found if any(label["train_documents"] <= 10 for label in one["labels"])
    ]
    assert 0 < len(missed) < len(found)
    shown = "[...document.querySelectorAll('tbody tr:not([hidden]) a')].map(e => e.textContent)"
    assert browser.value(shown) == [one["id"] for one in found]
    browser.value("document.getElementById('missed').click()")
    assert browser.value(shown) == missed
    assert browser.value("document.getElementById('count').textContent") == (
        f"{len(missed)} of {len(found)} documents"
    )
    browser.value("document.getElementById('missed').click()")
    browser.value("document.getElementById('rare').click()")
    assert browser.value(shown) == rare
    browser.value("document.getElementById('rare').click()")
    browser.value("document.getElementById('words').focus()")
    browser.call("Input.insertText", text="unseen")
    assert browser.value(shown) == [found[-1]["id"]]
    browser.press("Enter")  # must not leave the page
    assert browser.value(shown) == [found[-1]["id"]]
    assert browser.complaints() == []
