"""`PlantForMultiLabelClassification`: encoder, planted decoder and label rows as one model.

A `PreTrainedModel`, so that `save_pretrained`, `from_pretrained` and the Auto classes work; weights
travel as safetensors only. Everything needed to build the modules is in `PlantConfig`; nothing here
trains, plants or reads files of its own.

B documents, S segments, T tokens, L labels, K labels considered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from plant_dist.config.load import build_section
from plant_dist.config.schema import ModelConfig, RankConfig
from plant_dist.errors import ConfigError
from plant_dist.labels.fetched import FetchedRows, Wanted
from plant_dist.labels.sparse import SparseRows
from plant_dist.labels.table import FROZEN_FIELDS, LabelTable
from plant_dist.models import lstm
from plant_dist.models.adapters import add_adapters, is_adapter
from plant_dist.models.bag import TokenBag
from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.encoder import SegmentEncoder, encoder_from_config
from plant_dist.models.exact import best_of_all
from plant_dist.models.fields import label_fields
from plant_dist.models.hierarchy import NarrowerEvidence
from plant_dist.models.names import NameMatcher
from plant_dist.models.ranker import TokenScorer, build_scorer
from plant_dist.models.retriever import FIELD, LEARNED, Retriever
from plant_dist.models.rivals import against_rivals
from plant_dist.models.static import StaticGains

AnyRows: TypeAlias = LabelTable | SparseRows
# Makes rows of so many labels with these fields, some of which start at 0.
RowsMaker: TypeAlias = Callable[[int, Mapping[str, int], tuple[str, ...]], AnyRows]

# transformers makes configs without arguments, to save only what differs; hence a tiny default.
DEFAULT_ENCODER = {
    "model_type": "bert", "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


class Considers(Protocol):
    """Chooses the labels that documents consider, from vectors of theirs."""

    vectors: str
    """Which of the retriever's vectors it wants."""

    def __call__(self, document_vectors_BX: Tensor) -> Tensor:
        """Return label ids (B, K) int64 on the vectors' device."""


@dataclass
class PlantOutput(SequenceClassifierOutput):
    """What a classifier says of some documents.

    Attributes:
        logits: (B, L), or (B, K).
        label_ids: (B, K) of a shortlist; None where all labels are scored.
        similarities: (B, K) logits of the learned retriever, where a shortlist is trained on.
    """

    label_ids: Tensor | None = None
    similarities: Tensor | None = None


class PlantConfig(PretrainedConfig):
    """What a saved classifier is: sizes, encoder, decoder, and how its texts are segmented.

    Args:
        encoder: the encoder's own config, as `to_dict` gives it.
        decoder: the `model` section, as plain values.
        ranker: `kind` and `width` of the planted ranker.
        label_count: labels L. (Label names lie in a file beside the model; the `id2label`
            of transformers does not carry millions.)
        gain_pairs: stored token-label gains.
        broad_labels, narrower_pairs: labels with some below them, and stored pairs of the label
            hierarchy.
        segment_tokens, overlap_tokens, max_document_tokens: as in the `tokens` section.
        special_ids: token ids that labels never attend.
        lora: the encoder's adapters, as `adapter_settings` gives them; None for none.
        retriever: what finds shortlists: `vectors`, `width`, `temperature`; None for none.
    """

    model_type = "plant"

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        ranker: Mapping[str, Any] | None = None,
        label_count: int = 1,
        gain_pairs: int = 0,
        broad_labels: int = 0,
        narrower_pairs: int = 0,
        segment_tokens: int = 512,
        overlap_tokens: int = 0,
        max_document_tokens: int | None = None,
        special_ids: tuple[int, ...] | list[int] = (),
        lora: Mapping[str, Any] | None = None,
        retriever: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        self.encoder = dict(encoder) if encoder else dict(DEFAULT_ENCODER)
        self.decoder = dict(decoder or {})
        self.ranker = dict(ranker or {})
        self.label_count = label_count
        self.gain_pairs = gain_pairs
        self.broad_labels = broad_labels
        self.narrower_pairs = narrower_pairs
        self.segment_tokens = segment_tokens
        self.overlap_tokens = overlap_tokens
        self.max_document_tokens = max_document_tokens
        # A list, as JSON reads it back.
        self.special_ids = list(special_ids)
        self.lora = dict(lora) if lora else None
        self.retriever = dict(retriever) if retriever else None
        super().__init__(**others)

    def encoder_config(self) -> PretrainedConfig:
        """Return the encoder's config as its own class."""
        lstm.register()
        # A copy: what is popped must stay in the config that is saved.
        values = dict(self.encoder)
        config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
        return config

    def model_section(self) -> ModelConfig:
        """Return the decoder's settings."""
        return build_section(ModelConfig, self.decoder)

    def rank_section(self) -> RankConfig:
        """Return the planted ranker's kind and width."""
        return build_section(RankConfig, self.ranker)


class PlantForMultiLabelClassification(PreTrainedModel):
    """A text encoder and one planted attention per label.

    Attributes:
        encoder: reads segments.
        labels: the rows of label parameters; the decoder reads them.
        decoder: attends and scores.
        retriever: finds shortlists; None where all labels are considered.
        narrower: passes evidence up the label hierarchy when scoring; None without.
    """

    config_class = PlantConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        config: PlantConfig,
        encoder: SegmentEncoder | None = None,
        make_rows: RowsMaker | None = None,
    ) -> None:
        super().__init__(config)
        # Architecture only where none is given: weights then come from a checkpoint. One that is
        # given is frozen but for its adapters.
        self._encoder_given = encoder is not None
        self.encoder = self._empty_encoder(config) if encoder is None else encoder
        decoder = config.model_section()
        scorer = self._scorer(config, decoder)
        fields = label_fields(decoder, self.encoder.width, scorer.width if scorer else None)
        if config.retriever and config.retriever["vectors"] == LEARNED:
            fields[FIELD] = int(config.retriever["width"])
        gains = self._gains(config, decoder)
        # Gates start at 0, all branches alike, until planting gives one a lead; a bag starts
        # without evidence.
        rows = (make_rows or LabelTable)(config.label_count, fields, ("gate", "name", "bag"))
        self.decoder = LabelDecoder(
            decoder, rows, scorer, gains, self._matcher(decoder), self._bag(decoder)
        )
        for field in FROZEN_FIELDS:
            if field in fields:
                self.labels.fields[field].requires_grad_(False)
        self.rivals_after = decoder.rivals_after
        self.retriever = self._retriever(config, scorer)
        # Only with a share, so that other models carry no buffers for it.
        shares = decoder.narrower_share > 0
        self.narrower = (
            NarrowerEvidence(config.broad_labels, config.narrower_pairs) if shares else None
        )
        # Transformers makes a saved model's modules in the type of its first weight, which for an
        # encoder held in bf16 is too coarse for rows that learn.
        self.decoder.float()
        self.post_init()  # type: ignore[no-untyped-call]

    def _empty_encoder(self, config: PlantConfig) -> SegmentEncoder:
        backbone = encoder_from_config(config.encoder_config())
        if config.lora:
            add_adapters(backbone, config.lora)
        return SegmentEncoder(backbone)

    def is_given(self, name: str) -> bool:
        """True for a tensor of the state dict that is a given encoder's own, and never trains.

        Checkpoints leave it out: a run that goes on reads it where it came from.
        """
        return self._encoder_given and name.startswith("encoder.") and not is_adapter(name)

    def _scorer(self, config: PlantConfig, decoder: ModelConfig) -> TokenScorer | None:
        if "planted" not in decoder.branches:
            return None
        # Sized by the encoder, not the tokenizer: an encoder may embed more ids than are used.
        vocabulary, width = self.encoder.vocabulary_size, self.encoder.width
        scorer = build_scorer(config.rank_section(), vocabulary, width)
        return scorer.requires_grad_(not decoder.freeze_ranker)

    def _gains(self, config: PlantConfig, decoder: ModelConfig) -> StaticGains | None:
        if "static" not in decoder.branches:
            return None
        return StaticGains(config.label_count, self.encoder.vocabulary_size, config.gain_pairs)

    def _matcher(self, decoder: ModelConfig) -> NameMatcher | None:
        if "named" not in decoder.branches:
            return None
        return NameMatcher(
            self.encoder.width, decoder.name_window, decoder.name_scale, decoder.name_offset
        )

    def _bag(self, decoder: ModelConfig) -> TokenBag | None:
        if "bag" not in decoder.branches:
            return None
        return TokenBag(self.encoder.vocabulary_size, decoder.bag_width, decoder.bag_pairs)

    def _retriever(self, config: PlantConfig, scorer: TokenScorer | None) -> Retriever | None:
        if config.retriever is None:
            return None
        vocabulary = self.encoder.vocabulary_size
        return Retriever(config.retriever, self.encoder.width, vocabulary, scorer, self.decoder)

    def _init_weights(self, module: nn.Module) -> None:
        """Leave our modules as their constructors made them; `planting` fills the rows."""

    @property
    def labels(self) -> AnyRows:
        """The rows of label parameters."""
        table = self.decoder.labels
        assert isinstance(table, LabelTable | SparseRows)
        return table

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        keep: Tensor | None = None,
        label_ids: Tensor | Considers | None = None,
        hidden: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> PlantOutput | tuple[Tensor]:
        """Score labels for documents.

        Args:
            input_ids: (B, S, T) int64 segments, or (B, T) for documents of one.
            attention_mask: as input_ids, True or 1 where there is a token; all tokens if None.
            keep: as input_ids, bool: tokens that labels may attend; the attention mask without
                special tokens if None. With overlapping segments it must be given.
            label_ids: (B, K) int64 labels to score, or what chooses them; None scores all L.
            hidden: as input_ids and D, what the encoder gave for them before, while it is frozen;
                it is not run then.
            return_dict: False returns a tuple.

        Returns: `logits` (B, L) or (B, K), float32 or wider.

        Raises:
            ConfigError: as `encode` and `score`.
        """
        # Encoded once; the labels are what is read in blocks.
        hidden, ids, keep = self.encode(input_ids, attention_mask, keep, hidden)
        found, similarities = self._considered(hidden, ids, keep, label_ids)
        logits = self.score(hidden, ids, keep, found)
        found = found.label_ids if isinstance(found, FetchedRows) else found
        if return_dict is False:
            return (logits,)
        return PlantOutput(logits=logits, label_ids=found, similarities=similarities)

    def _considered(
        self, hidden: Tensor, ids: Tensor, keep: Tensor, label_ids: Tensor | Considers | None
    ) -> tuple[Wanted, Tensor | None]:
        """Return the labels to score, and in training what the learned retriever says of them."""
        if label_ids is None or isinstance(label_ids, Tensor):
            return label_ids, None
        retriever = self._require_retriever()
        vectors = retriever.document_vectors(label_ids.vectors, hidden, ids, keep)
        # Fetched once for the decoder and the retriever: rows may lie on other ranks.
        found = self.labels.fetch(label_ids(vectors.detach()))
        if retriever.learned is None or not self.training:
            return found, None
        if label_ids.vectors != LEARNED:
            # It learns on the shortlists that the ranker finds, before it takes over.
            vectors = retriever.document_vectors(LEARNED, hidden, ids, keep)
        return found, retriever.similarities(vectors, found)

    def _require_retriever(self) -> Retriever:
        if self.retriever is None:
            raise ConfigError(
                "the classifier was trained on all labels and has no retriever; train it with "
                "train.labels=shortlist"
            )
        return self.retriever

    def score_best(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Return logits and ids (B, k) of the best of all labels, from what `encode` gave."""
        logits, ids = best_of_all(self.decoder, hidden, input_ids, keep, k)
        rivals = self.rivals_after
        return (logits if rivals is None else against_rivals(logits, rivals)), ids

    def score(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, label_ids: Wanted = None,
        missing_BK: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return logits from what `encode` gave; the rest as `forward`.

        Args: missing_BK: (B, K) bool, places of `label_ids` that stand for no label: -inf.

        Raises:
            ConfigError: labels are named to a model that scores with its label hierarchy.
        """
        logits: Tensor = self.decoder(hidden, input_ids, keep, label_ids)
        # Each label learns to speak for itself: passed up in training, one label learnt by heart
        # would satisfy all above it (docs/findings.md).
        if self.narrower is not None and not self.training:
            if label_ids is not None:
                raise ConfigError(
                    "label_ids names some labels, but model.narrower_share adds up all of them; "
                    "leave label_ids out, or train with model.narrower_share 0"
                )
            logits = self.narrower(logits)
        if missing_BK is not None:
            # Before rivals are summed: what stands in for no label is nobody's.
            logits = logits.masked_fill(missing_BK, -torch.inf)
        if self.rivals_after is not None and not self.training:
            logits = against_rivals(logits, self.rivals_after)
        return logits

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        keep: Tensor | None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states (B, S, T, D), ids and keep mask (B, S, T), as the decoder reads.

        Raises:
            ConfigError: input_ids has neither two nor three dimensions.
        """
        if input_ids.dim() not in (2, 3):
            raise ConfigError(
                f"input_ids has shape {tuple(input_ids.shape)}; give (documents, tokens) or "
                "(documents, segments, tokens)"
            )
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        if keep is None:
            keep = mask & ~torch.isin(input_ids, self._special_ids(input_ids.device))
        if self.config.model_section().attend_special:
            # A batch's keep never holds special tokens, so attending them means adding them.
            keep = keep | (mask & torch.isin(input_ids, self._special_ids(input_ids.device)))
        # One segment a document, so that a single path reads all shapes.
        if input_ids.dim() == 2:
            input_ids, mask, keep = (one[:, None] for one in (input_ids, mask, keep))
            hidden = None if hidden is None else hidden[:, None]
        return self.encoder(input_ids, mask) if hidden is None else hidden, input_ids, keep

    def _special_ids(self, device: torch.device) -> Tensor:
        return torch.tensor(self.config.special_ids, dtype=torch.int64, device=device)


def register() -> None:
    """Let `AutoConfig` and `AutoModelForSequenceClassification` know the model type `plant`."""
    # May be called again in the same process.
    AutoConfig.register("plant", PlantConfig, exist_ok=True)
    AutoModelForSequenceClassification.register(
        PlantConfig, PlantForMultiLabelClassification, exist_ok=True
    )
