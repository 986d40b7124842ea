"""Stage `evaluate`: the classifier and its baselines are measured on the test split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plant_dist.artifacts import read_manifest, write_json
from plant_dist.baselines.nearest import NearestTexts
from plant_dist.baselines.popularity import Popularity
from plant_dist.baselines.shortlist import Baseline, Shortlist
from plant_dist.baselines.vectors import CharacterNgrams, EncoderVectors
from plant_dist.config.load import identity_of
from plant_dist.config.published import published_figures
from plant_dist.config.schema import Config
from plant_dist.data.csr import Csr
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.tokens import load_tokenizer
from plant_dist.errors import ArtifactError, DataError
from plant_dist.logs import get_logger
from plant_dist.metrics.evaluator import Evaluator, Results
from plant_dist.metrics.report import write_report
from plant_dist.models.encoder import SegmentEncoder, load_encoder
from plant_dist.runtime.collectives import barrier
from plant_dist.stages.arrays import (
    ignored_pairs,
    open_split,
    open_training_corpus,
    states_cache,
)
from plant_dist.stages.pipeline import Job, Stage, parent_manifest
from plant_dist.stages.saved import SavedClassifier, averaged
from plant_dist.stages.staging import open_dataset
from plant_dist.train.classify_task import Scorer, evaluator_for
from plant_dist.train.embed import TextEmbedder

SYSTEM = "PLANT"
AVERAGED = "PLANT, averaged"
log = get_logger(__name__)


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the report depends on."""
    return {"evaluate": identity_of(config.evaluate), "precision": config.runtime.precision}


def sources(job: Job) -> Mapping[str, str]:
    """Return the digests of the classifiers that are averaged with this run's.

    Raises:
        ArtifactError: one is none.
    """
    found = {}
    for number, other in enumerate(job.config.evaluate.average_with):
        manifest = read_manifest(Path(other))
        if manifest is None:
            raise ArtifactError(
                f"evaluate.average_with {other} is no classifier of this program (it has no "
                "manifest); name the classifier/ folder of a finished run, or unset it"
            )
        found[f"averaged {number + 1}"] = manifest.digest
    return found


def check_test(job: Job) -> None:
    """Check, as soon as there is a dataset, that there will be something to measure.

    Raises:
        DataError: there is no test document.
    """
    _require_test(PreparedDataset.load(job.artifact("dataset")))


def _require_test(dataset: PreparedDataset) -> None:
    if not dataset.token_csr("test").size:
        raise DataError(
            "there is no test document to evaluate on; give the corpus a test split, or run the "
            "stages up to train by their names"
        )


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Score the test split with the classifier and the baselines, and write the report.

    Raises:
        DataError: there is no test document.
    """
    config, context = job.config, job.context
    dataset = open_dataset(job)
    exact = config.evaluate.exact
    saved = SavedClassifier.load(job.artifact("classifier"), context.device, with_index=not exact)
    corpus = open_training_corpus(dataset, saved.segmentation)
    cache = states_cache(job, saved.model.encoder, saved.segmentation)
    test = open_split(dataset, "test", cache)
    _require_test(dataset)
    evaluator = evaluator_for(corpus, config.evaluate, test.tokens.size)
    scorer = Scorer(saved.model, saved.segmentation, config.evaluate, context, saved.scoring(exact))
    # Thresholds and calibration come from validation; the test split decides nothing.
    results = scorer.evaluate(test, evaluator).results(saved.thresholds, saved.calibration)
    reliability = evaluator.reliability(saved.calibration)
    # On every rank, since scoring gathers.
    beside = _averaged(job, dataset, saved)
    baselines = _baselines(job, dataset, saved)
    # Baselines run on the main process alone; the others wait at the barrier.
    if folder is not None:
        found = beside | {one.name: _measure(one, dataset, config) for one in baselines}
        write_report(
            folder, SYSTEM, results, found, reliability=reliability,
            published=published_figures(config.evaluate.published),
            corpus=dataset.statistics,
        )  # fmt: skip
        write_json(folder / "baselines.json", {one.name: one.describe() for one in baselines})
        write_json(folder / "statistics.json", dataset.statistics)
    barrier(context)
    return parent_manifest("dataset", job).carries


def _averaged(job: Job, dataset: PreparedDataset, saved: SavedClassifier) -> dict[str, Results]:
    """Return the results of this classifier averaged with others; none where none is named."""
    config, context = job.config.evaluate, job.context
    if not config.average_with:
        return {}
    model = averaged(saved, config.average_with, context.device)
    cache = states_cache(job, saved.model.encoder, saved.segmentation)
    if not model.one_encoder:
        # What is kept on disk are the states of one.
        cache = None
    corpus = open_training_corpus(dataset, saved.segmentation)
    scorer = Scorer(model, saved.segmentation, config, context)
    validation, test = (open_split(dataset, split, cache) for split in ("validation", "test"))
    thresholds = None
    if size := validation.tokens.size:
        judged = scorer.evaluate(validation, evaluator_for(corpus, config, size))
        thresholds = judged.thresholds()
    judged = scorer.evaluate(test, evaluator_for(corpus, config, test.tokens.size))
    return {AVERAGED: judged.results(thresholds)}


def _baselines(job: Job, dataset: PreparedDataset, saved: SavedClassifier) -> list[Baseline]:
    """Return the baselines asked for, not yet fitted."""
    asked = job.config.evaluate.baselines
    # Baselines keep the head of their ranking, deeper than any cut-off.
    keep = max(1000, *job.config.evaluate.ks)
    made: list[Baseline] = []
    if "popularity" in asked:
        made.append(Popularity(keep))
    if "tfidf" in asked:
        made.append(NearestTexts(CharacterNgrams(), keep))
    if "encoder" in asked:
        made.append(NearestTexts(EncoderVectors(_untrained(job, dataset, saved)), keep))
    return made


def _untrained(
    job: Job, dataset: PreparedDataset, saved: SavedClassifier
) -> Callable[[Sequence[str]], NDArray[Any]]:
    """Return the encoder as it came, before any training here, as a function of texts."""
    encoder = SegmentEncoder(load_encoder(job.encoder)).to(job.context.device)
    tokenizer = load_tokenizer(job.encoder.name, job.encoder.allow_download)
    # As if alone: baselines run on the main process, where a collective would wait for ever.
    alone = replace(job.context, rank=0, world=1)
    embedder = TextEmbedder(encoder, tokenizer, saved.segmentation, alone)
    return lambda texts: embedder.mean_states(texts, "untrained encoder").numpy()


def _measure(baseline: Baseline, dataset: PreparedDataset, config: Config) -> Results:
    """Fit on training, tune on validation, and measure on test, with the same metrics code."""
    log.info("evaluate: baseline %s", baseline.name)
    train, space = dataset.documents("train"), dataset.label_space
    labels = _matrix(dataset.label_csr("train"), len(space))
    baseline.fit(list(train["text"]), labels, list(space.texts))
    validation = list(dataset.documents("validation")["text"])
    judge = _Judge(dataset, config)
    if isinstance(baseline, NearestTexts) and validation:
        # As the classifier is judged: on validation, never on test.
        baseline.tune(validation, lambda found: judge.read("validation", found).ranking()["map"])
    thresholds = None
    if validation:
        thresholds = judge.read("validation", baseline.shortlist(validation)).thresholds()
    test = baseline.shortlist(list(dataset.documents("test")["text"]))
    return judge.read("test", test).results(thresholds)


class _Judge:
    """Feeds shortlists of a whole split to an evaluator."""

    def __init__(self, dataset: PreparedDataset, config: Config) -> None:
        self._dataset, self._config = dataset, config.evaluate

    def read(self, split: str, shortlist: Shortlist) -> Evaluator:
        gold = self._dataset.label_csr(split)
        evaluator = Evaluator(
            self._dataset.label_space.train_frequency,
            self._dataset.token_csr("train").size,
            self._config,
            gold.size,
        )
        # Copies: the arrays are memory maps, which torch does not take as read-only.
        offsets, labels = np.array(gold.offsets), np.array(gold.values)
        ignored = ignored_pairs(self._dataset, split)
        evaluator.add(shortlist.scores, offsets, labels, shortlist.label_ids, ignored=ignored)
        return evaluator


def _matrix(labels: Csr, count: int) -> csr_array:
    ones = np.ones(len(labels.values), np.float32)
    return csr_array((ones, labels.values, labels.offsets), shape=(labels.size, count))


STAGE = Stage(
    "evaluate", "report", ("dataset", "gains", "ranker", "classifier"), settings, build, sources,
    encodes=True,
)  # fmt: skip
