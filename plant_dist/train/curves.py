"""What TensorBoard shows of a classifier beyond its losses: bands, curves, gates, the config.

A hook of the one loop; nothing here changes the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from plant_dist.metrics.bands import band_labels
from plant_dist.train.classify_task import ClassifyTask
from plant_dist.train.hooks import Hook, Loop

BAND_METRICS = ("macro_f1", "r@10", "within_map")


class ClassifierCurves(Hook):
    """Writes the resolved config once, and after each validation a precision-recall curve,
    metrics by label-frequency band, and the mean gates of each band.

    Args:
        task: whose validations are drawn.
        config_text: the resolved config, as YAML.
    """

    def __init__(self, task: ClassifyTask, config_text: str) -> None:
        self._task = task
        self._config_text = config_text

    def started(self, loop: Loop) -> None:
        """Write the config as text, and the gates as planted."""
        # A run that goes on wrote them when it began.
        if loop.state.step == 0:
            indented = "\n".join("    " + line for line in self._config_text.splitlines())
            loop.tracker.text("config", indented)
            loop.tracker.scalars(0, self._gates())

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Draw what the validation found."""
        # One process writes; nothing below is a collective, so the others may leave.
        if self._task.validated is None or not loop.context.is_main:
            return
        step = loop.state.step
        evaluator, results = self._task.validated
        predictions = evaluator.predictions()
        probability = torch.sigmoid(torch.from_numpy(predictions.scores.astype("float32")))
        loop.tracker.pr_curve(
            "validation/micro", predictions.hits().ravel(), probability.numpy().ravel(), step
        )
        for band in results.bands:
            # A band that no validation document holds has no value, and would be an empty chart.
            found = {
                f"3_bands_{name}/{band.name}": value
                for name in BAND_METRICS
                if math.isfinite(value := band.metrics.get(name, math.nan))
            }
            loop.tracker.scalars(step, found)
        loop.tracker.scalars(step, self._gates())

    @torch.no_grad()
    def _gates(self) -> dict[str, float]:
        """Return the mean weight of each branch, by band of training documents."""
        model, config = self._task.classifier, self._task.classifier.config.model_section()
        if config.gates == "sum":
            return {}
        if config.gates == "shared":
            # Times the branches, so that 1 is an even share however many there are.
            weights = model.decoder.gate.softmax(-1) * len(config.branches)
            return {f"4_gates/{n}": float(w) for n, w in zip(config.branches, weights, strict=True)}
        weights_LN = model.labels.fields["gate"].softmax(-1) * len(config.branches)
        own = model.labels.own
        # Of this rank's labels, where rows are sharded.
        frequency = self._task.corpus.train_frequency[own.start : own.stop].numpy()
        tags: dict[str, float] = {}
        for name, inside in band_labels(frequency, np.ones(len(frequency), np.bool_)).items():
            if name != "unseen" and inside.any():
                means = weights_LN[torch.from_numpy(inside).to(weights_LN.device)].mean(0).tolist()
                tags |= {
                    f"4_gates_{b}/{name}": m for b, m in zip(config.branches, means, strict=True)
                }
        return tags
