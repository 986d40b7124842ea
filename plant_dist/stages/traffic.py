"""What a training step on many ranks sends, reads and computes. Arithmetic only.

Bytes are counted from the sizes of what travels; seconds divide them by rates that the caller
names. Nothing overlaps, so that a step takes no longer than the sum says if the rates are met. Must
not read files, models or documents.

B documents of a rank's batch, T their padded tokens, K labels considered, U distinct labels of the
batch, n labels of a rank, X width of the retrieval vectors, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.schema import Config
from plant_dist.labels.choice import RowsPlan
from plant_dist.labels.table import FROZEN_FIELDS
from plant_dist.models.retriever import DECODER, LEARNED
from plant_dist.models.shapes import EncoderShape
from plant_dist.shortlist.factory import REFINED_FROM, choose_factory
from plant_dist.shortlist.index import TRAINING_PER_LIST
from plant_dist.stages.estimate import (
    FLOAT,
    Share,
    considered_labels,
    distinct_labels,
    label_widths,
)

LONG = 8  # bytes of an id
# Lists of an index that a search reads: 8 to 16 reached 98 to 100 % on a million made labels.
PROBED_LISTS = 16
# A fetched number is gathered, written, read by the step, and its gradient goes the same way.
ROW_PASSES = 6


@dataclass(frozen=True)
class Machine:
    """Ranks and the rates that they sustain.

    Attributes:
        ranks: W. ranks_per_node: of one host.
        memory: bytes of a rank's device.
        compute: floating-point operations a second, of a rank.
        memory_rate: bytes a second between a device and its memory.
        link_rate: bytes a second that a rank sends to others, while all send.
        search_rate: bytes a second of an index that a rank scans.
    """

    ranks: int
    memory: float
    ranks_per_node: int = 8
    compute: float = 100e12
    memory_rate: float = 1.5e12
    link_rate: float = 20e9
    search_rate: float = 40e9


@dataclass(frozen=True)
class IndexSize:
    """A rank's shard of the index.

    Attributes:
        factory: FAISS factory string. bytes: of its file.
        building: bytes that a background build holds beside: a copy of the vectors, the sample
            that centroids are trained on, and the new index.
        scanned: bytes of codes read for one document; centroids are read once for all.
    """

    factory: str
    bytes: float
    building: float
    scanned: float


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step.

    Attributes:
        ids: of labels, to the owners of their rows. rows: of others' labels, by their owner.
        gradients: of rows, home. shared: all-reduced gradients of the encoder and what else is not
            a row. questions: document vectors, and what the shards found.
    """

    ids: float
    rows: float
    gradients: float
    shared: float
    questions: float

    @property
    def all_to_all(self) -> float:
        """Bytes of the rows' exchange."""
        return self.ids + self.rows + self.gradients


def index_size(config: Config, labels: int, width: int) -> IndexSize:
    """Return the size of a shard of n labels with vectors of X numbers.

    Raises:
        ConfigError: no index fits into `shortlist.memory_mb`, or FAISS does not know the factory.
    """
    factory = choose_factory(config.shortlist.index, labels, width, config.shortlist.memory_mb)
    parts = factory.split(",")
    lists = next((int(part[3:]) for part in parts if part.startswith("IVF")), 0)
    refined = parts.pop() if parts[-1].startswith("Refine") else None
    code, book = _code_bytes(parts[-1], width)
    fine = 0.0 if refined is None else _code_bytes(refined[len("Refine(") : -1], width)[0]
    # A list keeps the ids of its labels beside their codes.
    size = labels * (code + fine + (LONG if lists else 0)) + lists * width * FLOAT + book
    sample = min(labels, max(65_536, TRAINING_PER_LIST * lists)) if lists else 0
    building = (labels + sample) * width * FLOAT + size
    share = min(1.0, PROBED_LISTS / lists) if lists else 1.0
    again = REFINED_FROM * config.shortlist.candidates * fine
    return IndexSize(factory, size, building, labels * code * share + again)


def _code_bytes(quantiser: str, width: int) -> tuple[float, float]:
    """Return the bytes of a label's code, and of the code book."""
    if quantiser.startswith("SQ8"):
        return width, 0
    if quantiser.startswith("PQ"):
        pieces, bits = quantiser[2:].removesuffix("fs").partition("x")[::2]
        each = int(bits) if bits else 8
        return int(pieces) * each / 8, 2**each * width * FLOAT
    return width * FLOAT, 0


def traffic_of(
    config: Config, encoder: EncoderShape, labels: int, share: Share, rows: RowsPlan, ranks: int
) -> Traffic:
    """Return what a rank sends in a step."""
    if ranks == 1:
        return Traffic(0, 0, 0, 0, 0)
    widths = label_widths(config, encoder.width)
    learnt = sum(width for name, width in widths.items() if name not in FROZEN_FIELDS)
    distinct = distinct_labels(labels, share, considered_labels(config, labels))
    away = (ranks - 1) / ranks
    ids, fetched = distinct * LONG, distinct * rows.numbers * FLOAT * away
    if rows.engine == "sharded":
        # Each field asks for its rows by itself.
        ids *= len(widths) * away
    else:
        # Nobody fetches, but everybody hears every rank's ids and gradients.
        ids, fetched = ids * (ranks - 1), 0.0
    home = distinct * learnt * FLOAT * (away if rows.engine == "sharded" else ranks - 1)
    return Traffic(ids, fetched, home, 2 * away * shared_bytes(config, encoder),
                   _question_bytes(config, encoder, share, ranks))  # fmt: skip


def shared_bytes(config: Config, encoder: EncoderShape) -> float:
    """Return the bytes of gradients that all ranks sum: of all that learns and is no row."""
    learning = 0 if config.train.optim.freeze_encoder else encoder.trained
    if "planted" in config.model.branches and not config.model.freeze_ranker:
        width = 1 + (config.rank.width if config.rank.kind == "lexical" else 0)
        learning += encoder.vocabulary * width
    if "bag" in config.model.branches:
        learning += (encoder.vocabulary + config.model.bag_pairs) * config.model.bag_width
    if config.train.labels == "shortlist" and config.shortlist.vectors == LEARNED:
        learning += config.shortlist.width**2
    return float(learning * FLOAT)


def _question_bytes(config: Config, encoder: EncoderShape, share: Share, ranks: int) -> float:
    if config.train.labels != "shortlist":
        return 0.0
    # A document's vector goes to every other rank, and from each come K scores and ids.
    vector = vector_width(config, encoder) * FLOAT
    answer = config.shortlist.labels_per_document * (FLOAT + LONG)
    return share.documents * (ranks - 1) * float(vector + answer)


def vector_width(config: Config, encoder: EncoderShape) -> int:
    """Return X of the widest tower."""
    if config.shortlist.vectors == DECODER:
        widths = label_widths(config, encoder.width)
        return 1 + sum(widths.get(field, 0) for field in ("name", "boost", "bag"))
    learned = config.shortlist.width if config.shortlist.vectors == LEARNED else 0
    factor = encoder.width if config.rank.kind == "contextual" else config.rank.width
    ranker = factor + 2 if "planted" in config.model.branches else 0
    return max(learned, ranker)


def seconds_of(
    config: Config, encoder: EncoderShape, labels: int, share: Share, sent: Traffic,
    index: IndexSize | None, machine: Machine,
) -> dict[str, float]:  # fmt: skip
    """Return the seconds of a step by part, one after another."""
    considered = considered_labels(config, labels)
    widths = label_widths(config, encoder.width)
    numbers = sum(widths.values())
    # Two operations a weight and token forward, twice as many backward.
    passes = 2 if config.train.optim.freeze_encoder else 6
    read = encoder.parameters - encoder.vocabulary * encoder.width
    attended = sum(width for name, width in widths.items() if name in ("query", "factor", "boost"))
    pairs = share.documents * considered
    touched = distinct_labels(labels, share, considered) * numbers * FLOAT
    scanned = 0.0
    if index is not None:
        # Every shard is asked by the documents of all ranks.
        scanned = share.documents * machine.ranks * index.scanned
    return {
        "encoder": passes * read * share.tokens / machine.compute,
        "label attention": 6 * share.tokens * considered * attended / machine.compute,
        "rows": (ROW_PASSES * touched + 4 * pairs * numbers * FLOAT) / machine.memory_rate,
        "all-to-all": sent.all_to_all / machine.link_rate,
        "all-reduce": sent.shared / machine.link_rate,
        "search": scanned / machine.search_rate + sent.questions / machine.link_rate,
    }
