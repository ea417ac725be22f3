import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import ROOT, Ended, one_with_anything
from nin import NIN
from nin.errors import SettingError
from nin.plan import BLOCKS, HEADS, Block, Plan, read_blocks


def test_a_plan_is_plain_values_that_make_it_again():
    for name, size in (("cifar10", 32), ("imagenet", 224)):
        plan = Plan(name, image_size=size)
        again = Plan(**asdict(plan))
        assert again == plan and again.blocks == BLOCKS[name]


def test_map_sizes_are_those_of_the_authors_nets():
    assert Plan().map_size == (8, 8)
    assert Plan(image_size=28, in_channels=1).map_size == (7, 7)
    assert Plan("imagenet", image_size=224).map_size == (6, 6)
    assert Plan(image_size=(48, 64)).map_size == (12, 16)


def test_one_table_of_heads():
    assert [name for name, head in HEADS.items() if head.pools] == ["gap", "gmp", "gap_article", "gmp_article"]
    assert {name for name, head in HEADS.items() if head.of_features} == {"gap_article", "fc_article", "gmp_article"}
    assert all(head.says for head in HEADS.values())


def test_a_block_takes_three_widths_or_one():
    assert Block(5).widths == (5, 5, 5) and Block([5]).widths == (5,)
    assert Plan([Block((5, 4, None))], 7).widths(1) == (5, 4, 7)
    assert Block(5, kernel_size=5).effective_padding == 2 and Block(5, padding=0).effective_padding == 0


def test_any_block_is_made_or_refused_by_name():
    ended = Ended()
    good = {
        "widths": st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=3, max_size=3),
        "kernel_size": st.integers(1, 7),
        "stride": st.integers(1, 3),
        "padding": st.none() | st.integers(0, 3),
        "dropout": st.booleans(),
    }

    @settings(max_examples=200)
    @given(one_with_anything(good))
    def one(arguments):
        ended.build(Block, arguments)

    one()
    ended.assert_both(40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "gpa"}, "head=gpa: must be one of gap, fc_dropout, fc, gmp"),
        (
            {"head": "gap_article"},
            "head=gap_article: reads a backbone's features; choose model=squeezenet1_1",
        ),
        ({"norm": "layer"}, "norm=layer: must be one of none, batch"),
        ({"last_pool": "min"}, "last_pool=min: must be one of max, average"),
        ({"init": "zeros"}, "init=zeros: must be one of gaussian, kaiming"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number of at least 0 and less than 1"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"last_relu": 1}, "last_relu=1: must be one of true, false"),
        ({"blocks": []}, r"blocks=\[\]: expected 1 to 1000 blocks, got 0"),
        ({"blocks": [Block(1)] * 1001}, "expected 1 to 1000 blocks, got 1001"),
        ({"blocks": "vgg"}, "blocks=vgg: must be one of cifar10, cifar100, .*, or a list of blocks"),
        ({"blocks": [{"widths": 8, "std": 0}]}, "block 1 has std=0: expected a number above 0"),
        ({"blocks": [{"widths": 8, "std": [1, 2]}]}, r"std=\[1, 2\]: expected one number, or one for each of 3"),
        ({"blocks": [3]}, r"blocks=\[3\]: block 1 must be a mapping with widths"),
        ({"blocks": [{"widths": 8, "kernel": 3}]}, "block 1 must be a mapping with widths"),
        ({"blocks": [Block(8), {"widths": 8, "stride": 0}]}, "block 2 has stride=0: expected an integer from 1"),
        ({"num_classes": 0}, "num_classes=0: expected an integer from 1"),
        ({"in_channels": True}, "in_channels=true: expected an integer"),
        ({"image_size": 1}, "image_size=1: too small for block 1 with kernel_size=5, stride=1, padding=2"),
        ({"image_size": (32, 0)}, r"image_size=\(32, 0\): expected 1 to 10000 pixels"),
        ({"blocks": [Block((8, 8, 12))]}, "head=gap: requires one map per class, got 12 maps for 10 classes"),
        ({"blocks": [Block((8, 8, 12))], "head": "gmp"}, "end the last block with 10 channels, or choose head=fc"),
    ],
)
def test_impossible_nets_are_refused_by_name(arguments, message):
    with pytest.raises(SettingError, match=message):
        Plan(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": (8, 8)},
        {"widths": 0},
        {"widths": (8, None, 8)},
        {"widths": 8, "stride": 0},
        {"widths": 8, "padding": -1},
        {"widths": 4, "kernel_size": 0},
    ],
)
def test_impossible_blocks_are_refused(arguments):
    with pytest.raises(SettingError, match="="):
        Block(**arguments)


def test_blocks_are_read_from_a_configuration():
    assert read_blocks([{"widths": [8, 8, None], "kernel_size": 5}]) == (Block((8, 8, None), 5),)


LIGHT = """
import sys
sys.path.insert(0, sys.argv[1])
import nin, nin.errors, nin.checks, nin.files, nin.config, nin.plan
heavy = {"torch", "numpy", "lightning", "torchvision", "hydra", "omegaconf", "pandas"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_plans_and_configurations_need_no_torch():
    subprocess.run([sys.executable, "-c", LIGHT, str(ROOT)], check=True)


@pytest.mark.parametrize("side", [32, 33, 47, 60])
@pytest.mark.parametrize("blocks", ["authors", "strides"])
def test_the_maps_positions_are_the_middles_of_what_they_read(side, blocks):
    """Measured: the centre of the gradient of a position, in a net of sums, away from the image's border."""
    of = [{"widths": [1], "kernel_size": 5, "pool": "average"}] * 2 + [{"widths": [1], "kernel_size": 3}]
    if blocks == "strides":
        of = [{"widths": [1], "kernel_size": 4, "stride": 2, "padding": 1, "pool": "average"}, {"widths": [1]}]
    net = NIN(of, num_classes=1, image_size=side, last_pool="average")
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 1.0 if parameter.dim() > 1 else 0.0)
    centres = net.plan.map_centres(side)
    assert len(centres) == net.plan.map_size[0]
    image = torch.ones(1, 3, side, side, requires_grad=True)
    measured = 0
    for position in range(2, len(centres) - 2):
        (gradient,) = torch.autograd.grad(net.forward_maps(image)[0, 0, position, position], image)
        weight = gradient[0].sum((0, 1))
        if weight[0] == weight[-1] == 0:
            centre = (weight * torch.arange(side)).sum() / weight.sum()
            assert centre.item() == pytest.approx(centres[position], abs=1e-4)
            measured += 1
    assert measured
    assert NIN().plan.map_centres(32) == [3, 7, 11, 15, 19, 23, 27, 29.75]


def test_a_head_that_pools_gets_a_map_per_class_of_a_locally_connected_block():
    for head, widths in (("gap", (7,)), ("fc", (16,))):
        plan = Plan("cnn", 7, head)
        assert plan.widths(4) == widths and plan.blocks == BLOCKS["cnn"] and not plan.accepts_any_size
    assert Plan().accepts_any_size and not Plan(head="fc").accepts_any_size
