"""Which admissions and which codes an experiment takes: label sets, splits, planting documents.

Works on arrays: admissions, their patients, their codes. Everything the literature disagrees on is
decided here, and what a label set may know of validation and test is: which codes occur in test
(`few`, `rare-50`) and how often codes occur overall (`top-50`, minimum counts), as published; never
a text. Must not know files or notes.

A admissions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from plant_dist.data.csr import Csr, Int8, Int64
from plant_dist.data.mimic.lists import AdmissionLists
from plant_dist.data.records import SPLITS
from plant_dist.data.splits import PLANTING, TEST, TRAIN, UNSAID, VALIDATION, stratify
from plant_dist.errors import ConfigError, DataError

LabelSet = Literal["full", "top-50", "rare-50", "few"]
LABEL_SETS = ("full", "top-50", "rare-50", "few")
FEW_SHOT = ("rare-50", "few")
TOP = 50
# `few`: 1 to 5 training documents; `rare-50`, where no list is at hand: at most 10.
FEW, RARE = 5, 10


@dataclass(frozen=True)
class Admissions:
    """What is known of every admission that has a discharge summary.

    Attributes:
        ids, subjects: (A,) int64.
        codes: A rows of code numbers.
        names: label id of each code number.
    """

    ids: Int64
    subjects: Int64
    codes: Csr
    names: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """What is to be read.

    Attributes:
        splits: (A,) int8, an index into `DOCUMENT_SETS`, or `UNSAID` for what is left out.
        codes: A rows of code numbers, of this experiment's label set alone.
        labels: code numbers of the label set, rising.
        left_out: admissions left out, by reason.
    """

    splits: Int8
    codes: Csr
    labels: Int64
    left_out: dict[str, int]


@dataclass(frozen=True)
class Protocol:
    """The rules of an experiment.

    Attributes:
        label_set: one of `LABEL_SETS`.
        min_documents: codes of fewer documents are dropped, before all else.
        planting: whether training documents outside the experiment serve planting.
        seed, shares: of a split made here; shares of train, validation, test.
        code_list: label ids to keep, in place of those that a label set would choose.
    """

    label_set: str
    min_documents: int
    planting: bool
    seed: int
    shares: tuple[float, float, float]
    code_list: frozenset[str] | None = None


def design(
    admissions: Admissions,
    protocol: Protocol,
    lists: AdmissionLists | None,
    subset: AdmissionLists | None,
) -> Experiment:
    """Decide what an experiment reads.

    Args:
        admissions: all with a discharge summary.
        protocol: the rules.
        lists: the split of the whole corpus; made from the seed if None.
        subset: the experiment's own admissions and splits, where it is narrower.

    Raises:
        DataError: a patient stands in two splits, or a label set or a split comes out empty.
        ConfigError: planting documents are asked for and no split of the whole corpus is known.
    """
    counts = np.bincount(admissions.codes.values, minlength=len(admissions.names))
    frequent = _restrict(admissions.codes, counts >= protocol.min_documents)
    whole = _whole_split(admissions, frequent, protocol, lists, subset)
    chosen = whole if subset is None else _listed(admissions, subset)
    if subset is not None and subset.labels:
        codes, labels = _given_labels(admissions, subset)
    else:
        labels = _label_set(protocol.label_set, frequent, admissions.names, whole)
        if protocol.code_list is not None:
            used = np.unique(frequent.values)
            listed = [number for number in used if admissions.names[number] in protocol.code_list]
            labels = np.array(listed, np.int64)
        wanted = np.zeros(len(admissions.names), bool)
        wanted[labels] = True
        codes = _restrict(frequent, wanted)
    splits = np.where(codes.lengths() > 0, chosen, UNSAID).astype(np.int8)
    _refuse_shared_patients(admissions, splits)
    _refuse_empty(splits, labels, protocol)
    left_out = {
        "in no list": int((chosen == UNSAID).sum()),
        "without a code of the label set": int(((chosen != UNSAID) & (splits == UNSAID)).sum()),
    }
    if protocol.planting and protocol.label_set in FEW_SHOT:
        splits = _with_planting(admissions.subjects, splits, whole)
    return Experiment(splits, codes, labels, left_out)


def _whole_split(
    admissions: Admissions,
    codes: Csr,
    protocol: Protocol,
    lists: AdmissionLists | None,
    subset: AdmissionLists | None,
) -> Int8:
    """Return (A,) splits of the whole corpus."""
    if lists is not None:
        return _listed(admissions, lists)
    if subset is None:
        return _made(admissions, codes, protocol)
    if protocol.planting and protocol.label_set in FEW_SHOT:
        raise ConfigError(
            "data.planting_corpus is training_split, but only the experiment's own lists are "
            "known; set data.reader_options.splits to the lists of the full corpus, or "
            "data.planting_corpus=experiment"
        )
    return _listed(admissions, subset)


def _listed(admissions: Admissions, lists: AdmissionLists) -> Int8:
    splits = (lists.splits.get(int(one)) for one in admissions.ids)
    codes = (UNSAID if split is None else SPLITS.index(split) for split in splits)
    return np.fromiter(codes, np.int8, len(admissions.ids))


def _made(admissions: Admissions, codes: Csr, protocol: Protocol) -> Int8:
    """Split patients, every code in proportion; admissions without a code stay out."""
    coded = np.flatnonzero(codes.lengths() > 0)
    if not len(coded):
        raise DataError("no admission with a discharge summary has a code; check data.path")
    units = np.unique(admissions.subjects[coded], return_inverse=True)[1].astype(np.int64)
    random = np.random.default_rng([protocol.seed, 0])
    made = np.full(len(admissions.ids), UNSAID, np.int8)
    made[coded] = stratify(codes.take(coded), units, np.array(protocol.shares), random)[units]
    return made


def _label_set(label_set: str, codes: Csr, names: tuple[str, ...], splits: Int8) -> Int64:
    """Return the code numbers of a label set, rising."""
    # Admissions of no split say nothing, or the label set would depend on what is not used.
    counts = {
        code: np.bincount(codes.take(np.flatnonzero(splits == code)).values, minlength=len(names))
        for code in (TRAIN, VALIDATION, TEST)
    }
    overall = np.sum(list(counts.values()), axis=0)
    if label_set == "full":
        return np.flatnonzero(overall)
    if label_set == "top-50":
        return _most_frequent(overall)
    limit = FEW if label_set == "few" else RARE
    scarce = (counts[TRAIN] >= 1) & (counts[TRAIN] <= limit) & (counts[TEST] >= 1)
    if label_set == "few":
        return np.flatnonzero(scarce)
    return _most_frequent(np.where(scarce, counts[TRAIN], 0))


def _most_frequent(counts: Int64) -> Int64:
    # Stable, so that ties fall to the code that sorts first.
    best = np.argsort(-counts, kind="stable")[:TOP]
    return np.sort(best[counts[best] > 0])


def _given_labels(admissions: Admissions, subset: AdmissionLists) -> tuple[Csr, Int64]:
    """Return the label set as the lists state it, and codes: of their admissions as they say.

    Other admissions, which may serve planting, keep what the code tables give them of the label
    set: without it they would speak against codes that they carry.
    """
    place = {name: number for number, name in enumerate(admissions.names)}
    everything = {name for names in subset.labels.values() for name in names}
    labels = np.array(sorted(_number(name, place, 0) for name in everything), np.int64)
    wanted = np.zeros(len(admissions.names), bool)
    wanted[labels] = True
    tables = _restrict(admissions.codes, wanted)
    rows = [
        sorted({_number(name, place, int(one)) for name in subset.labels[int(one)]})
        if int(one) in subset.labels
        else tables.row(row).tolist()
        for row, one in enumerate(admissions.ids)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    values = np.array([number for row in rows for number in row], np.int32)
    return Csr(offsets, values), labels


def _number(name: str, place: dict[str, int], admission: int) -> int:
    number = place.get(name)
    if number is None:
        raise DataError(
            f"the lists give admission {admission or '?'} the code {name!r}, which no code table "
            "holds; check data.path and data.reader_options.icd"
        )
    return number


def _with_planting(subjects: Int64, splits: Int8, whole: Int8) -> Int8:
    """Return splits in which further training documents of the whole corpus serve planting.

    No admission of a patient whom the experiment validates or tests on is among them.
    """
    held_out = np.unique(subjects[(splits == VALIDATION) | (splits == TEST)])
    free = (whole == TRAIN) & (splits == UNSAID) & ~np.isin(subjects, held_out)
    return np.where(free, PLANTING, splits).astype(np.int8)


def _restrict(codes: Csr, wanted: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Csr:
    """Return the same rows without the codes that are not wanted."""
    kept = wanted[codes.values]
    lengths = np.bincount(codes.owners()[kept], minlength=codes.size)
    return Csr(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), codes.values[kept])


def _refuse_shared_patients(admissions: Admissions, splits: Int8) -> None:
    used = splits != UNSAID
    pairs = np.unique(np.stack([admissions.subjects[used], splits[used]], axis=1), axis=0)
    subjects, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        subject = subjects[counts > 1][0]
        named = ", ".join(SPLITS[code] for code in pairs[pairs[:, 0] == subject, 1])
        raise DataError(
            f"patient {subject} and {int((counts > 1).sum()) - 1} more stand in several splits "
            f"({named}); a test on known patients is no test: correct data.reader_options.splits"
        )


def _refuse_empty(splits: Int8, labels: Int64, protocol: Protocol) -> None:
    if not len(labels):
        raise DataError(
            f"label set {protocol.label_set!r} is empty; check data.reader_options: icd, codes, "
            "min_documents and splits"
        )
    if not (splits == TRAIN).any():
        raise DataError(
            "no admission with a discharge summary is for training; check that "
            "data.reader_options.splits belongs to this release"
        )
