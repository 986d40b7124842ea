"""What a page shows of a document: its labels, and the characters that each of them attended.

Plain values, ready for JSON; characters are Python's (code points), `end` exclusive. Must not know
tensors, tokenizers or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

COMBINED = "combined"  # the branches summed under their gates
CONTRIBUTION = "contribution"  # what each token adds to the score, as a logit


class AttendedToken(NamedTuple):
    """Characters of a text, and the attention that a label gives them."""

    start: int
    end: int
    weight: float

    def as_json(self, text: str) -> dict[str, Any]:
        """Return plain values, with the characters themselves."""
        return {**self._asdict(), "text": text[self.start : self.end]}


@dataclass(frozen=True)
class LabelEvidence:
    """One label of one document.

    Attributes:
        id, name: as the label space has them.
        score: probability; None for a gold label that the model does not know.
        threshold: probability from which the label is predicted; None where the best k are.
        predicted: whether the model chose it.
        gold: whether a person did; None where nobody has said.
        train_documents: training documents that carry the label.
        attention: branch, `COMBINED` or `CONTRIBUTION` -> most attended tokens, or those that add
            most, falling weight.
        gold_spans: (start, end) characters that a person marked for it.
    """

    id: str
    name: str
    score: float | None
    threshold: float | None
    predicted: bool
    gold: bool | None
    train_documents: int
    attention: Mapping[str, Sequence[AttendedToken]] = field(default_factory=dict)
    gold_spans: Sequence[tuple[int, int]] = ()

    @property
    def missed(self) -> bool:
        """Gold, but not predicted."""
        return self.gold is True and not self.predicted

    def as_json(self, text: str) -> dict[str, Any]:
        """Return plain values; `text` is the document's."""
        spans = {
            branch: [token.as_json(text) for token in tokens]
            for branch, tokens in self.attention.items()
        }
        return {
            "id": self.id, "name": self.name, "score": _rounded(self.score),
            "threshold": _rounded(self.threshold), "predicted": self.predicted, "gold": self.gold,
            "train_documents": self.train_documents, "attention": spans,
            "gold_evidence": [
                {"start": start, "end": end, "text": text[start:end]}
                for start, end in self.gold_spans
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class DocumentEvidence:
    """One document.

    Attributes:
        labels: predicted ones by falling score, then those that were missed.
        read_until: characters that the model has read; the rest was cut off.
    """

    id: str
    text: str
    labels: Sequence[LabelEvidence]
    read_until: int

    @property
    def has_gold(self) -> bool:
        """Whether a person's labels are known."""
        return any(label.gold is not None for label in self.labels)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, without the text: offsets refer to the input's own."""
        return {
            "id": self.id,
            "characters": len(self.text),
            "read_until": self.read_until,
            "labels": [label.as_json(self.text) for label in self.labels],
        }


def _rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 6)
