"""What a run leaves in TensorBoard: scalars, texts, figures, curves, hyper-parameters.

Only rank 0 writes; on the others every call returns at once. A resumed run goes on in the same
folder: points it is about to repeat are struck out. This module does not decide what is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plant_dist.runtime.context import RunContext

FLUSH_SECONDS = 30


class Tracker:
    """The TensorBoard folder of a run. Nothing is written before the first value.

    Args:
        folder: where the event files go; None writes nothing.
        context: the place of this process.
    """

    def __init__(self, folder: Path | None, context: RunContext) -> None:
        self.folder = folder if context.is_main else None
        self._from_step = 0
        self._writer: Any | None = None

    def resume(self, step: int) -> None:
        """Strike out what was written for steps after `step`; call before writing anything."""
        assert self._writer is None, "resume comes before the first value"
        self._from_step = step + 1

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one point of each named curve. A tag's part before `/` groups the charts."""
        if writer := self._open():
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Write a text, shown as Markdown."""
        if writer := self._open():
            writer.add_text(tag, text, step)

    def figure(self, tag: str, figure: Any, step: int) -> None:
        """Write a matplotlib figure as an image, and close it."""
        if writer := self._open():
            writer.add_figure(tag, figure, step, close=True)

    def pr_curve(self, tag: str, gold: np.ndarray | Tensor, scores: np.ndarray | Tensor,
                 step: int) -> None:  # fmt: skip
        """Write a precision-recall curve.

        Args:
            tag: its name.
            gold: (n,) bool or 0/1, the truth of n decisions.
            scores: (n,) floating, probabilities in [0, 1].
            step: optimizer steps done.
        """
        if writer := self._open():
            writer.add_pr_curve(tag, np.asarray(gold, dtype=np.int64), np.asarray(scores), step)

    def hyperparameters(
        self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int = 0
    ) -> None:
        """Write the run's settings beside its final metrics, for the HPARAMS tab.

        torch's own `add_hparams` makes a second run folder for this; here they stay in one.
        """
        writer = self._open()
        if not writer:
            return
        from torch.utils.tensorboard.summary import hparams

        # The tab shows four plain types; lists and null are shown as their JSON.
        plain = {
            key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
            for key, value in settings.items()
        }
        # The three summaries that TensorBoard's HPARAMS tab joins into one row.
        for summary in hparams(plain, dict(metrics)):
            writer.file_writer.add_summary(summary)
        self.scalars(step, metrics)

    def flush(self) -> None:
        """Bring everything written so far to disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the event file; later values open a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any | None:
        if self._writer is None and self.folder is not None:
            # The import takes a second, which ranks above 0 and dry runs need not spend.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self.folder), purge_step=self._from_step, flush_secs=FLUSH_SECONDS
            )
        return self._writer
