"""What `--dry-run` says: which stages would run and why, and how large the model would be.

Reads manifests and the encoder's config; loads no weights and no documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoConfig

from plant_dist.artifacts import Manifest, read_manifest
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import load_tokenizer, locate_pretrained
from plant_dist.errors import PlantError
from plant_dist.labels.choice import plan_rows
from plant_dist.models import lstm
from plant_dist.models.decoder import label_fields
from plant_dist.models.language_model import LanguageModel
from plant_dist.runtime.context import RunContext, check_precision, choose_device
from plant_dist.stages.pipeline import (
    Job,
    Stage,
    run_folder,
    state_of,
    trains_language_model,
)
from plant_dist.stages.prepare import tokenizer_name
from plant_dist.stages.rows import free_bytes

FLOAT = 4  # bytes
ADAM = 4  # weights, gradients and Adam's two moments, of the weights' size each


def describe_plan(config: Config, stages: Sequence[Stage]) -> str:
    """Return the plan as text.

    Raises:
        RuntimeSetupError: the device or precision asked for is not there.
    """
    device = choose_device(config.runtime.device)
    check_precision(config.runtime.precision, device)
    lines = [
        f"run      {config.name} in {run_folder(config)}",
        f"device   {device}, {config.runtime.precision}",
        f"corpus   {config.data.reader}: {_source(config)}",
    ]
    job = Job(config, RunContext())
    fresh = True
    for stage in stages:
        # What follows a stage that would run hangs on a manifest that does not exist yet.
        state = _state(stage, job) if fresh else "after the stage above"
        fresh = fresh and state == "up to date"
        lines.append(f"{stage.name:<8} {state}")
    return "\n".join([*lines, *_sizes(config)])


def _source(config: Config) -> str:
    return config.data.path or config.data.train_path or "built in"


def _state(stage: Stage, job: Job) -> str:
    """Say what would happen to a stage, also where its sources are not at hand."""
    parents = {name: read_manifest(job.artifact(name)) for name in stage.parents(job.config)}
    missing = [name for name, manifest in parents.items() if manifest is None]
    if missing:
        return f"would run, once there is: {', '.join(missing)}"
    # Without the checks of `expected_manifest`: a plan describes and refuses nothing.
    try:
        expected = Manifest(
            stage.name,
            dict(stage.settings(job.config)),
            {name: manifest.digest for name, manifest in parents.items() if manifest},
            dict(stage.sources(job)),
        )
    except PlantError as error:
        return f"cannot run yet: {error}"
    state = state_of(stage, job, expected)
    return state if state == "up to date" else f"would run: {state}"


def _sizes(config: Config) -> list[str]:
    """Estimate parameters, memory and steps from what is known without loading anything."""
    try:
        name, width, vocabulary, body, trains = _encoder(config)
    except (PlantError, OSError, ValueError):
        return [f"encoder  {config.encoder.name}: not on this machine; sizes unknown"]
    lines = [f"encoder  {name}: about {body / 1e6:.1f} M parameters, {width} wide"]
    folder = run_folder(config) / "dataset"
    if read_manifest(folder) is None:
        return [*lines, "labels   known after the stage prepare"]
    dataset = PreparedDataset.load(folder)
    count = len(dataset.label_space)
    per_label = _numbers_per_label(config, width)
    table = _ranker_numbers(config, vocabulary)
    trained = per_label * count + table + (0 if config.train.optim.freeze_encoder else trains)
    lines.append(
        f"labels   {count} x {per_label} numbers = {_gib(per_label * count * FLOAT)}; with the "
        f"ranker, the encoder and Adam {_gib(trained * FLOAT * ADAM)} per process"
    )
    return [*lines, *_rows(config, count, width), _steps(config, dataset)]


def _rows(config: Config, count: int, width: int) -> list[str]:
    """Say how label rows would be kept, by the processes that the config asks for."""
    rank_width = width if config.rank.kind == "contextual" else config.rank.width
    widths = label_fields(config.model, width, rank_width)
    # A plan is made by one process; `runtime.processes` says how many would train.
    ranks, free = config.runtime.processes or 1, free_bytes(RunContext())
    return [f"rows     {plan_rows(config.labels, count, widths, ranks, free / ranks)}"]


def _encoder(config: Config) -> tuple[str, int, int, int, int]:
    """Return what the encoder is, its width, its token ids, its parameters, and those that train.

    The last two are estimates; frozen encoders are not considered.
    """
    if trains_language_model(config):
        vocabulary = len(load_tokenizer(tokenizer_name(config)))
        # On the meta device a model has shapes and no weights.
        with torch.device("meta"):
            model = LanguageModel.from_config(config.lstm, vocabulary).lstm
        size = sum(parameter.numel() for parameter in model.parameters())
        return f"AWD-LSTM, {config.lstm.direction}", config.lstm.width, vocabulary, size, size
    # Never from the net: plans are made on login nodes, too.
    lstm.register()
    encoder = AutoConfig.from_pretrained(
        locate_pretrained(config.encoder.name), local_files_only=True
    )
    width, vocabulary = int(encoder.hidden_size), int(encoder.vocab_size)
    blocks = int(getattr(encoder, "num_hidden_layers", 0))
    inner = int(getattr(encoder, "intermediate_size", 4 * width))
    # A block's four D×D projections and two of D×inner; biases and norms do not show beside them.
    body = vocabulary * width + blocks * (4 * width * width + 2 * width * inner)
    rank = config.encoder.lora_rank
    # Beside each of a block's layers, a matrix as tall as it is wide on either side.
    adapters = 0 if rank is None else blocks * rank * (8 * width + 2 * (width + inner))
    return config.encoder.name, width, vocabulary, body, body if rank is None else adapters


def _numbers_per_label(config: Config, width: int) -> int:
    branches = config.model.branches
    # A contextual factor is a query over hidden states, hence as wide as they are.
    rank_width = width if config.rank.kind == "contextual" else config.rank.width
    gates = len(branches) if config.model.gates == "learned" else 0
    return (
        width + 1 + gates
        + (width if "learned" in branches else 0)
        + (rank_width if "planted" in branches else 0)
    )  # fmt: skip


def _ranker_numbers(config: Config, vocabulary: int) -> int:
    if "planted" not in config.model.branches:
        return 0
    # A bias for each token; factors too, where they are a table and not the encoder's states.
    return vocabulary * (1 + (config.rank.width if config.rank.kind == "lexical" else 0))


def _steps(config: Config, dataset: PreparedDataset) -> str:
    lengths = np.asarray(dataset.token_csr("train").lengths())
    segmentation = Segmentation.of(config.tokens, dataset.tokenizer())
    # The sampler that training uses, so that batches are counted and not estimated.
    sampler = BatchSampler(
        lengths, segmentation,
        documents_per_batch=config.train.documents_per_batch,
        tokens_per_batch=config.train.tokens_per_batch,
        bucket_batches=config.train.bucket_batches, seed=config.seed,
    )  # fmt: skip
    batches = sampler.count(0)
    steps = math.ceil(batches / config.train.accumulation) * config.train.epochs
    padded = int(segmentation.padded(lengths).sum())
    return (
        f"steps    {steps}: {config.train.epochs} epochs of {len(lengths)} documents in {batches} "
        f"batches, about {padded / 1e6:.2f} M padded tokens an epoch"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
