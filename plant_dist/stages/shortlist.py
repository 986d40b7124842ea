"""The index of a classifier: made with it, saved beside it, made anew or tuned by a command.

    classifier/shortlist/   about.json, and a FAISS file a shard

Must not know how an index is built or searched.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from plant_dist.artifacts import write_json, written_whole
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.errors import ArtifactError, ConfigError
from plant_dist.logs import get_logger
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.runtime.collectives import barrier
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.index import exact_search, write_about
from plant_dist.shortlist.plots import save_curve
from plant_dist.shortlist.quality import TOP, SearchPoint, cheapest, tuning_curve
from plant_dist.stages.pipeline import Job
from plant_dist.stages.saved import INDEX, SavedClassifier
from plant_dist.train.embed import KeptMeans
from plant_dist.train.label_vectors import LabelTexts, VectorMaker
from plant_dist.train.shortlists import Measured, Probe, Shortlists, link_files
from plant_dist.train.splits import Corpus

CURVE = "shortlist_curve"
log = get_logger(__name__)


@dataclass(frozen=True)
class ShortlistOptions:
    """What to do with the index; see `plant-dist shortlist --help`."""

    tune: float | None = None

    def __post_init__(self) -> None:
        if self.tune is not None and not 0.0 < self.tune <= 1.0:
            raise ConfigError(f"--tune is {self.tune}; it must be above 0 and at most 1")

    @classmethod
    def from_namespace(cls, options: argparse.Namespace) -> ShortlistOptions:
        """Take the options of the same names from the command line."""
        return cls(tune=options.tune)


def shortlists_for(
    model: PlantForMultiLabelClassification,
    dataset: PreparedDataset,
    segmentation: Segmentation,
    config: Config,
    context: RunContext,
    folder: Path,
    kept: KeptMeans | None = None,
    corpus: Corpus | None = None,
) -> Shortlists | None:
    """Return where a classifier's training takes shortlists from; None for all labels.

    Args:
        folder: where indices lie meanwhile.
        kept: keeps what a frozen encoder says of label texts.
        corpus: the dataset with what it says of documents, where that is kept.
    """
    if model.retriever is None:
        return None
    section = config.shortlist
    if section.candidates > model.config.label_count:
        log.warning(
            "shortlist.candidates is %d, but there are %d labels: all are retrieved",
            section.candidates, model.config.label_count,
        )  # fmt: skip
    space = dataset.label_space
    texts = LabelTexts(space.train_frequency, space.texts, dataset.tokenizer())
    maker = VectorMaker(model, texts, segmentation, context, kept)
    training = dataset.token_csr("train")
    probe = _probe(dataset, section.probe_documents, corpus)
    return Shortlists(maker, training, probe, section, folder, space.digest)


def _probe(dataset: PreparedDataset, wanted: int, corpus: Corpus | None = None) -> Probe:
    # Never test documents: search settings are chosen on them.
    split = "validation" if dataset.token_csr("validation").size else "train"
    states = None
    if corpus is not None:
        states = (corpus.validation if split == "validation" else corpus.train).states
    return Probe(dataset.token_csr(split), dataset.label_csr(split), states).evenly(wanted)


def save_index(shortlists: Shortlists, folder: Path) -> None:
    """Put the index in use into a classifier's folder."""
    assert shortlists.index is not None  # the last one was just built
    place = folder / INDEX
    place.mkdir()
    link_files(shortlists.index.folder, place)


def shortlist(job: Job, options: ShortlistOptions) -> str:
    """Build the index of a run's classifier anew, or tune its search; return what to print.

    Raises:
        ArtifactError: there is no classifier, or it was trained on all labels.
        ConfigError: the index's kind has nothing to tune.
    """
    folder = job.artifact("classifier")
    saved = SavedClassifier.load(folder, job.context.device, with_index=options.tune is not None)
    if saved.model.retriever is None:
        raise ArtifactError(
            f"{folder} was trained on all labels and has no shortlists; set "
            "train.labels=shortlist and run: plant-dist train"
        )
    dataset = PreparedDataset.load(job.artifact("dataset"))
    if options.tune is None:
        return _build(job, saved, dataset, folder)
    return _tune(job, saved, dataset, folder, options.tune)


def _build(job: Job, saved: SavedClassifier, dataset: PreparedDataset, folder: Path) -> str:
    place = job.folder / "checkpoints" / "shortlist"
    made = shortlists_for(saved.model, dataset, saved.segmentation, job.config, job.context, place)
    assert made is not None  # its classifier has a retriever
    measured = made.rebuild(0)
    if job.context.is_main:
        with written_whole(folder / INDEX) as fresh:
            assert made.index is not None
            link_files(made.index.folder, fresh)
        shutil.rmtree(place, ignore_errors=True)
    barrier(job.context)
    return _description(measured, job.config.shortlist.candidates)


def _description(measured: Measured, candidates: int) -> str:
    about, first = measured.about, measured.about.shards[0]
    size = sum(shard.bytes for shard in about.shards) / 2**20
    return "\n".join(
        [
            f"index    {about.labels} labels x {about.width} numbers ({about.vectors} vectors), "
            f"{first.factory} {first.search}".rstrip(),
            f"built    {about.build_seconds:.1f} s, {size:.1f} MiB",
            f"recall   {measured.recall:.4f} of validation's gold labels among {candidates}",
            f"exact    {measured.overlap:.4f} of the exact best {TOP}",
            f"search   {measured.milliseconds:.3f} ms per document",
        ]
    )


def _tune(
    job: Job, saved: SavedClassifier, dataset: PreparedDataset, folder: Path, target: float
) -> str:
    index, config = saved.index, job.config.shortlist
    assert index is not None  # asked for when loading
    if index.tunable is None:
        raise ConfigError(
            f"the index is {index.about.shards[0].factory}, which has no search setting to tune; "
            "set shortlist.index, such as IVF4096,SQ8, and run: plant-dist shortlist"
        )
    maker = saved.vector_maker(job.context)
    probe = _probe(dataset, config.probe_documents)
    kind = index.about.vectors
    queries = maker.documents(kind, probe.tokens)
    source = maker.labels(kind, 0, index.about.labels)
    _, exact = exact_search(source, 0, index.about.labels, queries, TOP)
    points = tuning_curve(index, queries, exact, config.candidates)
    chosen = cheapest(points, target)
    report = job.artifact("report")
    if not job.context.is_main:
        return ""
    report.mkdir(parents=True, exist_ok=True)
    content = {"target": target, "candidates": config.candidates, "documents": len(queries),
               "chosen": chosen and chosen.search, "points": [vars(p) for p in points]}  # fmt: skip
    write_json(report / f"{CURVE}.json", content)
    save_curve(points, chosen, target, report / f"{CURVE}.png")
    if chosen is not None:
        index.set_search(chosen.search)
        write_about(folder / INDEX, index.about)
    return f"{_table(points, chosen)}\nplot: {report / CURVE}.png"


def _table(points: list[SearchPoint], chosen: SearchPoint | None) -> str:
    lines = [f"{'setting':<18} {'recall@' + str(TOP):>10} {'ms/document':>12}"]
    lines += [
        f"{point.search:<18} {point.recall:>10.4f} {point.milliseconds:>12.4f}"
        f"{'  <- chosen' if point is chosen else ''}"
        for point in points
    ]
    if chosen is None:
        lines.append("no setting reaches the target; the index keeps its own")
    return "\n".join(lines)
