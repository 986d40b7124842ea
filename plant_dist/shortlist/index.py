"""The index of label vectors: which labels have the largest inner product with a document.

FAISS in shards of consecutive labels, each saved as a file of its own and searched from a memory
map. A folder says which labels and which vectors it was built for, and is refused for others. Must
not know where vectors come from, nor what is done with what is found.

B documents, K labels retrieved, L labels, n labels of a shard, X width of the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np
from numpy.typing import NDArray

from plant_dist.artifacts import write_json
from plant_dist.errors import ArtifactError, ConfigError
from plant_dist.shortlist.factory import REFINED_FROM, empty_index, reason

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
# Returns label vectors (n, X) of consecutive labels start … stop-1.
VectorSource: TypeAlias = Callable[[int, int], Float32]

ABOUT = "about.json"
TRAINING_PER_LIST = 64  # vectors that FAISS trains a centroid on; more brought no recall
LABELS_AT_ONCE = 65_536
# Queries from which FAISS is told to multiply matrices: seven times as fast for 32 queries of 897
# numbers among 98 thousand, by default done from some hundred queries on (faiss-cpu 1.15.1).
PRODUCTS_FROM = 4
_ONE_BY_ONE = faiss.cvar.distance_compute_blas_threshold


@dataclass(frozen=True)
class Shard:
    """The labels start … stop-1 of an index.

    Attributes:
        bytes: size of its file.
        factory: FAISS factory string. search: FAISS search settings; empty for its own.
    """

    start: int
    stop: int
    bytes: int
    factory: str
    search: str = ""

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"labels-{self.start:09d}-{self.stop:09d}.faiss"


@dataclass(frozen=True)
class About:
    """What an index folder was built for.

    Attributes:
        label_space: digest of the label space.
        labels: L. width: X.
        vectors: which document vectors it is searched with: `ranker` or `learned`.
        step: optimizer steps behind the vectors.
        build_seconds: of the slowest shard.
    """

    label_space: str
    labels: int
    width: int
    vectors: str
    step: int
    build_seconds: float
    shards: tuple[Shard, ...]


def build_shard(
    vectors: VectorSource, start: int, stop: int, width: int, factory: str, seed: int
) -> Any:
    """Train and fill a FAISS index of the labels start … stop-1, block by block."""
    index = empty_index(factory, width)
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = REFINED_FROM
    if not index.is_trained:
        # Any label may be drawn; blocks of neighbours would know one part of the space.
        wanted = min(stop - start, max(65_536, TRAINING_PER_LIST * _lists(index)))
        index.train(_sample(vectors, start, stop, wanted, seed))
    for low in range(start, stop, LABELS_AT_ONCE):
        index.add(np.ascontiguousarray(vectors(low, min(low + LABELS_AT_ONCE, stop)), np.float32))
    return index


def _lists(index: Any) -> int:
    try:
        return int(faiss.extract_index_ivf(index).nlist)
    except RuntimeError:
        return 0


def _sample(vectors: VectorSource, start: int, stop: int, wanted: int, seed: int) -> Float32:
    chosen = np.sort(np.random.default_rng(seed).choice(stop - start, wanted, replace=False))
    parts = []
    for low in range(0, stop - start, LABELS_AT_ONCE):
        high = min(low + LABELS_AT_ONCE, stop - start)
        inside = chosen[(chosen >= low) & (chosen < high)] - low
        if len(inside):
            parts.append(vectors(start + low, start + high)[inside])
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def write_shard(folder: Path, index: Any, start: int, stop: int, factory: str) -> Shard:
    """Write a shard's file and describe it.

    Raises:
        ArtifactError: there is no room for it.
    """
    shard = Shard(start, stop, 0, factory)
    path = folder / shard.name
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} cannot be written ({reason(error)}); free some space there"
        ) from None
    return replace(shard, bytes=path.stat().st_size)


def write_about(folder: Path, about: About) -> None:
    """Say what a folder of shards was built for; written last, it makes the folder whole."""
    write_json(folder / ABOUT, asdict(about))


class LabelIndex:
    """Shards of an index folder, opened.

    Args:
        folder: what `write_shard` and `write_about` made.
        about: its description.
        shards: which of its shards to open; all if None.
    """

    def __init__(self, folder: Path, about: About, shards: Sequence[int] | None = None) -> None:
        self.folder, self.about = folder, about
        chosen = range(len(about.shards)) if shards is None else shards
        self._shards: list[tuple[Shard, Any]] = []
        for one in chosen:
            shard = about.shards[one]
            self._shards.append((shard, _open(folder, shard)))
            _set(self._shards[-1][1], shard, shard.search)

    @classmethod
    def load(
        cls,
        folder: Path,
        label_space: str | None = None,
        width: int | None = None,
        shards: Sequence[int] | None = None,
        repair: str = "plant-dist shortlist",
    ) -> LabelIndex:
        """Open a folder by memory map.

        Args:
            label_space: digest that it must have been built for.
            width: X that it must have.
            repair: the command that builds it anew.

        Raises:
            ArtifactError: it is not there, cut short, unreadable, or of other labels or vectors.
        """
        about = read_about(folder, repair)
        if label_space is not None and about.label_space != label_space:
            raise ArtifactError(
                f"{folder} was built for label space {about.label_space[:12]}, the classifier has "
                f"{label_space[:12]}; run: {repair}"
            )
        if width is not None and about.width != width:
            raise ArtifactError(
                f"{folder} holds vectors of {about.width} numbers, the classifier's have {width}; "
                f"run: {repair}"
            )
        try:
            return cls(folder, about, shards)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; run: {repair}") from None

    @property
    def tunable(self) -> str | None:
        """The FAISS setting that trades time for recall, or None where search is exact."""
        return next(filter(None, (tunable(index) for _, index in self._shards)), None)

    @property
    def lists(self) -> int:
        """Inverted lists of the largest shard; 0 where there are none."""
        return max(_lists(index) for _, index in self._shards)

    @property
    def search_settings(self) -> str:
        """FAISS search settings in use; empty for FAISS's own."""
        return next(filter(None, (shard.search for shard, _ in self._shards)), "")

    def set_search(self, search: str) -> None:
        """Use FAISS search settings, such as `nprobe=16`; shards that search exactly have none.

        Raises:
            ConfigError: this kind of index does not have them.
        """
        for place, (shard, index) in enumerate(self._shards):
            if tunable(index) is not None:
                _set(index, shard, search)
                self._shards[place] = (replace(shard, search=search), index)
        opened = {shard.start: shard for shard, _ in self._shards}
        shards = tuple(opened.get(shard.start, shard) for shard in self.about.shards)
        self.about = replace(self.about, shards=shards)

    def search(self, vectors: Float32, k: int) -> tuple[Float32, Int64]:
        """Return inner products and label ids of the best, (B, min(k, L)), best first.

        Places that the index could not fill have score -inf and label -1. Labels of the opened
        shards alone are found.

        Args: vectors: (B, X) float32 of documents.

        Raises:
            ArtifactError: the vectors are of another width.
        """
        if vectors.shape[1] != self.about.width:
            raise ArtifactError(
                f"{self.folder} is searched with vectors of {vectors.shape[1]} numbers and holds "
                f"some of {self.about.width}; run: plant-dist shortlist"
            )
        vectors = np.ascontiguousarray(vectors, np.float32)
        k = min(k, self.about.labels)
        # Of the whole process; in some versions it counts queries, in others numbers of them.
        by_products = len(vectors) >= PRODUCTS_FROM
        faiss.cvar.distance_compute_blas_threshold = 1 if by_products else _ONE_BY_ONE
        found = []
        for shard, index in self._shards:
            scores, ids = index.search(vectors, min(k, index.ntotal))
            found.append((scores, np.where(ids >= 0, ids + shard.start, -1)))
        return merge([scores for scores, _ in found], [ids for _, ids in found], k)


def merge(scores: Sequence[Float32], label_ids: Sequence[Int64], k: int) -> tuple[Float32, Int64]:
    """Return the k best of what several shards found, (B, k), best first.

    Equal scores go to the smaller label, so that the result does not depend on the shards.
    """
    every_score, every_id = np.concatenate(scores, axis=1), np.concatenate(label_ids, axis=1)
    # FAISS fills a missing place with the lowest float; it must lose to every label.
    every_score = np.where(every_id >= 0, every_score, -np.inf).astype(np.float32)
    order = np.lexsort((every_id, -every_score), axis=1)[:, :k]
    best = np.take_along_axis(every_score, order, 1), np.take_along_axis(every_id, order, 1)
    missing = k - order.shape[1]
    if missing <= 0:
        return best
    # An index may hold fewer labels than are asked for.
    pad = ((0, 0), (0, missing))
    return (
        np.pad(best[0], pad, constant_values=-np.inf),
        np.pad(best[1], pad, constant_values=-1),
    )


def read_about(folder: Path, repair: str = "plant-dist shortlist") -> About:
    """Read what a folder was built for.

    Raises:
        ArtifactError: it is no index, or cannot be read.
    """
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        return About(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{folder} holds no index of labels ({type(error).__name__}); run: {repair}"
        ) from None


def _open(folder: Path, shard: Shard) -> Any:
    path, expected = folder / shard.name, shard.stop - shard.start
    # Checked first: FAISS maps a file that was cut short, and fails when it is searched.
    found = path.stat().st_size if path.is_file() else 0
    if found != shard.bytes:
        raise ArtifactError(f"{path} is cut short: {found:,} of {shard.bytes:,} bytes")
    try:
        # One map serves inverted lists alone, the other flat codes and packed ones in lists.
        parts = shard.factory.split(",")
        inverted = any(one.startswith("IVF") for one in parts) and not parts[-1].startswith(
            "Refine"
        )
        flag = faiss.IO_FLAG_MMAP if inverted else faiss.IO_FLAG_MMAP_IFC
        index = faiss.read_index(str(path), flag)
    except RuntimeError as error:
        raise ArtifactError(f"{path} cannot be read ({reason(error)})") from None
    if index.ntotal != expected:
        raise ArtifactError(f"{path} holds {index.ntotal} labels, {expected} are expected")
    return index


def _set(index: Any, shard: Shard, search: str) -> None:
    if not search:
        return
    try:
        # SWIG has two methods of this name, of which the stubs know one.
        set_search: Any = faiss.ParameterSpace().set_index_parameters
        set_search(index, search)
    except (RuntimeError, ValueError, AssertionError):
        raise ConfigError(
            f"shortlist.search is {search!r}, which an index {shard.factory} does not know; name "
            f"{tunable(index) or 'nothing'}, or unset it"
        ) from None


def tunable(index: Any) -> str | None:
    """The FAISS setting of an index that trades time for recall, or None."""
    try:
        faiss.extract_index_ivf(index)
        return "nprobe"
    except RuntimeError:
        inner = faiss.downcast_index(index)
        while isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        return "efSearch" if isinstance(inner, faiss.IndexHNSW) else None


def exact_search(
    vectors: VectorSource, start: int, stop: int, queries: Float32, k: int
) -> tuple[Float32, Int64]:
    """Return the exact best of the labels start … stop-1, (B, k), block by block."""
    best: tuple[Float32, Int64] | None = None
    for low, high in _ranges(start, stop):
        scores: Float32 = np.asarray(queries @ vectors(low, high).T, np.float32)
        ids: Int64 = np.broadcast_to(np.arange(low, high), scores.shape)
        if scores.shape[1] > k:
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, ids = np.take_along_axis(scores, top, 1), np.take_along_axis(ids, top, 1)
        parts = [(scores, ids)] if best is None else [best, (scores, ids)]
        best = merge([one for one, _ in parts], [one for _, one in parts], min(k, high - start))
    if best is None:
        return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    return best


def _ranges(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for low in range(start, stop, LABELS_AT_ONCE):
        yield low, min(low + LABELS_AT_ONCE, stop)
