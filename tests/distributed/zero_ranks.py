"""What test_zero_ranks.py looks at: trainings under every engine, on one to three processes.

python zero_ranks.py --folder-of-results FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forked import fork_ranks
from label_ranks import SEGMENTATION, L, V, error_of, split, trained
from overlapping import exchanged
from tiny_task import PLAIN, AtStep, Curve, train_tiny

from plant_dist.config.schema import EvaluateConfig, OptimConfig, RuntimeConfig, TrainConfig
from plant_dist.errors import StopRequested
from plant_dist.models.adapters import add_adapters
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.encoder import SegmentEncoder, encoder_from_config
from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.loop import Trainer
from plant_dist.train.splits import Corpus

STEPS = 20
ENGINES = ("ddp", "zero1", "zero2", "zero3")
TWENTY = replace(PLAIN, epochs=4, max_steps=STEPS, schedule="cosine", warmup_fraction=0.2)
SETTINGS = {
    "plain": TWENTY,
    "clipped": replace(TWENTY, clip_norm=0.05),
    "accumulated": replace(TWENTY, accumulation=4, epochs=10),
}
# Engine by leg: each chain trains five steps on two processes, then on three, one and two.
LEGS = (2, 3, 1, 2)
CHAINS = {
    "zero1": ("zero1", "zero1", "zero1", "zero1"),
    "zero2": ("zero2", "zero2", "zero2", "zero2"),
    "zero3": ("zero3", "zero3", "zero3", "zero3"),
    "ddp": ("ddp", "ddp", "ddp", "ddp"),
    "to lower stages": ("zero3", "zero2", "zero1", "ddp"),
    "to higher stages": ("ddp", "zero1", "zero2", "zero3"),
    "back and forth": ("zero2", "ddp", "zero3", "zero1"),
}
LEG_STEPS = STEPS // len(LEGS)
CLIPPED = replace(SETTINGS["clipped"], keep_checkpoints=1)


def runtime_of(engine: str, **others: Any) -> RuntimeConfig:
    if engine == "ddp":
        return RuntimeConfig(**others)
    # Else weights as few as these would stay whole under stage 3.
    entries = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    return RuntimeConfig(engine=engine, deepspeed=entries, **others)


def outcome(context: RunContext, folder: Path, engine: str, settings: Any, **more: Any) -> Any:
    """Losses, gradient norms, metrics, final weights, and whether ranks agree on those."""
    curve, trainer = train_tiny(
        folder, settings, context, runtime=runtime_of(engine, **more.pop("runtime", {})), **more
    )
    weights = torch.cat([p.detach().flatten() for p in trainer.task.model.parameters()])
    both = gather_objects(context, weights.tolist())
    return {
        "losses": curve.losses,
        "norms": [list(report.gradient_norms.values()) for report in curve.reports],
        "metrics": [list(each.values()) for each in curve.metrics],
        "weights": both[0],
        "ranks agree": all(one == both[0] for one in both),
    }


def until(step: int) -> AtStep:
    """Stop after a step, saved, as a signal does."""
    return AtStep(step, lambda: os.kill(os.getpid(), signal.SIGUSR1))


def lora(context: RunContext, folder: Path, engine: str) -> list[float]:
    """Losses of adapters beside a small random causal model."""
    seed_everything(5)
    described = PlantConfig(
        decoder={"branches": ["learned"], "dropout": 0.0},
        encoder={"model_type": "llama", "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16},
        label_count=L, special_ids=[0, 2, 3],
        lora={"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": []},
    )  # fmt: skip
    backbone = encoder_from_config(described.encoder_config())
    # Frozen weights in half the bytes, adapters and rows in fp32.
    backbone.to(torch.bfloat16)
    add_adapters(backbone, described.lora or {})
    model = PlantForMultiLabelClassification(described, SegmentEncoder(backbone))
    train = split(23, 1)
    frequency = torch.bincount(torch.from_numpy(train.labels.values).long(), minlength=L)
    optim = OptimConfig(learning_rate=0.05, encoder_learning_rate=0.01)
    task = ClassifyTask(
        model, Corpus(train, split(9, 2), frequency, SEGMENTATION),
        TrainConfig(documents_per_batch=6, optim=optim), EvaluateConfig(ks=(1, 3)), context,
    )  # fmt: skip
    curve = Curve()
    loop = replace(PLAIN, epochs=2, best_metric="map", evaluate_epochs=2)
    Trainer(task, loop, context, folder, hooks=[curve], runtime=runtime_of(engine)).run()
    return curve.losses + [value for each in curve.metrics for value in each.values()]


def trains(context: RunContext, folder: Path) -> dict[str, Any]:
    """Everything that is compared between engines, on this many processes."""
    found: dict[str, Any] = {}
    for engine in ENGINES if context.world > 1 else ("ddp", "zero2"):
        place = folder / f"{context.world}" / engine
        for name, settings in SETTINGS.items():
            found[f"{engine} {name}"] = outcome(context, place / name, engine, settings)
        for rows in ("dense", "sharded"):
            here = place / rows
            found[f"{engine} {rows}"] = trained(context, here, rows, runtime=runtime_of(engine))
        found[f"{engine} lora"] = lora(context, place / "lora", engine)
    if context.world > 1:
        found["averaged"] = outcome(
            context, folder / f"averaged{context.world}", "zero2", replace(TWENTY, ema_decay=0.7)
        )
        for name in ("optimizer", "parameters"):
            found[f"offload {name}"] = outcome(
                context, folder / name, "zero3", SETTINGS["clipped"], runtime={"offload": name}
            )
        found["straight"] = outcome(context, folder / "straight", "zero2", TWENTY, dropout=0.3)
        with suppress(StopRequested):
            train_tiny(folder / "again", TWENTY, context, (until(7),), dropout=0.3,
                       runtime=runtime_of("zero2"))  # fmt: skip
        found["again"] = outcome(context, folder / "again", "zero2", TWENTY, dropout=0.3)
        found["exchanged"] = {one: exchanged(context, one) for one in ENGINES}
        found["errors"] = errors(context, folder)
    else:
        found["averaged"] = outcome(
            context, folder / f"averaged{context.world}", "ddp", replace(TWENTY, ema_decay=0.7)
        )
    return found


def errors(context: RunContext, folder: Path) -> dict[str, str]:
    """What is refused once the engine is made."""
    thawing = replace(PLAIN, unfreeze_epochs=(0.5, 1.5))
    tries: dict[str, Callable[[], Any]] = {
        "thawing": lambda: outcome(context, folder / "thawing", "zero1", thawing),
        "nothing shared": lambda: trained(
            context, folder / "frozen", "sharded", frozen=True, runtime=runtime_of("zero2")
        ),
    }
    return {name: error_of(attempt) for name, attempt in tries.items()}


def half(context: RunContext, folder: Path) -> dict[str, Any]:
    """The forward pass in bf16."""
    place = folder / "bf16"
    return {one: outcome(context, place / one, one, TWENTY)["losses"] for one in ENGINES}


def leg(context: RunContext, folder: Path, number: int) -> dict[str, list[float]]:
    """One leg of each chain: go on, and stop after some steps."""
    found = {}
    for name, engines in CHAINS.items():
        stop, curve = until((number + 1) * LEG_STEPS), Curve()
        with suppress(StopRequested):
            train_tiny(folder / "chains" / name, CLIPPED, context, (curve, stop),
                       runtime=runtime_of(engines[number]))  # fmt: skip
        found[name] = curve.losses
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    folder: Path = parser.parse_args().folder_of_results

    def written(name: str, compute: Callable[[RunContext], Any]) -> Callable[[RunContext], None]:
        def work(context: RunContext) -> None:
            found = compute(context)
            if context.is_main:
                (folder / f"{name}.json").write_text(json.dumps(found))

        return work

    for world in (1, 2):
        fork_ranks(world, written(f"trains{world}", lambda context: trains(context, folder)))
    fork_ranks(2, written("half", lambda context: half(context, folder)), precision="bf16")
    for number, world in enumerate(LEGS):
        go_on = partial(leg, folder=folder, number=number)
        fork_ranks(world, written(f"leg{number}", go_on))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  (before forking)
    import peft  # noqa: F401
    import torchrec  # noqa: F401

    main()
