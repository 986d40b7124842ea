"""The commands that take a saved classifier: `predict`, `explain` and `labels`, their words.

What they do is done in `stages/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plant_dist.config import load_config, run_folder
from plant_dist.errors import ConfigError
from plant_dist.options import add_choice, add_model, common, config_of


def add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `predict` to the parser."""
    predict = commands.add_parser(
        "predict", help="rank labels for texts, with a saved model folder alone",
        parents=[common()],
        description="Read texts (JSONL, CSV, TSV, or one a line; a file or standard input), write "
        "one JSON object a document: id, calibrated, labels (id, name, score; best first) and, "
        "with --tokens, the words each label rests on. Where `calibrated` is true, scores are "
        "probabilities fitted on validation (evaluate.calibration); else they are the model's own. "
        "Needs nothing but the model folder.",
    )  # fmt: skip
    add_model(predict)
    predict.add_argument("--output", metavar="DIR", help="run folder, with --config")
    predict.add_argument("--out", type=Path, metavar="FILE", help="write here, not to stdout")
    add_choice(predict)
    predict.add_argument(
        "--tokens", type=int, default=0, metavar="N", help="best tokens per label, with offsets"
    )
    predict.add_argument(
        "--average-with", type=Path, action="append", default=[], metavar="DIR",
        help="another classifier of the same labels (again for more): the mean of all "
        "probabilities counts",
    )  # fmt: skip
    predict.add_argument("--batch", type=int, default=32, metavar="N", help="documents at once")
    predict.set_defaults(handle=run_predict)


def add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `explain` to the parser."""
    explain = commands.add_parser(
        "explain", help="pages that show what each label rests on, with a saved model folder",
        parents=[common()],
        description="Read texts as predict does and write a folder: a self-contained HTML page a "
        "document on which a label shows the words it attended, an index.html with filters, and "
        "spans.jsonl. Gold labels and gold evidence are shown where the input has them.",
    )  # fmt: skip
    add_model(explain)
    explain.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the pages go"
    )
    add_choice(explain)
    explain.add_argument("--labels-column", default="labels", help="field of the gold labels")
    explain.add_argument(
        "--labels-separator", default=";", help="between gold labels where they are one string"
    )
    explain.add_argument(
        "--evidence-column", default="evidence", help="field of {label, start, end} gold spans"
    )
    explain.add_argument("--split-column", default="split", help="field that --split looks at")
    explain.add_argument("--split", metavar="NAME", help="documents of this split only")
    explain.add_argument(
        "--words", type=int, default=50, metavar="N", help="most attended words shown per branch"
    )
    explain.add_argument(
        "--rare", type=int, default=10, metavar="N", help="training documents of a rare label"
    )
    explain.add_argument("--batch", type=int, default=8, metavar="N", help="documents at once")
    explain.set_defaults(handle=run_explain)


def add_labels(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `labels` to the parser."""
    labels = commands.add_parser(
        "labels", help="add labels to a saved classifier by their text, or remove some",
        parents=[common()],
        description="Write a copy of a classifier folder in which labels are added, which start "
        "from their text, or removed. All other labels score exactly as before.",
    )  # fmt: skip
    labels.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="a saved classifier folder"
    )
    labels.add_argument(
        "--add", type=Path, metavar="FILE", help="table of new labels: id, text, parent if any"
    )
    labels.add_argument(
        "--remove", type=Path, metavar="FILE", help="ids, one a line, or a table with a column id"
    )
    labels.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the new classifier folder"
    )
    labels.set_defaults(handle=run_labels)


def run_predict(options: argparse.Namespace) -> int:
    """Rank labels for the texts of a file or of standard input.

    Raises:
        ConfigError: a word would count for nothing.
    """
    from plant_dist.stages.predict import PredictOptions, predict

    if options.model and (options.output or options.overrides):
        word = "--output" if options.output else "--set"
        raise ConfigError(
            f"{word} goes with --config, and --model needs none; for a file of results say --out"
        )
    folder = options.model or run_folder(config_of(options)) / "classifier"
    predict(folder, PredictOptions.from_namespace(options))
    return 0


def run_explain(options: argparse.Namespace) -> int:
    """Write pages that show what each label rests on.

    Raises:
        ConfigError: a word would count for nothing.
    """
    from plant_dist.stages.explain import ExplainOptions, explain

    if options.model and options.overrides:
        raise ConfigError("--set goes with --config, and --model needs none")
    folder = options.model
    if folder is None:
        # Here --output is where the pages go, so the run folder is the config's own.
        folder = run_folder(load_config(options.config, options.overrides)) / "classifier"
    explain(folder, ExplainOptions.from_namespace(options))
    return 0


def run_labels(options: argparse.Namespace) -> int:
    """Add labels to a classifier, or remove some."""
    from plant_dist.stages.relabel import relabel

    relabel(options.model, options.output, options.add, options.remove)
    return 0
