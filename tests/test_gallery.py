"""Every picture in its usual and in its odd cases: nothing is cut at an edge, and no axis is squeezed."""

import warnings

import pytest

import gallery

SLACK = 0.02  # inches
LEAST = 0.2  # inches of an axis


@pytest.mark.parametrize("name", gallery.CASES)
def test_a_picture_shows_all_that_it_has_to_say(name, capsys):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*constrained_layout")  # no room was left for the axes
        figure = gallery.CASES[name]()
        figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.get_label() == "<colorbar>" or min(axis.get_window_extent().size) >= LEAST * figure.dpi, "squeezed"
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= -SLACK, f"cut: {drawn} in {width}×{height}"


def test_each_odd_case_stands_beside_a_usual_one():
    drawings = {name.partition("-")[0] for name in gallery.CASES}
    assert len(drawings) >= 12 and all(f"{drawing}-usual" in gallery.CASES for drawing in drawings)
