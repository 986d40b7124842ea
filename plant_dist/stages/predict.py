"""`predict`: texts in, ranked labels out, as a stream, from a saved classifier folder alone.

Records are read and written a chunk at a time, in the input's order; within a chunk documents of
like length are scored together.

B documents, S segments, T tokens, K labels chosen, L labels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from plant_dist.data.batches import Batch, Collator
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.files.tables import Row, read_rows, read_stream
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.tokens import encode_with_spans
from plant_dist.errors import ConfigError, DataError
from plant_dist.evidence.records import COMBINED, AttendedToken
from plant_dist.evidence.tokens import best_tokens
from plant_dist.logs import get_logger, progress_bar
from plant_dist.models.averaged import AveragedClassifier
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.runtime.context import choose_device
from plant_dist.stages.saved import SavedClassifier, averaged
from plant_dist.train.scoring import AllLabels, Scored, Scoring

# Inside a chunk documents are sorted by length: a longer one pads less and answers later.
BATCHES_PER_CHUNK = 32
ID = "id"  # the column of ids that texts may lack
DEFAULT_TOP_K = 10  # where neither the caller nor validation says how many
log = get_logger(__name__)


@dataclass(frozen=True)
class PredictOptions:
    """What to read, what to choose, what to write; see `plant-dist predict --help`."""

    input: str = "-"
    out: Path | None = None
    format: str = "auto"
    text_column: str = "text"
    id_column: str = ID
    top_k: int | None = None
    threshold: float | None = None
    tokens: int = 0
    average_with: Sequence[Path] = ()
    batch: int = 32
    device: str = "auto"
    dry_run: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and self.threshold is not None:
            raise ConfigError("give --top-k or --threshold, not both")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ConfigError(f"--threshold is {self.threshold}; it must be between 0 and 1")
        for name in ("top_k", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
        if self.tokens < 0:
            raise ConfigError(f"--tokens is {self.tokens}; it must not be negative")

    @classmethod
    def from_namespace(cls, options: argparse.Namespace) -> PredictOptions:
        """Take the options of the same names from the command line."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Text:
    """One record to predict."""

    id: str
    text: str


def predict(folder: Path, options: PredictOptions) -> None:
    """Read records, rank labels for each, and write one JSON object a line.

    Raises:
        ArtifactError: the folder is no whole classifier.
        DataError: a record has no text, or the input cannot be read; earlier records are written
            to standard output, never to a file.
    """
    _refuse_overwriting(options)
    device = torch.device(choose_device(options.device))
    saved = SavedClassifier.load(folder, device, with_index=not options.exact)
    predictor = Predictor(saved, options, device)
    if options.dry_run:
        log.info("predict: %s holds %d labels; %s", folder, len(saved.label_space), predictor.rule)
        return
    texts = _read(options)
    with _output(options.out) as stream, progress_bar("predict", "document", None) as bar:
        while chunk := list(islice(texts, options.batch * BATCHES_PER_CHUNK)):
            for record in predictor.predict(chunk):
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            bar.update(len(chunk))


class Predictor:
    """Ranks labels for texts.

    Args:
        saved: an open classifier folder.
        options: how labels are chosen, and how many tokens are shown for each.
        device: where the model is.
    """

    def __init__(self, saved: SavedClassifier, options: PredictOptions, device: torch.device):
        self._saved, self._options, self._device = saved, options, device
        self._collator = Collator(saved.segmentation)
        self._model: PlantForMultiLabelClassification | AveragedClassifier = saved.model
        # As many as are asked for, also where training retrieved fewer.
        self._scoring = saved.scoring(options.exact, self._candidates(saved))
        if options.average_with:
            self._model = averaged(saved, options.average_with, device)
            self._scoring = AllLabels(self._model)
            # Tuned on the scores of one alone, they say nothing of the mean.
            self._saved = replace(saved, thresholds=None, calibration=None)
        # The lowest logit that is chosen, by label; None where the best `top_k` are.
        self._floor_L: Tensor | None = None
        self._top_k = options.top_k
        self._choose_rule()

    def _candidates(self, saved: SavedClassifier) -> int | None:
        if saved.model.retriever is None:
            return None
        return max(int(saved.model.config.retriever["candidates"]), self._options.top_k or 1)

    @property
    def scoring(self) -> Scoring:
        """What says which labels of a document are scored."""
        return self._scoring

    @property
    def rule(self) -> str:
        """How labels are chosen and what their scores are, in words."""
        rule = f"the {self._top_k} best labels" if self._top_k else "labels above their threshold"
        return f"{rule}; scores are {'' if self._saved.calibration else 'not '}calibrated"

    @property
    def calibrated(self) -> bool:
        """Whether scores are calibrated probabilities."""
        return self._saved.calibration is not None

    def _choose_rule(self) -> None:
        thresholds, count = self._saved.thresholds, len(self._saved.label_space)
        if self._options.threshold is not None:
            # Compared as logits: float32 probabilities near 1 are equal where logits still differ.
            probability = torch.tensor(self._options.threshold)
            self._floor_L = self._floors(torch.logit(probability).expand(count))
        elif self._top_k is None and thresholds is None:
            self._top_k = DEFAULT_TOP_K
            log.warning("predict: no threshold was tuned; giving the %d best labels", self._top_k)
        elif self._top_k is None and thresholds is not None:
            if thresholds.rule == "top_k":
                self._top_k = thresholds.top_k
            elif thresholds.rule == "per_label":
                self._floor_L = self._floors(torch.from_numpy(thresholds.by_label()))
            else:
                self._floor_L = self._floors(torch.tensor(thresholds.global_score).expand(count))

    def _floors(self, wanted_L: Tensor) -> Tensor:
        """Return the logits (L,) from which labels reach their thresholds, calibrated or not."""
        floors = wanted_L.float()
        if self._saved.calibration is not None:
            floors = torch.from_numpy(self._saved.calibration.floors(floors.numpy()))
        return floors.to(self._device)

    def probabilities(self, logits_BK: Tensor, labels_BK: Tensor) -> Tensor:
        """Return what is shown for logits of labels."""
        if self._saved.calibration is not None:
            # Of the labels that are given alone, never of all.
            labels, logits = labels_BK.cpu().numpy(), logits_BK.float().cpu().numpy()
            logits_BK = torch.from_numpy(self._saved.calibration.scores(labels, logits))
        return torch.sigmoid(logits_BK)

    def threshold(self, label: int) -> float | None:
        """Return the probability from which a label is chosen; None where the best k are."""
        if self._floor_L is None:
            return None
        one = torch.tensor([label])
        return float(self.probabilities(self._floor_L[one.to(self._device)], one))

    def predict(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """Return a record for each text, in order."""
        records: dict[int, dict[str, Any]] = {}
        for batch, spans in self.batches(texts):
            # Batches come by length, records leave in the order of the input.
            rows = batch.rows.tolist()
            some = [texts[row] for row in rows]
            for row, labels in zip(rows, self._score(batch, spans, some), strict=True):
                records[row] = {
                    "id": texts[row].id,
                    "calibrated": self.calibrated,
                    "labels": labels,
                }
        return [records[row] for row in range(len(texts))]

    def batches(self, texts: Sequence[Text]) -> Iterator[tuple[Batch, list[list[tuple[int, int]]]]]:
        """Tokenise texts and yield batches of like length, with the characters of their tokens.

        `batch.rows` says which texts they are.
        """
        ids, spans = encode_with_spans(
            self._saved.tokenizer, [one.text for one in texts], self._saved.max_document_tokens
        )
        tokens = csr_from_lists(ids)
        sampler = BatchSampler(
            tokens.lengths(), self._saved.segmentation,
            documents_per_batch=self._options.batch, shuffle=False,
        )  # fmt: skip
        # The collator asks for gold labels; here nobody knows them.
        none = csr_from_lists([[] for _ in texts])
        for share in sampler.batches():
            batch = self._collator(tokens.take(share.rows), none.take(share.rows), share)
            yield batch.to(self._device), [spans[row] for row in share.rows]

    @torch.no_grad()
    def _score(
        self, batch: Batch, spans: Sequence[Sequence[tuple[int, int]]], texts: Sequence[Text]
    ) -> list[list[dict[str, Any]]]:
        model = self._model
        # Encoded once, for the scores and for the tokens shown beside them.
        hidden, ids, keep = model.encode(batch.input_ids, batch.attention_mask, batch.keep)
        scores_BK, labels_BK, chosen_BK = self.choose(self._scoring(hidden, ids, keep))
        shown: list[list[list[AttendedToken]]] | None = None
        if self._options.tokens and labels_BK.shape[1]:
            weights = model.decoder.attention_weights(hidden, ids, keep, labels_BK)[COMBINED]
            shown = best_tokens(weights, batch.keep, spans, self._options.tokens)
        found = []
        for b, one in enumerate(texts):
            tokens = [[t.as_json(one.text) for t in some] for some in shown[b]] if shown else None
            found.append(self._labels(scores_BK[b], labels_BK[b], chosen_BK[b], tokens))
        return found

    def choose(self, scored: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best labels' probabilities and ids (B, K), and which of them are chosen.

        A label that was not scored is below all that were, and is never chosen.
        """
        logits_BK, count = scored.logits, scored.logits.shape[1]
        if self._floor_L is None:
            best = logits_BK.topk(min(self._top_k or DEFAULT_TOP_K, count), dim=1)
        else:
            floor = self._floor_L
            if scored.label_ids is not None:
                floor = floor[scored.label_ids.clamp_min(0)]
            above_BK = logits_BK >= floor
            # As many columns as the most generous document needs, so that no label is cut off.
            best = logits_BK.masked_fill(~above_BK, -torch.inf).topk(int(above_BK.sum(1).max()))
        chosen_BK = torch.isfinite(best.values)
        labels_BK = best.indices
        if scored.label_ids is not None:
            labels_BK = scored.label_ids.gather(1, labels_BK).clamp_min(0)
        return self.probabilities(best.values, labels_BK), labels_BK, chosen_BK.cpu()

    def _labels(
        self,
        scores_K: Tensor,
        labels_K: Tensor,
        chosen_K: Tensor,
        tokens: list[list[dict[str, Any]]] | None,
    ) -> list[dict[str, Any]]:
        space = self._saved.label_space
        found = []
        for place, (score, label) in enumerate(
            zip(scores_K[chosen_K].tolist(), labels_K[chosen_K].tolist(), strict=True)
        ):
            entry: dict[str, Any] = {"id": space.ids[label], "name": space.texts[label]}
            entry["score"] = round(score, 6)
            if tokens is not None:
                entry["tokens"] = tokens[place]
            found.append(entry)
        return found


def _read(options: PredictOptions) -> Iterator[Text]:
    """Stream the records to predict, numbering those without an id."""
    for number, row in enumerate(input_rows(options.input, options.format, options.text_column), 1):
        yield text_of(row, number, options.text_column, options.id_column)


def text_of(row: Row, number: int, text_column: str, id_column: str) -> Text:
    """Take the text of a row, and its id or else its number.

    Raises:
        DataError: there is no text.
    """
    text = row.get(text_column, "--text-column")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.where}: the document has no text in {text_column!r}")
    # A column that is named must be there; under its usual name it may not be.
    name = row.values.get(id_column) if id_column == ID else row.get(id_column, "--id-column")
    return Text(str(number if name in (None, "") else name), text)


def input_rows(name: str, kind: str, text_column: str) -> Iterator[Row]:
    """Stream the rows of a file, or of standard input where it is called -.

    Raises:
        DataError: there is no such file; while reading, as `data.tables.read_rows`.
    """
    if name == "-":
        return read_stream(sys.stdin.buffer, "<stdin>", kind, text_column)
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it, or - for standard input")
    if not path.is_file():
        raise DataError(f"file {path} does not exist")
    if kind == "auto" and path.suffix.lower() not in ("", ".txt"):
        return read_rows(path)
    return read_stream(path.open("rb"), str(path), kind, text_column)


def _refuse_overwriting(options: PredictOptions) -> None:
    out, read = options.out, Path(options.input)
    if out is not None and options.input != "-" and out.resolve() == read.resolve():
        raise ConfigError(f"--out {out} is the file that is read; name another")


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that appears only when all is written."""
    if path is None:
        yield sys.stdout
        return
    if not path.parent.is_dir():
        raise DataError(f"--out {path}: there is no folder {path.parent}; make it first")
    # Beside its place: renaming is atomic only within one file system.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            yield stream
        partial.replace(path)
    except OSError as error:
        raise DataError(
            f"--out {path} cannot be written: {error.strerror}; name a place with space and the "
            "right to write"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
