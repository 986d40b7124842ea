"""Labels added to a trained classifier from their text alone, and labels removed from it.

What stays keeps its bits: rows, gains, thresholds, encoder and ranker. A new label starts as labels
start before training, from its text, and takes from trained labels what a text cannot tell: the
bias, the prior and the gates of those with fewest training documents, and the length of ranker
factors. With a named branch it is scored by its name alone. It has no token gains, so a static
branch says nothing for it until gains are counted with it.

L labels before, n labels after, D encoder width, R ranker width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from plant_dist.artifacts import Manifest, read_manifest, written_artifact
from plant_dist.config.schema import ShortlistConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.files.tables import Row, is_table, read_rows, read_stream
from plant_dist.data.prepared import LABEL_SPACE
from plant_dist.data.records import Label
from plant_dist.data.tokens import encode
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import ArtifactError, ConfigError, DataError
from plant_dist.logs import get_logger
from plant_dist.metrics.thresholds import Thresholds
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.fields import boosted_branches
from plant_dist.models.hierarchy import NarrowerPairs, narrower_pairs
from plant_dist.models.ranker import ContextualScorer
from plant_dist.models.retriever import FIELD
from plant_dist.runtime.context import RunContext
from plant_dist.stages.saved import CALIBRATION, INDEX, THRESHOLDS, SavedClassifier
from plant_dist.train.embed import TextEmbedder, name_directions
from plant_dist.train.label_vectors import LabelTexts, VectorMaker
from plant_dist.train.shard_build import build_whole

log = get_logger(__name__)

SAMPLE = 1000  # trained labels whose texts tell how long hidden states are, and what all share


@dataclass(frozen=True)
class Change:
    """What becomes of a label space.

    Attributes:
        kept: (k,) int64, indices of the labels that stay, rising.
        added: labels that come after them.
    """

    kept: np.ndarray[Any, np.dtype[np.int64]]
    added: tuple[Label, ...]


def relabel(folder: Path, output: Path, add: Path | None, remove: Path | None) -> Change:
    """Write a classifier with labels added or removed into a new folder.

    Args:
        folder: a saved classifier.
        output: the new one; must not exist.
        add: labels as `data.labels_path` holds them: columns `id`, `text`, and `parent` if any.
        remove: ids, one a line, or a table with a column `id`.

    Raises:
        ConfigError: there is nothing to do, or the output exists.
        DataError: a label to add is there already or has no text, one to remove is not there, or
            none would be left.
        ArtifactError: the folder is no whole classifier.
    """
    if add is None and remove is None:
        raise ConfigError("nothing to change; give --add FILE or --remove FILE")
    if output.exists():
        raise ConfigError(f"--output {output} exists; name a new folder")
    saved = SavedClassifier.load(folder, torch.device("cpu"))
    change = _change(saved.label_space, add, remove)
    space = _space(saved.label_space, change)
    model = changed_model(saved, space, change)
    with written_artifact(output, _manifest(folder, space, change)) as fresh:
        model.save_pretrained(fresh)
        if saved.index is not None:
            # The old index knows neither the new labels nor the new numbers of the others.
            _index(saved, model, space, fresh / INDEX)
        saved.tokenizer.save_pretrained(str(fresh))
        space.save(fresh / LABEL_SPACE)
        if saved.thresholds is not None:
            _thresholds(saved.thresholds, change, len(space)).save(fresh / THRESHOLDS)
        if saved.calibration is not None:
            # Its maps are by bands of training documents, so they hold for the new labels, too.
            saved.calibration.save(fresh / CALIBRATION)
    log.info(
        "labels: %d kept, %d removed, %d added; wrote %s", len(change.kept),
        len(saved.label_space) - len(change.kept), len(change.added), output,
    )  # fmt: skip
    return change


def _index(
    saved: SavedClassifier, model: PlantForMultiLabelClassification, space: LabelSpace, folder: Path
) -> None:
    """Build the index of the changed classifier, tuned on label texts: there are no documents."""
    assert saved.index is not None
    kind, config = saved.index.about.vectors, ShortlistConfig()
    texts = LabelTexts(space.train_frequency, space.texts, saved.tokenizer)
    maker = VectorMaker(model, texts, saved.segmentation, RunContext())
    sample = np.linspace(0, len(space) - 1, min(SAMPLE, len(space))).astype(np.int64)
    asked = [space.texts[int(one)] for one in sample]
    limit = saved.segmentation.content
    queries = maker.documents(kind, csr_from_lists(encode(saved.tokenizer, asked, limit)))
    build_whole(folder, maker, kind, queries, config, space.digest)


def _change(space: LabelSpace, add: Path | None, remove: Path | None) -> Change:
    gone = np.array([space.index(one) for one in _ids(remove)], dtype=np.int64)
    kept = np.setdiff1d(np.arange(len(space)), gone)
    added = tuple(_labels(add))
    present = {space.ids[int(place)] for place in kept}
    for label in added:
        if label.id in present:
            raise DataError(f"label {label.id!r} is in the classifier already; leave it out")
        if not label.text.strip():
            raise DataError(f"label {label.id!r} has no text to start from; give it one")
    if not len(kept):
        raise DataError("no trained label would be left, from which new ones could learn how to "
                        "start; remove fewer")  # fmt: skip
    return Change(kept, added)


def _labels(path: Path | None) -> Iterator[Label]:
    for row in read_rows(path) if path else ():
        parents = row.values.get("parent") or ()
        listed = (parents,) if isinstance(parents, str) else tuple(map(str, parents))
        yield Label(str(row.get("id", "id in every row")), _text(row), listed)


def _text(row: Row) -> str:
    return str(row.get("text", "text in every row") or "")


def _ids(path: Path | None) -> Iterator[str]:
    if path is None:
        return
    if is_table(path):
        yield from (str(row.get("id", "id in every row")) for row in read_rows(path))
        return
    if not path.is_file():
        raise DataError(f"file {path} does not exist")
    with path.open("rb") as stream:
        for row in read_stream(stream, str(path), "lines"):
            if line := str(row.values["text"]).strip():
                yield line


def _space(before: LabelSpace, change: Change) -> LabelSpace:
    stay = (
        Label(before.ids[place], before.texts[place], tuple(before.parents[place]))
        for place in map(int, change.kept)
    )
    frequency = np.zeros(len(change.kept) + len(change.added), np.int64)
    # What it was trained on: counts of new labels are 0, also where documents carry them.
    frequency[: len(change.kept)] = before.train_frequency[change.kept]
    return LabelSpace.create([*stay, *change.added]).with_frequency(frequency)


@torch.no_grad()
def changed_model(
    saved: SavedClassifier, space: LabelSpace, change: Change
) -> PlantForMultiLabelClassification:
    """Return a model of the changed label space; the saved one is not touched.

    Args:
        space: the labels that stay, then the added ones.
    """
    before = saved.model
    assert isinstance(before.config, PlantConfig)
    pairs = _narrower(before.config, space)
    kept = torch.from_numpy(change.kept)
    gains = _kept_gains(before, kept, len(change.added))
    settings = before.config.to_dict()
    settings.update(
        label_count=len(space),
        gain_pairs=len(gains["tokens"]) if gains else before.config.gain_pairs,
        broad_labels=len(pairs.broad) if pairs else 0,
        narrower_pairs=len(pairs.place) if pairs else 0,
    )
    model = PlantForMultiLabelClassification(PlantConfig(**settings))
    resized = ("decoder.labels.", "decoder.gains.", "narrower.")
    # Encoder, ranker and shared numbers go over bit for bit; what has a row per label is below.
    same = {n: one for n, one in before.state_dict().items() if not n.startswith(resized)}
    model.load_state_dict(same, strict=False)
    if model.decoder.gains is not None:
        model.decoder.gains.fill(**gains)
    if model.narrower is not None and pairs is not None:
        model.narrower.fill(pairs)
    fresh = new_rows(saved, change.added) if change.added else {}
    for name, rows in model.labels.fields.items():
        rows[: len(kept)] = before.labels.fields[name][kept]
        if change.added:
            rows[len(kept) :] = fresh[name]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _narrower(config: PlantConfig, space: LabelSpace) -> NarrowerPairs | None:
    share = config.model_section().narrower_share
    return narrower_pairs(space.parent_csr(), share) if share else None


def _kept_gains(
    before: PlantForMultiLabelClassification, kept: Tensor, added: int
) -> Mapping[str, Tensor]:
    """Return the arguments of `StaticGains.fill`: gains of the labels that stay, and no others."""
    gains = before.decoder.gains
    if gains is None:
        return {}
    counts_L = gains.offsets.diff()
    counts = torch.cat([counts_L[kept], counts_L.new_zeros(added)])
    # Whose pairs stay, without a loop over labels.
    stays_L = torch.zeros(len(counts_L), dtype=torch.bool)
    stays_L[kept] = True
    pairs_J = torch.repeat_interleave(stays_L, counts_L)
    return {
        "offsets": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        "tokens": gains.tokens[pairs_J],
        "gains": gains.gains[pairs_J],
    }


def new_rows(saved: SavedClassifier, labels: Sequence[Label]) -> dict[str, Tensor]:
    """Return starting rows of labels that nothing is known of but their text, by field."""
    model, space = saved.model, saved.label_space
    config = model.config.model_section()
    embedder = TextEmbedder(model.encoder, saved.tokenizer, saved.segmentation, RunContext())
    trained = np.linspace(0, len(space) - 1, min(SAMPLE, len(space))).astype(np.int64)
    known_ND = embedder.mean_states([space.texts[int(one)] for one in trained])
    means = embedder.mean_states([label.text for label in labels])
    vectors = normalize(means, dim=-1)
    if config.boost_init == "prototype":
        # What all texts share tells no label from another, as in `prototypes`.
        boosts = normalize(vectors - normalize(known_ND, dim=-1).mean(0), dim=-1)
    else:
        boosts = vectors
    boosted = len(boosted_branches(config))
    scale = config.boost_scale / float(known_ND.norm(dim=-1).mean()) / max(boosted, 1)
    # More than some models have: who asks takes those that are its own.
    rows = {"boost": boosts * scale, "query": vectors * vectors.shape[1] ** 0.5}
    if "name" in model.labels.fields:
        # Until training sees it, a name is all that the new label has.
        rows["name"] = name_directions(means, known_ND.mean(0))
        rows["alone"] = torch.ones(len(labels), 1)
    if "bag" in model.labels.fields:
        rows["bag"] = torch.zeros(len(labels), config.bag_width)
    retriever = model.retriever
    if retriever is not None and retriever.learned is not None:
        rows[FIELD] = retriever.learned.text_vectors(vectors)
    rarest = _rarest(space)
    for name in ("bias", "gate", "prior"):
        if name in model.labels.fields:
            typical = model.labels.fields[name][rarest].median(dim=0).values
            rows[name] = typical.expand(len(labels), -1)
    if "factor" in model.labels.fields:
        rows["factor"] = _factors(saved, labels)
    return rows


def _rarest(space: LabelSpace) -> Tensor:
    """Return the labels that have been seen least, which new ones are most like."""
    frequency = torch.from_numpy(np.array(space.train_frequency))
    return (frequency == frequency.min()).nonzero()[:, 0]


def _factors(saved: SavedClassifier, labels: Sequence[Label]) -> Tensor:
    """Return ranker factors (n, R) that point to the tokens of the labels' own texts."""
    model, scorer = saved.model, saved.model.decoder.scorer
    assert scorer is not None  # there is a field of factors
    if isinstance(scorer, ContextualScorer):
        embedder = TextEmbedder(model.encoder, saved.tokenizer, saved.segmentation, RunContext())
        means = embedder.mean_states([label.text for label in labels])
    else:
        ids = csr_from_lists(encode(saved.tokenizer, [label.text for label in labels]))
        factors, _ = scorer.token_factors(torch.from_numpy(ids.values.astype(np.int64)), None)
        owners = torch.from_numpy(ids.owners())
        means = torch.zeros(len(labels), factors.shape[1]).index_add_(0, owners, factors.cpu())
    # The length that trained factors have, so that scores spread as theirs do.
    length = model.labels.fields["factor"].norm(dim=1).mean()
    factors_nR: Tensor = normalize(means, dim=-1) * length
    return factors_nR


def _thresholds(before: Thresholds, change: Change, labels: int) -> Thresholds:
    """Return thresholds of the labels that stay; new ones have the global threshold."""
    place = np.full(before.labels, -1, dtype=np.int32)
    place[change.kept] = np.arange(len(change.kept), dtype=np.int32)
    moved = place[before.label_ids]
    stays = moved >= 0
    return replace(
        before, label_ids=moved[stays], label_scores=before.label_scores[stays], labels=labels
    )


def _manifest(folder: Path, space: LabelSpace, change: Change) -> Manifest:
    """Return the classifier's manifest with the new label space, and what it came from."""
    found = read_manifest(folder)
    if found is None:
        raise ArtifactError(f"{folder} has no manifest; copy the whole classifier folder")
    digests = {"classifier": found.digest}
    return replace(
        found,
        settings={**found.settings, "relabelled": {"kept": len(change.kept),
                                                   "added": len(change.added)}},
        parents={**found.parents, **digests},
        carries={**found.carries, "label_space": space.digest},
    )  # fmt: skip
