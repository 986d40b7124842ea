"""Two million labels from files to gains: time and memory of `prepare` and `mig`, nothing lost.

A made corpus (benchmarks/generated.py says of what) whose labels have names that something careless
would take for one another: they differ in case, in a blank at the end, in a comma, in whether an
accent is a character of its own. Every label has a parent. The two stages run at the program's own
settings, each in a process of its own; then every label, every name, every document's labels and
every count is held against what was made, and the gains of some labels against sums of their own.
Writes results/many_labels.json and .md beside this file.

    taskset -c 0 python benchmarks/many_labels.py --folder SCRATCH
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from generated import Sizes, documents, evidence_of, write_encoder
from machine import described_machine, load

from plant_dist.artifacts import read_manifest
from plant_dist.config.schema import MigConfig
from plant_dist.data.prepared import PreparedDataset
from plant_dist.mig.lists import GainTable

RESULTS = Path(__file__).parent / "results"
STAGES = {"dataset": "prepare", "gains": "mig"}
# Eight names of one number; the last two are one letter in two spellings.
NAMES = ("L{}", "l{}", "L{} ", "L {}", "L,{};", "L/{}", "\u00e9{}", "e\u0301{}")
RECOUNTED = 200  # labels whose joint counts are formed anew
MIB = 2**20


def name_of(label: int) -> str:
    """The id of a label."""
    return NAMES[label % len(NAMES)].format(label // len(NAMES))


def text_of(label: int) -> str:
    """The text of a label, which another may share."""
    return f"number {label // len(NAMES)}; of two, or more"


def parents_of(label: int) -> list[str]:
    """The parents of a label: none of the first."""
    return [name_of(label // 2)] if label else []


def rows(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yield the rows of the corpus, under the names of this module."""
    for row in documents(sizes, evidence_of(sizes)):
        yield row | {"labels": [name_of(int(label[1:])) for label in row["labels"]]}


def write(folder: Path, sizes: Sizes) -> Path:
    """Write corpus, labels, tokenizer and config; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "docs.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows(sizes))
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as stream:
        for label in range(sizes.labels):
            row = {"id": name_of(label), "text": text_of(label), "parents": parents_of(label)}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_encoder(folder / "encoder", sizes)
    config = {
        "name": "many_labels",
        "output": str(folder / "run"),
        "data": {"path": str(folder / "docs.jsonl"), "labels_path": str(folder / "labels.jsonl")},
        "encoder": {"name": str(folder / "encoder")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def digest(parts: Iterable[str]) -> str:
    """sha256 of texts in order, a length before each."""
    total = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    return total.hexdigest()


def check_labels(dataset: PreparedDataset, sizes: Sizes) -> dict[str, int]:
    """Hold the label space against what was written; return counts."""
    space, every = dataset.label_space, range(sizes.labels)
    assert len(space) == len(set(space.ids)) == sizes.labels
    assert digest(space.ids) == digest(map(name_of, every))
    assert digest(space.texts) == digest(map(text_of, every))
    assert digest(map(str, space.parents)) == digest(str(parents_of(label)) for label in every)
    assert (space.indices(space.ids) == np.arange(sizes.labels)).all()
    parents = space.parent_csr()
    assert (parents.values == np.arange(1, sizes.labels) // 2).all()
    return {"labels": len(space), "labels_in_training": int((space.train_frequency > 0).sum())}


def check_documents(dataset: PreparedDataset, sizes: Sizes) -> dict[str, int]:
    """Hold every document's id and labels, and all frequencies, against what was written."""
    space, counted = dataset.label_space, np.zeros(sizes.labels, np.int64)
    stream, pairs = rows(sizes), 0
    for split, size in sizes.splits().items():
        labels, ids = dataset.label_csr(split), dataset.documents(split)["id"]
        assert labels.size == len(ids) == size
        for place, (row, name) in enumerate(zip(stream, ids, strict=False)):
            found = labels.row(place)
            assert name == row["id"]
            assert {space.ids[int(one)] for one in found} == set(row["labels"]), name
            pairs += len(found)
            if split == "train":
                counted[found] += 1
            if place + 1 == size:
                break
    assert next(stream, None) is None
    assert (space.train_frequency == counted).all()
    return {"documents": sum(sizes.splits().values()), "pairs": pairs}


def gains_of(both: Any, tokens: Any, label: int, documents: int) -> Any:
    """Normalised gain J of tokens for a label from document counts; 0 for tokens it avoids."""
    chances = np.stack([both, tokens - both, label - both, documents - tokens - label + both])
    chances = chances / documents

    def entropy(parts: Any) -> Any:
        return -(parts * np.log(np.where(parts > 0, parts, 1.0))).sum(axis=0)

    of_tokens, of_label = tokens / documents, np.full(len(tokens), label / documents)
    alone = entropy(np.stack([of_tokens, 1 - of_tokens])) + entropy(
        np.stack([of_label, 1 - of_label])
    )
    joint = entropy(chances)
    # I / (H_t + H_l - I), where I = H_t + H_l - H_tl.
    return np.where(both * documents > tokens * label, (alone - joint) / joint, 0.0)


def check_gains(dataset: PreparedDataset, table: GainTable, sizes: Sizes) -> dict[str, int]:
    """Hold the table's counts against the documents, and lists of some labels against sums."""
    frequency = dataset.label_space.train_frequency
    assert (table.label_documents == frequency).all()
    kept = np.diff(table.offsets)
    assert len(kept) == sizes.labels
    assert ((kept > 0) == (frequency > 0)).all()  # each label of training has words of its own
    tokens, labels = dataset.token_csr("train"), dataset.label_csr("train")
    size = len(dataset.tokenizer())
    holders_of_tokens = np.bincount(np.unique(tokens.owners() * size + tokens.values) % size)
    owners, random = labels.owners(), np.random.default_rng(sizes.seed)
    for label in random.choice(np.flatnonzero(frequency), RECOUNTED, replace=False).tolist():
        holders = owners[np.asarray(labels.values) == label]
        met, both = np.unique(
            np.concatenate([np.unique(tokens.row(int(one))) for one in holders]),
            return_counts=True,
        )
        gains = gains_of(both, holders_of_tokens[met], len(holders), tokens.size)
        found = dict(zip(*(part.tolist() for part in table.label(label)), strict=True))
        best = np.sort(gains)[::-1][: len(found)]
        assert len(found) == min(MigConfig.top_tokens, int((gains > 0).sum())), label
        assert np.allclose(list(found.values()), best, rtol=1e-5, atol=1e-9), label
        assert np.allclose([found[one] for one in found],
                           gains[np.searchsorted(met, list(found))], rtol=1e-5), label  # fmt: skip
    return {"gains": int(kept.sum()), "labels_recounted": RECOUNTED}


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in times)


def markdown(found: dict[str, Any]) -> str:
    """The result as a table, with how it was got."""
    stages = "\n".join(
        f"| `{stage}` | {cost['seconds']:.0f} | {cost['peak_mib']:,.0f} |"
        for stage, cost in found["stages"].items()
    )
    return (
        "# Two million labels through `prepare` and `mig`\n\n"
        f"`{found['command']}` on {found['machine']}; seed 0, one run, the program's own settings. "
        f"{found['documents']:,} documents ({found['tokens']:,} tokens in training), "
        f"{found['labels']:,} labels, of them {found['labels_in_training']:,} in training, "
        f"{found['pairs']:,} pairs of document and label, {found['gains']:,} gains kept. Peaks are "
        "the stages' largest resident sizes, libraries included. Seconds are of the clock, on a "
        "machine that did other things; corpus, stages and checks together took "
        f"{found['processor_s']:.0f} s of the processor.\n\n"
        f"| stage | seconds | peak, MiB |\n|---|---|---|\n{stages}\n\n"
        "Held against what was written: number, order, id, text and parent of every label; id and "
        "labels of every document; training documents of every label, in the dataset and in the "
        f"gains; tokens and gains of {found['labels_recounted']} labels, counted anew from the "
        "documents.\n"
    )


def main() -> None:
    """Write a corpus, run both stages on it, check them, keep and print what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=2_000_000)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="print, write no results")
    options = parser.parse_args()
    sizes = Sizes(options.labels, options.documents)
    path = options.folder / "config.yaml"
    if not path.is_file():
        write(options.folder, sizes)
    run, command = options.folder / "run", [sys.executable, "-m", "plant_dist"]
    for stage in STAGES.values():
        subprocess.run([*command, stage, "--config", str(path)], check=True)
    manifests = {stage: read_manifest(run / made) for made, stage in STAGES.items()}
    dataset = PreparedDataset.load(run / "dataset")
    found = {
        "command": f"python benchmarks/many_labels.py --labels {options.labels} --documents "
        f"{options.documents} --folder SCRATCH",
        "machine": f"{described_machine()}, {load()}",
        "tokens": len(dataset.token_csr("train").values),
        **check_labels(dataset, sizes),
        **check_documents(dataset, sizes),
        **check_gains(dataset, GainTable.load(run / "gains"), sizes),
        "stages": {
            stage: {"seconds": one.seconds, "peak_mib": one.peak_memory_bytes / MIB}
            for stage, one in manifests.items()
            if one is not None
        },
        "processor_s": processor_seconds(),
    }
    print(markdown(found))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "many_labels.json").write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "many_labels.md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
