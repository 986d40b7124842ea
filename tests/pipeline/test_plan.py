"""The plan's sizes against the classifier that training has made."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from plant_dist.config import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.labels.choice import plan_rows
from plant_dist.models.shapes import encoder_shape
from plant_dist.stages.estimate import LABEL_TABLES, label_widths, parts_of

pytestmark = pytest.mark.pipeline


def test_weights_are_those_of_the_saved_classifier(finished: Path, config: str) -> None:
    asked = load_config(Path(config))
    labels = len(PreparedDataset.load(finished / "run" / "dataset").label_space)
    encoder = encoder_shape(asked.encoder)
    rows = plan_rows(asked.labels, labels, label_widths(asked, encoder.width), 1, 1e12)
    parts = {one.name: one for one in parts_of(asked, encoder, labels, rows)}
    tensors = load_file(finished / "run/classifier/model.safetensors")

    def size(prefix: str) -> int:
        return sum(one.nbytes for name, one in tensors.items() if name.startswith(prefix))

    assert parts["encoder"].weights == size("encoder.") > 0
    assert parts[LABEL_TABLES].weights == size("decoder.labels.") > 0
    assert parts["ranker"].weights == size("decoder.scorer.") > 0
    # As many gains as asked for is the most there can be.
    assert parts["static gains"].weights >= size("decoder.gains.gains") * 2 > 0
