"""The mean text that the named branch takes out is read from a sample, never from other splits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from plant_dist.config.load import load_config
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.runtime.context import RunContext
from plant_dist.stages import start
from plant_dist.train.embed import TextEmbedder


def embedder() -> TextEmbedder:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8)  # fmt: skip
    encoder = SegmentEncoder(BertModel(config, add_pooling_layer=False))
    segmentation = Segmentation(10, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
    return TextEmbedder(encoder, None, segmentation, RunContext())  # type: ignore[arg-type]


def dataset(texts: int) -> Any:
    rows = csr_from_lists([[4 + number, 5] for number in range(texts)])

    def tokens(split: str) -> Csr:
        assert split == "train"
        return rows

    return SimpleNamespace(token_csr=tokens)


@pytest.mark.parametrize(("texts", "read"), [(7, [0, 2, 4, 6]), (4, [0, 1, 2, 3]), (0, [])])
def test_a_common_mean_reads_an_even_sample(
    texts: int, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "SAMPLED_TEXTS", 4)
    every = start._training_means(embedder(), dataset(texts), None, every=True)
    assert len(every) == texts
    sampled = start._training_means(embedder(), dataset(texts), None, every=False)
    torch.testing.assert_close(sampled, every[read])


def test_label_texts_are_read_after_the_documents_that_may_be_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # States on disk are found by text, so that what is read first is not read twice.
    order: list[str] = []

    def documents(*_: object, **__: object) -> torch.Tensor:
        order.append("documents")
        return torch.ones(3, 8)

    def label_texts(self: TextEmbedder, texts: list[str], title: str) -> torch.Tensor:
        order.append(title)
        return torch.ones(len(texts), 8)

    monkeypatch.setattr(start, "_training_means", documents)
    monkeypatch.setattr(TextEmbedder, "mean_states", label_texts)
    config = load_config(None, ["model.branches=[named]", "train.labels=all"])
    job: Any = SimpleNamespace(config=config, context=RunContext())
    start.text_vectors(embedder(), labelled(["a", "b"]), job, None, range(2))
    assert order == ["documents", "label texts"]


def labelled(texts: list[str]) -> Any:
    class Labels(list[str]):
        texts = property(list)

    return SimpleNamespace(label_space=Labels(texts))
