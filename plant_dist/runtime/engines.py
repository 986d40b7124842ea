"""Which engine a config asks for."""

from __future__ import annotations

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError
from plant_dist.logs import get_logger
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.runtime.zero import ZeroEngine
from plant_dist.runtime.zero_settings import STAGES, flattened

log = get_logger(__name__)


def build_engine(
    context: RunContext, runtime: RuntimeConfig, clip_norm: float | None, unused_parameters: bool
) -> Engine:
    """Return the engine that `runtime.engine` names.

    Args:
        clip_norm: largest gradient norm; None never clips.
        unused_parameters: a step may leave parameters without a gradient.

    Raises:
        RuntimeSetupError: it needs a package that is not installed, or cannot train this.
        ConfigError: `runtime.deepspeed` says what a setting of ours decides.
    """
    if runtime.engine not in STAGES:
        return Engine(context, unused_parameters)
    if unused_parameters:
        raise RuntimeSetupError(
            f"runtime.engine is {runtime.engine}, but parameters thaw later, which it would move "
            "before; set runtime.engine=ddp"
        )
    log.info("engine: %s, offload %s", runtime.engine, runtime.offload)
    for name, value in flattened(runtime.deepspeed):
        log.info("engine: runtime.deepspeed sets %s to %s", name, value)
    return ZeroEngine(context, runtime, clip_norm)
