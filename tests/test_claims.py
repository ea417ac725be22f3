import re
import runpy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn
from torch.nn import functional as F

from nin import NIN, Block, pretrained
from nin.backbones import Backbone
from nin.command import sweep
from nin.data import Normalise, Whiten
from nin.heads import GAP
from nin.pretrained import Pretrained
from nin.studies import claims_of_nets as of_nets
from nin.studies import claims_of_runs as of_runs
from nin.studies.answer import ClaimError
from nin.studies.nets import Net, gather
from nin.studies.rows import Row, append, ended


def tiny(head="gap", seed=0, **facts) -> Pretrained:
    torch.manual_seed(seed)
    net = NIN([Block(8), Block((8, 8, None))], head=head, init="kaiming", norm="batch", last_relu=False, dropout=0.0)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    facts = {"data": "digits", "recipe": "quick", "epochs": 8, "seed": seed, **facts}
    return Pretrained(net, normalise, [str(k) for k in range(10)], facts)


BLACK = torch.zeros(3, 1, 1, dtype=torch.uint8)


def asked(trained: Pretrained, name: str, count: int = 40) -> Net:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
    return Net(name, "-", trained, images, torch.arange(count) % 10, BLACK)


def cells(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


# of nets --------------------------------------------------------------------------------------------------------------


def test_pooling_takes_any_size_and_a_fully_connected_head_says_why_not():
    nets = [asked(tiny("gap"), "gap"), asked(tiny("fc"), "fc")]
    answer = of_nets.size(nets, (24, 32, 40))
    trained, images, labels = nets[0].trained, nets[0].images, nets[0].labels
    error = 100 * (trained(images).argmax(1) != labels).double().mean().item()
    assert float(cells(answer.table, "`gap`")[1]) == pytest.approx(error, abs=0.01)  # at 32 nothing is resized
    assert all(0 <= float(cell) <= 100 for cell in cells(answer.table, "`gap`"))
    assert [cells(answer.table, "`fc`")[i] for i in (0, 2)] == ["refused", "refused"]
    assert "`fc` at 24 pixels: a fully connected head is tied to one image size" in answer.table
    assert answer.finding.startswith("Supported: `gap` takes 3 of 3 sizes")
    assert "`fc` takes 32 pixels alone" in answer.finding
    assert of_nets.size(nets[1:], (24, 32)).finding.startswith("Not answered")
    deep = NIN([Block(8, padding=0) for _ in range(3)] + [Block((8, 8, None), 1)], norm="batch")
    small = asked(Pretrained(deep, nets[0].trained.preprocess, "0123456789", {}), "deep")
    answer = of_nets.size([small], (8, 32))
    assert cells(answer.table, "`deep`")[0] == "refused" and answer.finding.startswith("Refuted")
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    whitened = Pretrained(NIN([Block((8, 8, 10))], image_size=8), Whiten.fit(images), "0123456789", {})
    answer = of_nets.size(
        [nets[0], Net("whitened", "-", whitened, images, nets[0].labels[:1].expand(64), BLACK)], (8, 32)
    )
    assert answer.finding.startswith("Supported") and "whitening is tied to images of 3×8×8" in answer.table
    with torch.device("meta"):
        backbone = Backbone("vgg19", 10, image_size=40, weights="none")
    vgg = asked(
        Pretrained(backbone.to_empty(device="cpu").eval(), nets[0].trained.preprocess, "0123456789", {}), "vgg", 2
    )
    answer = of_nets.size([vgg], (24, 32))
    assert answer.finding.startswith("Supported") and "`vgg` at 24 pixels: vgg19 takes from 32 pixels" in answer.table


def test_the_sizes_asked_about_go_with_the_images():
    net = asked(tiny("gap"), "gap", 2)
    assert "| 24 px | 28 px | 32 px |" in (answer := of_nets.size([net])).table and "| 64 px |" in answer.table
    wide = replace(net, images=net.images.repeat(1, 1, 2, 2))
    assert of_nets.size([wide]).table.startswith("| net | 48 px | 56 px | 64 px |")


def test_each_image_moves_its_own_way():
    images = torch.zeros(8, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    moved = of_nets.shift(images, 3, "zero")
    found = [tuple(image[0].nonzero()[0].tolist()) for image in moved]
    assert found == [(4, 7), (4, 1), (7, 4), (1, 4)] * 2  # right, left, down, up
    assert torch.equal(of_nets.shift(images, 0, "reflect"), images)
    ramp = torch.arange(9.0).expand(4, 1, 9, 9)
    assert of_nets.shift(ramp, 2, "reflect")[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 5, 6]


def test_shifts_are_counted_against_the_unshifted_image():
    net = asked(tiny("gap"), "gap")
    answer = of_nets.shifts([net], (0, 2))
    still, moved = (
        net.trained.net(of_nets.shift(net.trained.preprocess(net.images), p, "reflect")).argmax(1) for p in (0, 2)
    )
    error, same = answer.table.split("\n\n")
    row = "`gap`, fill reflect"
    assert float(cells(error, row)[1]) == pytest.approx(100 * (moved != net.labels).double().mean().item(), abs=0.01)
    assert float(cells(same, row)[1]) == pytest.approx(100 * (moved == still).double().mean().item(), abs=0.01)
    assert cells(same, row)[0] == "100.00"
    assert answer.finding.startswith("Not answered")


def test_whether_shifts_matter_less_to_gap_is_read_off_nets_trained_alike(monkeypatch):
    nets = [asked(tiny("gap"), "gap"), asked(tiny("fc"), "fc")]
    steady, swayed = lambda x: x.new_ones(len(x), 2), lambda x: torch.stack([x[:, 0, 16, 16], -x[:, 0, 16, 16]], 1)
    for (of_gap, of_fc), said in zip(
        ((steady, swayed), (swayed, steady), (swayed, swayed)), ("Supported", "Refuted", "Undecided"), strict=True
    ):
        monkeypatch.setattr(nets[0].trained.net, "forward", of_gap)
        monkeypatch.setattr(nets[1].trained.net, "forward", of_fc)
        finding = of_nets.shifts(nets, (0, 4)).finding
        assert finding.startswith(f"{said} by these nets, one a head: of `gap` more predictions stay by ")
        assert "Shifted by 4 pixels with reflected borders this many predictions stay: `gap` " in finding
    nets[1].trained.facts["epochs"] = 60
    assert of_nets.shifts(nets, (0, 4)).finding.startswith("Not answered")


def test_under_gap_the_highest_mean_is_the_prediction_and_elsewhere_not():
    nets = [asked(tiny("gap"), "gap"), asked(tiny("fc"), "fc")]
    answer = of_nets.channels(nets)
    accuracy, own, named = map(float, cells(answer.table, "`gap`"))
    assert accuracy == own <= named
    trained, images, labels = nets[1].trained, nets[1].images, nets[1].labels
    with torch.no_grad():
        highest = trained.forward_maps(images).mean((2, 3)).argmax(1)
    assert float(cells(answer.table, "`fc`")[1]) == pytest.approx(100 * (highest == labels).double().mean().item())
    assert "by definition" in answer.table
    fc_accuracy, fc_own, _ = map(float, cells(answer.table, "`fc`"))
    verdict = "Refuted" if fc_own < 20 else "Supported" if fc_own > 0.9 * fc_accuracy else "Supported in part"
    assert answer.finding.startswith(f"{verdict} for fully connected heads")
    assert of_nets.channels(nets[:1]).finding.startswith("Not answered")
    wide = asked(tiny("gap"), "wide")
    wide.trained.classes = wide.trained.classes[:7]
    assert "wide" not in of_nets.channels([*nets, wide]).table
    with pytest.raises(ClaimError, match="as many last maps as classes"):
        of_nets.channels([wide])


def test_seeds_are_one_name_and_what_differs_is_named(tmp_path):
    kinds = {"a": tiny(), "b": tiny(seed=1), "c": tiny("fc"), "d": tiny(epochs=20), "e": tiny("fc")}
    for name, trained in kinds.items():
        pretrained.save(tmp_path / f"{name}.safetensors", trained)
    files = {name: str(tmp_path / f"{name}.safetensors") for name in kinds}
    assert [net.name for net in gather([files["c"], files["a"], files["b"]])] == ["gap", "gap", "fc"]
    assert [net.name for net in gather([files["d"], files["a"]])] == ["gap 20 epochs", "gap 8 epochs"]
    names = [net.name for net in gather([files["c"], files["e"]], images=7)]
    assert names == [f"fc {files['c']}", f"fc {files['e']}"]  # one seed twice: not two seeds of one thing
    tuned = tiny(started_from="cifar10-gap", frozen=True)
    pretrained.save(tmp_path / "tuned.safetensors", tuned)
    names = [net.name for net in gather([files["a"], str(tmp_path / "tuned.safetensors")], images=7)]
    assert names == ["gap from cifar10-gap, frozen", "gap from scratch"]
    (net,) = gather([files["a"]], images=7)
    assert len(net.images) == len(net.labels) == 7
    (other,) = gather([files["a"]], images=7, seed=1)
    assert not torch.equal(net.images, other.images)
    answer = of_nets.channels(gather([files["a"], files["b"]], images=50))
    assert all(" ± " in cell for cell in cells(answer.table, "`gap`"))


class Lit(nn.Module):
    """Its maps are the brightness of the image, 8×8; `head` scores a class by their mean, or does not look at them."""

    arguments: ClassVar = {"head": "gap"}

    def __init__(self, blind=False):
        super().__init__()
        self.blind, self.weight, self.head = blind, nn.Parameter(torch.zeros(1)), GAP()

    def forward_maps(self, images):
        return F.avg_pool2d(images.mean(1, keepdim=True), 4).expand(-1, 10, -1, -1)

    def forward(self, images):
        return self.head(self.forward_maps(images)) * (not self.blind)


def test_whether_maps_light_up_at_the_object():
    images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
    places = torch.randint(0, 24, (100, 2), generator=torch.Generator().manual_seed(0))
    for image, (top, left) in zip(images, places, strict=True):
        image[:, top : top + 8, left : left + 8] = 255
    plain = Normalise(torch.zeros(3), torch.ones(3))
    seeing, blind = (
        replace(asked(Pretrained(Lit(no), plain, "0123456789", {}), name, 100), images=images)
        for no, name in ((False, "seeing"), (True, "blind"))
    )
    answer = of_nets.objects([seeing])
    assert answer.finding.startswith("Supported: ")
    under, elsewhere, chance, *differences = cells(answer.table, "`seeing`")
    assert float(under) == pytest.approx(255 * 64 / 1024, abs=0.01)
    for other, difference in zip((elsewhere, chance), differences, strict=True):
        assert 0 < float(other) < 0.7 * float(under)
        more, low, high = map(float, re.findall(r"[+-][\d.]+", difference))
        assert more == pytest.approx(float(under) - float(other), abs=0.011) and 0 < low < more < high
    usual = replace(seeing, images=images[:1].expand(100, -1, -1, -1))  # every object at one place: no map is needed
    assert of_nets.objects([usual]).finding.startswith("Undecided: ")
    assert cells(of_nets.objects([usual]).table, "`seeing`")[3].startswith("+0.00")
    assert of_nets.objects([blind]).finding.startswith("Undecided: ")
    assert of_nets.objects([seeing, blind]).finding.startswith("Supported in part: ")
    assert of_nets.objects([asked(tiny("fc"), "fc")]).finding.startswith("Not answered")


# of rows --------------------------------------------------------------------------------------------------------------


def row(head, seed, error=10.0, train=2.0, share=None, epochs=8, curve="", status="ok", more=""):
    given = f" data.share={share}" * bool(share)
    overrides = f"head={head} recipe=quick seed={seed}{given} {more}".strip()
    return Row(overrides, "cifar10", head, "quick", seed, epochs, status, error, train, test_curve=curve)


def test_convergence_is_paired_by_seed():
    curves = {
        ("gap", 0): "30 20 15 10",
        ("gap", 1): "30 20 16 14",
        ("gap", 2): "30 20 15 10",
        ("fc", 0): "40 25 20 15",
        ("fc", 1): "40 30 20 17",
        ("fc", 2): "40 30 25 20",
        ("fc", 9): "40 30 25 22",
    }
    rows = [row(*key, curve=curve) for key, curve in curves.items()]
    rows.append(row("gap", 3, curve="1 1 1 1", more="model.dropout=0.5"))  # something else was varied
    (answer,) = of_runs.convergence(rows)
    upper, lower, _ = answer.table.split("\n\n")
    assert cells(upper, "`gap`")[0] == "2.00 ± 0.00"
    assert cells(upper, "`fc`")[0] == "3.33 ± 0.58 (1 never)"
    assert cells(lower, "`fc`") == ["+1.00, +1.00, +2.00 (mean +1.33)", "+1.00", "none"]
    # of each seed, with the ninth epoch for never: (1 + 1 + 5) / 3; (1 + 5.5) / 2, 90 % neither had; (2 + 6 + 5) / 3
    assert answer.finding.startswith("Refuted: epochs of a fully connected head minus those of `gap`")
    assert "`fc` +3.31 (+0.82 to +5.79)" in answer.finding
    (answer,) = of_runs.convergence(
        [*rows, row("fc", 8, None, None, status="dead"), row("gap", 8, curve="30 20 15 10")]
    )
    assert cells(answer.table, "`fc`, 1 died")[0] == "3.33 ± 0.58 (1 never)"
    assert "`fc` +3.31 (+0.82 to +5.79)" in answer.finding
    sooner = {0: "30 19 9", 1: "30 14 9", 2: "19 14 9"}
    rows = [row("gap", seed, curve="40 30 30") for seed in sooner]
    (answer,) = of_runs.convergence(rows + [row("fc", seed, curve=curve) for seed, curve in sooner.items()])
    assert answer.finding.startswith("Supported: ")
    (answer,) = of_runs.convergence([row("gap", 0, curve="30 20 15 10"), row("fc", 0, curve="20 15 10 8")])
    assert answer.finding.startswith("Undecided by so few seeds: ") and "`fc` -1.00 (one seed)" in answer.finding
    (answer,) = of_runs.convergence([row("gap", 0, curve="30 19 14 9"), row("fc", 1, curve="30 19 14 9")])
    assert answer.finding.startswith("Not answered")
    with pytest.raises(ClaimError, match="no row"):
        of_runs.convergence([row("gap", 0)])


def test_overfitting_takes_the_longest_runs_of_each_share_and_claims_what_is_clear():
    rows = [row("gap", s, 10 + 0.1 * s) for s in range(3)] + [row("fc", s, 10 + 0.1 * s) for s in range(3)]
    for seed in range(3):
        rows.append(row("gap", seed, 40 + seed, 1.0, 0.05, 160))
        rows.append(row("fc", seed, 45 + seed + 0.1 * (seed == 1), 0.0, 0.05, 160))
    rows.append(row("gap", 0, 80.0, 60.0, 0.05, 8))  # shorter
    rows.append(row("gap", 0, 1.0, share=0.05, epochs=160, more="model.dropout=0.5"))
    (answer,) = of_runs.overfitting(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answer.table.splitlines()[2:-2]]
    assert [line[:4] for line in lines] == [
        ["5 %", "160", "`gap`", "3"],
        ["5 %", "160", "`fc`", "3"],
        ["100 %", "8", "`gap`", "3"],
        ["100 %", "8", "`fc`", "3"],
    ]
    assert lines[0][4:7] == ["1.00 ± 0.00", "41.00 ± 1.00", "40.00 ± 1.00"]
    assert lines[1][7].startswith("+5.03 (")
    assert answer.finding.startswith(
        "Supported in part: test error minus training error, of a fully connected head minus that of `gap`"
    )  # all data: equal
    assert "`fc` with 5 % of the images +6.03 (+5.89 to +6.18)" in answer.finding
    (answer,) = of_runs.overfitting([*rows, row("fc", 3, None, None, 0.05, 160, status="dead")])
    assert "| 5 % | 160 | `fc` | 3, 1 died |" in answer.table
    doubtful = [row("fc", s, 45 + 10 * s, share=0.05, epochs=160) for s in range(3)]
    (answer,) = of_runs.overfitting([r for r in rows if r.head == "gap"] + doubtful)
    assert answer.finding.startswith("Undecided: ")
    longer = [row("gap", s, 8.0, epochs=40) for s in range(3)]  # of one head alone, nothing to compare with
    (answer,) = of_runs.overfitting([*rows, *longer])
    assert "| 100 % | 8 | `fc` | 3 |" in answer.table
    held_out = [replace(r, overrides=f"{r.overrides} data.val=5000", val_error=99.0) for r in rows]
    assert [a.table.count("99.00") > 0 for a in of_runs.overfitting([*rows, *held_out])] == [False, True]
    with pytest.raises(ClaimError, match=r"data\.share="):
        of_runs.overfitting([row("gap", 0), row("fc", 0)])


def test_transfer_is_compared_with_gap_and_with_training_from_scratch():
    ways = sweep(ROOT / "conf", ["checkpoint=null,net", "freeze=false,true"])  # as scripts/ablate.py writes them down
    errors = {("null", "False"): 30.0, ("net", "False"): 20.0, ("net", "True"): 50.0}
    rows = []
    for way in ways:
        error = errors.get(tuple(override.split("=")[1] for override in way))
        for seed in range(3) if error else ():
            rows.append(row("gap", seed, error + seed, more=" ".join(way)))
            rows.append(row("fc", seed, error + seed + 5 + 0.1 * (seed == 1), more=" ".join(way)))
    rows[1] = row("fc", 0, None, more="checkpoint=null", status="dead")
    rows.append(row("gap", 0, 1.0, more="checkpoint=net model.dropout=0.5"))  # something else was varied
    rows.append(row("fc", 0, 1.0, more="checkpoint=another"))
    rows.append(row("fc", 0, 1.0, more="'model.blocks=[{widths: 8}, {widths: [8, 8, null]}]'"))
    (answer,) = of_runs.transfer(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answer.table.splitlines()[2:-2]]
    assert [line[:3] for line in lines] == [
        ["from scratch", "`gap`", ""],
        ["from scratch", "`fc`", ""],
        ["fine-tuned", "`gap`", "net"],
        ["fine-tuned", "`fc`", "another"],
        ["fine-tuned", "`fc`", "net"],
        ["probed", "`gap`", "net"],
        ["probed", "`fc`", "net"],
    ]
    assert lines[1][3:6] == ["dead, 36.10, 37.00", "36.55 ± 0.64", "2"]
    assert lines[2][3:] == ["20.00, 21.00, 22.00", "21.00 ± 1.00", "3", "", "-10.00 (3 times the same)"]
    assert lines[6][6].startswith("+5.03 (") and lines[6][7].startswith("+20.00 (")
    assert answer.finding.startswith(
        "Refuted in part: error of a fully connected head minus that of `gap`"
    )  # another: one seed
    assert "probed `fc` +5.03 (" in answer.finding and "scratch" not in answer.finding
    (answer,) = of_runs.transfer(rows[:6] + [r for r in rows[6:] if r.head == "gap"])
    assert answer.finding.startswith("Not answered")
    mixed = dict(enumerate((19.9, 26.0, 27.0, 28.1, 29.2)))  # the first is below gap's
    many = [row("gap", seed, 20.0 + seed, more="checkpoint=net") for seed in mixed]
    many += [row("fc", seed, error, more="checkpoint=net") for seed, error in mixed.items()]
    assert of_runs.transfer(many)[0].finding.startswith("Refuted: ")
    published = [replace(r, overrides=r.overrides.replace("=net", "=cifar10-gap-paper")) for r in many[:5]]
    published += [replace(r, overrides=r.overrides.replace("=net", "=cifar10-fc")) for r in many[5:]]
    assert of_runs.transfer(published)[0].finding.startswith("Not answered")  # trained otherwise, their cards say
    several = [replace(r, overrides=r.overrides.replace("checkpoint=net", "checkpoint=n-gap")) for r in many[:5]]
    several += [row("gap", seed, 1.0, more="checkpoint=m-gap") for seed in mixed]
    fc = [replace(r, overrides=r.overrides.replace("checkpoint=net", "checkpoint=n-fc")) for r in many[5:]]
    assert (
        of_runs.transfer([*several, *fc])[0].finding == of_runs.transfer(many)[0].finding
    )  # m-gap is another recipe's
    worse = [
        replace(r, test_error=10.0 + 0.9 * r.seed) if r.head == "fc" and "freeze=True" in r.overrides else r
        for r in rows
    ]
    (answer,) = of_runs.transfer(worse)
    assert answer.finding.startswith("Mixed")
    with pytest.raises(ClaimError, match="checkpoint="):
        of_runs.transfer([row("gap", 0), row("fc", 0)])


def test_a_linear_probe_is_the_same_for_the_blocks_of_every_head():
    errors = {("gap", "c-gap"): 40.0, ("gap", "c-fc-dropout"): 44.0, ("gap", "c-fc"): 47.0, ("fc", "c-fc"): 30.0}
    rows = [
        row(head, seed, error + seed + 0.1 * (seed == 1) * (name != "c-gap"), more=f"checkpoint={name} freeze=true")
        for (head, name), error in errors.items()
        for seed in range(3)
    ]
    (answer,) = of_runs.transfer(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in answer.table.splitlines()[2:-2]]
    assert [line[:3] for line in lines] == [
        ["probed", "`gap`", "c-gap"],
        ["probed", "`fc`", "c-fc"],
        ["linear probe", "`gap`", "c-gap"],
        ["linear probe", "`fc_dropout`", "c-fc-dropout"],
        ["linear probe", "`fc`", "c-fc"],
    ]
    assert "probed `fc` -9.97 (-10.11 to -9.82), supported" in answer.finding
    assert "linear probe `fc_dropout` +4.03 (+3.89 to +4.18), refuted; linear probe `fc` +7.03" in answer.finding
    (answer,) = of_runs.transfer([r for r in rows if r.head != "gap" or "c-gap" in r.overrides])
    assert "linear probe" not in answer.table  # of GAP alone it is what `probed` is


# the command ----------------------------------------------------------------------------------------------------------


def test_the_command(script, tmp_path):
    for head in ("gap", "fc"):
        pretrained.save(tmp_path / f"{head}.safetensors", tiny(head))
    rows = (row("gap", 0, curve="30 9"), row("fc", 0, curve="30 19"), row("gap", 0, 40.0, share=0.05))
    for each in (*rows, row("gap", 0, 20.0, more="checkpoint=net")):
        append(tmp_path / "runs.csv", each)
    code, said, _ = script("claims.py", "checkpoint=gap.safetensors,fc.safetensors", "study=runs.csv", "images=20")
    assert code == 0
    assert len(re.findall("^## ", said, re.M)) == 7
    pictures = sorted((tmp_path / "claims").glob("*.png"))
    asked = ["channels", "convergence", "objects", "overfitting", "shift", "size", "transfer"]
    assert [picture.stem.split("-")[0] for picture in pictures] == asked
    of_nets, of_runs = ((tmp_path / "claims" / f"{name}.md").read_text() for name in ("nets", "runs"))
    for picture in pictures:
        assert (f"]({picture.name})" in of_nets) == (picture.stem in ("channels", "objects", "shift", "size"))
        assert (f"]({picture.name})" in of_nets) != (f"]({picture.name})" in of_runs)
    assert of_nets.count("| digits | quick | 8 | 0 |") == 2  # the nets that were asked
    assert "one with a fully connected head. | Undecided by so few seeds" in of_runs
    for picture in pictures:  # more than an empty canvas
        assert np.asarray(Image.open(picture).convert("L")).std() > 5


PAGES = ROOT / "checkpoints" / "claims"


@pytest.mark.skipif(not PAGES.exists(), reason="no pages are published")
def test_the_published_pages_are_of_the_published_rows_and_nets():
    script = runpy.run_path(str(ROOT / "scripts" / "claims.py"))
    rows = ended(ROOT / "checkpoints" / "runs.csv")
    of_runs, of_nets = ((PAGES / f"{name}.md").read_text() for name in ("runs", "nets"))
    found = [answer for ask in script["OF_ROWS"].values() for answer in ask(rows)]
    assert script["page"]([], found).split("\n\n")[1:] == of_runs.split("\n\n")[3:]
    names = re.search(r"checkpoint=([\w,-]+)", of_nets)[1].split(",")
    for card in map(pretrained.read_card, names):
        assert f"| {card['recipe']} | {card['epochs']} | {card['seed']} | {card['test_error']} |" in of_nets
    for picture in re.findall(r"\]\((.*\.png)\)", of_runs + of_nets):
        assert (PAGES / picture).stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give checkpoint="),
        (["checkpoint=net", "claim=size,speed"], 2, "claim=speed: choose one of size, shift, channels"),
        (["checkpoint=net", "claim=convergence"], 2, "claim=convergence: it is asked of rows; give study="),
        (["study=none.csv"], 2, "study=none.csv: there is no such file"),
        (["checkpoint=net", "images=0"], 2, "images=0: a number of test images"),
        (["checkpoint=net", "size=3"], 2, "size=3: give NAME=VALUE"),
        (["checkpoint=net"], 1, "checkpoint=net: there is no such file or folder"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, arguments, code, words):
    ended, said, errors = script("claims.py", *arguments)
    assert (ended, said) == (code, "")
    assert words in errors and len(errors.splitlines()) == 1
