from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from plant_dist.data.batches import Batch, Collator
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.sampling import Share
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.errors import ArtifactError
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.runtime.context import RunContext
from plant_dist.train import states
from plant_dist.train.embed import TextEmbedder
from plant_dist.train.states import StatesCache

VOCABULARY, WIDTH = 30, 8
# Documents of one, three, two and one segments of at most five tokens of their own.
LENGTHS = [4, 11, 6, 1]
SEGMENTATION = Segmentation(7, 2, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))


def encoder() -> SegmentEncoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, hidden_dropout_prob=0.5,
    )  # fmt: skip
    return SegmentEncoder(BertModel(config, add_pooling_layer=False))


def documents() -> Csr:
    random = np.random.default_rng(1)
    return csr_from_lists([random.integers(4, VOCABULARY, size).tolist() for size in LENGTHS])


def cache(
    folder: Path,
    precision: str = "fp16",
    identity: str = "weights",
    segmentation: Segmentation = SEGMENTATION,
    reads: bool = True,
) -> StatesCache:
    """A cache; one that does not read fails as soon as its encoder is run."""
    made = encoder()
    if not reads:
        made.forward = None  # type: ignore[method-assign,assignment]
    return StatesCache(folder, precision, identity, made, segmentation, RunContext())


def batch_of(rows: Sequence[int], weights: Sequence[float]) -> Batch:
    share = Share(np.array(rows), np.array(weights, np.float32), float(sum(weights)))
    tokens, nothing = documents().take(share.rows), csr_from_lists([[] for _ in rows])
    return Collator(SEGMENTATION)(tokens, nothing, share)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_states_are_what_the_encoder_gives_without_dropout(tmp_path: Path, precision: str) -> None:
    kept = cache(tmp_path, precision).open(documents())
    batch = batch_of([2, 0, 1], [1, 1, 1])
    hidden = kept.of(batch)
    with torch.no_grad():
        expected = encoder().eval()(batch.input_ids, batch.attention_mask)
    read = batch.attention_mask
    assert hidden.shape == (3, 3, 7, WIDTH)
    assert hidden.dtype == torch.float32
    places = {"fp16": 1e-3, "bf16": 8e-3}[precision]
    assert torch.allclose(hidden[read], expected[read], rtol=places, atol=1e-5)
    assert (hidden[~read] == 0).all()


def test_means_of_first_segments_are_those_of_the_embedder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "DOCUMENTS_PER_BATCH", 3)
    kept = cache(tmp_path).open(documents())
    embedder = TextEmbedder(encoder(), None, SEGMENTATION, RunContext())  # type: ignore[arg-type]
    expected = embedder.mean_states_of(documents())
    found = kept.first_means(documents().lengths(), SEGMENTATION)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_filler_has_no_states(tmp_path: Path) -> None:
    kept = cache(tmp_path).open(documents())
    hidden = kept.of(batch_of([1, 0], [1, 0]))
    assert (hidden[1] == 0).all()
    assert torch.equal(hidden[:1], kept.of(batch_of([1], [1])))


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    first = cache(tmp_path).open(documents())
    second = cache(tmp_path, reads=False).open(documents())
    assert torch.equal(first.values, second.values)
    assert np.array_equal(first.starts, second.starts)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"identity": "other weights"},
        {"segmentation": replace(SEGMENTATION, overlap_tokens=1)},
    ],
)
def test_other_states_lie_elsewhere(tmp_path: Path, change: dict[str, object]) -> None:
    cache(tmp_path).open(documents())
    with pytest.raises(TypeError):
        cache(tmp_path, reads=False, **change).open(documents())  # type: ignore[arg-type]


def test_documents_of_other_folders_are_not_read_again(tmp_path: Path) -> None:
    every = cache(tmp_path).open(documents())
    rows = np.array([2, 0, 2])
    kept = cache(tmp_path, reads=False).open(documents().take(rows))
    ends, kept_ends = (np.append(one.starts[1:], len(one.values)) for one in (every, kept))
    for place, row in enumerate(rows):
        expected = every.values[every.starts[row] : ends[row]]
        assert torch.equal(kept.values[kept.starts[place] : kept_ends[place]], expected)


def test_only_documents_that_no_folder_has_are_read(tmp_path: Path) -> None:
    cache(tmp_path).open(documents().take(np.array([1, 3])))
    mixed = cache(tmp_path)
    read: list[int] = []
    forward = mixed._encoder.forward

    def counted(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        read.append(len(ids))
        return forward(ids, mask)

    mixed._encoder.forward = counted  # type: ignore[method-assign,assignment]
    kept = mixed.open(documents())
    assert sum(read) == 2
    alone = cache(tmp_path / "alone").open(documents())
    assert torch.allclose(kept.values.float(), alone.values.float(), rtol=2e-3, atol=1e-3)


def test_means_come_from_states_and_are_kept(tmp_path: Path) -> None:
    """Known first segments are averaged from disk; the others are computed, once."""
    cache(tmp_path).open(documents().take(np.array([0, 1])))
    embedder = TextEmbedder(encoder(), None, SEGMENTATION, RunContext())  # type: ignore[arg-type]
    expected = embedder.mean_states_of(documents())
    asked: list[Csr] = []

    def compute(tokens: Csr) -> torch.Tensor:
        asked.append(tokens)
        return embedder.mean_states_of(tokens)

    found = cache(tmp_path, reads=False).means(documents(), compute)
    again = cache(tmp_path, reads=False).means(documents(), compute)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found, again)
    [missing] = asked
    assert missing.lengths().tolist() == [5, 1]  # the third document's first segment, and the last


def test_the_encoder_is_left_as_it_was(tmp_path: Path) -> None:
    made = encoder().train()
    StatesCache(tmp_path, "fp16", "w", made, SEGMENTATION, RunContext()).open(documents())
    assert made.training


def test_states_cut_short_are_refused(tmp_path: Path) -> None:
    cache(tmp_path).open(documents())
    [path] = tmp_path.glob(f"*/{states.STATES}")
    with path.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ArtifactError, match=r"has 100 bytes, [\d,]+ are expected.*remove the"):
        cache(tmp_path).open(documents())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ArtifactError, match="no space left on disk"):
        cache(tmp_path).open(documents())
    assert not list(tmp_path.iterdir())
