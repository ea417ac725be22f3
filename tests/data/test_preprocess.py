import ast
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from builders import ROOT, Ended, one_with_anything
from nin import config
from nin.data import SETS, Normalise, Whiten
from nin.data.preprocess import PREPROCESSINGS, ImageNet, symmetric, upper_triangle
from nin.errors import SettingError
from nin.pretrained import read_whitening


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["__init__", "augment", "preprocess"])
def test_preprocessing_and_augmentation_import_torch_alone(name):
    """That the packages above import nothing heavy either is tested where a published net is loaded."""
    tree = ast.parse((ROOT / "nin" / "data" / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    light = {"__future__", "collections.abc", "importlib", "math", "typing", "nin.checks", "nin.errors"}
    assert imported <= light | {"torch", "torch.nn"}


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_fitted_to_each_channel(channels):
    images = torch.randint(0, 200, (50, channels, 8, 8), generator=generator(), dtype=torch.uint8)
    images[:, -1] //= 3
    fitted = Normalise.fit(images)
    pixels = images.numpy().astype(float)
    np.testing.assert_allclose(fitted.mean.flatten(), pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(fitted.std.flatten(), pixels.std((0, 2, 3)), rtol=1e-5)
    out = fitted(images)
    assert out.dtype == torch.float32 and out.shape == images.shape
    assert out.mean().abs() < 1e-5
    with pytest.raises(SettingError, match=rf"images={4 - channels}×5×4: expected {channels} channels"):
        fitted(torch.zeros(1, 4 - channels, 5, 4, dtype=torch.uint8))


def test_imagenet_is_the_same_for_any_images():
    fitted = ImageNet.fit(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert fitted(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_agrees_with_its_formula(channels):
    size = channels * 16
    images = torch.randint(0, 256, (300, channels, 4, 4), generator=generator(), dtype=torch.uint8)
    x = images.numpy().reshape(300, size).astype(float)
    x = x - x.mean(1, keepdims=True)
    x = 55 * x / np.sqrt((x**2).sum(1, keepdims=True))
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred.T @ centred / 300)
    expected = centred @ (u @ np.diag(1 / np.sqrt(s + 0.1)) @ u.T)
    fitted = Whiten.fit(images)
    np.testing.assert_allclose(fitted(images).flatten(1), expected, atol=2e-3)
    covariance = np.cov(fitted(images).flatten(1).numpy().T)
    np.testing.assert_allclose(np.diag(covariance)[s.argsort()].mean(), (s / (s + 0.1)).mean(), rtol=0.02)
    with pytest.raises(SettingError, match=f"images={channels}×5×4: expected {channels}×4×4, which the whitening"):
        fitted(torch.zeros(1, channels, 5, 4, dtype=torch.uint8))


def test_an_image_without_contrast_is_whitened_to_numbers():
    images = torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8, generator=generator())
    images[7] = 128
    assert Whiten.fit(images)(images).isfinite().all()


@given(st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_symmetric_matrix_is_stored_as_its_half(size, seed):
    matrix = torch.randn(size, size, generator=generator(seed))
    matrix = matrix.triu() + matrix.triu(1).T
    half = upper_triangle(matrix)
    assert half.shape == (size * (size + 1) // 2,) and torch.equal(symmetric(half, size), matrix)
    with pytest.raises(SettingError, match=r"triangle=\[\d+\]: expected"):
        symmetric(half[1:], size)


def test_the_published_whitening_is_that_of_cifar10(cifar10_root):
    """Fitting it takes a minute; a few random directions show as well that it is the inverse square root."""
    (file,) = (ROOT / "checkpoints").glob("whitening-*.safetensors")
    numbers = read_whitening(load_file(file))
    whiten = Whiten(numbers["preprocess.mean"], numbers["preprocess.matrix"], (3, 32, 32))
    images = SETS["cifar10"].parse(SETS["cifar10"].fetch(cifar10_root, download=False), 32).train_images
    assert whiten(images[:2000]).std().item() == pytest.approx(0.52, abs=0.01)
    directions = torch.randn(3072, 4, generator=generator())
    along = whiten.matrix @ directions
    covered = torch.zeros_like(along)
    for chunk in images.split(5000):
        x = chunk.flatten(1).float()
        x -= x.mean(1, keepdim=True)
        x *= 55 / x.norm(dim=1, keepdim=True)
        x -= whiten.mean
        covered += x.T @ (x @ along) / len(images)
    again = whiten.matrix @ (covered + 0.1 * along)  # M (C + 0.1) M
    assert (again - directions).norm() / directions.norm() < 0.01


def test_the_settings_name_every_preprocessing():
    assert tuple(PREPROCESSINGS) == config.PREPROCESSINGS
    assert all(kind.name == name for name, kind in PREPROCESSINGS.items())


# any values -----------------------------------------------------------------------------------------------------------

shapes = st.sampled_from([(3,), (1, 3, 1, 1), (3, 1)])


def tensors(values):
    return st.builds(
        lambda numbers, shape: torch.tensor(numbers).reshape(shape), st.lists(values, min_size=3, max_size=3), shapes
    )


odd_tensors = tensors(st.floats(width=32)) | st.sampled_from(
    [torch.zeros(0), torch.ones(2), torch.full((3,), math.nan), torch.ones(3, dtype=torch.cfloat)]
)


CHANNELS = {
    "mean": tensors(st.floats(-300, 300, width=32)) | odd_tensors,
    "std": tensors(st.floats(0.125, 300, width=32)) | odd_tensors,
}


def test_normalise_with_any_values():
    ended = Ended()

    @settings(max_examples=400)
    @given(one_with_anything(CHANNELS))
    def one(arguments):
        made = ended.build(Normalise, arguments)
        if made is not None:
            images = torch.zeros(2, arguments["mean"].numel(), 4, 4, dtype=torch.uint8)
            assert made(images).shape == images.shape

    one()
    ended.assert_both(20)


WHITENING = {
    "mean": st.sampled_from([*[torch.zeros(12)] * 8, torch.zeros(3), torch.full((12,), math.nan)]),
    "matrix": st.sampled_from([*[torch.eye(12)] * 8, torch.eye(3), torch.zeros(12), torch.eye(12) * math.inf]),
    "shape": st.sampled_from(
        [(3, 2, 2), [3, 2, 2], (12, 1, 1), (1, 3, 4), (3, 1, 1), (3, 2), (3, 2, 2.0), (-3, -2, 2)]
    ),
}


def test_whiten_with_any_values():
    ended = Ended()

    @settings(max_examples=120)
    @given(one_with_anything(WHITENING))
    def one(arguments):
        made = ended.build(Whiten, arguments)
        if made is not None:
            images = torch.zeros(2, *arguments["shape"], dtype=torch.uint8)
            assert made(images).shape == images.shape and made(images).isfinite().all()

    one()
    ended.assert_both(5)
