"""Can scores be read as probabilities? Calibration error of a finished run, before and after.

    python benchmarks/calibration.py RUN --config configs/codiesp.yaml [--set A.B=VALUE ...]

RUN is a finished run folder of that config, calibrated or not; its hidden states are read where the
run keeps them. Validation and test are scored once; a temperature and an isotonic curve for each
band of label frequency are fitted on validation and measured on test, as `evaluate.calibration`
does. Writes calibration-NAME.md, .json and a picture of each kind into results/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ablation_rows import judge, listed_by_model
from machine import described_machine

from plant_dist.config.load import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.metrics.calibration import KINDS, fit_calibration
from plant_dist.metrics.plots import draw_reliability
from plant_dist.metrics.reliability import CalibrationReport, calibration_report

RESULTS = Path(__file__).parent / "results"


def report_of(name: str, command: str, found: dict[str, CalibrationReport]) -> str:
    """Return a row a scope: ECE and log loss, as they are and after each kind."""
    before = next(iter(found.values())).before
    heads = " | ".join(f"ECE, {kind} | log loss, {kind}" for kind in ("as it is", *found))
    lines = [
        f"# {name}: calibration, test split", "",
        f"`{command}`. {described_machine()}. Expected calibration error in percent, 15 bins; log "
        "loss in nats. `best k` are the k best labels of each document, `labels` those of a band "
        "of training documents among all. Fitted on validation.", "",
        f"| scope | predictions | {heads} |", "|---" * (4 + 2 * len(found)) + "|",
    ]  # fmt: skip
    for scope, raw in before.items():
        after = [(report.after or {})[scope] for report in found.values()]
        cells = [f"{100 * one.ece:.2f} | {one.log_loss:.4f}" for one in (raw, *after)]
        lines.append(f"| {scope} | {raw.predictions:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--name", help="name of the result files; the config's if unset")
    options = parser.parse_args()
    name = options.name or options.config.stem
    config = load_config(options.config, [*options.set, f"output={options.run}"])
    dataset = PreparedDataset.load(options.run / "dataset")
    validation, test = (
        judge(dataset, config, split, listed_by_model(config, options.run, split)).predictions()
        for split in ("validation", "test")
    )
    frequency, depths = dataset.label_space.train_frequency, config.evaluate.ks
    RESULTS.mkdir(exist_ok=True)
    found: dict[str, CalibrationReport] = {}
    for kind in KINDS:
        fitted = fit_calibration(validation, frequency, kind, config.evaluate.min_band_positives)
        found[kind] = calibration_report(test, frequency, depths, fitted)
        drawn = draw_reliability(RESULTS, found[kind])
        drawn.replace(RESULTS / f"calibration-{name}-{kind}.png")
    command = f"python benchmarks/calibration.py RUN --config configs/{options.config.name}"
    text = report_of(name, command, found)
    (RESULTS / f"calibration-{name}.md").write_text(text, encoding="utf-8")
    content = {kind: report.as_json() for kind, report in found.items()}
    (RESULTS / f"calibration-{name}.json").write_text(json.dumps(content), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
