"""`rare-50` and `few`: which codes and documents they take, and that planting never leaks."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_up_mimic import Admission, Written, write_caml_lists, write_release

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
import datasets
from tiny_corpus import settings, write_encoder

from plant_dist.cli import main
from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepared import PreparedDataset
from plant_dist.errors import ConfigError
from plant_dist.mig.lists import GainTable

SPLITS = ("train", "dev", "test")


@pytest.fixture
def release(tmp_path):
    """90 patients of two admissions; codes of all frequencies, some in training alone."""
    random = np.random.default_rng(3)
    admissions, codes = [], {}
    for number in range(180):
        hadm = 1000 + number
        # Powers fall off: few codes are frequent, many come once.
        chosen = {100 + int(code) for code in random.zipf(1.5, 3) if code < 80}
        codes[hadm] = sorted(chosen | {100})
        words = " ".join(f"alphal{code % 12:02d}" for code in codes[hadm])
        note = Written(number + 1, False, "2110-01-01", f"the patient {words} was seen")
        admissions.append(Admission(number // 2, hadm, [note]))
    write_release(tmp_path / "mimic", admissions, packed=False)
    rows = [f"1,1,{hadm},1,{code}" for hadm, some in codes.items() for code in some]
    table = "\n".join(["ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE", *rows])
    (tmp_path / "mimic" / "DIAGNOSES_ICD.csv").write_text(table + "\n")
    lists = {split: [] for split in SPLITS}
    for one in admissions:
        lists[("train", "train", "train", "dev", "test")[one.subject % 5]].append(one.hadm)
    write_caml_lists(tmp_path / "mimic" / "lists", "full", lists)
    return tmp_path / "mimic", codes, lists


def corpus(folder, **changes):
    options = {"splits": "lists", **changes.pop("options", {})}
    return open_corpus(
        DataConfig(reader="mimic", path=str(folder), reader_options=options, **changes)
    )


def counts(codes, hadms):
    return Counter(code for hadm in hadms for code in codes[hadm])


def scarce(codes, lists, most):
    train, test = counts(codes, lists["train"]), counts(codes, lists["test"])
    return {code: n for code, n in train.items() if n <= most and test[code]}


@pytest.mark.parametrize("label_set", ["few", "rare-50"])
def test_label_set_and_documents_are_those_of_the_definition(release, label_set):
    folder, codes, lists = release
    known = scarce(codes, lists, 5 if label_set == "few" else 10)
    if label_set == "rare-50":
        known = dict(sorted(known.items(), key=lambda one: (-one[1], one[0]))[:50])
    found = corpus(folder, options={"label_set": label_set})
    assert [one.id for one in found.labels()] == [str(code) for code in sorted(known)]
    documents = list(found.documents())
    words = dict(zip(("train", "validation", "test"), SPLITS, strict=True))
    for split, word in words.items():
        expected = {str(hadm) for hadm in lists[word] if set(codes[hadm]) & set(known)}
        assert {one.id for one in documents if one.split == split} == expected
    for one in documents:
        assert one.labels == tuple(str(c) for c in codes[int(one.id)] if c in known)


@pytest.mark.parametrize("label_set", ["few", "rare-50"])
def test_planting_reads_the_rest_of_training_and_nothing_held_out(release, label_set):
    folder, _, lists = release
    documents = list(corpus(folder, options={"label_set": label_set}).documents())
    train = {one.id for one in documents if one.split == "train"}
    planting = {one.id for one in documents if one.split == "planting"}
    assert planting
    assert planting | train == {str(hadm) for hadm in lists["train"]}
    held_out = {one.group for one in documents if one.split in ("validation", "test")}
    assert not {one.group for one in documents if one.split == "planting"} & held_out
    alone = corpus(folder, options={"label_set": label_set}, planting_corpus="experiment")
    assert {one.id for one in alone.documents() if one.split == "planting"} == set()


def rare_lists(folder, codes, lists, tested):
    """Lists as KEPT's, whose test admissions are `tested` whatever the full split says."""
    (folder / "rare").mkdir()
    of_split = {"train": lists["train"][:6], "dev": lists["dev"][:4], "test": tested}
    for split, some in of_split.items():
        entries = [{"hadm_id": h, "LABELS": ";".join(str(c) for c in codes[h][:2])} for h in some]
        (folder / "rare" / f"mimic3-50l_{split}.json").write_text(json.dumps(entries))


def test_an_experiment_that_tests_on_training_admissions_takes_them_from_planting(release):
    folder, codes, lists = release
    # Both admissions of one patient train in the full corpus; one of them is tested here.
    tested = lists["train"][-2]
    twin = lists["train"][-1]
    rare_lists(folder, codes, lists, [tested])
    options = {"label_set": "rare-50", "subset": "rare"}
    documents = {one.id: one for one in corpus(folder, options=options).documents()}
    assert documents[str(tested)].split == "test"
    assert str(twin) not in documents
    planting = {name for name, one in documents.items() if one.split == "planting"}
    trained = {str(h) for h in lists["train"]}
    assert planting == trained - {str(h) for h in lists["train"][:6]} - {str(tested), str(twin)}


def test_planting_documents_beyond_the_lists_carry_the_label_set(release):
    folder, codes, lists = release
    rare_lists(folder, codes, lists, lists["test"][:2])
    options = {"label_set": "rare-50", "subset": "rare"}
    found = corpus(folder, options=options)
    labels = {one.id for one in found.labels()}
    planting = [one for one in found.documents() if one.split == "planting"]
    assert any(one.labels for one in planting)
    for one in planting:
        assert one.labels == tuple(str(c) for c in codes[int(one.id)] if str(c) in labels)


def test_without_a_split_of_the_full_corpus_planting_from_it_is_refused(release):
    folder, codes, lists = release
    rare_lists(folder, codes, lists, lists["test"][:2])
    options = {"label_set": "rare-50", "subset": "rare", "splits": None}
    with pytest.raises(ConfigError, match=r"set data\.reader_options\.splits"):
        list(corpus(folder, options=options).documents())
    alone = corpus(folder, options=options, planting_corpus="experiment")
    assert {one.split for one in alone.documents()} == {"train", "validation", "test"}


@pytest.mark.parametrize("label_set", ["few", "rare-50"])
def test_a_run_counts_gains_on_the_planting_documents(
    release, tmp_path, monkeypatch, capsys, label_set
):
    """From the tables to an evaluated classifier; the gains' counts are worked out here."""
    folder, codes, lists = release
    size = (
        min(50, len(scarce(codes, lists, 10)))
        if label_set == "rare-50"
        else len(scarce(codes, lists, 5))
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_encoder(tmp_path / "encoder")
    content = settings(tmp_path) | {
        "data": {
            "reader": "mimic", "path": str(folder),
            "reader_options": {"label_set": label_set, "splits": "lists"},
            "expected": {"source": "here", "labels": size, "documents": 1},
        },
    }  # fmt: skip
    content["train"]["epochs"] = 1
    content["evaluate"]["baselines"] = []
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main(["run", "--config", str(path), "--debug"]) == 0
    dataset = PreparedDataset.load(tmp_path / "run" / "dataset")
    gains = GainTable.load(tmp_path / "run" / "gains")
    assert int(gains.documents) == len(lists["train"])
    everywhere = counts(codes, lists["train"])
    assert gains.label_documents.tolist() == [everywhere[int(c)] for c in dataset.label_space.ids]
    # A code's training documents are all in the experiment, so frequencies agree; sizes do not.
    assert dataset.label_space.train_frequency.tolist() == gains.label_documents.tolist()
    assert dataset.token_csr("train").size < len(lists["train"])
    stated = [line for line in dataset.statistics["expected"] if line["expected"] is not None]
    assert {line["count"]: line["differs"] for line in stated} == {
        "labels": False, "documents": True,
    }  # fmt: skip
    # What differs from the literature stands in the report and is printed, beside what does not.
    assert size == len(dataset.label_space)
    documents = sum(dataset.label_csr(split).size for split in ("train", "validation", "test"))
    report = (tmp_path / "run" / "report" / "report.md").read_text()
    assert f"| labels | {size} | {size} |  |" in report
    assert f"| documents | {documents} | 1 | DIFFERS |" in report
    assert "Counts of the literature: here." in report
    patients = {
        split: len({int(hadm) - 1000 >> 1 for hadm in dataset.documents(split)["id"]})
        for split in ("train", "validation", "test")
    }
    said = ", ".join(f"{count} {split}" for split, count in patients.items())
    assert f"Groups: {said}; none stands in two splits." in report
    out = capsys.readouterr().out
    assert f"\ngroups: {said}; none stands in two splits\n" in out
    printed = [line.split("│")[1:-1] for line in out.splitlines()]
    rows = [[cell.strip() for cell in row] for row in printed if row]
    assert ["documents", str(documents), "1", "DIFFERS"] in rows
    assert ["labels", str(size), str(size), ""] in rows
