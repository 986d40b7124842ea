"""Training the planted classifier: document batches, the multi-label loss, validation metrics.

Must not know how the model was planted or where the dataset lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plant_dist.config.schema import EvaluateConfig, TrainConfig
from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.logs import progress
from plant_dist.metrics.calibration import Calibration
from plant_dist.metrics.evaluator import Evaluator, Results
from plant_dist.metrics.thresholds import Thresholds
from plant_dist.models.averaged import AveragedClassifier
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.models.retriever import FIELD
from plant_dist.objectives.multilabel import label_weights, multilabel_loss
from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.train.loop import BatchSize
from plant_dist.train.optim import ParameterGroup, encoder_groups
from plant_dist.train.refresh import RECALL
from plant_dist.train.scoring import AllLabels, Retrieved, Scoring
from plant_dist.train.shortlist_loss import ShortlistLoss
from plant_dist.train.shortlists import Shortlists
from plant_dist.train.splits import Corpus, SplitArrays


class Judged(NamedTuple):
    """What validation gives: decision rules, `metric_names`, and the calibration if any."""

    thresholds: Thresholds
    metrics: Mapping[str, float]
    calibration: Calibration | None


class ClassifyTask:
    """Trains a `PlantForMultiLabelClassification`; see `train.loop.Task`.

    Args:
        shortlists: where documents' candidate labels come from; None considers all labels.

    Attributes:
        corpus: what is read. loss_config, evaluate_config: what it learns by and how it is
            judged. context: this process's place.
    """

    name = "classifier"

    def __init__(
        self,
        model: PlantForMultiLabelClassification,
        corpus: Corpus,
        train: TrainConfig,
        evaluate: EvaluateConfig,
        context: RunContext,
        shortlists: Shortlists | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.classifier = model
        self.corpus = corpus
        self._train, self.evaluate_config, self.context = train, evaluate, context
        self.loss_config = train.loss
        lengths = corpus.train.tokens.lengths()
        # Every rank plans the same global batches and takes its slice, so none need talk.
        self._sampler = BatchSampler(
            lengths, corpus.segmentation,
            documents_per_batch=train.documents_per_batch,
            tokens_per_batch=train.tokens_per_batch,
            bucket_batches=train.bucket_batches,
            seed=context.seed, rank=context.rank, world=context.world,
        )  # fmt: skip
        # With the propensities of the evaluation, so that loss and PSP mean the same.
        self._positive_weights = label_weights(
            train.loss, corpus.train_frequency, corpus.train.tokens.size,
            (evaluate.propensity_a, evaluate.propensity_b),
        )  # fmt: skip
        if self._positive_weights is not None:
            # Once: L numbers, which a step would wait for.
            self._positive_weights = self._positive_weights.to(context.device)
        # Scored by their names alone, labels without a training document learn nothing from being
        # always wrong; it would only teach what a name is worth to all labels badly.
        unseen = corpus.train_frequency == 0
        named = "named" in model.config.model_section().branches
        spared = named and bool(unseen.any())
        self._unseen = unseen.to(context.device) if spared else None
        self._shortlists = shortlists
        self._epoch = 0
        self._shortlist_loss: ShortlistLoss | None = None
        if shortlists is not None:
            frequency, spared = corpus.train_frequency.numpy(), self._unseen is not None
            self._shortlist_loss = ShortlistLoss(
                shortlists, train.loss, frequency, context, seen_only=spared
            )
        # What the last validation found, for hooks that draw more than its metrics.
        self.validated: tuple[Evaluator, Results] | None = None
        self.metric_names: Sequence[str] = (
            self._metric_names() if corpus.validation.tokens.size else []
        )

    def _metric_names(self) -> list[str]:
        # An evaluator without documents names its metrics: they follow from the cut-offs.
        probe = evaluator_for(self.corpus, self.evaluate_config, documents=1)
        recall = [] if self._shortlists is None else [RECALL]
        return [*probe.ranking(), "micro_f1", "macro_f1", *recall]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return groups: label rows and gates; names; ranker; bag; encoder blocks by depth."""
        optim = self._train.optim
        rows = dict(self.classifier.labels.fields.items())
        # Factors are planted: they learn at the ranker's rate, and freeze with it.
        factor = [rows.pop("factor")] if "factor" in rows else []
        scorer = self.classifier.decoder.scorer
        ranker = [*factor, *(scorer.parameters() if scorer else [])]
        # Shared gates are the decoder's one parameter of this name; learned gates are rows.
        gate = [p for n, p in self.classifier.decoder.named_parameters() if n == "gate"]
        matcher = self.classifier.decoder.names
        names = _trainable(matcher.parameters()) if matcher else []
        # What is in no group must ask for no gradient, or the loop refuses it.
        if optim.freeze_encoder:
            self.classifier.encoder.requires_grad_(False)
        bag = self.classifier.decoder.bag
        factors = _trainable(bag.parameters()) if bag else []
        retriever = self.classifier.retriever
        towers = _trainable(retriever.parameters()) if retriever else []
        # Both sides of an inner product learn at one rate.
        retrieved = [rows.pop(FIELD)] if FIELD in rows else []
        groups = [
            ParameterGroup("rows", _trainable([*rows.values(), *gate]), optim.learning_rate,
                           optim.rows_weight_decay, rowwise=optim.rowwise),
            ParameterGroup("names", names, optim.names_learning_rate or optim.learning_rate),
            ParameterGroup("ranker", _trainable(ranker), optim.ranker_learning_rate,
                           optim.rows_weight_decay),
            ParameterGroup("bag", factors, optim.bag_learning_rate or optim.learning_rate,
                           optim.bag_weight_decay),
            ParameterGroup("retriever", towers, optim.retriever_learning_rate,
                           optim.rows_weight_decay),
            ParameterGroup("retrieval", _trainable(retrieved), optim.retriever_learning_rate,
                           optim.rows_weight_decay, rowwise=optim.rowwise),
            *encoder_groups(self.classifier.encoder.depths(), optim),
        ]  # fmt: skip
        # An optimizer takes no empty group; a frozen ranker leaves one.
        return [group for group in groups if group.parameters]

    def idle(self) -> Sequence[nn.Module]:
        """Return the encoder where its hidden states are kept, and what is looked up by tokens."""
        kept = [] if self.corpus.train.states is None else [self.classifier.encoder]
        decoder = self.classifier.decoder
        return [*kept, *(table for table in (decoder.bag, decoder.scorer) if table is not None)]

    def batches_per_epoch(self, epoch: int) -> int:
        """Return the number of global batches of an epoch."""
        return self._sampler.count(epoch)

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        """Return this rank's batches of an epoch from a position on."""
        train, segmentation = self.corpus.train, self.corpus.segmentation
        # Random negatives differ from epoch to epoch.
        self._epoch = epoch
        return batch_loader(
            train.tokens, train.labels, Collator(segmentation), self._sampler, epoch, start,
            workers=self._train.loader_workers, pin_memory=self.context.device.type == "cuda",
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss; the mean over ranks is the mean over the global batch."""
        train, device = self.corpus.train, self.context.device
        hidden, ignored = train.hidden(batch, device), train.ignored_of(batch, device)
        batch = batch.to(self.context.device)
        if self._train.drop_tokens:
            batch = batch.thinned(self._train.drop_tokens)
        if self._shortlist_loss is not None:
            weights = self._positive_weights
            total = self._shortlist_loss(model, batch, hidden, self._epoch, weights, ignored)
            return total * (self.context.world / batch.global_weight)
        # Through `model`, which may be wrapped for several ranks, not through the classifier.
        logits = model(batch.input_ids, batch.attention_mask, batch.keep, hidden=hidden).logits
        if self._unseen is not None:
            # So low that no loss charges them; none is gold in training.
            lowest = torch.finfo(logits.dtype).min / 2
            logits = logits.masked_fill(self._unseen, lowest)
        weights = self._positive_weights
        if weights is not None:
            # One weight a gold label: a B×L array of weights never exists.
            weights = weights[batch.label_ids]
        total = multilabel_loss(
            logits, batch.label_offsets, batch.label_ids, batch.weights, self._train.loss, weights,
            ignored,
        )  # fmt: skip
        if self._train.loss.reduction == "sum":
            # Undoes the mean over labels.
            total = total * logits.shape[1]
        # Gradients are averaged over ranks, so times the world; over all documents of the step,
        # since ranks may hold unequal shares.
        return total * (self.context.world / batch.global_weight)

    def size(self, batch: Batch) -> BatchSize:
        """Return the documents of all ranks, and this rank's real tokens."""
        return BatchSize(batch.global_weight, int(batch.attention_mask.sum()))

    def identify(self, batch: Batch) -> list[str]:
        """Return the ids of this rank's documents."""
        # Fillers have row -1 and no id.
        return [self.corpus.train.ids[row] for row in batch.rows.tolist() if row >= 0]

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return ranking metrics and F1 at tuned thresholds. All ranks call."""
        return self.tune(model).metrics

    def judge(self, model: nn.Module, split: SplitArrays) -> Evaluator:
        """Score a split and return its evaluator, merged over ranks. All ranks call."""
        assert isinstance(model, PlantForMultiLabelClassification)
        scoring = self.scoring(model)
        scorer = Scorer(
            model, self.corpus.segmentation, self.evaluate_config, self.context, scoring
        )
        # For all documents of the split: the budget is shared over ranks, not multiplied.
        evaluator = evaluator_for(self.corpus, self.evaluate_config, split.tokens.size)
        return scorer.evaluate(split, evaluator)

    def scoring(self, model: PlantForMultiLabelClassification) -> Scoring | None:
        """Return what scores documents: their shortlists, or None for all labels."""
        lists = self._shortlists
        if lists is None:
            return None
        return Retrieved(model, lists.search, lambda: lists.vectors, lists.config.candidates)

    def tune(self, model: nn.Module, calibrate: bool = False) -> Judged:
        """Return thresholds tuned on validation, and `metric_names` there. All ranks call.

        Args:
            calibrate: calibrate first, as the config says. Once, at the end: checkpoints are
                compared by the model's own scores.
        """
        evaluator = self.judge(model, self.corpus.validation)
        calibration = evaluator.calibration() if calibrate else None
        thresholds = evaluator.thresholds(calibration)
        # Tuned on what is judged, so F1 is optimistic here: it only compares checkpoints.
        results = evaluator.results(thresholds, calibration)
        self.validated = evaluator, results
        measured = dict(results.metrics)
        if self._shortlists is not None:
            measured[RECALL] = evaluator.found_gold()
        metrics = {name: measured[name] for name in self.metric_names}
        return Judged(thresholds, metrics, calibration)


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def evaluator_for(corpus: Corpus, config: EvaluateConfig, documents: int) -> Evaluator:
    """Return an evaluator with the propensities and bands of a training split."""
    frequency = corpus.train_frequency.numpy()
    return Evaluator(frequency, corpus.train.tokens.size, config, documents)


class Scorer:
    """Runs a model over a split, each rank its share, and merges what was measured.

    Args: scoring: which labels are scored; all if None.
    """

    def __init__(
        self,
        model: PlantForMultiLabelClassification | AveragedClassifier,
        segmentation: Segmentation,
        config: EvaluateConfig,
        context: RunContext,
        scoring: Scoring | None = None,
    ) -> None:
        self._model, self._segmentation = model, segmentation
        self._config, self._context = config, context
        self.score = scoring or AllLabels(model)

    @torch.no_grad()
    def evaluate(self, split: SplitArrays, evaluator: Evaluator) -> Evaluator:
        """Add every document of a split to an evaluator. All ranks must call.

        Returns: the evaluator, holding the documents of all ranks on every rank.
        """
        context, engine = self._context, Engine(self._context)
        # No dropout, and logits take in the labels' hierarchy.
        self._model.eval()
        for batch in progress(self.batches(split), "score", "batch", shown=context.is_main):
            hidden, on_device = split.hidden(batch, context.device), batch.to(context.device)
            # The precision of training, or figures would belong to another model.
            with engine.autocast():
                encoded = self._model.encode(
                    on_device.input_ids, on_device.attention_mask, on_device.keep, hidden
                )
                scored = self.score(*encoded)
            # Fillers keep ranks in step; counted, they would be documents twice.
            real = (batch.weights > 0).numpy()
            ignored = split.ignored_of(batch, torch.device("cpu"))
            evaluator.add(
                scored.logits.float(), batch.label_offsets, batch.label_ids, scored.label_ids,
                keep=real, ignored=ignored,
            )  # fmt: skip
        # Sums and retained predictions travel, never scores of all labels.
        states = gather_objects(context, evaluator.state()) if context.world > 1 else []
        for rank, state in enumerate(states):
            # Its own documents are in it already.
            if rank != context.rank:
                evaluator.merge_state(state)
        return evaluator

    def batches(self, split: SplitArrays) -> Iterable[Batch]:
        """Return this rank's batches of a split; ranks have as many."""
        context = self._context
        sampler = BatchSampler(
            split.tokens.lengths(), self._segmentation,
            # Per rank, as memory bounds it; the sampler counts over all ranks.
            documents_per_batch=self._config.documents_per_batch * context.world,
            rank=context.rank, world=context.world, shuffle=False,
        )  # fmt: skip
        return batch_loader(split.tokens, split.labels, Collator(self._segmentation), sampler)
