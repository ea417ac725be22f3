"""Predictions: probabilities, scores and class maps of pictures, and their drawings."""

import csv
import io
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nin
from claims import tiny
from damaged import FORMATS, damaged_pictures, gradient
from nin import GAP, NIN, Block, predict, pretrained
from nin.data.preprocess import Normalise, Whiten
from nin.data.sets import SETS
from nin.errors import CheckpointError, PictureError, RunError, SettingError
from nin.pretrained import Pretrained
from nin.run.evaluate import images_of


def fully_connected(head="fc") -> Pretrained:
    trained = tiny(head)
    nn.init.normal_(trained.net.head.linear.bias)
    return trained


def test_the_mean_of_a_map_is_the_score():
    (prediction,) = predict.predict(tiny(), [gradient()], "native")
    assert prediction.picture.size == (40, 30)
    torch.testing.assert_close(prediction.maps.mean((1, 2)), prediction.logits)
    torch.testing.assert_close(prediction.probabilities, prediction.logits.softmax(0))
    assert prediction.best() == prediction.logits.topk(3).indices.tolist()
    best = prediction.best(1)[0]
    assert str(prediction).startswith(f"{best}: {100 * prediction.probabilities[best]:.1f} %, ")
    (largest,) = predict.predict(tiny("gmp"), [gradient()], 64)
    assert largest.picture.size == (64, 64)
    torch.testing.assert_close(largest.maps.amax((1, 2)), largest.logits)


def test_many_pictures_have_the_scores_that_each_has_alone():
    pictures = [gradient(20 + n, 40) for n in range(5)]
    for trained in (tiny(), fully_connected()):
        together = predict.predict(trained, pictures, "training")
        for picture, prediction in zip(pictures, together, strict=True):
            (alone,) = predict.predict(trained, [picture])
            torch.testing.assert_close(prediction.logits, alone.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(prediction.maps, alone.maps, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(prediction.logits, trained(picture)[0].detach(), rtol=1e-4, atol=1e-4)
    assert [each.picture.size for each in predict.predict(tiny(), pictures, "native")] == [p.size for p in pictures]
    assert len(predict.predict(tiny(), pictures[:2], 600)) == 2  # one at a time
    assert predict.predict(tiny(), []) == []


def test_under_a_linear_layer_a_class_map_is_maps_times_weights():
    trained = fully_connected()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    logits, maps = predict.class_maps(trained, images)
    layer = trained.net.head.linear
    with torch.no_grad():
        read = trained.forward_maps(images)
        torch.testing.assert_close(logits, trained(images))
    weight = layer.weight.detach().view(10, *read.shape[1:])
    torch.testing.assert_close(maps, torch.einsum("nmhw,kmhw->nkhw", read, weight), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps.sum((2, 3)) + layer.bias.detach(), logits, rtol=1e-3, atol=1e-3)
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert not logits.requires_grad and not maps.requires_grad


def test_below_the_articles_pooling_the_maps_are_features():
    trained = tiny()
    trained.net.arguments["head"] = "gap_article"
    trained.net.head = nn.Sequential(GAP(), nn.Linear(10, 10))
    assert not predict.has_class_maps(trained) and predict.has_class_maps(tiny())
    (prediction,) = predict.predict(trained, [gradient(64, 64)], "native")
    bias = trained.net.head[1].bias.detach()
    torch.testing.assert_close(prediction.maps.sum((1, 2)) + bias, prediction.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.tries(4)
def test_a_size_that_a_net_does_not_accept_is_refused(monkeypatch):
    with pytest.raises(PictureError, match=r"^40×30 pixels: map_size="):
        predict.predict(fully_connected(), [gradient()], "native")
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    whitened = Pretrained(tiny().net, Whiten.fit(images[:, :, :8, :8]), list("0123456789"), {})
    with pytest.raises(PictureError, match="40×30 pixels: "):
        predict.predict(whitened, [gradient()], "native")
    with pytest.raises(PictureError, match="1×1 pixels are too few for this net"):
        predict.predict(tiny(), [gradient(1, 1)], "native")
    monkeypatch.setattr(predict, "memory_gb", lambda: 1e-4)
    with pytest.raises(PictureError, match="400×300 pixels are too many for this machine"):
        predict.predict(tiny(), [gradient(400, 300)], "native")
    predict.predict(tiny(), [gradient(30, 30)], "native")


def test_sizes_are_words_or_pixels():
    assert [predict.read_size(size) for size in ("training", "native", "64", 64)] == ["training", "native", 64, 64]
    for size in ("big", "", "0", "-3", "4097", "9" * 5000, "1.5", 0, None):
        with pytest.raises(SettingError, match=r"^size=.*: must be training, native or a number of pixels"):
            predict.read_size(size)


def test_a_bad_picture_costs_itself_alone(tmp_path):
    (tmp_path / "bad.png").write_text("text")
    gradient().save(tmp_path / "good.png")
    sources = [("bad", tmp_path / "bad.png"), ("good", tmp_path / "good.png"), ("made", gradient(1, 1))]
    for size, expected in (("training", (False, True, True)), ("native", (False, True, False))):
        found = dict(predict.predict_each(tiny(), sources, size))
        assert tuple(isinstance(found[name], predict.Prediction) for name, _ in sources) == expected
    many = predict.Many(tiny(), [("1", gradient(1, 1))], tmp_path, "net", "native", draws=False)
    with pytest.raises(PictureError, match=r"^1: 1×1 pixels are too few"):
        list(many)
    of_fc = [each for _, each in predict.predict_each(fully_connected(), sources, 64)]
    assert all(isinstance(each, PictureError) for each in of_fc)  # each is told why
    with pytest.raises(PictureError, match=r"^\S+bad\.png: not a picture in a supported format.*; made: 1×1 pixels"):
        list(predict.Many(tiny(), sources, tmp_path / "out", "net", "native"))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["good_net.png"]


def test_damaged_pictures_are_predicted_or_named(tmp_path):
    sources = []
    for name, content in damaged_pictures(random.Random(0), 2):
        (tmp_path / name).write_bytes(content)
        sources.append((name, tmp_path / name))
    found = dict(predict.predict_each(tiny(), sources))
    assert list(found) == [name for name, _ in sources] and len(found) == 2 * len(FORMATS)
    for name, prediction in found.items():
        if isinstance(prediction, PictureError):
            assert name in str(prediction)
        else:
            assert prediction.probabilities.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_drawing_overwrites_nothing(tmp_path):
    """The second picture stands where the first one's drawing would go."""
    sources = []
    for name, size in (("good.png", 40), ("good_net.png", 30)):
        gradient(size, size).save(tmp_path / name)
        sources.append((name, tmp_path / name))
    sources.append(("good.png", gradient(20, 20)))
    before = [(tmp_path / name).read_bytes() for name, _ in sources[:2]]
    drawn = [file.name for *_, file in predict.Many(tiny(), sources, tmp_path, "net")]
    assert drawn == ["good_net_2.png", "good_net_net.png", "good_net_3.png"]
    assert [(tmp_path / name).read_bytes() for name, _ in sources[:2]] == before
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="this folder cannot be created"):
        list(predict.Many(tiny(), sources, tmp_path / "file", "net"))


def test_many_pictures_are_a_table(tmp_path):
    """Of a head with maps of its own and of one without: the table is the same with and without drawings."""
    sources = [(f"{n}.png", gradient(20 + n, 30)) for n in range(3)] + [('bad, "file".png', tmp_path / "bad.png")]
    (tmp_path / "bad.png").write_text("text")
    for trained in (tiny(), fully_connected()):
        tables = []
        for draws in (False, True):
            many = predict.Many(trained, sources, tmp_path / "out", "net", draws=draws, top=2)
            with pytest.raises(PictureError, match="not a picture"):
                for _, prediction, drawing in many:
                    assert (drawing is not None) == draws == (prediction.maps is not None)
            tables.append([*csv.DictReader(many.table().decode().splitlines())])
        plain, drawn = tables
        assert [{**row, "picture": ""} for row in drawn] == [{**row, "picture": ""} for row in plain]
        assert [row["file"] for row in plain] == [name for name, _ in sources]
        for row, (_, picture) in zip(plain[:3], sources[:3], strict=True):
            (prediction,) = predict.predict(trained, [picture])
            first, second = prediction.best(2)
            assert (row["class"], row["class_2"]) == (trained.classes[first], trained.classes[second])
            assert float(row["probability_2"]) == pytest.approx(prediction.probabilities[second].item(), abs=6e-5)
        assert "not a picture" in plain[3]["error"] and not plain[3]["class"]


def test_a_file_of_any_name_has_one_line_in_the_table(tmp_path):
    names = [
        "a b",
        "a,b",
        'a"b',
        "a\nb",
        "a\rb",
        "a\r\nb",
        "=1+1",
        "日本",
        "\udcff",
        "a;b",
        "'",
        " ",
        "a\tb",
        "é\u2028",
    ]
    many = predict.Many(tiny(), [(name, gradient()) for name in names], tmp_path, "net", draws=False)
    assert len(list(many)) == len(names)
    text = many.table().decode("utf-8", "surrogateescape")
    assert [row["file"] for row in csv.DictReader(io.StringIO(text, newline=""))] == names
    assert text.startswith("file,class,probability,class_2,probability_2,class_3,probability_3,error\na b,")


def test_the_map_of_one_class_and_of_the_ten_best(tmp_path):
    one = predict.Many(tiny(), [("a", gradient())], tmp_path, "net", class_name="7")
    ((_, prediction, _),) = one
    assert one.shown(prediction) == [7] and {7, *prediction.best()} == {*one.printed(prediction)}
    ten = predict.Many(tiny(), [("a", gradient())], tmp_path, "net", top=10)
    ((_, prediction, _),) = ten
    assert ten.shown(prediction) == prediction.best(10)
    figure = predict.draw(tiny(), prediction, shown=[7])
    assert [axis.get_title().split("  ")[0] for axis in figure.axes[2:3]] == ["7:"]
    with pytest.raises(SettingError, match=r"^class=dgo: unknown to this net, which knows 10 classes: 0, 1"):
        predict.Many(tiny(), [], tmp_path, "net", class_name="dgo")
    with pytest.raises(SettingError, match="top=0"):
        predict.Many(tiny(), [], tmp_path, "net", top=0)
    with pytest.raises(SettingError, match="top=101"):  # a picture of so many panels is too large for Matplotlib
        predict.Many(tiny(), [], tmp_path, "net", top=101)
    predict.Many(tiny(), [], tmp_path, "net", top=1000, draws=False)


def test_drawings_are_named_after_their_net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = {".": tmp_path.name, "..": tmp_path.parent.name, "A/../B": "B", "model.safetensors": tmp_path.name}
    labels |= {"cifar10-gap": "cifar10-gap", "runs/A": "A", "runs/A/": "A", "runs/A/model.safetensors": "A"}
    labels["weights/mine.safetensors"] = "mine"
    assert {checkpoint: predict.label_of(checkpoint) for checkpoint in labels} == labels
    for long in ("a" * 255, "日" * 85, "é" * 127):  # names of folders that a file system may have
        label = predict.label_of(f"runs/{long}")
        assert long.startswith(label) and 90 < len(label.encode()) <= 100


def test_a_thousand_pictures_of_one_name_are_named_in_a_thousand_steps(tmp_path, monkeypatch):
    folders = ("cat", "dog")
    sources = [(name, tmp_path / name) for name in (f"{place % 500}/{folders[place % 2]}.jpg" for place in range(1000))]
    (tmp_path / "out").mkdir()
    sources += [("x", tmp_path / "out" / f"cat_net{end}.png") for end in ("", "_3")]  # a picture of before
    looked, resolve = [], Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path, *_: looked.append(path) or resolve(path))
    drawings = predict.name_drawings(sources, tmp_path / "out", "net")
    assert len(set(drawings)) == len(sources) and not set(drawings) & {source for _, source in sources}
    assert [each.name for each in drawings[:4]] == ["cat_net_2.png", "dog_net.png", "cat_net_4.png", "dog_net_2.png"]
    assert len(looked) < 4 * len(sources)


# drawing --------------------------------------------------------------------------------------------------------------


def test_positive_evidence_is_overlaid_and_the_rest_is_clear():
    trained = tiny()
    (prediction,) = predict.predict(trained, [gradient(32, 32)])
    maps = torch.full((10, 16, 16), -1.0)
    maps[:, :8] = 2  # above
    figure = predict.draw(trained, replace(prediction, maps=maps), rows=2)
    for axis, k in zip(figure.axes[1:4], prediction.best(), strict=True):
        opacity = np.asarray(axis.images[1].get_array())[..., 3]
        assert np.allclose(opacity[:112], 0.8) and (opacity[152:] == 0).all()
        assert axis.get_title() == f"{k}:  {100 * prediction.probabilities[k]:.1f} %"
    assert [axis.get_subplotspec().get_gridspec().nrows for axis in figure.axes[:4]] == [2] * 4


def test_an_overlay_stays_within_the_bounds_of_its_map():
    trained = tiny()
    (prediction,) = predict.predict(trained, [gradient(32, 32)])
    maps = -torch.ones(10, 16, 16)
    maps[:, 5, 5] = -9  # a bicubic curve rises above 0 beside it
    figure = predict.draw(trained, replace(prediction, maps=maps + 0.99))
    assert all((np.asarray(axis.images[1].get_array())[..., 3] == 0).all() for axis in figure.axes[1:4])


def test_the_pixels_that_the_net_saw_stand_beside_the_photograph():
    trained = tiny()
    (wide,) = predict.predict(trained, [gradient(200, 50)])
    assert wide.photograph.size == (200, 50) and wide.picture.size == (32, 32) and wide.canvas().size == (512, 512)
    assert wide.seen_box() == (75, 0, 50, 50)
    photograph, seen, *_ = predict.draw(trained, wide).axes
    assert photograph.get_title() == "photograph, 200×50"
    assert photograph.get_xlabel() == "the net sees the framed part"
    assert photograph.patches[0].get_bbox().bounds == wide.seen_box()
    assert seen.get_title() == "the net sees 32×32 pixels"
    assert np.array_equal(seen.images[0].get_array(), np.asarray(wide.picture))
    assert predict.draw(trained, wide, whole=False).axes[0].get_title() == "the net sees 32×32 pixels"
    (native,) = predict.predict(trained, [gradient(40, 30)], "native")
    assert predict.draw(trained, native).axes[0].get_title() == "the net sees 40×30 pixels"
    assert native.canvas().size == (512, 384)
    (square,) = predict.predict(trained, [gradient(64, 64)])
    assert square.seen_box() == (0, 0, 64, 64) and not predict.draw(trained, square).axes[0].patches


def test_a_class_map_lies_on_the_part_of_the_photograph_that_the_net_saw():
    """Of a net whose images are not square."""
    net = NIN([Block(8), Block((8, 8, None))], image_size=(16, 48), norm="batch")
    trained = Pretrained(net, tiny().preprocess, tiny().classes, {})
    (prediction,) = predict.predict(trained, [gradient(100, 100)])
    assert prediction.picture.size == (48, 16) and prediction.seen_box() == pytest.approx((0, 100 / 3, 100, 100 / 3))
    assert prediction.canvas().size == (512, 171)


def test_any_shape_and_any_names_are_drawn(tmp_path):
    net = NIN([Block(8), Block((8, 8, None))], num_classes=2, norm="batch")
    trained = Pretrained(net, tiny().preprocess, ["short", "a name of a class that is longer than its map"], {})
    for size in ((1, 1), (1, 500), (3000, 3), (40, 30)):
        (prediction,) = predict.predict(trained, [gradient(*size)])
        figure = predict.draw(trained, prediction)
        figure.savefig(tmp_path / "figure.png")
        titles = [axis.get_title() for axis in figure.axes[2:4]]
        assert len({axis.get_position().y1 for axis in figure.axes[2:4]}) == 1  # the maps stand side by side
        assert sorted(title.split("  ")[0] for title in titles) == ["a name of a class tha…", "short"]
    assert predict.known_classes(trained) == f"2 classes: {', '.join(trained.classes)}"
    many = Pretrained(net, trained.preprocess, list(map(str, range(1500))), {})
    assert predict.known_classes(many, 3) == "1,500 classes: 0, 1, 2 and 1,497 more"


def test_a_net_of_grey_images_sees_grey():
    net = NIN([Block(8), Block((8, 8, None))], in_channels=1, norm="batch")
    trained = Pretrained(net, Normalise(torch.zeros(1), torch.full((1,), 255.0)), list("0123456789"), {})
    (prediction,) = predict.predict(trained, [Image.new("RGB", (50, 50), "red")])
    assert prediction.maps.shape == (10, 16, 16)
    assert prediction.picture.getpixel((0, 0)) == (76, 76, 76) and prediction.canvas().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("head", "value"), [("gap", lambda m: f"map mean {m.mean():.2f}"), ("gmp", lambda m: f"map max {m.max():.2f}"),
                        ("fc", lambda m: f"map sum {m.sum():.2f}")]
)  # fmt: skip
def test_a_drawing_says_where_a_score_comes_from(head, value):
    trained = tiny(head)
    (prediction,) = predict.predict(trained, [gradient()])
    axes, k = predict.draw(trained, prediction, top=1).axes, prediction.best(1)[0]
    stated = f"score {prediction.logits[k]:.2f}, {value(prediction.maps[k])}".replace("-", "\N{MINUS SIGN}")
    height, width = prediction.maps.shape[1:]
    assert axes[2].get_xlabel() == stated and axes[3].get_ylabel() == f"class map, {width}×{height}"


# test images ----------------------------------------------------------------------------------------------------------


def test_test_images_are_sampled_from_the_nets_set(tmp_path):
    digits = SETS["digits"].parse({}, 32)
    sampled = predict.sample_test_images(tiny(), 4, seed=5)
    assert sampled[0][0] != predict.sample_test_images(tiny(), 4, seed=6)[0][0]
    for name, picture in sampled:
        _, number, label = name.split("_")
        assert digits.test_labels[int(number)] == int(label)
        assert np.array_equal(np.asarray(picture), digits.test_images[int(number)].permute(1, 2, 0).expand(-1, -1, 3))
    files, reason = predict.save_examples(tiny(), tmp_path)
    assert reason == "" and [file.name for file in files] == [f"{k}.png" for k in range(10)]
    assert all(Image.open(file).size == (32, 32) for file in files)


def test_a_class_without_a_test_image_has_no_example(tmp_path, monkeypatch):
    digits = SETS["digits"].parse({}, 32)
    kept = digits.test_labels != 3
    few = replace(digits, test_images=digits.test_images[kept], test_labels=digits.test_labels[kept])
    monkeypatch.setattr("nin.run.evaluate.images_of", lambda *_, **__: SimpleNamespace(set=few))
    files, reason = predict.save_examples(tiny(), tmp_path)
    assert reason == "" and [file.name for file in files] == [f"{k}.png" for k in range(10) if k != 3]


def test_without_a_test_set_there_are_no_examples(tmp_path):
    unknown = tiny(data="unheard")
    files, reason = predict.save_examples(unknown, tmp_path)
    assert files == [] and "data=unheard" in reason
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="data=unheard"):
        predict.sample_test_images(unknown, 1)
    files, reason = predict.save_examples(tiny(data="cifar10"), tmp_path, str(tmp_path / "nothing"))
    assert files == [] and "nothing" in reason


def test_a_saved_net_predicts_the_same(tmp_path):
    pretrained.save(tmp_path / "net.safetensors", tiny())
    (before,), (after,) = (
        predict.predict(net, [gradient()]) for net in (tiny(), pretrained.load(Path(tmp_path / "net.safetensors")))
    )
    assert torch.equal(before.maps, after.maps)


def test_a_class_map_is_drawn_over_what_it_saw(cifar10_root):
    """Of a picture and its mirror image the drawings are mirror images."""
    trained = nin.load("cifar10-gap")
    pixels = images_of(trained, cifar10_root).set.test_images[:60]
    columns = (torch.arange(256) + 0.5) / 8 - 0.5

    def middles(images):
        _, maps = predict.class_maps(trained, images)
        places = predict.map_centres(trained, 32, 32, maps.shape[2:])
        fine = [predict._smooth(each[k], places, (32, 32)).clamp(min=0) for each, k in zip(maps, best, strict=True)]
        return torch.stack([(one.sum(0) * columns).sum() / one.sum() for one in fine])

    best = trained(pixels).argmax(1)
    assert abs((middles(pixels) + middles(pixels.flip(3)) - 31).mean()) < 0.4


def test_a_picture_with_infinite_scores_costs_itself_alone(monkeypatch):
    trained = tiny()
    forward = trained.forward_maps
    monkeypatch.setattr(
        trained, "forward_maps", lambda images: forward(images) / (images.amax((1, 2, 3)) < 255).view(-1, 1, 1, 1)
    )
    sources = [(str(k), Image.new("RGB", (32, 32), (200 + 55 * (k == 1), 0, 0))) for k in range(3)]
    kinds = [type(prediction) for _, prediction in predict.predict_each(trained, sources)]
    assert kinds == [predict.Prediction, PictureError, predict.Prediction]
