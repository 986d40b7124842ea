"""When the index of shortlists is made anew, and what TensorBoard shows of it: a hook of the loop.

Must not know how an index is made; `shortlists.py` does that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plant_dist.errors import TrainingError
from plant_dist.logs import get_logger
from plant_dist.metrics.bands import band_labels
from plant_dist.train.hooks import Hook, Loop
from plant_dist.train.shortlists import Measured, Shortlists

log = get_logger(__name__)
RECALL = "shortlist_recall"  # among the metrics of a validation


class IndexRefresh(Hook):
    """Begins a new index every `refresh_steps`, or when recall falls; exchanges it later.

    Args:
        shortlists: the index in use and the one being made.
        train_frequency: (L,) training documents of each label.
    """

    def __init__(
        self, shortlists: Shortlists, train_frequency: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> None:
        self._shortlists, self._frequency = shortlists, train_frequency

    def started(self, loop: Loop) -> None:
        """Make the first index, unless a checkpoint brought one."""
        if self._shortlists.index is None:
            with loop.whole():
                measured = self._shortlists.rebuild(loop.state.step)
            self._show(loop, measured)
            if self._shortlists.config.refresh_steps is None:
                # There will be no better one; else training is what makes it good.
                self._check_floor(loop, measured)

    def stepped(self, loop: Loop) -> None:
        """Exchange the index where it is time, and begin another where one is due."""
        step = loop.state.step
        index = self._shortlists.index
        if self._shortlists.pending and step >= self._shortlists.due:
            # It may have to wait until the index is built.
            with loop.patience(), loop.whole():
                measured = self._shortlists.swap()
            if measured is not None:
                self._show(loop, measured)
                self._check_floor(loop, measured)
        elif self._due(step) and not loop.finished:
            self._begin(loop)
        if index is not None and step % loop.settings.log_steps == 0:
            loop.tracker.scalars(step, {"9_shortlist/stale_steps": step - index.about.step})

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Begin a new index at once where the recall of gold labels has fallen."""
        recall = metrics.get(RECALL)
        lists = self._shortlists
        if recall is None or lists.config.refresh_steps is None:
            return
        if lists.fresh_recall is None:
            lists.fresh_recall = recall
        fallen = lists.fresh_recall - recall
        if fallen > lists.config.refresh_drop and not lists.pending:
            log.info("shortlist: recall of gold labels fell by %.3f; a new index is made", fallen)
            self._begin(loop)

    def closed(self, loop: Loop) -> None:
        """Wait for a build under way, whose files would otherwise be written into nothing."""
        self._shortlists.abandon()

    def _due(self, step: int) -> bool:
        every = self._shortlists.config.refresh_steps
        # One that is under way, begun when recall fell, is as good as the one that is due.
        return every is not None and step % every == 0 and not self._shortlists.pending

    def _begin(self, loop: Loop) -> None:
        with loop.whole():
            self._shortlists.begin(loop.state.step)

    def _check_floor(self, loop: Loop, measured: Measured) -> None:
        floor = self._shortlists.config.recall_floor
        if floor is None or measured.recall >= floor:
            return
        # Saved first: with another config the run may be gone on from.
        folder = loop.save(wait=True)
        raise TrainingError(
            f"the index of step {measured.about.step} finds {measured.recall:.3f} of the gold "
            f"labels among {self._shortlists.config.candidates}, below shortlist.recall_floor "
            f"{floor}; everything is saved in {folder}: raise shortlist.candidates or lower the "
            "floor"
        )

    def _show(self, loop: Loop, measured: Measured) -> None:
        step, about = loop.state.step, measured.about
        tags = {
            "9_shortlist/recall": measured.recall,
            "9_shortlist/overlap_with_exact": measured.overlap,
            "9_shortlist/search_ms_per_document": measured.milliseconds,
            "9_shortlist/build_seconds": about.build_seconds,
            "9_shortlist/vectors_learned": float(about.vectors == "learned"),
        }
        present = np.bincount(measured.gold, minlength=len(self._frequency)) > 0
        for name, inside in band_labels(self._frequency, present).items():
            chosen = inside[measured.gold]
            # A band without gold has no recall, and would be an empty chart.
            if chosen.any():
                tags[f"9_shortlist_recall/{name}"] = float(measured.found[chosen].mean())
        loop.tracker.scalars(step, tags)
        log.info("shortlist: %s", measured)
