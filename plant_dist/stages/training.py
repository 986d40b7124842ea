"""How a stage trains: on the only loop, in its own folders, never from another's checkpoint.

Must not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from plant_dist.config.load import as_plain
from plant_dist.config.schema import RuntimeConfig, TrainConfig
from plant_dist.errors import ConfigError
from plant_dist.logs import get_logger
from plant_dist.runtime.checkpoint import Attachment
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.pipeline import Job, Stage, expected_manifest, training_folders
from plant_dist.train.hooks import Hook
from plant_dist.train.loop import LoopSettings, Task, Trainer
from plant_dist.train.profile import Profile
from plant_dist.train.telling import TellProgress

log = get_logger(__name__)


def check_batch(train: TrainConfig, context: RunContext) -> None:
    """Check that a batch has documents for every rank; warn where shares are uneven.

    Raises:
        ConfigError: it has fewer than there are ranks.
    """
    documents, world = train.documents_per_batch, context.world
    if train.tokens_per_batch is not None or documents % world == 0:
        return
    below, above = documents // world * world, -(-documents // world) * world
    if documents < world:
        raise ConfigError(
            f"train.documents_per_batch is {documents} over {world} processes: some would never "
            f"have a document; set train.documents_per_batch={above}, or start {documents}"
        )
    log.warning(
        "train.documents_per_batch is %d over %d processes: ranks have unlike shares and wait for "
        "the largest; set it to %d or %d", documents, world, below, above,
    )  # fmt: skip


def trainer_for(
    stage: Stage, job: Job, task: Task, settings: LoopSettings, hooks: Sequence[Hook] = (),
    attachments: Sequence[Attachment] = (), runtime: RuntimeConfig | None = None,
) -> Trainer:  # fmt: skip
    """Return the loop of a stage, which goes on from its checkpoints. All ranks must call.

    Args: runtime: the engine; DDP if None, which is all that small models want.

    The caller closes `trainer.tracker` when it has nothing more to draw.
    """
    checkpoints, curves_folder = training_folders(stage, job)
    own: list[Hook] = [TellProgress(job.folder, stage.name)]
    if job.profile:
        own.append(Profile(job.folder / "profile" / stage.name))
    return Trainer(
        task, settings, job.context, checkpoints, Tracker(curves_folder, job.context),
        # Checkpoints of other settings or other parents are refused by it.
        identity=expected_manifest(stage, job).digest,
        hooks=[*hooks, *own], attachments=attachments, runtime=runtime,
        config=as_plain(job.config),
    )  # fmt: skip
