"""How a stage trains: on the only loop, in its own folders, never from another's checkpoint.

Must not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from plant_dist.config.load import as_plain
from plant_dist.config.schema import RuntimeConfig
from plant_dist.runtime.checkpoint import Attachment
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.pipeline import Job, Stage, expected_manifest, training_folders
from plant_dist.train.hooks import Hook
from plant_dist.train.loop import LoopSettings, Task, Trainer
from plant_dist.train.telling import TellProgress


def trainer_for(
    stage: Stage, job: Job, task: Task, settings: LoopSettings, hooks: Sequence[Hook] = (),
    attachment: Attachment | None = None, runtime: RuntimeConfig | None = None,
) -> Trainer:  # fmt: skip
    """Return the loop of a stage, which goes on from its checkpoints. All ranks must call.

    Args: runtime: the engine; DDP if None, which is all that small models want.

    The caller closes `trainer.tracker` when it has nothing more to draw.
    """
    checkpoints, curves_folder = training_folders(stage, job)
    return Trainer(
        task, settings, job.context, checkpoints, Tracker(curves_folder, job.context),
        # Checkpoints of other settings or other parents are refused by it.
        identity=expected_manifest(stage, job).digest,
        hooks=[*hooks, TellProgress(job.folder, stage.name)], attachment=attachment,
        runtime=runtime, config=as_plain(job.config),
    )  # fmt: skip
