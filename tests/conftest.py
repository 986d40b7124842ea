"""What holds for all tests: none of them measures time, and those of a file share what it makes."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A busy machine is slow, which is no fault of the code.
settings.register_profile("plant_dist", deadline=None)
settings.load_profile("plant_dist")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file on one worker of pytest-xdist, and those of SLURM's one cluster."""
    for item in items:
        shares = item.path.parent if item.path.parent.name == "slurm" else item.path
        item.add_marker(pytest.mark.xdist_group(str(shares)))
