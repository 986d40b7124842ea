import pytest

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError
from plant_dist.runtime.launchers import reconcile


def deepspeed(**others: str) -> dict[str, str]:
    """As `accelerate launch --use_deepspeed` leaves the environment."""
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
            "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none", **others}  # fmt: skip


def test_a_launcher_that_says_the_same_is_taken_out_of_the_environment() -> None:
    environment = deepspeed(HOME="x", ACCELERATE_MIXED_PRECISION="no")
    reconcile(RuntimeConfig(engine="zero2"), environment)
    assert environment == {"HOME": "x", "ACCELERATE_MIXED_PRECISION": "no"}


WRONG = {
    "another stage": (
        RuntimeConfig(engine="zero3"), deepspeed(),
        "stage 2, but runtime.engine is zero3; .*set runtime.engine=zero2",
    ),
    "none in the config": (
        RuntimeConfig(), deepspeed(), "stage 2, but runtime.engine is ddp; leave --use_deepspeed"
    ),
    "a file of its own": (
        RuntimeConfig(engine="zero2"), deepspeed(ACCELERATE_DEEPSPEED_CONFIG_FILE="ds.json"),
        r"settings of its own \(ds.json\).*leave --deepspeed_config_file out",
    ),
    "offload": (
        RuntimeConfig(engine="zero2"),
        deepspeed(ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="cpu"),
        "--offload_optimizer_device cpu, but runtime.offload is none; .*runtime.offload=optimizer",
    ),
    "precision": (
        RuntimeConfig(precision="fp32"), {"ACCELERATE_MIXED_PRECISION": "bf16"},
        "--mixed_precision bf16, but runtime.precision is fp32",
    ),
    "fsdp": (RuntimeConfig(), {"ACCELERATE_USE_FSDP": "true"}, "FSDP.*leave --use_fsdp out"),
    "fsdp2": (RuntimeConfig(engine="fsdp2"), {}, "ignores on a CPU.*set runtime.engine=zero3"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_launcher_that_says_otherwise_is_refused_with_the_fix(name: str) -> None:
    runtime, environment, words = WRONG[name]
    with pytest.raises(RuntimeSetupError, match=words) as error:
        reconcile(runtime, dict(environment))
    assert "\n" not in str(error.value)
