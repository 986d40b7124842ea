"""The command line: words to a stage, errors to one line and an exit code.

Heavy imports wait until a command needs them, so that `--help` and a mistyped option answer at
once. Nothing is computed here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plant_dist import __version__, logs
from plant_dist.config import Config, load_config, resolved_yaml, run_folder
from plant_dist.exchange import add_export, add_fetch
from plant_dist.options import add_exact, add_set, common, config_of, run_options
from plant_dist.planning import add_plan
from plant_dist.runtime.failures import explain
from plant_dist.runtime.launch import Journal, launch_name, name_by_time
from plant_dist.trained import add_explain, add_labels, add_predict
from plant_dist.watch import add_status

if TYPE_CHECKING:
    from plant_dist.stages.pipeline import Job

STAGES = {
    "prepare": "read the corpus, split it, tokenise it",
    "mig": "count which tokens speak for which label (mutual-information gain)",
    "lm": "train an AWD-LSTM on the corpus's language (with encoder.kind=awd_lstm)",
    "rank": "pretrain the token-label ranker on the gains (in a run, where a branch plants it)",
    "train": "plant the ranker's attention and train the classifier",
    "evaluate": "measure the classifier on the test split, beside the baselines",
}

EPILOG = """\
A first run:     plant-dist run --config configs/quickstart.yaml
One stage:       plant-dist mig --config configs/quickstart.yaml
Another value:   plant-dist run --config configs/codiesp.yaml --set train.epochs=3
Your own texts:  plant-dist predict --model runs/quickstart/classifier notes.jsonl
What they say:   plant-dist explain --model runs/quickstart/classifier notes.jsonl --output pages
How far it is:   plant-dist status runs/quickstart
Many runs:       plant-dist sweep --config configs/codiesp_fewshot.yaml
A free corpus:   plant-dist fetch codiesp
For other tools: plant-dist export --dataset runs/quickstart/dataset --format pecos --out DIR
Will it fit:     plant-dist plan --labels 100M --gpus 64 --gpu-memory 80GB
Every setting:   plant-dist config --keys

Exit codes: 0 done; 1 to 7 an error that one line explains (2 config, 3 data, 4 artifact,
5 device or package, 6 training, 7 another rank was lost); 75 stopped by SIGTERM or SIGUSR1 after
saving, run the same command again to go on; 70 an error of the program itself.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = build_parser().parse_args(arguments)
    # From the environment: an error may come before the process group is there.
    rank = os.environ.get("RANK", "")
    logs.configure(rank=int(rank) if rank.isdigit() else 0, verbose=options.verbose)
    options.journal = Journal(options.command)
    try:
        code: int = options.handle(options)
        options.journal.end(code)
        return code
    except BrokenPipeError:
        # The reader of our output went away (`| head`); keep the interpreter from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code, message = explain(error, options.command)
        options.journal.end(code, message, error)
        if options.debug and not isinstance(error, KeyboardInterrupt):
            raise
        return _fail(message, code)


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK")
    print(f"plant-dist{f' [rank {rank}]' if rank else ''}: {message}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="plant-dist",
        description="PLANT: planted attention for extreme multi-label text classification.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"plant-dist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="every stage that is not up to date", parents=[common(), run_options()],
        description="Run prepare, mig, lm, rank, train and evaluate, as far as not up to date.",
    )  # fmt: skip
    run.set_defaults(handle=run_stages)
    for name, text in STAGES.items():
        stage = commands.add_parser(
            name, help=text, parents=[common(), run_options()],
            description=f"Stage `{name}`: {text}. Does nothing where its artifact is up to date.",
        )  # fmt: skip
        stage.set_defaults(handle=run_stages)
        if name == "rank":
            _add_show(stage)
        if name == "evaluate":
            add_exact(stage)
    add_plan(commands)
    _add_sweep(commands)
    _add_shortlist(commands)
    add_predict(commands)
    add_explain(commands)
    add_status(commands)
    add_labels(commands)
    add_fetch(commands)
    add_export(commands)
    _add_config(commands)
    return parser


def _add_show(rank: argparse.ArgumentParser) -> None:
    rank.add_argument(
        "--show", action="append", default=[], metavar="LABEL",
        help="train nothing; print the best tokens of a label, by gain and learned; repeatable",
    )  # fmt: skip
    rank.add_argument(
        "--show-token", action="append", default=[], metavar="TOKEN",
        help="train nothing; print the labels that a token speaks for; repeatable",
    )  # fmt: skip
    rank.add_argument("--top", type=int, default=20, metavar="N", help="lines of each, with --show")
    rank.set_defaults(handle=run_rank)


def _add_sweep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = commands.add_parser(
        "sweep", help="many runs from one config: variants, training sizes, seeds, and their table",
        parents=[common(), run_options()],
        description="Make the runs that the section `sweep` of the config stands for, each below "
        "RUN/sweep, as far as not finished, and write RUN/sweep/sweep.md, .json and .png. With "
        "--dry-run, list them with their indices.",
    )  # fmt: skip
    sweep.add_argument(
        "--index", type=int, metavar="N", help="make run N alone, as a task of an array of jobs"
    )
    sweep.set_defaults(handle=run_sweep)


def _add_shortlist(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shortlist = commands.add_parser(
        "shortlist", help="build the index of a classifier anew, or tune its search",
        parents=[common()],
        description="Build the index that retrieves the labels to score (train.labels=shortlist) "
        "from the saved classifier, and say how much it finds how fast. With --tune, build "
        "nothing: measure the search settings on validation documents, print the curve of recall "
        "against milliseconds, plot it into the run's report folder, and keep the fastest that "
        "reaches the recall.",
    )  # fmt: skip
    shortlist.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML config")
    add_set(shortlist)
    shortlist.add_argument("--output", metavar="DIR", help="run folder")
    shortlist.add_argument(
        "--tune", type=float, nargs="?", const=0.95, metavar="RECALL",
        help="share of the exact best 10 to reach (default 0.95)",
    )  # fmt: skip
    shortlist.set_defaults(handle=run_shortlist)


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser(
        "config", help="print the resolved config, or every key", parents=[common()],
        description="Print a config with everything it extends and every default filled in.",
    )  # fmt: skip
    config.add_argument("file", nargs="?", type=Path, help="YAML config; the defaults without one")
    config.add_argument(
        "--keys", action="store_true", help="every key, default, meaning (Markdown)"
    )
    add_set(config)
    config.set_defaults(handle=show_config)


def show_config(options: argparse.Namespace) -> int:
    """Print the resolved config, or the documentation of every key."""
    from plant_dist.config.reference import key_reference

    config = load_config(options.file, options.overrides)
    print(key_reference() if options.keys else resolved_yaml(config), end="")
    return 0


def run_stages(options: argparse.Namespace) -> int:
    """Run one stage, or all; with --dry-run only say what would be done."""
    from plant_dist.runtime.collectives import end_run
    from plant_dist.runtime.lock import alone_in
    from plant_dist.stages import ALL, check_config, force, run_stage
    from plant_dist.stages.evaluate import check_test
    from plant_dist.stages.plan import describe_plan
    from plant_dist.stages.summary import closing_summary, counts_summary

    config = config_of(options)
    # `ALL` is in the order of the pipeline, and so is what is chosen from it.
    whole = options.command == "run"
    chosen = [one for one in ALL if one.name == options.command or (whole and one.belongs(config))]
    if options.dry_run:
        print(describe_plan(config, chosen))
        return 0
    job = _job(config, options)
    reports = any(stage.makes == "report" for stage in chosen)
    with alone_in(job.folder, job.context):
        if options.force:
            force(chosen, job)
        for stage in chosen:
            if not whole:
                check_config(stage, ALL, job)
            stage.check(job)
        for stage in chosen:
            run_stage(stage, job)
            if stage.makes == "dataset" and job.context.is_main:
                print(counts_summary(job))
            if stage.makes == "dataset" and reports:
                check_test(job)
    # On one rank, and only where there is a report to sum up.
    if job.context.is_main and reports:
        print(closing_summary(job))
    end_run(job.context)
    return 0


def run_rank(options: argparse.Namespace) -> int:
    """Run the stage `rank`, or print what its ranker has learnt."""
    if not (options.show or options.show_token):
        return run_stages(options)
    from plant_dist.runtime.context import RunContext
    from plant_dist.stages.pipeline import Job, command_words
    from plant_dist.stages.show import show

    words = command_words(options.config, tuple(options.overrides), options.output)
    # One process answers: nothing here is shared out among ranks.
    job = Job(config_of(options), RunContext(), words)
    for text in show(job, options.show, options.show_token, options.top):
        print(text)
    return 0


def run_sweep(options: argparse.Namespace) -> int:
    """Make the runs of a sweep; with --dry-run only list them."""
    from plant_dist.runtime.collectives import end_run
    from plant_dist.stages.sweep import describe_sweep, sweep

    config = config_of(options)
    if options.dry_run:
        print(describe_sweep(config))
        return 0
    job = _job(config, options)
    table = sweep(job, options.config, options.overrides, options.index, options.force)
    if job.context.is_main:
        print(table)
    end_run(job.context)
    return 0


def run_shortlist(options: argparse.Namespace) -> int:
    """Build or tune the index of a run's classifier."""
    from plant_dist.runtime.collectives import end_run
    from plant_dist.runtime.lock import alone_in
    from plant_dist.stages.shortlist import ShortlistOptions, shortlist

    chosen = ShortlistOptions.from_namespace(options)
    job = _job(config_of(options), options)
    with alone_in(job.folder, job.context):
        said = shortlist(job, chosen)
    if job.context.is_main:
        print(said)
    end_run(job.context)
    return 0


def _job(config: Config, options: argparse.Namespace) -> Job:
    from plant_dist.runtime.collectives import broadcast_object
    from plant_dist.runtime.context import announced_place, start_run
    from plant_dist.stages.pipeline import Job, command_words

    words = command_words(options.config, tuple(options.overrides), options.output)
    folder, named = run_folder(config), launch_name()
    if named:
        # Before the ranks meet, since a rank that fails to would otherwise leave no record.
        options.journal.open(folder, named, *announced_place())
    context = start_run(config.runtime, config.seed)
    if not named:
        name = broadcast_object(context, name_by_time())
        options.journal.open(folder, name, context.rank, context.world)
    return Job(
        config=config, context=context, command=words,
        profile=getattr(options, "profile", False),
    )  # fmt: skip
