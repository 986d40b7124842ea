"""The stages, in the order in which data flows through them."""

from plant_dist.stages import evaluate, lm, mig, prepare, rank, train
from plant_dist.stages.pipeline import Job, Stage, check_config, force, run_stage

ALL: tuple[Stage, ...] = (
    prepare.STAGE,
    mig.STAGE,
    lm.STAGE,
    rank.STAGE,
    train.STAGE,
    evaluate.STAGE,
)

__all__ = ["ALL", "Job", "Stage", "check_config", "force", "run_stage"]
