"""Stage `train`: ranker, gains, label texts and encoder become a planted classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plant_dist.artifacts import digest_of
from plant_dist.config.load import as_plain, identity_of, resolved_yaml
from plant_dist.config.schema import Config
from plant_dist.data.csr import Csr
from plant_dist.data.prepared import LABEL_SPACE, PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.logs import get_logger
from plant_dist.mig.counts import token_documents
from plant_dist.mig.lists import GainTable
from plant_dist.models.adapters import adapter_settings, add_adapters, unpack
from plant_dist.models.classifier import (
    PlantConfig,
    PlantForMultiLabelClassification,
    RowsMaker,
)
from plant_dist.models.encoder import (
    SegmentEncoder,
    check_reads,
    encoder_identity,
    load_encoder,
)
from plant_dist.models.hierarchy import NarrowerPairs, narrower_pairs
from plant_dist.models.planting import GainArrays, Planting, plant
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.belongings import Belongings
from plant_dist.stages.pipeline import Job, Stage, parent_manifest
from plant_dist.stages.rank import load_ranker
from plant_dist.stages.rows import rows_maker, rows_settings, save_classifier
from plant_dist.stages.saved import CALIBRATION, THRESHOLDS
from plant_dist.stages.shortlist import save_index, shortlists_for
from plant_dist.stages.staging import open_dataset
from plant_dist.stages.start import start_bag, text_vectors
from plant_dist.stages.training import check_batch, trainer_for
from plant_dist.train.classify_task import ClassifyTask, Corpus, Judged, SplitArrays
from plant_dist.train.curves import ClassifierCurves
from plant_dist.train.embed import TextEmbedder
from plant_dist.train.hooks import Hook
from plant_dist.train.loop import LoopSettings
from plant_dist.train.optim import StartingPoint
from plant_dist.train.refresh import IndexRefresh
from plant_dist.train.states import StatesCache

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
    check_batch(config.train, context)
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
    shortlists = shortlists_for(model, dataset, segmentation, config, context, place, cache)
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


def planted_classifier(
    job: Job,
    dataset: PreparedDataset,
    tokenizer: PreTrainedTokenizerBase,
    segmentation: Segmentation,
) -> PlantForMultiLabelClassification:
    """Return a classifier on the job's device with everything planted. All ranks must call."""
    config, context = job.config, job.context
    backbone = load_encoder(job.encoder)
    # Before anything costly: a tokenizer of another encoder fails here, by name.
    check_reads(backbone, len(tokenizer), segmentation.segment_tokens)
    gains = GainTable.load(job.artifact("gains"))
    # Worked out first, since its size is a size of the model.
    hierarchy = _hierarchy(dataset, config)
    described = PlantConfig(
        encoder=_portable(backbone.config.to_dict()),
        decoder=as_plain(config.model),
        ranker={"kind": config.rank.kind, "width": config.rank.width},
        label_count=len(dataset.label_space),
        gain_pairs=len(gains.tokens),
        broad_labels=len(hierarchy.broad) if hierarchy else 0,
        narrower_pairs=len(hierarchy.place) if hierarchy else 0,
        segment_tokens=config.tokens.segment_tokens,
        overlap_tokens=config.tokens.overlap_tokens,
        max_document_tokens=config.tokens.max_document_tokens,
        special_ids=tokenizer.all_special_ids,
        lora=adapter_settings(config.encoder),
        retriever=_retriever_settings(config),
    )
    rows = rows_maker(config, context)
    model = _around(described, backbone, rows, whole=config.encoder.load_in != "4bit")
    # Before planting, whose label texts the encoder embeds on its device.
    model.to(context.device)  # type: ignore[arg-type]
    sharded = len(model.labels.own) < model.labels.count
    # Owners of rows embed the texts of their own labels, so that no rank holds all vectors.
    alone = replace(context, rank=0, world=1) if sharded else context
    cache = states_cache(job, model.encoder, segmentation)
    # What ranks read each for itself is kept by none.
    kept = cache if alone is context else None
    embedder = TextEmbedder(model.encoder, tokenizer, segmentation, alone, kept)
    # Queries may be planted without a planted branch.
    planted = "planted" in config.model.branches or config.model.query_init == "planted"
    own = model.labels.own
    ranker = load_ranker(job.artifact("ranker"), own) if planted else None
    plant(
        model,
        Planting(
            # A copy: torch must not share an array that others may change or that is read-only.
            train_frequency=torch.from_numpy(dataset.label_space.train_frequency.copy()),
            documents=dataset.token_csr("train").size,
            ranker=ranker,
            gains=_gain_arrays(gains),
            token_documents=torch.from_numpy(
                token_documents(dataset.token_csr("train"), model.encoder.vocabulary_size)
            )
            if model.decoder.bag
            else None,
            narrower=hierarchy,
            **text_vectors(embedder, dataset, job, cache, own),
        ),
    )
    start_bag(model, dataset, tokenizer, segmentation)
    return model


def _retriever_settings(config: Config) -> dict[str, Any] | None:
    """Return what the model must know of shortlists; None where it considers all labels."""
    section = config.shortlist
    if config.train.labels == "all":
        return None
    names = ("vectors", "width", "temperature", "candidates")
    return {name: getattr(section, name) for name in names}


def _around(
    described: PlantConfig, backbone: PreTrainedModel, rows: RowsMaker, whole: bool
) -> PlantForMultiLabelClassification:
    """Return a classifier around a pretrained encoder, with adapters where they are asked for.

    Args:
        rows: makes the label rows.
        whole: the encoder's weights are not packed.
    """
    if described.lora:
        add_adapters(backbone, described.lora)
    if described.lora or not whole:
        # Not made a second time: an encoder that wants adapters may fill the memory.
        return PlantForMultiLabelClassification(described, SegmentEncoder(backbone), rows)
    # Made of noise first, whose draws the rows' own follow, as in every figure reported so far.
    model = PlantForMultiLabelClassification(described, make_rows=rows)
    model.encoder = SegmentEncoder(backbone)
    return model


def _portable(encoder: dict[str, Any]) -> dict[str, Any]:
    """Return an encoder's config without the place on this machine that it was read from."""
    # Nor how its frozen weights were packed, since the saved ones are not.
    left_out = ("_name_or_path", "quantization_config")
    return {key: value for key, value in encoder.items() if key not in left_out}


def _hierarchy(dataset: PreparedDataset, config: Config) -> NarrowerPairs | None:
    share = config.model.narrower_share
    if not share:
        return None
    pairs = narrower_pairs(dataset.label_space.parent_csr(), share)
    if not len(pairs.broad):
        log.warning(
            "train: model.narrower_share is %s, but no label has a parent, so it does nothing; "
            "give the label file a column of parents, or set it to 0", share,
        )  # fmt: skip
    return pairs


def _gain_arrays(gains: GainTable) -> GainArrays:
    return GainArrays(
        torch.from_numpy(np.array(gains.offsets)),
        torch.from_numpy(np.array(gains.tokens)),
        torch.from_numpy(np.array(gains.gains)),
    )


def states_cache(
    job: Job, encoder: SegmentEncoder, segmentation: Segmentation
) -> StatesCache | None:
    """Return where a frozen encoder's hidden states are kept; None where they are not."""
    config = job.encoder
    if config.cache == "none":
        return None
    folder = Path(config.cache_folder) if config.cache_folder else job.folder / "states"
    # Settings too: weights held in bf16, or made from the seed, give other states than the file's.
    seed = job.config.seed if config.random_weights else None
    identity = digest_of([encoder_identity(config), identity_of(config), seed])
    return StatesCache(folder, config.cache, identity, encoder, segmentation, job.context)


def open_training_corpus(
    dataset: PreparedDataset, segmentation: Segmentation, cache: StatesCache | None = None
) -> Corpus:
    """Return the training and validation splits as the classifier's task reads them."""
    return Corpus(
        train=open_split(dataset, "train", cache),
        validation=open_split(dataset, "validation", cache),
        train_frequency=torch.from_numpy(dataset.label_space.train_frequency.copy()),
        segmentation=segmentation,
    )


def open_split(
    dataset: PreparedDataset, split: str, cache: StatesCache | None = None
) -> SplitArrays:
    """Return a split's flat arrays, document ids, and hidden states where they are kept."""
    tokens = dataset.token_csr(split)
    states = cache.open(tokens) if cache and tokens.size else None
    labels, ids = dataset.label_csr(split), dataset.documents(split)["id"]
    return SplitArrays(tokens, labels, ids, states, ignored_pairs(dataset, split))


def ignored_pairs(dataset: PreparedDataset, split: str) -> Csr | None:
    """Return what filter files leave out of a split; None where they leave out nothing."""
    ignored = dataset.ignored_csr(split)
    return ignored if len(ignored.values) else None


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
    "train", "classifier", ("dataset", "gains", "ranker"), settings, build, sources, encodes=True
)
