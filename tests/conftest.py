"""What holds for all tests: none of them measures time."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is slow, which is no fault of the code.
settings.register_profile("plant_dist", deadline=None)
settings.load_profile("plant_dist")
