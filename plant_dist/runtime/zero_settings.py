"""The settings of DeepSpeed, derived from ours: one truth, with raw entries laid over it.

What a setting of ours decides may not be said a second time in DeepSpeed's words: it is refused and
the setting named. Needs no DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import ConfigError

# Gradients exchanged at a time: 64 MiB in fp32. By default DeepSpeed gathers 500 million, so that
# models below that exchange nothing before the backward pass ends, and two such buffers take 4 GB.
BUCKET_NUMBERS = 2**24
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
# DeepSpeed's entries that a setting of ours decides.
DECIDED = {
    "zero_optimization.stage": "runtime.engine",
    "zero_optimization.offload_optimizer": "runtime.offload",
    "zero_optimization.offload_param": "runtime.offload",
    "zero_optimization.cpu_offload": "runtime.offload",
    "fp16": "runtime.precision",
    "bf16": "runtime.precision",
    "torch_autocast": "runtime.precision",
    "gradient_clipping": "train.optim.clip_norm",
    "gradient_accumulation_steps": "train.accumulation",
    "train_batch_size": "train.documents_per_batch",
    "train_micro_batch_size_per_gpu": "train.documents_per_batch",
    "optimizer": "train.optim",
    "scheduler": "train.optim.schedule",
}


def zero_settings(
    runtime: RuntimeConfig, clip_norm: float | None = None, device: str = "cuda"
) -> dict[str, Any]:
    """Return DeepSpeed's configuration for an engine of ours.

    Args:
        runtime: engine, offload, and what is laid over (`runtime.deepspeed`).
        clip_norm: largest gradient norm; None never clips.
        device: cpu or cuda.

    Raises:
        ConfigError: an entry laid over says what a setting of ours decides.
    """
    host = {"device": "cpu", "pin_memory": device != "cpu"}
    zero: dict[str, Any] = {
        "stage": STAGES[runtime.engine],
        # Gradients are exchanged while the backward pass still computes.
        "overlap_comm": device != "cpu",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET_NUMBERS,
    }
    if runtime.offload != "none":
        zero["offload_optimizer"] = host
    if runtime.offload == "parameters":
        zero["offload_param"] = host
    derived = {
        # Batches are ours: they are cut by documents or tokens, and the loop counts them.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        # The optimizer is ours: torch's AdamW, also where its state lies in host memory.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # What it would print stands in TensorBoard and `plant-dist status`.
        "steps_per_print": 2**31,
        "zero_optimization": zero,
    }
    check_overrides(runtime.deepspeed)
    return _laid_over(derived, runtime.deepspeed)


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Check that raw entries leave alone what settings of ours decide.

    Raises:
        ConfigError: one does not; names both.
    """
    for name, value in flattened(overrides):
        for entry, ours in DECIDED.items():
            if name == entry or name.startswith(f"{entry}."):
                raise ConfigError(
                    f"runtime.deepspeed sets {name} to {value}, which {ours} decides; remove it "
                    f"and set {ours}"
                )


def flattened(settings: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `section.key` and value of every entry."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{inside}{key}.")
        else:
            yield f"{inside}{key}", value


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged
