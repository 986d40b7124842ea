"""What test_label_ranks.py looks at: label rows trained by both engines on one to four processes.

    python label_ranks.py --folder-of-results FOLDER [--worlds 1 2]

Imports once and forks each set of ranks, since importing takes longer than training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchrec  # noqa: F401  (before forking)
from forked import fork_ranks
from tiny_task import PLAIN, Curve

from plant_dist.config.schema import EvaluateConfig, OptimConfig, RuntimeConfig, TrainConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.sharded import ShardedRows
from plant_dist.labels.sparse import SparseRows
from plant_dist.labels.updates import LazyAdam, RowAdagrad
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.stages.rows import save_classifier
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.levels import refit_bands
from plant_dist.train.loop import Trainer
from plant_dist.train.optim import StartingPoint
from plant_dist.train.splits import Corpus, SplitArrays

L, V, STEPS = 11, 128, 20
# Widths that the kernel takes as they are, and some that it must fill up.
WIDTHS = {"boost": 8, "bias": 1, "query": 6, "factor": 5, "gate": 3}
SEGMENTATION = Segmentation(10, 2, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))


def rows_of(
    engine: str, world: int, count: int, widths: dict[str, int], adam: bool = False
) -> SparseRows:
    moves = LazyAdam() if adam else RowAdagrad()
    if engine == "replicated":
        return ReplicatedRows(count, widths, moves, ("gate",), world)
    return ShardedRows(count, widths, moves, ("gate",))


def whole(context: RunContext, rows: SparseRows) -> dict[str, Any]:
    """All rows and their optimizer's state, as lists; ranks with the same rows must agree."""
    found: dict[str, Any] = {}
    for name, local in rows.fields.items():
        parts = {"rows": local.detach(), **rows.state_of(name)}
        for part, tensor in parts.items():
            every = gather_objects(context, tensor.tolist())
            if len(rows.counts) == 1:
                assert all(one == every[0] for one in every)
                every = every[:1]
            found[f"{name}.{part}"] = [row for one in every for row in one]
    return found


# The classifier on the only loop.


def split(size: int, seed: int) -> SplitArrays:
    random = np.random.default_rng(seed)
    tokens = [random.integers(4, V, random.integers(1, 30)).tolist() for _ in range(size)]
    labels = [sorted(random.choice(L, random.integers(1, 4), replace=False).tolist())
              for _ in range(size)]  # fmt: skip
    return SplitArrays(
        csr_from_lists(tokens), csr_from_lists(labels), [f"d{n}" for n in range(size)]
    )


def classifier(
    engine: str, context: RunContext, named: bool = False
) -> PlantForMultiLabelClassification:
    """A small classifier; `dense` rows are the model's own table."""
    seed_everything(3)
    branches = ["learned", "planted", *(["named"] if named else [])]
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": branches, "planted_k": 4, "gates": "learned",
                     "dropout": 0.0, "attend_special": True},
            encoder={"model_type": "bert", "vocab_size": V, "hidden_size": 16,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                     "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            ranker={"width": 5}, label_count=L, special_ids=[0, 2, 3],
        ),
        make_rows=None if engine == "dense" else lambda count, widths, zero: rows_of(
            engine, context.world, count, dict(widths)
        ),
    )  # fmt: skip
    if named:
        # Names are drawn for all labels, and owners take theirs; the last has nothing else.
        rows, own = model.labels.fields, model.labels.own
        names = torch.nn.functional.normalize(torch.randn(L, 16), dim=1)
        with torch.no_grad():
            rows["name"].copy_(names[own.start : own.stop])
            rows["prior"].fill_(-2.0)
            rows["alone"].copy_((torch.arange(own.start, own.stop) == L - 1)[:, None])
    return model


def trained(
    context: RunContext, folder: Path, engine: str, frozen: bool = False, named: bool = False,
    runtime: RuntimeConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Losses of 20 steps, validation, the rows afterwards, and refitted to validation by band."""
    train = split(23, 1)
    frequency = torch.bincount(torch.from_numpy(train.labels.values).long(), minlength=L)
    corpus = Corpus(train, split(9, 2), frequency, SEGMENTATION)
    model = classifier(engine, context, named)
    if frozen:
        # Nothing but rows learns, so that DDP has no parameter.
        model.decoder.scorer.requires_grad_(False)
    # A rate at which rows move far in 20 steps; the last document batch is uneven.
    optim = OptimConfig(learning_rate=0.1, ranker_learning_rate=0.05, freeze_encoder=frozen)
    settings = TrainConfig(documents_per_batch=5, optim=optim)
    task = ClassifyTask(model, corpus, settings, EvaluateConfig(ks=(1, 3)), context)
    curve = Curve()
    loop = replace(PLAIN, epochs=4, max_steps=STEPS, best_metric="map", schedule="cosine",
                   accumulation=1, evaluate_epochs=2)  # fmt: skip
    Trainer(task, loop, context, folder, hooks=[curve], runtime=runtime).run()
    # As `plant-dist train` does at its end; only owners have sharded rows.
    save_classifier(model, folder / "classifier" if context.is_main else None, context)
    metrics = [each["map"] for each in curve.metrics]
    found: dict[str, Any] = {"losses": curve.losses, "metrics": metrics, "rows": None}
    if engine != "dense":
        found["rows"] = whole(context, model.labels)
        found["bands"] = refit_bands(task, model).tolist()
        found["refit"] = whole(context, model.labels)
    return found


# Rows by themselves: saved on two ranks, gone on with on others.


def stepped(
    context: RunContext, rows: SparseRows, steps: range, passes: int = 1
) -> list[float]:  # fmt: skip
    """Make steps of a loss that uses every field; return the losses."""
    groups = [
        {"params": [p for name, p in rows.fields.items() if name != "factor"], "lr": 0.1},
        {"params": [rows.fields["factor"]], "lr": 0.05},
    ]
    optimizer = torch.optim.SGD(groups)
    world, losses = context.world, []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        # Twelve documents divide among one, two, three and four ranks.
        ids = torch.randint(0, L, (12, 5), generator=generator)
        wanted = torch.randn(12, 5, generator=generator)
        inputs = {n: torch.randn(12, 5, w, generator=generator) for n, w in WIDTHS.items()}
        mine = torch.arange(12)[context.rank * 12 // world : (context.rank + 1) * 12 // world]
        rows.begin(optimizer)
        total = torch.zeros(())
        for part in mine.tensor_split(passes):
            found = rows.fetch(ids[part]).columns(0, 5)
            scores = sum((found[n] * inputs[n][part]).sum(-1) for n in WIDTHS)
            loss = (scores - wanted[part]).square().sum() / 12 * world
            loss.backward()
            total += loss.detach()
        rows.step()
        losses.append(sum(gather_objects(context, total.item())) / world)
    return losses


def saving(context: RunContext, folder: Path, engine: str, adam: bool) -> dict[str, Any]:
    seed_everything(1)
    rows = rows_of(engine, context.world, L, WIDTHS, adam)
    stepped(context, rows, range(10))
    if engine == "sharded" or context.is_main:
        rows.save(folder)
    return {"after": stepped(context, rows, range(10, STEPS)), "rows": whole(context, rows)}


def resumed(context: RunContext, folder: Path, engine: str, adam: bool) -> dict[str, Any]:
    seed_everything(2)
    rows = rows_of(engine, context.world, L, WIDTHS, adam)
    rows.load(folder)
    return {"after": stepped(context, rows, range(10, STEPS)), "rows": whole(context, rows)}


def accumulated(context: RunContext, engine: str) -> list[float]:
    """Losses of steps of two passes, which must be those of steps of one."""
    seed_everything(1)
    rows = rows_of(engine, context.world, L, WIDTHS)
    return stepped(context, rows, range(6), passes=2)


def counted(context: RunContext) -> list[int]:
    """The step that a kernel's Adam would be at, after two steps of two passes and validations."""
    rows = rows_of("sharded", context.world, L, WIDTHS)
    stepped(context, rows, range(2), passes=2)
    with torch.no_grad():
        for _ in range(5):
            rows.fetch(torch.tensor([[1, 2]]))
    rows.fetch(torch.tensor([[3]]))
    counters = [(one.emb_module.iter, one.emb_module.iter_cpu) for one in rows._kernels()]
    return [int(counter) for pair in counters for counter in pair]


def settled(context: RunContext, folder: Path) -> list[str]:
    """What kernels are told to do with their caches, when rows are read and when written."""
    rows, told = rows_of("sharded", context.world, L, WIDTHS), []
    for kernel in rows._kernels():
        kernel.flush = lambda: told.append("flush")
        kernel.purge = lambda: told.append("purge")
    rows.snapshot()
    rows.load(folder)
    StartingPoint(rows).mix(0.5)
    return told


def error_of(compute: Callable[[], Any]) -> str:
    try:
        compute()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def on_each(context: RunContext, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    world = context.world
    for engine in ("replicated", "sharded"):
        if world <= 2:
            found[engine] = trained(context, folder / f"{engine}{world}", engine)
            found[f"{engine} frozen"] = trained(
                context, folder / f"frozen {engine}{world}", engine, frozen=True
            )
            found[f"{engine} named"] = trained(
                context, folder / f"named {engine}{world}", engine, named=True
            )
            found[f"{engine} accumulated"] = accumulated(context, engine)
        place = folder / engine
        if world == 2:
            place.mkdir(exist_ok=True)
            dist.barrier()
            found[f"{engine} saved"] = saving(context, place, engine, adam=False)
        else:
            found[f"{engine} resumed"] = resumed(context, place, engine, adam=False)
    if world == 2:
        (folder / "adam").mkdir(exist_ok=True)
        dist.barrier()
        found["adam saved"] = saving(context, folder / "adam", "replicated", adam=True)
        # A rank without a label, and an optimizer that the kernel has on GPUs alone.
        found["too few labels"] = error_of(lambda: rows_of("sharded", 2, 1, WIDTHS))
        found["lazy adam"] = error_of(lambda: rows_of("sharded", 2, L, WIDTHS, adam=True))
    elif world == 1:
        found["adam resumed"] = resumed(context, folder / "adam", "replicated", adam=True)
        found["counted"] = counted(context)
        found["settled"] = settled(context, folder / "sharded")
        found["crossed resumed"] = resumed(context, folder / "sharded", "replicated", adam=False)
    return found


def write_found(context: RunContext, folder: Path) -> None:
    found = on_each(context, folder)
    if context.is_main:
        (folder / f"found{context.world}.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    # Two first: they save what the others go on with.
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 1, 3, 4])
    options = parser.parse_args()
    for world in options.worlds:
        fork_ranks(world, lambda context: write_found(context, options.folder_of_results))


if __name__ == "__main__":
    main()
