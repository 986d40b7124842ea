"""Pictures: what is named on an axis, and what colours do beyond the last."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from plant_dist.drawing import COLOURS, LINES, drawn, look, name_sizes, panels


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ([25, 50, 100, 200, 400, 422], ["25", "50", "100", "200", "422"]),
        ([100, 1600, 22778], ["100", "1,600", "22,778"]),
        ([7], ["7"]),
    ],
)
def test_sizes_are_named_unless_they_would_run_into_the_last(tmp_path, sizes, named):
    with drawn(tmp_path / "one.png") as axes:
        axes.plot(sizes, sizes)
        name_sizes(axes, sizes)
        assert axes.get_xscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == named
        assert list(axes.get_xticks()) == [int(one.replace(",", "")) for one in named]
        assert not len(axes.get_xticks(minor=True))


def test_panels_stand_side_by_side_under_one_legend(tmp_path):
    path = tmp_path / "three.png"
    with panels(path, 3) as axes:
        for pane in axes:
            pane.plot([1, 2], [1, 2], label="a curve", **look(0))
        figure = axes[0].figure
    assert [len(pane.lines) for pane in axes] == [1, 1, 1]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a curve"]
    left = [pane.get_position().x0 for pane in axes]
    assert left == sorted(left)
    assert len(set(left)) == 3
    height, width, _ = imread(path).shape
    assert width > 2 * height


def test_looks_differ_and_repeat_beyond_the_last():
    looks = [look(order) for order in range(len(COLOURS))]
    assert [one["color"] for one in looks] == list(COLOURS)
    assert [one["linestyle"] for one in looks] == list(LINES)
    assert look(len(COLOURS)) == look(0)
