"""Where sharded rows lie: TorchRec must be told how many GPUs a machine has."""

from __future__ import annotations

import pytest

from plant_dist.errors import RuntimeSetupError
from plant_dist.labels.sharded import ranks_a_node


@pytest.mark.parametrize(
    ("places", "count"),
    [
        ([None, None, None], 3),
        ([0], 1),
        ([0, 1, 2], 3),
        ([0, 1, 0, 1], 2),
        ([0, 0, 0], 1),
        ([0, 1, 0], 2),
    ],
)
def test_ranks_of_a_machine_are_counted_by_their_gpus(places: list[int | None], count: int) -> None:
    assert ranks_a_node(places) == count


def test_torchrec_then_expects_rows_where_each_rank_has_its_gpu() -> None:
    pytest.importorskip("torchrec")
    from torchrec.distributed.sharding_plan import placement

    places = [0, 1, 2, 3, 0, 1, 2, 3]
    expected = [placement("cuda", rank, ranks_a_node(places)) for rank in range(8)]
    assert expected == [f"rank:{rank}/cuda:{place}" for rank, place in enumerate(places)]


@pytest.mark.parametrize("places", [[0, 0, 1, 1], [1, 0]])
def test_other_orders_are_refused_with_what_to_ask_for(places: list[int | None]) -> None:
    with pytest.raises(RuntimeSetupError, match=r"one node after the other.*--distribution=block"):
        ranks_a_node(places)
