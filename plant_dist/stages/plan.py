"""What `--dry-run` says: which stages would run and why, and how large the model would be.

Reads manifests and the encoder's config; loads no weights and no documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from plant_dist.artifacts import Manifest, read_manifest
from plant_dist.config.schema import Config
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens, load_tokenizer
from plant_dist.errors import ConfigError, PlantError
from plant_dist.labels.choice import RowsPlan, plan_rows
from plant_dist.models.language_model import LanguageModel
from plant_dist.models.shapes import (
    EncoderShape,
    architecture,
    check_encoder,
    encoder_shape,
    shape_of,
)
from plant_dist.runtime.context import (
    RunContext,
    announced_world,
    choose_device,
    choose_precision,
)
from plant_dist.runtime.memory import free_bytes
from plant_dist.runtime.zero_settings import STAGES, flattened, zero_settings
from plant_dist.stages.estimate import (
    CorpusSizes,
    Part,
    label_widths,
    parts_of,
    share_of,
    step_of,
    steps_of,
)
from plant_dist.stages.pipeline import (
    Job,
    Stage,
    run_folder,
    state_of,
    trains_language_model,
)
from plant_dist.stages.prepare import tokenizer_name
from plant_dist.stages.training import check_batch

# Before there is a tokenizer: one at either end, as most have.
USUAL_SPECIAL_TOKENS = SpecialTokens((0,), (0,), 0)


def describe_plan(config: Config, stages: Sequence[Stage]) -> str:
    """Return the plan as text.

    Raises:
        RuntimeSetupError: the device or precision asked for is not there.
    """
    device = choose_device(config.runtime.device)
    precision = choose_precision(config.runtime.precision, device)
    # Sizes are those of the arithmetic that would run.
    config = replace(config, runtime=replace(config.runtime, precision=precision))
    lines = [
        f"run      {config.name} in {run_folder(config)}",
        f"device   {device}, {precision}",
        *_engine(config, device),
        *_refusals(config, stages),
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


def _engine(config: Config, device: str) -> list[str]:
    """Say what DeepSpeed would be told, raw entries included; nothing under DDP."""
    runtime = config.runtime
    if runtime.engine not in STAGES:
        return []
    told = zero_settings(runtime, config.train.optim.clip_norm, device)
    return [f"engine   {runtime.engine}, offload {runtime.offload}; DeepSpeed's settings:",
            *(f"         {name} = {value}" for name, value in flattened(told))]  # fmt: skip


def _refusals(config: Config, stages: Sequence[Stage]) -> list[str]:
    """Say what would be refused: a reader's options, an encoder, so many processes."""
    checks: list[Callable[[], object]] = [partial(open_corpus, config.data)]
    if any(stage.encodes for stage in stages) and not trains_language_model(config):
        checks.append(partial(check_encoder, config.encoder, config.tokens.segment_tokens))
    # Where there is nothing to go on from.
    checks.append(partial(check_batch, config.train, _world(config), resuming=False))
    refused = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            refused.append(f"refused  {error}")
        except PlantError:
            # Files and packages may be elsewhere.
            pass
    return refused


def _world(config: Config) -> int:
    return config.runtime.processes or announced_world()


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
        name, encoder = _encoder(config)
    except (PlantError, OSError, ValueError) as error:
        return [f"encoder  {config.encoder.name}: sizes unknown; {str(error).splitlines()[0]}"]
    adapted = "" if encoder.trained == encoder.parameters else (
        f", {encoder.trained / 1e6:.1f} M of them trained"
    )  # fmt: skip
    millions = f"{encoder.parameters / 1e6:.1f} M parameters"
    lines = [f"encoder  {name}: {millions}{adapted}, {encoder.width} wide"]
    sizes = _corpus_sizes(config)
    if sizes is None:
        return [*lines, "labels   known after the stage prepare; or set plan.labels and its like"]
    counted = "" if sizes.batches is not None else " (plan.labels)"
    world = _world(config)
    rows = plan_rows(
        config.labels, sizes.labels, label_widths(config, encoder.width), world,
        free_bytes(RunContext()) / world,
        shortlisted=config.train.labels == "shortlist", rowwise=config.train.optim.rowwise,
    )  # fmt: skip
    return [
        *lines,
        f"labels   {sizes.labels}{counted} x {rows.numbers} numbers",
        f"rows     {rows}",
        *_memory(config, encoder, sizes, world, rows),
        _steps(config, sizes),
    ]


def _encoder(config: Config) -> tuple[str, EncoderShape]:
    """Return what the encoder is and its sizes."""
    if not trains_language_model(config):
        return config.encoder.name, encoder_shape(config.encoder)
    # On the meta device a model has shapes and no weights.
    with torch.device("meta"):
        model = LanguageModel.from_config(config.lstm, _token_count(tokenizer_name(config))).lstm
    return f"AWD-LSTM, {config.lstm.direction}", shape_of(model)


def _token_count(tokenizer: str) -> int:
    try:
        return len(load_tokenizer(tokenizer))
    except PlantError:
        # As many as the model of that name embeds, where that is known without its files.
        return int(architecture(tokenizer).vocab_size)


def _corpus_sizes(config: Config) -> CorpusSizes | None:
    """Return the sizes that `prepare` has counted, else those of the section `plan`."""
    folder = run_folder(config) / "dataset"
    if read_manifest(folder) is not None:
        return _counted_sizes(config, PreparedDataset.load(folder))
    plan, longest = config.plan, config.tokens.max_document_tokens
    if plan.labels is None or plan.train_documents is None or plan.document_tokens is None:
        return None
    mean = min(plan.document_tokens, longest or plan.document_tokens)
    segmentation = Segmentation(
        config.tokens.segment_tokens, config.tokens.overlap_tokens, USUAL_SPECIAL_TOKENS
    )
    padded = segmentation.padded(np.array([mean, longest or mean]))
    return CorpusSizes(plan.labels, plan.train_documents, float(padded[0]), int(padded[1]))


def _counted_sizes(config: Config, dataset: PreparedDataset) -> CorpusSizes:
    lengths = np.asarray(dataset.token_csr("train").lengths())
    segmentation = Segmentation.of(config.tokens, dataset.tokenizer())
    # The sampler that training uses, so that batches are counted and not estimated.
    sampler = BatchSampler(
        lengths, segmentation,
        documents_per_batch=config.train.documents_per_batch,
        tokens_per_batch=config.train.tokens_per_batch,
        bucket_batches=config.train.bucket_batches, seed=config.seed,
    )  # fmt: skip
    padded = segmentation.padded(lengths)
    return CorpusSizes(
        len(dataset.label_space), len(lengths), float(padded.mean()), int(padded.max()),
        sampler.count(0),
    )  # fmt: skip


def _memory(
    config: Config, encoder: EncoderShape, sizes: CorpusSizes, world: int, rows: RowsPlan
) -> list[str]:
    """Say what a device holds while the classifier trains, part by part."""
    share = share_of(config, sizes, world)
    parts = parts_of(config, encoder, sizes.labels, rows, world)
    held = step_of(config, encoder, sizes.labels, share, rows)
    total = sum(part.total for part in parts) + sum(held.values())
    where = "the device" if world == 1 else f"each of {world} devices (runtime.processes)"
    lines = [f"memory   about {_gib(total)} on {where}; what torch takes for itself left out"]
    lines += [_part_line(part) for part in parts]
    batch = f"{share.documents} documents, {share.tokens} padded tokens"
    said = ", ".join(f"{name} {_gib(size)}" for name, size in held.items() if size)
    everything = _gib(sum(held.values()))
    return [*lines, f"         {'step':<13} {everything:>11}: {said}; of {batch}"]


def _part_line(part: Part) -> str:
    kinds = {"weights": part.weights, "gradients": part.gradients, "Adam": part.moments,
             "copies": part.copies}  # fmt: skip
    said = ", ".join(f"{kind} {_gib(size)}" for kind, size in kinds.items() if size)
    return f"         {part.name:<13} {_gib(part.total):>11}: {said}"


def _steps(config: Config, sizes: CorpusSizes) -> str:
    batches, steps = steps_of(config, sizes)
    padded = sizes.padded * sizes.documents / 1e6
    about = "" if sizes.batches is not None else "about "
    return (
        f"steps    {about}{steps}: {config.train.epochs} epochs of {sizes.documents} documents in "
        f"{batches} batches, about {padded:.2f} M padded tokens an epoch"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
