"""Bands of labels are fitted to validation, and what was fitted is written into the rows."""

from __future__ import annotations

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
from plant_dist.train.classify_task import ClassifyTask, Corpus, SplitArrays
from plant_dist.train.levels import _fit, _parts, refit_bands

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


def test_the_fit_finds_what_logits_were_distorted_by() -> None:
    random = torch.Generator().manual_seed(0)
    band = torch.randint(0, len(BANDS) - 1, (60_000,), generator=random)
    parts = torch.randn(60_000, 4, generator=random)
    true = torch.tensor([[1.0, 0.5, 2.0, 0.6], [0.0, 1.0, 1.0, 1.0], [-1.0, 2.0, 0.2, 1.4],
                         [0.5, 0.3, 0.7, 0.3], [0.2, 1.5, 1.0, 0.8]])  # fmt: skip
    logits = parts[:, 0] + true[band, 0] + (parts[:, 1:] * true[band, 1:]).sum(1)
    gold = (torch.rand(60_000, generator=random) < logits.sigmoid()).float()
    found = _fit(RunContext(), band, parts, gold, documents=600)
    assert torch.allclose(found[:-1], true, atol=0.15)
    # No pair of the last band: it stays.
    assert found[-1].tolist() == [0.0, 1.0, 1.0, 1.0]
    nothing = _fit(RunContext(), band[:0], parts[:0], gold[:0], documents=0)
    assert nothing[0].tolist() == [0.0, 1.0, 1.0, 1.0]
