"""`explain`: texts in, a page of evidence for each out, with an index and the spans as JSON.

    OUTPUT/index.html                the list of documents, with filters
    OUTPUT/documents/000001.html …   self-contained pages, in the input's order
    OUTPUT/spans.jsonl               the same evidence as character offsets, a document a line

Documents are read, scored and written a chunk at a time. How labels are chosen is `predict`'s.

B documents, K labels shown, L labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from plant_dist.artifacts import Manifest, read_manifest, written_artifact
from plant_dist.data.files.columns import evidence_spans, label_ids
from plant_dist.data.records import Span
from plant_dist.data.words import Ints, words_of
from plant_dist.errors import ConfigError, DataError
from plant_dist.evidence.index import IndexWriter
from plant_dist.evidence.page import PageFrame, document_page
from plant_dist.evidence.records import (
    CONTRIBUTION,
    AttendedToken,
    DocumentEvidence,
    LabelEvidence,
)
from plant_dist.evidence.tokens import best_words
from plant_dist.logs import get_logger, progress_bar
from plant_dist.models.contributions import contributions
from plant_dist.runtime.context import choose_device
from plant_dist.stages.predict import PredictOptions, Predictor, Text, input_rows, text_of
from plant_dist.stages.saved import SavedClassifier
from plant_dist.train.scoring import Scored

LABELS_AT_ONCE = 64  # attention of so many labels over one document is held at a time
BATCHES_PER_CHUNK = 4
SPANS = "spans.jsonl"
log = get_logger(__name__)


@dataclass(frozen=True)
class ExplainOptions:
    """What to read, what to show, where to write; see `plant-dist explain --help`."""

    output: Path
    input: str = "-"
    format: str = "auto"
    text_column: str = "text"
    id_column: str = "id"
    labels_column: str = "labels"
    labels_separator: str = ";"
    evidence_column: str = "evidence"
    split_column: str = "split"
    split: str | None = None
    top_k: int | None = None
    threshold: float | None = None
    words: int = 50
    rare: int = 10
    batch: int = 8
    device: str = "auto"
    dry_run: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ConfigError(f"--words is {self.words}; it must be at least 1")
        if self.rare < 0:
            raise ConfigError(f"--rare is {self.rare}; it must not be negative")

    @classmethod
    def from_namespace(cls, options: argparse.Namespace) -> ExplainOptions:
        """Take the options of the same names from the command line."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})

    def choice(self) -> PredictOptions:
        """Return how `predict` is to choose labels, and how many documents to score at once."""
        return PredictOptions(
            top_k=self.top_k, threshold=self.threshold, batch=self.batch, exact=self.exact
        )


@dataclass(frozen=True)
class JudgedText(Text):
    """A text, and what a person said of it.

    Attributes:
        labels: gold labels; None where the input has no such column.
        evidence: spans that a person marked.
    """

    labels: tuple[str, ...] | None = None
    evidence: tuple[Span, ...] = ()


def explain(folder: Path, options: ExplainOptions) -> None:
    """Write pages, index and spans for the documents of a file or of standard input.

    The output folder appears when all is written; an earlier one of this command is replaced.

    Raises:
        ArtifactError: `folder` is no whole classifier, or the output cannot be written.
        DataError: a record has no text, a gold span lies outside it, or the input has no document.
        ConfigError: the output folder holds something else.
    """
    _check_replaceable(options.output)
    device = torch.device(choose_device(options.device))
    explainer = Explainer(
        SavedClassifier.load(folder, device, with_index=not options.exact), options, device
    )
    if options.dry_run:
        log.info("explain: %s; %s", folder, explainer.rule)
        return
    with written_artifact(options.output, _manifest(folder, options)) as fresh:
        count = _write(fresh, explainer, options)
    log.info("explain: %d documents; open %s", count, options.output / "index.html")


def _manifest(folder: Path, options: ExplainOptions) -> Manifest:
    """Say of which classifier and which choice the pages are."""
    chosen = ("split", "top_k", "threshold", "words", "rare")
    model = read_manifest(folder)
    return Manifest(
        "explain",
        {name: getattr(options, name) for name in chosen},
        {} if model is None else {"classifier": model.digest},
    )


def _check_replaceable(folder: Path) -> None:
    """Refuse to take the place of anything but an earlier result of this command."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.stage != "explain":
        raise ConfigError(
            f"--output {folder} is there and was not written by explain; name a new folder"
        )


class Explainer:
    """Scores texts and gathers what each label attended.

    Args:
        saved: an open classifier folder.
        options: how labels are chosen, how many words are shown.
        device: where the model is.
    """

    def __init__(self, saved: SavedClassifier, options: ExplainOptions, device: torch.device):
        self._saved, self._options = saved, options
        self._predictor = Predictor(saved, options.choice(), device)

    @property
    def rule(self) -> str:
        """How labels are chosen, in words."""
        return self._predictor.rule

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the attention should know of this model."""
        general = (
            f"Shown are the {self._options.words} most attended words of each branch, those "
            "below 1 % of the largest weight aside. Combined adds up the branches under their "
            "gates, so its weights may exceed 1. Contribution is what each word adds to the "
            "score before it becomes a probability; words that lower it are not shown."
        )
        if self._saved.model.decoder.config.state != "logit_state":
            return (general,)
        return (
            general,
            "This model attends a document's last segment only; earlier segments reach the "
            "scores through its state (model.state: logit_state).",
        )

    @torch.no_grad()
    def explain(self, texts: Sequence[JudgedText]) -> list[DocumentEvidence]:
        """Return the evidence of each text, in order."""
        model, found = self._saved.model, {}
        for batch, spans in self._predictor.batches(texts):
            hidden, ids, keep = model.encode(batch.input_ids, batch.attention_mask, batch.keep)
            scored = self._predictor.scoring(hidden, ids, keep)
            _, labels_BK, chosen_BK = self._predictor.choose(scored)
            for b, row in enumerate(batch.rows.tolist()):
                chosen = labels_BK[b][chosen_BK[b]].tolist()
                shown = [*chosen, *self._missed(texts[row], chosen)]
                one = slice(b, b + 1)
                attention = self._attention(
                    (hidden[one], ids[one], keep[one]), batch.keep[b], shown,
                    words_of(texts[row].text, spans[b]),
                )  # fmt: skip
                logits_K = self._logits_of(scored, b, (hidden[one], ids[one], keep[one]), shown)
                labels = self._labels(texts[row], len(chosen), shown, logits_K, attention)
                until = self._read_until(texts[row].text, spans[b])
                found[row] = DocumentEvidence(texts[row].id, texts[row].text, labels, until)
        return [found[row] for row in range(len(texts))]

    def _logits_of(
        self, scored: Scored, place: int, encoded: tuple[Tensor, Tensor, Tensor],
        shown: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """Return the logits of the labels shown for one document."""
        labels_K = torch.tensor(list(shown), dtype=torch.int64, device=scored.logits.device)
        if scored.label_ids is None:
            return scored.logits[place, labels_K]
        logits_K = scored.logits.new_empty(len(shown))
        listed_K, where_K = _places(scored.label_ids[place], labels_K)
        logits_K[listed_K] = scored.logits[place, where_K]
        # Gold that was not retrieved is scored by itself: what it would have got.
        rest = labels_K[~listed_K]
        if len(rest):
            logits_K[~listed_K] = self._saved.model.score(*encoded, rest[None])[0]
        return logits_K

    def _missed(self, text: JudgedText, chosen: Sequence[int]) -> list[int]:
        """Return the gold labels of the label space that were not chosen, by index."""
        gold = self._saved.label_space.indices(tuple(dict.fromkeys(text.labels or ())))
        return [label for label in gold.tolist() if label >= 0 and label not in chosen]

    def _attention(
        self,
        encoded: tuple[Tensor, Tensor, Tensor],
        keep_ST: Tensor,
        labels: Sequence[int],
        words: tuple[Ints, Ints],
    ) -> list[dict[str, list[AttendedToken]]]:
        """Return for each label, by branch, the words that one document's label attended most."""
        found: list[dict[str, list[AttendedToken]]] = []
        for start in range(0, len(labels), LABELS_AT_ONCE):
            some = torch.tensor([labels[start : start + LABELS_AT_ONCE]], device=keep_ST.device)
            decoder = self._saved.model.decoder
            weights = decoder.attention_weights(*encoded, some)
            # What speaks against a label is below 0, and so is not among its best words.
            weights[CONTRIBUTION] = contributions(decoder, *encoded, some)
            by_branch = {
                branch: best_words(one[0][:, keep_ST.flatten()], *words, self._options.words)
                for branch, one in weights.items()
            }
            found += [
                {branch: best[place] for branch, best in by_branch.items()}
                for place in range(some.shape[1])
            ]
        return found

    def _labels(
        self,
        text: JudgedText,
        predicted: int,
        shown: Sequence[int],
        logits_K: Tensor,
        attention: Sequence[dict[str, list[AttendedToken]]],
    ) -> list[LabelEvidence]:
        space, gold = self._saved.label_space, set(text.labels or ())
        spans: dict[str, list[tuple[int, int]]] = {}
        for span in text.evidence:
            spans.setdefault(span.label, []).append((span.start, span.end))
        ids_K = torch.tensor(list(shown), dtype=torch.int64, device=logits_K.device)
        scores = self._predictor.probabilities(logits_K, ids_K).tolist()
        labels = [
            LabelEvidence(
                space.ids[label], space.texts[label], scores[place],
                self._predictor.threshold(label), place < predicted,
                None if text.labels is None else space.ids[label] in gold,
                int(space.train_frequency[label]), attention[place],
                tuple(sorted(spans.get(space.ids[label], ()))),
            )
            for place, label in enumerate(shown)
        ]  # fmt: skip
        # Gold of which the model has no row: it can only be missed.
        unknown = [one for one in dict.fromkeys(text.labels or ()) if not self._known(one)]
        return labels + [
            LabelEvidence(one, one, None, None, False, True, 0, {}, tuple(spans.get(one, ())))
            for one in unknown
        ]

    def _known(self, label: str) -> bool:
        return bool(self._saved.label_space.indices([label])[0] >= 0)

    def _read_until(self, text: str, spans: Sequence[tuple[int, int]]) -> int:
        limit = self._saved.max_document_tokens
        # A document that stops short of the limit was read whole, trailing space included.
        return spans[-1][1] if limit is not None and len(spans) >= limit else len(text)


def _places(label_ids_N: Tensor, wanted_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return (K,) which labels are listed, and the places of those that are."""
    same_KN = wanted_K[:, None] == label_ids_N
    listed_K = same_KN.any(1)
    return listed_K, same_KN[listed_K].int().argmax(1)


def _write(folder: Path, explainer: Explainer, options: ExplainOptions) -> int:
    """Write everything into a folder; return the number of documents."""
    (folder / "documents").mkdir()
    frame = PageFrame(explainer.rule, options.rare, explainer.notes())
    count = 0
    with (
        (folder / "index.html").open("w", encoding="utf-8") as index_stream,
        (folder / SPANS).open("w", encoding="utf-8") as spans,
        progress_bar("explain", "document", None) as bar,
    ):
        index = IndexWriter(index_stream, "Evidence", f"Chosen: {explainer.rule}.", options.rare)
        for count, (document, after) in enumerate(_with_next(_documents(explainer, options)), 1):
            name = _page_name(count)
            neighbours = PageFrame(
                frame.rule, frame.rare, frame.notes,
                before=_page_name(count - 1) if count > 1 else None,
                after=_page_name(count + 1) if after else None,
            )  # fmt: skip
            page = document_page(document, neighbours)
            (folder / "documents" / name).write_text(page, encoding="utf-8")
            index.add(document, f"documents/{name}")
            _write_spans(spans, document, f"documents/{name}")
            bar.update()
        index.close()
    if not count:
        of = f" of split {options.split!r} (--split)" if options.split else ""
        raise DataError(f"{options.input} holds no document{of} to explain")
    return count


def _page_name(number: int) -> str:
    # By number, not by id: an id may hold a slash, or differ from another in case alone.
    return f"{number:06d}.html"


def _write_spans(stream: IO[str], document: DocumentEvidence, page: str) -> None:
    content = {**document.as_json(), "page": page}
    stream.write(json.dumps(content, ensure_ascii=False) + "\n")


def _with_next(documents: Iterable[DocumentEvidence]) -> Iterator[tuple[DocumentEvidence, bool]]:
    """Pair each document with whether another follows, which its page links to."""
    waiting: DocumentEvidence | None = None
    for document in documents:
        if waiting is not None:
            yield waiting, True
        waiting = document
    if waiting is not None:
        yield waiting, False


def _documents(explainer: Explainer, options: ExplainOptions) -> Iterator[DocumentEvidence]:
    texts = _read(options)
    while chunk := list(islice(texts, options.batch * BATCHES_PER_CHUNK)):
        yield from explainer.explain(chunk)


def _read(options: ExplainOptions) -> Iterator[JudgedText]:
    rows = input_rows(options.input, options.format, options.text_column)
    for number, row in enumerate(rows, 1):
        if options.split and row.values.get(options.split_column) != options.split:
            continue
        text = text_of(row, number, options.text_column, options.id_column)
        gold = None
        if options.labels_column in row.values:
            words = row.values[options.labels_column]
            gold = label_ids(words, options.labels_separator, row, options.labels_column)
        marked = row.values.get(options.evidence_column)
        spans = evidence_spans(marked, row, options.evidence_column)
        for span in spans:
            # Annotators leave empty spans, which mark nothing.
            if not 0 <= span.start <= span.end <= len(text.text):
                raise DataError(
                    f"{row.where}: evidence {span.start} to {span.end} of {span.label!r} lies "
                    f"outside the text of {len(text.text)} characters; correct it, or name another "
                    "column with --evidence-column"
                )
        yield JudgedText(text.id, text.text, gold, spans)
