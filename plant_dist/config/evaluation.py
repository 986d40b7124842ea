"""Settings of the evaluation: what is measured, and how scores become decisions.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plant_dist.config.published import published_figures
from plant_dist.config.settings import Section, setting


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """What is measured, how thresholds are tuned, what it is compared with."""

    ks: tuple[int, ...] = setting((1, 3, 5, 8, 10, 15), "Cut-offs of the ranking metrics.",
                                  minimum=1, least=1)  # fmt: skip
    # Jain et al. 2016; 0.6 and 2.6 are usual for Amazon sets, 0.5 and 0.4 for Wikipedia.
    propensity_a: float = setting(0.55, "Constant A of the propensity model.", above=0.0)
    propensity_b: float = setting(1.5, "Constant B of the propensity model.", above=0.0)
    retained_scores: int = setting(
        50_000_000, "Scores kept for AUC, MAP and F1; above it, each document's best.", minimum=1000
    )
    documents_per_batch: int = setting(32, "Documents scored at once.", minimum=1)
    exact: bool = setting(
        False, "Score all labels, also where the classifier has an index of shortlists."
    )
    threshold: str = setting(
        "global",
        "Decision rule that `predict` uses, tuned on validation.",
        choices=("global", "per_label", "top_k"),
    )
    # A threshold fitted to one or two positives is noise.
    min_label_positives: int = setting(
        3, "Validation positives below which a label uses the global threshold.", minimum=1
    )
    # Off: thresholds need none, and a second fit to the same few documents is for those who read
    # scores as probabilities (docs/decisions.md, 13).
    calibration: str = setting(
        "none",
        "Make scores probabilities after training: a temperature or an isotonic curve for each "
        "band of label frequency, fitted on validation.",
        choices=("none", "temperature", "isotonic"),
    )
    min_band_positives: int = setting(
        50, "Validation positives below which a band is calibrated as all labels are.", minimum=1
    )
    # Systems differ here, so the report says which was used.
    empty_gold: str = setting(
        "skip",
        "Documents without gold labels: left out of the means, or counted as 0.",
        choices=("skip", "zero"),
    )
    # Inert, so that no classifier is trained again for it; the report records the others' digests.
    average_with: tuple[str, ...] = setting(
        (),
        "Folders of other classifiers: the mean of all scores is reported beside this one.",
        inert=True,
    )
    baselines: tuple[str, ...] = setting(
        (), "Reference systems reported on the same split.",
        choices=("popularity", "tfidf", "encoder"),
    )  # fmt: skip
    published: dict[str, Any] = setting(
        {},
        "Figures of others, printed beside the result: system → source, metrics in percent, and "
        "`checked: false` where nobody has looked them up.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        published_figures(self.published)
