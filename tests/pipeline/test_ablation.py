"""The benchmark of the ablation, on a tiny corpus: rates chosen, rows resumed, comparisons kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from tiny_corpus import ROOT, environment, start, write_inputs

pytestmark = pytest.mark.pipeline

PLANTED, UNPLANTED, LINEAR = "everything", "label attention, random queries", "TF-IDF + LinearSVC"
DOCUMENTS = 20  # of the test split


def bench(folder: Path, config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(ROOT / "benchmarks/ablation.py"), "--config", str(config),
        "--name", "tiny", "--output", str(folder / "runs"), "--results", str(folder / "results"),
        "--rows", LINEAR, UNPLANTED, PLANTED, "--fine-tuned", "--rates", "0.001", "0.03",
        *options,
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of one seed."""
    found = tmp_path_factory.mktemp("ablation")
    ran = bench(found, write_inputs(found), "--seeds", "1", "--few-shot", "12")
    assert ran.returncode == 0, ran.stderr
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "results/ablation_tiny.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_every_rate_is_tried_and_no_place_is_named(folder: Path) -> None:
    made = {(one["row"], one["rate"]) for one in records(folder)}
    # The default is made as its config says.
    assert made == {(LINEAR, None), (PLANTED, 0.02), (UNPLANTED, 0.001), (UNPLANTED, 0.03)}
    text = (folder / "results/ablation_tiny.jsonl").read_text()
    assert str(folder / "runs") not in text
    # Run folders are dear to keep; what other rows share is not.
    assert not list((folder / "runs/all/everything").glob("seed*"))


def test_few_shot_rows_stand_in_a_table_and_a_plot(folder: Path) -> None:
    few = {one["row"]: one for one in records(folder) if one["train_documents"] == 12}
    assert set(few) == {LINEAR, UNPLANTED, PLANTED}
    table = (folder / "results/ablation_tiny.md").read_text().split("## Few-shot curve")[1]
    assert table.count("| system | 12 |") == 3
    for row, one in few.items():
        assert f"| {row} | {100 * one['metrics']['map']:.1f} |" in table
    assert (folder / "results/ablation_tiny.png").stat().st_size > 10_000


def test_every_metric_is_tabulated_by_band(folder: Path) -> None:
    text = (folder / "results/ablation_tiny_bands.md").read_text()
    [whole] = [one for one in records(folder)
               if one["row"] == PLANTED and one["train_documents"] is None]  # fmt: skip
    for metric, title in (("within_p@1", "P@1"), ("within_psp@5", "PSP@5"), ("within_map", "MAP")):
        table = text.split(f"## {title} within the band")[1].split("##")[0]
        assert f"{100 * whole['bands']['6-10'][metric]:.1f}" in table


def test_what_is_compared_gives_the_metrics_again(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from ablation_sums import unpacked
    finally:
        sys.path.pop(0)
    for one in records(folder):
        if one["row"] == LINEAR or one["train_documents"] is not None:
            assert one["compared"] is None
            continue
        sums = unpacked(one["compared"])
        ones = np.ones((1, DOCUMENTS))
        assert sums["P@1"].of(ones)[0] == pytest.approx(one["metrics"]["p@1"])
        assert sums["P@5"].of(ones)[0] == pytest.approx(one["metrics"]["p@5"])
        # Of thirteen labels all are among the first 50.
        assert sums["R@50, labels of 1-10"].of(ones)[0] == 1.0


def test_another_machine_goes_on_from_the_lines_at_each_rows_own_rate(folder: Path) -> None:
    before = records(folder)
    shutil.rmtree(folder / "runs")
    ran = bench(folder, folder / "config.yaml", "--seeds", "2")
    assert ran.returncode == 0, ran.stderr
    after = records(folder)
    assert after[: len(before)] == before
    best = {
        row: max((one for one in before if one["row"] == row),
                 key=lambda one: one["validation_map"])["rate"]
        for row in (LINEAR, UNPLANTED, PLANTED)
    }  # fmt: skip
    added = {(one["row"], one["seed"], one["rate"]) for one in after[len(before) :]}
    assert added == {(row, 1, rate) for row, rate in best.items()}
    table = (folder / "results/ablation_tiny.md").read_text()
    assert f"| {PLANTED} | {UNPLANTED} | frozen | P@1 |" in table
    planted = [one["metrics"]["map"] for one in after
               if one["row"] == PLANTED and one["train_documents"] is None]  # fmt: skip
    assert f"{100 * np.mean(planted):.1f} ± {100 * np.std(planted, ddof=1):.1f}" in table
    again = bench(folder, folder / "config.yaml", "--seeds", "2")
    assert again.returncode == 0
    assert "ablation:" not in again.stderr


def test_a_row_on_shortlists_is_judged_by_what_is_retrieved(tmp_path: Path) -> None:
    config = write_inputs(tmp_path)
    settings = [
        "train.labels=shortlist", "shortlist.labels_per_document=8", "shortlist.candidates=5",
        "train.optim.freeze_encoder=true", "encoder.cache=fp16", "evaluate.baselines=[]",
        "model.branches=[learned,planted,static,named,bag]",
    ]  # fmt: skip
    words = [word for one in settings for word in ("--set", one)]
    ran = bench(tmp_path, config, "--seeds", "1", "--rows", PLANTED, *words)
    assert ran.returncode == 0, ran.stderr
    (line,) = records(tmp_path)
    # Of a run of the program itself.
    words += ["--set", "seed=0", "--output", str(tmp_path / "run")]
    with start(tmp_path, "run", "--config", str(config), *words) as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    report = json.loads((tmp_path / "run/report/report.json").read_text())
    expected = report["systems"]["PLANT"]["metrics"]
    for metric in ("p@1", "map", "micro_f1", "macro_f1"):
        assert line["metrics"][metric] == pytest.approx(expected[metric], abs=1e-9), metric
    # Five of thirteen labels are retrieved, so that even all of them miss gold ones.
    assert all((found["r@50"] or 0.0) < 1.0 for found in line["bands"].values())


def test_documents_without_features_are_kept_from_omikuji(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from linear import _write_xmc
    finally:
        sys.path.pop(0)
    # The second document has no feature, the third no label.
    features = csr_matrix(np.array([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0], [0.25, 1.0]]))
    labels = csr_matrix(np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]))
    _write_xmc(tmp_path / "train.txt", features, labels)
    assert (tmp_path / "train.txt").read_text() == "2 2 3\n1 0:0.5\n0,2 0:0.25 1:1\n"


def test_lines_of_a_config_that_has_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    kept = (folder / "results/ablation_tiny.jsonl").read_bytes()
    config = tmp_path / "config.yaml"
    other = "train: {optim: {names_learning_rate: 0.5}}\n"
    config.write_text(f"extends: {folder / 'config.yaml'}\n{other}")
    ran = bench(folder, config, "--seeds", "1")
    assert ran.returncode == 1
    assert "has changed since these rows were made: everything, label attention" in ran.stderr
    assert (folder / "results/ablation_tiny.jsonl").read_bytes() == kept
