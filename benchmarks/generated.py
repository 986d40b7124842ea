"""A made corpus of any number of labels, with evidence that is known, and a small encoder for it.

Each label has words of its own, which are its text too: a document holds the words of its labels,
in any order, among fillers that speak for no label. Labels are carried by Zipf's law, so that many
of a million have one training document or none. A word is a token, and speaks for as many labels
as words are reused: 100 of a million labels with 20,000 words.

    python benchmarks/generated.py --labels 1000000 --output runs/million
    plant-dist run --config runs/million/config.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

Int64 = NDArray[np.int64]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MOST_LABELS = 6  # of a document


@dataclass(frozen=True)
class Sizes:
    """What is made.

    Attributes:
        labels: L. documents: of the training split; a tenth of it (at most 2,000) each for
            validation and test.
        words: that speak for labels; each label has `evidence` of them.
        fillers: words that speak for none; a document has `filling` of them, by Zipf's law.
        exponent: of the law by which labels are carried; the r-th has weight r^-exponent.
        width: of the encoder, and of the ranker.
    """

    labels: int
    documents: int = 20_000
    words: int = 20_000
    evidence: int = 2
    fillers: int = 2_000
    filling: int = 12
    exponent: float = 0.7
    width: int = 128
    seed: int = 0

    def splits(self) -> dict[str, int]:
        """Documents of each split."""
        held_out = min(2_000, max(1, self.documents // 10))
        return {"train": self.documents, "validation": held_out, "test": held_out}


def evidence_of(sizes: Sizes) -> Int64:
    """Return the words of each label, (L, evidence), distinct within a label."""
    random = np.random.default_rng(sizes.seed)
    first = random.integers(0, sizes.words, sizes.labels)
    # Steps that add up to less than a turn round the words never meet.
    most = (sizes.words - 1) // max(sizes.evidence - 1, 1)
    steps = random.integers(1, most + 1, (sizes.labels, sizes.evidence - 1)).cumsum(axis=1)
    return np.concatenate([first[:, None], (first[:, None] + steps) % sizes.words], axis=1)


def carried(sizes: Sizes, documents: int, random: np.random.Generator) -> list[Int64]:
    """Return the labels of documents, 1 to `MOST_LABELS` each, by Zipf's law."""
    weights = np.arange(1, sizes.labels + 1, dtype=np.float64) ** -sizes.exponent
    bounds = np.cumsum(weights / weights.sum())
    counts = random.integers(1, MOST_LABELS + 1, documents)
    # Frequent labels are not neighbours, or their ids would tell their frequency.
    place = np.random.default_rng(sizes.seed + 1).permutation(sizes.labels)
    # Without the last bound, which rounding may leave below 1.
    drawn = place[np.searchsorted(bounds[:-1], random.random(counts.sum()))]
    return [np.unique(one) for one in np.split(drawn, np.cumsum(counts)[:-1])]


def documents(sizes: Sizes, evidence: Int64) -> Iterator[dict[str, Any]]:
    """Yield the rows of the corpus."""
    random = np.random.default_rng(sizes.seed + 2)
    weights = 1.0 / np.arange(1, sizes.fillers + 1)
    bounds = np.cumsum(weights / weights.sum())
    for split, count in sizes.splits().items():
        for number, labels in enumerate(carried(sizes, count, random)):
            said = [f"w{word}" for word in evidence[labels].reshape(-1)]
            drawn = np.searchsorted(bounds[:-1], random.random(sizes.filling))
            words = [*said, *(f"f{word}" for word in drawn)]
            yield {
                "id": f"{split}-{number}", "split": split,
                "text": " ".join(words[place] for place in random.permutation(len(words))),
                "labels": [f"L{label}" for label in labels],
            }  # fmt: skip


def write_encoder(folder: Path, sizes: Sizes) -> None:
    """Save a one-layer BERT of random weights, whose tokens are the words."""
    names = [*SPECIAL, *(f"f{n}" for n in range(sizes.fillers)),
             *(f"w{n}" for n in range(sizes.words))]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(str(folder))  # fmt: skip
    torch.manual_seed(sizes.seed)
    config = BertConfig(
        vocab_size=len(names), hidden_size=sizes.width, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=2 * sizes.width, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    # Words come in any order, so that a pretrained encoder would hardly mind where they stand.
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    model.save_pretrained(str(folder))


def settings(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """The config of a run: the encoder stays as it is, 512 labels a document in training."""
    return {
        "name": f"generated-{sizes.labels}",
        "output": str(folder / "run"),
        "seed": sizes.seed,
        "data": {"path": str(folder / "docs.jsonl"), "labels_path": str(folder / "labels.jsonl")},
        "tokens": {"segment_tokens": 32},
        "encoder": {"name": str(folder / "encoder")},
        "mig": {"top_tokens": 8},
        "rank": {"width": sizes.width, "epochs": 1, "list_tokens": 4, "sampled_tokens": 16,
                 "labels_per_batch": 256},
        "model": {"branches": ["learned", "planted"], "planted_k": 8, "dropout": 0.0},
        "train": {
            "labels": "shortlist", "epochs": 1, "documents_per_batch": 64,
            "loss": {"reduction": "sum"},
            "optim": {"freeze_encoder": True, "learning_rate": 0.01, "clip_norm": None},
        },
        "shortlist": {"width": sizes.width, "labels_per_document": 512, "candidates": 512,
                      "refresh_steps": 400},
        "evaluate": {"baselines": [], "ks": [1, 3, 5]},
        "runtime": {"device": "cpu", "precision": "fp32"},
    }  # fmt: skip


def write_corpus(folder: Path, sizes: Sizes) -> Path:
    """Write corpus, labels, encoder and config into a folder; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    evidence = evidence_of(sizes)
    with (folder / "docs.jsonl").open("w", encoding="utf-8") as stream:
        for row in documents(sizes, evidence):
            stream.write(json.dumps(row) + "\n")
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as stream:
        for label, words in enumerate(evidence.tolist()):
            text = " ".join(f"w{word}" for word in words)
            stream.write(f'{{"id": "L{label}", "text": "{text}"}}\n')
    write_encoder(folder / "encoder", sizes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings(folder, sizes), sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Write a corpus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=Sizes.documents)
    parser.add_argument("--width", type=int, default=Sizes.width)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sizes = Sizes(options.labels, options.documents, width=options.width, seed=options.seed)
    print(write_corpus(options.output, sizes))


if __name__ == "__main__":
    main()
