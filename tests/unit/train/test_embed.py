from __future__ import annotations

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import special_tokens
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.runtime.context import RunContext
from plant_dist.train import embed
from plant_dist.train.embed import TextEmbedder, name_directions, prototypes

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
TEXTS = ["a b c", "d", "e f g h a b c d e f g h", "", "h h"]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


def encoder() -> SegmentEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    return SegmentEncoder(BertModel(config, add_pooling_layer=False))


def embedder(rank: int = 0, world: int = 1, precision: str = "fp32") -> TextEmbedder:
    words = tokenizer()
    segmentation = Segmentation(8, 0, special_tokens(words))
    context = RunContext(rank=rank, world=world, precision=precision)
    return TextEmbedder(encoder(), words, segmentation, context)


def test_a_text_is_the_mean_of_its_hidden_states() -> None:
    found = embedder().mean_states(TEXTS)
    assert found.shape == (5, 8)
    assert found.dtype == torch.float32
    backbone = encoder().backbone.eval()
    for text, vector in zip(TEXTS, found, strict=True):
        # The first segment: six words between the two special tokens.
        ids = torch.tensor([[2, *(WORDS.index(word) for word in text.split()[:6]), 3]])
        with torch.no_grad():
            expected = backbone(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, expected, atol=1e-5), text


def test_texts_are_read_in_the_runs_precision() -> None:
    """As states that are kept on disk are, so that both starts of a run are one."""
    exact = embedder().mean_states(TEXTS)
    AcceleratorState._reset_state()
    try:
        found = embedder(precision="bf16").mean_states(TEXTS)
    finally:
        AcceleratorState._reset_state()
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, atol=0.05)


def test_shares_of_ranks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank fills the rows of its share; the sum over ranks is what one process computes."""
    monkeypatch.setattr(embed, "sum_across", lambda context, values: values)
    parts = [embedder(rank, 3).mean_states(TEXTS) for rank in range(3)]
    assert torch.allclose(sum(parts), embedder().mean_states(TEXTS), atol=1e-6)
    filled = torch.stack([part.abs().sum(1) > 0 for part in parts])
    assert filled.sum(0).tolist() == [1] * 5


def test_the_mode_of_the_encoder_is_put_back_and_dropout_is_off() -> None:
    one = embedder()
    one._encoder.train()
    first, second = one.mean_states(TEXTS), one.mean_states(TEXTS)
    assert torch.equal(first, second)
    assert one._encoder.training


def test_prototypes_by_hand() -> None:
    labels = csr_from_lists([[0], [0, 1], []])
    documents = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.6, 0.8]])
    # Means of text and documents: (1/3, 2/3), (0, 1/2), (0.6, 0.8); of all documents (2/3, 1/3).
    expected = torch.tensor([[-1 / 3, 1 / 3], [-2 / 3, 1 / 6], [0.6 - 2 / 3, 0.8 - 1 / 3]])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(prototypes(texts, documents, labels), expected)


def test_name_directions_by_hand() -> None:
    means = torch.tensor([[3.0, 1.0], [1.0, 1.0], [0.0, 0.0], [2.0, 4.0]])
    # The common mean is of the three that have a text.
    expected = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [0.0, 0.0], [0.0, 2.0]])
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(name_directions(means, torch.tensor([2.0, 2.0])), expected)
