"""The rows of an ablation: what each is, how it is made, and what is kept of it.

A row with a seed and a rate is a run folder, and what is kept of it a plain record. Knows nothing
of tables.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_sums import packed
from linear import LinearSystem, one_vs_rest, parabel, probabilistic_label_tree
from machine import described_machine
from scipy.sparse import csr_array, vstack

from plant_dist.baselines.popularity import Popularity
from plant_dist.baselines.shortlist import Baseline, Shortlist, label_matrix
from plant_dist.cli import main as program
from plant_dist.config.load import identity_of, load_config
from plant_dist.config.schema import Config
from plant_dist.data.batches import Collator, batch_loader
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.sampling import BatchSampler
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.runtime.context import start_run
from plant_dist.stages.arrays import ignored_pairs, open_split, states_cache
from plant_dist.stages.pipeline import RANKER, Job, plants_ranker
from plant_dist.stages.saved import SavedClassifier

METRICS = ("p@1", "p@5", "p@8", "p@15", "r@10", "ndcg@5", "psp@1", "psp@5", "micro_f1", "macro_f1",
           "macro_f1_present", "map")  # fmt: skip
# Within a band, the ranking is that of the band's labels alone; recall is of the whole ranking.
BAND_METRICS = (
    "r@50", "macro_f1", "within_p@1", "within_p@5", "within_p@8", "within_p@15", "r@10",
    "within_ndcg@5", "within_psp@1", "within_psp@5", "micro_f1", "within_map",
)  # fmt: skip
# Sections that decide what a row learns, beside its documents.
TRAINED_BY = ("tokens", "encoder", "mig", "rank", "model", "labels", "train")
KEEP = 2500  # labels listed for a document, at most
CUTOFFS = "evaluate.ks=[1,5,8,10,15,50]"
# Precision is the config's: each line says what machine it was made on, and whether that has bf16.
FROZEN = ("train.optim.freeze_encoder=true", "encoder.cache=fp16")
LEARNED = "model.branches=[learned]"
# It learns more slowly than the lexical ranker of the config (docs/findings.md).
CONTEXTUAL = ("rank.kind=contextual", "rank.epochs=20")
# What is called everything, whatever branches the config names.
EVERY = "model.branches=[learned,planted,static,named,bag]"
ROWS: dict[str, tuple[str, ...]] = {
    "pooled encoder, linear head": ("model.branches=[pooled]",),
    "label attention, random queries": (LEARNED, "model.boost_init=random"),
    "label attention, random queries, boosts as planted": (LEARNED,),
    "label attention, queries from text": (LEARNED, "model.query_init=label_text"),
    "names": ("model.branches=[named]",),
    "label attention and names": ("model.branches=[learned,named]",),
    "bag of tokens": ("model.branches=[bag]",),
    "names and bag": ("model.branches=[named,bag]",),
    "label attention, names and bag": ("model.branches=[learned,named,bag]",),
    "static": ("model.branches=[static]",),
    "lexical ranker": ("model.branches=[planted]",),
    "contextual ranker": ("model.branches=[planted]", *CONTEXTUAL),
    "static + lexical": ("model.branches=[planted,static]",),
    "learned, planted, static": ("model.branches=[learned,planted,static]",),
    "no inattention": (EVERY, "model.planted_k=null", "model.static_k=null"),
    "planted k = 8": (EVERY, "model.planted_k=8"),
    "planted k = 80": (EVERY, "model.planted_k=80"),
    "planted by a contextual ranker": (EVERY, *CONTEXTUAL),
    "state: none": (EVERY, "model.state=none"),
    "state: logit": (EVERY, "model.state=logit_state"),
    "gates: learned": (EVERY, "model.gates=learned"),
    "no learned": ("model.branches=[planted,static,named,bag]",),
    "no planted": ("model.branches=[learned,static,named,bag]",),
    "no static": ("model.branches=[learned,planted,named,bag]",),
    "no names": ("model.branches=[learned,planted,static,bag]",),
    "no bag": ("model.branches=[learned,planted,static,named]",),
    "everything": (EVERY,),
}
PLANTED = "everything"
# The default, and the default but for one thing: made at the config's own rate.
OF_DEFAULT = (
    PLANTED, "no inattention", "planted k = 8", "planted k = 80", "planted by a contextual ranker",
    "state: none", "state: logit", "gates: learned", "no learned", "no planted", "no static",
    "no names", "no bag",
)  # fmt: skip
# The form of LAAT and PLM-ICD, and two that differ from a planted row by the planting alone: boosts
# started from text, names and bags are no part of it.
UNPLANTED = "label attention, random queries"
BESIDE = "label attention, names and bag"  # all of the default that is not planted
CONTRASTS = (
    (PLANTED, UNPLANTED),
    (PLANTED, BESIDE),
    ("learned, planted, static", "label attention, random queries, boosts as planted"),
)
COMPARED = {row for contrast in CONTRASTS for row in contrast}
FINE_TUNED = (UNPLANTED, BESIDE, PLANTED)
# By seed, which the last alone heeds.
LINEAR: dict[str, Callable[[int], Baseline]] = {
    "popularity": lambda seed: Popularity(KEEP),
    "TF-IDF + LinearSVC": lambda seed: LinearSystem("svm", one_vs_rest, KEEP),
    "omikuji": lambda seed: LinearSystem("omikuji", parabel, KEEP),
    "napkinXC PLT": lambda seed: LinearSystem(
        "plt", partial(probabilistic_label_tree, seed=seed), KEEP
    ),
}


@dataclass(frozen=True)
class Place:
    """Where one row with one seed and one learning rate is made.

    Attributes:
        name: the row. rate: of the label rows; None for a linear system, which has none.
        subset: training documents drawn, None for all. tuned: trains the encoder.
    """

    root: Path
    name: str
    seed: int
    rate: float | None = None
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
        rate = "" if self.rate is None else f"rate{self.rate:g}"
        return self.root / f"{self.subset or 'all'}" / plain / f"seed{self.seed}{rate}"

    @property
    def key(self) -> dict[str, Any]:
        """What a finished row is known by, on any machine."""
        return {"row": self.name, "seed": self.seed, "rate": self.rate,
                "train_documents": self.subset, "fine_tuned": self.tuned}  # fmt: skip


def settings_of(place: Place, asked: Sequence[str]) -> list[str]:
    """Return the settings of a row, without places on this machine."""
    asked = [one for one in asked if not one.startswith("encoder.cache_folder=")]
    own = list(ROWS.get(place.name, ()))
    if not place.tuned:
        own += FROZEN
    if place.rate is not None:
        own.append(f"train.optim.learning_rate={place.rate:g}")
    subset = [] if place.subset is None else [f"data.train_documents={place.subset}"]
    return [*asked, CUTOFFS, "evaluate.baselines=[]", f"seed={place.seed}", *subset, *own]


def fingerprint(config: Config) -> str:
    """Return 12 hex digits that differ where rows were trained under different settings.

    Of what is set beside the defaults, so that a setting added to the project later, and left
    alone, changes nothing.
    """
    asked, usual = identity_of(config), identity_of(Config())
    # A section that says nothing where all labels are scored is no part of such a row.
    sections = [*TRAINED_BY, *(["shortlist"] if config.train.labels == "shortlist" else [])]
    changed = {name: _beside(asked[name], usual[name]) for name in sections}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def _beside(asked: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _beside(value, usual[name]) if isinstance(usual.get(name), dict) else value
        for name, value in asked.items()
        if name not in usual or value != usual[name]
    }


def run_stages(config: Path, place: Place, settings: Sequence[str], last: str) -> None:
    """Run the stages up to `last`; those that another row of this seed has made are copied."""
    shared = place.root / f"{place.subset or 'all'}" / "shared" / f"seed{place.seed}"
    # A contextual ranker is a row's own; all others of a seed are one.
    lent = {"prepare": "dataset", "mig": "gains"}
    stages = ["prepare", "mig", "train"]
    if plants_ranker(load_config(config, settings)):
        stages.insert(2, "rank")
        if not any(one.startswith("rank.") for one in ROWS.get(place.name, ())):
            lent["rank"] = RANKER
    for artifact in lent.values():
        if (shared / artifact).exists() and not (place.folder / artifact).exists():
            shutil.copytree(shared / artifact, place.folder / artifact)
    for stage in stages:
        command = [stage, "--config", str(config), "--output", str(place.folder)]
        command += [word for setting in settings for word in ("--set", setting)]
        # In this process: a row of a small corpus takes less than to start one for each stage.
        if code := program(command):
            raise SystemExit(code)
        made = lent.get(stage)
        if made and not (shared / made).exists():
            shutil.copytree(place.folder / made, shared / made)
        if stage == last:
            return


def listed_by_model(config: Config, folder: Path, split: str) -> Shortlist:
    """List the labels of a split by a run folder's classifier; documents in their own order."""
    job = Job(config, start_run(config.runtime, config.seed))
    dataset = PreparedDataset.load(folder / "dataset")
    saved = SavedClassifier.load(folder / "classifier", job.context.device)
    # What users get: all labels, or those that an index retrieves.
    score = saved.scoring(exact=False)
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
            batch = batch.to(job.context.device)
            encoded = saved.model.encode(batch.input_ids, batch.attention_mask, batch.keep, hidden)
            logits, label_ids = score(*encoded)
            best = logits.float().topk(min(keep, logits.shape[1]), dim=1)
            kept = best.indices if label_ids is None else label_ids.gather(1, best.indices)
            where = batch.rows.cpu().numpy(), slice(kept.shape[1])
            listed.label_ids[where] = kept.cpu().numpy()
            listed.scores[where] = best.values.cpu().numpy()
    return listed


def listed_by_baseline(
    dataset: PreparedDataset, name: str, fitted: Sequence[str] = ("train",), seed: int = 0
) -> dict[str, Shortlist]:
    """Fit a linear system on the training split (or several) and list labels of the others."""
    space, system = dataset.label_space, LINEAR[name](seed)
    texts = [text for split in fitted for text in dataset.documents(split)["text"]]
    labels = vstack([label_matrix(*dataset.label_csr(split), len(space)) for split in fitted])
    system.fit(texts, csr_array(labels), list(space.texts))
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
    evaluator.add(
        listed.scores, np.array(gold.offsets), np.array(gold.values), listed.label_ids,
        ignored=ignored_pairs(dataset, split),
    )  # fmt: skip
    return evaluator


def make(config: Path, place: Place, asked: Sequence[str]) -> dict[str, Any]:
    """Make one row and return what is kept of it."""
    start = time.perf_counter()
    settings, linear = settings_of(place, asked), place.name in LINEAR
    here = [*settings, f"encoder.cache_folder={place.root / 'states'}"]
    run_stages(config, place, here, "prepare" if linear else "train")
    resolved = load_config(config, [*here, f"output={place.folder}"])
    dataset = PreparedDataset.load(place.folder / "dataset")
    if linear:
        lists = listed_by_baseline(dataset, place.name, seed=place.seed)
    else:
        lists = {
            split: listed_by_model(resolved, place.folder, split)
            for split in ("validation", "test")
        }
    seconds = time.perf_counter() - start
    validation = judge(dataset, resolved, "validation", lists["validation"])
    thresholds = validation.thresholds()
    test = judge(dataset, resolved, "test", lists["test"])
    found = test.results(thresholds).as_json()
    # Few-shot rows are a curve, which no comparison reads.
    compares = place.name in COMPARED and place.subset is None
    # What is dear to keep and cheap to make again.
    shutil.rmtree(place.folder, ignore_errors=True)
    return {
        **place.key,
        "validation_map": validation.ranking()["map"],
        "metrics": {name: found["metrics"].get(name) for name in METRICS},
        "bands": {
            band["name"]: {name: band["metrics"].get(name) for name in BAND_METRICS}
            for band in found["bands"]
        },
        "trained_by": None if linear else fingerprint(resolved),
        "seconds": round(seconds, 1), "machine": described_machine(), "settings": settings,
        "compared": packed(test, thresholds) if compares else None,
    }  # fmt: skip
