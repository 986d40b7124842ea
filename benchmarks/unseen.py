"""Labels without a training document: what their texts are worth.

The same config twice: with the labels' texts, and with every label's text blank. Labels that no
training document carries are judged apart. Where a corpus has none, `--hide SHARE` takes the
training documents of that share of the labels away.

    python benchmarks/unseen.py --config configs/codiesp.yaml --output runs/unseen
    python benchmarks/unseen.py --config runs/terms/config.yaml --hide 0.1 --output runs/hidden

Writes results/unseen_NAME.md and .json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from extreme import BEFORE, RESULTS, SETTINGS, run_stages
from machine import described_machine, load

from plant_dist.data.prepared import PreparedDataset

CUTOFFS = (1, 5, 10, 50)
SYSTEMS = {"with label texts": True, "without": False}


def write_corpus(dataset: PreparedDataset, folder: Path, hidden: set[int], texts: bool) -> None:
    """Write a prepared corpus as JSON lines.

    Args:
        hidden: labels whose training documents are left out.
        texts: whether labels keep theirs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    space = dataset.label_space
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as stream:
        for name, text in zip(space.ids, space.texts, strict=True):
            stream.write(json.dumps({"id": name, "text": text if texts else ""}) + "\n")
    with (folder / "docs.jsonl").open("w", encoding="utf-8") as stream:
        for split in ("train", "validation", "test"):
            labels, documents = dataset.label_csr(split), dataset.documents(split)
            for row, document in enumerate(documents):
                carried = labels.row(row).tolist()
                if split == "train" and hidden.intersection(carried):
                    continue
                line = {"id": document["id"], "split": split, "text": document["text"],
                        "labels": [space.ids[label] for label in carried]}  # fmt: skip
                stream.write(json.dumps(line) + "\n")


def measured(config: Path, folder: Path, corpus: Path, settings: list[str]) -> dict[str, Any]:
    """Train on a corpus and return what the report says of labels, by training documents."""
    place = [f"data.path={corpus / 'docs.jsonl'}", f"data.labels_path={corpus / 'labels.jsonl'}",
             "data.reader=generic", "data.split=given"]  # fmt: skip
    run_stages(config, folder, (*BEFORE, "train", "evaluate"), [*settings, *place])
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    found = report["systems"]["PLANT"]
    return {"metrics": found["metrics"], "bands": {b["name"]: b for b in found["bands"]}}


def main() -> None:
    """Train twice, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="run folders")
    parser.add_argument("--hide", type=float, default=0.0, metavar="SHARE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--name", help="of the results; the config's if unset")
    options = parser.parse_args()
    settings = [*SETTINGS, f"evaluate.ks={list(CUTOFFS)}".replace(" ", ""), f"seed={options.seed}",
                f"encoder.cache_folder={options.output / 'states'}", *options.set]  # fmt: skip
    run_stages(options.config, options.output / "corpus", ("prepare",), settings)
    dataset = PreparedDataset.load(options.output / "corpus" / "dataset")
    labels = len(dataset.label_space)
    drawn = np.random.default_rng(options.seed).choice(
        labels, round(options.hide * labels), replace=False
    )
    systems = {}
    for name, texts in SYSTEMS.items():
        place = options.output / ("texts" if texts else "blank")
        if not (place / "docs.jsonl").exists():
            write_corpus(dataset, place, set(drawn.tolist()), texts)
        systems[name] = measured(options.config, place, place, settings)
    said = [f"--config {options.config}", *([f"--hide {options.hide}"] if options.hide else []),
            *(f"--set {one}" for one in options.set if "cache_folder" not in one)]  # fmt: skip
    command = f"python benchmarks/unseen.py {' '.join(said)}"
    name = options.name or options.config.stem
    cells = [f"hit@{k} of labels never seen" for k in CUTOFFS]
    rest = ("p@1", "p@5", "map")
    lines = [
        f"# {name}: labels without a training document", "",
        f"`{command}` on {described_machine()}, {load()} at the end, seed {options.seed}; test "
        "split, percent. hit@k: share of the gold labels without a training document among a "
        "document's best k of all labels.", "",
        f"| label texts | {' | '.join(cells)} | {' | '.join(rest)}, all labels |",
        "|---" * (len(cells) + len(rest) + 1) + "|",
    ]  # fmt: skip
    for system, one in systems.items():
        never = one["bands"].get("unseen", {}).get("metrics", {})
        shown = [100 * never.get(f"r@{k}", float("nan")) for k in CUTOFFS]
        shown += [100 * one["metrics"][metric] for metric in rest]
        lines.append(f"| {system} | {' | '.join(f'{value:.1f}' for value in shown)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"unseen_{name}.md").write_text(text, encoding="utf-8")
    content = json.dumps({"command": command, "machine": described_machine(), "systems": systems})
    (RESULTS / f"unseen_{name}.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
