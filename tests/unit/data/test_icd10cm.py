"""ICD-10-CM as a corpus, against the package's own answers and known codes."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.errors import ConfigError, RuntimeSetupError

icd = pytest.importorskip("simple_icd_10_cm", reason="extra `demo` is not installed")


def corpus(**options):
    return open_corpus(DataConfig(reader="icd10cm", reader_options=options))


def test_known_codes_become_the_documents_a_coder_expects():
    found = {one.id: one for one in corpus(chapters=["4"]).documents()}
    above = ("E11", "E08-E13", "4")
    assert found["E11/description-0"].text == "Type 2 diabetes mellitus"
    assert found["E11/description-0"].labels == above
    assert found["E11/includes-1"].text == "diabetes NOS"
    assert {one.split for one in found.values() if one.id.startswith("E11/")} == {"train"}
    term = found["E00.0/term-0"]
    assert term.text == "Endemic cretinism, neurological type"
    assert term.labels == ("E00.0", "E00", "E00-E07", "4")
    assert term.split in ("validation", "test")


def test_every_term_note_and_description_of_a_chapter_is_there_once():
    documents = list(corpus(chapters=["3"]).documents())
    inside = [one for one in dict.fromkeys(icd.get_all_codes()) if "3" in icd.get_ancestors(one)]
    codes = [one for one in inside if icd.is_category_or_subcategory(one)]
    expected = Counter()
    for code in codes:
        expected["train"] += 1 + len(icd.get_includes(code))
        expected["held out"] += len(icd.get_inclusion_term(code))
    found = Counter("train" if one.split == "train" else "held out" for one in documents)
    assert found == expected
    assert len({one.id for one in documents}) == len(documents)
    terms = Counter(one.split for one in documents if one.split != "train")
    assert 0.2 < terms["validation"] / (terms["validation"] + terms["test"]) < 0.4


def test_labels_are_a_forest_that_holds_every_document_label():
    one = corpus(chapters=["1", "3"])
    labels = {label.id: label for label in one.labels()}
    used = {label for document in one.documents() for label in document.labels}
    assert used == set(labels)
    assert labels["1"].parents == labels["3"].parents == ()
    assert labels["A00"].parents == ("A00-A09",)
    assert labels["A00"].text == "Cholera"
    assert all(parent in labels for label in labels.values() for parent in label.parents)
    # The block B99 bears the name of its only category; it must not be its own ancestor.
    assert labels["B99"].parents == ("1",)
    assert next(d for d in one.documents() if d.id == "B99/description-0").labels == ("B99", "1")


def test_a_code_validates_or_tests_whatever_the_slice():
    alone = {one.id: one.split for one in corpus(chapters=["3"]).documents()}
    more = {one.id: one.split for one in corpus(chapters=["3", "4"]).documents()}
    assert alone.items() <= more.items()


def test_limit_and_share():
    few = list(corpus(chapters=["4"], limit=25, validation_share=0.0).documents())
    codes = dict.fromkeys(one.labels[0] for one in few)
    assert len(codes) == 25
    assert {one.split for one in few} == {"train", "test"}
    labels = [label.id for label in corpus(chapters=["4"], limit=25).labels()]
    assert set(labels) == {label for one in few for label in one.labels}


def test_wrong_options_and_the_missing_package(monkeypatch):
    with pytest.raises(ConfigError, match=r"chapters holds '23'; ICD-10-CM has chapters 1, 2,"):
        corpus(chapters=["23"])
    with pytest.raises(ConfigError, match=r"reader_options\.chapter .*did you mean chapters"):
        corpus(chapter=["4"])
    with pytest.raises(ConfigError, match=r"limit must be int or null, found 'all'"):
        corpus(limit="all")
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    with pytest.raises(RuntimeSetupError, match=r"pip install 'plant-dist\[demo\]'"):
        corpus()
