"""Convolutions as matrix products: the same function and gradients, on a CPU."""

import pytest
import torch
from torch import nn

from nin import NIN, Block
from nin.run.kernels import matrix_products, sum_of


def gradients(net, images):
    net.zero_grad()
    logits = net(images)
    logits.pow(2).sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in net.parameters())]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    "first",
    [Block(8, 5), Block(8, 3, padding=0), Block(8, 4, stride=2, padding=1), Block(8, 1), Block((8, 6, 5), 5, stride=3)],
)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_the_net_computes_the_same_function_and_gradients(first, channels, norm):
    torch.manual_seed(0)
    blocks = [first, Block((8, 8, None), 3)]
    net = NIN(blocks, in_channels=channels, image_size=(19, 22), norm=norm, init="kaiming").double()
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(6, channels, 19, 22, dtype=torch.float64).to(memory_format=torch.channels_last)
    expected = gradients(net, images)
    names = list(net.state_dict())
    with matrix_products(net):
        found = gradients(net, images)
    torch.testing.assert_close(found, expected)
    assert list(net.state_dict()) == names
    assert all("forward" not in vars(layer) for layer in net.modules())
    assert all(layer.inplace for layer in net.modules() if isinstance(layer, nn.ReLU))


def test_autocast_multiplies_in_16_bits_and_gradients_are_the_parameters():
    torch.manual_seed(0)
    net = NIN([Block((8, 8, None), 5)], init="kaiming").to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(net, images)
        with matrix_products(net):
            found = gradients(net, images)
    for own, other in zip(found[1:], expected[1:], strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, other, atol=0.05 * float(other.abs().max()), rtol=0.05)


@pytest.mark.parametrize("rows", [1, 2, 7, 96, 128, 640, 1000])
def test_sums_of_rows(rows):
    values = torch.randn(rows, 5, dtype=torch.float64)
    torch.testing.assert_close(sum_of(values), values.sum(0))
