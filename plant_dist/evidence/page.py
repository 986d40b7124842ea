"""The page of a document: its text cut into pieces, its labels, and what each of them attended.

Offsets are resolved here, in Python's characters: the browser, which counts otherwise, is told
pieces by number. Everything that comes from a text or a label is escaped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from plant_dist.evidence.filling import embedded_json, escaped, filled
from plant_dist.evidence.records import (
    COMBINED,
    CONTRIBUTION,
    AttendedToken,
    DocumentEvidence,
    LabelEvidence,
)
from plant_dist.evidence.tokens import touching

LEVELS = 5  # depths of colour; the style has a class w1 … w5 for each
WORDS = 12  # most attended words listed above the text
LEAST = 0.01  # share of the largest weight below which nothing is highlighted


@dataclass(frozen=True)
class PageFrame:
    """What is around a document, and the same for all but its neighbours.

    Attributes:
        rule: how labels were chosen, in words.
        rare: training documents up to which a label counts as rare.
        notes: remarks on the model, shown under the text.
        before, after: file names of the neighbours, where there are any.
    """

    rule: str
    rare: int
    notes: tuple[str, ...] = ()
    before: str | None = None
    after: str | None = None


def document_page(document: DocumentEvidence, frame: PageFrame) -> str:
    """Return the page as HTML that needs no other file."""
    cuts = Cuts.of(document)
    gold = [span for label in document.labels for span in label.gold_spans]
    notes = [*frame.notes, *([_CUT_OFF] if document.text[document.read_until :].strip() else [])]
    return filled(
        "document.html",
        "document.js",
        {
            "title": escaped(f"Document {document.id}"),
            "links": _links(frame),
            "summary": escaped(f"Chosen: {frame.rule}. {_counts(document)}"),
            "branches": _branches(document),
            "goldswitch": _GOLD_SWITCH if gold else "",
            "goldlegend": _GOLD_LEGEND if gold else "",
            "labels": "".join(_choice(n, one, frame) for n, one in enumerate(document.labels)),
            "text": _text(document, cuts),
            "notes": "".join(f'<p class="faint">{escaped(note)}</p>' for note in notes),
            "data": embedded_json(_data(document, cuts)),
        },
    )


_CUT_OFF = "The text in italics was cut off: the model has not read it."
_GOLD_SWITCH = (
    '<fieldset><label><input type="checkbox" id="gold" checked> show gold evidence</label>'
    "</fieldset>"
)
_GOLD_LEGEND = (
    ' Gold evidence: <span class="gold mine">of this label</span> '
    '<span class="gold">of any label</span>'
)


@dataclass(frozen=True)
class Cuts:
    """Where a text is cut: piece n is characters `places[n]` to `places[n + 1]`."""

    places: tuple[int, ...]

    @classmethod
    def of(cls, document: DocumentEvidence) -> Cuts:
        """Cut wherever a shown token or a gold span begins or ends, and where reading ended."""
        places = {0, document.read_until, len(document.text)}
        for label in document.labels:
            places.update(edge for span in label.gold_spans for edge in span)
            for tokens in label.attention.values():
                places.update(edge for token in tokens for edge in token[:2])
        return cls(tuple(sorted(places)))

    def pieces(self, start: int, end: int) -> tuple[int, int]:
        """Return the pieces of characters that begin and end at cuts: first, and one past last."""
        return bisect_left(self.places, start), bisect_left(self.places, end)


def _text(document: DocumentEvidence, cuts: Cuts) -> str:
    count = len(cuts.places) - 1
    gold: list[list[str]] = [[] for _ in range(count)]
    for label in document.labels:
        for start, end in label.gold_spans:
            for piece in range(*cuts.pieces(start, end)):
                gold[piece].append(label.id)
    made = []
    for piece in range(count):
        start, end = cuts.places[piece : piece + 2]
        classes = ["gold"] if gold[piece] else []
        classes += ["unread"] if start >= document.read_until else []
        of = f' class="{" ".join(classes)}"' if classes else ""
        if gold[piece]:
            said = escaped("gold evidence of " + ", ".join(dict.fromkeys(gold[piece])))
            of += f' data-gold="{said}" title="{said}"'
        made.append(f'<span id="p{piece}"{of}>{escaped(document.text[start:end])}</span>')
    return "".join(made)


def _data(document: DocumentEvidence, cuts: Cuts) -> dict[str, Any]:
    return {
        "level": ["", *(f"w{depth}" for depth in range(1, LEVELS + 1))],
        "labels": [
            {
                "id": label.id,
                "gold": [cuts.pieces(*span) for span in label.gold_spans],
                "attention": {
                    branch: _attention(tokens, cuts) for branch, tokens in label.attention.items()
                },
            }
            for label in document.labels
        ],
    }


def _attention(tokens: Sequence[AttendedToken], cuts: Cuts) -> dict[str, Any]:
    most = max((token.weight for token in tokens), default=1.0)
    shown = [token for token in tokens if token.weight >= LEAST * most]
    # Lightest first: where tokens share a character the heaviest is painted last.
    rising = sorted(shown, key=lambda token: token.weight)
    return {
        "tokens": [
            # The share first: 5 · w / w may round to just above 5, for which there is no class.
            [
                *cuts.pieces(token.start, token.end),
                ceil(LEVELS * (token.weight / most)),
                token.weight,
            ]
            for token in rising
        ],
        "words": [
            [*cuts.pieces(run.start, run.end), round(run.weight, 6)]
            for run in touching(shown)[:WORDS]
        ],
    }


def _links(frame: PageFrame) -> str:
    links = ['<a href="../index.html">all documents</a>']
    for name, rel, word in ((frame.before, "prev", "previous"), (frame.after, "next", "next")):
        if name is not None:
            links.append(f'<a rel="{rel}" href="{escaped(name)}">{word}</a>')
    return "".join(links)


def _counts(document: DocumentEvidence) -> str:
    predicted = sum(label.predicted for label in document.labels)
    if not document.has_gold:
        return f"{predicted} labels predicted; gold labels are not known."
    right = sum(label.predicted and label.gold is True for label in document.labels)
    missed = sum(label.missed for label in document.labels)
    return f"{predicted} labels predicted, {right} of them gold; {missed} gold labels missed."


def _branches(document: DocumentEvidence) -> str:
    found = dict.fromkeys(branch for label in document.labels for branch in label.attention)
    # What the score rests on comes first: where the label looked, and what that added.
    names = [name for name in (COMBINED, CONTRIBUTION) if name in found or name == COMBINED]
    names += [branch for branch in found if branch not in names]
    return "".join(
        f'<label><input type="radio" name="branch" value="{escaped(name)}"'
        f"{' checked' if name == COMBINED else ''}> {escaped(name)}</label>"
        for name in names
    )


def state_of(label: LabelEvidence) -> str:
    """Say with a sign and a word how a label stands to gold."""
    if label.gold is None:
        return "→ predicted"
    if label.predicted:
        return "✓ right" if label.gold else "✗ not gold"
    return "○ missed"


def _choice(number: int, label: LabelEvidence, frame: PageFrame) -> str:
    key = f"label{number}"
    name = "" if label.name == label.id else f" {escaped(label.name)}"
    rare = (
        f' <span class="tag">rare: {label.train_documents} in training</span>'
        if label.train_documents <= frame.rare
        else ""
    )
    return (
        f'<li><input type="radio" name="label" id="{key}" value="{number}">'
        f'<label for="{key}"><span class="id">{escaped(label.id)}</span>{name}'
        f'<span class="state">{state_of(label)} · {_scored(label)}{rare}</span>{_bar(label)}'
        "</label></li>"
    )


def _scored(label: LabelEvidence) -> str:
    if label.score is None:
        return "unknown to the model"
    at = "" if label.threshold is None else f", threshold {label.threshold:.3f}"
    return f"score {label.score:.3f}{at}"


def _bar(label: LabelEvidence) -> str:
    """Draw the score, and a tick at the threshold; the numbers stand beside it."""
    if label.score is None:
        return ""
    tick = ""
    if label.threshold is not None:
        x = 100 * label.threshold
        tick = f'<line class="tick" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="8"/>'
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="rail" y="3" width="100" height="2"/>'
        f'<rect class="bar" y="2" width="{100 * label.score:.2f}" height="4"/>{tick}</svg>'
    )
