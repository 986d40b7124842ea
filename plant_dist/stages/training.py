"""How a stage trains: on the only loop, in its own folders, never from another's checkpoint.

Must not know what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from plant_dist.artifacts import read_manifest
from plant_dist.config.load import as_plain
from plant_dist.config.schema import RuntimeConfig, TrainConfig
from plant_dist.errors import ConfigError
from plant_dist.logs import get_logger
from plant_dist.models.shapes import check_encoder
from plant_dist.runtime.checkpoint import Attachment, pointed
from plant_dist.runtime.collectives import broadcast_object
from plant_dist.runtime.tracking import Tracker
from plant_dist.stages.forcing import begins_anew, is_forced
from plant_dist.stages.pipeline import (
    Job,
    Stage,
    expected_manifest,
    training_folders,
    trains_language_model,
)
from plant_dist.train.hooks import Hook
from plant_dist.train.loop import LoopSettings, Task, Trainer
from plant_dist.train.profile import Profile
from plant_dist.train.telling import TellProgress

log = get_logger(__name__)


def check_batch(train: TrainConfig, world: int, resuming: bool) -> None:
    """Check that ranks share a batch evenly.

    Args: resuming: there is work to go on from, of any number of ranks; uneven shares cost it
        time and change nothing, so that they are only warned of.

    Raises:
        ConfigError: they do not, or it has fewer documents than there are ranks.
    """
    documents = train.documents_per_batch
    if train.tokens_per_batch is not None or documents % world == 0:
        return
    below, above = documents // world * world, -(-documents // world) * world
    if documents < world:
        raise ConfigError(
            f"train.documents_per_batch is {documents} over {world} processes: some would never "
            f"have a document; set train.documents_per_batch={above}, or start {documents}"
        )
    if not resuming:
        fewer = next(one for one in range(world - 1, 0, -1) if documents % one == 0)
        more = next(one for one in range(world + 1, documents + 1) if documents % one == 0)
        raise ConfigError(
            f"train.documents_per_batch is {documents}, which {world} processes cannot share "
            f"evenly; set train.documents_per_batch={below} or {above}, or start {fewer} or {more}"
        )
    log.warning(
        "train.documents_per_batch is %d over %d processes: going on all the same, with ranks that "
        "wait for those of larger shares", documents, world,
    )  # fmt: skip


def check_shares(job: Job) -> None:
    """Check the batches of the stage `train`, see `check_batch`. All ranks must call."""
    latest = pointed(job.folder / "checkpoints" / "train", "latest")
    goes_on = latest is not None and not begins_anew(job.folder, "train")
    # Rank 0 decides for all, as whether a stage is up to date.
    resuming = broadcast_object(job.context, goes_on)
    check_batch(job.config.train, job.context.world, resuming)


def check_early(job: Job) -> None:
    """Check encoder and batches before any stage begins; batches not where there is a classifier,
    which may be up to date."""
    check_encoder_early(job)
    there = read_manifest(job.artifact("classifier")) is not None
    if broadcast_object(job.context, not there or is_forced(job.folder, "train")):
        check_shares(job)


def check_encoder_early(job: Job) -> None:
    """Check the encoder before any stage begins, unless a stage has still to train it."""
    if not trains_language_model(job.config):
        check_encoder(job.config.encoder, job.config.tokens.segment_tokens)


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
