"""Settings of the planted decoder.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting

BRANCHES = ("learned", "planted", "static", "named", "bag")
# `pooled` attends all tokens alike, as pooled encoders do: what label attention is compared with.
EVERY_BRANCH = (*BRANCHES, "pooled")


@dataclass(frozen=True)
class ModelConfig(Section):
    """The planted decoder: branches, inattention, gates, state, initial rows."""

    branches: tuple[str, ...] = setting(
        BRANCHES,
        "Branches that are summed: three attentions; named looks for what reads like a label's "
        "name, bag weighs which tokens there are, pooled is the plain mean of all tokens.",
        choices=EVERY_BRANCH,
        least=1,
    )
    learned_k: int | None = setting(None, "Inattention of the learned branch; unset keeps all.",
                                    minimum=1)  # fmt: skip
    # The paper keeps 8 to 80 planted and 5 static tokens.
    planted_k: int | None = setting(32, "Inattention of the planted branch.", minimum=1)
    static_k: int | None = setting(5, "Tokens kept by the static branch.", minimum=1)
    # Of frozen MiniLM states on CodiEsp, 8 ranked best among 1 to 48 (docs/findings.md).
    # Where names are texts as long as documents, the whole is what compares (docs/findings.md).
    name_window: int | None = setting(
        8,
        "Tokens side by side that the named branch compares with a label's name; unset compares a "
        "whole segment.",
        minimum=1,
    )
    name_scale: float = setting(
        10.0, "Evidence of the named branch for a similarity of 1, at the start.", above=0.0
    )
    name_offset: float = setting(
        0.5, "Similarity that is no evidence in the named branch, at the start.",
        minimum=-1.0, maximum=1.0,
    )  # fmt: skip
    # So it is learnt what a name alone is worth, which is all that labels never seen have.
    name_alone: float = setting(
        0.1, "Share of the labels that a training step scores by their names alone.",
        minimum=0.0, maximum=0.9,
    )  # fmt: skip
    # With pairs, 256 axes were no better than 128, nor four times the buckets (docs/findings.md).
    bag_width: int = setting(128, "Numbers a label spends on the bag branch.", minimum=1)
    bag_pairs: int = setting(
        65_536, "Buckets for pairs of consecutive tokens in the bag branch; 0 for tokens alone.",
        minimum=0,
    )  # fmt: skip
    bag_init: str = setting(
        "zero",
        "Start of the bag's rows: nothing, the tokens of label texts, or of all texts of a label.",
        choices=("zero", "label_text", "prototype"),
    )
    bag_scale: float = setting(
        5.0, "Evidence of a document made of just the tokens that a bag's row starts from.",
        above=0.0,
    )  # fmt: skip
    # A rare label could not learn gates of its own: `shared` is the low-shot mode.
    gates: str = setting(
        "sum",
        "Weights of the branches: all 1, learned per label, or learned and shared (low-shot).",
        choices=("sum", "learned", "shared"),
    )
    # On texts of ten tokens, branches that keep a few start far behind the mean of all;
    # there the learned branch should lead, and the size of its lead matters little
    # (docs/findings.md).
    leading_branch: str = setting(
        "planted",
        "Branch that learned gates favour at the start: planted for rare labels, others for all.",
        choices=EVERY_BRANCH,
    )
    gate_lead: float = setting(1.0, "Gate logit by which that branch leads.", minimum=0.0)
    # `attention_state` gives the result of `none` in memory that does not grow with segments.
    state: str = setting(
        "none",
        "Reading of many segments: attend all at once, stream the same, or logit state.",
        choices=("none", "attention_state", "logit_state"),
    )
    # The paper's 3; all other labels carry exactly 0.
    state_k: int = setting(3, "Labels that the logit state carries on.", minimum=1)
    query_init: str = setting(
        "random",
        "Start of the learned branch's queries.",
        choices=("random", "label_text", "planted"),
    )
    # Prototypes start ahead on the quickstart, validation MAP 65 against 52 before training,
    # at the price of embedding the training split first (docs/findings.md).
    boost_init: str = setting(
        "label_text",
        "Start of the boost vectors: noise, label texts, or the mean of a label's texts.",
        choices=("random", "label_text", "prototype"),
    )
    # In units of a text's mean hidden state, so that encoders of any width start alike.
    boost_scale: float = setting(10.0, "Length of a boost vector started from text.", above=0.0)
    prior_bias: bool = setting(True, "Start a label's bias at its log-odds in training.")
    # On scores alone: rows stay independent, so that they shard (docs/decisions.md, 11).
    narrower_share: float = setting(
        0.0,
        "Share of a label's score that comes from the labels below it, when scoring all labels.",
        minimum=0.0, maximum=0.99,
    )  # fmt: skip
    rivals_after: int | None = setting(
        None,
        "Score a label against all but a document's best so many; for the softmax loss, about "
        "its labels per document.",
        minimum=1,
    )
    freeze_ranker: bool = setting(False, "Keep the planted ranker's factors as they are.")
    # No gain found: 75.1 against 74.9 validation MAP, which is noise (docs/findings.md).
    attend_special: bool = setting(False, "Let labels attend [CLS], [SEP] and their like.")
    dropout: float = setting(0.1, "Dropout on hidden states before attention.", minimum=0.0,
                             maximum=0.9)  # fmt: skip
    label_block: int | None = setting(
        None, "Labels attended at once; from the memory budget if unset.", minimum=1, inert=True
    )
    block_memory_mb: int = setting(
        512, "Memory for one block's token scores, in MiB.", minimum=1, inert=True
    )
