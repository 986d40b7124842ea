"""The decoder against a naive reference that holds every B×L×T and B×L×D array, in float64."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plant_dist.config.schema import ModelConfig
from plant_dist.errors import ConfigError, DataError
from plant_dist.labels.table import LabelTable
from plant_dist.models.bag import SCALE, TokenBag
from plant_dist.models.contributions import contributions
from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.fields import label_fields
from plant_dist.models.names import NameMatcher
from plant_dist.models.ranker import ContextualScorer, LexicalScorer
from plant_dist.models.segments import Segment, best_probabilities
from plant_dist.models.static import StaticGains

V, L, D, R, BUCKETS = 11, 7, 6, 5, 13
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-11}


def make_gains(seed: int = 0, labels: int = L) -> StaticGains:
    """Distinct random gains, up to 6 tokens a label, none for the last label."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 7, (labels,), generator=generator)
    sizes[-1] = 0
    tokens = [torch.randperm(V, generator=generator)[: int(n)] for n in sizes]
    values = [torch.rand(int(n), generator=generator).sort(descending=True).values for n in sizes]
    gains = StaticGains(labels, V, int(sizes.sum()))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    gains.fill(offsets, torch.cat(tokens).int(), torch.cat(values))
    return gains


def make_decoder(
    seed: int = 0, scorer: str = "lexical", short: bool = False, **keys: Any
) -> LabelDecoder:
    """A decoder in float64; `short` reads the test's few tokens densely, as short documents are."""
    torch.manual_seed(seed)
    still = {"dropout": 0.0, "name_alone": 0.0, "bag_width": R}
    config = ModelConfig(**(still | {"planted_k": 3, "static_k": 2} | keys))
    width = R if scorer == "lexical" else D
    table = LabelTable(L, label_fields(config, D, width))
    token_side = LexicalScorer(V, R) if scorer == "lexical" else ContextualScorer(D, V)
    window = config.name_window and 3
    matcher = NameMatcher(D, window, 2.0, 0.5) if "named" in config.branches else None
    bag = TokenBag(V, config.bag_width, BUCKETS) if "bag" in config.branches else None
    decoder = LabelDecoder(config, table, token_side, make_gains(seed), matcher, bag).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()
        if bag is not None:
            bag.idf.uniform_(1, 5)
            # Small, or its evidence would drown what the other branches say in rounding.
            bag.factors.mul_(0.02)
    decoder.short_tokens = 64 if short else 0
    return decoder


def make_batch(seed: int, shape: tuple[int, ...], kept: float = 0.7) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, D, generator=generator, dtype=torch.float64)
    input_ids = torch.randint(0, V, shape, generator=generator)
    return hidden, input_ids, torch.rand(shape, generator=generator) < kept


def dense_weights(scores_BLT: Tensor, keep_BT: Tensor, k: int | None) -> Tensor:
    """Softmax over the k largest scores of the kept tokens, one document and label at a time."""
    weights = torch.zeros_like(scores_BLT)
    for b, keep_T in enumerate(keep_BT):
        real = keep_T.nonzero()[:, 0]
        for label in range(scores_BLT.shape[1] if len(real) else 0):
            # Repeated tokens tie up to rounding: the earlier one is kept.
            order = (
                scores_BLT[b, label, real].round(decimals=9).argsort(descending=True, stable=True)
            )
            best = real[order[: len(real) if k is None else k]]
            weights[b, label, best] = scores_BLT[b, label, best].softmax(0)
    return weights


def dense_static(gains: StaticGains, input_ids: Tensor, keep: Tensor, k: int | None) -> Tensor:
    weights = torch.zeros(len(input_ids), gains.label_count, input_ids.shape[1]).double()
    for label in range(gains.label_count):
        pairs = slice(int(gains.offsets[label]), int(gains.offsets[label + 1]))
        stored = dict(zip(gains.tokens[pairs].tolist(), gains.gains[pairs].tolist(), strict=True))
        for b in range(len(input_ids)):
            found = [
                (stored[int(token)], -t)
                for t, token in enumerate(input_ids[b])
                if keep[b, t] and int(token) in stored
            ]
            best = sorted(found, reverse=True)[:k]
            for gain, place in best:
                weights[b, label, -place] = gain / sum(one for one, _ in best)
    return weights


def naive_names(decoder: LabelDecoder, hidden: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity above the offset (B, L) and attention of the named branch, token by token."""
    matcher, rows = decoder.names, decoder.labels.fields["name"]
    evidence = []
    weights = torch.zeros(len(keep), L, keep.shape[1], dtype=torch.float64)
    for b, keep_T in enumerate(keep):
        if not keep_T.any():
            evidence.append(torch.zeros(L, dtype=torch.float64))
            continue
        kept = keep_T.nonzero()[:, 0].tolist()
        windows = [kept] if matcher.window is None else []
        for t in kept if matcher.window else []:
            reach = range(t - (matcher.window - 1) // 2, t + matcher.window // 2 + 1)
            windows.append([u for u in reach if 0 <= u < len(keep_T) and keep_T[u]])
        sums = torch.stack([(hidden[b, one] - matcher.center).sum(0) for one in windows])
        best = (sums / sums.norm(dim=1, keepdim=True) @ rows.T).max(0)
        evidence.append(best.values - matcher.offset)
        for label, chosen in enumerate(best.indices.tolist()):
            weights[b, label, windows[chosen]] = 1 / len(windows[chosen])
    return torch.stack(evidence), weights


def naive_bag(decoder: LabelDecoder, ids: Tensor, keep: Tensor) -> Tensor:
    """Evidence of the bag branch (B, L), feature by feature."""
    bag, vectors = decoder.bag, []
    for ids_T, keep_T in zip(ids, keep, strict=True):
        tokens = ids_T[keep_T].tolist()
        pairs = [V + (1_000_003 * a + 7_919 * b) % BUCKETS for a, b in pairwise(tokens)]
        vector = bag.factors.new_zeros(bag.factors.shape[1])
        for features in (tokens, pairs):
            counts = Counter(features)
            weights = {f: (1 + math.log(n)) * float(bag.idf[f]) for f, n in counts.items()}
            norm = math.sqrt(sum(weight**2 for weight in weights.values()))
            for f, weight in weights.items():
                vector = vector + SCALE * weight / norm * bag.factors[f]
        vectors.append(vector)
    return torch.stack(vectors) @ decoder.labels.fields["bag"].T


def naive_gates(decoder: LabelDecoder) -> Tensor:
    """Weights of the branches for every label, (N, L)."""
    branches = len(decoder.config.branches)
    if decoder.config.gates == "learned":
        return (decoder.labels.fields["gate"].softmax(-1) * branches).T
    if decoder.config.gates == "shared":
        return (decoder.gate.softmax(-1) * branches)[:, None].expand(-1, L)
    return torch.ones(branches, L, dtype=torch.float64)


def naive_weights(decoder: LabelDecoder, hidden: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
    """Gate-weighted attention of the branches, (N, B, L, T)."""
    rows, config = decoder.labels.fields, decoder.config
    weights = []
    for branch in config.branches:
        if branch == "learned":
            scores = torch.einsum("ld,btd->blt", rows["query"], hidden) / D**0.5
            weights.append(dense_weights(scores, keep, config.learned_k))
        elif branch == "planted":
            factors, bias = decoder.scorer.token_factors(ids, hidden)
            scores = torch.einsum("lr,btr->blt", rows["factor"], factors) + bias[:, None]
            weights.append(dense_weights(scores, keep, config.planted_k))
        elif branch == "named":
            weights.append(naive_names(decoder, hidden, keep)[1])
        elif branch == "bag":  # it attends nothing
            weights.append(torch.zeros(len(keep), L, keep.shape[1], dtype=torch.float64))
        elif branch == "pooled":
            even = keep.double() / keep.sum(-1, keepdim=True).clamp_min(1)
            weights.append(even[:, None].expand(-1, L, -1))
        else:
            weights.append(dense_static(decoder.gains, ids, keep, config.static_k))
    return torch.stack(weights) * naive_gates(decoder)[:, None, :, None]


def naive_logits(decoder: LabelDecoder, hidden: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
    rows, branches = decoder.labels.fields, decoder.config.branches
    # The named branch attends, but its evidence is the similarity, not the boost's product.
    boosted = [place for place, branch in enumerate(branches) if branch not in ("named", "bag")]
    logits = rows["bias"][:, 0].expand(len(hidden), -1)
    if boosted:
        contexts_BLD = naive_weights(decoder, hidden, ids, keep)[boosted].sum(0) @ hidden
        logits = logits + (contexts_BLD * rows["boost"]).sum(-1)
    gates_NL = naive_gates(decoder)
    if "bag" in branches:
        logits = logits + naive_bag(decoder, ids, keep) * gates_NL[branches.index("bag")]
    if (matcher := decoder.names) is None:
        return logits
    excess = naive_names(decoder, hidden, keep)[0]
    beside = matcher.unit * matcher.beside * excess * gates_NL[branches.index("named")]
    alone = matcher.unit * (matcher.alone[0] * excess + matcher.alone[1]) + rows["prior"][:, 0]
    return torch.where(rows["alone"][:, 0] > 0, alone, logits + beside)


def gradients(output: Tensor, decoder: LabelDecoder, hidden: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed random combination of the logits, for every parameter and `hidden`."""
    torch.manual_seed(5)
    named = dict(decoder.named_parameters()) | {"hidden": hidden}
    grads = torch.autograd.grad(
        (output * torch.randn_like(output)).sum(), list(named.values()), materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


CASES = {
    "default": {},
    "all tokens": {"planted_k": None, "static_k": None},
    "inattentive": {"learned_k": 2, "planted_k": 2, "static_k": 1},
    "learned gates": {"gates": "learned"},
    "shared gates": {"gates": "shared", "branches": ("planted", "learned")},
    "static": {"branches": ("static",)},
    "planted": {"branches": ("planted",), "planted_k": 4},
    "pooled": {"branches": ("pooled",)},
    "pooled beside planted": {"branches": ("planted", "pooled"), "gates": "learned"},
    "named": {"branches": ("named",)},
    "named beside all": {"branches": ("learned", "named", "static"), "gates": "learned"},
    "named as wholes": {"branches": ("learned", "named"), "name_window": None},
    "bag": {"branches": ("bag",)},
    "bag beside all": {"branches": ("planted", "bag", "named"), "gates": "learned"},
    "k above T": {"learned_k": 50, "planted_k": 50, "static_k": 50},
}


@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("scorer", ["lexical", "contextual"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_the_naive_reference(
    case: str, scorer: str, short: bool
) -> None:
    decoder = make_decoder(scorer=scorer, short=short, **CASES[case])
    hidden, ids, keep = make_batch(1, (3, 9))
    keep[2] = False
    hidden.requires_grad_()
    logits, expected = decoder(hidden, ids, keep), naive_logits(decoder, hidden, ids, keep)
    torch.testing.assert_close(logits, expected, **CLOSE)
    found = gradients(logits, decoder, hidden)
    for name, gradient in gradients(expected, decoder, hidden).items():
        torch.testing.assert_close(
            found[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    documents=st.integers(1, 3),
    tokens=st.integers(1, 12),
    kept=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    ks=st.tuples(*[st.sampled_from([None, 1, 2, 4, 20])] * 3),
    block=st.sampled_from([None, 1, 2, 3, 100]),
    scorer=st.sampled_from(["lexical", "contextual"]),
)
def test_any_shape_mask_k_and_block_equals_the_naive_reference(
    seed: int,
    documents: int,
    tokens: int,
    kept: float,
    ks: tuple[int | None, ...],
    block: int | None,
    scorer: str,
) -> None:
    short = seed % 2 == 0
    decoder = make_decoder(
        seed, scorer, short, learned_k=ks[0], planted_k=ks[1], static_k=ks[2], label_block=block
    )
    hidden, ids, keep = make_batch(seed, (documents, tokens), kept)
    expected = naive_logits(decoder, hidden, ids, keep)
    torch.testing.assert_close(decoder(hidden, ids, keep), expected, **CLOSE)


@pytest.mark.parametrize("dense", [True, False], ids=["short", "long"])
@pytest.mark.parametrize(
    "case", ["default", "learned gates", "all tokens", "static", "named beside all"]
)
def test_shortlisted_logits_and_gradients_are_those_of_all_labels(case: str, dense: bool) -> None:
    decoder = make_decoder(**CASES[case], label_block=3, short=dense)
    hidden, ids, keep = make_batch(2, (2, 8))
    hidden.requires_grad_()
    shortlist = torch.tensor([[6, 0, 3, 3], [1, 2, 5, 0]])
    short = decoder(hidden, ids, keep, shortlist)
    every = decoder(hidden, ids, keep).gather(1, shortlist)
    torch.testing.assert_close(short, every, **CLOSE)
    found = gradients(short, decoder, hidden)
    for name, gradient in gradients(every, decoder, hidden).items():
        torch.testing.assert_close(
            found[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("state", ["none", "attention_state"])
def test_gradcheck(state: str) -> None:
    decoder = make_decoder(state=state, gates="learned", label_block=4)
    hidden, ids, keep = make_batch(3, (1, 2, 4), 0.9)
    names = list(dict(decoder.named_parameters()))

    def run(hidden: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(decoder, named, (hidden, ids, keep))

    inputs = [hidden, *decoder.parameters()]
    inputs = [one.detach().clone().requires_grad_() for one in inputs]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-7, fast_mode=True)


def test_recomputing_blocks_changes_neither_logits_nor_gradients() -> None:
    hidden, ids, keep = make_batch(4, (2, 3, 5))
    hidden.requires_grad_()
    for state in ("none", "attention_state"):
        plain = make_decoder(state=state, label_block=2)
        thrifty = make_decoder(state=state, label_block=2)
        thrifty.budget.recomputes = lambda *_: True
        expected = gradients(plain(hidden, ids, keep), plain, hidden)
        for name, gradient in gradients(thrifty(hidden, ids, keep), thrifty, hidden).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


def saved_numbers(decoder: LabelDecoder, batch: tuple[Tensor, ...]) -> tuple[int, int]:
    """Largest and total size of what the forward pass holds for the backward pass."""
    sizes: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        sizes[saved.untyped_storage().data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        logits = decoder(*batch)
    logits.sum().backward()
    return max(sizes.values()), sum(sizes.values())


@pytest.mark.parametrize("shape", [(2, 400), (2, 4, 100)])
@pytest.mark.parametrize("keys", [{}, {"planted_k": None}, {"state": "attention_state"}], ids=str)
def test_nothing_of_size_documents_tokens_labels_survives_the_forward_pass(
    keys: dict[str, Any], shape: tuple[int, ...]
) -> None:
    labels, documents_tokens = 400, 2 * 400
    torch.manual_seed(0)
    hidden = torch.randn(*shape, D, requires_grad=True)
    batch = (hidden, torch.randint(0, V, shape), torch.ones(shape, dtype=torch.bool))
    config = ModelConfig(
        **({"planted_k": 4, "static_k": 2, "bag_width": 4, "block_memory_mb": 1} | keys)
    )
    table = LabelTable(labels, label_fields(config, D, R))
    gains, matcher = make_gains(labels=labels), NameMatcher(D, 8, 10.0, 0.5)
    decoder = LabelDecoder(config, table, LexicalScorer(V, R), gains, matcher, TokenBag(V, 4))
    largest, total = saved_numbers(decoder, batch)
    assert largest < documents_tokens * labels / 10
    assert total < documents_tokens * labels / 2


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), segments=st.integers(1, 5), kept=st.sampled_from([0.4, 1.0]))
def test_attention_state_equals_reading_all_at_once(seed: int, segments: int, kept: float) -> None:
    named = {"branches": ("named", "planted")}
    ks = [{}, {"planted_k": None, "static_k": None}, {"learned_k": 3}, named][seed % 4]
    together = make_decoder(seed, state="none", **ks)
    streamed = make_decoder(seed, state="attention_state", label_block=3, **ks)
    hidden, ids, keep = make_batch(seed, (2, segments, 4), kept)
    keep[0, -1] = False
    hidden.requires_grad_()
    expected = together(hidden, ids, keep)
    found = streamed(hidden, ids, keep)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    expected_gradients = gradients(expected, together, hidden)
    for name, gradient in gradients(found, streamed, hidden).items():
        torch.testing.assert_close(gradient, expected_gradients[name], **CLOSE)


def test_attention_state_equals_none_to_1e5_in_float32_at_real_sizes() -> None:
    config = ModelConfig(dropout=0.0, branches=("learned", "planted"), state="attention_state")
    torch.manual_seed(0)
    table = LabelTable(50, label_fields(config, 64, 32))
    decoder = LabelDecoder(config, table, ContextualScorer(64, V))
    decoder.labels.fields["query"].data *= 20
    decoder.scorer = LexicalScorer(2000, 32)
    hidden = torch.randn(2, 6, 128, 64)
    ids = torch.randint(0, 2000, (2, 6, 128)).minimum(torch.randint(0, 2000, (2, 6, 128)))
    keep = torch.rand(2, 6, 128) < 0.9
    streamed = decoder(hidden, ids, keep)
    together = decoder(hidden.flatten(1, 2), ids.flatten(1), keep.flatten(1))
    torch.testing.assert_close(streamed, together, rtol=1e-5, atol=1e-5)


def test_memory_of_the_stream_does_not_grow_with_segments() -> None:
    decoder = make_decoder(state="attention_state")
    parts = [Segment(*make_batch(seed, (2, 5))) for seed in range(6)]
    sizes = []
    original = decoder._attend

    def watched(*arguments: Any, **keys: Any) -> Any:
        carries = original(*arguments, **keys)
        sizes.append(sum(t.numel() for c in carries.values() for t in c if torch.is_tensor(t)))
        return carries

    decoder._attend = watched
    decoder.stream(iter(parts))
    assert len(sizes) == 6
    assert len(set(sizes)) == 1


def naive_logit_state(decoder: LabelDecoder, hidden: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
    """method.md §4, one document at a time over its own segments."""
    results = []
    for b in range(len(hidden)):
        real = [s for s in range(hidden.shape[1]) if keep[b, s].any()] or [0]
        state = torch.zeros(L, dtype=torch.float64)
        for s in real:
            one = (hidden[b, s][None], ids[b, s][None], keep[b, s][None])
            logits = naive_logits(decoder, *one)[0] + state
            if s == real[-1] and decoder.bag is not None:
                # Attention is of the last segment, a bag of all; names alone have none.
                gate = naive_gates(decoder)[decoder.config.branches.index("bag")]
                every = ids[b].reshape(1, -1), keep[b].reshape(1, -1)
                more = naive_bag(decoder, *every) - naive_bag(decoder, *one[1:])
                alone = decoder.labels.fields["alone"][:, 0] > 0
                logits = logits + (more * gate)[0].masked_fill(alone, 0.0)
            state = torch.zeros_like(state)
            best = logits.argsort(descending=True)[: decoder.config.state_k]
            state[best] = torch.sigmoid(logits[best]).detach()
        results.append(logits)
    return torch.stack(results)


def test_logit_state_equals_the_recurrence_and_learns_from_the_last_segment_only() -> None:
    decoder = make_decoder(state="logit_state", state_k=3)
    hidden, ids, keep = make_batch(6, (3, 4, 5))
    keep[1, 2:] = False
    keep[2] = False
    hidden.requires_grad_()
    logits = decoder(hidden, ids, keep)
    expected = naive_logit_state(decoder, hidden, ids, keep)
    torch.testing.assert_close(logits, expected, **CLOSE)
    found = gradients(logits, decoder, hidden)
    for name, gradient in gradients(expected, decoder, hidden).items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)
    assert found["hidden"][0, :3].abs().max() == 0
    assert found["hidden"][1, 1].abs().max() > 0


def test_a_bag_is_of_the_whole_document_under_every_state() -> None:
    hidden, ids, keep = make_batch(6, (3, 2, 5))
    keep[1, 1] = False
    bags = {
        state: make_decoder(state=state, state_k=2, branches=("bag",))
        for state in ("none", "attention_state", "logit_state")
    }
    whole = bags["none"](hidden, ids, keep)
    torch.testing.assert_close(bags["attention_state"](hidden, ids, keep), whole, **CLOSE)
    # What the first segment says of its best labels comes on top, where another follows.
    first = bags["none"](hidden[:, :1], ids[:, :1], keep[:, :1])
    state = best_probabilities(first, 2) * keep[:, 1].any(1)[:, None]
    torch.testing.assert_close(bags["logit_state"](hidden, ids, keep), whole + state, **CLOSE)


def test_logit_state_carries_exactly_the_best_labels() -> None:
    carried = best_probabilities(torch.tensor([[-3.0, 0.0, -1.0, -2.0]]), 2)
    assert carried.tolist() == [[0.0, 0.5, torch.sigmoid(torch.tensor(-1.0)).item(), 0.0]]
    assert best_probabilities(torch.zeros(2, 2), 3).tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("state", ["none", "attention_state", "logit_state"])
def test_a_documents_state_reaches_no_other_document_and_no_later_batch(state: str) -> None:
    decoder = make_decoder(state=state)
    hidden, ids, keep = make_batch(7, (3, 3, 5))
    before = decoder(hidden, ids, keep)
    other, other_ids, other_keep = make_batch(8, (3, 3, 5))
    changed = hidden.clone(), ids.clone(), keep.clone()
    changed[0][1], changed[1][1], changed[2][1] = other[1], other_ids[1], other_keep[1]
    after = decoder(*changed)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-12)
    assert (after[1] - before[1]).abs().max() > 1e-3
    torch.testing.assert_close(decoder(hidden, ids, keep), before, rtol=0, atol=0)


@pytest.mark.parametrize("state", ["none", "attention_state", "logit_state"])
def test_an_earlier_segment_and_the_mask_change_the_result(state: str) -> None:
    decoder = make_decoder(state=state)
    hidden, ids, keep = make_batch(9, (1, 2, 5), kept=1.0)
    before = decoder(hidden, ids, keep)
    dropped = keep.clone()
    dropped[0, 0] = False
    assert (decoder(hidden, ids, dropped) - before).abs().max() > 1e-3
    dropped = keep.clone()
    dropped[0, 1, 2] = False
    assert (decoder(hidden, ids, dropped) - before).abs().max() > 1e-6


@pytest.mark.parametrize("state", ["none", "attention_state", "logit_state"])
def test_padding_has_no_influence(state: str) -> None:
    decoder = make_decoder(state=state)
    hidden, ids, keep = make_batch(10, (2, 2, 6), kept=0.5)
    before = decoder(hidden, ids, keep)
    noisy = torch.where(keep[..., None], hidden, 1e6 * torch.ones_like(hidden))
    other_ids = torch.where(keep, ids, (ids + 3) % V)
    torch.testing.assert_close(decoder(noisy, other_ids, keep), before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("case", CASES)
def test_attention_weights_are_the_naive_ones(case: str, short: bool) -> None:
    decoder = make_decoder(scorer="contextual", short=short, **CASES[case])
    hidden, ids, keep = make_batch(11, (2, 9), kept=0.6)
    found = decoder.attention_weights(hidden, ids, keep)
    expected = naive_weights(decoder, hidden, ids, keep)
    combined = expected.sum(0)
    if decoder.names is not None:
        # Labels that have nothing but their names rest on the named branch alone.
        alone = decoder.labels.fields["alone"][:, 0] > 0
        combined[:, alone] = naive_names(decoder, hidden, keep)[1][:, alone]
    torch.testing.assert_close(found["combined"], combined, **CLOSE)
    assert found["combined"].masked_select(~keep[:, None]).abs().max() == 0
    for branch in decoder.kept:
        sums = found[branch].sum(-1)
        assert ((sums - 1).abs() < 1e-9).logical_or(sums == 0).all()
        # The pooled branch has no inattention.
        limit = getattr(decoder.config, f"{branch}_k", None) or 9
        assert ((found[branch] > 0).sum(-1) <= limit).all()
    shortlist = torch.tensor([[5, 2], [0, 6]])
    short = decoder.attention_weights(hidden, ids, keep, shortlist)["combined"]
    for b in range(2):
        torch.testing.assert_close(short[b], found["combined"][b, shortlist[b]], **CLOSE)


def said_by_no_token(decoder: LabelDecoder) -> Tensor:
    """What is left of a logit: the bias, and what a name counts that nothing is like, (L,)."""
    fields, names, branches = decoder.labels.fields, decoder.names, decoder.config.branches
    bias_L = fields["bias"][:, 0].detach()
    if names is None:
        return bias_L
    unlike = -names.offset.detach()
    gate_L = torch.ones(L)
    if decoder.config.gates == "learned":
        gate_L = len(branches) * fields["gate"].detach().softmax(-1)[:, branches.index("named")]
    beside_L = bias_L + gate_L * names.unit * names.beside.detach() * unlike
    slope, level = names.alone.detach()
    alone_L = fields["prior"][:, 0].detach() + names.unit * (slope * unlike + level)
    return torch.where(fields["alone"][:, 0] > 0, alone_L, beside_L)


@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("case", CASES)
def test_contributions_of_tokens_add_up_to_the_logit(case: str, short: bool) -> None:
    decoder = make_decoder(scorer="contextual", short=short, **CASES[case])
    hidden, ids, keep = make_batch(11, (2, 9), kept=0.6)
    found = contributions(decoder, hidden, ids, keep)
    if decoder.names is not None:
        alone = decoder.labels.fields["alone"][:, 0] > 0
        assert alone.any()
        assert not alone.all()
    logits = decoder(hidden, ids, keep)
    torch.testing.assert_close(found.sum(-1) + said_by_no_token(decoder), logits, **CLOSE)
    assert found.masked_select(~keep[:, None]).abs().max() == 0
    shortlist = torch.tensor([[5, 2], [0, 6]])
    some = contributions(decoder, hidden, ids, keep, shortlist)
    for b in range(2):
        torch.testing.assert_close(some[b], found[b, shortlist[b]], **CLOSE)


@pytest.mark.parametrize("state", ["none", "attention_state"])
def test_contributions_add_up_across_segments(state: str) -> None:
    decoder = make_decoder(state=state)
    hidden, ids, keep = make_batch(12, (2, 3, 4), kept=0.8)
    with torch.no_grad():
        decoder.labels.fields["alone"].fill_(0.0)
    found = contributions(decoder, hidden, ids, keep).sum(-1) + said_by_no_token(decoder)
    torch.testing.assert_close(found, decoder(hidden, ids, keep), **CLOSE)


def test_attention_weights_of_the_logit_state_lie_on_the_last_segment() -> None:
    decoder = make_decoder(state="logit_state")
    hidden, ids, keep = make_batch(12, (2, 3, 4), kept=1.0)
    keep[1, 2] = False
    weights = decoder.attention_weights(hidden, ids, keep)["learned"].view(2, L, 3, 4)
    on_segments = weights.sum(-1).mean(1)
    torch.testing.assert_close(on_segments, torch.tensor([[0, 0, 1], [0, 1, 0]]).double())


def test_blocks_fit_the_budget() -> None:
    hidden, ids, keep = make_batch(13, (2, 64))
    segment = Segment(hidden.float(), ids, keep)
    three = ("learned", "planted", "static")
    small, large = (
        make_decoder(block_memory_mb=mb, branches=three).budget.labels(segment, short=False)
        for mb in (1, 4)
    )
    assert 3.9 < large / small < 4.1
    scores_mb = small * 2 * 64 * 4 / 2**20
    assert 0.1 < scores_mb < 1
    assert make_decoder(label_block=5).budget.labels(segment, short=False) == 5


def test_dropout_falls_on_hidden_states_in_training_only() -> None:
    decoder = make_decoder(dropout=0.5)
    hidden, ids, keep = make_batch(14, (2, 8))
    assert (decoder.train()(hidden, ids, keep) - decoder(hidden, ids, keep)).abs().max() > 1e-3
    decoder.eval()
    torch.testing.assert_close(decoder(hidden, ids, keep), decoder(hidden, ids, keep))


def test_half_precision_states_are_read_in_float32() -> None:
    decoder = make_decoder().float()
    hidden, ids, keep = make_batch(15, (2, 8))
    coarse = hidden.bfloat16()
    logits = decoder(coarse, ids, keep)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, decoder(coarse.float(), ids, keep))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = decoder(hidden.float(), ids, keep)
        cast.sum().backward()
    exact = decoder(hidden.float(), ids, keep)
    assert 0 < (cast - exact).abs().max() < 0.2 * exact.abs().max()
    stored = make_decoder(scorer="contextual").bfloat16()
    widened = make_decoder(scorer="contextual").bfloat16().float()
    torch.testing.assert_close(stored(coarse, ids, keep), widened(coarse.float(), ids, keep))


@pytest.mark.parametrize("shortlisted", [False, True], ids=["all", "shortlist"])
@pytest.mark.parametrize("short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("case", CASES)
def test_labels_are_ranked_by_exact_products_under_autocast(
    case: str, short: bool, shortlisted: bool
) -> None:
    # Tokens beyond all k, so that rounding chooses none; and no fused kernel.
    keys = CASES[case] | {"planted_k": 50, "static_k": 50, "learned_k": 50}
    decoder = make_decoder(short=short, **keys).float().eval()
    hidden, ids, keep = make_batch(19, (2, 8))
    asked = torch.tensor([[6, 0, 3], [1, 2, 5]]) if shortlisted else None
    with torch.no_grad():
        exact = decoder(hidden.float(), ids, keep, asked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = decoder(hidden.float(), ids, keep, asked)
    torch.testing.assert_close(cast, exact)


def test_only_the_fields_of_the_configured_branches_exist() -> None:
    assert label_fields(ModelConfig(branches=("static",)), D, None) == {"boost": D, "bias": 1}
    # Nothing would read a boost, and nothing may have a row in vain.
    assert label_fields(ModelConfig(branches=("named",)), D, None) == {
        "bias": 1, "name": D, "prior": 1, "alone": 1,
    }  # fmt: skip
    config = ModelConfig(gates="learned")
    assert label_fields(config, D, R) == {
        "boost": D, "bias": 1, "query": D, "factor": R, "name": D, "prior": 1, "alone": 1,
        "bag": 128, "gate": 5,
    }  # fmt: skip


def test_a_branch_without_its_source_is_refused() -> None:
    config = ModelConfig(branches=("planted",))
    with pytest.raises(ConfigError, match="planted"):
        label_fields(config, D, None)
    table = LabelTable(L, label_fields(config, D, R))
    with pytest.raises(ConfigError, match="planted"):
        LabelDecoder(config, table)
    with pytest.raises(ConfigError, match="static"):
        LabelDecoder(ModelConfig(branches=("static",)), table)
    with pytest.raises(ConfigError, match="bag"):
        LabelDecoder(ModelConfig(branches=("bag",)), table)


def test_no_segment_and_uneven_segments_are_refused() -> None:
    for state in ("attention_state", "logit_state"):
        with pytest.raises(DataError, match="no segment"):
            make_decoder(state=state).stream([])
    parts = [Segment(*make_batch(0, (1, 4))), Segment(*make_batch(0, (1, 5)))]
    with pytest.raises(DataError, match="4 and 5"):
        make_decoder(state="logit_state").stream(parts)
    assert make_decoder(state="attention_state").stream(parts).shape == (1, L)


def test_state_dict_round_trip_gives_equal_logits() -> None:
    first, second = make_decoder(0, gates="learned"), make_decoder(1, gates="learned")
    second.gains = StaticGains(L, V, first.gains.tokens.numel()).double()
    batch = make_batch(16, (2, 8))
    second(*batch)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second(*batch), first(*batch), rtol=0, atol=0)


def test_training_scores_the_asked_share_of_labels_by_their_names_alone() -> None:
    keys = {"branches": ("learned", "named"), "label_block": 2}
    decoder = make_decoder(**keys, name_alone=0.5)
    with torch.no_grad():
        decoder.labels.fields["alone"].copy_(torch.tensor([[1.0], *[[0.0]] * (L - 1)]))
    batch = make_batch(3, (2, 8))
    beside = make_decoder(**keys)
    beside.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        full = beside(*batch)
        beside.labels.fields["alone"].fill_(1.0)
        alone = beside(*batch)
        drawn = torch.stack([decoder(*batch) for _ in range(200)])
        torch.testing.assert_close(decoder.eval()(*batch)[:, 1:], full[:, 1:], **CLOSE)
    by_name, by_all = (drawn - alone).abs() < 1e-9, (drawn - full).abs() < 1e-9
    # A label is one or the other, alike for all documents of a step.
    assert bool((by_name ^ by_all)[..., 1:].all())
    assert torch.equal(by_name[:, 0], by_name[:, 1])
    assert bool(by_name[..., 0].all())
    assert 0.45 < by_name[..., 1:].double().mean() < 0.55
