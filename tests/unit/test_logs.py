"""Log lines and progress bars share one standard error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from plant_dist import logs


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """Leave the package's logger as it was found."""
    logger = logging.getLogger(logs.ROOT)
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def test_a_log_line_stands_on_a_line_of_its_own_above_the_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    log = logs.get_logger("plant_dist.test")
    items = []
    for item in logs.progress([1, 2, 3], "read", "documents"):
        log.info("seen %d", item)
        items.append(item)
    assert items == [1, 2, 3]
    written = capsys.readouterr().err
    # After a carriage return the bar is written over: what counts is what stands last.
    lines = [line.rpartition("\r")[2] for line in written.split("\n")]
    told = [line for line in lines if "seen" in line]
    assert len(told) == 3
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d seen \d", line) for line in told)
    assert "read: 100%" in written
    assert "3/3" in written


def test_a_bar_that_is_not_shown_still_gives_the_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(logs.progress(iter("ab"), "read", "documents", shown=False)) == ["a", "b"]
    assert capsys.readouterr().err == ""
