"""A hook that records what a few steps spend their time on, for TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, schedule

from plant_dist.logs import get_logger
from plant_dist.train.hooks import Hook, Loop

log = get_logger(__name__)

# Steps passed over, since they set things up; steps of warming up; steps recorded.
SKIPPED, WARMING, RECORDED = 2, 1, 3


class Profile(Hook):
    """Writes `rank-N.trace.json` of a few early steps, and ends recording.

    Args: folder: where to; made when it is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profile: Any = None

    def started(self, loop: Loop) -> None:
        """Begin to count steps."""
        kinds = [ProfilerActivity.CPU]
        if loop.context.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        path = self._folder / f"rank-{loop.context.rank}.trace.json"

        def write(found: Any) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            found.export_chrome_trace(str(path))
            log.info("profile of %d steps: %s (open in ui.perfetto.dev)", RECORDED, path)

        self._profile = profile(
            activities=kinds, record_shapes=True, with_stack=False, on_trace_ready=write,
            schedule=schedule(wait=SKIPPED, warmup=WARMING, active=RECORDED, repeat=1),
        )  # fmt: skip
        self._profile.start()

    def stepped(self, loop: Loop) -> None:
        """Count a step."""
        self._profile.step()

    def closed(self, loop: Loop) -> None:
        """Write what there is, where training ended before the last step that was wanted."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
