"""A small corpus with evident words, a tiny random encoder for it, and how tests run the program.

Each label has two words of its own; a document holds the words of its labels among words that say
nothing. One label occurs in test only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
LABELS = [f"L{number:02d}" for number in range(12)]
UNSEEN = "UNSEEN"
FILLERS = ["the", "patient", "was", "seen", "with", "no", "known", "history", "of", "and"]
SIZES = {"train": 80, "validation": 20, "test": 20}


def words_of(label: str) -> list[str]:
    """The two words that speak for a label."""
    return [f"alpha{label.lower()}", f"beta{label.lower()}"]


def document(labels: Sequence[str], length: int, random: np.random.Generator) -> str:
    """A text of `length` filler words with the words of the labels at random places."""
    words = [str(word) for word in random.choice(FILLERS, length)]
    for word in (word for label in labels for word in words_of(label)):
        words.insert(int(random.integers(len(words) + 1)), word)
    return " ".join(words).capitalize() + "."


def rows() -> list[dict[str, Any]]:
    """120 documents, split as `SIZES`; the last test document carries `UNSEEN`."""
    random = np.random.default_rng(5)
    made = []
    for split, size in SIZES.items():
        for number in range(size):
            count = int(random.integers(1, 4))
            labels = sorted({str(one) for one in random.choice(LABELS, count)})
            text = document(labels, int(random.integers(5, 60)), random)
            made.append({"id": f"{split}-{number}", "text": text, "labels": labels, "split": split})
    made[-1]["labels"] = [*made[-1]["labels"], UNSEEN]
    return made


def with_evidence(row: dict[str, Any]) -> dict[str, Any]:
    """A document with the places of its labels' own words as gold evidence."""
    found = [
        {"label": label, "start": match.start(), "end": match.end()}
        for label in row["labels"] for word in words_of(label)
        for match in re.finditer(word, row["text"], re.IGNORECASE)
    ]  # fmt: skip
    return {**row, "evidence": found}


def write_jsonl(path: Path, content: Sequence[Any]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def write_encoder(folder: Path) -> Path:
    """Save a tiny BERT of random weights with a WordPiece tokenizer that knows every word."""
    words = [*FILLERS, *(word for label in [*LABELS, UNSEEN] for word in words_of(label)), "."]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(str(folder))  # fmt: skip
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(str(folder))
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """The config of a tiny run whose corpus and encoder lie in `folder`."""
    return {
        "name": "tiny",
        "output": str(folder / "run"),
        "data": {"path": str(folder / "docs.jsonl"), "labels_path": str(folder / "labels.jsonl")},
        "tokens": {"segment_tokens": 24},
        "encoder": {"name": str(folder / "encoder")},
        "mig": {"top_tokens": 8},
        "rank": {
            "width": 8, "epochs": 3, "list_tokens": 4, "sampled_tokens": 8, "labels_per_batch": 4,
        },
        # Names are single words here.
        "model": {"planted_k": 6, "static_k": 3, "name_window": 1, "bag_pairs": 64},
        "train": {
            "epochs": 3, "documents_per_batch": 8, "checkpoint_steps": 3, "log_steps": 1,
            "optim": {"learning_rate": 0.02, "encoder_learning_rate": 0.001},
        },
        "evaluate": {"ks": [1, 3], "baselines": ["popularity", "tfidf"]},
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip


def write_inputs(folder: Path, **changes: Any) -> Path:
    """Write corpus, label names, encoder and config; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "docs.jsonl", rows())
    names = [
        # The first is above all others, for what reads hierarchies.
        {"id": label, "text": " ".join(words_of(label)), "parents": LABELS[: number > 0]}
        for number, label in enumerate(LABELS)
    ]
    write_jsonl(folder / "labels.jsonl", names)
    write_encoder(folder / "encoder")
    return write_config(folder, **changes)


def write_config(folder: Path, **changes: Any) -> Path:
    """Write the tiny config, with top-level keys exchanged."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings(folder) | changes), encoding="utf-8")
    return path


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process of its own: one thread, its own token cache."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }


def start(folder: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start `plant-dist` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "plant_dist", *words],
        env=environment(folder), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip
