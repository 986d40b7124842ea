"""What the jobs of these tests share: a cluster, and a folder as its shared file system."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_corpus import ROOT, environment

# Long enough to be met half-way, and without dropout, whose masks ranks draw for themselves.
TRAINING = (
    "train.epochs=24", "train.evaluate_epochs=6", "train.checkpoint_steps=20",
    "encoder.dropout=0.0", "model.dropout=0.0",
)  # fmt: skip
STEPS = 240  # 24 epochs of 80 documents by 8


@dataclass(frozen=True)
class Site:
    """A cluster, and the folder that stands for its shared file system.

    Attributes:
        straight: a run of one process, without SLURM, that nothing interrupted.
    """

    cluster: Cluster
    work: Path
    config: Path
    straight: Path

    def submit(
        self, script: str, *options: str, settings: tuple[str, ...] = (),
        arguments: tuple[str, ...] = (), **more: str,
    ) -> str:  # fmt: skip
        """Submit a file of slurm/, with arguments for the program; return the job's number."""
        named = {**self.environment, "PLANT_SET": " ".join(settings), **more}
        return self.cluster.run("sbatch", "--parsable", f"--output={self.work}/%j.out", *options,
                                f"{ROOT}/slurm/{script}", *arguments, **named).strip()  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this site has set."""
        return {
            **environment(self.work),
            "PATH": self.cluster.environment["PATH"],
            "PLANT_HOME": str(ROOT),
            "PLANT_SITE": str(self.work / "site.env"),
            "PLANT_CONFIG": str(self.config),
            "HF_HUB_OFFLINE": "1",
        }

    def output(self, job: str) -> str:
        """What a job printed."""
        path = self.work / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def half_way(self, name: str) -> Path:
        """A run folder in which only training is left to do."""
        folder = self.work / name
        for artifact in ("dataset", "gains", "ranker"):
            shutil.copytree(self.straight / artifact, folder / artifact)
        return folder


def last_loss(run: Path) -> float:
    """The loss of the last step of a finished training, from its curves."""
    curves = EventAccumulator(str(run / "tensorboard" / "train"))
    curves.Reload()
    points = curves.Scalars("1_loss/train")
    # Resumed or not: every step once, in order.
    assert [point.step for point in points] == list(range(1, STEPS + 1))
    return float(points[-1].value)
