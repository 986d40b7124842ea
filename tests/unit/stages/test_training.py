import logging

import pytest

from plant_dist.config.schema import TrainConfig
from plant_dist.errors import ConfigError
from plant_dist.runtime.context import RunContext
from plant_dist.stages.training import check_batch


def test_a_batch_of_fewer_documents_than_ranks_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"documents_per_batch=4, or start 3$"):
        check_batch(TrainConfig(documents_per_batch=3), RunContext(world=4))


def test_an_uneven_batch_is_warned_of_with_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.WARNING):
        check_batch(TrainConfig(documents_per_batch=8), RunContext(world=4))
        check_batch(TrainConfig(documents_per_batch=3, tokens_per_batch=99), RunContext(world=4))
        assert not caplog.records
        check_batch(TrainConfig(documents_per_batch=16), RunContext(world=3))
    assert "16 over 3 processes" in caplog.text
    assert "set it to 15 or 18" in caplog.text
