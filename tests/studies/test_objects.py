import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

from claims import CLASSES, Lit, cells, drawn, subject, tiny
from nin import NIN, Block
from nin.data import Normalise
from nin.errors import ClaimError
from nin.pretrained import Pretrained
from nin.studies import objects


@pytest.fixture(scope="module")
def lit():
    """Nets whose maps are an image's brightness, and images with one bright square each: one net's scores depend on it,
    the other's do not."""
    images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    places = torch.randint(0, 24, (100, 2), generator=torch.Generator().manual_seed(0))
    for image, (top, left) in zip(images, places, strict=True):
        image[:, top : top + 8, left : left + 8] = 255
    plain = Normalise(torch.zeros(3), torch.ones(3))
    return [
        replace(subject(Pretrained(Lit(blind), plain, CLASSES, {}), name, 100), images=images)
        for blind, name in ((False, "seeing"), (True, "blind"))
    ]


def test_maps_that_light_up_at_the_object_support_the_claim(lit):
    answer = objects.answer(lit[:1])
    assert answer.verdict == "supported"
    under, elsewhere, chance, *differences = cells(answer.table, "`seeing`")
    assert float(under) == pytest.approx(255 * 64 / 1024, abs=0.01)
    for other, difference in zip((elsewhere, chance), differences, strict=True):
        assert 0 < float(other) < 0.7 * float(under)
        more, low, high = map(float, re.findall(r"[+-][\d.]+", difference))
        assert more == pytest.approx(float(under) - float(other), abs=0.011) and 0 < low < more < high
    assert answer.finding.startswith("Score lost by blanking under the map, minus under another image's map: `seeing` ")
    assert {"seeing", "at random", "under another image's map"} < drawn(answer.figure)


def test_objects_that_are_always_at_one_place_need_no_map(lit):
    seeing = lit[0]
    answer = objects.answer([replace(seeing, images=seeing.images[:1].expand(100, -1, -1, -1))])
    assert answer.verdict == "undecided"
    assert cells(answer.table, "`seeing`")[3].startswith("+0.00")


def test_maps_without_an_effect_leave_the_claim_undecided(lit):
    assert objects.answer(lit[1:]).verdict == "undecided"
    assert objects.answer(lit).verdict == "supported in part"


def first(seeing, count):
    return replace(seeing, images=seeing.images[:count], labels=seeing.labels[:count])


@pytest.mark.parametrize("count", [1, 2, 3, 29])
def test_a_verdict_requires_images(lit, count):
    answer = objects.answer([first(lit[0], count)])
    assert answer.verdict == "undecided" and answer.finding.endswith(" A verdict requires 30 images.")
    assert "seed" not in answer.finding + answer.table and ("(one image)" in answer.finding) == (count == 1)
    answer = objects.answer([first(lit[0], 30)])
    assert answer.verdict == "supported" and "requires" not in answer.finding


def test_equal_values_have_no_interval_and_no_verdict(lit):
    for under, other in ((2.0, 1.0), (1.0, 2.0)):
        measured = pd.DataFrame({"place": 0, "name": "seeing", "map": [under] * 100, "other": other, "random": other})
        assert objects.judge(lit[:1], measured)[0] == "undecided"
        measured.loc[0, "map"] += 0.1
        assert objects.judge(lit[:1], measured)[0] == ("supported" if under > other else "refuted")


def test_the_verdict_is_of_heads_that_pool(lit):
    fc = subject(tiny("fc"), "fc", 4)
    answer = objects.answer([fc])
    assert answer.verdict == "not answered" and "requires a net that pools" in answer.finding
    answer = objects.answer([lit[0], fc])
    assert answer.verdict == "supported" and "(HiResCAM)" in answer.finding


def test_maps_under_a_head_of_the_article_are_computed(lit):
    net = Lit()
    net.arguments = {"head": "gap_article"}
    pooled = replace(lit[0], trained=Pretrained(net, lit[0].trained.preprocess, CLASSES, {}))
    assert "(HiResCAM)" in objects.answer([pooled]).finding
    assert "HiResCAM" not in objects.answer(lit[:1]).finding


def test_seeds_have_lines_of_their_own():
    nets = [subject(tiny("gap", seed), "gap", 6) for seed in (1, 2)]
    answer = objects.answer(nets)
    assert {"gap, seed 1", "gap, seed 2"} < drawn(answer.figure)
    assert len(cells(answer.table, "`gap, seed 1`")) == 5


def test_maps_of_one_place_cannot_answer():
    net = NIN([Block((8, 8, 10), 32, padding=0)], image_size=32)
    small = subject(Pretrained(net, tiny().preprocess, CLASSES, {}), "small", 4)
    with pytest.raises(ClaimError, match="`small`: class maps of 1×1 show no place"):
        objects.answer([small])
