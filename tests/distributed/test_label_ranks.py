"""Label rows on one to four processes: one training, whichever engine and however many ranks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fork_server import Server

from plant_dist.errors import ArtifactError
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.stages.rows import ROWS, fill_saved_rows

pytest.importorskip("torchrec")
FOUR = [("replicated", 1), ("replicated", 2), ("sharded", 1), ("sharded", 2)]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What each number of ranks computed, see label_ranks.py."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = server.run("label_ranks.py", folder, world=1)
    assert ended.codes == [0], ended.words[-4000:]
    worlds = {n: json.loads((folder / f"found{n}.json").read_text()) for n in (1, 2, 3, 4)}
    worlds[0] = {"folder": folder}
    return worlds


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, rows in one.items():
        np.testing.assert_allclose(other[name], rows, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "kind", ["", " frozen", " named"], ids=["all learns", "only rows learn", "names"]
)
@pytest.mark.parametrize(("engine", "world"), FOUR[1:])
def test_engines_and_ranks_give_one_training(
    found: dict[int, dict[str, Any]], engine: str, world: int, kind: str
) -> None:
    wanted, same = found[1]["replicated" + kind], found[world][engine + kind]
    assert len(wanted["losses"]) == 20
    assert same["losses"] == pytest.approx(wanted["losses"], abs=1e-5)
    assert same["metrics"] == pytest.approx(wanted["metrics"], abs=1e-5)
    assert_same(wanted["rows"], same["rows"])


@pytest.mark.parametrize("kind", ["", " named"], ids=["rows", "names"])
@pytest.mark.parametrize(("engine", "world"), FOUR[1:])
def test_engines_and_ranks_fit_bands_alike(
    found: dict[int, dict[str, Any]], engine: str, world: int, kind: str
) -> None:
    wanted, same = found[1]["replicated" + kind], found[world][engine + kind]
    np.testing.assert_allclose(same["bands"], wanted["bands"], atol=2e-3)
    assert not np.allclose(wanted["bands"], [0.0, 1.0, 1.0, 1.0], atol=0.05)
    for name in ("boost.rows", "bias.rows"):
        np.testing.assert_allclose(same["refit"][name], wanted["refit"][name], atol=2e-3, rtol=2e-3)
        assert not np.allclose(wanted["refit"][name], wanted["rows"][name], atol=0.01)


def test_names_never_learn(found: dict[int, dict[str, Any]]) -> None:
    rows = found[2]["sharded named"]["rows"]
    lengths = np.linalg.norm(rows["name.rows"], axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    assert {one for (one,) in rows["prior.rows"]} == {-2.0}
    assert [one for (one,) in rows["alone.rows"]] == [0.0] * 10 + [1.0]
    assert found[2]["sharded named"]["losses"] != found[2]["sharded"]["losses"]


def test_that_training_moves_the_rows(found: dict[int, dict[str, Any]]) -> None:
    losses = found[1]["replicated"]["losses"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert np.min(found[1]["replicated"]["rows"]["boost.sum"]) > 0


@pytest.mark.parametrize("engine", ["replicated", "sharded"])
@pytest.mark.parametrize("world", [1, 3, 4])
def test_rows_saved_on_two_ranks_go_on_on_others(
    found: dict[int, dict[str, Any]], engine: str, world: int
) -> None:
    saved, resumed = found[2][f"{engine} saved"], found[world][f"{engine} resumed"]
    assert resumed["after"] == pytest.approx(saved["after"], abs=1e-5)
    assert_same(saved["rows"], resumed["rows"])


def test_what_one_engine_saved_the_other_reads(found: dict[int, dict[str, Any]]) -> None:
    resumed = found[1]["crossed resumed"]
    assert resumed["after"] == pytest.approx(found[2]["sharded saved"]["after"], abs=1e-5)


def test_lazy_adam_goes_on_with_its_moments_and_steps(found: dict[int, dict[str, Any]]) -> None:
    saved, resumed = found[2]["adam saved"], found[1]["adam resumed"]
    assert resumed["after"] == pytest.approx(saved["after"], abs=1e-5)
    assert saved["after"] != pytest.approx(found[2]["replicated saved"]["after"], abs=1e-2)


def test_steps_of_two_passes_are_steps_of_one(found: dict[int, dict[str, Any]]) -> None:
    wanted = found[1]["replicated accumulated"]
    for engine, world in FOUR:
        assert found[world][f"{engine} accumulated"] == pytest.approx(wanted, abs=1e-5)


def test_adam_counts_steps_and_not_lookups(found: dict[int, dict[str, Any]]) -> None:
    counted = found[1]["counted"]
    assert len(counted) >= 6
    assert set(counted) == {3}


def test_caches_are_emptied_before_rows_are_read_or_written(
    found: dict[int, dict[str, Any]],
) -> None:
    told = found[1]["settled"]
    assert told == ["flush", "purge"] * (3 * len(found[1]["counted"]) // 2)


def test_each_rank_writes_its_own_labels(found: dict[int, dict[str, Any]]) -> None:
    assert {path.name for path in (found[0]["folder"] / "sharded").iterdir()} == {
        "rows.json",
        "rows-000000000000-000000000006.safetensors",
        "rows-000000000006-000000000011.safetensors",
    }


def test_a_classifier_saved_by_two_owners_opens_on_one_process(
    found: dict[int, dict[str, Any]],
) -> None:
    folder = found[0]["folder"] / "sharded2" / "classifier"
    model = PlantForMultiLabelClassification.from_pretrained(folder, local_files_only=True)
    fill_saved_rows(model, folder)
    for name, rows in model.labels.fields.items():
        wanted = found[2]["sharded"]["rows"][f"{name}.rows"]
        np.testing.assert_array_equal(rows.detach().numpy(), np.float32(wanted))
    (folder / ROWS / "rows-000000000006-000000000011.safetensors").unlink()
    with pytest.raises(ArtifactError, match="lacks the rows of label 6"):
        fill_saved_rows(model, folder)


def test_what_the_sharded_engine_cannot_do_is_said(found: dict[int, dict[str, Any]]) -> None:
    assert found[2]["too few labels"].startswith(
        "ConfigError: 1 labels over 2 ranks would leave a rank without any; set labels.engine"
    )
    assert "labels.optimizer=adagrad" in found[2]["lazy adam"]
