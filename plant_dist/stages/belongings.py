"""What a checkpoint of a classifier holds besides numbers: its config, tokenizer and label space.

With them a checkpoint is a whole classifier, which `plant-dist export` makes a folder of, though
the run may have been copied without its dataset.
"""

from __future__ import annotations

from pathlib import Path

from plant_dist.data.prepared import LABEL_SPACE, TOKENIZER
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.train.shortlists import link_files

MODEL_CONFIG = "config.json"


class Belongings:
    """Adds them to every checkpoint; see `runtime.checkpoint.Attachment`.

    Args:
        model: whose config it is.
        dataset: the prepared dataset, which has the others.
    """

    def __init__(self, model: PlantForMultiLabelClassification, dataset: Path) -> None:
        self._config, self._dataset = model.config, dataset

    def ready(self) -> None:
        """Nothing: the dataset was whole before training began."""

    def write(self, folder: Path) -> None:
        """Write the model's config and link the dataset's files, which never change."""
        self._config.to_json_file(folder / MODEL_CONFIG)
        for name in (TOKENIZER, LABEL_SPACE):
            (folder / name).mkdir()
            link_files(self._dataset / name, folder / name)

    def read(self, folder: Path) -> None:
        """Nothing: a run that goes on has them from its dataset."""
