from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn.functional import binary_cross_entropy_with_logits

from plant_dist.config.schema import EvaluateConfig, LossConfig, OptimConfig, TrainConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.objectives.multilabel import multilabel_loss
from plant_dist.runtime.context import RunContext
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.optim import check_groups
from plant_dist.train.splits import Corpus, SplitArrays
from plant_dist.train.states import HiddenStates

L, V = 6, 128
SEGMENTATION = Segmentation(10, 2, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))


def split(size: int, seed: int) -> SplitArrays:
    random = np.random.default_rng(seed)
    tokens = [random.integers(4, V, random.integers(1, 30)).tolist() for _ in range(size)]
    labels = [sorted(random.choice(L, random.integers(1, 4), replace=False).tolist())
              for _ in range(size)]  # fmt: skip
    ids = [f"doc{seed}-{row}" for row in range(size)]
    return SplitArrays(csr_from_lists(tokens), csr_from_lists(labels), ids)


def corpus() -> Corpus:
    train = split(13, 1)
    frequency = torch.bincount(torch.from_numpy(train.labels.values).long(), minlength=L)
    return Corpus(train, split(9, 2), frequency, SEGMENTATION)


def model(**decoder: Any) -> PlantForMultiLabelClassification:
    torch.manual_seed(3)
    made = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": ["learned", "planted"], "planted_k": 4, **decoder},
            ranker={"width": 5}, label_count=L, special_ids=[0, 2, 3],
        )
    )  # fmt: skip
    for rows in made.labels.fields.values():
        torch.nn.init.normal_(rows)
    return made.eval()


def task(
    rank: int = 0, world: int = 1, loss: LossConfig | None = None, **train: Any
) -> ClassifyTask:
    settings = TrainConfig(documents_per_batch=5, loss=loss or LossConfig(), **train)
    context = RunContext(rank=rank, world=world, seed=7)
    return ClassifyTask(model(), corpus(), settings, EvaluateConfig(ks=(1, 3)), context)


def logits_of(made: ClassifyTask, tokens: np.ndarray[Any, Any]) -> torch.Tensor:
    """The model's logits for one document, its segments cut by hand."""
    stride, content = 6, 8
    starts = range(0, max(1, len(tokens) - (content - stride)), stride)
    pieces = [tokens[start : start + content] for start in starts]
    width = max(len(piece) for piece in pieces) + 2
    ids = torch.zeros(1, len(pieces), width, dtype=torch.int64)
    keep = torch.zeros(1, len(pieces), width, dtype=torch.bool)
    for number, piece in enumerate(pieces):
        ids[0, number, : len(piece) + 2] = torch.tensor([2, *piece.tolist(), 3])
        keep[0, number, (1 if number == 0 else 3) : len(piece) + 1] = True
    with torch.no_grad():
        logits: torch.Tensor = made.classifier(ids, ids != 0, keep).logits[0]
    return logits


def gold_of(arrays: SplitArrays, row: int) -> torch.Tensor:
    gold = torch.zeros(L)
    gold[torch.from_numpy(arrays.labels.row(row)).long()] = 1
    return gold


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_cross_entropy_over_labels_and_documents(reduction: str) -> None:
    made = task(loss=LossConfig(reduction=reduction))
    train = made.corpus.train
    seen = []
    for batch in made.batches(0, 0):
        rows = batch.rows.tolist()
        seen += rows
        each = [
            binary_cross_entropy_with_logits(
                logits_of(made, train.tokens.row(row)), gold_of(train, row), reduction=reduction
            )
            for row in rows
        ]
        with torch.no_grad():
            found = made.loss(made.classifier, batch)
        assert found.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    assert sorted(seen) == list(range(13))
    assert made.batches_per_epoch(0) == 3


def test_tokens_are_dropped_in_training_alone() -> None:
    made, plain = task(drop_tokens=0.5), task()
    batch = next(iter(made.batches(0, 0)))
    torch.manual_seed(11)
    with torch.no_grad():
        found = made.loss(made.classifier, batch)
        torch.manual_seed(11)
        expected = plain.loss(plain.classifier, batch.thinned(0.5))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert made.validate(made.model) == plain.validate(plain.model)


@pytest.mark.parametrize("branches", [["learned"], ["learned", "named"]], ids=str)
def test_labels_never_seen_are_charged_unless_names_speak_for_them(branches: list[str]) -> None:
    data = corpus()
    rarer = Corpus(data.train, data.validation, data.train_frequency.clone(), SEGMENTATION)
    # As if label 4 had no document: it is gold nowhere in the batch that is read.
    rarer.train_frequency[4] = 0
    settings = TrainConfig(documents_per_batch=1)
    made = ClassifyTask(model(branches=branches), rarer, settings, EvaluateConfig(ks=(1, 3)),
                        RunContext(seed=7))  # fmt: skip
    for batch in made.batches(0, 0):
        [row] = batch.rows.tolist()
        gold = gold_of(rarer.train, row)
        if gold[4] > 0:
            continue
        terms = binary_cross_entropy_with_logits(
            logits_of(made, rarer.train.tokens.row(row)), gold, reduction="none"
        )
        charged = terms.sum() - (terms[4] if "named" in branches else 0)
        with torch.no_grad():
            found = made.loss(made.classifier, batch)
        assert found.item() == pytest.approx(charged.item() / L, rel=1e-5)


@pytest.mark.parametrize("kind", ["bce", "focal", "asl", "softmax"])
def test_a_label_never_seen_is_as_if_it_were_not_there(kind: str) -> None:
    data = corpus()
    rarer = Corpus(data.train, data.validation, data.train_frequency.clone(), SEGMENTATION)
    rarer.train_frequency[4] = 0
    loss = LossConfig(kind=kind, reduction="sum")
    settings = TrainConfig(documents_per_batch=1, loss=loss)
    made = ClassifyTask(model(branches=["learned", "named"]), rarer, settings,
                        EvaluateConfig(ks=(1, 3)), RunContext(seed=7))  # fmt: skip
    others = torch.tensor([0, 1, 2, 3, 5])
    for batch in made.batches(0, 0):
        [row] = batch.rows.tolist()
        gold = gold_of(rarer.train, row)
        if gold[4] > 0:
            continue
        made.classifier.zero_grad()
        found = made.loss(made.classifier, batch)
        found.backward()
        logits = logits_of(made, rarer.train.tokens.row(row))[others][None]
        columns = gold[others].nonzero()[:, 0]
        expected = multilabel_loss(
            logits, torch.tensor([0, len(columns)]), columns, torch.ones(1), loss
        )
        assert found.item() == pytest.approx(expected.item() * len(others), rel=1e-5)
        slopes = [one.grad for one in made.classifier.parameters() if one.grad is not None]
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
        assert made.classifier.labels.fields["bias"].grad[4].item() == 0


def test_positives_weigh_as_their_labels_do() -> None:
    made = task(loss=LossConfig(label_weights="propensity"))
    train, frequency = made.corpus.train, made.corpus.train_frequency.double()
    weights = 1 + (np.log(13) - 1) * 2.5**0.55 * torch.exp(-0.55 * torch.log(frequency + 1.5))
    [batch, *_] = made.batches(0, 0)
    each = []
    for row in batch.rows.tolist():
        gold = gold_of(train, row)
        terms = binary_cross_entropy_with_logits(
            logits_of(made, train.tokens.row(row)), gold, reduction="none"
        )
        each.append((terms * torch.where(gold > 0, weights.float(), 1.0)).mean())
    with torch.no_grad():
        found = made.loss(made.classifier, batch)
    assert found.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(kind="asl", reduction="sum")])
@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_over_ranks_is_the_loss_of_one_process(loss: LossConfig, world: int) -> None:
    """13 documents in batches of 5: the last batch of 3 leaves no rank without a filler."""
    alone = task(loss=loss)
    ranks = [task(rank, world, loss=loss) for rank in range(world)]
    for one, *parts in zip(
        alone.batches(0, 0), *(each.batches(0, 0) for each in ranks), strict=True
    ):
        with torch.no_grad():
            expected = alone.loss(alone.classifier, one)
            shares = [each.loss(each.classifier, part)
                      for each, part in zip(ranks, parts, strict=True)]  # fmt: skip
        assert torch.stack(shares).mean().item() == pytest.approx(expected.item(), rel=1e-5)
        rows = [row for part in parts for row in part.rows.tolist() if row >= 0]
        assert sorted(rows) == sorted(one.rows.tolist())
        assert {each.size(part).documents for each, part in zip(ranks, parts, strict=True)} == {
            alone.size(one).documents
        }


def test_gradients_of_the_ranks_add_up() -> None:
    def gradient(made: ClassifyTask, batch: Any) -> torch.Tensor:
        made.classifier.zero_grad()
        made.loss(made.classifier, batch).backward()
        found = made.classifier.labels.fields["boost"].grad
        assert found is not None
        return found.clone()

    alone, ranks = task(), [task(rank, 2) for rank in range(2)]
    expected = gradient(alone, next(iter(alone.batches(0, 0))))
    shares = [gradient(each, next(iter(each.batches(0, 0)))) for each in ranks]
    assert torch.allclose(torch.stack(shares).mean(0), expected, atol=1e-6)


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    made = task()
    straight = [batch.rows.tolist() for batch in made.batches(1, 0)]
    assert [batch.rows.tolist() for batch in made.batches(1, 2)] == straight[2:]
    assert straight != [batch.rows.tolist() for batch in made.batches(0, 0)]


def test_a_batch_is_known_by_its_documents() -> None:
    made = task()
    [batch, *_] = made.batches(0, 0)
    assert made.identify(batch) == [f"doc1-{row}" for row in batch.rows.tolist()]
    lengths = made.corpus.train.tokens.lengths()[batch.rows.numpy()]
    segments = SEGMENTATION.counts(lengths)
    # Two special tokens a segment, and the overlap read twice.
    tokens = int((lengths + 2 * segments + 2 * (segments - 1)).sum())
    assert made.size(batch) == (5.0, tokens)


def test_validation_is_that_of_scikit_learn() -> None:
    made = task()
    arrays = made.corpus.validation
    metrics = made.validate(made.classifier)
    scores = torch.stack([logits_of(made, arrays.tokens.row(row)) for row in range(9)]).numpy()
    gold = torch.stack([gold_of(arrays, row) for row in range(9)]).numpy()
    mean = np.mean([average_precision_score(g, s) for g, s in zip(gold, scores, strict=True)])
    assert metrics["map"] == pytest.approx(mean, abs=1e-6)
    best = scores.argsort(1)[:, ::-1][:, :3]
    assert metrics["p@3"] == pytest.approx(np.take_along_axis(gold, best, 1).mean(), abs=1e-6)
    tuned, again, calibration = made.tune(made.classifier)
    assert calibration is None
    assert again == metrics
    threshold = tuned.global_score
    f1 = f1_score(gold, scores >= np.float32(threshold), average="micro")
    assert metrics["micro_f1"] == pytest.approx(f1, abs=1e-6)
    # Tuned: no other threshold does better.
    others = [f1_score(gold, scores >= t, average="micro") for t in np.unique(scores)]
    assert f1 == pytest.approx(max(others), abs=1e-6)
    assert set(metrics) == set(made.metric_names)


@pytest.mark.parametrize("gates", ["sum", "learned", "shared"])
def test_every_parameter_that_trains_is_in_one_group(gates: str) -> None:
    made = model(gates=gates)
    rates = OptimConfig(
        learning_rate=0.5, ranker_learning_rate=0.25, encoder_learning_rate=0.125, layer_decay=0.5,
        weight_decay=0.1, rows_weight_decay=0.2,
    )  # fmt: skip
    one = ClassifyTask(made, corpus(), TrainConfig(optim=rates), EvaluateConfig(), RunContext())
    groups = one.parameter_groups()
    check_groups(made, groups)
    names = {id(p): name for name, p in made.named_parameters()}
    by_name = {names[id(p)]: group for group in groups for p in group.parameters}
    assert by_name["decoder.labels.fields.boost"].learning_rate == 0.5
    assert by_name["decoder.labels.fields.boost"].weight_decay == 0.2
    assert by_name["decoder.labels.fields.factor"].learning_rate == 0.25
    assert by_name["decoder.scorer.factors"].learning_rate == 0.25
    block = next(name for name in by_name if "layer.0" in name and name.endswith("dense.weight"))
    assert (by_name[block].learning_rate, by_name[block].weight_decay) == (0.125, 0.1)
    gate = {"shared": "decoder.gate", "learned": "decoder.labels.fields.gate"}.get(gates)
    assert gate is None or by_name[gate].learning_rate == 0.5


@pytest.mark.parametrize(("asked", "rate"), [(0.75, 0.75), (None, 0.5)])
def test_what_a_name_counts_has_a_rate_of_its_own(asked: float | None, rate: float) -> None:
    made = model(branches=["learned", "named"])
    rates = OptimConfig(learning_rate=0.5, names_learning_rate=asked)
    one = ClassifyTask(made, corpus(), TrainConfig(optim=rates), EvaluateConfig(), RunContext())
    groups = {group.name: group for group in one.parameter_groups()}
    check_groups(made, list(groups.values()))
    assert made.decoder.names is not None
    assert set(groups["names"].parameters) == set(made.decoder.names.parameters())
    assert (groups["names"].learning_rate, groups["rows"].learning_rate) == (rate, 0.5)


def test_a_frozen_encoder_and_a_frozen_ranker_are_in_no_group() -> None:
    made = model(freeze_ranker=True)
    made.labels.fields["factor"].requires_grad_(False)
    frozen = TrainConfig(optim=OptimConfig(freeze_encoder=True))
    one = ClassifyTask(made, corpus(), frozen, EvaluateConfig(), RunContext())
    groups = one.parameter_groups()
    check_groups(made, groups)
    assert [group.name for group in groups] == ["rows"]
    assert not any(p.requires_grad for p in made.encoder.parameters())


def test_kept_states_and_tables_cost_no_products() -> None:
    one = task()
    tables = [part for part in (one.classifier.decoder.bag, one.classifier.decoder.scorer) if part]
    assert list(one.idle()) == tables
    one.corpus = replace(
        one.corpus, train=replace(one.corpus.train, states=cast(HiddenStates, object()))
    )
    assert list(one.idle()) == [one.classifier.encoder, *tables]


def test_without_validation_there_is_no_metric() -> None:
    empty = SplitArrays(csr_from_lists([]), csr_from_lists([]), [])
    full = corpus()
    bare = Corpus(full.train, empty, full.train_frequency, SEGMENTATION)
    one = ClassifyTask(model(), bare, TrainConfig(), EvaluateConfig(), RunContext())
    assert one.metric_names == []


def with_ignored(part: SplitArrays, seed: int) -> tuple[SplitArrays, np.ndarray[Any, Any]]:
    """The same documents with ignored pairs, and those as a dense mask."""
    mask = np.random.default_rng(seed).random((part.tokens.size, L)) < 0.3
    return replace(part, ignored=csr_from_lists([row.nonzero()[0].tolist() for row in mask])), mask


def test_ignored_pairs_weigh_nothing_in_the_loss_of_any_rank() -> None:
    whole = task()
    train, mask = with_ignored(whole.corpus.train, 4)
    whole.corpus = replace(whole.corpus, train=train)
    batch = next(iter(whole.batches(0, 0)))
    found = whole.loss(whole.model, batch)
    rows = batch.rows.tolist()
    logits = torch.stack([logits_of(whole, np.array(train.tokens.row(row))) for row in rows])
    targets = torch.zeros_like(logits)
    for row, document in enumerate(rows):
        targets[row, train.labels.row(document).tolist()] = 1.0
    kept = torch.from_numpy(~mask[rows]).float()
    terms = binary_cross_entropy_with_logits(logits, targets, reduction="none") * kept
    assert found.item() == pytest.approx((terms.sum() / L / batch.documents).item(), rel=1e-5)
    # Two ranks, the last batch with fillers: their mean is the loss of one.
    shares = [task(rank, 2) for rank in range(2)]
    for one in shares:
        one.corpus = replace(one.corpus, train=train)
    for step in range(whole.batches_per_epoch(0)):
        alone = next(iter(whole.batches(0, step)))
        parts = [one.loss(one.model, next(iter(one.batches(0, step)))).item() for one in shares]
        assert np.mean(parts) == pytest.approx(whole.loss(whole.model, alone).item(), rel=1e-5)


def test_ignored_pairs_are_out_of_the_validation_ranking() -> None:
    made = task()
    split, mask = with_ignored(made.corpus.validation, 5)
    predictions = made.judge(made.model, split).predictions()
    # Documents come back by length, so that each is known by its gold labels that count.
    found = [
        (predictions.gold.ids[start:stop].tolist(), sorted(ranked[ranked >= 0].tolist()))
        for start, stop, ranked in zip(
            predictions.gold.offsets, predictions.gold.offsets[1:], predictions.label_ids,
            strict=False,
        )
    ]  # fmt: skip
    expected = [
        ([one for one in split.labels.row(n).tolist() if not mask[n, one]],
         (~mask[n]).nonzero()[0].tolist())
        for n in range(9)
    ]  # fmt: skip
    assert sorted(found) == sorted(expected)
