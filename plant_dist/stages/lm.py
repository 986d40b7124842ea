"""Stage `lm`: an AWD-LSTM learns the corpus's language; it is the encoder of the later stages.

It is a part of a run only where `encoder.kind` is `awd_lstm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plant_dist.artifacts import write_json
from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config, EncoderConfig
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import load_tokenizer, tokenizer_digest
from plant_dist.errors import ConfigError
from plant_dist.logs import get_logger
from plant_dist.models.encoder import encoder_identity, load_encoder
from plant_dist.models.language_model import LanguageModel
from plant_dist.models.lstm import AwdLstm
from plant_dist.stages.arrays import open_split
from plant_dist.stages.pipeline import (
    LANGUAGE_MODEL,
    Job,
    Stage,
    parent_manifest,
    trains_language_model,
)
from plant_dist.stages.staging import open_dataset
from plant_dist.stages.training import trainer_for
from plant_dist.train.language_task import LanguageModelTask
from plant_dist.train.loop import LoopSettings

REPORT = "report.json"
log = get_logger(__name__)


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the language model depends on."""
    return {
        "lstm": identity_of(config.lstm),
        "lm": identity_of(config.lm),
        "precision": config.runtime.precision,
        "seed": config.seed,
    }


def sources(job: Job) -> Mapping[str, str]:
    """Return a hash of the language model that training starts from."""
    start = job.config.lm.start
    return {"start": encoder_identity(EncoderConfig(name=start))} if start else {}


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Train the language model, measure it beside token frequencies, and save it as an encoder.

    Raises:
        ConfigError: `lm.start` is no AWD-LSTM of this tokenizer and these sizes.
    """
    config, context = job.config, job.context
    dataset = open_dataset(job)
    tokenizer = dataset.tokenizer()
    segmentation = Segmentation.of(config.tokens, tokenizer)
    model = LanguageModel.from_config(config.lstm, len(tokenizer))
    task = LanguageModelTask(
        model, open_split(dataset, "train"), open_split(dataset, "validation"), segmentation,
        config.lm, context,
    )  # fmt: skip
    model.start_from_frequency(task.token_counts)
    if config.lm.start:
        start_from(model, Path(config.lm.start), tokenizer_digest(tokenizer))
    loop = LoopSettings.for_language_model(config.lm, task.best_metric)
    trainer = trainer_for(STAGE, job, task, loop)
    result = trainer.run()
    trainer.tracker.close()
    metrics = result.best_metrics
    if metrics:
        log.info("lm: validation perplexity %.1f, by token frequency alone %.1f",
                 metrics["perplexity"], metrics["unigram_perplexity"])  # fmt: skip
    if folder is not None:
        model.save(folder)
        # Beside the weights, so that the folder is an encoder like any other.
        tokenizer.save_pretrained(str(folder))
        write_json(folder / REPORT, asdict(result))
    return parent_manifest("dataset", job).carries


def start_from(model: LanguageModel, folder: Path, tokenizer: str) -> None:
    """Take the weights of a language model that this stage made before, on another corpus.

    Args:
        tokenizer: digest of the tokenizer in use.

    Raises:
        ConfigError: the folder holds no AWD-LSTM, or one of another tokenizer, size or direction.
    """
    try:
        found = load_encoder(EncoderConfig(name=str(folder)))
    except ConfigError as error:
        # It speaks of encoder.name, which is not what is wrong.
        reason = str(error).partition("cannot be loaded: ")[2].partition(" (a hub")[0]
        raise ConfigError(f"lm.start {folder} cannot be loaded: {reason or error}") from None
    if not isinstance(found, AwdLstm):
        raise ConfigError(f"lm.start {folder} holds a {found.config.model_type}, not an awd_lstm")
    if tokenizer_digest(load_tokenizer(str(folder))) != tokenizer:
        raise ConfigError(
            f"lm.start {folder} was trained on the tokens of another tokenizer; set "
            f"tokens.tokenizer={folder}"
        )
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "backward")
    for name in shape:
        here, there = (getattr(one.config, name) for one in (model.lstm, found))
        if here != there:
            raise ConfigError(
                f"lm.start {folder} has {name} {there}, the section lstm asks for {here}; make "
                "them alike"
            )
    # Into the model that stands, which keeps the dropouts asked for.
    model.lstm.load_state_dict(found.state_dict())
    model.load_head(folder)


STAGE = Stage(
    "lm", LANGUAGE_MODEL, ("dataset",), settings, build, sources, applies=trains_language_model
)
