"""Losses against dense targets, torch's and torchvision-style formulas, and finite differences."""

from __future__ import annotations

import math

import napkinxc.metrics as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from plant_dist.config.schema import LossConfig
from plant_dist.errors import DataError
from plant_dist.objectives.multilabel import (
    document_losses,
    inverse_effective_number,
    inverse_propensity,
    label_weights,
    multilabel_loss,
    shortlist_columns,
)

KINDS = [
    LossConfig(),
    LossConfig(kind="focal"),
    LossConfig(kind="focal", focal_gamma=0.5),
    LossConfig(kind="asl"),
    LossConfig(kind="asl", asl_gamma_positive=1.0, asl_gamma_negative=0.5, asl_clip=0.2),
    LossConfig(kind="asl", asl_clip=0.0),
    LossConfig(kind="softmax"),
]


def sparse(targets_BK: Tensor) -> tuple[Tensor, Tensor]:
    """CSR of a dense 0/1 target."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), targets_BK.sum(1).long().cumsum(0)])
    return offsets, targets_BK.nonzero()[:, 1]


def told_apart(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln softmax of each label among itself and the labels that are not gold."""
    terms = torch.zeros_like(logits)
    for row, column in targets.nonzero().tolist():
        others = logits[row][targets[row] == 0]
        own = logits[row, column]
        terms[row, column] = -torch.cat([own[None], others]).log_softmax(0)[0]
    return terms


def dense_terms(logits: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """The published formulas over a dense target."""
    if config.kind == "bce":
        return binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if config.kind == "softmax":
        return torch.where(targets > 0, told_apart(logits, targets), torch.zeros_like(logits))
    p = logits.sigmoid()
    if config.kind == "focal":
        right = torch.where(targets > 0, p, 1 - p)
        return (1 - right) ** config.focal_gamma * -right.log()
    q = (p - config.asl_clip).clamp_min(0)
    positive = (1 - p) ** config.asl_gamma_positive * -p.log()
    negative = q**config.asl_gamma_negative * -(1 - q).log()
    return torch.where(targets > 0, positive, negative)


@pytest.mark.parametrize("config", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), documents=st.integers(1, 4), labels=st.integers(1, 8))
def test_loss_equals_the_dense_formula(
    config: LossConfig, seed: int, documents: int, labels: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(documents, labels, generator=generator, dtype=torch.float64)
    targets = (torch.rand(documents, labels, generator=generator) < 0.4).double()
    weights = torch.rand(documents, generator=generator)
    per_label = 1 + torch.rand(labels, generator=generator, dtype=torch.float64)
    offsets, gold = sparse(targets)
    terms = dense_terms(logits, targets, config)
    expected = (terms.mean(1) * weights).sum()
    torch.testing.assert_close(multilabel_loss(logits, offsets, gold, weights, config), expected)
    weighted = torch.where(targets > 0, terms * per_label, terms).mean(1)
    found = document_losses(logits, offsets, gold, config, per_label[gold])
    torch.testing.assert_close(found, weighted)


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_gradcheck(config: LossConfig) -> None:
    torch.manual_seed(0)
    # Away from the kink of the asymmetric loss, where p equals the clip.
    logits = torch.tensor([[-4.0, -2.5, 0.3, 2.0], [1.0, -3.5, -0.2, 5.0]], dtype=torch.float64)
    offsets, gold = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
    weights = torch.tensor([1.0, 0.3], dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return multilabel_loss(logits, offsets, gold, weights, config)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


LN2 = math.log(2.0)
EXTREMES = [
    (KINDS[0], 200 + 0 + LN2 + 0 + 200),
    (KINDS[1], 200 + 0 + LN2 / 4 + 0 + 200),
    (KINDS[3], 200 + 0 - 0.45**4 * math.log(0.55) + 0 - 0.95**4 * math.log(0.05)),
    (KINDS[5], 200 + 0 + LN2 / 16 + 0 + 200),
]


@pytest.mark.parametrize(("config", "summed"), EXTREMES)
def test_extreme_logits_give_exact_losses_and_finite_gradients(
    config: LossConfig, summed: float
) -> None:
    logits = torch.tensor([[-200.0, 200.0, 0.0, -200.0, 200.0]], requires_grad=True)
    gold = torch.tensor([0, 1])
    loss = multilabel_loss(logits, torch.tensor([0, 2]), gold, torch.ones(1), config)
    loss.backward()
    assert loss.item() == pytest.approx(summed / 5, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_filler_documents_and_missing_gold_weigh_nothing() -> None:
    logits = torch.tensor([[1.0, -1.0], [7.0, 7.0]])
    weights = torch.tensor([1.0, 0.0])
    loss = multilabel_loss(
        logits, torch.tensor([0, 0, 0]), torch.empty(0, dtype=torch.int64), weights, LossConfig()
    )
    softplus = [math.log1p(math.exp(1.0)), math.log1p(math.exp(-1.0))]
    assert loss.item() == pytest.approx(sum(softplus) / 2)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(2, 3000).bfloat16()
    offsets, gold = torch.tensor([0, 1, 2]), torch.tensor([5, 7])
    found = multilabel_loss(logits, offsets, gold, torch.ones(2), LossConfig())
    expected = multilabel_loss(logits.double(), offsets, gold, torch.ones(2).double(), LossConfig())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), documents=st.integers(1, 4))
def test_shortlist_columns_find_the_gold_labels(seed: int, documents: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shortlist = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(documents)])
    gold = [torch.randperm(12, generator=generator)[: seed % 5].tolist() for _ in range(documents)]
    offsets = torch.tensor([0, *[len(one) for one in gold]]).cumsum(0)
    flat = torch.tensor([label for one in gold for label in one], dtype=torch.int64)
    new_offsets, columns, found = shortlist_columns(shortlist, offsets, flat)
    expected = [[row.index(g) for g in one if g in row]
                for row, one in zip(shortlist.tolist(), gold, strict=True)]  # fmt: skip
    assert new_offsets.tolist() == [0, *torch.tensor([len(e) for e in expected]).cumsum(0).tolist()]
    assert columns.tolist() == [column for one in expected for column in one]
    assert int(found.sum()) == len(columns)


def test_label_weights_by_hand() -> None:
    frequency = torch.tensor([0, 1, 10, 100])
    inverse = inverse_propensity(frequency, 1000, a=0.55, b=1.5)
    scale = (math.log(1000) - 1) * 2.5**0.55
    wanted = [1 + scale * (n + 1.5) ** -0.55 for n in frequency.tolist()]
    assert inverse.tolist() == pytest.approx(wanted)
    effective = inverse_effective_number(frequency, 1000)
    beta = 1 - 1 / 1000
    raw = [(1 - beta) / (1 - beta ** max(n, 1)) for n in frequency.tolist()]
    assert effective.tolist() == pytest.approx([4 * one / sum(raw) for one in raw])
    assert label_weights(LossConfig(), frequency, 1000) is None
    found = label_weights(LossConfig(label_weights="propensity"), frequency, 1000, (0.55, 1.5))
    assert found is not None
    torch.testing.assert_close(found, inverse.float())
    found = label_weights(LossConfig(label_weights="effective"), frequency, 1000)
    assert found is not None
    torch.testing.assert_close(found, effective.float())


def test_propensity_equals_napkinxc() -> None:
    gold = [[0, 1], [0], [0, 2], [1], [0, 1, 2], [0]]
    expected = oracle.Jain_et_al_inverse_propensity(gold, A=0.6, B=2.6)
    found = inverse_propensity(torch.tensor([5, 3, 2]), 6, a=0.6, b=2.6)
    assert found.tolist() == pytest.approx([float(one) for one in expected], rel=1e-6)


def test_too_few_documents_for_propensities_are_refused() -> None:
    with pytest.raises(DataError, match="found 2"):
        inverse_propensity(torch.tensor([1, 2]), 2)


@pytest.mark.parametrize("config", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), documents=st.integers(1, 4), labels=st.integers(1, 8))
def test_ignored_pairs_are_not_charged(
    config: LossConfig, seed: int, documents: int, labels: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(documents, labels, generator=generator, dtype=torch.float64)
    targets, ignored = (
        (torch.rand(documents, labels, generator=generator) < share).double()
        for share in (0.4, 0.3)
    )
    per_label = 1 + torch.rand(labels, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    offsets, gold = sparse(targets)
    found = document_losses(logits, offsets, gold, config, per_label[gold], sparse(ignored))
    # A document's loss over its other labels alone; the mean stays over all labels.
    expected = []
    for row in range(documents):
        kept = ignored[row] == 0
        terms = dense_terms(logits[row, kept][None], targets[row, kept][None], config)[0]
        weighted = torch.where(targets[row, kept] > 0, terms * per_label[kept], terms)
        expected.append(weighted.sum() / labels)
    torch.testing.assert_close(found, torch.stack(expected))
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[ignored > 0].abs() < 1e-12).all()
