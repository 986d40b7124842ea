"""The stages, in the order in which data flows through them."""

from plant_dist.artifacts import read_manifest
from plant_dist.config.load import differences
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.stages import evaluate, lm, mig, prepare, rank, train
from plant_dist.stages.pipeline import Job, Stage, force, run_stage

log = get_logger(__name__)
ALL: tuple[Stage, ...] = (
    prepare.STAGE,
    mig.STAGE,
    lm.STAGE,
    rank.STAGE,
    train.STAGE,
    evaluate.STAGE,
)


def check_config(stage: Stage, job: Job) -> None:
    """Check that what a stage reads was made under the config at hand; a whole run makes it so.

    Raises:
        ArtifactError: the dataset is of another corpus, or its tokens are other ones. That
            anything else has changed is only said: what there is may be wanted as it is.
    """
    makers = {one.makes: one for one in ALL}
    for name in stage.parents(job.config):
        manifest = read_manifest(job.artifact(name))
        if manifest is None:
            continue  # said when the stage begins
        changed = differences(manifest.settings, makers[name].settings(job.config))
        said = f"{job.artifact(name)} was made with other settings ({', '.join(changed)})"
        if name == "dataset" and any(one.startswith(("data.", "tokens.")) for one in changed):
            raise ArtifactError(
                f"{said}; run: {job.repair(name)}, or take the config that it was made with"
            )
        if changed:
            log.warning("%s; %s goes on with it", said, stage.name)


__all__ = ["ALL", "Job", "Stage", "check_config", "force", "run_stage"]
