"""When ranks exchange gradients, and when they compute them: the profile of one backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from plant_dist.config.schema import RuntimeConfig
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engines import build_engine

LAYERS, WIDTH = 12, 512
BACKWARD = "the backward pass"
# What computes the gradients of a layer; stage 3 brings a layer of its own.
LAYER = ("MmBackward0", "LinearFunctionForZeroStage3Backward")
# Of ZeRO: four layers. DDP's first bucket is a MiB, one layer.
BUCKET = 4 * WIDTH * WIDTH


def exchanged(context: RunContext, engine_name: str) -> dict[str, Any]:
    """Return microseconds of a backward pass of twelve layers, after one that sets things up.

    Returns: `backward`: when it begins and ends; `layers`: when each layer's gradient begins;
        `exchanges`: when each exchange between ranks is handed to the process group. The thread
        that computes gradients does that, so the order is the same however busy the machine is;
        when gloo's own threads then begin is not.
    """
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters())
    zero = {"engine": engine_name, "deepspeed": {"zero_optimization": {
        "reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 0,
        # As on a GPU, where the exchange goes on in a stream of its own.
        "overlap_comm": True,
    }}}  # fmt: skip
    runtime = RuntimeConfig() if engine_name == "ddp" else RuntimeConfig(**zero)
    engine = build_engine(context, runtime, None, False)
    wrapped = engine.prepare(model, optimizer)
    wrapped.train()
    for number in range(2):
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
            with engine.accumulate(wrapped, last=True):
                loss = wrapped(torch.randn(64, WIDTH)).square().mean()
                with record_function(BACKWARD):
                    engine.backward(loss)
            engine.update([list(model.parameters())], None)
        if number == 1:
            found = [(one.name, one.time_range.start, one.time_range.end) for one in seen.events()]
    engine.release(wrapped)
    return {
        "backward": next([start, end] for name, start, end in found if name == BACKWARD),
        "layers": sorted(start for name, start, _ in found if name in LAYER),
        "exchanges": sorted(start for name, start, _ in found if name.startswith("c10d::")),
    }
