"""Options that several commands share, and the config they ask for. Nothing is computed here."""

from __future__ import annotations

import argparse
from pathlib import Path

from plant_dist.config import Config, load_config


def common() -> argparse.ArgumentParser:
    """Return what every command takes."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument("--verbose", action="store_true", help="show more log lines")
    return shared


def run_options() -> argparse.ArgumentParser:
    """Return what every stage takes."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML config")
    add_set(shared)
    shared.add_argument(
        "--output", metavar="DIR", help="run folder (default: config's output, or runs/NAME)"
    )
    shared.add_argument(
        "--dry-run", action="store_true",
        help="say what would be done, its size and its memory, and do nothing",
    )  # fmt: skip
    shared.add_argument(
        "--force", action="store_true", help="make the artifact anew though it is up to date"
    )
    shared.add_argument(
        "--profile", action="store_true",
        help="record some early steps of each training (RUN/profile), for Perfetto or TensorBoard",
    )  # fmt: skip
    return shared


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add overrides of settings."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting, such as train.epochs=3, or lay a config over with extends=FILE; "
        "may be repeated",
    )  # fmt: skip


def add_exact(parser: argparse.ArgumentParser) -> None:
    """Add scoring without an index."""
    parser.add_argument(
        "--exact", action="store_true",
        help="score all labels, block by block, not those that an index retrieves",
    )  # fmt: skip


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add what says which texts are read, and with which model."""
    parser.add_argument("input", nargs="?", default="-", help="a file, or - for standard input")
    # A model folder is all that is needed; a config only finds that folder.
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", type=Path, metavar="DIR", help="a saved classifier folder")
    where.add_argument(
        "--config", type=Path, metavar="FILE", help="the run whose classifier to use"
    )
    add_set(parser)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add how the input is read, and which labels are chosen."""
    parser.add_argument(
        "--format", choices=("auto", "jsonl", "csv", "tsv", "lines"), default="auto",
        help="of the input; auto goes by the file's name, and JSONL or lines on standard input",
    )  # fmt: skip
    parser.add_argument("--text-column", default="text", help="field of the text")
    parser.add_argument("--id-column", default="id", help="field of the id; optional")
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="K best labels, whatever the threshold"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="labels of at least this probability"
    )
    add_exact(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="check the model and the options")


def config_of(options: argparse.Namespace) -> Config:
    """Return the config that a command's words ask for."""
    words = list(options.overrides)
    if options.output:
        # The last word wins, so that --output beats a --set of the same key.
        words.append(f"output={options.output}")
    if getattr(options, "exact", False):
        words.append("evaluate.exact=true")
    return load_config(options.config, words)
