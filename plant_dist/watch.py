"""The command `status`: its words, and what it prints. What files say is judged in `runtime/`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from plant_dist.config import load_config, run_folder
from plant_dist.errors import ConfigError
from plant_dist.options import add_set, common
from plant_dist.runtime.launch import launch_name
from plant_dist.runtime.status import describe_run, judge_launch


def add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    status = commands.add_parser(
        "status", help="how far a run is, or why it ended, from its files alone",
        parents=[common()],
        description="Print state, step, time left, last metrics and last checkpoint of a run. If "
        "its last launch failed, the message of the rank that failed first stands first.",
    )  # fmt: skip
    status.add_argument("run", nargs="?", type=Path, metavar="RUN", help="run folder")
    status.add_argument("--config", type=Path, metavar="FILE", help="the config of the run instead")
    add_set(status)
    status.add_argument("--output", metavar="DIR", help="run folder, as the run was given it")
    status.add_argument(
        "--ended", type=int, metavar="CODE",
        help="for launchers: the launch has ended with CODE; leave with the code of its ranks, "
        "which some launchers lose",
    )  # fmt: skip
    status.set_defaults(handle=show_status)


def show_status(options: argparse.Namespace) -> int:
    """Print how far a run is; with --ended, how its launch ended."""
    run = _folder_of(options)
    if options.ended is None:
        print(describe_run(run))
        return 0
    verdict = judge_launch(run, launch_name(), options.ended)
    print(verdict.text, file=sys.stderr)
    return verdict.code


def _folder_of(options: argparse.Namespace) -> Path:
    if options.run is not None:
        return Path(options.run)
    if options.output:
        return Path(options.output)
    if options.config is None:
        raise ConfigError("name a run folder, or its config with --config")
    return run_folder(load_config(options.config, options.overrides))
