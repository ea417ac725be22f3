import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

from nin import NIN
from nin.backbones import Backbone
from nin.studies import cost


def of(name: str, head: str) -> list[cost.Layer]:
    build, shape = cost.NETS[name]
    return cost.layers(lambda: build(head), *shape)


def total(found: list[cost.Layer]) -> int:
    return sum(layer.parameters for layer in found)


def test_the_articles_network_to_the_digit():
    fc, gap = of("vgg_regressor", "fc"), of("vgg_regressor", "gap")
    heads = [[layer.parameters for layer in found if layer.kind == "Linear"] for found in (fc, gap)]
    assert heads == [[583_699_000, 361_019_000], [9_747_000]]
    assert (total(fc), total(gap)) == (954_012_400, 19_041_400)
    assert [layer.parameters for layer in fc[-3:]] == [640, 36_928, 36_928]
    assert fc[-1].output == (64, 200, 95)


def test_the_cifar10_net():
    found = of("cifar10", "gap")
    assert total(found) == 966_986
    assert sum(layer.multiply_accumulates for layer in found) == 222_486_528
    assert [layer.output for layer in found if "Pool" in layer.kind] == [(96, 16, 16), (192, 8, 8)]
    assert total(of("cifar10", "fc")) == 966_986 + 6_410


def test_every_parameter_of_a_net_is_in_a_row():
    for net in (NIN(norm="batch", head="fc"), *(cost._torchvision("alexnet", head) for head in ("fc", "gap"))):
        size = 32 if isinstance(net, NIN) else 224
        assert total(cost.layers(lambda net=net: net.to("meta"), 3, size, size)) == sum(
            p.numel() for p in net.parameters()
        )


def test_formulas_give_the_parameters():
    for head in ("fc", "gap"):
        for name in cost.NETS:
            for layer in of(name, head):
                assert eval(layer.formula.replace("·", "*") or "0") == layer.parameters


def test_torchvisions_own_counts():
    assert total(of("alexnet", "fc")) == 61_100_840
    assert total(of("vgg19", "fc")) == 143_667_240
    assert total(of("vgg19", "gap")) == 20_024_384 + 512 * 1000 + 1000
    assert [layer.output for layer in of("vgg19", "gap")[-2:]] == [(1000, 7, 7), (1000,)]


def test_memory_is_of_float32():
    layer = cost._layer("x", nn.Linear(1024, 1024, bias=False), (1024,))
    assert (layer.parameter_mb, layer.output_mb) == (4.0, 1024 * 4 / 2**20)


def test_the_command(script):
    _, said, _ = script("cost.py", "model=vgg_regressor")
    assert all(number in said for number in ("583,699,000", "361,019,000", "9,747,000", "954,012,400", "19,041,400"))
    _, said, _ = script("cost.py", "checkpoint=cifar10-gap")
    assert "968,394 parameters" in said and "with fc" in said
    assert script("cost.py", "checkpoint=nothing")[0] == 1
    code, _, errors = script("cost.py", "model=resnet")
    assert code == 2 and "model=resnet: choose one of cifar10, imagenet, vgg_regressor" in errors
    assert "head (GMP)" in script("cost.py", "checkpoint=cifar10-gmp")[1]
    assert script("cost.py", "model=alexnet", "head=gmp") == (1, "", "error: head=gmp: choose one of fc, gap\n")


@pytest.mark.parametrize("name", cost.NETS)
def test_the_heads_differ_and_what_comes_before_them_does_not(name):
    text = cost.compare(name, *cost.NETS[name])
    assert text.count("-- head fc") == text.count("-- head gap") == 1
    before = text.index("-- head fc")
    assert "conv" in text[:before] or "features" in text[:before]


def test_a_net_with_the_articles_head_is_compared_under_the_articles():
    with torch.device("meta"):
        net = Backbone("vgg19", 17, "gmp_article", image_size=64, weights="none")
    text = cost.compare("flowers", *cost.of_checkpoint(SimpleNamespace(net=net)), cost.beside("gmp_article"))
    sums = {line.split()[1]: line.split()[2] for line in text.splitlines() if line.startswith("with ")}
    convolutions = 20_024_384  # 512 maps of 2×2
    assert sums["fc_article"] == f"{convolutions + 4 * 512 * 512 + 512 + 512 * 17 + 17:,}"
    assert sums["gap_article"] == f"{convolutions + 512 * 17 + 17:,}"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told in other units elsewhere")
def test_it_takes_no_memory():
    """Less than 200 MB above what the imports take, for a net whose parameters are of 3.6 GB."""
    script = f"import runpy; runpy.run_path({str(ROOT / 'scripts' / 'cost.py')!r})['main'](['model=vgg_regressor'])"
    peak = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    codes = ("import torch, torchvision" + peak, script + peak)
    said = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout for c in codes]
    imports, all_of_it = (int(out.splitlines()[-1]) for out in said)
    assert all_of_it - imports < 200 * 1000  # kB on Linux
