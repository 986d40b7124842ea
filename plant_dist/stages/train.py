"""Stage `train`: ranker, gains, label texts and encoder become a planted classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plant_dist.config.load import identity_of, resolved_yaml
from plant_dist.config.schema import Config
from plant_dist.data.prepared import LABEL_SPACE
from plant_dist.data.segments import Segmentation
from plant_dist.logs import get_logger
from plant_dist.models.adapters import unpack
from plant_dist.models.encoder import encoder_identity
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.arrays import open_training_corpus, states_cache
from plant_dist.stages.belongings import Belongings
from plant_dist.stages.pipeline import Job, Stage, parent_manifest
from plant_dist.stages.planted import planted_classifier
from plant_dist.stages.rows import rows_settings, save_classifier
from plant_dist.stages.saved import CALIBRATION, THRESHOLDS
from plant_dist.stages.shortlist import save_index, shortlists_for
from plant_dist.stages.staging import open_dataset
from plant_dist.stages.training import check_early, check_shares, trainer_for
from plant_dist.train.classify_task import ClassifyTask, Judged
from plant_dist.train.curves import ClassifierCurves
from plant_dist.train.hooks import Hook
from plant_dist.train.levels import refit_bands
from plant_dist.train.loop import LoopSettings
from plant_dist.train.optim import StartingPoint
from plant_dist.train.refresh import IndexRefresh

log = get_logger(__name__)


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the classifier depends on."""
    judged = identity_of(config.evaluate)
    # What it is compared with does not touch the classifier: adding some must not train it again.
    judged.pop("baselines")
    judged.pop("published")
    judged.pop("exact")
    narrowed = config.train.labels == "shortlist"
    return {
        "model": identity_of(config.model),
        "train": identity_of(config.train),
        "encoder": identity_of(config.encoder),
        # What shapes the modules; all else of the ranker counts through its artifact's hash.
        "rank": {"kind": config.rank.kind, "width": config.rank.width},
        # Cut-offs and budget shape validation, which chooses the best checkpoint.
        "evaluate": judged,
        "precision": config.runtime.precision,
        "seed": config.seed,
        # Only where it is used, so that other classifiers stay what they were.
        **({"shortlist": identity_of(config.shortlist)} if narrowed else {}),
        **rows_settings(config),
    }


def sources(job: Job) -> Mapping[str, str]:
    """Return a hash of the encoder's weights."""
    return {"encoder": encoder_identity(job.encoder)}


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Plant, train, tune thresholds on validation, and save the best classifier."""
    config, context = job.config, job.context
    check_shares(job)
    dataset = open_dataset(job)
    tokenizer = dataset.tokenizer()
    segmentation = Segmentation.of(config.tokens, tokenizer)
    # Planted even when resuming: a checkpoint then overwrites what it has.
    model = planted_classifier(job, dataset, tokenizer, segmentation)
    share = config.train.start_share
    # Taken before the trainer resumes: planting gives the same start, no checkpoint holds it.
    start = StartingPoint(model) if share > 0 else None
    cache = states_cache(job, model.encoder, segmentation)
    corpus = open_training_corpus(dataset, segmentation, cache)
    place = job.folder / "checkpoints" / STAGE.name / "shortlists"
    shortlists = shortlists_for(model, dataset, segmentation, config, context, place, cache, corpus)
    task = ClassifyTask(model, corpus, config.train, config.evaluate, context, shortlists)
    hooks: list[Hook] = [ClassifierCurves(task, resolved_yaml(config))]
    if shortlists is not None:
        hooks.append(IndexRefresh(shortlists, dataset.label_space.train_frequency))
    trainer = trainer_for(
        STAGE, job, task, LoopSettings.for_classifier(config.train), hooks,
        [Belongings(model, job.artifact("dataset")), *([shortlists] if shortlists else [])],
        config.runtime,
    )  # fmt: skip
    result = trainer.run()
    if start is not None:
        start.mix(share)
    # On every rank, since judging gathers. What is judged is what is saved: averages and mixing in,
    # weights of 4 bits as those of 16 that any machine reads.
    unpack(model.encoder.backbone)
    if config.train.refit_bands and corpus.validation.tokens.size:
        refit_bands(task, model)
    if shortlists is not None:
        # Of the weights that are saved, which may be those of an earlier step.
        log.info("shortlist: %s", shortlists.rebuild(result.steps))
    judged = task.tune(model, calibrate=True) if corpus.validation.tokens.size else None
    _log_hyperparameters(trainer.tracker, config, judged.metrics if judged else {})
    log.info("train: %s", {k: v for k, v in asdict(result).items() if k != "best_metrics"})
    trainer.tracker.close()
    save_classifier(model, folder, context)
    if folder is not None:
        # Tokenizer, labels and thresholds beside the weights: the folder predicts by itself.
        tokenizer.save_pretrained(str(folder))
        dataset.label_space.save(folder / LABEL_SPACE)
        if shortlists is not None:
            save_index(shortlists, folder)
        if judged is not None:
            _save_judged(folder, judged, config)
    return parent_manifest("dataset", job).carries


def _save_judged(folder: Path, judged: Judged, config: Config) -> None:
    """Write what turns scores into decisions."""
    judged.thresholds.save(folder / THRESHOLDS)
    if judged.calibration is not None:
        judged.calibration.save(folder / CALIBRATION)
    elif config.evaluate.calibration != "none":
        log.warning(
            "train: no label that validation documents carry was retained, so scores are not "
            "calibrated; give the corpus a larger validation split"
        )


def _log_hyperparameters(tracker: Tracker, config: Config, metrics: Mapping[str, float]) -> None:
    """Write the settings beside the validation metrics of the classifier that is saved."""
    plain = {
        **_flat("model", identity_of(config.model)),
        **_flat("train", identity_of(config.train)),
        "encoder": config.encoder.name,
        "seed": config.seed,
    }
    tracker.hyperparameters(plain, {f"9_saved/{name}": value for name, value in metrics.items()})


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat.update(_flat(name, value) if isinstance(value, dict) else {name: value})
    return flat


STAGE = Stage(
    "train", "classifier", ("dataset", "gains", "ranker"), settings, build, sources, encodes=True,
    check=check_early,
)  # fmt: skip
