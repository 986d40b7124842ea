"""Does attention point at what a coder marked, and does the model rest on it?

    python benchmarks/plausibility.py runs/codiesp_es
    python benchmarks/plausibility.py RUN --gradient-documents 50 --faithfulness-documents 25

RUN is a finished run folder whose corpus has evidence spans. Every gold label with evidence that
the model knows counts, predicted or not. Attention, gain and chance are measured on all test
documents; all methods, gradients too, on the first few: one label of 600 tokens took 11 s on one
core (MiniLM, 16 steps), and faithfulness some 10 forward passes a method and label. Thresholds come
from as many validation documents. Writes results/plausibility-NAME.md and .json beside this file.
Needs captum (`pip install 'plant-dist[explain]'`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attributions import GAIN, GRADIENTS, RANDOM, Reader, Scores, at_random, gain_alone
from machine import described_machine, load
from numpy.typing import NDArray

from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.tokens import encode_with_spans
from plant_dist.logs import progress
from plant_dist.metrics.faithfulness import SHARES, best_share, comprehensiveness, sufficiency
from plant_dist.metrics.plausibility import Plausibility
from plant_dist.mig.lists import GainTable
from plant_dist.stages.saved import SavedClassifier

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "auprc": "AUPRC", "iou": "IoU", "token_precision": "token P", "token_recall": "token R",
    "token_f1": "token F1", "span_precision": "span P", "span_recall": "span R",
    "span_f1": "span F1",
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A document, and which of its tokens a person marked for which label.

    Attributes:
        ids: (N,) token ids.
        gold: label index -> (N,) bool.
    """

    name: str
    ids: list[int]
    gold: Mapping[int, NDArray[np.bool_]]


class Bench:
    """A run folder, opened; attributions by method."""

    def __init__(self, run: Path, steps: int, seed: int) -> None:
        self.dataset = PreparedDataset.load(run / "dataset")
        self.saved = SavedClassifier.load(run / "classifier", torch.device("cpu"))
        # Gradients are taken with regard to the input alone.
        self.saved.model.requires_grad_(False)
        self.gains = GainTable.load(run / "gains")
        self.reader = Reader(self.saved)
        self.steps, self.seed = steps, seed

    def documents(self, split: str) -> Iterator[Judged]:
        """Yield the documents of a split that have evidence."""
        for row in self.dataset.documents(split):
            if not row["evidence_label"]:
                continue
            [ids], [spans] = encode_with_spans(
                self.saved.tokenizer, [row["text"]], self.saved.max_document_tokens
            )
            starts, ends = np.array(spans).reshape(-1, 2).T
            gold: dict[int, NDArray[np.bool_]] = {}
            marked = zip(
                row["evidence_label"], row["evidence_start"], row["evidence_end"], strict=True
            )
            for label, start, end in marked:
                # A token is gold where it shares a character with a span.
                inside = (starts < end) & (ends > start)
                gold[label] = gold.get(label, False) | inside
            # Evidence beyond where the model stops reading cannot be found by any method.
            yield Judged(row["id"], ids, {k: v for k, v in gold.items() if v.any()})

    def scores(self, document: Judged, gradients: bool) -> Iterator[tuple[int, dict[str, Scores]]]:
        """Yield for each label of a document the scores of its tokens by method."""
        labels = list(document.gold)
        if not labels:
            return
        attention = self.reader.attention(document.ids, labels)
        for place, label in enumerate(labels):
            found = {
                RANDOM: at_random(document.name, label, len(document.ids), self.seed),
                GAIN: gain_alone(self.gains, document.ids, label),
            }
            found |= {f"attention, {branch}": one[place] for branch, one in attention.items()}
            if gradients:
                found |= self.reader.gradients(document.ids, label, self.steps)
            yield label, found

    def plausibility(self, split: str, count: int | None, gradients: bool) -> Agreement:
        """Gather the agreement with gold of each method over a split's first documents."""
        gathered: Agreement = {}
        kind = "gradients too" if gradients else "attention"
        for document in progress(islice(self.documents(split), count), f"{split}, {kind}", "doc"):
            for label, found in self.scores(document, gradients):
                for method, scores in found.items():
                    gathered.setdefault(method, Plausibility()).add(scores, document.gold[label])
        return gathered

    def faithfulness(self, count: int) -> dict[str, dict[str, float]]:
        """Return the mean comprehensiveness and sufficiency of each method."""
        falls: dict[str, list[tuple[float, float]]] = {}
        for document in progress(islice(self.documents("test"), count), "faithfulness", "doc"):
            full = self.reader.probabilities(document.ids)
            for label, found in self.scores(document, gradients=True):
                for method, scores in found.items():
                    falls.setdefault(method, []).append(
                        self._falls(document.ids, scores, label, float(full[label]))
                    )
        means = {method: np.mean(pairs, axis=0) for method, pairs in falls.items()}
        return {
            method: {"comprehensiveness": float(c), "sufficiency": float(s)}
            for method, (c, s) in means.items()
        }

    def _falls(
        self, ids: list[int], scores: Scores, label: int, full: float
    ) -> tuple[float, float]:
        """Take tokens out, and closing up the rest, ask the model again."""
        tokens = np.array(ids)
        masks = [best_share(scores, share) for share in SHARES]
        without = [float(self.reader.probabilities(tokens[~one])[label]) for one in masks]
        only = [float(self.reader.probabilities(tokens[one])[label]) for one in masks]
        return comprehensiveness(full, without), sufficiency(full, only)


Agreement = dict[str, Plausibility]


def results_of(test: Agreement, validation: Agreement) -> dict[str, dict[str, float]]:
    """Return the measures of each method, at the threshold that validation chose."""
    return {
        method: one.results(validation[method].best_threshold()) for method, one in test.items()
    }


def table(results: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> list[str]:
    """One row a method, percent."""
    lines = [f"| method | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for method, found in results.items():
        cells = " | ".join(f"{100 * found[column]:.1f}" for column in columns)
        lines.append(f"| {method} | {cells} |")
    return lines


def report(name: str, options: argparse.Namespace, found: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    pairs = next(iter(found["all"].values()))["pairs"]
    few = next(iter(found["few"].values()))["pairs"] if found["few"] else 0
    faithful = {"comprehensiveness": "comprehensiveness ↑", "sufficiency": "sufficiency ↓"}
    lines = [
        f"# {name}: plausibility and faithfulness, test split, percent", "",
        f"{described_machine()}, {load()}, {found['seconds']:.0f} s. Tokens are predicted from a "
        "share of the largest score, chosen for token F1 on validation documents; a span is found "
        "where it shares half of the union or more. AUPRC and IoU are means over (document, "
        "label) pairs.", "",
        f"## All test documents ({pairs} pairs)", "", *table(found["all"], COLUMNS), "",
        f"## With gradients: the first {options.gradient_documents} documents ({few} pairs), "
        f"{options.steps} steps", "", *table(found["few"], COLUMNS), "",
        f"## Faithfulness: the first {options.faithfulness_documents} documents", "",
        f"Means over the best {', '.join(f'{share:.0%}' for share in SHARES)} of the tokens.", "",
        *table(found["faithfulness"], faithful),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--documents", type=int, help="test and validation documents; all if unset")
    parser.add_argument("--gradient-documents", type=int, default=10)
    parser.add_argument("--faithfulness-documents", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help="of integrated gradients")
    parser.add_argument("--seed", type=int, default=0, help="of the random scores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", help="name of the result files; the run folder's if unset")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name, start = options.name or options.run.name, time.perf_counter()
    bench = Bench(options.run, options.steps, options.seed)
    few = options.gradient_documents

    def measured(count: int | None, gradients: bool) -> dict[str, dict[str, float]]:
        splits = (bench.plausibility(one, count, gradients) for one in ("test", "validation"))
        return results_of(*splits)

    found: dict[str, Any] = {
        "all": measured(options.documents, gradients=False),
        "few": measured(few, gradients=True),
        "faithfulness": bench.faithfulness(options.faithfulness_documents),
        "methods_with_gradients": list(GRADIENTS),
        "options": {key: str(value) for key, value in vars(options).items()},
    }
    found["seconds"] = time.perf_counter() - start
    text = report(name, options, found)
    options.results.mkdir(parents=True, exist_ok=True)
    place = options.results / f"plausibility-{name}"
    place.with_suffix(".md").write_text(text, encoding="utf-8")
    place.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
