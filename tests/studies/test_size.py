import itertools
import re
from dataclasses import replace

import pytest
import torch

from claims import BLACK, CLASSES, cells, drawn, subject, tiny
from nin import NIN, Block
from nin.backbones import Backbone
from nin.data import Whiten
from nin.errors import ClaimError
from nin.pretrained import Pretrained
from nin.studies import size
from nin.studies.nets import Subject


def test_pooling_accepts_any_size_and_a_fully_connected_head_says_why_not():
    nets = [subject(tiny("gap"), "gap"), subject(tiny("fc"), "fc")]
    answer = size.answer(nets, (24, 32, 40))
    trained, images, labels = nets[0].trained, nets[0].images, nets[0].labels
    error = 100 * (trained(images).argmax(1) != labels).double().mean().item()
    assert float(cells(answer.table, "`gap`")[1]) == pytest.approx(error, abs=0.01)  # at 32 nothing is resized
    assert all(0 <= float(cell) <= 100 for cell in cells(answer.table, "`gap`"))
    assert [cells(answer.table, "`fc`")[i] for i in (0, 2)] == ["refused", "refused"]
    assert "`fc` at 24 pixels: map_size=(12, 12): expected (16, 16)" in answer.table
    assert answer.verdict == "supported" and answer.finding.startswith("`gap` accepts 3 of 3 sizes: ")
    assert re.search(r"`fc` accepts 1 of 3 sizes: [\d.]+ % at 32 px\.", answer.finding)
    assert "Accepting a size does not mean recognising it" in answer.finding
    assert {"trained at 32", "gap"} < drawn(answer.figure)
    assert any("fc: " in text and "at 32 px only" in text for text in drawn(answer.figure))


def test_without_a_net_that_pools_nothing_is_judged():
    answer = size.answer([subject(tiny("fc"), "fc", 4)], (24, 32))
    assert answer.verdict == "not answered" and "requires a net that pools" in answer.finding
    answer = size.answer([subject(tiny("fc"), "fc", 4)], (24, 28))
    assert answer.finding.startswith("`fc` accepts 0 of 2 sizes.") and "fc: no size" in drawn(answer.figure)


def test_blocks_that_leave_nothing_of_a_small_image_refute_the_claim():
    trained = tiny()
    deep = NIN([Block(8, padding=0) for _ in range(3)] + [Block((8, 8, None), 1)], norm="batch")
    answer = size.answer([subject(Pretrained(deep, trained.preprocess, CLASSES, {}), "deep", 4)], (8, 32))
    assert cells(answer.table, "`deep`")[0] == "refused" and answer.verdict == "refuted"


def test_what_requires_one_size_whatever_the_head_does_not_count():
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    gap = replace(subject(tiny(), "gap", 64), images=images)
    whitened = Pretrained(NIN([Block((8, 8, 10))], image_size=8), Whiten.fit(images), CLASSES, {})
    small = Subject("whitened", "-", whitened, images, gap.labels, BLACK)
    answer = size.answer([gap, small], (8, 32))
    assert answer.verdict == "supported" and cells(answer.table, "`whitened`")[1] == "refused"
    assert "`whitened` at 32 pixels: " in answer.table
    with torch.device("meta"):
        backbone = Backbone("vgg19", 10, image_size=40, weights="none")
    vgg = Pretrained(backbone.to_empty(device="cpu").eval(), gap.trained.preprocess, CLASSES, {})
    answer = size.answer([subject(vgg, "vgg", 2)], (24, 32))
    assert answer.verdict == "supported"
    assert "`vgg` at 24 pixels: vgg19 requires images of at least 32 pixels a side" in answer.table


def test_nets_with_images_of_several_sizes_are_refused():
    net = subject(tiny(), "gap", 2)
    wide = replace(net, images=net.images.repeat(1, 1, 1, 2))
    with pytest.raises(ClaimError, match=r"claim=size: .* several sizes \(32×32, 32×64\); choose nets with images of"):
        size.answer([net, wide])


def test_the_default_sizes_follow_the_images():
    net = subject(tiny(), "gap", 2)
    table = size.answer([net]).table
    assert "| 24 px | 28 px | 32 px |" in table and "| 64 px |" in table
    wide = replace(net, images=net.images.repeat(1, 1, 2, 2))
    assert size.answer([wide]).table.startswith("| net | 48 px | 56 px | 64 px |")


def test_the_default_sizes_contain_the_images_own_whatever_it_is():
    for own in range(1, 400):
        sizes = size.eighths(own)
        assert own in sizes and sizes == sorted(set(sizes)) and sizes[-1] == 2 * own
        assert 0 < sizes[0] <= own and abs(sizes[0] - 0.75 * own) <= 0.5
        steps = [after - before for before, after in itertools.pairwise(sizes)]
        assert own < 8 or (len(sizes) == 11 and max(steps) - min(steps) <= 1)
    net = replace(subject(tiny("gap"), "gap", 2), images=torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    small = Pretrained(NIN([Block(8), Block((8, 8, 10))], head="fc", image_size=28), tiny().preprocess, CLASSES, {})
    answer = size.answer([net, replace(net, name="fc", trained=small)])
    assert "`fc` accepts 1 of 11 sizes: " in answer.finding and " % at 28 px" in answer.finding


def test_seeds_of_one_name_are_averaged_and_refused_together():
    seeds = [subject(tiny("gap", 0), "gap"), subject(tiny("gap", 1), "gap")]
    answer = size.answer(seeds, (24, 32))
    assert all(" ± " in cell for cell in cells(answer.table, "`gap`"))
    errors = [size.measure([net], (32,)).error[0] for net in seeds]
    assert cells(answer.table, "`gap`")[1].startswith(f"{sum(errors) / 2:.2f}")
    assert len(answer.figure.axes[0].lines) == 4  # the images' own size, two seeds and their mean
    mixed = size.answer([subject(tiny("gap"), "a"), subject(tiny("fc"), "a")], (24, 32))
    assert cells(mixed.table, "`a`")[0] == "refused"


def test_one_size_alone_is_drawn_at_its_place():
    answer = size.answer([subject(tiny(), "gap", 6)], (32,))
    assert re.match(r"`gap` accepts 1 of 1 sizes: [\d.]+ % at 32 px\. ", answer.finding)
    assert drawn(answer.figure) >= {"gap", "trained at 32"}
