"""A small tokenizer that needs no download, and a token cache of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["fever", "cough", "pain", "chest", "acute", "the", "of", "left", "right", "no"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests neither find nor leave tokens in the user's cache."""
    datasets.disable_progress_bars()
    cache = tmp_path / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    return cache


def make_tokenizer(words: Iterable[str] = WORDS, special: bool = True) -> PreTrainedTokenizerFast:
    """Words and [UNK]; `[CLS] … [SEP]` around a sequence, or nothing as in a causal model."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if special else ["[UNK]", "<eos>"]
    vocabulary = {word: index for index, word in enumerate([*names, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        kept = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        kept = {"eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **kept)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then `WORDS` from 4."""
    return make_tokenizer()


@pytest.fixture
def causal_tokenizer() -> PreTrainedTokenizerFast:
    """Adds no special tokens and has no pad token; <eos> is 1."""
    return make_tokenizer(special=False)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines and return the path."""

    def write(rows: Iterable[Any], name: str = "docs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
