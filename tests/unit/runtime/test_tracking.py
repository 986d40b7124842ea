from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plant_dist.runtime.context import RunContext
from plant_dist.runtime.tracking import Tracker


def events(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    return reader


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(one.step, pytest.approx(one.value)) for one in events(folder).Scalars(tag)]


def test_scalars_are_written(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, RunContext())
    tracker.scalars(1, {"a/x": 0.5, "a/y": 2.0})
    tracker.scalars(2, {"a/x": 0.25})
    tracker.close()
    assert points(tmp_path, "a/x") == [(1, 0.5), (2, 0.25)]
    assert points(tmp_path, "a/y") == [(1, 2.0)]


def test_other_ranks_and_no_folder_write_nothing(tmp_path: Path) -> None:
    for tracker in (Tracker(tmp_path, RunContext(rank=1, world=2)), Tracker(None, RunContext())):
        tracker.scalars(1, {"a": 1.0})
        tracker.text("t", "x")
        tracker.hyperparameters({"a": 1}, {"b": 1.0})
        tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_has_no_doubled_points(tmp_path: Path) -> None:
    first = Tracker(tmp_path, RunContext())
    for step in range(1, 6):
        first.scalars(step, {"loss": float(step)})
    first.close()
    second = Tracker(tmp_path, RunContext())
    second.resume(3)
    for step in range(4, 8):
        second.scalars(step, {"loss": 10.0 * step})
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0), (7, 70.0)]
    assert points(tmp_path, "loss") == expected


def test_everything_else_lies_in_the_same_folder(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    tracker = Tracker(tmp_path, RunContext())
    tracker.text("config", "**bold**")
    tracker.figure("plot", Figure(figsize=(1, 1)), 1)
    tracker.pr_curve("pr", np.array([True, False, True]), np.array([0.9, 0.2, 0.4]), 1)
    tracker.hyperparameters({"lr": 0.1, "branches": ["a", "b"], "k": None}, {"final/map": 0.5}, 7)
    tracker.close()
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    reader = events(tmp_path)
    tags = reader.Tags()
    assert tags["images"] == ["plot"]
    assert {"config/text_summary", "pr"} <= set(tags["tensors"])
    assert points(tmp_path, "final/map") == [(7, 0.5)]
    assert reader.Tensors("config/text_summary")[0].tensor_proto.string_val == [b"**bold**"]
    content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"branches" in content
    assert b'["a", "b"]' in content


def test_the_curve_has_the_precision_and_recall_of_its_thresholds(tmp_path: Path) -> None:
    import tensorboard.util.tensor_util as tensor_util

    gold, scores = np.array([1, 0, 1, 1]), np.array([0.9, 0.6, 0.4, 0.8])
    tracker = Tracker(tmp_path, RunContext())
    tracker.pr_curve("pr", gold, scores, 1)
    tracker.close()
    tp, fp, _, fn, precision, recall = tensor_util.make_ndarray(
        events(tmp_path).Tensors("pr")[0].tensor_proto
    )
    middle = len(tp) // 2  # threshold about 0.5: two of three found, one wrong
    assert (tp[middle], fp[middle], fn[middle]) == (2, 1, 1)
    assert precision[middle] == pytest.approx(2 / 3)
    assert recall[middle] == pytest.approx(2 / 3)
