"""Adapters: what a large encoder learns beside its own weights, which stay as they are (LoRA).

`add_adapters` puts low-rank matrices beside linear layers, through `peft`; the model keeps its
class, its forward and its names. Also what holding those frozen weights in fewer bits needs. Knows
neither labels nor how anything is trained.

r rank of an adapter, n_in and n_out widths of the layer it stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from plant_dist.config.schema import EncoderConfig
from plant_dist.errors import ConfigError, RuntimeSetupError

# peft's names for the two matrices; all other parameters of an adapted encoder are frozen.
_MARK = ".lora_"


def adapter_settings(config: EncoderConfig) -> dict[str, Any] | None:
    """Return what decides an encoder's adapters, as plain values; None where it has none."""
    if config.lora_rank is None:
        return None
    return {
        "rank": config.lora_rank, "alpha": config.lora_alpha, "dropout": config.lora_dropout,
        "targets": list(config.lora_targets),
    }  # fmt: skip


def add_adapters(backbone: nn.Module, settings: Mapping[str, Any]) -> None:
    """Put W + α/r B A in the place of every target's W; freeze all but A (r, n_in), B (n_out, r).

    B starts at 0, so that nothing changes before the first step (Hu et al., ICLR 2022).

    Args:
        backbone: changed in place.
        settings: as `adapter_settings` gives them; no targets are all linear layers.

    Raises:
        RuntimeSetupError: peft is not installed.
        ConfigError: the encoder has no such layers.
    """
    _require("peft", "encoder.lora_rank is set")
    from peft import LoraConfig, inject_adapter_in_model

    wanted = LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=list(settings["targets"]) or "all-linear",
        # Only the two low-rank matrices learn.
        bias="none",
    )
    try:
        inject_adapter_in_model(wanted, backbone)
    except ValueError:
        raise ConfigError(
            f"encoder.lora_targets is {settings['targets']}, and the encoder has no such layers; "
            f"choose from: {', '.join(_linear_names(backbone))}"
        ) from None
    for parameter in adapter_parameters(backbone):
        # peft makes them like the frozen weights, in which small steps would round to nothing.
        parameter.data = parameter.data.float()


def _linear_names(backbone: nn.Module) -> list[str]:
    layers = [n for n, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in layers})


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module's adapters."""
    return [one for name, one in module.named_parameters() if is_adapter(name)]


def is_adapter(name: str) -> bool:
    """True for the name of an adapter's tensor."""
    return _MARK in f".{name}"


def weight_dtype(load_in: str) -> torch.dtype:
    """Return the type in which an encoder's own weights are computed with."""
    return torch.float32 if load_in == "fp32" else torch.bfloat16


def quantization(load_in: str) -> dict[str, Any]:
    """Return what `from_pretrained` takes for `encoder.load_in`: nothing, but for 4 bits.

    4-bit NormalFloat with the constants quantised again (Dettmers et al., NeurIPS 2023).

    Raises:
        RuntimeSetupError: there is no CUDA device, or bitsandbytes is not installed.
    """
    if load_in != "4bit":
        return {}
    if not torch.cuda.is_available():
        raise RuntimeSetupError(
            "encoder.load_in is 4bit, which needs a CUDA GPU, and there is none; "
            "set encoder.load_in=bf16"
        )
    _require("bitsandbytes", "encoder.load_in is 4bit")
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    # Packed where they are computed with: this process's own device.
    return {"quantization_config": how, "device_map": {"": torch.cuda.current_device()}}


@torch.no_grad()
def unpack(backbone: nn.Module) -> None:
    """Turn 4-bit layers into bf16 ones of the same values, which any machine can read.

    Changed in place; nothing happens where there are none.
    """
    # By name, so that bitsandbytes is not imported where nothing was packed.
    packed = [n for n, m in backbone.named_modules() if type(m).__name__ == "Linear4bit"
              and hasattr(getattr(m, "weight", None), "quant_state")]  # fmt: skip
    for name in packed:
        from bitsandbytes.functional import dequantize_4bit

        layer: Any = backbone.get_submodule(name)
        values = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)
        plain = nn.Linear(1, 1, bias=False)
        plain.in_features, plain.out_features = values.shape[1], values.shape[0]
        plain.weight = nn.Parameter(values, requires_grad=False)
        plain.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, plain)
    # Else a saved config would promise 4 bits.
    if packed:
        vars(backbone.config).pop("quantization_config", None)


def _require(package: str, why: str) -> None:
    if find_spec(package) is None:
        raise RuntimeSetupError(
            f"{why}, but {package} is not installed; run: pip install 'plant-dist[llm]'"
        )
