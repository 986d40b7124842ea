"""Stage `mig`: the documents that planting may know become token-label gains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.mig.compute import compute_gains
from plant_dist.stages.pipeline import Job, Stage, parent_manifest


def settings(config: Config) -> Mapping[str, Any]:
    """Return what the gains depend on."""
    return {"mig": identity_of(config.mig)}


def build(job: Job, folder: Path | None) -> Mapping[str, str]:
    """Count and rank the tokens of what planting may know. Validation and test are never read."""
    assert folder is not None  # this stage runs on the main process alone
    dataset = PreparedDataset.load(job.artifact("dataset"))
    tokenizer = dataset.tokenizer()
    table = compute_gains(
        dataset.token_csr(dataset.planting_set),
        dataset.label_csr(dataset.planting_set),
        vocabulary_size=len(tokenizer),
        label_count=len(dataset.label_space),
        config=job.config.mig,
        excluded=tokenizer.all_special_ids,
    )
    table.save(folder)
    return parent_manifest("dataset", job).carries


STAGE = Stage("mig", "gains", ("dataset",), settings, build, alone=True)
