from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plant_dist import __version__, cli
from plant_dist.cli import STAGES, build_parser, main
from plant_dist.config import Config, load_config
from plant_dist.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    PlantError,
    RuntimeSetupError,
    StopRequested,
    TrainingError,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", [[], ["run"], *([name] for name in STAGES), ["predict"],
                                     ["explain"], ["status"], ["labels"],
                                     ["config"]])  # fmt: skip
def test_help_at_every_level(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args([*command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    if command and command[0] in ("run", *STAGES):
        for option in ("--config", "--set", "--output", "--dry-run", "--force", "--debug"):
            assert option in text
    if command == ["predict"]:
        assert "Where `calibrated` is true, scores are probabilities" in " ".join(text.split())
    if not command:
        for word in ("run", *STAGES, "predict", "explain", "status", "config", "Exit codes"):
            assert word in text


@pytest.mark.parametrize(
    "words", [[], ["fly"], ["run"], ["predict"], ["explain", "--model", "m"], ["run", "--config"]]
)
def test_a_command_that_is_none_leaves_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: plant-dist" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"plant-dist {__version__}\n"


def test_config_prints_the_resolved_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("train: {epochs: 7}\n")
    assert main(["config", str(tmp_path / "a.yaml"), "--set", "name=x"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["train"]["epochs"], printed["name"]) == (3, 7, "x")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(printed))
    again = load_config(tmp_path / "c.yaml")
    assert again == load_config(tmp_path / "a.yaml", ["name=x"])


def test_config_without_a_file_prints_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["train"]["epochs"] == Config().train.epochs
    assert main(["config", "--keys"]) == 0
    assert "| `train.epochs` | int |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PlantError("said"), 1),
        (ConfigError("said"), 2),
        (DataError("said"), 3),
        (ArtifactError("said"), 4),
        (RuntimeSetupError("said"), 5),
        (TrainingError("said"), 6),
        (StopRequested("said"), 75),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("said"), 70),
    ],
)
def test_an_error_becomes_one_line_and_its_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> Config:
        raise error

    monkeypatch.setattr(cli, "load_config", fail)
    assert main(["config"]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("plant-dist: ")
    assert "said" in line or "interrupted" in line
    if code == 70:
        assert "ZeroDivisionError" in line
        assert "--debug" in line
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            main(["config", "--debug"])


def test_a_reason_of_many_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Config:
        raise ArtifactError("what went wrong:\n  in detail\n\nat length")

    monkeypatch.setattr(cli, "load_config", fail)
    monkeypatch.setenv("RANK", "3")
    assert main(["config"]) == 4
    assert capsys.readouterr().err == (
        "plant-dist [rank 3]: config: what went wrong: in detail at length\n"
    )


def test_the_module_and_a_closed_pipe() -> None:
    """`python -m plant_dist` is the program; a reader that goes away is no error of ours."""
    command = f"{sys.executable} -m plant_dist config --keys | head -n 1"
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.stdout == "# Every setting\n"
    assert ran.stderr == ""


def test_help_and_config_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from plant_dist.cli import build_parser, main; build_parser(); "
        "main(['config']); heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
