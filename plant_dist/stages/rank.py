"""Stage `rank`: the gains become a pretrained ranker, whose scores are planted as attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plant_dist.artifacts import write_json
from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.mig.graded import graded_lists, hold_out
from plant_dist.mig.heldout import by_chance, by_token_frequency, report_by_band
from plant_dist.mig.lists import GainTable
from plant_dist.models.encoder import encoder_identity, input_embeddings, load_encoder
from plant_dist.models.planting import RankerState
from plant_dist.models.ranker import LexicalScorer
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.pipeline import (
    Job,
    Stage,
    expected_manifest,
    parent_manifest,
    training_folders,
)
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.rank_task import LexicalRanker, LexicalRankTask

WEIGHTS = "ranker.safetensors"
REPORT = "report.json"
log = get_logger(__name__)


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the ranker depends on."""
    return {"rank": identity_of(config.rank), "seed": config.seed}


def sources(job: Job) -> Mapping[str, str]:
    """Return a hash of the encoder, where the ranker starts from it."""
    starts = job.config.rank.init == "embeddings" or job.config.rank.kind == "contextual"
    return {"encoder": encoder_identity(job.config.encoder)} if starts else {}


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Train the ranker, measure it on held-out pairs, and save it."""
    config, context = job.config, job.context
    dataset = PreparedDataset.load(job.artifact("dataset"))
    gains = GainTable.load(job.artifact("gains"))
    lists = hold_out(graded_lists(gains, config.rank.grades), config.rank.validation_fraction,
                     config.seed)  # fmt: skip
    model = LexicalRanker(_scorer(job), len(dataset.label_space))
    task = LexicalRankTask(model, lists, gains.token_documents, config.rank, context)
    checkpoints, curves_folder = training_folders(STAGE, job)
    tracker = Tracker(curves_folder, context)
    trainer = Trainer(
        task,
        LoopSettings.for_ranker(config.rank, task.best_metric),
        context,
        checkpoints,
        tracker,
        identity=expected_manifest(STAGE, job).digest,
    )
    result = trainer.run()
    report = _report(task, gains, result.steps)
    tracker.close()
    if folder is not None:
        _save(folder, model)
        write_json(folder / REPORT, report)
    return parent_manifest("dataset", job).carries


def _scorer(job: Job) -> LexicalScorer:
    config = job.config
    table = input_embeddings(load_encoder(config.encoder)).detach()
    scorer = LexicalScorer(len(table), config.rank.width)
    if config.rank.init == "embeddings":
        scorer.start_from_embeddings(table)
    return scorer


def _report(task: LexicalRankTask, gains: GainTable, steps: int) -> dict[str, Any]:
    """Return nDCG@k by band of the ranker and of two baselines on the same lists."""
    if not len(task.held_out):
        log.warning("rank: no label has a token to hold out; the ranker was not validated")
        return {"steps": steps, "held_out_labels": 0}
    systems = {
        "ranker": task.score_with(task.model),
        "token frequency": by_token_frequency(gains.token_documents),
        "chance": by_chance(seed=0),
    }
    bands = {
        name: report_by_band(task.measure(score), gains.label_documents)
        for name, score in systems.items()
    }
    for name, by_band in bands.items():
        shown = ", ".join(f"{k} {v:.3f}" for k, v in by_band["all"].items() if k != "labels")
        log.info("rank: held-out pairs, %s: %s", name, shown)
    return {"steps": steps, "held_out_labels": len(task.held_out), "bands": bands}


def _save(folder: Path, model: LexicalRanker) -> None:
    tensors = {f"scorer.{name}": part for name, part in model.scorer.state_dict().items()}
    tensors["factor"] = model.labels.fields["factor"].detach()
    save_file({name: part.cpu().contiguous() for name, part in tensors.items()}, folder / WEIGHTS)


def load_ranker(folder: Path) -> RankerState:
    """Load what this stage saved.

    Raises:
        ArtifactError: the file is missing or unreadable.
    """
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own kinds
        raise ArtifactError(
            f"{folder / WEIGHTS} cannot be read ({error}); run the stage `rank` again"
        ) from None
    factor = tensors.pop("factor")
    scorer = {name.removeprefix("scorer."): part for name, part in tensors.items()}
    return RankerState(scorer=scorer, factor=factor.to(torch.float32))


STAGE = Stage("rank", "ranker", ("dataset", "gains"), settings, build, sources)
