"""Every file of slurm/ as SLURM and shellcheck see it, and the sweeps as what they stand for."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from tiny_corpus import ROOT

from plant_dist.config import load_config
from plant_dist.stages.sweep import points_of

pytestmark = pytest.mark.slurm
FILES = sorted((ROOT / "slurm").glob("*.sh"))
# These are no jobs of a corpus.
MACHINERY = {"body", "task", "chain", "cpu", "ablation"}
CORPORA = [path for path in FILES if path.stem not in MACHINERY]
CONTRASTED = ("UNPLANTED", "PLANTED")


def name_of(path: Path) -> str:
    return path.name.removesuffix(".sh")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_slurm_accepts_a_file(cluster: Cluster, path: Path) -> None:
    ran = subprocess.run(
        ["sbatch", "--test-only", str(path)], env={**cluster.environment, "PLANT_CONFIG": "x.yaml"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "to start at" in ran.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    paths = [*map(str, FILES), str(ROOT / "slurm" / "site.env.example")]
    ran = subprocess.run(
        ["shellcheck", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.stdout == ""


@pytest.mark.parametrize("path", CORPORA, ids=name_of)
def test_a_corpus_is_a_few_lines_over_the_body(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 8
    assert f"configs/{name_of(path)}.yaml" in path.read_text()
    assert "--requeue --signal=B:USR1@180" in path.read_text()
    assert lines[-1].endswith('/slurm/body.sh"')


def test_every_config_of_a_corpus_has_a_file() -> None:
    configs = {path.name.removesuffix(".yaml") for path in (ROOT / "configs").glob("*.yaml")}
    assert "mimicfull" in configs
    assert {name_of(path) for path in CORPORA} == configs


def test_no_file_names_a_person_a_machine_or_an_account() -> None:
    for path in (ROOT / "slurm").rglob("*"):
        if path.is_file():
            assert not re.search(r"/home/|--account=\w|--partition=\w|@\w+\.\w", path.read_text())


def sweep_rows(name: str) -> dict[str, list[str]]:
    lines = (ROOT / "slurm" / "sweeps" / f"{name}.txt").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return {first: settings for first, *settings in words}


def benchmark_constants() -> dict[str, Any]:
    """What benchmarks/ablation_rows.py calls its rows; importing it would need its packages."""
    tree = ast.parse((ROOT / "benchmarks" / "ablation_rows.py").read_text())
    wanted = {"LEARNED", "CONTEXTUAL", "EVERY", "ROWS", *CONTRASTED}
    known: dict[str, Any] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in wanted:
            code = compile(ast.Expression(node.value), "ablation_rows", "eval")  # type: ignore[attr-defined]
            known[target.id] = eval(code, {}, known)
    return known


def test_the_ablation_array_has_the_rows_of_the_benchmark() -> None:
    rows = [list(row) for row in benchmark_constants()["ROWS"].values()]
    assert list(sweep_rows("ablation").values()) == rows


def test_the_few_shot_sweep_is_the_benchmarks_contrast() -> None:
    known = benchmark_constants()
    variants = load_config(ROOT / "configs" / "codiesp_fewshot.yaml").sweep.variants
    for name, row in zip(("learned", "planted"), CONTRASTED, strict=True):
        words = [f"{key}={yaml.safe_dump(value).strip()}" for key, value in variants[name].items()]
        asked = [load_config(None, some) for some in (words, known["ROWS"][known[row]])]
        assert asked[0] == asked[1]


def test_arrays_cover_their_rows() -> None:
    few_shot = load_config(ROOT / "configs" / "codiesp_fewshot.yaml")
    wanted = {
        "ablation": 5 * len(sweep_rows("ablation")),
        "codiesp_fewshot": len(points_of(few_shot)),
    }
    for name, count in wanted.items():
        header = (ROOT / "slurm" / f"{name}.sh").read_text()
        [last] = re.findall(r"--array=0-(\d+)%", header)
        assert int(last) + 1 == count
