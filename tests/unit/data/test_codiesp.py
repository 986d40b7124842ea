"""CodiEsp's released layout, with cases made up by us."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus
from plant_dist.data.records import Document, Span
from plant_dist.errors import ConfigError, DataError, PlantError

ES = "Varón con fiebre\ny dolor de rodilla\tizquierda.\r\nTAC craneal."
EN = "Man with fever and pain in the left knee.\nHead CT."
D = "S1-1\tr50.9\nS1-1\tM25.562\n\nS1-1\tR50.9\n"
P = "S1-1\tbn20\n"
X = (
    "S1-1\tDIAGNOSTICO\tr50.9\tfiebre\t10 16\n"
    "S1-1\tDIAGNOSTICO\tm25.562\tdolor izquierda\t19 24;36 45\n"
    "S1-1\tPROCEDIMIENTO\tbn20\tTAC craneal\t48 59\n"
)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    base = tmp_path / "codiesp" / "final_dataset_v4_to_publish"
    (tmp_path / "codiesp" / "codiesp_codes").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        for folder, text in (("text_files", ES), ("text_files_en", EN)):
            (base / split / folder).mkdir(parents=True)
            case = "S1-1" if split == "train" else f"{split}-1"
            (base / split / folder / f"{case}.txt").write_bytes(text.encode())
        tables = (D, P, X) if split == "train" else ("", "", "")
        for letter, table in zip("DPX", tables, strict=True):
            (base / split / f"{split}{letter}.tsv").write_text(table, encoding="utf-8")
    (base / "background").mkdir()
    (base / "train" / "text_files" / "S0-2.txt").write_text("Sin códigos.", encoding="utf-8")
    codes = tmp_path / "codiesp" / "codiesp_codes"
    (codes / "codiesp-D_codes.tsv").write_text(
        'R50.9\tFiebre, "sin" especificar\tFever, unspecified\nZ00\tOtro\tOther\n', encoding="utf-8"
    )
    (codes / "codiesp-P_codes.tsv").write_text("BN20\tTAC de cráneo\tCT of skull\t\n")
    return base


def corpus(path: Path, labels_path: Path | None = None, **options: Any):
    labels = str(labels_path) if labels_path else None
    return open_corpus(
        DataConfig(
            reader="codiesp", path=str(path), labels_path=labels, reader_options=options
        )
    )  # fmt: skip


def read(path: Path, **options: Any) -> dict[str, Document]:
    return {one.id: one for one in corpus(path, **options).documents()}


@pytest.mark.parametrize("up", [0, 1])
def test_a_case_has_its_codes_and_their_places(release: Path, up: int) -> None:
    found = read(release.parents[up - 1] if up else release)
    assert {name: one.split for name, one in found.items()} == {
        "S0-2": "train", "S1-1": "train", "dev-1": "validation", "test-1": "test",
    }  # fmt: skip
    case = found["S1-1"]
    assert case.text == ES
    assert case.labels == ("R50.9", "M25.562")
    assert [(one.label, ES[one.start : one.end]) for one in case.evidence] == [
        ("R50.9", "fiebre"), ("M25.562", "dolor"), ("M25.562", "izquierda"),
    ]  # fmt: skip
    assert found["S0-2"].labels == found["S0-2"].evidence == ()


def test_procedures_and_both(release: Path) -> None:
    assert read(release, codes="procedures")["S1-1"].labels == ("BN20",)
    assert read(release, codes="procedures")["S1-1"].evidence == (Span("BN20", 48, 59),)
    both = read(release, codes="both")["S1-1"]
    assert both.labels == ("R50.9", "M25.562", "BN20")
    assert len(both.evidence) == 4


def test_the_translation_has_no_positions(release: Path) -> None:
    case = read(release, language="en")["S1-1"]
    assert (case.text, case.labels, case.evidence) == (EN, ("R50.9", "M25.562"), ())


def test_labels_are_described_in_the_language_of_the_texts(release: Path) -> None:
    codes = release.parent / "codiesp_codes"
    texts = {one.id: one.text for one in corpus(release, codes, codes="both").labels()}
    assert texts == {"BN20": "TAC de cráneo", "M25.562": "", "R50.9": 'Fiebre, "sin" especificar'}
    one = corpus(release, codes / "codiesp-D_codes.tsv", language="en")
    assert {label.id: label.text for label in one.labels()}["R50.9"] == "Fever, unspecified"
    assert [label.id for label in corpus(release).labels()] == ["M25.562", "R50.9"]


def test_quotes_that_do_not_fit_are_said_and_many_are_refused(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("plant_dist").propagate = True
    table = release / "train" / "trainX.tsv"
    table.write_text(X.replace("fiebre", "fiebres"), encoding="utf-8")
    assert len(read(release)["S1-1"].evidence) == 3
    assert "1 of 2 annotations do not fit their text, first" in caplog.text
    assert f"{table}:1 ('fiebre' is quoted as 'fiebres')" in caplog.text
    table.write_text(X.replace("fiebre", "tos").replace("dolor", "tos"), encoding="utf-8")
    with pytest.raises(DataError, match="2 of 2 annotations do not fit their text"):
        read(release)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("trainD.tsv", "S1-1 r50.9\n", r"trainD\.tsv:1: found 1 fields, expected 2"),
        ("trainD.tsv", "S1-1\t\n", r"trainD\.tsv:1: an empty field"),
        ("trainD.tsv", D + "S9-9\tr50.9\n", r"trainD\.tsv:5: there is no text .*S9-9\.txt"),
        ("trainX.tsv", X + "S9-9\tDIAGNOSTICO\tr1\tx\t1 2\n", r"trainX\.tsv:4: there is no text"),
        ("trainX.tsv", X.replace("10 16", "10-16"), r"trainX\.tsv:1: positions '10-16' are not"),
        ("trainX.tsv", X.replace("10 16", "10 99"), r"trainX\.tsv:1: .*10 to 99, but the text has"),
        ("trainX.tsv", X.replace("PROCEDIMIENTO", "OTRO"), r"X\.tsv:3: type 'OTRO' is neither"),
        ("trainX.tsv", None, r"trainX\.tsv does not exist; version 4"),
    ],
)  # fmt: skip
def test_what_breaks_the_format_is_named(
    release: Path, file: str, text: str | None, message: str
) -> None:
    path = release / "train" / file
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read(release)


def test_settings_are_checked(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="codes is 'all'; it must be one of diagnoses"):
        corpus(release, codes="all")
    with pytest.raises(ConfigError, match="language is 'ca'; it must be one of es, en"):
        corpus(release, language="ca")
    with pytest.raises(DataError, match=r"holds train, dev, test; unpack codiesp\.zip"):
        corpus(release / "train")
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        open_corpus(DataConfig(reader="codiesp"))


@settings(deadline=None, max_examples=60,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_release_is_read_or_refused_in_one_line(
    release: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["trainD.tsv", "trainX.tsv", "text_files/S1-1.txt"]))
    content = {"trainD.tsv": D, "trainX.tsv": X, "text_files/S1-1.txt": ES}[name].encode()
    raw = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (release / "train" / name).write_bytes(bytes(raw))
    message = None
    try:
        read(release)
    except PlantError as error:
        message = str(error)
    finally:
        (release / "train" / name).write_bytes(content)
    assert message is None or (str(release) in message and "\n" not in message)
