"""Settings of the classifier's training: its loss, its optimizer, its run.

A part of the schema in a file of its own; `schema` offers these sections with all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from plant_dist.config.settings import Section, setting
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class LossConfig(Section):
    """The classification loss."""

    inside = "train"

    # `softmax` ranked better than `bce` on the quickstart, MAP 75.3 against 74.9; it is not
    # calibrated, and thresholds are tuned on validation anyway (docs/findings.md, method.md).
    kind: str = setting(
        "bce",
        "Binary cross-entropy, focal, asymmetric, or softmax of a gold label among negatives.",
        choices=("bce", "focal", "asl", "softmax"),
    )
    # `sum` keeps a label's gradient independent of L, which Adam's epsilon and clipping
    # notice; the mean is the method's (docs/decisions.md, 10).
    reduction: str = setting(
        "mean", "Over the labels of a document; over documents always the mean.",
        choices=("mean", "sum"),
    )  # fmt: skip
    # `effective` did harm on the quickstart: MAP 53 and falling (docs/findings.md).
    label_weights: str = setting(
        "none",
        "Weights of positives per label: none, inverse propensity, or effective number.",
        choices=("none", "propensity", "effective"),
    )
    focal_gamma: float = setting(2.0, "Focusing power of the focal loss.", minimum=0.0)
    asl_gamma_positive: float = setting(0.0, "Asymmetric loss, positives.", minimum=0.0)
    asl_gamma_negative: float = setting(4.0, "Asymmetric loss, negatives.", minimum=0.0)
    asl_clip: float = setting(
        0.05, "Asymmetric loss: probability shift of negatives.", minimum=0.0, maximum=0.5
    )


@dataclass(frozen=True)
class OptimConfig(Section):
    """Optimizer, learning rates by depth, unfreezing, schedule."""

    inside = "train"

    learning_rate: float = setting(1e-3, "Peak rate of the decoder's label rows.", above=0.0)
    ranker_learning_rate: float = setting(1e-3, "Peak rate of the planted ranker.", above=0.0)
    # Apart from the rows', whose Adagrad wants ten times Adam's: vectors of length 1 would forget
    # the texts that they start from (docs/findings.md).
    retriever_learning_rate: float = setting(
        1e-3, "Peak rate of the learned vectors of documents and labels.", above=0.0
    )
    # At the rate of rows they had not arrived when training ended: what a name counts is learnt of
    # all labels at once, and may be learnt fast. Shared gates may not (docs/findings.md).
    names_learning_rate: float | None = setting(
        None,
        "Peak rate of the four numbers, shared by all labels, that say what a name counts; "
        "learning_rate if unset.",
        above=0.0,
    )
    # Apart from rows for the retriever's reason, where the bag's rows start from texts.
    bag_learning_rate: float | None = setting(
        None, "Peak rate of the bag branch's token factors; learning_rate if unset.", above=0.0
    )
    # 1e-4 and 3e-4 brought no gain on the quickstart (docs/findings.md).
    encoder_learning_rate: float = setting(3e-5, "Peak rate of the encoder's top block.",
                                           above=0.0)  # fmt: skip
    layer_decay: float = setting(
        0.9, "Each deeper encoder block learns at this share of the one above.", above=0.0,
        maximum=1.0,
    )  # fmt: skip
    weight_decay: float = setting(0.01, "Decoupled weight decay of matrices in the encoder.",
                                  minimum=0.0)  # fmt: skip
    # MAP 74.6 row-wise, 72.9 element-wise after two epochs; rates differed too, so a hint only
    # (docs/findings.md).
    rowwise: bool = setting(True, "Scale a label row's step as a whole, not number by number.")
    rows_weight_decay: float = setting(0.0, "Decoupled weight decay of label rows.", minimum=0.0)
    # A linear model of all tokens learns documents by heart without it (docs/findings.md).
    bag_weight_decay: float = setting(
        1.0, "Decoupled weight decay of the bag branch's factors.", minimum=0.0
    )
    betas: tuple[float, ...] = setting((0.9, 0.999), "Adam's betas.", minimum=0.0, maximum=1.0)
    schedule: str = setting(
        "linear",
        "Shape of the learning rate over the steps.",
        choices=("constant", "linear", "cosine", "one_cycle", "sgdr"),
    )
    warmup_fraction: float = setting(0.1, "Share of steps that warm up.", minimum=0.0, maximum=1.0)
    sgdr_cycles: int = setting(3, "Restarts of the sgdr schedule.", minimum=1)
    unfreeze_epochs: tuple[float, ...] = setting(
        (), "Epochs at which the next group of encoder blocks thaws; empty thaws all at once.",
        minimum=0.0,
    )  # fmt: skip
    freeze_encoder: bool = setting(False, "Never train the encoder.")
    # Clipping a summed loss at 1 cost 0.7 MAP: documents of many labels have large gradients
    # (docs/findings.md); unset it with `reduction: sum`.
    clip_norm: float | None = setting(1.0, "Largest gradient norm; unset never clips.", above=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2 or max(self.betas) >= 1.0:
            raise ConfigError(f"train.optim.betas is {list(self.betas)}; give two numbers below 1")


@dataclass(frozen=True)
class TrainConfig(Section):
    """The training run of the classifier."""

    epochs: int = setting(5, "Passes over the training documents.", minimum=1)
    labels: str = setting(
        "all",
        "Labels that a document considers: all, or its shortlist (section shortlist).",
        choices=("all", "shortlist"),
    )
    # On the quickstart 16 was better than 32 after as many seconds (docs/findings.md).
    documents_per_batch: int = setting(32, "Documents per step, over all ranks.", minimum=1)
    tokens_per_batch: int | None = setting(
        None, "Budget of padded tokens per step over all ranks; replaces documents_per_batch.",
        minimum=1,
    )  # fmt: skip
    accumulation: int = setting(1, "Batches per optimizer step.", minimum=1)
    bucket_batches: int = setting(
        50, "Batches sorted by length together; 1 shuffles freely.", minimum=1
    )
    drop_tokens: float = setting(
        0.0,
        "Chance that a training document is read without a token, drawn anew at every step; of "
        "hidden states on disk, which were read with it, labels attend the others only.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    # No gain found on the quickstart (docs/findings.md).
    ema_decay: float | None = setting(
        None, "Keep and evaluate an exponential moving average of the weights.", above=0.0,
        maximum=1.0,
    )  # fmt: skip
    start_share: float = setting(
        0.0,
        "Share of the starting weights that is mixed into the trained ones at the end.",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    refit_bands: bool = setting(
        False,
        "After training, scale what attentions, bag and names say and shift biases, by band of "
        "label frequency, as fits validation best: rare labels are learnt by heart, and too sure.",
    )
    evaluate_epochs: float = setting(1.0, "Epochs between validations.", above=0.0)
    # On validation, never on test, which would leak into the choice.
    best_metric: str = setting("map", "Validation metric that chooses the best checkpoint.")
    patience: int | None = setting(None, "Validations without a better metric before stopping.",
                                   minimum=1)  # fmt: skip
    checkpoint_steps: int = setting(
        500, "Steps between periodic checkpoints.", minimum=1, inert=True
    )
    keep_checkpoints: int = setting(2, "Newest checkpoints kept.", minimum=1, inert=True)
    log_steps: int = setting(10, "Steps between scalars in TensorBoard.", minimum=1, inert=True)
    max_steps: int | None = setting(None, "Stop after this many steps.", minimum=1)
    loader_workers: int = setting(0, "Processes that collate batches.", minimum=0, inert=True)
    loss: LossConfig = field(default_factory=LossConfig, metadata={"doc": "The loss."})
    optim: OptimConfig = field(default_factory=OptimConfig, metadata={"doc": "The optimizer."})
