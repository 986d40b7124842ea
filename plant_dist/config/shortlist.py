"""Settings of shortlists: which labels a document considers where there are too many for all.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class ShortlistConfig(Section):
    """Shortlists: the candidate labels of a document, and the index that finds them."""

    vectors: str = setting(
        "learned",
        "What is compared: the planted ranker's pooled factors, or vectors learned on the "
        "shortlists, which take over from the ranker's once they find more gold labels; or what "
        "the decoder itself says of a document's means, which needs no training of its own.",
        choices=("ranker", "learned", "decoder"),
    )
    labels_per_document: int = setting(
        512, "Labels considered per training document (K): gold, mined and random ones.", minimum=2
    )
    mined_share: float = setting(
        0.5, "Share of K less the gold labels that the index finds; random labels are the rest.",
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    # Drawn as negatives, rows started from a label's text would be pushed away from it.
    negatives: str = setting(
        "all",
        "Draw negatives from all labels, which estimates the loss over all, or from those with "
        "training documents alone.",
        choices=("all", "seen"),
    )
    candidates: int = setting(
        512, "Labels that the index retrieves for a document when scoring.", minimum=1
    )
    index: str = setting(
        "auto", "FAISS factory string, such as IVF4096,SQ8; auto goes by labels, width and memory."
    )
    memory_mb: int = setting(
        4096, "Memory for a process's part of the index, in MiB; index auto obeys it.", minimum=1
    )
    search: str | None = setting(
        None, "FAISS search settings, such as nprobe=16; tuned to index_recall if unset."
    )
    index_recall: float = setting(
        0.95, "Share of the exact best 10 that the index must return, or exact search replaces it.",
        above=0.0, maximum=1.0,
    )  # fmt: skip
    # Gold labels found, not neighbours found: it says whether K is large enough.
    recall_floor: float | None = setting(
        None,
        "Stop training where a refreshed index, or the only one, finds less of the gold labels.",
        above=0.0, maximum=1.0,
    )  # fmt: skip
    refresh_steps: int | None = setting(
        500, "Steps between rebuilt indices; unset keeps the first.", minimum=1
    )
    # A fixed step, not whenever a build happens to be ready: else no two runs would be equal.
    swap_after: int = setting(
        50, "Steps that a rebuild may take in the background before it is used.", minimum=0
    )
    refresh_drop: float = setting(
        0.05, "Rebuild at once where validation recall has fallen by so much since the last time.",
        above=0.0, maximum=1.0,
    )  # fmt: skip
    probe_documents: int = setting(
        256, "Validation documents on which an index is measured and tuned.", minimum=1
    )
    width: int = setting(256, "Width of the learned vectors.", minimum=1)
    temperature: float = setting(0.05, "Divides cosines of learned vectors in their loss.",
                                 above=0.0)  # fmt: skip
    retrieval_weight: float = setting(
        1.0, "Weight of the learned vectors' loss beside the classifier's.", minimum=0.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refresh_steps is not None and self.swap_after >= self.refresh_steps:
            raise ConfigError(
                f"shortlist.swap_after is {self.swap_after}; it must be below "
                f"shortlist.refresh_steps ({self.refresh_steps})"
            )
