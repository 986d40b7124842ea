"""Does planting work? Every part of the method against its absence, over seeds, on one corpus.

    python benchmarks/ablation.py --config configs/codiesp.yaml --seeds 5
    python benchmarks/ablation.py --config configs/codiesp.yaml --seeds 5 --few-shot 25 50 100 200

Every row walks along `--rates` with the first seed, from the middle one to a better neighbour until
there is none; the rate with the best MAP on validation is the row's own and makes the other seeds,
so that no row is held back by another's rate. The default is made as its config says, and so are
the rows that differ from it in one thing. What is kept of a finished row is a line of
results/ablation_NAME.jsonl: lines that are there are not made again, on whatever machine, and lines
of a config that has changed since are refused. The encoder is frozen and its states are kept on
disk, unless a row fine-tunes. Gains, rankers and thresholds are made anew for every seed and
training subset; the test split decides nothing.
Writes results/ablation_NAME.md, .json and .png beside the lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_rows import (
    BESIDE,
    FINE_TUNED,
    LINEAR,
    OF_DEFAULT,
    PLANTED,
    ROWS,
    UNPLANTED,
    Place,
    fingerprint,
    make,
)
from ablation_table import RESULTS, write_tables

from plant_dist.config.load import load_config

RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
CURVE = ("TF-IDF + LinearSVC", UNPLANTED, BESIDE, PLANTED)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES,
                        help="learning rates of label rows that each row chooses from")  # fmt: skip
    parser.add_argument("--rows", nargs="+", help="rows to make; all if unset",
                        choices=[*LINEAR, *ROWS], default=[*LINEAR, *ROWS])  # fmt: skip
    parser.add_argument("--fine-tuned", nargs="*", choices=[*ROWS], default=[*FINE_TUNED],
                        help="rows that are also made with a trained encoder")  # fmt: skip
    parser.add_argument("--few-shot", type=int, nargs="*", default=[], metavar="N",
                        help="sizes of training subsets for the curve")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--name", help="of the results; the config's if unset")
    parser.add_argument("--output", type=Path, help="run folders; runs/ablation-NAME if unset")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines and tables")
    parser.add_argument("--table", action="store_true", help="only write the tables anew")
    return parser.parse_args()


class Finished:
    """The rows that are finished, one line of a file each.

    Args: path: made with the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.records: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def find(self, place: Place) -> Mapping[str, Any] | None:
        """Return a place's record; None where it is not finished."""
        key = place.key
        return next(
            (one for one in self.records if all(one[name] == key[name] for name in key)), None
        )

    def add(self, record: dict[str, Any]) -> None:
        """Write a record, and keep it."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, separators=(",", ":")) + "\n")
        self.records.append(record)


def check_lines(finished: Finished, config: Path) -> None:
    """Stop where finished rows were trained under other settings than the config's today."""
    # A line's own settings, so that whoever asked for others by --set is not told off.
    stale = {
        one["row"]
        for one in finished.records
        if one["trained_by"]
        and one["trained_by"] != fingerprint(load_config(config, one["settings"]))
    }
    if stale:
        raise SystemExit(
            f"{finished.path}: {config} has changed since these rows were made: "
            f"{', '.join(sorted(stale))}; delete their lines, or give the results another --name"
        )


def next_rate(finished: Finished, root: Path, row: str, rates: Sequence[float]) -> float | None:
    """Return the next rate to try a row at with the first seed; None where the walk has ended."""
    ladder = sorted(rates)
    tried = tried_rates(finished, root, row, ladder)
    if not tried:
        return ladder[len(ladder) // 2]
    best = ladder.index(max(tried, key=lambda rate: tried[rate]))
    beside = ladder[max(best - 1, 0) : best + 2]
    return next((rate for rate in beside if rate not in tried), None)


def tried_rates(
    finished: Finished, root: Path, row: str, rates: Sequence[float]
) -> dict[float, float]:
    """Return the MAP on validation at every rate that a row was made at with the first seed."""
    found = {rate: finished.find(Place(root, row, 0, rate)) for rate in rates}
    return {rate: one["validation_map"] for rate, one in found.items() if one is not None}


def places(options: argparse.Namespace, root: Path, finished: Finished) -> Iterator[Place]:
    """Yield what to make, in order; rates are chosen as soon as they are known."""
    rows = [row for row in options.rows if row in ROWS]
    yield from (
        Place(root, row, seed)
        for row in options.rows if row in LINEAR for seed in range(options.seeds)
    )  # fmt: skip
    for row in rows:
        if row in OF_DEFAULT:
            continue
        while (rate := next_rate(finished, root, row, options.rates)) is not None:
            yield Place(root, row, 0, rate)

    def own(row: str) -> float | None:
        if row in LINEAR:
            return None
        if row in OF_DEFAULT:
            return float(options.default_rate)
        tried = tried_rates(finished, root, row, options.rates)
        return max(tried, key=lambda rate: tried[rate])

    for seed in range(options.seeds):
        yield from (Place(root, row, seed, own(row)) for row in rows)
        yield from (
            Place(root, row, seed, own(row), tuned=True)
            for row in options.fine_tuned if row in rows
        )  # fmt: skip
    for subset in options.few_shot:
        for seed in range(options.seeds):
            yield from (Place(root, row, seed, own(row), subset)
                        for row in CURVE if row in options.rows)  # fmt: skip


def main() -> None:
    options = parse()
    name = options.name or options.config.stem
    root = (options.output or Path(f"runs/ablation-{name}")).resolve()
    options.results.mkdir(parents=True, exist_ok=True)
    finished = Finished(options.results / f"ablation_{name}.jsonl")
    check_lines(finished, options.config)
    config = load_config(options.config, options.set)
    options.default_rate = config.train.optim.learning_rate
    options.train_documents = config.plan.train_documents
    for place in () if options.table else places(options, root, finished):
        if finished.find(place):
            continue
        print(f"ablation: {place.title}, seed {place.seed}, rate {place.rate}, "
              f"{place.subset or 'all'} documents", file=sys.stderr, flush=True)  # fmt: skip
        finished.add(make(options.config, place, options.set))
        write_tables(name, options, finished.records)
    write_tables(name, options, finished.records)


if __name__ == "__main__":
    main()
