"""The index that training documents' shortlists come from: made, measured, made anew, exchanged.

A new index is built in the background from a copy of the label vectors, each rank its own labels,
into a folder that takes its name when every shard is there. It takes the old one's place between
two steps, at a step that is known beforehand, so that runs repeat and resume exactly; a build that
fails leaves the old one in use. Must not know the loop: `refresh.py` calls at the right steps.

B documents, K labels retrieved, X width of the vectors.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plant_dist.artifacts import write_json
from plant_dist.config.schema import ShortlistConfig
from plant_dist.data.csr import Csr
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.models.retriever import LEARNED
from plant_dist.runtime.collectives import barrier, broadcast_object, gather_objects
from plant_dist.shortlist.across import ask_across, search_across
from plant_dist.shortlist.factory import choose_factory
from plant_dist.shortlist.index import (
    ABOUT,
    About,
    Float32,
    Int64,
    LabelIndex,
    exact_search,
    write_about,
)
from plant_dist.shortlist.quality import TOP, found_gold
from plant_dist.train.label_vectors import VectorMaker
from plant_dist.train.shard_build import ShardBuild
from plant_dist.train.states import HiddenStates

log = get_logger(__name__)
CURRENT, PENDING = "shortlist", "shortlist-pending"  # prefixes of the files in a checkpoint
POSITION = "shortlist.json"


@dataclass(frozen=True)
class Probe:
    """Documents that an index is measured on.

    Attributes:
        tokens, labels: token ids and gold labels by document.
        states: what a frozen encoder says of them; None where it is asked.
    """

    tokens: Csr
    labels: Csr
    states: HiddenStates | None = None

    def evenly(self, wanted: int) -> Probe:
        """Return so many of the documents, evenly spaced."""
        count = min(wanted, self.tokens.size)
        return self._take(np.arange(count, dtype=np.int64) * self.tokens.size // max(count, 1))

    def share(self, rank: int, world: int) -> Probe:
        """Return a rank's documents."""
        return self._take(np.arange(rank, self.tokens.size, world, dtype=np.int64))

    def _take(self, rows: Int64) -> Probe:
        states = None if self.states is None else self.states.take(rows)
        return Probe(self.tokens.take(rows), self.labels.take(rows), states)


@dataclass(frozen=True)
class Measured:
    """What an index that has just come into use is like.

    Attributes:
        recall: share of the probe's gold labels among the K retrieved.
        found: (G,) bool, which; gold: (G,) the labels. Over all ranks.
        overlap: share of the exact best labels retrieved, of the vectors it was built from.
        milliseconds: of search, per document.
    """

    about: About
    recall: float
    found: Int64
    gold: Int64
    overlap: float
    milliseconds: float

    def __str__(self) -> str:
        about, first = self.about, self.about.shards[0]
        how = " ".join(filter(None, (first.factory, first.search)))
        return (
            f"{about.vectors} vectors of step {about.step}, {how}: recall of gold labels "
            f"{self.recall:.4f}, overlap with exact search {self.overlap:.4f}, "
            f"{self.milliseconds:.3f} ms per document, built in {about.build_seconds:.1f} s"
        )


class Shortlists:
    """The index in use, and the one that is being made.

    Args:
        maker: makes vectors of labels and documents.
        training: token ids of the training documents, which the ranker's tower is fitted to.
        probe: what indices are measured on.
        config: the section.
        folder: where indices lie, on a disk that all ranks share; its content is replaced.
        label_space: digest of the label space.
    """

    def __init__(
        self,
        maker: VectorMaker,
        training: Csr,
        probe: Probe,
        config: ShortlistConfig,
        folder: Path,
        label_space: str,
    ) -> None:
        self.config, self.context = config, maker.context
        self._maker, self._training, self._folder = maker, training, folder
        self._probe = probe.share(self.context.rank, self.context.world)
        self._label_space = label_space
        self._labels = maker.model.labels.count
        self._own = maker.own
        self.index: LabelIndex | None = None
        # Of the first validation with the index in use; None before there was one.
        self.fresh_recall: float | None = None
        self._build: ShardBuild | None = None
        self._pending: Path | None = None
        # Which tower the build that is under way takes its vectors from, and at which step.
        self._kind, self._step = maker.retriever.kinds[0], 0

    @property
    def vectors(self) -> str:
        """Which vectors the index in use is searched with."""
        return self._current().about.vectors

    @property
    def pending(self) -> bool:
        """Whether a new index is being made or waits to be used."""
        return self._build is not None or self._pending is not None

    @property
    def due(self) -> int:
        """The step from which the index that is being made is used."""
        return self._step + self.config.swap_after

    def search(self, vectors: Float32, k: int) -> tuple[Float32, Int64]:
        """Return inner products and label ids (B, K) for this rank's documents. All ranks call."""
        return search_across(self._current(), self.context, vectors, k)

    def _current(self) -> LabelIndex:
        assert self.index is not None, "an index is made before the first step"
        return self.index

    def begin(self, step: int) -> None:
        """Copy the label vectors of now and build from them in the background. All ranks call."""
        self._maker.fit(self._training)
        self._kind, self._step = self._choose_kind(), step
        queries = np.concatenate(gather_objects(self.context, self._queries(self._kind)))
        start, stop = self._own
        source = self._maker.labels(self._kind, start, stop)
        width = self._maker.retriever.width_of(self._kind)
        vectors = np.empty((stop - start, width), np.float32)
        for low in range(start, stop, 65_536):
            high = min(low + 65_536, stop)
            vectors[low - start : high - start] = source(low, high)
        factory = choose_factory(
            self.config.index, max(stop - start, 1), width, self.config.memory_mb
        )
        partial = self._partial(step)
        if self.context.is_main:
            for stale in self._folder.glob(".index-*.partial"):
                shutil.rmtree(stale, ignore_errors=True)
            shutil.rmtree(self._place(step), ignore_errors=True)
            partial.mkdir(parents=True)
        barrier(self.context)
        self._build = ShardBuild(
            partial, vectors, start, factory, self.config, queries, self.context.seed
        )
        self._build.start()

    def complete(self) -> None:
        """Wait until every rank's shard is written; the folder then takes its name. All call.

        Raises:
            ArtifactError: a rank's build failed, and there is no index to go on with.
        """
        build, self._build = self._build, None
        if build is None:
            return
        build.join()
        told = gather_objects(self.context, (build.trouble, build.shard, build.seconds))
        trouble = [f"rank {rank}: {words}" for rank, (words, _, _) in enumerate(told) if words]
        if trouble:
            # The index in use goes on; without one there is nothing to train with.
            if self.index is None:
                raise ArtifactError(
                    f"no index of labels could be built ({'; '.join(trouble)}); mend that, or "
                    "train with train.labels=all"
                )
            log.warning("shortlist: the index of step %d was not built (%s); the one of step %d "
                        "stays in use", self._step, "; ".join(trouble),
                        self.index.about.step)  # fmt: skip
            return
        width = self._maker.retriever.width_of(self._kind)
        shards = tuple(shard for _, shard, _ in told if shard is not None)
        about = About(self._label_space, self._labels, width, self._kind, self._step,
                      max(seconds for _, _, seconds in told), shards)  # fmt: skip
        if self.context.is_main:
            write_about(build.folder, about)
            build.folder.rename(self._place(self._step))
        barrier(self.context)
        self._pending = self._place(self._step)

    def swap(self) -> Measured | None:
        """Put the new index in the old one's place and measure it. All ranks call.

        Returns: None where the build failed and the old one stays.
        """
        self.complete()
        if self._pending is None:
            return None
        fresh, self._pending = self._open(self._pending), None
        old, self.index, self.fresh_recall = self.index, fresh, None
        # The folder is the fresh one's own where two were built at one step.
        if old is not None and old.folder != fresh.folder and self.context.is_main:
            # Mapped files stay readable until the last map is gone.
            shutil.rmtree(old.folder, ignore_errors=True)
        return self.measure()

    def abandon(self) -> None:
        """Wait for this rank's build and forget it; no collective, so errors may lead here."""
        build, self._build = self._build, None
        if build is not None:
            build.join()

    def rebuild(self, step: int) -> Measured:
        """Build from the vectors of now, and wait for it. All ranks call."""
        self.abandon()
        self._pending = None
        self.begin(step)
        measured = self.swap()
        assert measured is not None or self.index is not None
        return measured or self.measure()

    def measure(self) -> Measured:
        """Measure the index in use with the document vectors of now. All ranks call."""
        index = self._current()
        queries = self._queries(index.about.vectors)
        k = min(self.config.candidates, self._labels)
        began = time.perf_counter()
        _, ids = self.search(queries, k)
        seconds = time.perf_counter() - began
        exact = self._exact(index.about.vectors, queries, min(TOP, k))
        parts = gather_objects(
            self.context,
            (found_gold(ids, self._probe.labels), np.asarray(self._probe.labels.values),
             found_gold(ids, _as_gold(exact)), len(queries), seconds),
        )  # fmt: skip
        found = np.concatenate([part[0] for part in parts])
        agree = np.concatenate([part[2] for part in parts])
        documents = sum(part[3] for part in parts)
        return Measured(
            about=index.about,
            recall=float(found.mean()) if len(found) else 1.0,
            found=found.astype(np.int64),
            gold=np.concatenate([part[1] for part in parts]).astype(np.int64),
            overlap=float(agree.mean()) if len(agree) else 1.0,
            milliseconds=1e3 * max(part[4] for part in parts) / max(documents, 1),
        )

    def _choose_kind(self) -> str:
        """Return the ranker's vectors until the learned ones find as many gold labels."""
        kinds = self._maker.retriever.kinds
        if len(kinds) == 1 or (self.index is not None and self.index.about.vectors == LEARNED):
            return kinds[-1]
        recalls: dict[str, float] = {}
        for kind in kinds:
            ids = self._exact(kind, self._queries(kind), min(self.config.candidates, self._labels))
            parts = gather_objects(self.context, found_gold(ids, self._probe.labels))
            found = np.concatenate(parts)
            recalls[kind] = float(found.mean()) if len(found) else 0.0
        best = max(reversed(kinds), key=lambda kind: recalls[kind])
        log.info("shortlist: recall of gold labels at %d: %s; using %s", self.config.candidates,
                 ", ".join(f"{kind} {recall:.4f}" for kind, recall in recalls.items()),
                 best)  # fmt: skip
        return best

    def _queries(self, kind: str) -> Float32:
        """Return the vectors of this rank's probe documents, of now."""
        return self._maker.documents(kind, self._probe.tokens, self._probe.states)

    def _exact(self, kind: str, queries: Float32, k: int) -> Int64:
        """Return the exact best labels (B, k) for this rank's queries. All ranks call."""
        start, stop = self._own
        source = self._maker.labels(kind, start, stop)

        def answer(asked: Float32) -> tuple[Float32, Int64]:
            return exact_search(source, start, stop, asked, k)

        return ask_across(self.context, queries, answer, k)[1]

    def _place(self, step: int) -> Path:
        return self._folder / f"index-{step:08d}"

    def _partial(self, step: int) -> Path:
        return self._folder / f".index-{step:08d}.partial"

    def _open(self, folder: Path) -> LabelIndex:
        # A rank's own shards: all of them where it is alone, its own where each has one.
        shards = None if self.context.world == 1 else [self.context.rank]
        return LabelIndex.load(folder, self._label_space, shards=shards)

    def _fits(self, folder: Path) -> bool:
        """Say whether each rank finds a shard of its own; one process reads any number."""
        if self.context.world == 1:
            return True
        about = LabelIndex.load(folder, self._label_space, shards=[]).about
        return len(about.shards) == self.context.world

    # What checkpoints ask for (`runtime.checkpoint_files.Attachment`).

    def ready(self) -> None:
        """Finish what is being built, so that a checkpoint holds it. All ranks call."""
        self.complete()

    def write(self, folder: Path) -> None:
        """Link the files of the indices into a checkpoint."""
        for prefix, source in ((CURRENT, None if self.index is None else self.index.folder),
                               (PENDING, self._pending)):  # fmt: skip
            if source is not None:
                link_files(source, folder, prefix=f"{prefix}.")
        write_json(folder / POSITION, {"step": self._step, "fresh_recall": self.fresh_recall})

    def read(self, folder: Path) -> None:
        """Go on with the indices of a checkpoint. All ranks call."""
        self._build, self._pending = None, None
        if self.context.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)
            for prefix in (CURRENT, PENDING):
                if (folder / f"{prefix}.{ABOUT}").is_file():
                    place = self._folder / prefix
                    place.mkdir(parents=True)
                    unlink_prefix(folder, place, f"{prefix}.")
        barrier(self.context)
        held: Mapping[str, bool] = broadcast_object(
            self.context, {p: (self._folder / p / ABOUT).is_file() for p in (CURRENT, PENDING)}
        )
        fit = {
            prefix: there and self._fits(self._folder / prefix) for prefix, there in held.items()
        }
        # One that does not is built anew before the first step (`refresh.IndexRefresh`).
        self.index = self._open(self._folder / CURRENT) if fit[CURRENT] else None
        self._pending = self._folder / PENDING if fit[CURRENT] and fit[PENDING] else None
        position = json.loads((folder / POSITION).read_text(encoding="utf-8"))
        # When it is due follows from the step that it was begun at.
        self._step = int(position["step"])
        self.fresh_recall = position.get("fresh_recall") if fit[CURRENT] else None


def _as_gold(label_ids: Int64) -> Csr:
    width = label_ids.shape[1]
    offsets = np.arange(len(label_ids) + 1, dtype=np.int64) * width
    return Csr(offsets, label_ids.reshape(-1).astype(np.int32))


def link_files(source: Path, target: Path, prefix: str = "") -> None:
    """Put a folder's files into another, by link where the disk has links, else as copies."""
    for path in source.iterdir():
        _link(path, target / f"{prefix}{path.name}")


def unlink_prefix(source: Path, target: Path, prefix: str) -> None:
    """The opposite of `link_files` with a prefix."""
    for path in source.glob(f"{prefix}*"):
        _link(path, target / path.name.removeprefix(prefix))


def _link(path: Path, place: Path) -> None:
    try:
        # Index files are never written again, so that two names may share the bytes.
        place.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, place)
