from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plant_dist.config.schema import EvaluateConfig, LossConfig, ShortlistConfig, TrainConfig
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.errors import ArtifactError, TrainingError
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.tracking import Tracker
from plant_dist.train import shard_build
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.hooks import Hook, Report
from plant_dist.train.label_vectors import LabelTexts, VectorMaker
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.refresh import IndexRefresh
from plant_dist.train.shortlists import Probe, Shortlists, link_files
from plant_dist.train.splits import Corpus, SplitArrays
from plant_dist.train.states import StatesCache

L, V = 40, 128
SEGMENTATION = Segmentation(16, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
CONFIG = ShortlistConfig(
    labels_per_document=8, candidates=12, refresh_steps=6, swap_after=2, width=16, probe_documents=9
)  # fmt: skip


class Words:
    """A tokenizer whose words are numbers."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def split(size: int, seed: int) -> SplitArrays:
    random = np.random.default_rng(seed)
    # Label 39 is never gold: it is unseen.
    labels = [sorted(random.choice(L - 1, 2, replace=False).tolist()) for _ in range(size)]
    tokens = [[4 + 2 * one for one in row] + random.integers(4, V, 5).tolist() for row in labels]
    ids = [f"doc{row}" for row in range(size)]
    return SplitArrays(csr_from_lists(tokens), csr_from_lists(labels), ids)


def made(
    folder: Path, config: ShortlistConfig = CONFIG, ignored: Csr | None = None
) -> tuple[ClassifyTask, Shortlists]:
    torch.manual_seed(3)
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": ["learned", "planted"], "planted_k": 4, "dropout": 0.1},
            ranker={"width": 5}, label_count=L, special_ids=[0, 2, 3],
            retriever={"vectors": config.vectors, "width": 16, "temperature": 0.1,
                       "candidates": config.candidates},
        )
    )  # fmt: skip
    train, context = split(48, 1), RunContext(seed=7)
    train = replace(train, ignored=ignored)
    frequency = torch.bincount(torch.from_numpy(train.labels.values).long(), minlength=L)
    texts = LabelTexts(frequency.numpy(), [f"{4 + 2 * one}" for one in range(L)], Words())  # type: ignore[arg-type]
    maker = VectorMaker(model, texts, SEGMENTATION, context)
    validation = split(9, 2)
    probe = Probe(validation.tokens, validation.labels).evenly(config.probe_documents)
    lists = Shortlists(maker, train.tokens, probe, config, folder / "shortlists", "abc")
    settings = TrainConfig(documents_per_batch=6, loss=LossConfig(reduction="sum"))
    corpus = Corpus(train, validation, frequency, SEGMENTATION)
    return ClassifyTask(model, corpus, settings, EvaluateConfig(ks=(1, 3)), context, lists), lists


def test_documents_are_read_from_kept_states(tmp_path: Path) -> None:
    task, lists = made(tmp_path, replace(CONFIG, vectors="learned"))
    model, tokens = task.classifier, task.corpus.train.tokens
    maker, encoder = lists._maker, model.encoder
    cache = StatesCache(tmp_path, "fp16", "weights", encoder, SEGMENTATION, RunContext())
    whole = Probe(tokens, task.corpus.train.labels, cache.open(tokens))
    expected = maker.documents("learned", tokens)
    # From here on nobody may ask the encoder.
    encoder.forward = None  # type: ignore[method-assign,assignment]
    for rank in range(2):
        part = whole.evenly(10).share(rank, 2)
        rows = [tokens.size * one // 10 for one in range(rank, 10, 2)]
        found = maker.documents("learned", part.tokens, part.states)
        np.testing.assert_allclose(found, expected[rows], rtol=1e-2, atol=2e-3)


class Losses(Hook):
    def __init__(self, stop: int | None = None) -> None:
        self.losses: dict[int, float] = {}
        self._stop = stop

    def reported(self, loop: Any, report: Report) -> None:
        self.losses[report.step] = report.losses[-1]

    def stepped(self, loop: Any) -> None:
        if loop.state.step == self._stop:
            raise KeyboardInterrupt


def train(
    folder: Path, config: ShortlistConfig = CONFIG, stop: int | None = None, **settings: Any
) -> tuple[Losses, Shortlists]:
    task, lists = made(folder, config)
    losses = Losses(stop)
    trainer = Trainer(
        task,
        LoopSettings(epochs=3, best_metric="map", checkpoint_steps=7, log_steps=1, **settings),
        RunContext(seed=7), folder / "checkpoints", Tracker(folder / "curves", RunContext()),
        hooks=[losses, IndexRefresh(lists, task.corpus.train_frequency.numpy())],
        attachments=[lists],
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        trainer.run()
    trainer.tracker.close()
    return losses, lists


def curves(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder / "curves"))
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


def test_indices_are_made_anew_and_exchanged_at_known_steps(tmp_path: Path) -> None:
    _, lists = train(tmp_path)
    assert lists.index is not None
    assert lists.index.about.step == 18
    # One shard: for one process, while three would want one each, and build anew.
    assert lists._fits(lists.index.folder)
    lists.context = RunContext(world=3)
    assert not lists._fits(lists.index.folder)
    assert [path.name for path in (tmp_path / "shortlists").iterdir()] == ["index-00000018"]
    drawn = curves(tmp_path)
    assert list(drawn["9_shortlist/recall"]) == [0, 8, 14, 20]
    assert list(drawn["9_shortlist/build_seconds"]) == [0, 8, 14, 20]
    assert drawn["9_shortlist/overlap_with_exact"][0] == 1.0
    assert drawn["9_shortlist/search_ms_per_document"][8] > 0
    stale = drawn["9_shortlist/stale_steps"]
    assert [stale[step] for step in (1, 7, 8, 9, 13)] == [1, 7, 8, 3, 7]
    bands = [tag for tag in drawn if tag.startswith("9_shortlist_recall/")]
    assert "9_shortlist_recall/1-5" in bands
    # Learned vectors take over once they find more of the gold labels, and stay.
    taken = list(drawn["9_shortlist/vectors_learned"].values())
    assert taken == sorted(taken)


@pytest.mark.parametrize("stop", [8, 15])
def test_a_run_that_was_killed_goes_on_exactly(tmp_path: Path, stop: int) -> None:
    """Checkpoints of steps 7 and 14: one with an index that waits to be exchanged."""
    whole, _ = train(tmp_path / "whole")
    before, _ = train(tmp_path / "cut", stop=stop)
    after, _ = train(tmp_path / "cut")
    assert max(before.losses) <= stop < max(after.losses) == 24
    assert min(after.losses) == stop // 7 * 7 + 1
    assert {**before.losses, **after.losses} == whole.losses


def test_what_recall_is_compared_with_is_gone_on_with(tmp_path: Path) -> None:
    _, lists = made(tmp_path)
    lists.rebuild(0)
    assert lists.fresh_recall is None
    lists.fresh_recall = 0.625
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    lists.write(checkpoint)
    _, again = made(tmp_path / "again")
    again.read(checkpoint)
    assert again.fresh_recall == 0.625
    # Of other ranks the index is made anew, and then measured anew.
    again.rebuild(3)
    assert again.fresh_recall is None


def test_an_index_may_be_built_twice_at_one_step(tmp_path: Path) -> None:
    """As where a run is killed at its very end, and gone on with by other ranks."""
    _, lists = made(tmp_path)
    lists.rebuild(24)
    lists.rebuild(24)
    assert lists.index is not None
    assert (lists.index.folder / "about.json").is_file()
    place = tmp_path / "saved"
    place.mkdir()
    link_files(lists.index.folder, place)
    assert len(list(place.iterdir())) == 2


def test_one_that_is_under_way_is_not_begun_again(tmp_path: Path) -> None:
    """Recall falls at step 5, so that an index is begun, and the one of step 6 is left out."""
    task, lists = made(tmp_path, replace(CONFIG, refresh_drop=0.01, swap_after=3))
    begun: list[int] = []
    begin = lists.begin

    def noted(step: int) -> None:
        begun.append(step)
        begin(step)

    lists.begin = noted  # type: ignore[method-assign]
    refresh = IndexRefresh(lists, task.corpus.train_frequency.numpy())

    class Falls(Hook):
        def stepped(self, loop: Any) -> None:
            if loop.state.step in (4, 5):
                refresh.validated(loop, {"shortlist_recall": 0.9 - 0.1 * loop.state.step})

    trainer = Trainer(
        task, LoopSettings(epochs=1, max_steps=8, best_metric="map", log_steps=1),
        RunContext(seed=7), tmp_path / "checkpoints", hooks=[Falls(), refresh], attachments=[lists],
    )  # fmt: skip
    trainer.run()
    assert begun == [0, 5]
    assert lists.index is not None
    assert lists.index.about.step == 5


def test_retrieval_learns(tmp_path: Path) -> None:
    """On the documents trained on: there are too few to learn of others from."""
    config = replace(CONFIG, retrieval_weight=5.0, vectors="learned")
    task, lists = made(tmp_path, config)
    lists._probe = Probe(task.corpus.train.tokens, task.corpus.train.labels)
    before = lists.rebuild(0).recall
    optimizer = torch.optim.Adam(task.classifier.parameters(), 0.02)
    for epoch in range(15):
        for batch in task.batches(epoch, 0):
            optimizer.zero_grad()
            task.loss(task.classifier.train(), batch).backward()
            optimizer.step()
    after = lists.rebuild(48)
    assert after.about.vectors == "learned"
    assert after.recall > before + 0.15


def test_a_build_that_fails_leaves_the_index_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, lists = made(tmp_path)
    lists.rebuild(0)

    def full(*arguments: Any) -> None:
        raise ArtifactError("no space left")

    monkeypatch.setattr(shard_build, "write_shard", full)
    lists.begin(6)
    assert lists.swap() is None
    assert lists.index is not None
    assert lists.index.about.step == 0
    assert "the index of step 6 was not built" in caplog.text
    assert "no space left" in caplog.text
    _, fresh = made(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"no index of labels could be built.*no space left"):
        fresh.rebuild(0)


def test_an_index_below_the_recall_asked_for_is_replaced_by_exact_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Search settings named in the config are not tuned, so one list may be too few."""
    config = replace(CONFIG, index="IVF8,Flat", search="nprobe=1", index_recall=0.99)
    _, lists = made(tmp_path, config)
    measured = lists.rebuild(0)
    assert measured.about.shards[0].factory == "Flat"
    assert measured.overlap == 1.0
    assert "below shortlist.index_recall 0.990; searching exactly instead" in caplog.text
    _, tuned = made(tmp_path / "tuned", replace(config, search=None))
    shard = tuned.rebuild(0).about.shards[0]
    assert shard.factory == "IVF8,Flat"
    assert shard.search.startswith("nprobe=")


def test_recall_below_the_floor_stops_after_saving(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"below shortlist\.recall_floor 0\.999.*saved in"):
        train(tmp_path, replace(CONFIG, recall_floor=0.999))
    assert (tmp_path / "checkpoints" / "step-00000008" / "shortlist.about.json").is_file()


def test_an_only_index_below_the_floor_stops_before_the_first_step(tmp_path: Path) -> None:
    config = replace(CONFIG, refresh_steps=None, recall_floor=1.0, candidates=1)
    with pytest.raises(TrainingError, match=r"index of step 0 .* below shortlist.recall_floor 1.0"):
        train(tmp_path, config)


def test_an_index_cut_short_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    train(tmp_path, stop=8)
    [file] = (tmp_path / "checkpoints" / "step-00000007").glob("shortlist.labels*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="none of its 1 checkpoints is readable"):
        train(tmp_path)


def test_unseen_labels_have_the_vectors_of_their_texts(tmp_path: Path) -> None:
    task, lists = made(tmp_path, replace(CONFIG, vectors="ranker"))
    lists.rebuild(0)
    maker = lists._maker
    rows = maker.labels("ranker", 0, L)(0, L)
    said = maker.retriever.text_vectors(
        None, torch.tensor([[[4 + 2 * 39]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    )
    assert rows[39] == pytest.approx(said[0].numpy(), abs=1e-5)
    own = maker.retriever.label_vectors("ranker", task.classifier.labels.fields).numpy()
    seen = task.corpus.train_frequency.numpy() > 0
    assert rows[seen] == pytest.approx(own[seen], abs=1e-6)
    assert not np.allclose(rows[39], own[39])


@pytest.mark.parametrize("frozen", [False, True])
def test_texts_of_unseen_labels_are_read_as_planting_reads_them(
    tmp_path: Path, frozen: bool
) -> None:
    """With special tokens, as the rows of seen labels started: else the two do not compare."""
    task, lists = made(tmp_path)
    model, maker = task.classifier, lists._maker
    model.eval()
    model.encoder.requires_grad_(not frozen)
    rows = maker.labels("learned", 0, L)(0, L)
    hidden, _, _ = model.encode(
        torch.tensor([[[2, 4 + 2 * 39, 3]]]), torch.ones(1, 1, 3, dtype=torch.bool), None
    )
    with torch.no_grad():
        tower = model.retriever.learned
        framed = tower.frame @ hidden[0, 0].mean(0)
        assert rows[39] == pytest.approx((framed / framed.norm()).numpy(), abs=2e-3)
        # What documents are projected by is no part of a label.
        tower.projection.weight.neg_()
        again = maker.labels("learned", 0, L)(0, L)
        assert again[39] == pytest.approx(rows[39], abs=1e-6)
        for weight in model.encoder.parameters():
            weight.mul_(1.5)
    moved = maker.labels("learned", 0, L)(0, L)
    assert np.allclose(moved[39], again[39], atol=1e-6) == frozen


def test_both_sides_of_learned_retrieval_have_a_rate_of_their_own(tmp_path: Path) -> None:
    task, _ = made(tmp_path)
    rates = {id(p): g.learning_rate for g in task.parameter_groups() for p in g.parameters}
    model, optim = task.classifier, TrainConfig().optim
    assert model.retriever is not None
    for one in (*model.retriever.parameters(), model.labels.fields["retrieval"]):
        assert rates[id(one)] == optim.retriever_learning_rate
    other = replace(TrainConfig(), optim=replace(optim, learning_rate=0.5))
    task._train = other
    rates = {id(p): g.learning_rate for g in task.parameter_groups() for p in g.parameters}
    assert rates[id(model.labels.fields["retrieval"])] == optim.retriever_learning_rate
    assert rates[id(model.labels.fields["boost"])] == 0.5


def test_ignored_pairs_are_never_considered(tmp_path: Path) -> None:
    ignored = csr_from_lists([sorted({0, 1, row % L}) for row in range(48)])
    task, lists = made(tmp_path, ignored=ignored)
    lists.rebuild(0)
    asked: list[torch.Tensor] = []
    batch = next(iter(task.batches(0, 0)))
    model = task.classifier
    score = model.score
    model.score = lambda *given: asked.append(given[3].label_ids) or score(*given)  # type: ignore[method-assign]
    with torch.no_grad():
        task.loss(model, batch)
    gold = [set(task.corpus.train.labels.row(row).tolist()) for row in batch.rows.tolist()]
    for row, ids, right in zip(batch.rows.tolist(), asked[0], gold, strict=True):
        left_out = set(ignored.row(row).tolist())
        # Padding is label 0 and there is none here: more labels than places.
        assert not set(ids.tolist()) & left_out
        assert right - left_out <= set(ids.tolist())


def test_more_gold_labels_than_places_are_sampled_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, lists = made(tmp_path, replace(CONFIG, labels_per_document=2))
    lists.rebuild(0)
    for batch in task.batches(0, 0):
        with torch.no_grad():
            assert torch.isfinite(task.loss(task.classifier, batch))
    said = [one for one in caplog.messages if "a sample of them is taken" in one]
    assert len(said) == 1
    assert "a document has 2 gold labels, and shortlist.labels_per_document 2 has room" in said[0]


def test_what_tensorboard_and_about_say_is_what_was_built(tmp_path: Path) -> None:
    _, lists = made(tmp_path)
    measured = lists.rebuild(5)
    about = json.loads((lists.index.folder / "about.json").read_text())  # type: ignore[union-attr]
    assert (about["labels"], about["step"], about["label_space"]) == (L, 5, "abc")
    assert about["vectors"] == measured.about.vectors
    assert measured.recall == measured.found.mean()
    assert len(measured.gold) == 18
