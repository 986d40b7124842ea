from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plant_dist.config.schema import Config, EncoderConfig, LmConfig, LstmConfig
from plant_dist.errors import ConfigError
from plant_dist.runtime.context import RunContext
from plant_dist.stages import ALL, run_stage
from plant_dist.stages.lm import STAGE
from plant_dist.stages.pipeline import LANGUAGE_MODEL, Job

PLAIN = Config()
LSTM = Config(encoder=EncoderConfig(kind="awd_lstm"))


@pytest.mark.parametrize(
    "stage", [one for one in ALL if one is not STAGE], ids=lambda one: one.name
)
def test_other_encoders_stages_know_nothing_of_it(stage: object) -> None:
    """Artifacts made before there were AWD-LSTMs are still up to date."""
    changed = replace(PLAIN, lstm=LstmConfig(width=5), lm=LmConfig(epochs=1))
    assert stage.settings(changed) == stage.settings(PLAIN) == stage.settings(LSTM)
    assert stage.parents(PLAIN) == stage.needs
    assert stage.applies(PLAIN)
    reads = stage.name in ("rank", "train", "evaluate")
    assert stage.parents(LSTM) == (*stage.needs, *[LANGUAGE_MODEL] * reads)


def test_its_own_settings_are_those_of_its_sections() -> None:
    for changed in (replace(LSTM, lm=LmConfig(epochs=1)), replace(LSTM, lstm=LstmConfig(width=5))):
        assert STAGE.settings(changed) != STAGE.settings(LSTM)
    assert STAGE.parents(LSTM) == ("dataset",)


def test_it_is_refused_where_nothing_would_read_it(tmp_path: Path) -> None:
    assert STAGE.applies(LSTM)
    assert not STAGE.applies(PLAIN)
    with pytest.raises(ConfigError, match=r"transformers, which needs no stage lm; .*awd_lstm"):
        run_stage(STAGE, Job(replace(PLAIN, output=str(tmp_path)), RunContext()))
    assert list(tmp_path.iterdir()) == []


def test_stages_run_the_encoder_that_was_trained(tmp_path: Path) -> None:
    for config in (PLAIN, LSTM):
        job = Job(replace(config, output=str(tmp_path)), RunContext())
        own = str(tmp_path / LANGUAGE_MODEL)
        assert job.encoder.name == (own if config is LSTM else PLAIN.encoder.name)
        assert replace(job.encoder, name="") == replace(config.encoder, name="")
