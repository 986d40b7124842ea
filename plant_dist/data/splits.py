"""Which document trains, validates and tests: the corpus's own split, a random or a stratified one.

Works on integer arrays only: what a corpus said (codes), its groups, its labels. A group, such as
a patient, never crosses a split made here. Every choice follows from a seed. Must not know texts.
"""

from __future__ import annotations

import hashlib
import heapq

import numpy as np
import numpy.typing as npt
from scipy import sparse

from plant_dist.config.schema import DataConfig
from plant_dist.data.csr import Csr, Int8, Int32, Int64
from plant_dist.data.records import DOCUMENT_SETS, SPLITS
from plant_dist.errors import ConfigError

TRAIN, VALIDATION, TEST, PLANTING = range(len(DOCUMENT_SETS))
UNSAID = -1
# Independent random streams of one seed.
_SPLIT_STREAM, _SUBSET_STREAM = 0, 1
# What the corpora in use call their splits: CAML says dev, PECOS trn and tst.
_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "development": "validation",
    "test": "test", "tst": "test", "testing": "test",
    "planting": "planting",
}  # fmt: skip


def named_split(word: str) -> str | None:
    """Return the member of `DOCUMENT_SETS` that a corpus's own word means, or None."""
    return _WORDS.get(word.strip().lower())


def assign_splits(
    data: DataConfig, given: Int8, groups: npt.NDArray[np.uint64], labels: Csr, seed: int
) -> Int8:
    """Decide every document's split.

    Args:
        data: `split`, `validation_fraction` and `test_fraction` are read. With `given`, a corpus
            that has no validation documents lends `validation_fraction` of its training ones,
            because early stopping and thresholds must never look at test.
        given: (N,) the corpus's own split, an index into `DOCUMENT_SETS` or `UNSAID`.
        groups: (N,) equal numbers stay together.
        labels: N rows of label indices.
        seed: of the random choices.

    Returns:
        (N,) int8, indices into `DOCUMENT_SETS`; a split made here has no planting documents.

    Raises:
        ConfigError: the fractions leave nothing for training.
    """
    if data.validation_fraction + data.test_fraction >= 1.0:
        raise ConfigError(
            f"data.validation_fraction ({data.validation_fraction}) and data.test_fraction "
            f"({data.test_fraction}) leave nothing for training; lower one"
        )
    # What is placed is a unit: a group, or a document that has none.
    units = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    # A stream of its own: drawing more or less elsewhere moves no document.
    random = np.random.default_rng([seed, _SPLIT_STREAM])
    if data.split == "given":
        return _lend_validation(given, units, data.validation_fraction, random)
    fractions = (data.validation_fraction, data.test_fraction)
    if data.split == "random":
        return _random_units(len(np.unique(units)), fractions, random)[units]
    shares = np.array([1.0 - sum(fractions), *fractions])
    return stratify(labels, units, shares, random)[units]


def groups_across_splits(splits: Int8, groups: npt.NDArray[np.uint64]) -> int:
    """Return how many groups have documents in more than one split."""
    # A group is in as many splits as it has distinct (group, split) pairs.
    pairs = np.unique(np.stack([groups, splits.astype(np.uint64)], axis=1), axis=0)
    counts = np.unique(pairs[:, 0], return_counts=True)[1]
    return int((counts > 1).sum())


def planting_rows(splits: Int8, groups: npt.NDArray[np.uint64]) -> tuple[Int64, int]:
    """Return the rows that planting counts, rising, and how many planting rows were struck.

    They are those of training and of `PLANTING`; without any of the latter there is no such set,
    and no row. A planting document whose group validates or tests is struck, whatever the corpus
    says, so that no statistic ever knows a patient of the test.
    """
    extra = splits == PLANTING
    held_out = np.unique(groups[(splits == VALIDATION) | (splits == TEST)])
    allowed = extra & ~np.isin(groups, held_out)
    struck = int(extra.sum() - allowed.sum())
    if not allowed.any():
        return np.zeros(0, np.int64), struck
    return np.flatnonzero(allowed | (splits == TRAIN)), struck


def draw_subset(rows: Int64, count: int, seed: int) -> Int64:
    """Draw `count` of the given rows, in rising order; a smaller draw is inside a larger one."""
    # A prefix of one permutation: that is what nests 25 documents in 50, for few-shot curves.
    order = np.random.default_rng([seed, _SUBSET_STREAM]).permutation(len(rows))
    return np.sort(rows[order[:count]])


def stratify(
    labels: Csr, units: Int64, shares: npt.NDArray[np.float64], random: np.random.Generator
) -> Int8:
    """Spread every label over the splits in proportion, the rarest label first.

    Iterative stratification of Sechidis, Tsoumakas and Vlahavas (ECML PKDD 2011, algorithm 1),
    with groups of documents as units: demands are counted in documents, a unit is placed whole.
    The label with the fewest unplaced units comes next (ties: lowest index); each of its units,
    in random order, goes where the label is wanted most (ties: where documents are wanted most,
    then the first split).

    Args:
        labels: N rows of label indices.
        units: (N,) each document's unit, 0 … U - 1.
        shares: (3,) wanted share of each split, sum 1; a split of share 0 stays empty.
        random: the order of units.

    Returns:
        (U,) int8, indices into `SPLITS`.
    """
    counts_UL, order = _unit_label_counts(labels, units, random)
    sizes = np.bincount(units)[order].astype(np.float64)
    by_label = counts_UL.tocsc()
    unplaced = np.diff(by_label.indptr)
    demand = np.outer(np.asarray(counts_UL.sum(axis=0)).ravel(), shares)
    demand_all = sizes.sum() * shares
    # The paper knows no empty split. Demands fall below 0 in the end, so that a split that wants
    # nothing would attract what is left.
    demand[:, shares == 0.0] = demand_all[shares == 0.0] = -np.inf
    placed = np.full(len(sizes), UNSAID, np.int8)

    def place(unit: int, wanted: npt.NDArray[np.float64]) -> Int32:
        tied = wanted == wanted.max()
        split = int(np.argmax(np.where(tied, demand_all, -np.inf)))
        row = slice(counts_UL.indptr[unit], counts_UL.indptr[unit + 1])
        touched: Int32 = counts_UL.indices[row]
        demand[touched, split] -= counts_UL.data[row]
        demand_all[split] -= sizes[unit]
        unplaced[touched] -= 1
        placed[unit] = split
        return touched

    # A count that changed is pushed again; the outdated entry is skipped when it surfaces.
    queue = [(int(count), label) for label, count in enumerate(unplaced) if count]
    heapq.heapify(queue)
    while queue:
        count, label = heapq.heappop(queue)
        # A label is exhausted or has a newer entry; both show as a count that is no longer true.
        if count != unplaced[label]:
            continue
        members = by_label.indices[by_label.indptr[label] : by_label.indptr[label + 1]]
        touched = [place(unit, demand[label]) for unit in members if placed[unit] == UNSAID]
        for other in np.unique(np.concatenate(touched)):
            if unplaced[other]:
                heapq.heappush(queue, (int(unplaced[other]), int(other)))
    for unit in np.flatnonzero(placed == UNSAID):  # units without any label
        place(int(unit), demand_all)
    # Back from the random order to the caller's numbers.
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _unit_label_counts(
    labels: Csr, units: Int64, random: np.random.Generator
) -> tuple[sparse.csr_array, Int64]:
    """Return documents per (unit, label), units in a random order, and that order."""
    owners = units[labels.owners()]
    width = int(labels.values.max()) + 1 if len(labels.values) else 0
    shape = (int(units.max()) + 1, width)
    ones = np.ones(len(owners))
    # Converting to rows adds up the documents of a unit that carry the same label.
    counts_UL = sparse.coo_array((ones, (owners, labels.values)), shape=shape).tocsr()
    order = random.permutation(shape[0])
    return counts_UL[order], order


def _random_units(count: int, fractions: tuple[float, float], random: np.random.Generator) -> Int8:
    """Return (count,) splits; a split asked for gets a unit wherever there are three."""
    # Rounding must not leave a small corpus without validation, or without test.
    least = 1 if count >= len(SPLITS) else 0
    validation, test = (max(least, round(share * count)) if share else 0 for share in fractions)
    order = random.permutation(count)
    splits = np.full(count, TRAIN, np.int8)
    splits[order[:validation]] = VALIDATION
    splits[order[validation : validation + test]] = TEST
    return splits


def _lend_validation(
    given: Int8, units: Int64, fraction: float, random: np.random.Generator
) -> Int8:
    if (given == VALIDATION).any() or not fraction:
        return given
    # By units among the training documents alone: test documents must stay where they are.
    rows = np.flatnonzero(given == TRAIN)
    names, local = np.unique(units[rows], return_inverse=True)
    lent = _random_units(len(names), (fraction, 0.0), random)[local]
    splits: Int8 = given.copy()
    splits[rows] = lent
    return splits


def split_by_hash(name: str, train_percent: int, validation_percent: int) -> str:
    """Return a member of `SPLITS`: the name's MD5 as a number, modulo 100, against two bounds.

    The name alone says its split, also in next year's release of the same corpus, so anyone who
    rebuilds one finds the same split again.

    Args:
        name: a document's id, or what must not cross a split.
        train_percent: share of names for training.
        validation_percent: share for validation; what is left over is for test.
    """
    # MD5 spreads evenly and is the same everywhere; nothing here is secret.
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    place = int(digest, 16) % 100
    if place < train_percent:
        return "train"
    return "validation" if place < train_percent + validation_percent else "test"
