import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import nin
from claims import Lit, tiny
from nin.data.preprocess import Normalise
from nin.errors import ClaimError
from nin.pretrained import Pretrained
from nin.studies import maps

BLACK = torch.zeros(3, 1, 1, dtype=torch.uint8)


def lit() -> Pretrained:
    """A net that scores brightness and whose maps show it."""
    return Pretrained(Lit(), Normalise(torch.zeros(3), torch.ones(3)), list("0123456789"), {})


def test_a_net_that_scores_bright_pixels_loses_by_their_blanking():
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    places = torch.randint(0, 24, (200, 2), generator=torch.Generator().manual_seed(0))
    for image, (top, left) in zip(images, places, strict=True):
        image[:, top : top + 8, left : left + 8] = 255
    labels = torch.zeros(200).long()
    falls = maps.blanking(lit(), images, labels, BLACK)
    assert [len(each) for each in falls] == [200] * 3
    assert falls.under_map == pytest.approx([255 * 64 / 1024] * 200)  # all of the light
    assert 0 < sum(falls.at_random) < 0.7 * sum(falls.under_map)
    assert 0 < sum(falls.elsewhere) < 0.7 * sum(falls.under_map)
    one_place = maps.blanking(lit(), images[:1].expand(200, -1, -1, -1), labels, BLACK)
    assert one_place.under_map == one_place.elsewhere  # if all objects are in one place, another's map shows it too
    assert maps.blanking(lit(), images, labels, BLACK) == falls
    grey = torch.full_like(images, 90)
    assert np.ptp(maps.blanking(lit(), grey, labels, BLACK), axis=0).round(4).tolist() == [0.0] * 200


@pytest.mark.parametrize("cells", [7, 2])
def test_a_quarter_of_the_image_is_blanked_wherever_the_map_points(cells):
    images = torch.full((20, 3, 28, 28), 255, dtype=torch.uint8)  # its side is no multiple of half of 7
    corner = torch.zeros(20, cells, cells)
    corner[:, -1, -1] = 1  # the last place
    sums = maps.quarter_sums(corner)
    corners = maps.quarter_corners(lit(), (28, 28), (cells, cells))
    blanked = maps.blank_quarters(images, sums.flatten(1).argmax(1), corners, BLACK).float()
    assert (blanked[:, :, 14:, 14:] == 0).all() and blanked.mean() == pytest.approx(255 * 3 / 4)
    anywhere = torch.randint(sums[0].numel(), (20,))
    blanked = maps.blank_quarters(images, anywhere, corners, BLACK).float()
    assert blanked.mean((1, 2, 3)).tolist() == pytest.approx([255 * 3 / 4] * 20)
    assert (images == 255).all()


def test_a_quarter_lies_where_its_part_of_the_map_looked():
    net = nin.load("cifar10-gap")
    corners = maps.quarter_corners(net, (32, 32), (8, 8))
    assert corners[:6] == [(2, 2), (2, 6), (2, 10), (2, 14), (2, 16), (6, 2)] and len(corners) == 25
    assert maps.quarter_corners(net, (32, 64), (8, 16))[-1] == (16, 48)


def test_maps_of_one_value_show_no_place():
    with pytest.raises(ClaimError, match="class maps of 1×1 show no place"):
        maps.quarter_sums(torch.zeros(4, 1, 1))


def is_framed(axis, colour):
    top = axis.spines["top"]
    return top.get_visible() and to_hex(top.get_edgecolor()) == colour


def test_a_figure_of_maps_marks_wrong_answers_and_prints_scores():
    images, class_maps = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.rand(2, 3, 4, 4)
    scores = torch.tensor([[5.04, -1.0, 0.0], [9.0, 0.5, 0.25]])
    figure = maps.draw_maps(images, torch.tensor([0, 2]), scores, class_maps, ["cat", "dog", "bird"])
    right, wrong = figure.axes[:4], figure.axes[4:]
    assert (right[0].get_ylabel(), wrong[0].get_ylabel()) == ("cat", "bird,\ntaken for\ncat")
    assert [axis.get_xlabel() for axis in right[1:]] == ["5.0", "−1.0", "0.0"]
    assert [axis.xaxis.label.get_weight() for axis in wrong[1:]] == ["bold", "normal", "normal"]
    assert [is_framed(axis, maps.WRONG) for axis in right[1:]] == [False] * 3
    assert [is_framed(axis, maps.WRONG) for axis in wrong[1:]] == [True, False, False]
    assert is_framed(right[1], maps.TRUE) and is_framed(wrong[3], maps.TRUE)


def test_the_names_in_the_papers_figure_are_legible_on_its_page():
    """nin/README.md shows it 620 pixels wide."""
    figure = maps.draw_paper_figure(tiny(), torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    points_per_pixel = 72 * figure.get_figwidth() / 620
    assert figure.axes[1].title.get_fontsize() / points_per_pixel >= 10
    assert figure.axes[1].xaxis.label.get_fontsize() / points_per_pixel >= 8


def test_the_papers_figure():
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    trained = tiny()
    figure = maps.draw_paper_figure(trained, images, torch.arange(40) % 10, rows=4)
    assert len(figure.axes) == 4 * 11
    assert [axis.get_title() for axis in figure.axes[1:11]] == list(trained.classes)
    rows = [figure.axes[11 * row : 11 * row + 11] for row in range(4)]
    assert [row[0].get_ylabel().split(",")[0] for row in rows] == list(trained.classes[:4])
    solid = [[k for k, axis in enumerate(row[1:]) if is_framed(axis, maps.TRUE)] for row in rows]
    assert solid == [[0], [1], [2], [3]]
    assert maps.one_of_each(torch.arange(40) % 10, 10, 12)[-2:] == [10, 11]  # the second of their classes


def test_one_image_of_each_class_in_turn_as_far_as_there_are():
    draws = torch.Generator().manual_seed(0)
    for _ in range(200):
        count, classes, rows = (int(torch.randint(1, 13, (), generator=draws)) for _ in range(3))
        labels = torch.randint(0, classes, (count,), generator=draws)
        chosen = maps.one_of_each(labels, classes, rows)
        assert len(chosen) == len(set(chosen)) == min(rows, count)
        known = labels.unique().tolist()
        assert labels[chosen[: len(known)]].tolist() == known[:rows]
        numbers = labels[chosen].bincount(minlength=classes)
        assert all(numbers[k] == (labels == k).sum() or numbers[k] >= numbers.max() - 1 for k in known)


def test_of_many_classes_the_papers_figure_shows_those_of_its_images(monkeypatch):
    monkeypatch.setattr(maps, "COLUMNS", 9)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    trained, labels = tiny(), torch.tensor([7, 2, 7])
    figure = maps.draw_paper_figure(trained, images, labels)
    answers = {trained.classes[k] for k in trained(images).argmax(1)}
    shown = sorted({"2", "7"} | answers)
    assert len(figure.axes) == 3 * (1 + len(shown))
    assert [axis.get_title() for axis in figure.axes[1 : 1 + len(shown)]] == shown
    assert [axis.get_ylabel().split(",")[0] for axis in figure.axes[:: 1 + len(shown)]] == ["2", "7", "7"]
