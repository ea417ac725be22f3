import numpy as np
import pytest
import torch

from nin import config
from nin.data.augment import PAD_MODES, random_crop, random_cutout, random_flip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_each_image_gets_a_window_of_its_own(mode):
    images = torch.arange(1.0, 1 + 64 * 3 * 32 * 32).reshape(64, 3, 32, 32)
    out = random_crop(images, 4, mode, generator())
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), "constant" if mode == "zero" else "reflect")
    places = set()
    for image, source in zip(out.numpy(), padded, strict=True):
        found = [(i, j) for i in range(9) for j in range(9) if np.array_equal(image, source[:, i : i + 32, j : j + 32])]
        assert len(found) >= 1
        places.add(found[0])
    assert len(places) > 30  # of 81, for 64 images
    assert {i for i, _ in places} == set(range(9)) == {j for _, j in places}
    assert random_crop(images, 0, mode, generator()) is images


def test_each_image_is_flipped_or_not_by_itself():
    images = torch.randn(1000, 1, 5, 4, generator=generator(1))
    out = random_flip(images, generator())
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(out, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(out, images, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert 430 < sum(flipped) < 570


@pytest.mark.parametrize("side", [1, 4, 7])
def test_each_image_loses_a_square_of_its_own(side):
    images = torch.rand(500, 3, 9, 12, generator=generator(1)) + 1
    out = random_cutout(images, side, generator())
    lost = (out == 0).all(1)  # (N, H, W)
    assert torch.equal(out[~lost[:, None].expand_as(out)], images[~lost[:, None].expand_as(out)])
    rows, columns = lost.any(2), lost.any(1)
    assert torch.equal(lost, rows[:, :, None] & columns[:, None])  # a rectangle
    for covered, pixels in ((rows, 9), (columns, 12)):
        first, number = covered.int().argmax(1), covered.sum(1)
        begins = covered.int().diff(dim=1).eq(1).sum(1) + covered[:, 0].int()
        assert (begins == 1).all()  # in one piece
        at_a_border = (first == 0) | (first + number == pixels)
        assert (number[~at_a_border] == side).all() and (number <= side).all() and (number >= 1 + (side - 1) // 2).all()
        assert len(set(first.tolist())) > pixels // 2 and at_a_border.any()
    assert random_cutout(images, 0, generator()) is images


def test_random_numbers_depend_on_the_generator_alone():
    images = torch.randn(50, 3, 8, 8)
    ways = [lambda g: random_crop(images, 3, "reflect", g), lambda g: random_flip(images, g)]
    for augment in (*ways, lambda g: random_cutout(images, 3, g)):
        assert torch.equal(augment(generator(1)), augment(generator(1)))
        assert not torch.equal(augment(generator(1)), augment(generator(2)))


def test_the_settings_name_every_padding():
    assert tuple(PAD_MODES) == config.PAD_MODES
