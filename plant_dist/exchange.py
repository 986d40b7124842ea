"""Commands that bring corpora in and give results out: `fetch`, `export`. Nothing is computed here.

As in `cli.py`, heavy imports wait until a command needs them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plant_dist.errors import ConfigError
from plant_dist.options import common

# The names of `plant_dist.data.export.FORMATS`, which would take a second to import.
DATASET_FORMATS = ("xmc", "pecos", "libmultilabel", "annif", "jsonl")


def add_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `fetch`."""
    fetch = commands.add_parser(
        "fetch", help="download a corpus that may be downloaded freely", parents=[common()],
        description="Download a corpus into a folder: resumed where it broke off, checked against "
        "its checksum, unpacked; fetched.json records what came, from where and under which "
        "licence. Without a name, list the corpora.",
    )  # fmt: skip
    fetch.add_argument("name", nargs="?", help="a corpus; without it, list them")
    fetch.add_argument("--output", type=Path, metavar="DIR", help="folder (default: data/NAME)")
    fetch.add_argument(
        "--registry", type=Path, metavar="FILE",
        help="a registry of your own, such as of a mirror (YAML, as the package's fetch.yaml)",
    )  # fmt: skip
    fetch.set_defaults(handle=run_fetch)


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `export`."""
    export = commands.add_parser(
        "export", help="write a corpus for another tool, or a training's checkpoint as a model",
        parents=[common()],
        description="With --dataset: write a prepared dataset (runs/NAME/dataset) as a corpus of "
        "XMC, PECOS, LibMultiLabel or Annif, or as the JSON Lines that predict and explain read. "
        "Says what had to be changed or left out, and how this program reads the folder again. "
        "With --model: write the best checkpoint of a training that has not ended, whatever "
        "processes and engine wrote it, as one folder of `save_pretrained`, on one process and in "
        "little memory.",
    )  # fmt: skip
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", type=Path, metavar="DIR", help="a folder that `prepare` made")
    what.add_argument(
        "--model", type=Path, metavar="RUN", help="a run folder, or one of its checkpoints"
    )
    export.add_argument(
        "--format", choices=DATASET_FORMATS, help="whose files to write, with --dataset"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.set_defaults(handle=run_export)


def run_fetch(options: argparse.Namespace) -> int:
    """Download a corpus, or list those that can be."""
    from plant_dist.data.fetching.download import Patience
    from plant_dist.data.fetching.fetch import (
        REGISTRY,
        describe_registry,
        fetch,
        find_entry,
        load_registry,
    )

    registry = load_registry(options.registry or REGISTRY)
    if options.name is None:
        print(describe_registry(registry))
        return 0
    name, entry = find_entry(options.name, registry)
    folder = options.output or Path("data") / name
    fetch(name, entry, folder, Patience())
    print(f"{name} is in {folder}\nnext: {entry.next.format(folder=folder)}")
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Write a prepared dataset in the files of another tool, or a checkpoint as a model.

    Raises:
        ConfigError: a dataset is named, and no format.
    """
    if options.model is not None:
        from plant_dist.stages.consolidate import export_model

        print(export_model(options.model, options.out))
        return 0
    if options.format is None:
        raise ConfigError(f"--format is missing; choose one of: {', '.join(DATASET_FORMATS)}")
    from plant_dist.stages.export import export_dataset

    print(export_dataset(options.dataset, options.format, options.out))
    return 0
