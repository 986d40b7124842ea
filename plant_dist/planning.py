"""The command `plan`: its words. What they mean for memory and time is worked out in `stages/`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from plant_dist.config import load_config
from plant_dist.options import add_set, common

DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
UNITS = ("b", "b/s", "flops", "flop/s")
AMOUNT = re.compile(rf"([0-9]*\.?[0-9]+(?:e[0-9]+)?)([{''.join(DECIMAL)}]?)(?:{'|'.join(UNITS)})?")


def amount(text: str) -> float:
    """Read a number with a decimal prefix and perhaps a unit, such as 100M, 80GB or 20GB/s.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = AMOUNT.fullmatch(text.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount; write it as 3000000, 3M or 80GB")
    return float(found[1]) * DECIMAL[found[2]]


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    plan = commands.add_parser(
        "plan", help="whether so many labels fit on so many GPUs, and what a step would take",
        parents=[common()],
        description="Say what a cluster that is not at hand would have to hold, send and compute: "
        "memory of a GPU by kind, bytes of the all-to-all, size of the index, time of a step from "
        "the rates given. Nothing is loaded. Without --config: shortlists, label attention and "
        "planted attention around BERT. Amounts are written as 100M, 80GB, 20GB/s, 100TFLOP/s.",
    )  # fmt: skip
    plan.add_argument("--config", type=Path, metavar="FILE", help="YAML config")
    add_set(plan)
    for name, default, text in (
        ("labels", None, "labels; else plan.labels of the config"),
        ("gpus", "8", "GPUs, a rank each"),
        ("gpus-per-node", "8", "of one host"),
        ("gpu-memory", "80GB", "of a GPU"),
        ("documents", "32", "documents of a GPU's batch"),
        ("tokens", None, "of a document; else plan.document_tokens, else a segment"),
        ("compute", "100TFLOP/s", "what a GPU sustains"),
        ("memory-rate", "1.5TB/s", "between a GPU and its memory"),
        ("link-rate", "20GB/s", "what a rank sends to others while all send"),
        ("search-rate", "40GB/s", "of an index, scanned by the processors of a rank"),
    ):
        said = text if default is None else f"{text} (default {default})"
        # A default that is a string is read as an argument is.
        plan.add_argument(f"--{name}", type=amount, default=default, metavar="N", help=said)
    plan.set_defaults(handle=run_plan)


def run_plan(options: argparse.Namespace) -> int:
    """Say what a cluster would have to hold, send and compute."""
    from plant_dist.stages.forecast import USUAL, PlanOptions, describe_forecast

    usual = () if options.config else USUAL
    config = load_config(options.config, [*usual, *options.overrides])
    print(describe_forecast(config, PlanOptions.from_namespace(options)))
    return 0
