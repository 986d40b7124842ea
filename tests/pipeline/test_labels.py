"""Labels added to a finished classifier and removed from it, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plant_dist.cli import main
from plant_dist.stages.saved import SavedClassifier

pytestmark = pytest.mark.pipeline

NEW = [{"id": "NEW", "text": "alphal03 betal03"}, {"id": "OTHER", "text": "history of patient"}]
CPU = torch.device("cpu")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def changed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished classifier without L01 and L04, with two labels more."""
    folder = tmp_path_factory.mktemp("labels")
    add = write(folder / "add.jsonl", NEW)
    (folder / "remove.txt").write_text("L04\nL01\n")
    command = ["labels", "--model", str(finished / "run" / "classifier"), "--add", str(add),
               "--remove", str(folder / "remove.txt"), "--output", str(folder / "new")]  # fmt: skip
    assert main([*command, "--debug"]) == 0
    return folder / "new"


def logits(saved: SavedClassifier) -> dict[str, torch.Tensor]:
    texts = ["the patient alphal03 was seen betal03", "alphal07 history of patient"]
    batch = saved.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = saved.model(batch["input_ids"], batch["attention_mask"]).logits
    return dict(zip(saved.label_space.ids, found.T, strict=True))


def test_labels_that_stay_keep_their_bits_and_their_scores(finished: Path, changed: Path) -> None:
    before = SavedClassifier.load(finished / "run" / "classifier", CPU)
    after = SavedClassifier.load(changed, CPU)
    old, new = before.label_space, after.label_space
    stay = [label for label in old.ids if label not in ("L01", "L04")]
    assert list(new.ids) == [*stay, "NEW", "OTHER"]
    assert new.train_frequency[-2:].tolist() == [0, 0]
    for name, rows in after.model.labels.fields.items():
        for label in stay:
            kept = before.model.labels.fields[name][old.index(label)]
            assert rows[new.index(label)].equal(kept), (name, label)
    then, now = logits(before), logits(after)
    for label in stay:
        torch.testing.assert_close(now[label], then[label], rtol=1e-5, atol=1e-5)


def test_thresholds_go_with_their_labels(finished: Path, changed: Path) -> None:
    before = SavedClassifier.load(finished / "run" / "classifier", CPU)
    after = SavedClassifier.load(changed, CPU)
    assert before.thresholds is not None
    assert after.thresholds is not None
    old = dict(zip(before.label_space.ids, before.thresholds.by_label(), strict=True))
    new = dict(zip(after.label_space.ids, after.thresholds.by_label(), strict=True))
    for label in new.keys() & old.keys():
        assert new[label] == old[label]
    assert new["NEW"] == pytest.approx(after.thresholds.global_score)


def test_a_new_label_answers_to_its_text(changed: Path) -> None:
    found = logits(SavedClassifier.load(changed, CPU))
    # The first text says what NEW is called, the second what OTHER is called.
    assert found["NEW"][0] > found["NEW"][1]
    assert found["OTHER"][1] > found["OTHER"][0]
    rows = SavedClassifier.load(changed, CPU).model.labels.fields
    # Those kept are not all that were trained, hence about the same length.
    typical = rows["factor"][:-2].norm(dim=1).mean().item()
    assert rows["factor"][-1].norm().item() == pytest.approx(typical, rel=0.2)


def test_adding_nothing_but_labels_reads_a_table(finished: Path, tmp_path: Path) -> None:
    table = tmp_path / "add.csv"
    table.write_text("id,text,parent\nNEW,alphal03 betal03,L03\n")
    command = ["labels", "--model", str(finished / "run" / "classifier"), "--add", str(table),
               "--output", str(tmp_path / "new")]  # fmt: skip
    assert main(command) == 0
    saved = SavedClassifier.load(tmp_path / "new", CPU)
    assert saved.label_space.parents[len(saved.label_space) - 1] == ["L03"]


@pytest.mark.parametrize(
    ("add", "remove", "code", "said"),
    [
        (None, None, 2, "nothing to change; give --add FILE or --remove FILE"),
        ([{"id": "L03", "text": "again"}], None, 3, "label 'L03' is in the classifier already"),
        ([{"id": "N", "text": " "}], None, 3, "label 'N' has no text to start from"),
        ([{"id": "N"}], None, 3, "no column 'text'"),
        (None, "L99\n", 3, "label 'L99' is not among the"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    add: list[dict[str, Any]] | None, remove: str | None, code: int, said: str,
) -> None:  # fmt: skip
    command = ["labels", "--model", str(finished / "run" / "classifier"), "--output",
               str(tmp_path / "new")]  # fmt: skip
    if add is not None:
        command += ["--add", str(write(tmp_path / "add.jsonl", add))]
    if remove is not None:
        (tmp_path / "remove.txt").write_text(remove)
        command += ["--remove", str(tmp_path / "remove.txt")]
    assert main(command) == code
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("plant-dist")]
    assert said in line
    assert not (tmp_path / "new").exists()


def test_all_labels_cannot_go_and_an_output_is_not_replaced(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(finished / "run" / "classifier")
    space = SavedClassifier.load(Path(model), CPU).label_space
    every = write(tmp_path / "all.jsonl", [{"id": label} for label in space.ids])
    command = ["labels", "--model", model, "--remove", str(every), "--output"]
    assert main([*command, str(tmp_path / "none")]) == 3
    assert "no trained label would be left" in capsys.readouterr().err
    assert main([*command, str(tmp_path)]) == 2
    assert "exists; name a new folder" in capsys.readouterr().err
