"""How a run keeps its label rows: planned by memory, checked against the settings, made, saved.

The decision is rank 0's, so that all ranks make rows alike, and is logged before anything large
is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plant_dist.config.labels import check_rows
from plant_dist.config.load import identity_of
from plant_dist.config.schema import Config, LabelsConfig
from plant_dist.labels.choice import plan_rows, row_optimizer
from plant_dist.labels.files import SavedTable, load_rows
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.sharded import ShardedRows
from plant_dist.labels.sparse import SparseRows
from plant_dist.labels.table import LabelTable
from plant_dist.logs import get_logger
from plant_dist.models.classifier import (
    AnyRows,
    PlantForMultiLabelClassification,
    RowsMaker,
)
from plant_dist.runtime.apart import names_kept_apart
from plant_dist.runtime.collectives import barrier, broadcast_object
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.memory import free_bytes

log = get_logger(__name__)

ROWS = "label_rows"  # folder beside model.safetensors, where rows are too many for one file


def rows_settings(config: Config) -> dict[str, Any]:
    """Return what of the section `labels` decides results.

    Nothing where it is as it was before there was such a section: artifacts of then stay valid.
    """
    found = identity_of(config.labels)
    return {} if found == identity_of(LabelsConfig()) else {"labels": found}


def rows_maker(config: Config, context: RunContext) -> RowsMaker:
    """Return what makes the rows of a run's classifier. All ranks must call it.

    Raises:
        ConfigError: (when called) a setting does not go with the engine or the optimizer.
    """

    def make(count: int, widths: Mapping[str, int], zero: tuple[str, ...]) -> AnyRows:
        free = free_bytes(context)
        plan = plan_rows(
            config.labels, count, widths, context.world, free,
            shortlisted=config.train.labels == "shortlist", rowwise=config.train.optim.rowwise,
        )  # fmt: skip
        plan = broadcast_object(context, plan)
        log.info("label rows: %s", plan)
        check_rows(
            plan.engine, plan.optimizer, config.model.state, config.train, config.runtime.precision
        )
        if plan.dense:
            return LabelTable(count, widths, zero)
        betas = config.train.optim.betas
        moves = row_optimizer(plan.optimizer, config.labels, (betas[0], betas[1]))
        if plan.engine == "replicated":
            return ReplicatedRows(count, widths, moves, zero, context.world)
        if config.train.labels == "all":
            log.warning(
                "label rows: sharded, while training scores all labels: every rank fetches all "
                "rows at each step; set train.labels=shortlist"
            )
        return ShardedRows(
            count, widths, moves, zero, context.device, config.labels.placement,
            config.labels.cache_share,
        )  # fmt: skip

    return make


def save_classifier(
    model: PlantForMultiLabelClassification, folder: Path | None, context: RunContext
) -> None:
    """Write a classifier's folder; sharded rows are written by their owners. All ranks must call.

    Args: folder: on rank 0; None on the others.
    """
    sharded = len(model.labels.own) < model.labels.count
    if folder is not None:
        apart = names_kept_apart(model)
        kept = {name: one for name, one in model.state_dict().items() if name not in apart}
        model.save_pretrained(folder, state_dict=kept if sharded else None)
    if sharded:
        # The folder is there before any owner writes, and whole before rank 0 goes on.
        assert isinstance(model.labels, SparseRows)
        place = broadcast_object(context, None if folder is None else str(folder / ROWS))
        if context.is_main:
            Path(str(place)).mkdir()
        barrier(context)
        model.labels.save(Path(str(place)), resume=False)
        barrier(context)


def fill_saved_rows(model: PlantForMultiLabelClassification, folder: Path) -> None:
    """Fill the rows of a loaded classifier from the files of their owners.

    Raises:
        ArtifactError: a file is missing, or of another classifier.
    """
    table = model.labels
    tensors = {name: {"rows": rows.detach()} for name, rows in table.fields.items()}
    load_rows(
        folder / ROWS, SavedTable(table.count, table.widths, "", tensors, table.own), resume=False
    )
