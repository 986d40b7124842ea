"""A classifier with everything planted, from the artifacts of the stages before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plant_dist.config.load import as_plain
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.logs import get_logger
from plant_dist.mig.counts import token_documents
from plant_dist.mig.lists import GainTable
from plant_dist.models.adapters import adapter_settings, add_adapters
from plant_dist.models.bag import TokenBag, bucket_rows
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification, RowsMaker
from plant_dist.models.encoder import SegmentEncoder, check_reads, load_encoder
from plant_dist.models.hierarchy import NarrowerPairs, narrower_pairs
from plant_dist.models.planting import GainArrays, Planting, plant
from plant_dist.runtime.allocator import give_back
from plant_dist.stages.arrays import states_cache
from plant_dist.stages.pipeline import RANKER, Job, plants_ranker
from plant_dist.stages.rank import load_ranker
from plant_dist.stages.rows import rows_maker
from plant_dist.stages.start import start_bag, text_vectors
from plant_dist.train.embed import TextEmbedder

log = get_logger(__name__)


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
    own = model.labels.own
    ranker = load_ranker(job.artifact(RANKER), own) if plants_ranker(config) else None
    plant(
        model,
        Planting(
            # A copy: torch must not share an array that others may change or that is read-only.
            train_frequency=torch.from_numpy(dataset.label_space.train_frequency.copy()),
            documents=dataset.token_csr("train").size,
            ranker=ranker,
            gains=_gain_arrays(gains),
            feature_documents=_feature_documents(dataset, model.decoder.bag),
            narrower=hierarchy,
            **text_vectors(embedder, dataset, job, cache, own),
        ),
    )
    start_bag(model, dataset, tokenizer, segmentation)
    # Texts of a million labels as vectors, which training will not need again.
    give_back()
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


def _feature_documents(dataset: PreparedDataset, bag: TokenBag | None) -> torch.Tensor | None:
    """Return how many training documents hold each feature of a bag, (F,) int64."""
    if bag is None:
        return None
    tokens, buckets = dataset.token_csr("train"), bag.pair_buckets
    counts = [token_documents(tokens, bag.vocabulary_size)]
    if buckets:
        counts.append(token_documents(tokens, buckets, lambda run: bucket_rows(run, buckets)))
    return torch.from_numpy(np.concatenate(counts))


def _gain_arrays(gains: GainTable) -> GainArrays:
    return GainArrays(
        torch.from_numpy(np.array(gains.offsets)),
        torch.from_numpy(np.array(gains.tokens)),
        torch.from_numpy(np.array(gains.gains)),
    )
