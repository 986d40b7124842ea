"""One shard of an index, built in a thread: FAISS works outside Python's lock, so training goes on.

Tuned and, where no setting is good enough, replaced by exact search. Must not know ranks or when a
build is due.

n labels of the shard, B documents it is tuned on, X width of the vectors.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

from plant_dist.config.schema import ShortlistConfig
from plant_dist.errors import ArtifactError, PlantError
from plant_dist.logs import get_logger
from plant_dist.shortlist.factory import FLAT, choose_factory
from plant_dist.shortlist.index import (
    About,
    Float32,
    LabelIndex,
    Shard,
    build_shard,
    exact_search,
    write_about,
    write_shard,
)
from plant_dist.shortlist.quality import TOP, SearchPoint, measure, tuning_curve
from plant_dist.train.label_vectors import VectorMaker

log = get_logger(__name__)


def build_whole(
    folder: Path, maker: VectorMaker, kind: str, queries: Float32, config: ShortlistConfig,
    label_space: str,
) -> None:  # fmt: skip
    """Build the index of all labels in one shard, here and now, into a new folder.

    Args:
        maker: makes the labels' vectors of a `kind`. queries: (B, X) that it is tuned on.
        label_space: digest of the label space.

    Raises:
        ArtifactError: it could not be built.
    """
    labels, width = maker.model.labels.count, maker.retriever.width_of(kind)
    vectors = maker.labels(kind, 0, labels)(0, labels)
    factory = choose_factory(config.index, labels, width, config.memory_mb)
    folder.mkdir(parents=True)
    build = ShardBuild(folder, vectors, 0, factory, config, queries, seed=0)
    build.run()
    if build.shard is None:
        raise ArtifactError(f"{folder}: no index of labels could be built ({build.trouble})")
    write_about(folder, About(label_space, labels, width, kind, 0, build.seconds, (build.shard,)))


class ShardBuild(threading.Thread):
    """Builds a shard from a copy of its vectors, tunes it, and writes it.

    Args:
        folder: where its file goes.
        vectors: (n, X) of the labels from `start` on; let go when the build ends.
        factory: FAISS factory string.
        queries: (B, X) document vectors that it is tuned on; none tunes nothing.

    Attributes:
        shard: what was written; None where there was trouble.
        point: recall and speed of the setting chosen; None without queries.
        trouble: what went wrong, in words.
    """

    def __init__(
        self, folder: Path, vectors: Float32, start: int, factory: str, config: ShortlistConfig,
        queries: Float32, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(name="shortlist", daemon=True)
        self.folder, self.start_label, self.stop_label = folder, start, start + len(vectors)
        self._vectors, self._factory, self._config = vectors, factory, config
        self._queries, self._seed = queries, seed
        self.shard: Shard | None = None
        self.point: SearchPoint | None = None
        self.seconds = 0.0
        self.trouble: str | None = None

    def run(self) -> None:
        began = time.monotonic()
        try:
            self._build(self._factory)
            if self.point and self.point.recall < self._config.index_recall and not self._exact:
                log.warning(
                    "shortlist: %s finds %.3f of the exact best %d with %s, below "
                    "shortlist.index_recall %.3f; searching exactly instead",
                    self._factory, self.point.recall, TOP, self.point.search,
                    self._config.index_recall,
                )  # fmt: skip
                self._factory = FLAT
                self._build(FLAT)
        except (PlantError, OSError, RuntimeError, MemoryError) as error:
            # Told to all ranks when they next meet; an error in a thread would reach nobody.
            self.trouble = f"{type(error).__name__}: {error}"
        self.seconds = time.monotonic() - began
        # The copy may be gigabytes.
        del self._vectors

    @property
    def _exact(self) -> bool:
        return self._factory == FLAT

    def _build(self, factory: str) -> None:
        def source(low: int, high: int) -> Float32:
            return self._vectors[low - self.start_label : high - self.start_label]

        start, stop, width = self.start_label, self.stop_label, self._vectors.shape[1]
        index = build_shard(source, start, stop, width, factory, self._seed)
        self.shard = write_shard(self.folder, index, start, stop, factory)
        del index
        if not len(self._queries):
            return
        # Opened as it will be searched: from its file.
        about = About("", stop, width, "", 0, 0.0, (self.shard,))
        opened = LabelIndex(self.folder, about)
        k = self._config.candidates
        _, exact = exact_search(source, start, stop, self._queries, TOP)
        if self._config.search is not None and opened.tunable:
            opened.set_search(self._config.search)
            self.point = measure(opened, self._queries, exact, k)
        else:
            points = tuning_curve(opened, self._queries, exact, k, self._config.index_recall)
            self.point = points[-1]
        self.shard = replace(self.shard, search=self.point.search)
