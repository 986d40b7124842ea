"""Settings of the AWD-LSTM and of its training as a language model.

A part of the schema in a file of its own; `schema` offers these sections with all others. They are
read only where `encoder.kind` is `awd_lstm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting


@dataclass(frozen=True)
class LstmConfig(Section):
    """The AWD-LSTM that takes the encoder's place with `encoder.kind: awd_lstm`."""

    # Widths as fastai has them; a width that 8 divides suits GPUs better than the paper's 1150.
    width: int = setting(400, "Width D of embeddings and of the hidden states.", minimum=1)
    inner_width: int = setting(1152, "Width of all layers but the last.", minimum=1)
    layers: int = setting(3, "LSTM layers.", minimum=1)
    direction: str = setting(
        "forward",
        "Read documents from the start or from the end.",
        choices=("forward", "backward"),
    )
    tied_weights: bool = setting(
        True, "The language model predicts tokens with its embedding table."
    )
    # The paper's rates for a corpus of two million tokens.
    embedding_dropout: float = setting(
        0.1, "Chance that a word is dropped wherever it occurs.", minimum=0.0, maximum=0.9
    )
    input_dropout: float = setting(0.65, "Locked dropout of what the first layer reads.",
                                   minimum=0.0, maximum=0.9)  # fmt: skip
    hidden_dropout: float = setting(0.2, "Locked dropout between layers.", minimum=0.0,
                                    maximum=0.9)  # fmt: skip
    output_dropout: float = setting(
        0.4, "Locked dropout of what the language model predicts from.", minimum=0.0, maximum=0.9
    )
    weight_dropout: float = setting(
        0.5, "DropConnect: share of hidden-to-hidden weights dropped in a reading.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    window: int | None = setting(
        70, "Tokens that gradients flow back through; unset takes the whole document.", minimum=1
    )


@dataclass(frozen=True)
class LmConfig(Section):
    """Training the AWD-LSTM as a language model on the training split."""

    start: str | None = setting(
        None, "Folder of a language model to fine-tune, of the same tokenizer; noise if unset."
    )
    epochs: int = setting(20, "Passes over the training documents, at most.", minimum=1)
    # About as many tokens as the paper's 64 rows of 70.
    tokens_per_batch: int = setting(
        4096, "Budget of padded tokens per step over all ranks.", minimum=1
    )
    learning_rate: float = setting(3e-3, "Adam's peak rate.", above=0.0)
    weight_decay: float = setting(1.2e-6, "Adam's decoupled weight decay.", minimum=0.0)
    schedule: str = setting(
        "one_cycle", "Shape of the rate over the steps.",
        choices=("constant", "linear", "cosine", "one_cycle"),
    )  # fmt: skip
    warmup_fraction: float = setting(
        0.25, "Share of the steps in which the rate rises.", minimum=0.0, maximum=1.0
    )
    clip_norm: float | None = setting(0.25, "Largest gradient norm; unset never clips.", above=0.0)
    activation_penalty: float = setting(
        2.0, "Weight of the squares of the states predicted from (AR).", minimum=0.0
    )
    slowness_penalty: float = setting(
        1.0, "Weight of the squared change of the state from token to token (TAR).", minimum=0.0
    )
    patience: int | None = setting(
        3, "Epochs without a lower validation loss before stopping.", minimum=1
    )
