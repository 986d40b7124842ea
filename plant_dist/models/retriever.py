"""What says which labels a document might carry, before any is attended: two towers.

A tower gives a document one vector and a label another; labels of large inner product make the
shortlist. The ranker's tower needs no training of its own: it pools the planted ranker's factors.
The learned tower is trained beside the classifier. A label that no training document carries is
represented by its text, read as a document. Must not know how vectors are searched.

Shapes: B documents, S segments, T tokens of a document, D encoder width, R ranker width, n labels,
V vocabulary, X width of a tower's vectors, P = R + 1 (factors and bias), Q = P + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from plant_dist.errors import ConfigError
from plant_dist.labels.fetched import FetchedRows
from plant_dist.models.attention import kept_dots, wide
from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.decoder_tower import DecoderTower
from plant_dist.models.ranker import LexicalScorer, TokenScorer
from plant_dist.models.segments import joined

RANKER, LEARNED, DECODER = "ranker", "learned", "decoder"
FIELD = "retrieval"  # the learned tower's field of the label rows
SHORTEST = 1e-12  # a row shorter than this points nowhere; torch's `normalize` has the same


class RankerTower(nn.Module):
    """Pooled token factors of the ranker against label factors, as deviations above the mean.

    A document's score for a label is the mean of s(t, l) = e_t·f_l + a_t over its tokens, each
    weighing its best gain. Raw scores of labels do not compare, since only their order inside a
    label was learnt; so each is taken less its mean over documents and over its deviation. That is
    linear in the document, and hence an inner product of Q numbers.
    """

    token_weight: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, vocabulary_size: int, ranker_width: int) -> None:
        super().__init__()
        self.width = ranker_width + 2
        self.register_buffer("token_weight", torch.ones(vocabulary_size))
        self.register_buffer("mean", torch.zeros(ranker_width + 1))
        self.register_buffer("covariance", torch.eye(ranker_width + 1))

    def pooled(self, scorer: TokenScorer, hidden: Tensor | None, ids: Tensor, keep: Tensor
               ) -> Tensor:  # fmt: skip
        """Return weighted means (B, P) of a document's token factors and biases.

        Args:
            hidden: (B, T, D), needed by contextual factors only. ids, keep: (B, T).
        """
        factors_BTR, bias_BT = scorer.token_factors(ids, hidden)
        weight_BT = self.token_weight[ids] * keep
        # A document without a weighted token stays at 0, near no label.
        total_B1 = weight_BT.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        share_B1T = (weight_BT / total_B1)[:, None]
        # In half precision the deviations above the mean, small beside it, would be lost.
        with torch.autocast(ids.device.type, enabled=False):
            means_BP = share_B1T @ torch.cat([factors_BTR, bias_BT[..., None]], dim=-1).float()
        return means_BP[:, 0]

    @torch.no_grad()
    def fit(self, count: Tensor, sums_P: Tensor, products_PP: Tensor) -> None:
        """Take the mean and covariance of pooled documents from their count, sums and products."""
        mean_P = sums_P.double() / count
        self.mean.copy_(mean_P)
        self.covariance.copy_(products_PP.double() / count - torch.outer(mean_P, mean_P))

    def document_vectors(self, pooled_BP: Tensor) -> Tensor:
        """Return (B, Q): the pooled factors, and a 1 for the labels' offsets."""
        return torch.cat([pooled_BP, pooled_BP.new_ones(len(pooled_BP), 1)], dim=1)

    def label_vectors(self, factor_nR: Tensor) -> Tensor:
        """Return (n, Q): factors over their deviation, and what takes the mean off."""
        return self._against_documents(factor_nR, bias=1.0)

    def text_vectors(self, pooled_nP: Tensor) -> Tensor:
        """Return (n, Q) vectors that stand for labels' texts: what sets them off from documents.

        Without token biases, which a label's own factors have learnt to outweigh, and a text has
        not.
        """
        return self._against_documents(pooled_nP[:, :-1] - self.mean[:-1], bias=0.0)

    def _against_documents(self, factor_nR: Tensor, bias: float) -> Tensor:
        """Return deviations above the mean over documents, as vectors."""
        biases_n1 = factor_nR.new_full((len(factor_nR), 1), bias)
        direction_nP = torch.cat([factor_nR, biases_n1], dim=1).float()
        variance_n1 = ((direction_nP @ self.covariance) * direction_nP).sum(1, keepdim=True)
        # A label whose score never varies says nothing of any document.
        flat_n1 = variance_n1 <= 1e-12
        scaled_nP = direction_nP * variance_n1.clamp_min(1e-12).rsqrt() * ~flat_n1
        return torch.cat([scaled_nP, -(scaled_nP @ self.mean)[:, None]], dim=1)


class LearnedTower(nn.Module):
    """Cosine of a document's projected mean state and a row of the label table.

    Labels lie in a frame that never moves: texts of labels never seen, and rows, which start from
    texts. Only documents are projected anew as training goes on. So a row that is touched a few
    times, or never, is still where documents look for it.
    """

    frame: Tensor

    def __init__(self, width: int, vector_width: int) -> None:
        super().__init__()
        self.width = vector_width
        # Keeps inner products as they are (or nearly, where narrower), so that documents and
        # labels start as near to each other as the encoder puts their texts.
        self.register_buffer("frame", nn.init.orthogonal_(torch.empty(vector_width, width)))
        self.projection = nn.Linear(vector_width, vector_width, bias=False)
        nn.init.eye_(self.projection.weight)

    def document_vectors(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """Return unit vectors (B, X) from (B, T, D) and (B, T)."""
        count_B1 = keep.sum(1, keepdim=True).clamp_min(1)
        means_BD = (hidden * keep[..., None]).sum(1) / count_B1
        return normalize(self.projection(linear(means_BD, self.frame)), dim=-1)

    def text_vectors(self, means_nD: Tensor) -> Tensor:
        """Return unit vectors (n, X) of labels' texts, from their mean hidden states."""
        return normalize(linear(means_nD, self.frame), dim=-1)

    def label_vectors(self, rows_nX: Tensor) -> Tensor:
        """Return unit vectors of rows, (..., X)."""
        return normalize(rows_nX, dim=-1)


class Retriever(nn.Module):
    """The towers of a classifier.

    Args:
        settings: `vectors` (ranker, learned, decoder), `width`, `temperature`.
        width: D. vocabulary_size: V.
        scorer: the planted ranker's token side; None without the planted branch.
        decoder: what scores, for its own tower; may be None for others.

    Raises:
        ConfigError: only the ranker's tower is asked for, and there is no ranker.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        width: int,
        vocabulary_size: int,
        scorer: TokenScorer | None,
        decoder: LabelDecoder | None = None,
    ) -> None:
        super().__init__()
        self.temperature = float(settings["temperature"])
        # No module: its weights are the decoder's.
        self.decoder: DecoderTower | None = None
        if settings["vectors"] == DECODER:
            assert decoder is not None  # the classifier's own
            self.decoder = DecoderTower(decoder, width)
        planted = scorer is not None and self.decoder is None
        self.ranker = RankerTower(vocabulary_size, scorer.width) if planted and scorer else None
        learns = settings["vectors"] == LEARNED
        self.learned = LearnedTower(width, int(settings["width"])) if learns else None
        if not self.kinds:
            raise ConfigError(
                "shortlist.vectors is ranker, but the model has no planted ranker; add the "
                "planted branch, or set shortlist.vectors=learned"
            )
        # Not a submodule: it is the decoder's.
        self._scorer = (scorer,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of vectors, in the order in which they take over."""
        every = (RANKER, LEARNED, DECODER)
        return tuple(kind for kind in every if getattr(self, kind) is not None)

    def width_of(self, kind: str) -> int:
        """X of a kind."""
        tower: RankerTower | LearnedTower | DecoderTower = getattr(self, kind)
        return tower.width

    def needs_hidden(self, kind: str) -> bool:
        """Whether document vectors need the encoder's states."""
        if self.decoder is not None:
            return self.decoder.needs_hidden
        return kind == LEARNED or not isinstance(self._scorer[0], LexicalScorer)

    def document_vectors(
        self, kind: str, hidden: Tensor | None, input_ids: Tensor, keep: Tensor
    ) -> Tensor:
        """Return (B, X) from (B, S, T, D), (B, S, T), (B, S, T); hidden as `needs_hidden` says."""
        if kind == RANKER:
            with torch.no_grad():
                assert self.ranker is not None
                return self.ranker.document_vectors(self.pooled(hidden, input_ids, keep))
        if self.decoder is not None:
            return self.decoder.document_vectors(hidden, input_ids, keep)
        assert self.learned is not None
        assert hidden is not None  # `needs_hidden` said so
        segment = joined(hidden, input_ids, keep)
        return self.learned.document_vectors(segment.hidden, segment.keep)

    @torch.no_grad()
    def pooled(self, hidden: Tensor | None, input_ids: Tensor, keep: Tensor) -> Tensor:
        """Return what the ranker's tower pools, (B, P); arguments as `document_vectors`."""
        scorer = self._scorer[0]
        assert self.ranker is not None
        assert scorer is not None
        hidden = None if hidden is None else hidden.flatten(1, -2)
        return self.ranker.pooled(scorer, hidden, input_ids.flatten(1), keep.flatten(1))

    @torch.no_grad()
    def label_vectors(self, kind: str, rows: Mapping[str, Tensor]) -> Tensor:
        """Return (n, X) of label rows, each field (n, width)."""
        if kind == RANKER:
            assert self.ranker is not None
            return self.ranker.label_vectors(rows["factor"])
        if self.decoder is not None:
            return self.decoder.label_vectors(rows)
        assert self.learned is not None
        return self.learned.label_vectors(rows[FIELD])

    @torch.no_grad()
    def text_vectors(self, hidden: Tensor | None, input_ids: Tensor, keep: Tensor) -> Tensor:
        """Return the ranker's (n, X) of labels' texts; arguments as `document_vectors`."""
        assert self.ranker is not None
        return self.ranker.text_vectors(self.pooled(hidden, input_ids, keep))

    @torch.no_grad()
    def vectors_of_means(self, means_nD: Tensor) -> Tensor:
        """Return the learned tower's (n, X) of labels' texts, from their mean hidden states."""
        assert self.learned is not None
        return self.learned.text_vectors(means_nD)

    def similarities(self, document_vectors_BX: Tensor, labels: FetchedRows) -> Tensor:
        """Return the learned tower's logits (B, K) of each document's labels, for its loss."""
        rows_UX = wide(labels.rows[FIELD])
        # Divided by the lengths at the end, and read where they are: no (B, K, X) is made.
        lengths_U = torch.linalg.vector_norm(rows_UX, dim=1).clamp_min(SHORTEST)
        if labels.places is None:
            dots_BK, lengths = wide(document_vectors_BX) @ rows_UX.t(), lengths_U
        else:
            places_B1K = labels.places[:, None]
            dots_BK = kept_dots(document_vectors_BX[:, None], rows_UX, places_B1K)[:, 0]
            lengths = lengths_U[labels.places]
        similarities: Tensor = dots_BK / (lengths * self.temperature)
        return similarities
