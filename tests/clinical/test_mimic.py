"""The reader `mimic` against made-up tables of a known answer, field by field."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_mimic import (
    CODES,
    Admission,
    Written,
    made_up,
    write_caml_lists,
    write_release,
)

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.mimic.codes import dotted
from plant_dist.data.mimic.notes import NoteStore
from plant_dist.data.mimic.tables import Tables
from plant_dist.data.mimic.wording import caml, replication
from plant_dist.errors import ConfigError, DataError


def corpus(folder: Path, data: dict | None = None, **options):
    return open_corpus(
        DataConfig(reader="mimic", path=str(folder), reader_options=options, **data or {})
    )


def documents(folder: Path, data: dict | None = None, **options):
    return {one.id: one for one in corpus(folder, data, **options).documents()}


def coded(admissions, version: int = 9):
    return [one for one in admissions if one.notes and one.labels(version)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("release", "version"), [(3, 9), (4, 9), (4, 10)])
def test_every_field_is_that_of_the_known_answer(tmp_path, release, version, packed, line_end):
    admissions = made_up(30, seed=release, version=version)
    write_release(tmp_path, admissions, release, packed, line_end)
    found = documents(tmp_path, icd=str(version))
    expected = {str(one.hadm): one for one in coded(admissions, version)}
    assert found.keys() == expected.keys()
    assert any(len(one.notes) == 3 for one in expected.values())
    for name, one in expected.items():
        document = found[name]
        assert document.text == one.text
        assert document.labels == one.labels(version)
        assert document.group == str(one.subject)
        assert document.evidence == ()
    assert list(found) == sorted(found, key=lambda name: (int(found[name].group), int(name)))


def test_a_place_leads_to_the_line_where_the_first_note_begins(tmp_path):
    admissions = made_up(6)
    write_release(tmp_path, admissions, 3, packed=False)
    lines = (tmp_path / "NOTEEVENTS.csv").read_text().split("\n")
    for one in documents(tmp_path).values():
        path, _, number = one.where.rpartition(":")
        assert path == str(tmp_path / "NOTEEVENTS.csv")
        assert f",{one.id}," in lines[int(number) - 1]


def test_labels_are_the_codes_in_use_with_their_titles(tmp_path):
    admissions = made_up(30)
    write_release(tmp_path, admissions)
    used = sorted({label for one in coded(admissions) for label in one.labels()})
    titles = {row[3]: row[4] for row in CODES}
    found = list(corpus(tmp_path).labels())
    assert [one.id for one in found] == used
    assert {one.id: one.text for one in found} == {one: titles[one] for one in used}


def test_kinds_of_codes_can_be_chosen(tmp_path):
    admissions = made_up(30)
    write_release(tmp_path, admissions)
    found = documents(tmp_path, codes=["procedures"])
    expected = {str(one.hadm): one.labels(kinds=["procedures"]) for one in coded(admissions)}
    assert {name: one.labels for name, one in found.items()} == {
        name: labels for name, labels in expected.items() if labels
    }


def test_codes_of_both_versions_never_fall_together(tmp_path):
    admissions = [*made_up(20, 1, 9), *made_up(20, 2, 10)]
    for one in admissions[20:]:
        one.subject += 100
    write_release(tmp_path, admissions, 4)
    labels = {label for one in documents(tmp_path, icd="both").values() for label in one.labels}
    expected = {
        f"ICD{version}:{label}"
        for version in (9, 10) for one in admissions if one.notes for label in one.labels(version)
    }  # fmt: skip
    assert labels == expected


@pytest.mark.parametrize("row", CODES, ids=lambda row: row[2])
def test_codes_are_dotted_by_the_rules(row):
    kind, version, code, written, _ = row
    assert dotted(code, kind, version) == written


@given(st.text("0123456789EV", min_size=2, max_size=7))
def test_a_dot_is_all_that_is_added(code):
    for kind in ("diagnoses", "procedures"):
        for version in (9, 10):
            assert dotted(code, kind, version).replace(".", "") == code


def test_normalisations_are_those_of_the_papers():
    text = "Pt. given 250mg x2 (500 mg)\nB12; café ___ 12"
    # The first drops what holds no letter, the second what is digits only and any accent.
    assert caml(text) == "pt given 250mg x2 mg b12 café"
    assert replication(text) == "pt given 250mg x2 mg b12 caf"


@pytest.mark.parametrize("name", ["caml", "replication"])
def test_text_is_normalised_where_asked(tmp_path, name):
    admissions = made_up(8)
    write_release(tmp_path, admissions)
    normalise = {"caml": caml, "replication": replication}[name]
    for one in coded(admissions):
        assert documents(tmp_path, text=name)[str(one.hadm)].text == normalise(one.text)


def test_rare_codes_are_dropped_below_the_minimum(tmp_path):
    admissions = made_up(40, seed=4)
    write_release(tmp_path, admissions)
    counts = Counter(label for one in coded(admissions) for label in one.labels())
    limit = sorted(counts.values())[len(counts) // 2]
    found = [one.id for one in corpus(tmp_path, min_documents=limit).labels()]
    assert found == sorted(label for label, count in counts.items() if count >= limit)
    assert 0 < len(found) < len(counts)


def test_a_made_split_keeps_patients_whole_and_follows_the_seed(tmp_path):
    admissions = made_up(120)
    write_release(tmp_path, admissions)
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.3}
    found = documents(tmp_path, fractions)
    of_patient: dict[str, set] = {}
    for one in found.values():
        of_patient.setdefault(one.group, set()).add(one.split)
    assert max(map(len, of_patient.values())) == 1
    sizes = Counter(one.split for one in found.values())
    assert sizes["test"] / len(found) == pytest.approx(0.3, abs=0.05)
    assert sizes["validation"] / len(found) == pytest.approx(0.2, abs=0.05)
    again, other = documents(tmp_path, fractions), documents(tmp_path, fractions, split_seed=1)
    assert {k: v.split for k, v in again.items()} == {k: v.split for k, v in found.items()}
    assert {k: v.split for k, v in other.items()} != {k: v.split for k, v in found.items()}


def by_split(admissions) -> dict[str, list[int]]:
    """Patients in turn: of five, three train."""
    words = ("train", "train", "train", "dev", "test")
    lists: dict[str, list[int]] = {"train": [], "dev": [], "test": []}
    for one in admissions:
        lists[words[one.subject % 5]].append(one.hadm)
    return lists


WORDS = {"train": "train", "dev": "validation", "test": "test"}


def write_table(folder: Path, lists, suffix: str) -> Path:
    rows = [
        (hadm, {"dev": "val"}.get(split, split)) for split, some in lists.items() for hadm in some
    ]
    table = pa.table({"_id": [row[0] for row in rows], "split": [row[1] for row in rows]})
    path = folder / f"splits.{suffix}"
    feather.write_feather(table, path) if suffix == "feather" else pq.write_table(table, path)
    return path


@pytest.mark.parametrize("form", ["caml", "feather", "parquet", "own"])
def test_splits_of_others_are_followed(tmp_path, form):
    admissions = made_up(60)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    if form == "caml":
        write_caml_lists(tmp_path / "lists", "full", lists)
    elif form == "own":
        (tmp_path / "lists").mkdir()
        for word, some in lists.items():
            (tmp_path / "lists" / f"{WORDS[word]}.csv").write_text("\n".join(map(str, some)))
    else:
        write_table(tmp_path, lists, form)
    place = "lists" if form in ("caml", "own") else f"splits.{form}"
    found = documents(tmp_path, splits=place)
    expected = {str(hadm): WORDS[word] for word, some in lists.items() for hadm in some}
    assert {name: one.split for name, one in found.items()} == expected


def test_top_50_takes_its_own_lists_from_the_folder_of_caml(tmp_path):
    admissions = made_up(60)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    write_caml_lists(tmp_path / "lists", "full", lists)
    top = {word: some[::2] for word, some in lists.items()}
    write_caml_lists(tmp_path / "lists", "50", top)
    found = documents(tmp_path, splits="lists", label_set="top-50")
    assert set(found) == {str(hadm) for some in top.values() for hadm in some}
    full = documents(tmp_path, splits="lists")
    assert set(full) == {str(hadm) for some in lists.values() for hadm in some}


def test_a_list_of_codes_takes_the_place_of_the_most_frequent(tmp_path):
    admissions = made_up(60)
    write_release(tmp_path, admissions)
    every = Counter(code for one in coded(admissions) for code in one.labels())
    rarest = sorted(every, key=lambda code: (every[code], code))[:3]
    path = tmp_path / "TOP_50_CODES.csv"
    path.write_text("\n".join([*rarest, "no.such"]) + "\n")
    options = {"label_set": "top-50", "code_list": "TOP_50_CODES.csv"}
    found = corpus(tmp_path, **options)
    assert [one.id for one in found.labels()] == sorted(rarest)
    assert {one.id: set(one.labels) for one in found.documents()} == {
        str(one.hadm): set(one.labels()) & set(rarest)
        for one in coded(admissions)
        if set(one.labels()) & set(rarest)
    }
    before = found.fingerprint()
    path.write_text(rarest[0] + "\n")
    assert corpus(tmp_path, **options).fingerprint() != before
    path.write_text("\n")
    with pytest.raises(DataError, match=r"TOP_50_CODES\.csv is empty"):
        list(corpus(tmp_path, **options).documents())


def one_each() -> list[Admission]:
    """70 patients of one admission and one note each, without codes."""
    return [
        Admission(n, 1000 + n, [Written(n, False, "2110-01-01", f"note {n}")]) for n in range(1, 71)
    ]


def test_top_50_are_the_most_frequent_codes(tmp_path):
    admissions = one_each()
    write_release(tmp_path, admissions)
    rows = [
        f"1,{one.subject},{one.hadm},1,{100 + code}"
        for code in range(70) for one in admissions[: 70 - code]
    ]  # fmt: skip
    header = "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE"
    content = "\n".join([header, *rows]) + "\n"
    (tmp_path / "DIAGNOSES_ICD.csv.gz").write_bytes(gzip.compress(content.encode()))
    found = [one.id for one in corpus(tmp_path, label_set="top-50").labels()]
    assert found == [str(100 + code) for code in range(50)]


def test_a_table_unpacked_beside_its_archive_is_read_once(tmp_path):
    admissions = made_up(10)
    write_release(tmp_path, admissions, packed=True)
    write_release(tmp_path, admissions, packed=False)
    assert len(documents(tmp_path)) == len(coded(admissions))


def broken(folder: Path, table: str, old: bytes, new: bytes) -> Path:
    """Change every place where a table holds `old`."""
    path = next(folder.rglob(f"{table}.csv.gz"))
    content = gzip.decompress(path.read_bytes())
    assert old in content
    path.write_bytes(gzip.compress(content.replace(old, new)))
    return path


def test_damage_is_named_by_file_and_line(tmp_path):
    admissions = made_up(10)
    for table, old, new, words in (
        ("NOTEEVENTS", b'"Discharge summary","Report"', b'"Discharge summary","Draft"', "Draft"),
        ("NOTEEVENTS", b'"Report"', b'"Report', "NOTEEVENTS.csv.gz:"),
        ("NOTEEVENTS", b"HADM_ID", b"ADMISSION", "hadm_id"),
        ("DIAGNOSES_ICD", f",{admissions[3].hadm},".encode(), b",12.0,", "'12.0'"),
        ("DIAGNOSES_ICD", b"ICD9_CODE", b"CODE", "icd9_code"),
    ):
        write_release(tmp_path, admissions)
        broken(tmp_path, table, old, new)
        with pytest.raises(DataError) as caught:
            documents(tmp_path)
        assert words in str(caught.value)
        assert f"{table}.csv.gz:" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_refused(tmp_path):
    write_release(tmp_path, made_up(10))
    path = tmp_path / "NOTEEVENTS.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a whole gzip file"):
        documents(tmp_path)


def test_one_number_with_two_texts_is_refused(tmp_path):
    note = Written(1, False, "2110-01-01 00:00:00", "one")
    two = Admission(1, 7, [note, Written(1, False, note.time, "two")], [0])
    write_release(tmp_path, [made_up(2)[1], two])
    with pytest.raises(DataError, match=r"row_id 1 is also at .*NOTEEVENTS.csv.gz:\d+"):
        documents(tmp_path)


def test_an_admission_of_two_patients_is_refused(tmp_path):
    admissions = made_up(10)
    admissions[5].hadm = admissions[2].hadm
    write_release(tmp_path, admissions)
    with pytest.raises(DataError, match=f"admission {admissions[2].hadm} is of patients 2, 3"):
        documents(tmp_path)


def test_a_patient_in_two_splits_is_refused(tmp_path):
    admissions = made_up(40)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    lists["test"].append(lists["train"].pop())
    write_caml_lists(tmp_path / "lists", "full", lists)
    with pytest.raises(DataError, match=r"stand in several splits \(train, test\)"):
        documents(tmp_path, splits="lists")


def test_lists_that_cannot_be_told_apart_are_refused(tmp_path):
    admissions = made_up(20)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    folder = write_caml_lists(tmp_path / "lists", "a", lists)
    write_caml_lists(folder, "b", lists)
    with pytest.raises(DataError, match="three lists"):
        documents(tmp_path, splits="lists")
    for path in folder.glob("*_b_*"):
        path.unlink()
    (folder / "dev_a_hadm_ids.csv").write_text("145834\nnone\n")
    with pytest.raises(DataError, match=r"dev_a_hadm_ids.csv:2: the admission is 'none'"):
        documents(tmp_path, splits="lists")
    (folder / "dev_a_hadm_ids.csv").write_text(f"{lists['test'][0]}\n")
    with pytest.raises(DataError, match="is for test, but before it was for validation"):
        documents(tmp_path, splits="lists")


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ({}, {"icd": "11"}, "choose one of: 9, 10, both"),
        ({}, {"label_set": "top50"}, "choose one of: full, top-50"),
        ({}, {"text": "lower"}, "choose one of: none, caml"),
        ({}, {"codes": ["drugs"]}, "choose among: diagnoses, procedures"),
        ({}, {"split": "x"}, "did you mean splits?"),
        ({"split": "stratified"}, {}, "set data.split=given"),
        ({"path": None}, {}, "data.path is not set"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(data, options, words):
    with pytest.raises(ConfigError) as caught:
        open_corpus(
            DataConfig(**{"reader": "mimic", "path": "x", "reader_options": options, **data})
        )
    assert words in str(caught.value)


def test_icd_10_is_refused_for_the_third_release(tmp_path):
    write_release(tmp_path, made_up(4))
    with pytest.raises(ConfigError, match="MIMIC-III, which is coded in ICD-9"):
        documents(tmp_path, icd="10")


def test_missing_tables_are_said_before_missing_lists(tmp_path):
    options = {"splits": "lists"}
    for folder in (tmp_path / "nowhere", tmp_path):
        data = DataConfig(reader="mimic", path=str(folder), reader_options=options)
        with pytest.raises(DataError, match=r"does not exist|must hold NOTEEVENTS.csv\[.gz\]"):
            open_corpus(data).fingerprint()
    write_release(tmp_path, made_up(4))
    with pytest.raises(DataError, match=r"lists is neither a folder .*: null makes a split"):
        open_corpus(data).fingerprint()


def test_a_folder_without_notes_or_with_both_releases_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"found neither; set data.path"):
        documents(tmp_path)
    write_release(tmp_path / "three", made_up(4), 3)
    write_release(tmp_path / "four", made_up(4), 4)
    with pytest.raises(DataError, match="found noteevents and discharge"):
        documents(tmp_path)


def test_the_fingerprint_notices_other_tables_and_other_lists(tmp_path):
    admissions = made_up(20)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    write_caml_lists(tmp_path / "lists", "full", lists)
    before = corpus(tmp_path, splits="lists").fingerprint()
    assert corpus(tmp_path, splits="lists").fingerprint() == before
    (tmp_path / "lists" / "dev_full_hadm_ids.csv").write_text("1\n")
    changed = corpus(tmp_path, splits="lists").fingerprint()
    write_release(tmp_path, made_up(22))
    assert len({before, changed, corpus(tmp_path, splits="lists").fingerprint()}) == 3


def test_caml_prepared_files_are_read_by_the_generic_reader(tmp_path):
    path = tmp_path / "train_50.csv"
    path.write_text('SUBJECT_ID,HADM_ID,TEXT,LABELS,length\n1,7,"made up, all",038.9;428.0,3\n')
    data = DataConfig(
        path=str(path), id_column="HADM_ID", text_column="TEXT", labels_column="LABELS",
        group_column="SUBJECT_ID",
    )  # fmt: skip
    one = next(iter(open_corpus(data).documents()))
    assert (one.id, one.text, one.labels, one.group) == (
        "7",
        "made up, all",
        ("038.9", "428.0"),
        "1",
    )


def test_notes_cost_memory_by_their_number_and_not_by_their_length(tmp_path):
    """The proof at two million notes is benchmarks/mimic_memory.py; this guards it daily."""
    import tracemalloc

    peaks = []
    for length in (10, 10_000):
        folder = tmp_path / str(length)
        admissions = [
            Admission(n, n, [Written(n, False, "2110-01-01", "x" * length)], [0])
            for n in range(1, 401)
        ]
        write_release(folder, admissions)
        tables = Tables(folder, "utf-8")
        tracemalloc.start()
        store = NoteStore(tables)
        read = sum(len(note.text) for row in range(400) for note in store.notes(row))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert read == 400 * length
    # Four megabytes of text have gone by.
    assert peaks[1] - peaks[0] < 1_000_000


def test_rare_50_json_states_documents_and_labels(tmp_path):
    admissions = made_up(60, seed=9)
    write_release(tmp_path, admissions)
    lists = by_split(coded(admissions))
    (tmp_path / "rare").mkdir()
    known = {one.hadm: one for one in admissions}
    for word, some in lists.items():
        entries = [
            {
                "subject_id": known[h].subject,
                "hadm_id": h,
                "TEXT": "",
                "LABELS": known[h].labels()[0],
            }
            for h in some[:4]
        ]
        (tmp_path / "rare" / f"mimic3-50l_{word}.json").write_text(json.dumps(entries))
    found = documents(
        tmp_path, {"planting_corpus": "experiment"}, label_set="rare-50", subset="rare"
    )
    expected = {str(h): known[h].labels()[:1] for some in lists.values() for h in some[:4]}
    assert {name: one.labels for name, one in found.items()} == expected
    (tmp_path / "rare" / "mimic3-50l_dev.json").write_text('[{"hadm_id": 1, "LABELS": "Q1"}]')
    with pytest.raises(DataError, match="the code 'Q1', which no code table"):
        documents(tmp_path, {"planting_corpus": "experiment"}, label_set="rare-50", subset="rare")
