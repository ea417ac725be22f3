import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nin import NIN, Block, DepthPool
from nin.errors import SettingError
from nin.layers import LocallyConnected, LocalResponseNorm


def test_depth_pooling_is_the_mean_or_maximum_over_channels():
    maps = torch.randn(2, 3, 4, 5)
    for i in range(4):
        for j in range(5):
            channels = [maps[1, k, i, j].item() for k in range(3)]
            assert abs(DepthPool("average")(maps)[1, 0, i, j].item() - sum(channels) / 3) < 1e-6
            assert DepthPool("max")(maps)[1, 0, i, j].item() == max(channels)
    assert DepthPool("max")(maps).shape == (2, 1, 4, 5)
    with pytest.raises(ValueError, match="kind=sum: must be one of max, average"):
        DepthPool("sum")


def test_a_locally_connected_layer_has_filters_of_its_own_at_each_position():
    torch.manual_seed(0)
    layer, maps = LocallyConnected(3, 4, 3, (2, 5)), torch.randn(2, 3, 2, 5)
    weight, bias = layer.weight.view(2, 5, 4, 3, 3, 3), layer.bias.view(2, 5, 4)
    padded, outputs = F.pad(maps, (1, 1, 1, 1)), layer(maps)
    for i in range(2):
        for j in range(5):
            here = torch.einsum("nchw,ochw->no", padded[:, :, i : i + 3, j : j + 3], weight[i, j]) + bias[i, j]
            torch.testing.assert_close(outputs[:, :, i, j], here, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer(maps[:1]), outputs[:1])  # an image does not depend on the others


@pytest.mark.parametrize("wrong", [{"stride": 2}, {"padding": 0}, {"kernel_size": 2}, {"widths": 4}])
def test_a_locally_connected_block_keeps_the_size(wrong):
    with pytest.raises(SettingError, match="local=true: requires one width"):
        Block(**{"widths": [4], "kernel_size": 3, "local": True, **wrong})


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_local_response_norm_is_torchs(size, channels):
    arguments = {"size": size, "alpha": 0.3, "beta": 0.6, "k": 1.5}
    inputs = torch.randn(2, channels, 3, 5, dtype=torch.double)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    outputs, expected = LocalResponseNorm(**arguments)(ours), nn.LocalResponseNorm(**arguments)(theirs)
    torch.testing.assert_close(outputs, expected)
    torch.autograd.backward([outputs, expected], [inputs.cos()] * 2)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_local_response_norm_computes_in_fp32_whatever_its_maps_are():
    layer = LocalResponseNorm(9, alpha=0.009, k=1)
    maps = (300 * torch.randn(2, 64, 3, 5)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(maps)
    assert outputs.dtype == torch.bfloat16 and torch.equal(outputs, layer(maps.float()).bfloat16())


def test_the_conventional_cnn_computes_its_shapes_without_memory():
    with torch.device("meta"):
        assert NIN("cnn").eval()(torch.empty(2, 3, 32, 32)).shape == (2, 10)
