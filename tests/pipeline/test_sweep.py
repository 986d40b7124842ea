"""A sweep: which runs it makes, from which documents, and what its table says of them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from tiny_corpus import SIZES

from plant_dist.cli import main
from plant_dist.config import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.metrics.curve import Measured, curve_table, write_curve
from plant_dist.mig.lists import GainTable
from plant_dist.stages.pipeline import Job
from plant_dist.stages.sweep import Point, points_of

SETTINGS = (
    "sweep.train_documents=[12]", "sweep.seeds=[3]", "train.epochs=1", "evaluate.baselines=[]",
    "sweep.variants={planted: {}, learned: {model.branches: [learned]}}", "sweep.metrics=[p@1,map]",
)  # fmt: skip
POINTS = [("planted", 12), ("learned", 12), ("planted", None), ("learned", None)]


def words_of(config: str, output: Path, *more: str) -> list[str]:
    words = ["sweep", "--config", config, "--output", str(output), *more]
    return words + [word for setting in SETTINGS for word in ("--set", setting)]


def place(output: Path, variant: str, size: int | None) -> Path:
    return output / "sweep" / f"{variant}-{size or 'all'}" / "seed3"


@pytest.fixture(scope="module")
def swept(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("swept")
    assert main([*words_of(str(inputs / "config.yaml"), output), "--debug"]) == 0
    return output


def test_every_variant_and_size_is_a_run(swept: Path) -> None:
    made = {path.parents[1] for path in swept.rglob("report/manifest.json")}
    assert made == {place(swept, *point) for point in POINTS}


def test_statistics_are_of_the_subset_alone(swept: Path) -> None:
    ids = {}
    for variant, size in POINTS:
        folder = place(swept, variant, size)
        expected = size or SIZES["train"]
        assert PreparedDataset.load(folder / "dataset").token_csr("train").size == expected
        assert int(GainTable.load(folder / "gains").documents) == expected
        ids[variant, size] = (folder / "dataset/split_ids/train.csv").read_text().split()
        test = (folder / "dataset/split_ids/test.csv").read_text().split()
        assert len(test) == SIZES["test"]
    assert ids["planted", 12] == ids["learned", 12]
    assert set(ids["planted", 12]) < set(ids["planted", None])
    # The variant decides the classifier, and nothing before it is made twice.
    for artifact, same in (("dataset", True), ("gains", True), ("classifier", False)):
        manifests = [
            (place(swept, variant, 12) / artifact / "manifest.json").read_text()
            for variant in ("planted", "learned")
        ]
        assert (manifests[0] == manifests[1]) == same


def test_the_table_is_that_of_the_reports(
    swept: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("seed3/*/manifest.json")}
    assert main(words_of(str(inputs / "config.yaml"), swept)) == 0
    printed = capsys.readouterr().out
    # Nothing is made again; the table is printed all the same.
    assert before == {p: p.stat().st_mtime_ns for p in swept.rglob("seed3/*/manifest.json")}
    for variant, size in POINTS:
        report = json.loads((place(swept, variant, size) / "report/report.json").read_text())
        found = report["systems"]["PLANT"]["metrics"]
        cells = f"{100 * found['p@1']:.2f} | {100 * found['map']:.2f}"
        line = f"| {variant} | {size or SIZES['train']} | 1 | {cells} |"
        assert line in printed
        assert line in (swept / "sweep/sweep.md").read_text()
    assert (swept / "sweep/sweep.png").read_bytes()[:4] == b"\x89PNG"
    content = json.loads((swept / "sweep/sweep.json").read_text())
    assert [(run["variant"], run["documents"], run["seed"]) for run in content["runs"]] == [
        (variant, size or SIZES["train"], 3) for variant, size in POINTS
    ]


def test_an_index_makes_one_run_and_a_dry_run_none(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(config, tmp_path / "run", "--dry-run")) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].endswith(": 4 runs")
    assert [line.split()[0] for line in listed[1:]] == ["0", "1", "2", "3"]
    assert not (tmp_path / "run").exists()
    assert main(words_of(config, tmp_path / "run", "--index", "1")) == 0
    made = [path.parents[1] for path in (tmp_path / "run").rglob("report/manifest.json")]
    assert made == [place(tmp_path / "run", "learned", 12)]
    assert "1 of 4 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--index", "4"], "--index is 4, but the sweep has runs 0 to 3"),
        (["--set", "sweep.variants={a/b: {}}"], "sweep.variants.a/b: a name becomes a folder"),
        (["--set", "sweep.variants={a: 3}"], "sweep.variants.a is 3; give a mapping"),
        (["--set", "sweep.seeds=[1,1]"], "sweep.seeds is [1, 1]; name each of its entries once"),
        # Found before the first run begins, though it is the last variant's.
        (["--set", "sweep.variants={z: {model.branchs: [a]}}"], "did you mean model.branches"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_at_once(
    config: str, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # `--set` given last wins over SETTINGS, whose mappings it joins.
    assert main([*words_of(config, tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "sweep").exists()


def test_each_run_has_the_arithmetic_and_kernels_of_its_variant(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def noted(job: Job, point: Point) -> None:
        kernels = torch.are_deterministic_algorithms_enabled()
        seen[point.variant] = (job.context.precision, kernels, job.context.seed)

    monkeypatch.setattr("plant_dist.stages.sweep._make", noted)
    variants = "{plain: {}, half: {runtime.precision: bf16}, loose: {runtime.deterministic: false}}"
    words = [*words_of(config, tmp_path / "run"), "--set", "runtime.precision=fp32"]
    words[words.index("sweep.train_documents=[12]")] = "sweep.train_documents=[]"
    words[[word.startswith("sweep.variants") for word in words].index(True)] = (
        f"sweep.variants={variants}"
    )
    assert main(words) == 0
    assert seen == {
        "plain": ("fp32", True, 3), "half": ("bf16", True, 3), "loose": ("fp32", False, 3),
    }  # fmt: skip


def test_all_runs_are_begun_anew_where_that_is_asked(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first: a job that dies in it and is started again may not count the rest."""
    monkeypatch.setattr("plant_dist.stages.sweep._make", lambda job, point: None)
    assert main([*words_of(config, tmp_path / "run"), "--force"]) == 0
    stages = ["evaluate", "mig", "prepare", "rank", "train"]
    for variant, size in POINTS:
        folder = place(tmp_path / "run", variant, size)
        wanted = stages if variant == "planted" else [one for one in stages if one != "rank"]
        found = sorted(one.name for one in (folder / "forced").iterdir())
        assert found == sorted([*wanted, "launch"])


def test_sizes_come_before_seeds_before_variants() -> None:
    config = load_config(
        None, ["sweep.train_documents=[50,25]", "sweep.seeds=[7,1]", "sweep.all_documents=false"]
    )
    points = points_of(config)
    assert [(one.variant, one.documents, one.seed) for one in points] == [
        ("config", 25, 7), ("config", 25, 1), ("config", 50, 7), ("config", 50, 1),
    ]  # fmt: skip
    assert points[0].words == ("seed=7", "data.train_documents=25")
    assert [one.documents for one in points_of(load_config(None))] == [None]


def test_the_table_has_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    values = [0.1, 0.25, 0.4]
    measured = [Measured("a", 10, seed, {"map": value}) for seed, value in enumerate(values)]
    measured += [Measured("b", 10, 0, {"map": None}), Measured("a", 5, 0, {"map": 0.5})]
    assert curve_table(measured, ["map"]).splitlines()[2:] == [
        "| a | 5 | 1 | 50.00 |",
        f"| a | 10 | 3 | 25.00 ± {100 * statistics.stdev(values):.2f} |",
        "| b | 10 | 1 | – |",
    ]
    written = write_curve(tmp_path / "x", "title", measured, ["map"])
    assert [path.name for path in written] == ["sweep.json", "sweep.md", "sweep.png"]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == sorted(
        path.name for path in written
    )
