"""A loss or gradient that is not finite: noticed on any rank, named on all.

The losses of a window are read together, so that a step need not wait for the device; the error
still names the very step that went wrong, its documents, and where to go on from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from plant_dist.errors import ArtifactError, TrainingError
from plant_dist.runtime.checkpoint import Checkpoints
from plant_dist.runtime.collectives import any_rank, gather_objects
from plant_dist.train.hooks import Loop

NAMED_DOCUMENTS = 20  # more would hide the rest of the line


class Failure(NamedTuple):
    """A step of one rank that went wrong: its place in the window, its loss, its documents."""

    place: int
    loss: float
    documents: list[str]


def require_finite(
    loop: Loop, identify: Callable[[Any], list[str]], checkpoints: Checkpoints
) -> None:
    """Check every loss and gradient norm of the window. All ranks must call.

    Args:
        loop: its window holds the steps to check.
        identify: returns the document ids of a batch.
        checkpoints: names the last good one; a checkpoint is only written after this check.

    Raises:
        TrainingError: on every rank alike, if one is not finite on any rank.
    """
    window = loop.window
    if not window.losses:
        return
    losses = torch.stack(window.losses)
    wrong = ~losses.isfinite()
    if loop.context.precision != "fp16":
        # fp16 gradients overflow now and then; the scaler passes over such a step.
        wrong |= ~torch.stack(window.norms)[:, -1].isfinite()
    mine = None
    # The first alone: once the weights are spoiled, all that follows is.
    if places := wrong.nonzero().flatten().tolist():
        ids = [one for batch in window.batches[places[0]] for one in identify(batch)]
        mine = Failure(places[0], losses[places[0]].item(), ids)
    # One flag when all is well; documents travel only when something is wrong.
    if any_rank(loop.context, mine is not None):
        # All ranks are here: the checkpoint that is being written becomes the last good one.
        with suppress(ArtifactError):
            checkpoints.finish()
        failures = [one for one in gather_objects(loop.context, mine) if one is not None]
        raise TrainingError(_describe(loop, failures, checkpoints))


def _describe(loop: Loop, failures: Sequence[Failure], checkpoints: Checkpoints) -> str:
    first = min(one.place for one in failures)
    at_first = [one for one in failures if one.place == first]
    # Ranks exchange gradients: one rank's bad loss spoils the norm on all.
    culprits = [one for one in at_first if not math.isfinite(one.loss)] or at_first
    ids = [document for one in culprits for document in one.documents]
    more = f" and {len(ids) - NAMED_DOCUMENTS} more" if len(ids) > NAMED_DOCUMENTS else ""
    loss = culprits[0].loss
    what = "a gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    step = loop.state.step - len(loop.window.losses) + first + 1
    return (
        f"{loop.title}: {what} at step {step}, documents {', '.join(ids[:NAMED_DOCUMENTS])}{more}; "
        f"last good checkpoint: {checkpoints.latest() or 'none yet'}; look at these documents, "
        "lower the learning rate, or set runtime.precision to bf16 or fp32"
    )
