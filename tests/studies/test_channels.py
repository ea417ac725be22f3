import numpy as np
import pandas as pd
import pytest
import torch

from claims import CLASSES, Lit, cells, drawn, subject, tiny
from nin.errors import ClaimError
from nin.pretrained import Pretrained
from nin.studies import channels


def test_under_gap_the_highest_mean_is_the_prediction():
    answer = channels.answer([subject(tiny("gap"), "gap")])
    accuracy, own, named = map(float, cells(answer.table, "`gap`"))
    assert accuracy == own <= named
    assert "equal by definition" in answer.table
    assert answer.verdict == "not answered" and "requires a net with a fully connected head" in answer.finding
    assert {"map with the highest mean", f"gap: {own:.1f} % own map"} < drawn(answer.figure)


def test_below_a_fully_connected_head_maps_are_counted():
    nets = [subject(tiny("gap"), "gap"), subject(tiny("fc"), "fc")]
    answer = channels.answer(nets)
    trained, images, labels = nets[1].trained, nets[1].images, nets[1].labels
    with torch.no_grad():
        highest = trained.forward_maps(images).mean((2, 3)).argmax(1)
    assert float(cells(answer.table, "`fc`")[1]) == pytest.approx(100 * (highest == labels).double().mean().item())
    measured = channels.measure(nets)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels.numpy(), highest.numpy()), 1)
    assert (measured.counts[1] == counts).all()
    assert "no. 10" in drawn(answer.figure) and answer.verdict in ("refuted", "supported", "supported in part")


@pytest.mark.parametrize(("own", "verdict"), [(19.0, "refuted"), (50.0, "supported in part"), (82.0, "supported")])
def test_the_verdict_is_of_fully_connected_heads(own, verdict):
    nets = [subject(tiny("gap"), "gap"), subject(tiny("fc"), "fc")]
    counts = [np.eye(10, dtype=int)] * 2
    measured = pd.DataFrame({"name": ["gap", "fc"], "accuracy": 90.0, "own": [90.0, own], "counts": counts})
    assert channels.judge(nets, measured)[0] == verdict
    assert f"`fc` {own:.2f} %" in channels.judge(nets, measured)[1]


def test_the_maps_that_a_linear_layer_reads_belong_to_no_class():
    """Ten maps that a head of the article pools, as many as there are classes."""
    net = Lit()
    net.arguments = {"head": "gap_article"}
    answer = channels.answer([subject(Pretrained(net, tiny().preprocess, CLASSES, {}), "gap_article")])
    assert "no. 10" in drawn(answer.figure) and answer.verdict != "not answered"


def test_each_net_is_compared_with_its_own_chance():
    nets = [subject(tiny("gap"), "gap"), subject(tiny("fc"), "fc")]
    counts = [np.eye(number, dtype=int) for number in (10, 4)]
    measured = pd.DataFrame({"name": ["gap", "fc"], "accuracy": 90.0, "own": [90.0, 40.0], "counts": counts})
    verdict, finding = channels.judge(nets, measured)
    assert verdict == "refuted" and "chance is 10 % or 25 %." in finding


def test_seeds_are_averaged_and_the_first_is_drawn():
    nets = [subject(tiny("gap", seed), "gap") for seed in (3, 4)]
    answer = channels.answer(nets)
    assert all(" ± " in cell for cell in cells(answer.table, "`gap`"))
    assert any(text.startswith("gap (seed 3): ") for text in drawn(answer.figure))


def test_nets_without_a_map_a_class_are_left_out():
    wide = subject(tiny("gap"), "wide")
    wide.trained.classes = wide.trained.classes[:7]
    assert "wide" not in channels.answer([subject(tiny("gap"), "gap"), wide]).table
    with pytest.raises(ClaimError, match="as many last maps as classes"):
        channels.answer([wide])


def test_of_two_classes_a_head_whose_own_maps_are_right_supports_the_claim():
    def verdict(own, accuracy, classes=2):
        counts = [np.zeros((classes, classes))]
        measured = pd.DataFrame({"name": ["fc"], "own": [own], "accuracy": [accuracy], "counts": counts})
        return channels.judge([subject(tiny("fc"), "fc")], measured)[0]

    assert [verdict(own, 97.0) for own in (96.0, 80.0, 51.0)] == ["supported", "supported in part", "refuted"]
    assert [verdict(own, 95.0, 10) for own in (90.0, 40.0, 9.0)] == ["supported", "supported in part", "refuted"]


@pytest.mark.parametrize("count", [1, 2, 29])
def test_a_verdict_requires_images(count):
    measured = pd.DataFrame({"name": ["fc"], "own": [100.0], "accuracy": [100.0], "counts": [np.zeros((10, 10))]})
    verdict, finding = channels.judge([subject(tiny("fc"), "fc", count)], measured)
    assert verdict == "undecided" and finding.endswith(" A verdict requires 30 images.")
    verdict, finding = channels.judge([subject(tiny("fc"), "fc", 30)], measured)
    assert verdict == "supported" and "requires" not in finding
