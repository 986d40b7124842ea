"""Bands of labels are fitted to validation, and what was fitted is written into the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from plant_dist.config.schema import EvaluateConfig, LossConfig, TrainConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.metrics.bands import BANDS, band_numbers
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.context import RunContext
from plant_dist.train.classify_task import ClassifyTask, Scorer
from plant_dist.train.levels import _Considered, _considered, _fit, _parts, refit_bands
from plant_dist.train.splits import Corpus, SplitArrays

L, V, DOCUMENTS = 24, 128, 40
SEGMENTATION = Segmentation(16, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
BRANCHES = {
    "all": ["learned", "static", "named", "bag"], "rows alone": ["learned", "bag"],
    "names alone": ["named"],
}  # fmt: skip


def made(branches: list[str], gates: str) -> tuple[ClassifyTask, PlantForMultiLabelClassification]:
    torch.manual_seed(0)
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": branches, "dropout": 0.0, "gates": gates, "name_window": 3},
            label_count=L, special_ids=[0, 2, 3],
        )
    ).eval()  # fmt: skip
    frequency = torch.tensor([0, 3, 8, 30, 60, 200] * (L // 6))
    with torch.no_grad():
        for name, rows in model.labels.fields.items():
            torch.nn.init.normal_(rows, std=0.1 if name == "bag" else 1.0)
        if model.decoder.names is not None:
            model.labels.fields["alone"][:, 0] = (frequency == 0).float()
            for parameter in model.decoder.names.parameters():
                parameter.uniform_(0.2, 0.6)
        if model.decoder.bag is not None:
            model.decoder.bag.idf.uniform_(1, 2)
    random = np.random.default_rng(1)
    tokens = csr_from_lists([random.integers(4, V, 9).tolist() for _ in range(DOCUMENTS)])
    labels = csr_from_lists([sorted(random.choice(L, 3, replace=False).tolist())
                             for _ in range(DOCUMENTS)])  # fmt: skip
    split = SplitArrays(tokens, labels, [f"doc{row}" for row in range(DOCUMENTS)])
    corpus = Corpus(split, split, frequency, SEGMENTATION)
    settings = TrainConfig(loss=LossConfig(reduction="sum"))
    task = ClassifyTask(model, corpus, settings, EvaluateConfig(ks=(1, 3)), RunContext())
    return task, model


@pytest.mark.parametrize("gates", ["sum", "learned", "shared"])
@pytest.mark.parametrize("case", BRANCHES)
def test_logits_become_what_was_fitted(case: str, gates: str) -> None:
    task, model = made(BRANCHES[case], gates)
    ids = torch.randint(4, V, (5, 1, 9))
    every = torch.arange(L).expand(5, L)
    with torch.no_grad():
        read = model.encode(ids, None, None)
        before = _parts(model.decoder, *read, every)
        told = model.decoder(*read)
    # Bias or prior, attentions, bag and name are the whole logit.
    torch.testing.assert_close(before.sum(-1), told, rtol=1e-4, atol=1e-4)
    fitted = refit_bands(task, model)
    assert fitted.shape == (len(BANDS), 4)
    assert not torch.allclose(fitted, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    factors = fitted[torch.from_numpy(band_numbers(task.corpus.train_frequency.numpy())).long()]
    expected = before[..., 0] + factors[:, 0] + (before[..., 1:] * factors[:, 1:]).sum(-1)
    with torch.no_grad():
        torch.testing.assert_close(model.decoder(*read), expected, rtol=1e-4, atol=1e-3)


def test_each_part_is_what_its_rows_alone_say() -> None:
    _, model = made(BRANCHES["all"], "sum")
    ids, every = torch.randint(4, V, (5, 1, 9)), torch.arange(L).expand(5, L)
    with torch.no_grad():
        read = model.encode(ids, None, None)
        parts = _parts(model.decoder, *read, every)
        model.labels.fields["bag"].zero_()
        torch.testing.assert_close(
            model.decoder(*read), parts[..., [0, 1, 3]].sum(-1), rtol=1e-4, atol=1e-4
        )
        model.labels.fields["boost"].zero_()
        torch.testing.assert_close(
            model.decoder(*read), parts[..., [0, 3]].sum(-1), rtol=1e-4, atol=1e-4
        )


TRUE = torch.tensor([[1.0, 0.5, 2.0, 0.6], [0.0, 1.0, 1.0, 1.0], [-1.0, 2.0, 0.2, 1.4],
                     [0.5, 0.3, 0.7, 0.3], [0.2, 1.5, 1.0, 0.8]])  # fmt: skip


def drawn(documents: int) -> tuple[_Considered, torch.Tensor]:
    """Labels of all bands but the last, and the logits that gold ones are to be drawn by."""
    random = torch.Generator().manual_seed(0)
    band = torch.randint(0, len(BANDS) - 1, (documents, 100), generator=random)
    parts = torch.randn(documents, 100, 4, generator=random)
    logits = parts[..., 0] + TRUE[band, 0] + (parts[..., 1:] * TRUE[band, 1:]).sum(-1)
    nothing = torch.zeros(documents + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    real, weights = torch.ones(documents, 100), torch.ones(documents)
    return _Considered(band, parts, real, *nothing, weights), logits


def test_the_fit_finds_what_logits_were_distorted_by() -> None:
    considered, logits = drawn(600)
    random = torch.Generator().manual_seed(1)
    gold = torch.rand(600, 100, generator=random) < logits.sigmoid()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), gold.sum(1).cumsum(0)])
    considered = replace(considered, gold_offsets=offsets, gold_columns=gold.nonzero()[:, 1])
    found = _fit(RunContext(), considered, LossConfig(), documents=600)
    assert torch.allclose(found[:-1], TRUE, atol=0.15)
    # No label of the last band: it stays.
    assert found[-1].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_among_others_only_differences_of_levels_are_found() -> None:
    considered, logits = drawn(8000)
    random = torch.Generator().manual_seed(1)
    gold = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    considered = replace(considered, gold_offsets=torch.arange(8001), gold_columns=gold)
    found = _fit(RunContext(), considered, LossConfig(kind="softmax"), documents=8000)
    assert torch.allclose(found[:-1, 1:], TRUE[:, 1:], atol=0.15)
    levels = found[:-1, 0] - found[:-1, 0].mean()
    assert torch.allclose(levels, TRUE[:, 0] - TRUE[:, 0].mean(), atol=0.15)


@pytest.mark.parametrize("kind", ["bce", "softmax"])
def test_fillers_and_places_without_a_label_count_nothing(kind: str) -> None:
    considered, _ = drawn(50)
    random = torch.Generator().manual_seed(1)
    gold = torch.randint(0, 90, (50,), generator=random)
    considered = replace(considered, gold_offsets=torch.arange(51), gold_columns=gold)
    few = replace(
        considered, band=considered.band[:, :90], parts=considered.parts[:, :90],
        real=considered.real[:, :90],
    )  # fmt: skip
    padded = replace(considered, real=considered.real.clone())
    padded.real[:, 90:] = 0.0
    expected = _fit(RunContext(), few, LossConfig(kind=kind), documents=50)
    torch.testing.assert_close(
        _fit(RunContext(), padded, LossConfig(kind=kind), documents=50), expected,
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    idle = replace(few, weights=torch.zeros(50))
    still = _fit(RunContext(), idle, LossConfig(kind=kind), documents=50)
    torch.testing.assert_close(still, torch.tensor([[0.0, 1.0, 1.0, 1.0]]).repeat(len(BANDS), 1))
    none = _fit(RunContext(), idle, LossConfig(kind=kind), documents=0)
    assert none[0].tolist() == [0.0, 1.0, 1.0, 1.0]


def test_filtered_pairs_are_fitted_to_by_nobody() -> None:
    """As if a filtered label had not been considered, though it be gold or score best of all."""
    task, model = made(["learned"], "sum")
    random = np.random.default_rng(4)
    ignored = [sorted(random.choice(L, 4, replace=False).tolist()) for _ in range(DOCUMENTS)]
    split = replace(task.corpus.validation, ignored=csr_from_lists(ignored))
    task.corpus = replace(task.corpus, validation=split)
    bands_L = torch.from_numpy(band_numbers(task.corpus.train_frequency.numpy()).astype(np.int64))
    with torch.no_grad():
        found = _considered(task, model, bands_L)
        scorer = Scorer(model, SEGMENTATION, task.evaluate_config, RunContext())
        rows = [row for batch in scorer.batches(split) for row in batch.rows.tolist()]
        ids = torch.tensor([[[2, *split.tokens.row(n).tolist(), 3]] for n in rows])
        every = torch.ones_like(ids, dtype=torch.bool)
        best = model.score(*model.encode(ids, every, ids > 3)).sort(dim=1, descending=True)
    # All labels are considered, best first.
    torch.testing.assert_close(found.parts.sum(-1), best.values, rtol=1e-4, atol=1e-4)
    columns = iter(found.gold_columns.tolist())
    for place, (row, labels) in enumerate(zip(rows, best.indices.tolist(), strict=True)):
        left_out = set(ignored[row])
        assert [one > 0 for one in found.real[place]] == [one not in left_out for one in labels]
        count = int(found.gold_offsets[place + 1] - found.gold_offsets[place])
        gold = {labels[next(columns)] for _ in range(count)}
        assert gold == set(split.labels.row(row).tolist()) - left_out
