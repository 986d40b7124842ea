"""Every config of the project loads and plans, and the documentation of the keys is up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from plant_dist.cli import main
from plant_dist.config import load_config, resolved_yaml
from plant_dist.config.reference import key_reference

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VARIANTS = sorted((ROOT / "configs" / "variants").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"quickstart", "icd10cm", "codiesp"} <= {path.stem for path in CONFIGS}
    assert {"eurlex", "wikiten", "amazoncat", "amazon670k", "wiki500k", "amazon3m"} <= {
        path.stem for path in CONFIGS
    }
    assert {"awd_lstm", "llm"} == {path.stem for path in VARIANTS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(resolved_yaml(config))
    assert load_config(copy) == config
    assert config.name == path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_plans_memory_and_steps_without_data_and_writes_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", str(path), "--dry-run", "--debug"]) == 0
    plan = capsys.readouterr().out
    for stage in ("prepare", "mig", "train", "evaluate"):
        assert f"\n{stage:<8} " in plan
    # debdepends plants nothing, so trains no ranker.
    assert (f"\n{'rank':<8} " in plan) == ("planted" in load_config(path).model.branches)
    parts = ("memory   about ", "encoder  ", "label tables ", "\n         step ", "steps    about ")
    assert [part for part in parts if part not in plan] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_corpus_has_every_variant(
    path: Path, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = ["--set", f"extends={variant}", "--set", "runtime.processes=8"]
    assert main(["run", "--config", str(path), *words, "--dry-run", "--debug"]) == 0
    plan = capsys.readouterr().out
    assert f"{path.stem}-{variant.stem} in runs" in plan
    assert ("\nlm  " in plan) == (variant.stem == "awd_lstm")


def test_the_readme_has_a_row_for_every_config() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    listed = {name for row in rows for name in re.findall(r"`([\w.]+)`", row) if "sbatch" in row}
    assert {path.stem for path in CONFIGS} <= listed
    # What a row says to type is there.
    named = {name for row in rows for name in re.findall(r"(?:configs|slurm)/[\w./]+", row)}
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_no_place_of_one_machine(path: Path) -> None:
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for one in value.values() for text in texts(one)]
        return [value] if isinstance(value, str) else []

    assert not [text for text in texts(yaml.safe_load(path.read_text())) if text.startswith("/")]


def test_the_documented_keys_are_those_of_the_schema() -> None:
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == key_reference(), "run: plant-dist config --keys > docs/config.md"
