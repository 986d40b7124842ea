"""A training step on shortlists past a frozen encoder, of this checkout and of another in turn.

What WordNet's rows of the ablation do at every step: documents' vectors, the rows of 256 labels for
each, label attention, both losses, the backward pass, and row-wise Adagrad; autocast to bf16.
States are made up, and shortlists drawn evenly, so that rows are seldom shared. A process of one
thread for each checkout and round, the two in turn, so that what else the machine does falls on
both; seconds of the processor.

    git worktree add OTHER COMMIT
    python benchmarks/shortlist_step.py --against OTHER
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import described_machine, load
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.updates import RowAdagrad
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.allocator import keep_freed_memory

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
DOCUMENTS, CONSIDERED, WIDTH, VECTORS, LABELS = 32, 256, 384, 256, 17_083
ENCODER = {
    "model_type": "bert", "vocab_size": 1000, "hidden_size": WIDTH, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


class Evenly:
    """Considers labels drawn evenly from all of them."""

    vectors = "learned"

    def __call__(self, document_vectors_BX: Tensor) -> Tensor:
        """Return label ids (B, K)."""
        return torch.randint(0, LABELS, (len(document_vectors_BX), CONSIDERED))


def measure(tokens: int, steps: int) -> float:
    """Return the median of the seconds of a processor that a step takes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    config = PlantConfig(
        encoder=ENCODER, decoder={"branches": ["learned"]}, label_count=LABELS,
        retriever={"vectors": "learned", "width": VECTORS, "temperature": 0.05},
    )  # fmt: skip
    model = PlantForMultiLabelClassification(
        config, make_rows=lambda count, widths, zero: ReplicatedRows(
            count, widths, RowAdagrad(), zero
        ),
    ).train()  # fmt: skip
    rows = model.labels
    assert isinstance(rows, ReplicatedRows)
    optimizer = torch.optim.SGD([{"params": list(rows.fields.values()), "lr": 0.01}])
    ids = torch.randint(0, 1000, (DOCUMENTS, 1, tokens))
    hidden = torch.randn(DOCUMENTS, 1, tokens, WIDTH)
    keep = torch.ones_like(ids, dtype=torch.bool)
    gold = (torch.rand(DOCUMENTS, CONSIDERED) < 0.02).float()
    seconds = []
    # The first ones are not counted.
    for number in range(steps + 3):
        began = time.process_time()
        rows.begin(optimizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said = model(ids, keep, keep, label_ids=Evenly(), hidden=hidden)
        loss = binary_cross_entropy_with_logits(said.logits.float(), gold, reduction="sum")
        told = cross_entropy(said.similarities.float(), gold.argmax(1), reduction="sum")
        torch.autograd.backward(loss + told)
        rows.step()
        if number >= 3:
            seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def measured_in(checkout: Path, tokens: int, steps: int) -> float:
    """Return what `measure` says of a checkout's package, in a process of its own."""
    command = [sys.executable, str(HERE), "--tokens", str(tokens), "--steps", str(steps), "--one"]
    places = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env={**os.environ, **places}, capture_output=True, text=True, check=True
    )
    return float(ended.stdout.split()[-1])


def compare(other: Path, tokens: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return seconds of both checkouts, a pair for every round, and the median of their ratios."""
    checkouts = {"other": other, "this": HERE.parents[1]}
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            seconds[name].append(round(measured_in(checkout, tokens, steps), 4))
    ratios = [slow / fast for slow, fast in zip(seconds["other"], seconds["this"], strict=True)]
    return {"tokens": tokens, "seconds": seconds, "ratio": round(statistics.median(ratios), 2),
            "ratio_from": round(min(ratios), 2), "ratio_to": round(max(ratios), 2)}  # fmt: skip


def commit_of(checkout: Path) -> str:
    """Return a checkout's commit, short."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# A training step on shortlists, before and after\n",
        f"`{report['command']}`, a checkout of {report['other']}, on {report['machine']}; torch "
        f"{torch.__version__}, one thread. {DOCUMENTS} documents, {CONSIDERED} labels each of "
        f"{LABELS:,}, states of {WIDTH} numbers, label attention and the learned retriever's "
        f"{VECTORS}; milliseconds of the processor, medians, and the median of the ratios of "
        "rounds in turn with their range.\n",
        "| tokens a document | before | after | ratio |",
        "|---|---|---|---|",
    ]
    for case in report["cases"]:
        before, after = (1000 * statistics.median(case["seconds"][name])
                         for name in ("other", "this"))  # fmt: skip
        spread = f"{case['ratio']:.2f} ({case['ratio_from']:.2f} to {case['ratio_to']:.2f})"
        lines.append(f"| {case['tokens']} | {before:.0f} | {after:.0f} | {spread} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one", action="store_true", help="only say this package's seconds")
    options = parser.parse_args(arguments)
    if options.one:
        print(measure(options.tokens[0], options.steps))
        return
    if options.against is None:
        parser.error("--against: a checkout of the commit to compare with")
    report: dict[str, Any] = {
        "command": f"python benchmarks/shortlist_step.py --rounds {options.rounds} --steps "
        f"{options.steps} --against OTHER",
        "other": commit_of(options.against),
        "machine": f"{described_machine()}, {load()}",
        "cases": [
            compare(options.against.resolve(), tokens, options.rounds, options.steps)
            for tokens in options.tokens
        ],
    }
    (RESULTS / "shortlist_step.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "shortlist_step.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
