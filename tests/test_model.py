import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nin import NIN, Block, MLPConv, multiply_accumulates


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_authors_counts():
    net = NIN()
    assert parameters(net) == 966_986
    assert multiply_accumulates(net, 3, 32, 32) == 222_486_528
    assert parameters(NIN("imagenet", 1000, image_size=224)) == 7_595_176


@pytest.mark.parametrize("last_pool", ["max", "average"])
@pytest.mark.parametrize("last_relu", [True, False])
def test_forward_agrees_with_the_table_of_the_authors_net(last_pool, last_relu):
    torch.manual_seed(3)
    net = NIN(last_pool=last_pool, last_relu=last_relu).eval().double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    weights = iter(net.parameters())
    x = images = torch.randn(3, 3, 32, 32, dtype=torch.float64)

    def conv(x, width, kernel, padding, relu=True):
        weight, bias = next(weights), next(weights)
        assert weight.shape == (width, x.shape[1], kernel, kernel)
        out = F.unfold(x, kernel, padding=padding)  # (N, C·k·k, H·W): the convolution as a matrix product
        out = (weight.flatten(1) @ out + bias[:, None]).unflatten(2, x.shape[2:])
        return out.clamp(min=0) if relu else out

    def pool(x, kind):
        h = x.shape[2]  # windows of 3 at 0, 2, 4, …; the last one is cut by the border
        windows = [[x[:, :, i : i + 3, j : j + 3].flatten(2) for j in range(0, h - 1, 2)] for i in range(0, h - 1, 2)]
        take = (lambda w: w.amax(2)) if kind == "max" else (lambda w: w.mean(2))
        return torch.stack([torch.stack([take(w) for w in row], -1) for row in windows], -2)

    for width, kernel, padding in ((192, 5, 2), (160, 1, 0), (96, 1, 0)):
        x = conv(x, width, kernel, padding)
    x = pool(x, "max")
    assert x.shape[2:] == (16, 16)
    for width, kernel, padding in ((192, 5, 2), (192, 1, 0), (192, 1, 0)):
        x = conv(x, width, kernel, padding)
    x = pool(x, last_pool)
    assert x.shape[2:] == (8, 8)
    for width, kernel, padding in ((192, 3, 1), (192, 1, 0)):
        x = conv(x, width, kernel, padding)
    maps = conv(x, 10, 1, 0, relu=last_relu)
    assert next(weights, None) is None
    logits = maps.sum((2, 3)) / 64

    torch.testing.assert_close(net.forward_maps(images), maps, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(net(images), logits, rtol=1e-5, atol=1e-8)


def test_dropout_follows_blocks_one_and_two_after_their_pooling():
    names = [name for name, _ in NIN().blocks.named_children()]
    assert names == ["block1", "pool1", "drop1", "block2", "pool2", "drop2", "block3"]
    assert NIN(dropout=0.3).blocks.drop2.p == 0.3


def test_first_weights():
    torch.manual_seed(0)
    net = NIN()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.std().item() == pytest.approx(0.05, rel=0.05)
            assert not m.bias.any()
    conv = NIN(init="kaiming").blocks.block2.conv1
    assert conv.weight.std().item() == pytest.approx((2 / (96 * 25)) ** 0.5, rel=0.05)


def test_batch_norm_before_every_nonlinearity_and_none_on_scores():
    net = NIN(norm="batch", last_relu=False)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 8
    assert [n for n, _ in net.blocks.block3.named_children()][-1] == "conv3"
    assert [n for n, _ in net.blocks.block1.named_children()][:3] == ["conv1", "norm1", "relu1"]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in NIN(norm="batch").modules()) == 9


def test_mlpconv_takes_three_widths_or_one():
    x = torch.rand(2, 4, 9, 9)
    assert MLPConv(4, (8, 7, 6), 3)(x).shape == (2, 6, 9, 9)
    assert MLPConv(4, 5, 3, stride=2, padding=0)(x).shape == (2, 5, 4, 4)
    assert [m.out_channels for m in MLPConv(4, 5, 3) if isinstance(m, nn.Conv2d)] == [5, 5, 5]


@pytest.mark.parametrize("head", ["gap", "gmp"])
def test_pooling_heads_take_any_size(head):
    net = NIN(head=head).eval()
    assert net.forward_maps(torch.rand(1, 3, 48, 64)).shape == (1, 10, 12, 16)
    assert net(torch.rand(2, 3, 48, 64)).shape == (2, 10)


@pytest.mark.parametrize("head", ["fc", "fc_dropout"])
def test_fc_heads_say_why_they_refuse_another_size(head):
    net = NIN(head=head).eval()
    assert parameters(net) == 966_986 + 640 * 10 + 10
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="8×8 and got 12×16"):
        net(torch.rand(2, 3, 48, 64))
    assert NIN(head=head, image_size=(48, 64))(torch.rand(1, 3, 48, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "gpa"}, "head=gpa: choose one of gap, gmp, fc, fc_dropout"),
        ({"norm": "layer"}, "norm=layer: choose one of none, batch"),
        ({"last_pool": "min"}, "last_pool=min: choose one of max, average"),
        ({"init": "zeros"}, "init=zeros: choose one of"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"blocks": []}, "blocks=\\[\\]: 0 of them, where a net has from 1"),
        ({"blocks": "vgg"}, "blocks=vgg: choose one of cifar10, imagenet"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"image_size": 1}, "block 1 leaves nothing of images of image_size=1,"),
        ({"blocks": [Block((8, 8, 12))]}, "12 maps for 10 classes"),
        ({"blocks": [Block((8, 8, 12))], "head": "gmp"}, "12 maps for 10 classes"),
    ],
)
def test_impossible_nets_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        NIN(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"widths": (8, 8)}, {"widths": 0}, {"widths": 8, "stride": 0}, {"widths": 8, "padding": -1}]
)
def test_impossible_blocks_are_refused(arguments):
    with pytest.raises(ValueError, match="="):
        Block(**arguments)


def test_without_1x1_layers_a_block_is_a_plain_convolution():
    net = NIN([Block([192], 5, dropout=True), Block((192,), 5, dropout=True), Block([None], 3)], last_relu=False).eval()
    assert net.blocks.block1.state_dict().keys() == {"conv1.weight", "conv1.bias"}
    assert sum(p.numel() for p in net.parameters()) == 953_674
    macs = 25 * 3 * 192 * 32 * 32 + 25 * 192 * 192 * 16 * 16 + 9 * 192 * 10 * 8 * 8
    assert multiply_accumulates(net, 3, 32, 32) == macs
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = images
    for number, conv in enumerate((net.blocks.block1.conv1, net.blocks.block2.conv1, net.blocks.block3.conv1), 1):
        x = F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
        x = F.max_pool2d(x.relu(), 3, 2, ceil_mode=True) if number < 3 else x
    torch.testing.assert_close(net(images), x.mean((2, 3)))


def test_mlpconv_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="three widths"):
        MLPConv(3, (8, 8), 3)
    with pytest.raises(ValueError, match="norm=Batch: choose one of none, batch"):
        MLPConv(3, 8, 3, norm="Batch")


def test_counting_leaves_a_net_as_it_was():
    net = NIN(norm="batch")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    multiply_accumulates(net, 3, 32, 32)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_fc_reads_any_number_of_maps():
    net = NIN([Block((8, 8, 12))], head="fc")
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_window_may_be_one_pixel():
    net = NIN([Block((4, 4, None), kernel_size=1)])
    assert net.blocks.block1.conv1.kernel_size == (1, 1)
    with pytest.raises(ValueError, match="kernel_size=0"):
        Block(4, kernel_size=0)
