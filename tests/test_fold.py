"""Batch norm folded into convolutions."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nin
from nin import NIN, Block, fold
from nin.backbones import Backbone
from nin.data import Normalise
from nin.plan import CLASS_MAP_HEADS
from nin.pretrained import Pretrained, golden_images, load, save


class Operators(TorchDispatchMode):
    """Notes the names of the operators that are called in the block."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.seen.add(str(function).removesuffix(".default"))
        return function(*arguments, **(options or {}))


def with_moments(net, seed):
    """Batch norms as training leaves them: no moment, weight or bias is what it was at the start."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return net.eval()


SHAPES = [
    {"blocks": [Block(8, dropout=True), Block((12, 8, None))]},
    {"blocks": [Block([6]), Block(5, stride=2, padding=0), Block([None])], "last_pool": "average"},
    {"blocks": [Block((4, 6, 10), kernel_size=5)], "in_channels": 1, "last_relu": False},
]


@pytest.mark.parametrize(("head", "norm"), itertools.product(CLASS_MAP_HEADS, ("none", "batch")))
def test_a_folded_net_is_the_same_function_and_can_be_saved(head, norm, tmp_path):
    for seed, shape in enumerate(SHAPES):
        torch.manual_seed(seed)
        net = with_moments(NIN(**shape, head=head, norm=norm, image_size=16, init="kaiming"), seed)
        images, before = torch.randn(4, net.in_channels, 16, 16), {k: v.clone() for k, v in net.state_dict().items()}
        folded = fold.fold(net)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
        assert folded.arguments == {**net.arguments, "norm": "none"} and not folded.training
        torch.testing.assert_close(folded(images), net(images).detach(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(folded.forward_maps(images), net.forward_maps(images).detach(), atol=1e-4, rtol=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        trained = Pretrained(
            folded, Normalise(torch.zeros(net.in_channels), torch.ones(net.in_channels)), tuple("0123456789"), {}
        )
        save(tmp_path / f"{seed}.safetensors", trained)
        again = load(tmp_path / f"{seed}.safetensors")
        pixels = golden_images((16, 16), net.in_channels)
        torch.testing.assert_close(again(pixels), trained(pixels), atol=1e-3, rtol=1e-4)


def test_a_folded_net_computes_its_relus_in_its_convolutions_where_that_is_possible():
    net = with_moments(NIN(SHAPES[0]["blocks"], image_size=16, norm="batch"), 0)
    folded, images = fold.fold(net), torch.randn(4, 3, 16, 16)
    joined = [type(layer) for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert joined == [fold.ConvReLU] * 6
    assert not any(isinstance(layer, nn.ReLU) for layer in folded.modules())
    with torch.no_grad(), Operators() as operators:
        fast = folded(images)
    assert ("mkldnn._convolution_pointwise" in operators.seen) == fold.HAS_FUSED
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert folded(images).dtype == net(images).dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(fast, folded.double()(images.double()).float(), atol=1e-4, rtol=1e-4)
        folded.float()
        traced = torch.export.export(folded, (images,)).module()
        torch.testing.assert_close(traced(images), fast, atol=1e-4, rtol=1e-4)
        assert not any("mkldnn" in str(node.target) for node in traced.graph.nodes)
    assert nin.multiply_accumulates(folded, 3, 16, 16) == nin.multiply_accumulates(net, 3, 16, 16)
    images.requires_grad_()
    slow = folded(images)
    torch.testing.assert_close(slow, fast, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(slow.sum(), images)
    assert gradient.abs().sum() > 0


def test_a_folded_backbone_is_the_same_function():
    torch.manual_seed(0)
    with torch.device("meta"):
        net = Backbone("inception_v3", 5, image_size=75, weights="none")
    net = net.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1)
    net = with_moments(net, 0)
    folded, images = fold.fold(net), torch.randn(2, 3, 75, 75)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), net(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", nin.available())
def test_a_published_net_folded_answers_the_same(name):
    net, folded = load(name), load(name, fold=True)
    golden = golden_images(net.net.plan.image_size, net.channels)
    pixels = torch.cat([golden, torch.randint(0, 256, (30, *golden.shape[1:]), dtype=torch.uint8)])
    with torch.no_grad():
        torch.testing.assert_close(folded(pixels), net(pixels), atol=1e-4, rtol=0)
        assert torch.equal(folded(pixels).argmax(1), net(pixels).argmax(1))
    assert (folded.facts, folded.sha256, folded.classes) == (net.facts, net.sha256, net.classes)
    for each in (net, folded):
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in each.net.parameters() if p.ndim == 4)
