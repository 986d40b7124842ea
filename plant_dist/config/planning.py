"""Settings that only `--dry-run` reads.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting


@dataclass(frozen=True)
class PlanConfig(Section):
    """Sizes that `--dry-run` reckons with until `prepare` has counted them."""

    labels: int | None = setting(None, "Labels of the corpus.", minimum=1, inert=True)
    train_documents: int | None = setting(
        None, "Documents of its training split.", minimum=1, inert=True
    )
    document_tokens: int | None = setting(
        None, "Tokens of a training document, on the mean.", minimum=1, inert=True
    )
