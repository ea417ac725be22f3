from dataclasses import replace

import numpy as np
import pytest
import torch

from claims import cells, drawn, subject, tiny
from nin import config
from nin.config import Config
from nin.errors import ClaimError
from nin.studies import shift


def test_each_image_moves_its_own_way():
    images = torch.zeros(8, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    places = [tuple(image[0].nonzero()[0].tolist()) for image in shift.moved(images, 3, "zero")]
    assert places == [(4, 7), (4, 1), (7, 4), (1, 4)] * 2  # right, left, down, up
    assert torch.equal(shift.moved(images, 0, "reflect"), images)
    ramp = torch.arange(9.0).expand(4, 1, 9, 9)
    assert shift.moved(ramp, 2, "reflect")[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 5, 6]


def test_predictions_are_compared_with_those_of_the_unshifted_image():
    net = subject(tiny("gap"), "gap")
    answer = shift.answer([net])
    prepared = net.trained.preprocess(net.images)
    still, moved = (net.trained.net(shift.moved(prepared, pixels, "reflect")).argmax(1) for pixels in (0, 2))
    errors, same = answer.table.split("\n\n")
    row = "`gap`, fill reflect"
    assert float(cells(errors, row)[2]) == pytest.approx(100 * (moved != net.labels).double().mean().item(), abs=0.01)
    assert float(cells(same, row)[2]) == pytest.approx(100 * (moved == still).double().mean().item(), abs=0.01)
    assert cells(same, row)[0] == "100.00"
    assert answer.verdict == "not answered" and "trained alike" in answer.finding
    assert "Shifted by 4 pixels with reflected borders: `gap` " in answer.finding


def test_the_lines_of_a_table_stand_by_fill_and_net_and_seeds_are_averaged():
    nets = [subject(tiny("gap", 0), "gap"), subject(tiny("gap", 1), "gap"), subject(tiny("fc"), "fc")]
    answer = shift.answer(nets)
    errors = answer.table.split("\n\n")[0]
    firsts = [line.split("|")[1].strip() for line in errors.splitlines()[2:]]
    assert firsts == ["`gap`, fill zero", "`fc`, fill zero", "`gap`, fill reflect", "`fc`, fill reflect"]
    assert all(" ± " in cell for cell in cells(errors, "`gap`, fill zero"))
    assert "±" not in cells(errors, "`fc`, fill zero")[0]
    assert [len(axis.lines) for axis in answer.figure.axes] == [4, 4, 4, 4]  # two seeds, their mean, and fc
    assert {"gap", "fc", "shift (pixels)", "fill: reflected", "test error (%)"} < drawn(answer.figure)


def test_the_verdict_is_of_nets_that_were_trained_alike(monkeypatch):
    nets = [subject(tiny("gap"), "gap"), subject(tiny("fc"), "fc")]

    def steady(x):
        return x.new_ones(len(x), 2)

    def swayed(x):
        return torch.stack([x[:, 0, 16, 16], -x[:, 0, 16, 16]], 1)

    verdicts = []
    for of_gap, of_fc in ((steady, swayed), (swayed, steady), (swayed, swayed)):
        monkeypatch.setattr(nets[0].trained.net, "forward", of_gap)
        monkeypatch.setattr(nets[1].trained.net, "forward", of_fc)
        answer = shift.answer(nets)
        verdicts.append(answer.verdict)
        assert answer.finding.startswith("Predictions that stay the same (points), `gap` minus `fc` ")
        assert "Shifted by 4 pixels with reflected borders: `gap` " in answer.finding
    assert verdicts == ["supported", "refuted", "undecided"]
    monkeypatch.setattr(nets[0].trained.net, "forward", steady)
    both = [*nets, subject(tiny("fc_dropout"), "fc_dropout")]
    monkeypatch.setattr(both[2].trained.net, "forward", steady)
    answer = shift.answer(both)
    assert answer.verdict == "supported in part"
    assert ", supported; minus `fc_dropout` +0.00 (40 times the same), undecided" in answer.finding
    settings = config.settings_of(Config())
    nets[0].trained.facts["settings"] = nets[1].trained.facts["settings"] = settings
    assert shift.answer(nets).verdict == "supported"
    nets[1].trained.facts["settings"] = {**settings, "model": {**settings["model"], "norm": "batch"}}
    assert shift.answer(nets).verdict == "not answered"
    nets[1].trained.facts |= {"settings": settings, "epochs": 60}
    assert shift.answer(nets).verdict == "not answered"


def test_a_verdict_requires_images_that_differ(monkeypatch):
    draw = np.random.default_rng(0)
    for count in (1, 2, 29, 30):
        nets = [subject(tiny("gap"), "gap", count), subject(tiny("fc"), "fc", count)]
        measured = shift.measure(nets)
        monkeypatch.setattr(shift, "measure", lambda _, measured=measured: measured)
        for sign, verdict in ((1, "supported"), (-1, "refuted")):
            for swayed in (np.full(count, 50.0), draw.uniform(40, 60, count)):
                steady = {0: np.full(count, 50 + sign * 40.0), 1: swayed}
                monkeypatch.setattr(shift, "steadiness", lambda _, steady=steady: steady)
                answer = shift.answer(nets)
                decides = count >= 30 and len(set(swayed)) > 1
                assert answer.verdict == (verdict if decides else "undecided")
                assert ("A verdict requires 30 images." in answer.finding) == (count < 30)
                assert "seed" not in answer.finding and ("(one image)" in answer.finding) == (count == 1)
        monkeypatch.undo()


def test_images_that_a_shift_leaves_nothing_of_have_no_answer():
    small = replace(subject(tiny("gap"), "gap"), images=torch.zeros(40, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ClaimError, match="claim=shift: nothing is left of images of 8 pixels"):
        shift.measure([small])
