"""Does planting work? Every part of the method against its absence, over seeds, on one corpus.

    python benchmarks/ablation.py --config configs/codiesp.yaml --seeds 5
    python benchmarks/ablation.py --config configs/codiesp.yaml --seeds 5 --few-shot 25 50 100 200

Each row and seed is one run folder and one small result file; those that exist are not made again,
so a broken-off run goes on. The encoder is frozen and its states are kept on disk, unless a row
fine-tunes. Gains, rankers and thresholds are made anew for every seed and training subset; the
test split decides nothing. Writes results/ablation_NAME.md, .json and .png beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ablation_rows import FINE_TUNED, LINEAR, PLANTED, ROWS, UNPLANTED, Place, make
from ablation_table import write_tables


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", help="rows to make; all if unset",
                        choices=[*LINEAR, *ROWS], default=[*LINEAR, *ROWS])  # fmt: skip
    parser.add_argument("--fine-tuned", nargs="*", choices=[*ROWS], default=[*FINE_TUNED],
                        help="rows that are also made with a trained encoder")  # fmt: skip
    parser.add_argument("--few-shot", type=int, nargs="*", default=[], metavar="N",
                        help="sizes of training subsets for the curve")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--output", type=Path, help="run folders; runs/ablation-NAME if unset")
    return parser.parse_args()


def main() -> None:
    options = parse()
    name = options.config.stem
    root = (options.output or Path(f"runs/ablation-{name}")).resolve()
    seeds = range(options.seeds)
    # PLANTED first: the others take the artifacts that it shares.
    rows = sorted(options.rows, key=lambda row: row != PLANTED)
    places = [Place(root, row, seed) for seed in seeds for row in rows]
    places += [Place(root, row, seed, tuned=True) for seed in seeds for row in options.fine_tuned]
    curve = ("TF-IDF + LinearSVC", UNPLANTED, PLANTED)
    places += [
        Place(root, row, seed, subset)
        for subset in options.few_shot for seed in seeds for row in curve
    ]  # fmt: skip
    for place in places:
        print(f"ablation: {place.title}, seed {place.seed}, {place.subset or 'all'} documents",
              file=sys.stderr, flush=True)  # fmt: skip
        make(options.config, place, options.set)
        write_tables(name, options, places)


if __name__ == "__main__":
    main()
