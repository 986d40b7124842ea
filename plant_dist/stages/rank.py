"""Stage `rank`: the gains become a pretrained ranker, whose scores are planted as attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plant_dist.artifacts import write_json
from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.mig.graded import GradedLists, graded_lists, hold_out
from plant_dist.mig.heldout import (
    HeldOutScores,
    by_chance,
    by_token_frequency,
    report_by_band,
)
from plant_dist.mig.lists import GainTable
from plant_dist.models.encoder import (
    SegmentEncoder,
    check_reads,
    encoder_identity,
    input_embeddings,
    load_encoder,
)
from plant_dist.models.planting import RankerState
from plant_dist.models.ranker import ContextualScorer, LexicalScorer
from plant_dist.stages.arrays import open_split, states_cache
from plant_dist.stages.pipeline import (
    RANKER,
    Job,
    Stage,
    parent_manifest,
    plants_ranker,
)
from plant_dist.stages.staging import open_dataset
from plant_dist.stages.training import check_encoder_early, trainer_for
from plant_dist.train import contextual_task
from plant_dist.train.contextual_task import ContextualRanker, ContextualRankTask
from plant_dist.train.loop import LoopSettings
from plant_dist.train.rank_task import LexicalRanker, LexicalRankTask

WEIGHTS = "ranker.safetensors"
REPORT = "report.json"
log = get_logger(__name__)


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the ranker depends on."""
    found = {"rank": identity_of(config.rank), "seed": config.seed}
    if config.rank.kind == "contextual":
        # Only this kind runs the encoder, and its hidden states are rounded as these two say.
        found |= {"precision": config.runtime.precision, "cache": config.encoder.cache}
    return found


def sources(job: Job) -> Mapping[str, str]:
    """Return a hash of the encoder, where the ranker starts from it."""
    starts = job.config.rank.init == "embeddings" or job.config.rank.kind == "contextual"
    return {"encoder": encoder_identity(job.encoder)} if starts else {}


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Train the ranker, measure it on held-out pairs, and save it."""
    config = job.config
    dataset = open_dataset(job)
    gains = GainTable.load(job.artifact("gains"))
    # Before any list is drawn, so that training cannot see what it will be measured on.
    lists = hold_out(graded_lists(gains, config.rank.grades), config.rank.validation_fraction,
                     config.seed)  # fmt: skip
    task = _task(job, dataset, lists, gains)
    loop = LoopSettings.for_ranker(config.rank, task.best_metric)
    trainer = trainer_for(STAGE, job, task, loop)
    result = trainer.run()
    # On every rank, since measuring gathers.
    report = _report(_measured(task, gains), gains, result.steps)
    trainer.tracker.close()
    if folder is not None:
        _save(folder, task.model)
        write_json(folder / REPORT, report)
    return parent_manifest("dataset", job).carries


def _task(
    job: Job, dataset: PreparedDataset, lists: GradedLists, gains: GainTable
) -> LexicalRankTask | ContextualRankTask:
    """Return the task of the kind of ranker that `rank.kind` names."""
    config, context, label_count = job.config, job.context, len(dataset.label_space)
    # Lexical rankers need it as well: for the size of its table, and often for its values.
    backbone, tokenizer = load_encoder(job.encoder), dataset.tokenizer()
    check_reads(backbone, len(tokenizer), config.tokens.segment_tokens)
    if config.rank.kind == "lexical":
        scorer = _lexical_scorer(config, input_embeddings(backbone).detach())
        ranker = LexicalRanker(scorer, label_count)
        return LexicalRankTask(ranker, lists, gains.token_documents, config.rank, context)
    encoder = SegmentEncoder(backbone).to(context.device)
    segmentation = Segmentation.of(config.tokens, tokenizer)
    contextual = ContextualRanker(
        ContextualScorer(encoder.width, encoder.vocabulary_size), label_count
    )
    contextual.start_from_rarity(gains.token_documents)
    # The documents that the gains were counted on.
    cache = states_cache(job, encoder, segmentation)
    split = open_split(dataset, dataset.planting_set, cache)
    return ContextualRankTask(contextual, encoder, split, segmentation, lists, config.rank, context)


def _lexical_scorer(config: Config, embeddings_VD: Tensor) -> LexicalScorer:
    scorer = LexicalScorer(len(embeddings_VD), config.rank.width)
    if config.rank.init == "embeddings":
        scorer.start_from_embeddings(embeddings_VD)
    return scorer


def _measured(
    task: LexicalRankTask | ContextualRankTask, gains: GainTable
) -> dict[str, HeldOutScores]:
    """Return held-out nDCG@k of the ranker and of baselines on the same lists. All ranks call."""
    if not len(task.held_out):
        return {}
    if isinstance(task, LexicalRankTask):
        return {
            "ranker": task.measure(task.score_with(task.model)),
            "token frequency": task.measure(by_token_frequency(gains.token_documents)),
            "chance": task.measure(by_chance(seed=0)),
        }
    frequency = gains.token_documents
    return {
        "ranker": task.measure(task.score_with(task.model)),
        "token frequency": task.measure(contextual_task.by_token_frequency(frequency)),
        # Inside one document rarity is the baseline to beat; see `contextual_task.rarity`.
        "token rarity": task.measure(contextual_task.by_token_frequency(frequency, rarest=True)),
        "chance": task.measure(contextual_task.by_chance()),
    }


def _report(systems: Mapping[str, HeldOutScores], gains: GainTable, steps: int) -> dict[str, Any]:
    """Return nDCG@k by band of training frequency of what was measured, and log it."""
    if not systems:
        log.warning("rank: no label has a token to hold out; the ranker was not validated")
        return {"steps": steps, "held_out_labels": 0}
    bands = {name: report_by_band(found, gains.label_documents) for name, found in systems.items()}
    for name, by_band in bands.items():
        shown = ", ".join(f"{k} {v:.3f}" for k, v in by_band["all"].items() if k != "labels")
        log.info("rank: held-out pairs, %s: %s", name, shown)
    held_out = len(systems["ranker"].labels)
    return {"steps": steps, "held_out_labels": held_out, "bands": bands}


def _save(folder: Path, ranker: nn.Module) -> None:
    assert isinstance(ranker, LexicalRanker | ContextualRanker)  # what the tasks train
    tensors = {f"scorer.{name}": part for name, part in ranker.scorer.state_dict().items()}
    tensors["factor"] = ranker.labels.fields["factor"].detach()
    # safetensors takes contiguous tensors only.
    save_file({name: part.cpu().contiguous() for name, part in tensors.items()}, folder / WEIGHTS)


def load_ranker(folder: Path, own: range | None = None) -> RankerState:
    """Load what this stage saved.

    Args: own: labels whose factors are read; all if None.

    Raises:
        ArtifactError: the file is missing or unreadable.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            # Of a mapped file: no factor is read that is not asked for.
            part = slice(own.start, own.stop) if own is not None else slice(None)
            tensors: dict[str, Tensor] = {
                name: opened.get_slice(name)[part] if name == "factor" else opened.get_tensor(name)
                for name in opened.keys()  # noqa: SIM118
            }
    except Exception as error:  # safetensors raises its own kinds
        raise ArtifactError(
            f"{folder / WEIGHTS} cannot be read ({error}); run the stage `rank` again"
        ) from None
    factor = tensors.pop("factor")
    scorer = {name.removeprefix("scorer."): part for name, part in tensors.items()}
    return RankerState(scorer=scorer, factor=factor.to(torch.float32))


STAGE = Stage(
    "rank", RANKER, ("dataset", "gains"), settings, build, sources, encodes=True,
    used=plants_ranker, check=check_encoder_early,
)  # fmt: skip
