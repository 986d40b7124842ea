"""Time and peak memory of the decoder's forward and backward pass, beside the naive form.

The naive form holds every B×L×T array: dense scores, dense weights of each branch (mostly zeros
under inattention) and contexts of all labels by one product. Each case runs in a process of its
own, whose peak resident memory is read at its end; a naive case is skipped where its memory,
extrapolated from the case of fewer labels, is above the limit or above what the machine has free.

    python benchmarks/decoder.py                  # all cases, writes benchmarks/results/decoder.*
    python benchmarks/decoder.py --labels 1000 --tokens 512 --runs 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import described_machine, load
from torch import Tensor

from plant_dist.config.schema import ModelConfig
from plant_dist.labels.table import LabelTable
from plant_dist.models.attention import keep_largest, softmax_kept
from plant_dist.models.branches import spread
from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.fields import label_fields
from plant_dist.models.ranker import LexicalScorer
from plant_dist.models.static import StaticGains

DOCUMENTS, WIDTH, RANKER_WIDTH, VOCABULARY, STORED = 2, 384, 256, 30522, 64
PLANTED = ("planted", "static")
ALL = ("learned", *PLANTED)
# Form -> branches of the decoder; names and bag read no attention over the document.
FORMS = {"planted decoder": ALL, "without learned branch": PLANTED, "naive": ALL}
RESULTS = Path(__file__).parent / "results"


def make_gains(labels: int) -> StaticGains:
    """STORED tokens a label, drawn by Zipf's law, with falling random gains."""
    gains = StaticGains(labels, VOCABULARY, labels * STORED)
    draws = zipf(labels * STORED).view(labels, STORED)
    # Steps of one keep a label's tokens distinct without a draw per label.
    tokens = (draws[:, :1] + torch.arange(STORED) * (1 + draws[:, 1:2] % 97)) % VOCABULARY
    values = torch.rand(labels, STORED).sort(1, descending=True).values
    gains.fill(torch.arange(labels + 1) * STORED, tokens.flatten().int(), values.flatten())
    return gains


def zipf(count: int) -> Tensor:
    """Token ids of natural frequencies, int64."""
    weights = 1.0 / torch.arange(1, VOCABULARY + 1)
    return torch.multinomial(weights, count, replacement=True)


def make_decoder(labels: int, branches: tuple[str, ...]) -> LabelDecoder:
    config = ModelConfig(dropout=0.0, branches=branches)
    table = LabelTable(labels, label_fields(config, WIDTH, RANKER_WIDTH))
    scorer = LexicalScorer(VOCABULARY, RANKER_WIDTH)
    return LabelDecoder(config, table, scorer, make_gains(labels))


def naive_logits(decoder: LabelDecoder, hidden: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
    """The formulas as they are written, with dense weights and contexts."""
    assert decoder.scorer is not None
    assert decoder.gains is not None
    assert isinstance(decoder.labels, LabelTable)
    rows = decoder.labels.fields
    dropped_B1T = torch.zeros_like(keep, dtype=hidden.dtype).masked_fill(~keep, -torch.inf)[:, None]
    states_BDT = hidden.transpose(1, 2)
    weights = (rows["query"] @ states_BDT / WIDTH**0.5 + dropped_B1T).softmax(-1)
    factors_BTR, bias_BT = decoder.scorer.token_factors(ids, None)
    scores = rows["factor"] @ factors_BTR.transpose(1, 2) + bias_BT[:, None] + dropped_B1T
    best, _ = keep_largest(scores, decoder.config.planted_k)
    least = best.amin(-1, keepdim=True)
    weights = weights + scores.masked_fill(scores < least, -torch.inf).softmax(-1)
    gains, positions = decoder.gains.block(
        ids, keep, 0, decoder.labels.count, decoder.config.static_k
    )
    dense = spread(softmax_kept(gains).to(hidden.dtype), positions, hidden.shape[1])
    contexts_BLD = (weights + dense) @ hidden
    logits_BL: Tensor = (contexts_BLD * rows["boost"]).sum(-1) + rows["bias"][:, 0]
    return logits_BL


def memory_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; run on Linux")


def measure(form: str, labels: int, tokens: int, runs: int, threads: int) -> dict[str, Any]:
    """Seconds of each run of forward + backward, memory before the first and at the peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    decoder = make_decoder(labels, FORMS[form])
    hidden = torch.randn(DOCUMENTS, tokens, WIDTH, requires_grad=True)
    ids = zipf(DOCUMENTS * tokens).view(DOCUMENTS, tokens)
    keep = torch.ones(DOCUMENTS, tokens, dtype=torch.bool)
    score: Callable[..., Tensor] = decoder
    if form == "naive":
        score = lambda *batch: naive_logits(decoder, *batch)  # noqa: E731
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = memory_mib("VmRSS")
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        torch.autograd.backward(score(hidden, ids, keep).square().mean())
        seconds.append(time.perf_counter() - started)
    # The first run pages memory in and indexes the gains; it is not counted.
    return {"seconds": seconds[1:], "before_mib": before, "peak_mib": memory_mib("VmHWM")}


def run_case(form: str, labels: int, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a case in a process of its own."""
    arguments = ["--worker", form, "--labels", labels, "--tokens", tokens]
    arguments += ["--runs", options.runs, "--threads", options.threads]
    command = [sys.executable, __file__, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode > 0:
        # A fault of the program is no result; the kernel's kill for want of memory is one.
        raise SystemExit(f"{form}, {labels:,} labels, {tokens:,} tokens:\n{finished.stderr}")
    if finished.returncode:
        return {"skipped": f"killed by signal {-finished.returncode}"}
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


def run_all(options: argparse.Namespace, about: dict[str, Any]) -> list[dict[str, Any]]:
    """All cases, fewer labels first, so that the naive form's memory can be foretold.

    Results are written after every case; with `--resume` those found there are not measured again.
    """
    known = {key(row): row for row in earlier_rows(about)} if options.resume else {}
    rows: list[dict[str, Any]] = []
    for tokens in options.tokens:
        step_mib = 0.0
        for labels in options.labels:
            for form in FORMS:
                row: dict[str, Any] = {"form": form, "labels": labels, "tokens": tokens}
                needed = step_mib * labels / 1024
                free = psutil.virtual_memory().available / 2**30
                if key(row) in known:
                    row = known[key(row)]
                elif form == "naive" and needed > min(options.limit_gib, 0.8 * free):
                    row["skipped"] = f"skipped: would need about {needed:.0f} GiB"
                else:
                    row |= run_case(form, labels, tokens, options)
                if form == "naive" and "skipped" not in row:
                    step_mib = (row["peak_mib"] - row["before_mib"]) / labels
                print(json.dumps(row), file=sys.stderr, flush=True)
                rows.append(row)
                write(rows, about)
    return rows


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What names a case."""
    return row["form"], row["labels"], row["tokens"]


def earlier_rows(about: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a run that was broken off, if it was made in the same way."""
    if not (RESULTS / "decoder.json").exists():
        return []
    found = json.loads((RESULTS / "decoder.json").read_text())
    # How busy the machine was is told of it, and differs every time.
    alike = all(found["about"][name] == about[name] for name in about if name != "machine")
    rows: list[dict[str, Any]] = found["rows"] if alike else []
    return rows


def write(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write the results so far."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "decoder.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))
    (RESULTS / "decoder.md").write_text(markdown(rows, about))


def markdown(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table of results with how they were got."""
    lines = [
        "# Decoder: forward + backward, time and memory",
        "",
        f"`{about['command']}` on {about['machine']}, torch threads: {about['threads']}, torch "
        f"{about['torch']}; B = {DOCUMENTS}, D = {WIDTH}, R = {RANKER_WIDTH}, {STORED} gains a "
        f"label, Zipf tokens, float32. Median of {about['runs']} runs after one that is not "
        "counted; range in brackets. Step memory is the peak above the resident parameters, "
        "gradients and gains.",
        "",
        "| tokens | labels | form | seconds | step memory, MiB | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = f"| {row['tokens']:,} | {row['labels']:,} | {row['form']} |"
        if "skipped" in row:
            lines.append(f"{head} {row['skipped']} | | |")
            continue
        seconds, step = row["seconds"], row["peak_mib"] - row["before_mib"]
        spread_text = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        lines.append(f"{head} {spread_text} | {step:,.0f} | {row['peak_mib']:,.0f} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gib", type=float, default=20.0, help="memory of a naive case")
    parser.add_argument("--resume", action="store_true", help="keep what is measured already")
    parser.add_argument("--worker", choices=tuple(FORMS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        case = (options.worker, options.labels[0], options.tokens[0])
        print(json.dumps(measure(*case, options.runs, options.threads)))
        return
    about = {
        "command": f"python benchmarks/decoder.py --runs {options.runs} --threads "
        f"{options.threads}",
        "machine": f"{described_machine()}, {load()}",
        "threads": options.threads,
        "runs": options.runs,
        "torch": torch.__version__,
    }
    print(markdown(run_all(options, about), about))


if __name__ == "__main__":
    main()
