import re

import torch

from nin.studies import confusion

CLASSES = ("cat", "dog", "bird")
MATRIX = torch.tensor([[90, 8, 2], [30, 70, 0], [0, 0, 50]])  # true class by row


def test_the_worst_confusions_come_first():
    lines = confusion.worst_pairs(MATRIX, CLASSES).splitlines()
    assert [re.sub(" +", " ", line).strip() for line in lines] == [
        "dog taken for cat 30 (30.0 %)",
        "cat taken for dog 8 ( 8.0 %)",
        "cat taken for bird 2 ( 2.0 %)",
    ]
    assert len({line.index("taken") for line in lines}) == 1
    assert len(confusion.worst_pairs(torch.arange(16).view(4, 4), "abcd").splitlines()) == 5  # of 12
    assert confusion.worst_pairs(MATRIX.diag().diag(), CLASSES) == "no image is confused"


def test_the_figure_shows_shares_and_colours_confusions_alone():
    figure = confusion.draw(MATRIX, CLASSES, "a title")
    (axis,) = figure.axes
    written = {tuple(map(round, text.get_position())): text for text in axis.texts if text.get_visible()}
    assert {place: text.get_text() for place, text in written.items()} == {  # column and row
        (0, 0): "90.0", (1, 0): "8.0", (2, 0): "2.0", (0, 1): "30.0", (1, 1): "70.0", (2, 2): "100.0"
    }  # fmt: skip
    assert written[1, 1].get_weight() == "bold" and written[0, 1].get_weight() != "bold"
    coloured = axis.images[0].get_array()
    assert coloured.max() == 30 and coloured.diagonal().sum() == 0
    assert [label.get_text() for label in axis.get_xticklabels()] == list(CLASSES)
    assert (figure.get_suptitle(), axis.get_ylabel()) == ("a title", "true class (images)")
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat (100)", "dog (100)", "bird (50)"]


def test_names_are_shown_as_they_are():
    (axis,) = confusion.draw(MATRIX, ("a_b$", "x^2", r"c\d"), "a title").axes
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text().partition(" ")[0] for label in labels] == [r"a_b\$", "x^2", r"c\d"]


def test_a_class_without_images_has_no_share():
    confusion.draw(torch.zeros(3, 3, dtype=torch.int64), CLASSES, "empty").canvas.draw()
