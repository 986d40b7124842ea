"""Evidence of narrower labels against the recursion itself, walked label by label."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.errors import ArtifactError, ConfigError, DataError
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.hierarchy import NarrowerEvidence, narrower_pairs

# 0 ─┬─ 1 ─┬─ 3      5 stands alone
#    └─ 2  └─ 4
TREE = [[], [0], [0], [1], [1], []]


def evidence(parents: list[list[int]], share: float) -> NarrowerEvidence:
    pairs = narrower_pairs(csr_from_lists(parents), share)
    module = NarrowerEvidence(len(pairs.broad), len(pairs.place))
    module.fill(pairs)
    return module


def recursion(logits: Tensor, parents: list[list[int]], share: float) -> Tensor:
    """The formula of the module, one label after the other, in probabilities' own scale."""
    below = [[c for c, above in enumerate(parents) if label in above]
             for label in range(len(parents))]  # fmt: skip

    def strength(row: Tensor, label: int) -> Tensor:
        if not below[label]:
            return row[label].exp()
        heard = sum((strength(row, c) for c in below[label]), torch.zeros((), dtype=row.dtype))
        return (1 - share) * row[label].exp() + share * heard

    return torch.stack(
        [torch.stack([strength(row, label).log() for label in range(len(parents))])
         for row in logits]
    )  # fmt: skip


def test_a_tree_by_hand() -> None:
    # Odds 1, 2, 3, 4, 5, 6 and share 3/4: label 1 has ¼·2 + ¾·(4 + 5), label 0 ¼·1 + ¾·(that + 3).
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]).log()
    found = evidence(TREE, 0.75)(logits).exp()
    one = 0.25 * 2 + 0.75 * (4 + 5)
    zero = 0.25 * 1 + 0.75 * (one + 3)
    torch.testing.assert_close(found, torch.tensor([[zero, one, 3.0, 4.0, 5.0, 6.0]]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), labels=st.integers(1, 9), share=st.floats(0.05, 0.99))
def test_equals_the_recursion_in_any_acyclic_hierarchy(
    seed: int, labels: int, share: float
) -> None:
    generator = np.random.default_rng(seed)
    # Parents have lower numbers, up to three each: no cycle, several paths.
    parents = [
        sorted(generator.choice(label, min(label, int(generator.integers(0, 4))), replace=False))
        for label in range(labels)
    ]
    logits = torch.from_numpy(generator.normal(0, 5, (3, labels)))
    expected = recursion(logits, [[int(p) for p in above] for above in parents], share)
    found = evidence(parents, share)(logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_far_logits_neither_overflow_nor_vanish() -> None:
    logits = torch.tensor([[-500.0, -400.0, -900.0, 300.0, -800.0, 7.0]])
    found = evidence(TREE, 0.5)(logits)[0]
    # Each sum is as good as its one term that counts: label 3, at half strength a step.
    assert found.tolist() == pytest.approx(
        [300 + 2 * math.log(0.5), 300 + math.log(0.5), -900.0, 300.0, -800.0, 7.0]
    )


def test_gradients_by_finite_differences() -> None:
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(evidence(TREE, 0.7).double(), logits)


def test_labels_without_narrower_ones_keep_their_scores_to_the_bit() -> None:
    logits = torch.randn(4, 6)
    found = evidence(TREE, 0.9)(logits)
    assert torch.equal(found[:, 2:], logits[:, 2:])
    assert not torch.isclose(found[:, :2], logits[:, :2]).any()
    assert torch.equal(evidence([[]] * 6, 0.9)(logits), logits)


@pytest.mark.parametrize(
    ("parents", "label"), [([[1], [0]], 0), ([[], [1]], 1), ([[], [0], [4], [2], [3]], 2)]
)
def test_cycles_are_refused(parents: list[list[int]], label: int) -> None:
    with pytest.raises(DataError, match=f"label number {label} is above itself"):
        narrower_pairs(csr_from_lists(parents), 0.5)


def test_another_hierarchy_than_the_models_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"found \(2, 8\) .* made for \(2, 3\)"):
        NarrowerEvidence(2, 3).fill(narrower_pairs(csr_from_lists(TREE), 0.5))


def small_model(parents: Csr) -> PlantForMultiLabelClassification:
    torch.manual_seed(0)
    pairs = narrower_pairs(parents, 0.8)
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": ["learned"], "narrower_share": 0.8},
            label_count=6,
            broad_labels=len(pairs.broad),
            narrower_pairs=len(pairs.place),
        )
    )
    torch.nn.init.normal_(model.labels.fields["boost"])
    assert model.narrower is not None
    model.narrower.fill(pairs)
    return model.eval()


def test_the_model_passes_evidence_up_when_it_scores_and_not_when_it_trains(
    tmp_path: Path,
) -> None:
    model = small_model(csr_from_lists(TREE))
    ids = torch.randint(1, 128, (3, 8))
    scored = model(ids).logits
    model.encoder.eval()
    raw = model.decoder(*model.encode(ids, None, None))
    torch.testing.assert_close(scored, recursion(raw.double(), TREE, 0.8).float())
    model.training = True  # this module alone, so that no dropout falls
    assert torch.equal(model(ids).logits, raw)
    model.save_pretrained(tmp_path)
    again = PlantForMultiLabelClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, scored)


def test_a_shortlist_is_refused() -> None:
    model = small_model(csr_from_lists(TREE))
    ids = torch.randint(1, 128, (1, 8))
    with pytest.raises(ConfigError, match="narrower_share"):
        model(ids, label_ids=torch.tensor([[0, 1]]))
