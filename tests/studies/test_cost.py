import random
import re
from math import prod
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from builders import ROOT
from nin import NIN, Block
from nin.backbones import Backbone
from nin.cost import multiply_accumulates
from nin.errors import SettingError
from nin.studies import cost


def layers_of(name: str, head: str) -> list[cost.Layer]:
    build, shape = cost.NETS[name]
    return cost.layers(lambda: build(head), *shape)


def total(layers: list[cost.Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def test_the_articles_network_to_the_digit():
    fc, gap = layers_of("vgg_regressor", "fc"), layers_of("vgg_regressor", "gap")
    heads = [[layer.parameters for layer in layers if layer.kind == "Linear"] for layers in (fc, gap)]
    assert heads == [[583_699_000, 361_019_000], [9_747_000]]
    assert (total(fc), total(gap)) == (954_012_400, 19_041_400)
    assert [layer.parameters for layer in fc[-3:]] == [640, 36_928, 36_928]
    assert fc[-1].output == (64, 200, 95)


def test_the_cifar10_net():
    layers = layers_of("cifar10", "gap")
    assert total(layers) == 966_986
    assert sum(layer.multiply_accumulates for layer in layers) == 222_486_528
    assert [layer.output for layer in layers if "Pool" in layer.kind] == [(96, 16, 16), (192, 8, 8)]
    assert total(layers_of("cifar10", "fc")) == 966_986 + 6_410


def test_every_parameter_of_a_net_is_in_a_row():
    for net in (NIN(norm="batch", head="fc"), *(cost.of_torchvision("alexnet", head) for head in ("fc", "gap"))):
        size = 32 if isinstance(net, NIN) else 224
        assert total(cost.layers(lambda net=net: net.to("meta"), 3, size, size)) == sum(
            p.numel() for p in net.parameters()
        )


def test_torchvisions_own_counts():
    assert total(layers_of("alexnet", "fc")) == 61_100_840
    assert total(layers_of("vgg19", "fc")) == 143_667_240
    assert total(layers_of("vgg19", "gap")) == 20_024_384 + 512 * 1000 + 1000
    assert [layer.output for layer in layers_of("vgg19", "gap")[-2:]] == [(1000, 7, 7), (1000,)]


def test_memory_is_of_float32():
    layer = cost.measure("x", nn.Linear(1024, 1024, bias=False), (1024,))
    assert (layer.parameter_mb, layer.output_mb) == (4.0, 1024 * 4 / 2**20)


def by_the_rule(layer: cost.Layer) -> int:
    """Multiply-accumulates as the rule under the table computes them from a line of the table."""
    first = re.match(r"\(?([\d·]+)", layer.formula)
    counts = layer.kind in ("Conv2d", "LocallyConnected", "Linear")
    return prod(map(int, first[1].split("·"))) * prod(layer.output[1:]) if counts else 0


def net_of(draw: random.Random) -> NIN:
    """A small net with blocks of any kind, two of three with a locally connected one."""
    blocks = [Block(tuple(draw.choices((4, 6, 8), k=draw.choice((1, 3)))), kernel_size=draw.choice((1, 3, 5)))]
    if draw.random() < 0.7:
        blocks.append(Block((draw.choice((3, 5, 10)),), kernel_size=draw.choice((1, 3, 5)), local=True))
    else:
        blocks.append(Block((8, 8, None), kernel_size=3))
    head = "gap" if blocks[-1].widths[-1] in (None, 10) else "fc"
    norm = "none" if blocks[-1].local else "batch"
    return NIN(blocks, 10, head, image_size=draw.choice((8, 12)), norm=norm, in_channels=draw.choice((1, 3)))


def test_the_printed_rule_and_formulas_are_right_for_every_kind_of_layer():
    assert "the first product of its formula × the positions of the output" in cost.RULE
    nets = [NIN("cnn", head=head) for head in ("fc", "gap")] + [net_of(random.Random(seed)) for seed in range(12)]
    kinds = set()
    for net in nets:
        shape = (net.in_channels, *[net.arguments["image_size"]] * 2)
        layers = [*cost.layers(lambda net=net: net.to("meta"), *shape)]  # a copy: the net's hooks would add to it
        kinds |= {layer.kind for layer in layers}
        for layer in layers:
            assert eval(layer.formula.replace("·", "*") or "0") == layer.parameters, layer
            assert by_the_rule(layer) == layer.multiply_accumulates, layer
        counted = multiply_accumulates(net.to_empty(device="cpu"), *shape)  # by torch
        assert sum(layer.multiply_accumulates for layer in layers) == counted
    assert {"Conv2d", "LocallyConnected", "Linear", "BatchNorm2d", "GAP"} <= kinds
    (local,) = [layer for layer in cost.layers(lambda: NIN("cnn"), 3, 32, 32) if layer.kind == "LocallyConnected"]
    assert local.formula.startswith("(3·3·64·") and local.formula.endswith(")·4·4")
    for groups in (1, 2, 4):
        layer = cost.measure("x", nn.Conv2d(8, 12, 3, groups=groups), (12, 5, 7))
        assert by_the_rule(layer) == layer.multiply_accumulates == 12 * 8 // groups * 9 * 35


@pytest.mark.parametrize("name", cost.NETS)
def test_the_heads_differ_and_what_comes_before_them_does_not(name):
    comparison = cost.compare(name, cost.NETS[name], cost.beside("gap"))
    fc, gap = comparison.layers.values()
    assert 0 < comparison.shared < len(fc) and fc[: comparison.shared] == gap[: comparison.shared]
    for layer in [*fc, *gap]:
        assert eval(layer.formula.replace("·", "*") or "0") == layer.parameters
    text = cost.table(comparison)
    assert text.count("-- head fc") == text.count("-- head gap") == 1
    assert "conv" in text[: text.index("-- head fc")] or "features" in text[: text.index("-- head fc")]


def test_a_head_stands_beside_those_of_its_kind():
    assert [cost.beside(head) for head in ("fc", "gap")] == [("fc", "gap")] * 2
    assert cost.beside("fc_dropout") == ("fc", "gap", "fc_dropout")
    assert cost.beside("gmp_article") == ("fc_article", "gap_article", "gmp_article")
    with pytest.raises(SettingError, match="head=gpa: must be one of gap"):
        cost.beside("gpa")


def test_a_net_with_the_articles_head_is_compared_under_the_articles():
    with torch.device("meta"):
        net = Backbone("vgg19", 17, "gmp_article", image_size=64, weights="none")
    comparison = cost.compare("flowers", cost.of_checkpoint(SimpleNamespace(net=net)), cost.beside("gmp_article"))
    convolutions = 20_024_384  # 512 maps of 2×2
    assert comparison.parameters("fc_article") == convolutions + 4 * 512 * 512 + 512 + 512 * 17 + 17
    assert comparison.parameters("gap_article") == convolutions + 512 * 17 + 17
    assert f"{comparison.parameters('gmp_article'):,} parameters" in cost.table(comparison)


def test_a_head_of_four_gigabytes_takes_no_memory():
    build, shape = cost.NETS["vgg_regressor"]
    devices = set()

    def watched():
        net = build("fc")
        devices.update(parameter.device.type for parameter in net.parameters())
        return net

    assert total(cost.layers(watched, *shape)) * cost.BYTES > 3.5e9
    assert devices == {"meta"}


def test_the_command(script):
    _, printed, _ = script("cost.py", "model=vgg_regressor")
    assert all(number in printed for number in ("583,699,000", "361,019,000", "9,747,000", "954,012,400", "19,041,400"))
    _, printed, _ = script("cost.py", "checkpoint=cifar10-gmp")
    assert "968,394 parameters" in printed and "with fc" in printed and "head (GMP)" in printed
    assert script("cost.py", "checkpoint=nothing")[0] == 1
    for wrong, words in (
        (["model=resnet"], "model=resnet: must be one of cifar10, imagenet, vgg_regressor"),
        (["model=alexnet", "head=gmp"], "head=gmp: must be one of fc, gap"),
        (["head=gpa"], "head=gpa: must be one of gap"),
        (["model=vgg19", "checkpoint=cifar10-gap"], "choose one of the two"),
        (["nosuch=1"], "must be one of model, checkpoint, head"),
    ):
        code, printed, errors = script("cost.py", *wrong)
        assert (code, printed, errors.count("\n")) == (2, "", 1) and words in errors
    assert (ROOT / "nin" / "commands" / "cost.py").read_text().split('"""')[1].strip() in script("cost.py", "--help")[1]
