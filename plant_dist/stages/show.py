"""`rank --show`: what a pretrained ranker knows, in words.

The best tokens of a label, by gain and as the ranker has learnt them, and the labels that a token
speaks for, out of the artifacts of a run folder. Writes nothing.

V vocabulary, R ranker width, L labels, C tokens considered: those that training documents hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plant_dist.data.batches import Collator
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.sampling import Share
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import encode
from plant_dist.errors import ConfigError, DataError
from plant_dist.mig.lists import GainTable
from plant_dist.models.encoder import SegmentEncoder, load_encoder
from plant_dist.models.ranker import ContextualScorer, score_moments, token_label_scores
from plant_dist.stages.pipeline import Job, check_lineage, parent_manifest
from plant_dist.stages.rank import load_ranker
from plant_dist.stages.show_words import TokenWords

Ints = NDArray[np.int64]
Table = Sequence[tuple[str, ...]]
TOKENS_PER_BATCH = 256  # read alone, for a contextual ranker


def show(job: Job, labels: Sequence[str], tokens: Sequence[str], top: int) -> Iterator[str]:
    """Yield the tables of each label and each token asked for.

    Raises:
        ArtifactError: the dataset, the gains or the ranker is missing, or they do not belong
            together.
        ConfigError: `top` is below 1.
        DataError: there is no such label, or a text has no token.
    """
    if top < 1:
        raise ConfigError(f"--top is {top}; it must be at least 1")
    needed = ("dataset", "gains", "ranker")
    check_lineage({name: parent_manifest(name, job) for name in needed}, job)
    shown = RankerWords(job)
    for label in labels:
        yield shown.of_label(label, top)
    for word in tokens:
        for token in shown.tokens_of(word):
            yield shown.of_token(token, top)


class RankerWords:
    """The dataset, gains and ranker of a run, opened for questions."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._dataset = PreparedDataset.load(job.artifact("dataset"))
        self._space = self._dataset.label_space
        self._tokenizer = self._dataset.tokenizer()
        self._gains = GainTable.load(job.artifact("gains"))
        self._state = load_ranker(job.artifact("ranker"))
        self._words = TokenWords(self._dataset, self._tokenizer)

    def of_label(self, name: str, top: int) -> str:
        """Return a label's best tokens by gain and as learnt."""
        label = self._space.index(name)
        tokens, gains = self._gains.label(label)
        factors_CR, bias_C = self._token_side
        scores_C = token_label_scores(factors_CR, bias_C, self._state.factor[[label]])[0]
        best = self._standard(scores_C, label).topk(min(top, len(scores_C)))
        by_gain = tokens[:top].tolist(), [f"{gain:.4f}" for gain in gains[:top].tolist()]
        learnt = (
            self._considered[best.indices.numpy()].tolist(),
            [f"{score:.2f}" for score in best.values.tolist()],
        )
        words = self._words.of([*by_gain[0], *learnt[0]], label)

        def table(kind: str, shown: tuple[list[int], list[str]]) -> list[str]:
            head = ("token", kind, "training documents", "in words such as")
            rows = [
                (self._token(token), number, self._documents(token), words[token])
                for token, number in zip(*shown, strict=True)
            ]
            return _columns(head, rows)

        return "\n".join(
            [
                f"label {self._title(label)}", "",
                "by gain", *table("gain J", by_gain), "",
                "learned", *table("score", learnt), "",
                _SCORE, "",
            ]
        )  # fmt: skip

    def of_token(self, token: int, top: int) -> str:
        """Return the labels that a token speaks for, by gain and as learnt."""
        index = self._gains.token_index()
        own = slice(index.offsets[token], index.offsets[token + 1])
        order = np.argsort(-index.gains[own], kind="stable")[:top]
        by_gain = [
            (*self._label(label), f"{gain:.4f}")
            for label, gain in zip(
                index.labels[own][order].tolist(), index.gains[own][order].tolist(), strict=True
            )
        ]
        head = ("label", "name", "training documents")
        words = self._words.of([token])[token]
        named = f"token {self._token(token)}" + (f", in words such as {words}" if words else "")
        return "\n".join(
            [
                f"{named}: {self._documents(token)} of {int(self._gains.documents)} training "
                "documents", "",
                "by gain", *_columns((*head, "gain J"), by_gain), "",
                "learned", *_columns((*head, "score"), self._learnt_labels(token, top)), "",
                _SCORE, "",
            ]
        )  # fmt: skip

    def _learnt_labels(self, token: int, top: int) -> Table:
        place = np.searchsorted(self._considered, token)
        if place == len(self._considered) or self._considered[place] != token:
            return []  # in no training document: nothing was learnt of it
        factors_CR, bias_C = self._token_side
        factor_LR = self._state.factor
        scores_L = factor_LR @ factors_CR[place] + bias_C[place]
        standard_L = self._standard(scores_L, slice(None))
        best = standard_L.topk(min(top, len(standard_L)))
        return [
            (*self._label(label), f"{score:.2f}")
            for label, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @cached_property
    def _considered(self) -> Ints:
        """(C,) int64, rising: tokens in training documents; of others a table holds only noise."""
        return np.flatnonzero(self._gains.token_documents > 0).astype(np.int64)

    @cached_property
    def _token_side(self) -> tuple[Tensor, Tensor]:
        """Factors (C, R) and biases (C,) of the tokens considered."""
        scorer, ids = self._state.scorer, torch.from_numpy(self._considered)
        # By what was saved, not by the config, which may have been changed since.
        if "factors" in scorer:
            return scorer["factors"][ids], scorer["bias"][ids]
        contextual = ContextualScorer(self._state.factor.shape[1], len(scorer["bias"]))
        contextual.load_state_dict(dict(scorer))
        with torch.no_grad():
            return contextual.token_factors(ids, self._states_alone())

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return score_moments(*self._token_side, self._state.factor)

    def _standard(self, scores: Tensor, labels: int | slice) -> Tensor:
        """Return scores in deviations above the mean token of their label."""
        mean_L, deviation_L = self._moments
        # A label of which nothing was learnt scores all tokens alike.
        return (scores.double() - mean_L[labels]) / deviation_L[labels].clamp_min(1e-12)

    @torch.no_grad()
    def _states_alone(self) -> Tensor:
        """Hidden states (C, D) of the tokens, each read as a text of its own."""
        encoder = SegmentEncoder(load_encoder(self._job.config.encoder)).eval()
        collate = Collator(Segmentation.of(self._job.config.tokens, self._tokenizer))
        found = []
        for start in range(0, len(self._considered), TOKENS_PER_BATCH):
            some = self._considered[start : start + TOKENS_PER_BATCH]
            share = Share(np.arange(len(some)), np.ones(len(some), np.float32), float(len(some)))
            none = csr_from_lists([[] for _ in some])
            batch = collate(csr_from_lists([[token] for token in some.tolist()]), none, share)
            found.append(encoder(batch.input_ids, batch.attention_mask)[batch.keep])
        return torch.cat(found)

    def tokens_of(self, word: str) -> list[int]:
        """Find a token by its spelling in the vocabulary, or else those of a text, each once.

        Raises:
            DataError: the text has no token.
        """
        known = self._tokenizer.get_vocab().get(word)
        if known is not None and known < self._gains.vocabulary_size:
            return [int(known)]
        [ids] = encode(self._tokenizer, [word])
        if not ids:
            raise DataError(f"--show-token {word!r} has no token; give a word or a token")
        # A word that the tokenizer cuts up is what its pieces are, and those are what was counted.
        return [int(one) for one in dict.fromkeys(ids)]

    def _token(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def _documents(self, token: int) -> str:
        return str(int(self._gains.token_documents[token]))

    def _label(self, label: int) -> tuple[str, str, str]:
        frequency = int(self._space.train_frequency[label])
        return self._space.ids[label], self._space.texts[label], str(frequency)

    def _title(self, label: int) -> str:
        id_, name, frequency = self._label(label)
        named = id_ if id_ == name else f"{id_} ({name})"
        return f"{named}: {frequency} of {int(self._gains.documents)} training documents"


_SCORE = (
    "score: standard deviations above the label's mean token, over the tokens of training documents"
)


def _columns(head: tuple[str, ...], rows: Table) -> list[str]:
    """Return aligned lines."""
    if not rows:
        return ["  (none)"]
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
