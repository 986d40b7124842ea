"""What a launcher says of engine and precision, held against the config.

`accelerate launch` hands its own settings on in the environment, where Accelerate would obey them
without a word; the config decides here, so that what says otherwise is refused, and what says the
same is taken out of the environment before Accelerate sees it.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError

TRUE = ("y", "yes", "t", "true", "on", "1")  # the words that Accelerate itself takes for true
_PREFIX = "ACCELERATE_DEEPSPEED_"
# `none` is what Accelerate says where nothing was asked for.
_NOTHING = ("", "none", "no", "false", "1")


def reconcile(runtime: RuntimeConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """Check the launcher's settings against the config's, and clear them.

    Raises:
        RuntimeSetupError: the launcher says otherwise; names both and the fix.
    """
    if runtime.engine == "fsdp2":
        raise RuntimeSetupError(
            "runtime.engine is fsdp2, which Accelerate ignores on a CPU, running something else, "
            "and which has not been tried on GPUs; set runtime.engine=zero3, which shares out the "
            "same"
        )
    for kind, flag in (("FSDP", "--use_fsdp"), ("MEGATRON_LM", "--use_megatron_lm")):
        if _says(environment, f"ACCELERATE_USE_{kind}"):
            raise RuntimeSetupError(
                f"the launcher asks for {kind}, but runtime.engine is {runtime.engine}; leave "
                f"{flag} out, or run `accelerate config default` to forget it"
            )
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in (*_NOTHING, runtime.precision):
        raise RuntimeSetupError(
            f"the launcher asks for --mixed_precision {precision}, but runtime.precision is "
            f"{runtime.precision}; say --mixed_precision no, or set runtime.precision={precision}"
        )
    if _says(environment, "ACCELERATE_USE_DEEPSPEED"):
        _check_deepspeed(runtime, environment)
    for name in list(environment):
        # What remains says what the config says; read again, it would set up a second engine.
        if name.startswith(_PREFIX) or name == "ACCELERATE_USE_DEEPSPEED":
            del environment[name]


def _check_deepspeed(runtime: RuntimeConfig, environment: MutableMapping[str, str]) -> None:
    own = environment.get(f"{_PREFIX}CONFIG_FILE", "")
    if own.lower() not in _NOTHING:
        raise RuntimeSetupError(
            f"the launcher brings DeepSpeed settings of its own ({own}), but they follow from "
            f"runtime.engine={runtime.engine}; leave --deepspeed_config_file out, and put what it "
            "sets under runtime.deepspeed"
        )
    stage = environment.get(f"{_PREFIX}ZERO_STAGE", "")
    if runtime.engine != f"zero{stage}":
        raise RuntimeSetupError(
            f"the launcher asks for DeepSpeed's ZeRO stage {stage or '(none named)'}, but "
            f"runtime.engine is {runtime.engine}; leave --use_deepspeed out, or set "
            f"runtime.engine=zero{stage or 2}"
        )
    for what, wanted in (
        ("OPTIMIZER", runtime.offload != "none"), ("PARAM", runtime.offload == "parameters"),
    ):  # fmt: skip
        device = environment.get(f"{_PREFIX}OFFLOAD_{what}_DEVICE", "")
        if device.lower() not in _NOTHING and not (wanted and device == "cpu"):
            raise RuntimeSetupError(
                f"the launcher asks for --offload_{what.lower()}_device {device}, but "
                f"runtime.offload is {runtime.offload}; leave it out, or set runtime.offload="
                f"{'optimizer' if what == 'OPTIMIZER' else 'parameters'}"
            )


def _says(environment: MutableMapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in TRUE
