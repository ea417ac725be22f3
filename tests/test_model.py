import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from builders import ROOT, Ended, one_with_anything
from nin import FC, GAP, GMP, NIN, Block, MLPConv, multiply_accumulates
from nin.errors import SettingError
from nin.model import build_head

SMALL = 2_000_000  # parameters up to which a net is built and run; larger ones stay on the meta device


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_authors_counts():
    net = NIN()
    assert parameters(net) == 966_986
    assert multiply_accumulates(net, 3, 32, 32) == 222_486_528
    assert parameters(NIN("imagenet", 1000, image_size=224)) == 7_595_176
    assert parameters(NIN("cifar100", 100)) == 984_356
    assert parameters(NIN("svhn")) == 1_986_026
    mnist = NIN("mnist", in_channels=1, image_size=28)
    assert parameters(mnist) == 349_674 and mnist.forward_maps(torch.zeros(1, 1, 28, 28)).shape == (1, 10, 7, 7)


def test_initial_weights_have_the_blocks_deviations():
    first, second, _ = NIN("cifar100", 100).blocks[::3]
    stds = [layer.weight.std().item() for block in (first, second) for layer in block if isinstance(layer, nn.Conv2d)]
    assert stds == pytest.approx([0.001, 0.01, 0.01, 0.05, 0.05, 0.05], rel=0.1)


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
    with pytest.raises(ValueError, match=r"map_size=\(12, 16\): expected \(8, 8\); a fully connected head"):
        net(torch.rand(2, 3, 48, 64))
    assert NIN(head=head, image_size=(48, 64))(torch.rand(1, 3, 48, 64)).shape == (1, 10)


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


def test_fc_reads_any_number_of_maps():
    net = NIN([Block((8, 8, 12))], head="fc")
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_window_may_be_one_pixel():
    net = NIN([Block((4, 4, None), kernel_size=1)])
    assert net.blocks.block1.conv1.kernel_size == (1, 1)


# heads ----------------------------------------------------------------------------------------------------------------


def test_gap_is_the_mean_and_gmp_the_maximum_of_each_map():
    maps = torch.randn(2, 3, 4, 5)
    for n in range(2):
        for k in range(3):
            values = [maps[n, k, i, j].item() for i in range(4) for j in range(5)]
            assert abs(GAP()(maps)[n, k].item() - sum(values) / 20) < 1e-6
            assert GMP()(maps)[n, k].item() == max(values)


def test_fc_is_a_linear_layer_on_the_flattened_maps():
    head = FC(3, 7, (4, 5))
    maps = torch.randn(2, 3, 4, 5)
    expected = maps.reshape(2, 60) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(maps), expected)


def test_dropout_of_the_fc_head_is_on_in_training_only():
    head = FC(3, 7, (4, 5), dropout=0.5)
    maps = torch.randn(2, 3, 4, 5)
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))


def test_gap_equals_a_linear_layer_that_averages():
    gap, fc = GAP(), FC(3, 3, (4, 5))
    with torch.no_grad():
        fc.linear.weight.copy_(torch.eye(3).repeat_interleave(20, dim=1) / 20)
        fc.linear.bias.zero_()
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gap(maps), fc(maps))


def test_fc_dropout_differs_from_fc_in_its_dropout_alone():
    arguments = {"num_maps": 3, "num_classes": 7, "map_size": (4, 5)}
    fc, fc_dropout = (build_head(name, **arguments) for name in ("fc", "fc_dropout"))
    maps = torch.randn(2, 3, 4, 5)
    assert torch.equal(fc(maps), fc(maps))
    assert fc_dropout.dropout.p == 0.5
    assert fc.state_dict().keys() == fc_dropout.state_dict().keys()


# any values -----------------------------------------------------------------------------------------------------------

width = st.integers(1, 12)
widths = width | st.lists(width, min_size=3, max_size=3) | st.lists(width, min_size=1, max_size=1)
fraction = st.floats(0, 0.99)
norm = st.sampled_from(["none", "batch"])
GEOMETRY = {
    "widths": widths,
    "kernel_size": st.integers(1, 7),
    "stride": st.integers(1, 3),
    "padding": st.none() | st.integers(0, 3),
}
block = st.fixed_dictionaries(
    {"widths": widths}, optional={**{k: v for k, v in GEOMETRY.items() if k != "widths"}, "dropout": st.booleans()}
).filter(lambda b: (b.get("padding") or 0) < b.get("kernel_size", 3))
last_block = st.builds(lambda a, b: {**b, "widths": [a, a, None]}, width, block)
NETS = {
    "blocks": st.builds(
        lambda body, last: [Block(**b) for b in (*body, last)], st.lists(block, max_size=2), last_block
    ),
    "num_classes": st.integers(1, 12),
    "head": st.sampled_from(["gap", "gmp", "fc", "fc_dropout"]),
    "in_channels": st.integers(1, 4),
    "image_size": st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "last_pool": st.sampled_from(["max", "average"]),
    "dropout": fraction,
    "norm": norm,
    "last_relu": st.booleans(),
    "init": st.sampled_from(["gaussian", "kaiming"]),
}
SIDE = st.integers(1, 6)
HEAD = {"num_maps": width, "num_classes": width, "map_size": st.tuples(SIDE, SIDE), "dropout": fraction}


def test_any_net_computes_or_is_refused_by_name():
    ended = Ended()

    @settings(max_examples=250)
    @given(one_with_anything(NETS))
    def one(arguments):
        with torch.device("meta"):
            net = ended.build(NIN, arguments)
        size = arguments["image_size"]
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        if net is None or sum(p.numel() for p in net.parameters()) > SMALL or max(height, width) > 100:
            return
        logits = NIN(**arguments).eval()(torch.randn(2, arguments["in_channels"], height, width))
        assert logits.shape == (2, arguments["num_classes"]) and logits.isfinite().all()

    one()
    ended.assert_both(50)


def test_any_mlpconv_computes_or_is_refused_by_name():
    ended = Ended()

    @settings(max_examples=330)
    @given(one_with_anything({**GEOMETRY, "in_channels": width, "norm": norm, "last_relu": st.booleans()}))
    def one(arguments):
        with torch.device("meta"):
            mlpconv = ended.build(MLPConv, arguments)
            if mlpconv is None:
                return
            plan = Block(*(arguments[name] for name in GEOMETRY))
            side = max(plan.kernel_size, 8)
            out = (side + 2 * plan.effective_padding - plan.kernel_size) // plan.stride + 1
            made = mlpconv(torch.zeros(2, arguments["in_channels"], side, side))
            assert made.shape == (2, plan.widths[-1], out, out)

    one()
    ended.assert_both(60)


def test_any_fully_connected_head_computes_or_is_refused_by_name():
    ended = Ended()

    @settings(max_examples=150)
    @given(one_with_anything(HEAD))
    def one(arguments):
        with torch.device("meta"):
            head = ended.build(FC, arguments)
            if head is not None:
                maps = torch.zeros(2, arguments["num_maps"], *arguments["map_size"])
                assert head(maps).shape == (2, arguments["num_classes"])

    one()
    ended.assert_both(30)


@pytest.mark.parametrize("map_size", [(0, 5), (4, -1), (4,), (4, 2.5)])
def test_a_map_of_no_size_is_refused(map_size):
    with pytest.raises(ValueError, match="map_size="):
        FC(3, 7, map_size)


# the conventional CNN -------------------------------------------------------------------------------------------------


def test_the_conventional_cnn_is_the_papers():
    """Table 5's second half: three convolutions, a locally connected layer, and each of the heads."""
    convolutions = 3 * 64 * 25 + 64 + 2 * (64 * 64 * 25 + 64)
    for head, maps in (("fc", 16), ("fc_dropout", 16), ("gap", 10)):
        net = NIN("cnn", head=head)
        linear = 0 if head == "gap" else 16 * 16 * 10 + 10
        assert parameters(net) == convolutions + 16 * (64 * 9 * maps + maps) + linear
        assert net.forward_maps(torch.rand(2, 3, 32, 32)).shape == (2, maps, 4, 4)
        assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert [parameters(NIN("cnn", head=head)) for head in ("fc", "gap")] == [360_074, 302_112]
    layers = [type(layer).__name__ for layer in NIN("cnn").blocks.modules()]
    kinds = ("Conv2d", "MaxPool2d", "AvgPool2d", "LocalResponseNorm", "LocallyConnected")
    assert [name for name in layers if name in kinds] == [
        *("Conv2d", "MaxPool2d", "LocalResponseNorm", "Conv2d", "AvgPool2d", "LocalResponseNorm"),
        *("Conv2d", "AvgPool2d", "LocallyConnected"),
    ]
    macs = 1024 * 64 * 75 + 256 * 64 * 1600 + 64 * 64 * 1600 + 16 * 10 * 576
    assert multiply_accumulates(NIN("cnn"), 3, 32, 32) == macs
    with pytest.raises(SettingError, match="map_size"):
        NIN("cnn")(torch.rand(1, 3, 64, 64))


def test_a_cnn_is_saved_folded_and_trained_like_any_net():
    from nin.fold import fold
    from nin.task import Classifier

    net = NIN("cnn", norm="batch", image_size=16)
    again = NIN(**net.arguments)
    again.load_state_dict(net.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again.eval()(images), net.eval()(images))
    torch.testing.assert_close(fold(net)(images), net(images), atol=1e-5, rtol=1e-4)
    task = Classifier(net.train(), optimiser="muon", lr=0.02)
    (last,) = [group["params"] for group in task.parameter_groups() if group["name"] == "last weights"]
    assert last[0] is net.blocks.block4.conv1.weight
    optimiser, labels, losses = task.build_optimizer(), torch.tensor([1, 2]), []
    for _ in range(8):
        losses.append(F.cross_entropy(net(images), labels))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_the_first_screen_of_the_model_is_the_paper():
    lines = (ROOT / "nin" / "model.py").read_text().splitlines()
    assert len(lines) < 160
    for part in ("nn.Conv2d(", "maps.mean(dim=(2, 3))"):
        assert any(part in line for line in lines[:50]), part
