"""Stage `prepare`: the raw corpus becomes a dataset, a label space and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config
from plant_dist.data.corpora import open_corpus
from plant_dist.data.prepare import prepare_dataset
from plant_dist.data.tokens import corpus_tokenizer, tokenizer_digest
from plant_dist.stages.pipeline import Job, Stage


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the dataset depends on."""
    # The name only; what it stood for when it was read is hashed in `sources`.
    tokenizer = config.tokens.tokenizer or config.encoder.name
    return {
        "data": identity_of(config.data),
        "tokens": {**identity_of(config.tokens), "tokenizer": tokenizer},
        "seed": config.seed,
    }


def sources(job: Job) -> Mapping[str, str]:
    """Return hashes of the corpus's files and of the tokenizer."""
    # The corpus first: a path that leads nowhere is the commonest slip.
    corpus = open_corpus(job.config.data).fingerprint()
    return {"corpus": corpus, "tokenizer": tokenizer_digest(_tokenizer(job.config))}


def tokenizer_name(config: Config) -> str:
    """Return the tokenizer to use: the one set, or the encoder's own."""
    return config.tokens.tokenizer or config.encoder.name


def _tokenizer(config: Config) -> PreTrainedTokenizerBase:
    encoder = config.encoder
    return corpus_tokenizer(config.tokens, encoder.name, encoder.allow_download)


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Write the dataset."""
    assert folder is not None  # this stage runs on the main process alone
    config = job.config
    tokenizer = _tokenizer(config)
    dataset = prepare_dataset(
        open_corpus(config.data), config.data, config.tokens, tokenizer, folder, config.seed
    )
    return {
        "tokenizer": tokenizer_digest(tokenizer),
        "label_space": dataset.label_space.digest,
    }


STAGE = Stage("prepare", "dataset", (), settings, build, sources, alone=True)
