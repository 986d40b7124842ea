"""Biases of labels are fitted to validation, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from validated_task import BRANCHES, L, V, made

from plant_dist.runtime.context import RunContext
from plant_dist.train.biases import RIDGE, Judgements, fit_biases, refit_biases


def judgements(pairs: int, shift: float = 0.0) -> Judgements:
    """Labels 3, 10 and 17, of many, few and some pairs."""
    random = torch.Generator().manual_seed(0)
    label_ids = torch.tensor([3, 10, 17])[
        torch.multinomial(torch.tensor([0.8, 0.02, 0.18]), pairs, True, generator=random)
    ]
    logits = 3 * torch.randn(pairs, generator=random) - 2
    gold = torch.rand(pairs, generator=random) < (logits + shift).sigmoid()
    return Judgements(label_ids, logits, gold.float())


@pytest.mark.parametrize("shift", [0.0, 1.5, -2.0, 9.0])
def test_every_bias_is_where_its_loss_is_least(shift: float) -> None:
    judged = judgements(3000, shift)
    labels, moved = fit_biases(RunContext(), judged)
    assert labels.tolist() == [3, 10, 17]
    for label, found in zip(labels, moved.tolist(), strict=True):
        own = judged.label_ids == label
        logits, gold = judged.logits[own].double().numpy(), judged.gold[own].double().numpy()

        def loss(d: float, z: np.ndarray = logits, y: np.ndarray = gold) -> float:
            return float((np.logaddexp(0, z + d) - y * (z + d)).sum() + RIDGE * d * d)

        assert found == pytest.approx(minimize_scalar(loss).x, abs=1e-3)


def test_many_pairs_find_the_shift_and_few_hardly_move() -> None:
    labels, moved = fit_biases(RunContext(), judgements(20_000, shift=1.5))
    found = dict(zip(labels.tolist(), moved.tolist(), strict=True))
    assert found[3] == pytest.approx(1.5, abs=0.1)
    few = fit_biases(RunContext(), judgements(60, shift=1.5))
    assert few[1].abs().max() < 1.0


@pytest.mark.parametrize("case", BRANCHES)
def test_biases_of_labels_never_seen_stay_and_logits_move_by_what_was_fitted(case: str) -> None:
    task, model = made(BRANCHES[case], "sum")
    ids = torch.randint(4, V, (5, 1, 9))
    before = model.labels.fields["bias"].detach().clone()
    with torch.no_grad():
        told = model.decoder(*model.encode(ids, None, None))
        refit_biases(task, model)
        moved = (model.labels.fields["bias"] - before)[:, 0]
        again = model.decoder(*model.encode(ids, None, None))
    unseen = task.corpus.train_frequency == 0
    assert unseen.sum() == L // 6
    assert (moved[unseen] == 0).all()
    assert (moved[~unseen] != 0).all()
    torch.testing.assert_close(again, told + moved, rtol=1e-4, atol=1e-4)


def test_fillers_count_nothing() -> None:
    task, model = made(BRANCHES["rows alone"], "sum")
    task.evaluate_config = type(task.evaluate_config)(ks=(1, 3), documents_per_batch=7)
    refit_biases(task, model)
    by_sevens = model.labels.fields["bias"].detach().clone()
    task, model = made(BRANCHES["rows alone"], "sum")
    refit_biases(task, model)
    torch.testing.assert_close(by_sevens, model.labels.fields["bias"].detach(), rtol=0, atol=1e-4)
