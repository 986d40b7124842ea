"""The rows of an ablation: what each is, how it is made, and how a finished one is opened again.

A row with a seed is a run folder and a small result beside it. Knows nothing of tables.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from linear import LinearSystem, one_vs_rest, parabel, probabilistic_label_tree
from numpy.typing import NDArray

from plant_dist.baselines.popularity import Popularity
from plant_dist.baselines.shortlist import Baseline, Shortlist, label_matrix
from plant_dist.config.load import load_config
from plant_dist.config.schema import Config
from plant_dist.data.batches import Collator, batch_loader
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.sampling import BatchSampler
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.metrics.thresholds import Thresholds
from plant_dist.runtime.context import start_run
from plant_dist.stages.pipeline import Job
from plant_dist.stages.saved import SavedClassifier
from plant_dist.stages.train import open_split, states_cache

KEEP = 2500  # labels listed for a document, at most
CUTOFFS = "evaluate.ks=[1,5,8,10,15,50]"
FROZEN = ("train.optim.freeze_encoder=true", "encoder.cache=fp16")
LEARNED = "model.branches=[learned]"
# What is called everything, whatever branches the config names.
EVERY = "model.branches=[learned,planted,static,named]"
ROWS: dict[str, tuple[str, ...]] = {
    "pooled encoder, linear head": ("model.branches=[pooled]",),
    "label attention, random queries": (LEARNED, "model.boost_init=random"),
    "label attention, random queries, boosts as planted": (LEARNED,),
    "label attention, queries from text": (LEARNED, "model.query_init=label_text"),
    "names": ("model.branches=[named]",),
    "label attention and names": ("model.branches=[learned,named]",),
    "static": ("model.branches=[static]",),
    "lexical ranker": ("model.branches=[planted]",),
    "contextual ranker": ("model.branches=[planted]", "rank.kind=contextual", "rank.epochs=3"),
    "static + lexical": ("model.branches=[planted,static]",),
    "planted without names": ("model.branches=[learned,planted,static]",),
    "no inattention": (EVERY, "model.planted_k=null", "model.static_k=null"),
    "planted k = 8": (EVERY, "model.planted_k=8"),
    "planted k = 80": (EVERY, "model.planted_k=80"),
    "state: none": (EVERY, "model.state=none"),
    "state: logit": (EVERY, "model.state=logit_state"),
    "gates: learned": (EVERY, "model.gates=learned"),
    "everything": (EVERY,),
}
PLANTED = "everything"
# The form of LAAT and PLM-ICD, and two that differ from a planted row by the planting alone: boosts
# started from text and names are no part of it.
UNPLANTED = "label attention, random queries"
CONTRASTS = (
    (PLANTED, UNPLANTED),
    (PLANTED, "label attention and names"),
    ("planted without names", "label attention, random queries, boosts as planted"),
)
FINE_TUNED = (UNPLANTED, "label attention and names", "planted without names", PLANTED)
LINEAR: dict[str, Callable[[], Baseline]] = {
    "popularity": lambda: Popularity(KEEP),
    "TF-IDF + LinearSVC": lambda: LinearSystem("svm", one_vs_rest, KEEP),
    "omikuji": lambda: LinearSystem("omikuji", parabel, KEEP),
    "napkinXC PLT": lambda: LinearSystem("plt", probabilistic_label_tree, KEEP),
}


@dataclass(frozen=True)
class Place:
    """Where one row with one seed is made.

    Attributes:
        name: the row. subset: training documents drawn, None for all. tuned: trains the encoder.
    """

    root: Path
    name: str
    seed: int
    subset: int | None = None
    tuned: bool = False

    @property
    def title(self) -> str:
        """The row's name in tables."""
        return f"{self.name}, fine-tuned" if self.tuned else self.name

    @property
    def folder(self) -> Path:
        """The run folder."""
        plain = "".join(one if one.isalnum() else "_" for one in self.title)
        return self.root / f"{self.subset or 'all'}" / plain / f"seed{self.seed}"

    @property
    def result(self) -> Path:
        """What is kept of it."""
        return self.folder.with_suffix(".json")

    @property
    def lists(self) -> Path:
        """The labels listed for every validation and test document."""
        return self.folder.with_suffix(".npz")


def settings_of(place: Place, asked: Sequence[str]) -> list[str]:
    """Return the settings of a row."""
    own = list(ROWS.get(place.name, ()))
    if not place.tuned:
        own += [*FROZEN, f"encoder.cache_folder={place.root / 'states'}"]
    subset = [] if place.subset is None else [f"data.train_documents={place.subset}"]
    return [*asked, CUTOFFS, "evaluate.baselines=[]", f"seed={place.seed}", *subset, *own]


def run_stages(config: Path, place: Place, settings: Sequence[str], last: str) -> None:
    """Run the stages up to `last`; those that another row of this seed has made are copied."""
    shared = place.root / f"{place.subset or 'all'}" / "shared" / f"seed{place.seed}"
    for artifact in ("dataset", "gains", "ranker"):
        if (shared / artifact).exists() and not (place.folder / artifact).exists():
            shutil.copytree(shared / artifact, place.folder / artifact)
    for stage in ("prepare", "mig", "rank", "train"):
        command = [sys.executable, "-m", "plant_dist", stage, "--config", str(config)]
        command += [word for setting in settings for word in ("--set", setting)]
        subprocess.run([*command, "--output", str(place.folder)], check=True)
        made = {"prepare": "dataset", "mig": "gains", "rank": "ranker"}.get(stage)
        if made and not (shared / made).exists() and (stage != "rank" or place.name == PLANTED):
            shutil.copytree(place.folder / made, shared / made)
        if stage == last:
            return


def listed_by_model(config: Config, folder: Path, split: str) -> Shortlist:
    """Score a split with the classifier of a run folder; documents in their own order."""
    job = Job(config, start_run(config.runtime, config.seed))
    dataset = PreparedDataset.load(folder / "dataset")
    saved = SavedClassifier.load(folder / "classifier", job.context.device)
    cache = states_cache(job, saved.model.encoder, saved.segmentation)
    arrays = open_split(dataset, split, cache)
    keep = min(KEEP, len(dataset.label_space))
    listed = Shortlist(
        np.full((arrays.tokens.size, keep), -1, np.int32),
        np.full((arrays.tokens.size, keep), -np.inf, np.float32),
    )
    sampler = BatchSampler(
        arrays.tokens.lengths(), saved.segmentation,
        documents_per_batch=config.evaluate.documents_per_batch, shuffle=False,
    )  # fmt: skip
    loader = batch_loader(arrays.tokens, arrays.labels, Collator(saved.segmentation), sampler)
    with torch.inference_mode():
        for batch in loader:
            hidden = arrays.hidden(batch, job.context.device)
            logits = saved.model(
                batch.input_ids, batch.attention_mask, batch.keep, hidden=hidden
            ).logits.float()
            best = logits.topk(keep, dim=1)
            listed.label_ids[batch.rows.numpy()] = best.indices.numpy()
            listed.scores[batch.rows.numpy()] = best.values.numpy()
    return listed


def listed_by_baseline(dataset: PreparedDataset, name: str) -> dict[str, Shortlist]:
    """Fit a linear system on the training split and list labels of the others."""
    train, space = dataset.documents("train"), dataset.label_space
    offsets, ids = dataset.label_csr("train")
    system = LINEAR[name]()
    system.fit(list(train["text"]), label_matrix(offsets, ids, len(space)), list(space.texts))
    return {
        split: system.shortlist(list(dataset.documents(split)["text"]))
        for split in ("validation", "test")
    }


def judge(dataset: PreparedDataset, config: Config, split: str, listed: Shortlist) -> Evaluator:
    """Measure the labels listed for a split."""
    gold = dataset.label_csr(split)
    evaluator = Evaluator(
        dataset.label_space.train_frequency, dataset.token_csr("train").size, config.evaluate,
        gold.size,
    )  # fmt: skip
    evaluator.add(listed.scores, np.array(gold.offsets), np.array(gold.values), listed.label_ids)
    return evaluator


def make(config: Path, place: Place, asked: Sequence[str]) -> None:
    """Make one row with one seed, unless its result is there."""
    if place.result.exists():
        return
    start = time.perf_counter()
    settings, linear = settings_of(place, asked), place.name in LINEAR
    run_stages(config, place, settings, "prepare" if linear else "train")
    resolved = load_config(config, [*settings, f"output={place.folder}"])
    dataset = PreparedDataset.load(place.folder / "dataset")
    if linear:
        lists = listed_by_baseline(dataset, place.name)
    else:
        lists = {
            split: listed_by_model(resolved, place.folder, split)
            for split in ("validation", "test")
        }
    seconds = time.perf_counter() - start
    thresholds = judge(dataset, resolved, "validation", lists["validation"]).thresholds()
    results = judge(dataset, resolved, "test", lists["test"]).results(thresholds)
    arrays = {
        f"{split}_{part}": getattr(listed, part)
        for split, listed in lists.items()
        for part in ("label_ids", "scores")
    }
    np.savez_compressed(place.lists, **arrays)
    plain = {**results.as_json(), "seconds": seconds, "settings": settings}
    place.result.write_text(json.dumps(plain), encoding="utf-8")
    # What is dear to keep and cheap to make again.
    for artifact in ("classifier", "checkpoints", "ranker", "gains"):
        shutil.rmtree(place.folder / artifact, ignore_errors=True)


def reopened(config: Path, place: Place, asked: Sequence[str]) -> tuple[Evaluator, Thresholds]:
    """Return a finished row's test evaluator and its thresholds, for paired comparisons."""
    resolved = load_config(config, settings_of(place, asked))
    dataset = PreparedDataset.load(place.folder / "dataset")
    arrays: Mapping[str, NDArray[Any]] = np.load(place.lists)
    validation, test = (
        judge(dataset, resolved, split,
              Shortlist(arrays[f"{split}_label_ids"], arrays[f"{split}_scores"]))
        for split in ("validation", "test")
    )  # fmt: skip
    return test, validation.thresholds()
