"""The splits of a dataset as the classifier reads them, with hidden states where they are kept."""

from __future__ import annotations

from pathlib import Path

import torch

from plant_dist.artifacts import digest_of
from plant_dist.config.load import identity_of
from plant_dist.data.csr import Csr
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.models.encoder import SegmentEncoder, encoder_identity
from plant_dist.stages.pipeline import Job
from plant_dist.train.splits import Corpus, SplitArrays
from plant_dist.train.states import StatesCache


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
