import logging

import pytest

from plant_dist.config.schema import TrainConfig
from plant_dist.errors import ConfigError
from plant_dist.stages.training import check_batch


def test_a_batch_of_fewer_documents_than_ranks_is_refused_with_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"documents_per_batch=4, or start 3$"):
        check_batch(TrainConfig(documents_per_batch=3), 4, resuming=True)


def test_an_uneven_batch_is_refused_with_what_would_fit() -> None:
    check_batch(TrainConfig(documents_per_batch=8), 4, resuming=False)
    check_batch(TrainConfig(documents_per_batch=3, tokens_per_batch=99), 4, resuming=False)
    with pytest.raises(ConfigError) as error:
        check_batch(TrainConfig(documents_per_batch=16), 3, resuming=False)
    assert str(error.value) == (
        "train.documents_per_batch is 16, which 3 processes cannot share evenly; set "
        "train.documents_per_batch=15 or 18, or start 2 or 4"
    )


def test_a_run_goes_on_with_uneven_shares_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.WARNING):
        check_batch(TrainConfig(documents_per_batch=8), 4, resuming=True)
        assert not caplog.records
        check_batch(TrainConfig(documents_per_batch=16), 3, resuming=True)
    assert "16 over 3 processes: going on all the same" in caplog.text
