"""Does attention point at what a coder marked, and does the model rest on it?

    python benchmarks/plausibility.py runs/codiesp_es
    python benchmarks/plausibility.py RUN --gradient-labels 200 --faithfulness-labels 50

RUN is a finished run folder whose corpus has evidence spans. Every gold label with evidence that
the model knows counts, predicted or not. Attention, contributions, gain and chance are measured on
all test documents, or those of at most `--max-tokens`; gradients, which take a label some seconds,
beside them on labels drawn at random from these, and faithfulness, 10 readings for each method and
label, on the first of the labels drawn. Thresholds come from validation documents, those of
gradients from labels drawn there. Gradients are kept in RUN/attributions, so that a run that was
broken off goes on. Writes plausibility-NAME.md, .json and .png into results/. Needs captum
(`pip install 'plant-dist[explain]'`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attributions import (
    CONTRIBUTION,
    GAIN,
    RANDOM,
    KeptGradients,
    Reader,
    Scores,
    at_random,
    gain_alone,
)  # fmt: skip
from numpy.typing import NDArray
from plausibility_report import COMBINED, Found, write_report
from seeds import OURS, read_report

from plant_dist.artifacts import read_manifest
from plant_dist.config.load import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.tokens import encode_with_spans
from plant_dist.data.words import by_word, touched, words_of
from plant_dist.logs import progress
from plant_dist.metrics.bands import BANDS, band_name, band_numbers
from plant_dist.metrics.faithfulness import SHARES, best_share, comprehensiveness, sufficiency
from plant_dist.metrics.plausibility import Plausibility
from plant_dist.mig.lists import GainTable
from plant_dist.runtime.context import start_run
from plant_dist.stages.arrays import states_cache
from plant_dist.stages.pipeline import Job
from plant_dist.stages.saved import SavedClassifier
from plant_dist.train.states import HiddenStates

RESULTS = Path(__file__).parent / "results"
LEVELS = ("token", "word")
# The planted branches one by one add little to what they say together, and cost as much.
FAITHFUL_METHODS = {
    RANDOM, GAIN, "attention, static", COMBINED, CONTRIBUTION, "gradient × input, sum",
    "integrated gradients, sum",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A document, and which of its tokens and words a person marked for which label.

    Attributes:
        ids: (N,) token ids.
        word: (N,) the word of each token.
        gold: label index -> level -> bool, (N,) tokens and (W,) words.
        split, number: where the document stands in the dataset.
    """

    name: str
    ids: list[int]
    word: NDArray[np.int64]
    gold: Mapping[int, Mapping[str, NDArray[np.bool_]]]
    split: str
    number: int


# Level -> method -> agreement with gold.
Agreement = dict[str, dict[str, Plausibility]]


class Bench:
    """A run folder, opened; attributions by method."""

    def __init__(self, run: Path, steps: int, seed: int, job: Job | None = None) -> None:
        self.dataset = PreparedDataset.load(run / "dataset")
        self.saved = SavedClassifier.load(run / "classifier", torch.device("cpu"))
        # Gradients are taken with regard to the input alone.
        self.saved.model.requires_grad_(False)
        self.gains = GainTable.load(run / "gains")
        self.reader = Reader(self.saved)
        manifest = read_manifest(run / "classifier")
        digest = manifest.digest[:16] if manifest else "unknown"
        self.gradients = KeptGradients(self.reader, run / "attributions" / digest, steps)
        self.seed = seed
        self._states: dict[str, HiddenStates] = {}
        self._cache = job and states_cache(job, self.saved.model.encoder, self.saved.segmentation)
        names = [band_name(*band) for band in BANDS]
        numbers = band_numbers(self.saved.label_space.train_frequency)
        self.band_of_label = [names[number] for number in numbers]

    def documents(self, split: str, longest: int | None = None) -> list[Judged]:
        """Return a split's documents with evidence, of at most `longest` tokens."""
        found = [
            self._judged(row, split, number)
            for number, row in enumerate(self.dataset.documents(split))
            if row["evidence_label"]
        ]
        return [one for one in found if longest is None or len(one.ids) <= longest]

    def states(self, split: str) -> HiddenStates | None:
        """Return a split's hidden states, if the run keeps them."""
        if self._cache and split not in self._states:
            self._states[split] = self._cache.open(self.dataset.token_csr(split))
        return self._states.get(split)

    def _judged(self, row: Mapping[str, Any], split: str, number: int) -> Judged:
        [ids], [spans] = encode_with_spans(
            self.saved.tokenizer, [row["text"]], self.saved.max_document_tokens
        )
        word_N, words = words_of(row["text"], spans)
        places = {"token": np.array(spans, dtype=np.int64).reshape(-1, 2), "word": words}
        gold: dict[int, dict[str, NDArray[np.bool_]]] = {}
        marked = zip(row["evidence_label"], row["evidence_start"], row["evidence_end"], strict=True)
        for label, start, end in marked:
            own = gold.setdefault(label, {})
            for level, place in places.items():
                # Gold where it shares a character with a span.
                own[level] = own.get(level, False) | touched(place, start, end)
        # Evidence beyond where the model stops reading cannot be found by any method.
        found = {label: own for label, own in gold.items() if own["token"].any()}
        return Judged(row["id"], ids, word_N, found, split, number)

    def drawn(self, documents: Sequence[Judged], count: int) -> list[tuple[Judged, int]]:
        """Draw (document, label) pairs at random, the same for the same seed."""
        pairs = [(document, label) for document in documents for label in document.gold]
        order = np.random.default_rng(self.seed).permutation(len(pairs))[:count]
        return [pairs[place] for place in order]

    def scores(self, document: Judged, labels: Sequence[int]) -> Iterator[dict[str, Scores]]:
        """Yield for each label the scores of a document's tokens by method, without gradients."""
        states = self.states(document.split)
        if states is not None:
            self.reader.recall(document.ids, states, document.number)
        attention = self.reader.attention(document.ids, labels)
        added = self.reader.contributions(document.ids, labels)
        for place, label in enumerate(labels):
            found = {
                RANDOM: at_random(document.name, label, len(document.ids), self.seed),
                GAIN: gain_alone(self.gains, document.ids, label),
            }
            found |= {f"attention, {branch}": one[place] for branch, one in attention.items()}
            yield found | {CONTRIBUTION: added[place]}

    def agreement(self, documents: Sequence[Judged], name: str) -> Agreement:
        """Measure every method but gradients on all labels."""
        gathered: Agreement = {level: {} for level in LEVELS}
        for document in progress(documents, name, "doc"):
            labels = list(document.gold)
            if not labels:
                continue
            for label, found in zip(labels, self.scores(document, labels), strict=True):
                self._add(gathered, document, label, found)
        return gathered

    def agreement_of(self, pairs: Sequence[tuple[Judged, int]], name: str) -> Agreement:
        """Measure every method, gradients too, on some pairs."""
        gathered: Agreement = {level: {} for level in LEVELS}
        for document, label in progress(pairs, f"{name}, gradients", "label"):
            self._add(gathered, document, label, self.every(document, label))
        return gathered

    def every(self, document: Judged, label: int) -> dict[str, Scores]:
        """Return the scores of one label's tokens by every method."""
        [found] = self.scores(document, [label])
        return found | self.gradients.of(document.name, document.ids, label)

    def _add(
        self, gathered: Agreement, document: Judged, label: int, found: Mapping[str, Scores]
    ) -> None:
        band = self.band_of_label[label]
        for method, scores in found.items():
            by_level = {"token": scores, "word": by_word(scores, document.word)}
            for level, one in by_level.items():
                gathered[level].setdefault(method, Plausibility()).add(
                    one, document.gold[label][level], document.name, band
                )

    def faithfulness(self, pairs: Sequence[tuple[Judged, int]]) -> dict[str, NDArray[np.float64]]:
        """Return comprehensiveness and sufficiency of each pair, (P, 2), by method."""
        falls: dict[str, list[tuple[float, float]]] = {}
        for document, label in progress(pairs, "faithfulness", "label"):
            full = self.reader.probability(document.ids, label)
            found = self.every(document, label)
            for method in FAITHFUL_METHODS & found.keys():
                fall = self._falls(document.ids, found[method], label, full)
                falls.setdefault(method, []).append(fall)
        return {method: np.array(falls[method]) for method in sorted(falls)}

    def _falls(
        self, ids: list[int], scores: Scores, label: int, full: float
    ) -> tuple[float, float]:
        """Take tokens out, and closing up the rest, ask the model again."""
        tokens = np.array(ids)
        masks = [best_share(scores, share) for share in SHARES]
        without = [self.reader.probability(tokens[~one].tolist(), label) for one in masks]
        only = [self.reader.probability(tokens[one].tolist(), label) for one in masks]
        return comprehensiveness(full, without), sufficiency(full, only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument(
        "--config", type=Path, help="the run's: its hidden states are read, if kept"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--max-tokens", type=int, help="longest document; any length if unset")
    parser.add_argument("--gradient-labels", type=int, default=60,
                        help="drawn of test; half as many of validation")  # fmt: skip
    parser.add_argument("--faithfulness-labels", type=int, default=20)
    parser.add_argument("--steps", type=int, default=16, help="of integrated gradients")
    parser.add_argument("--seed", type=int, default=0, help="of labels drawn and random scores")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="name of the result files; the run folder's if unset")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    job = None
    if options.config:
        config = load_config(options.config, [*options.set, f"output={options.run}"])
        job = Job(config, start_run(config.runtime, config.seed))
    own = read_report(options.run)[OURS]
    bench = Bench(options.run, options.steps, options.seed, job)
    test, validation = (bench.documents(one, options.max_tokens) for one in ("test", "validation"))
    for split, documents in (("test", test), ("validation", validation)):
        if not any(document.gold for document in documents):
            raise SystemExit(
                f"no {split} document has evidence of a label that the run knows; give it a corpus "
                "that has, or raise --max-tokens"
            )
    pairs = bench.drawn(test, options.gradient_labels)
    found = Found(
        all_labels=bench.agreement(test, "test"),
        all_validation=bench.agreement(validation, "validation"),
        drawn=bench.agreement_of(pairs, "test"),
        drawn_validation=bench.agreement_of(
            bench.drawn(validation, options.gradient_labels // 2), "validation"
        ),
        faithfulness=bench.faithfulness(pairs[: options.faithfulness_labels]),
        # A report has the cutoffs that its config asks for.
        model={name: own[name] for name in ("p@1", "p@5", "map") if name in own},
        # Without places on this machine.
        options={
            key: str(value)
            for key, value in vars(options).items()
            if key not in ("run", "config", "set", "results", "name")
        },
        seconds=time.perf_counter() - start,
    )
    options.results.mkdir(parents=True, exist_ok=True)
    name = options.name or options.run.name
    print(write_report(options.results / f"plausibility-{name}", name, found, options.resamples))


if __name__ == "__main__":
    main()
