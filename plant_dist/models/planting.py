"""Planting: what the ranker, the gains, the label texts and the priors become in the decoder.

Writes starting values into the rows and modules of a classifier, once, before training. Must not
know where they come from: floors above read the artifacts.

L labels, D encoder width, R ranker width, N training documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from plant_dist.errors import ArtifactError
from plant_dist.labels.fetched import LabelRows
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.models.fields import boosted_branches
from plant_dist.models.hierarchy import NarrowerPairs
from plant_dist.models.retriever import FIELD

Value = TypeVar("Value")

RARE, COMMON = 10, 1000  # training documents: full lead up to RARE, none from COMMON on
SMOOTHING = 0.5  # documents added to each side of a prior's odds, so that none is infinite


@dataclass(frozen=True)
class RankerState:
    """A pretrained ranker: the token side's parameters, and the label side's rows.

    Attributes:
        scorer: state dict of a `TokenScorer`.
        factor: (L, R) label factors f.
    """

    scorer: Mapping[str, Tensor]
    factor: Tensor


@dataclass(frozen=True)
class GainArrays:
    """The gain table as tensors: by label, falling gain.

    Attributes:
        offsets: (L+1,) int64. tokens: (pairs,) int32. gains: (pairs,) float32.
    """

    offsets: Tensor
    tokens: Tensor
    gains: Tensor


@dataclass(frozen=True)
class Planting:
    """Everything a classifier starts from; what is None stays as it was made.

    Arrays of rows are of all labels, or of those whose rows are on this rank.

    Attributes:
        train_frequency: (L,) int64, training documents of each label.
        documents: N.
        ranker: needed by the planted branch, and by `query_init: planted`.
        gains: needed by the static branch, and by a retriever with the ranker's vectors.
        label_vectors: (L, D) label texts as the encoder embeds them, of length 1; 0 where a label
            has no text. Needed by the inits named label_text, and by learned retrieval.
        prototypes: (L, D) directions of each label's texts, of length 1; for boost_init prototype.
        names: (L, D) directions of the label texts for the named branch, of length 1; 0 where a
            label has no text.
        center: (D) mean hidden state of a text; goes with `names`.
        feature_documents: (F,) int64, training documents that hold each token and each bucket of
            pairs; for the bag branch.
        narrower: the label hierarchy; needed by `narrower_share`.
        hidden_norm: mean length of a text's mean hidden state, the unit that boosts are scaled by.
    """

    train_frequency: Tensor
    documents: int
    ranker: RankerState | None = None
    gains: GainArrays | None = None
    label_vectors: Tensor | None = None
    prototypes: Tensor | None = None
    names: Tensor | None = None
    center: Tensor | None = None
    feature_documents: Tensor | None = None
    narrower: NarrowerPairs | None = None
    hidden_norm: float = 1.0

    def of(self, labels: LabelRows) -> Planting:
        """Return what concerns the labels whose rows are on this rank."""

        def mine_or_none(all_L: Tensor | None) -> Tensor | None:
            return None if all_L is None else _mine(all_L, labels)

        ranker = self.ranker and replace(self.ranker, factor=_mine(self.ranker.factor, labels))
        return replace(
            self,
            train_frequency=_mine(self.train_frequency, labels),
            ranker=ranker,
            label_vectors=mine_or_none(self.label_vectors),
            prototypes=mine_or_none(self.prototypes),
            names=mine_or_none(self.names),
        )


def _mine(rows_L: Tensor, labels: LabelRows) -> Tensor:
    """Return this rank's rows; those of another size are refused where they are used, by name."""
    given = len(rows_L) == labels.count
    return rows_L[labels.own.start : labels.own.stop] if given else rows_L


@torch.no_grad()
def plant(model: PlantForMultiLabelClassification, planting: Planting) -> None:
    """Fill a classifier's rows, ranker and gains with their starting values.

    Raises:
        ArtifactError: the ranker, gains or label vectors are of another size than the model, or
            one that the model's settings need is not given.
    """
    config = model.config.model_section()
    # How many labels were never seen is counted over all, before each rank takes its own.
    expected_L = _mine(good_turing(planting.train_frequency), model.labels)
    fields, planting = model.labels.fields, planting.of(model.labels)
    # Else the first steps would go into learning that most labels are rare.
    if config.prior_bias:
        fields["bias"][:, 0] = prior_log_odds(planting.train_frequency, planting.documents)
    if "gate" in fields:
        branches: Sequence[str] = config.branches
        if config.leading_branch in branches:
            lead = config.gate_lead * leading_share(config.leading_branch, planting.train_frequency)
            # Gates pass a softmax: raising one column takes weight from the others.
            fields["gate"][:, branches.index(config.leading_branch)] = lead
    if "planted" in config.branches:
        _plant_ranker(model, _needed(planting.ranker, "a ranker", "rank"))
    if model.decoder.gains is not None:
        gains = _needed(planting.gains, "a gain table", "mig")
        model.decoder.gains.fill(gains.offsets, gains.tokens, gains.gains)
    if model.narrower is not None:
        model.narrower.fill(_needed(planting.narrower, "a label hierarchy", "train"))
    if model.decoder.names is not None:
        names = _needed(planting.names, "label names", "train")
        _check_rows("label names", names, fields["name"])
        fields["name"].copy_(names)
        model.decoder.names.center.copy_(_needed(planting.center, "a mean text", "train"))
        fields["prior"][:, 0] = prior_log_odds(expected_L, planting.documents)
        fields["alone"][:, 0] = (planting.train_frequency == 0).float()
    if model.decoder.bag is not None:
        counts = _needed(planting.feature_documents, "feature counts", "train")
        _check_rows("feature counts", counts, model.decoder.bag.idf)
        model.decoder.bag.plant(counts, planting.documents)
    _plant_text(model, planting)
    _plant_retriever(model, planting)


def prior_log_odds(train_frequency_L: Tensor, documents: int) -> Tensor:
    """Log-odds of a label in training, (n + ½) / (N - n + ½): finite also where n is 0 or N."""
    # float64: a count above 2²³ plus ½ is not exact in float32.
    frequency_L = train_frequency_L.to(torch.float64)
    odds_L = (frequency_L + SMOOTHING) / (documents - frequency_L + SMOOTHING)
    return odds_L.log().to(torch.float32)


def good_turing(train_frequency_L: Tensor) -> Tensor:
    """Training documents to expect of each label, (L,) float64: what was counted, but not 0.

    Labels never seen share as many as there are labels seen once (Good 1953), so that each expects
    little where most names are never used, and more where the label space lists what is.
    """
    expected_L = train_frequency_L.to(torch.float64)
    never, once = int((train_frequency_L == 0).sum()), int((train_frequency_L == 1).sum())
    # At most one each: more than once they cannot be expected and yet not be seen.
    return expected_L.masked_fill(train_frequency_L == 0, min(once / max(never, 1), 1.0))


def leading_share(branch: str, train_frequency_L: Tensor) -> Tensor:
    """How far a branch leads, (L,) in [0, 1].

    The planted branch leads where labels are rare: 1 up to 10 training documents, 0 from 1,000,
    log-linear between. Another leads for all labels alike.
    """
    if branch != "planted":
        return torch.ones(len(train_frequency_L))
    # A label never seen counts as seen once, which leads fully too.
    decades = torch.log10(train_frequency_L.clamp_min(1) / RARE)
    span = torch.log10(torch.tensor(COMMON / RARE))
    return (1 - decades / span).clamp(0.0, 1.0).to(torch.float32)


def _plant_ranker(model: PlantForMultiLabelClassification, ranker: RankerState) -> None:
    rows = model.labels.fields["factor"]
    _check_rows("ranker", ranker.factor, rows)
    rows.copy_(ranker.factor)
    scorer = model.decoder.scorer
    assert scorer is not None  # the planted branch has one
    wanted = scorer.state_dict()
    # Checked here, where the stage to run again can be named.
    if ranker.scorer.keys() != wanted.keys():
        raise ArtifactError(
            f"ranker: found tensors {', '.join(ranker.scorer)}, the model has {', '.join(wanted)}; "
            "run `plant-dist rank` with this rank.kind"
        )
    for name, part in ranker.scorer.items():
        _check_rows(f"ranker ({name})", part, wanted[name])
    scorer.load_state_dict(dict(ranker.scorer))
    # The label side; the classifier has frozen the token side when it was built.
    rows.requires_grad_(not model.config.model_section().freeze_ranker)


def _plant_text(model: PlantForMultiLabelClassification, planting: Planting) -> None:
    """Start boosts and queries from label texts, or queries from the ranker's factors."""
    config, fields = model.config.model_section(), model.labels.fields
    boosted = len(boosted_branches(config))
    if boosted and config.boost_init != "random":
        of_text = config.boost_init == "label_text"
        vectors = planting.label_vectors if of_text else planting.prototypes
        vectors = _needed(vectors, f"{config.boost_init} vectors", "train")
        _check_rows("label vectors", vectors, fields["boost"])
        # With all branches summed, a document that says just the label's text then has evidence
        # of about boost_scale, whatever the width of the encoder.
        scale = config.boost_scale / planting.hidden_norm
        fields["boost"].copy_(vectors * (scale / boosted))
    if "query" not in fields or config.query_init == "random":
        return
    if config.query_init == "planted":
        # A contextual ranker scores h/√D as attention does, so factors are queries as they are.
        factors = _needed(planting.ranker, "a ranker", "rank").factor
        _check_rows("ranker (query_init: planted needs rank.kind: contextual)", factors,
                    fields["query"])  # fmt: skip
        fields["query"].copy_(factors)
    else:
        # Length √D against the 1/√D of attention: scores are projections of h on the text.
        vectors = _needed(planting.label_vectors, "label vectors", "train")
        fields["query"].copy_(functional.normalize(vectors, dim=-1) * vectors.shape[1] ** 0.5)


def _plant_retriever(model: PlantForMultiLabelClassification, planting: Planting) -> None:
    """Start the retriever: tokens weigh their best gain, labels lie where their texts do."""
    retriever = model.retriever
    if retriever is None:
        return
    if retriever.ranker is not None:
        gains = _needed(planting.gains, "a gain table", "mig")
        weight_V = retriever.ranker.token_weight
        # Tokens that speak for no label weigh nothing.
        tokens = gains.tokens.long().to(weight_V.device)
        weight_V.zero_().scatter_reduce_(0, tokens, gains.gains.to(weight_V.device), "amax")
    if retriever.learned is not None and planting.label_vectors is not None:
        rows = model.labels.fields[FIELD]
        starts = retriever.learned.text_vectors(planting.label_vectors.to(rows.device))
        # A label without a text keeps its noise, which is near no document.
        said = planting.label_vectors.to(rows.device).any(1, keepdim=True)
        rows.copy_(torch.where(said, starts, rows))


def _needed(value: Value | None, what: str, stage: str) -> Value:
    if value is None:
        raise ArtifactError(f"the model's settings need {what}; run `plant-dist {stage}`")
    return value


def _check_rows(what: str, found: Tensor, wanted: Tensor) -> None:
    # copy_ would broadcast a wrong shape without a word.
    if found.shape != wanted.shape:
        raise ArtifactError(
            f"{what}: found rows of shape {tuple(found.shape)}, the model has "
            f"{tuple(wanted.shape)}; run `plant-dist rank` and `plant-dist train` again"
        )
