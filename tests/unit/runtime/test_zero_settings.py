from pathlib import Path
from typing import Any

import pytest

from plant_dist.cli import main
from plant_dist.config.load import load_config
from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import ConfigError
from plant_dist.runtime.zero_settings import DECIDED, zero_settings


def test_settings_follow_from_ours() -> None:
    runtime = RuntimeConfig(engine="zero3", offload="parameters")
    found = zero_settings(runtime, clip_norm=0.5, device="cuda")
    assert found["gradient_clipping"] == 0.5
    zero = found["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"]) == (3, True)
    host = {"device": "cpu", "pin_memory": True}
    assert zero["offload_optimizer"] == zero["offload_param"] == host
    plain = zero_settings(RuntimeConfig(engine="zero1"), clip_norm=None, device="cpu")
    assert plain["gradient_clipping"] == 0.0
    assert plain["zero_optimization"] == {
        "stage": 1, "overlap_comm": False, "contiguous_gradients": True,
        "reduce_bucket_size": 16_777_216,
    }  # fmt: skip


def test_raw_entries_are_laid_over() -> None:
    entries = {"zero_optimization": {"reduce_bucket_size": 7}, "prescale_gradients": True}
    found = zero_settings(RuntimeConfig(engine="zero2", deepspeed=entries))
    assert found["zero_optimization"]["reduce_bucket_size"] == 7
    assert found["zero_optimization"]["stage"] == 2
    assert found["prescale_gradients"] is True


@pytest.mark.parametrize("name", DECIDED)
def test_what_ours_decide_is_refused(name: str) -> None:
    entries: dict[str, Any] = {name.rpartition(".")[2]: {"enabled": True}}
    if "." in name:
        entries = {name.partition(".")[0]: entries}
    runtime = RuntimeConfig(engine="zero2", deepspeed=entries)
    with pytest.raises(ConfigError, match=f"sets {name}.*which {DECIDED[name]} decides"):
        zero_settings(runtime)


WRONG = {
    "runtime.offload=optimizer": "runtime.engine is ddp, which offloads nothing",
    "runtime.offload=parameters runtime.engine=zero2": "set runtime.engine=zero3",
    "runtime.deepspeed.prescale_gradients=true": "ddp, which is not DeepSpeed",
    "runtime.engine=zero1 runtime.precision=fp16": "set runtime.precision=bf16",
    "runtime.engine=zero2 train.optim.unfreeze_epochs=[1.0]": "set runtime.engine=ddp",
    "runtime.engine=zero3 train.ema_decay=0.9": "set runtime.engine=zero2",
    "runtime.engine=zero2 encoder.load_in=4bit encoder.lora_rank=4": "encoder.load_in=bf16",
    "runtime.engine=zero4": "choose one of: ddp, zero1, zero2, zero3",
}


@pytest.mark.parametrize("words", WRONG)
def test_settings_that_do_not_go_together_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[words]):
        load_config(None, words.split())


def test_a_dry_run_shows_what_deepspeed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
    words = ["runtime.device=cpu", "runtime.engine=zero2", "train.optim.clip_norm=0.5",
             "runtime.deepspeed.prescale_gradients=true"]  # fmt: skip
    sets = [part for word in words for part in ("--set", word)]
    assert main(["train", "--config", str(config), "--dry-run", *sets]) == 0
    told = capsys.readouterr().out
    assert "engine   zero2, offload none" in told
    for line in ("zero_optimization.stage = 2", "gradient_clipping = 0.5",
                 "prescale_gradients = True"):  # fmt: skip
        assert f"         {line}\n" in told
