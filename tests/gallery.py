"""Every picture that the project draws, each in its usual and in its odd cases.

python tests/gallery.py FOLDER              all of them as PNG files; look at each after a change of a drawing
python tests/gallery.py FOLDER heads        those whose names contain a word

Odd are one epoch, one seed, one class, two images, long names and runs that died.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

import nin
from builders import ROOT
from claims import claim_row, make_row, subject, tiny
from nin import NIN, Block, files, predict
from nin.config import Config, settings_of
from nin.data.preprocess import Normalise
from nin.data.sets import SETS
from nin.pretrained import Pretrained
from nin.run import curves
from nin.run.record import Record
from nin.studies import (
    channels,
    confusion,
    convergence,
    maps,
    objects,
    overfitting,
    report,
    rows,
    shift,
    size,
    transfer,
)
from nin.studies.nets import Subject

CASES: dict[str, Callable[[], Figure]] = {}
LONG = tuple(f"a class of flowers with a long name, number {n}" for n in range(10))
HEADS = ("gap", "gmp", "fc", "fc_dropout", "gap_article", "gmp_article", "fc_article")


def case(*arguments: object) -> Callable:
    """Adds a picture for each argument: a function's name, and what varies."""

    def add(function: Callable) -> Callable:
        for argument in arguments:
            name = f"{function.__name__}-{argument}".replace(" ", "_")
            CASES[name] = partial(function, argument)
        return function

    return add


# a net's answers ------------------------------------------------------------------------------------------------------


@cache
def published(name: str = "cifar10-gap") -> Pretrained:
    return nin.load(name)


def photograph() -> Image.Image:
    return Image.open(ROOT / "scripts" / "chelsea.png").convert("RGB")


def with_classes(names: tuple[str, ...], channels: int = 3) -> Pretrained:
    """An untrained net of so many classes."""
    torch.manual_seed(0)
    net = NIN([Block(8), Block((8, 8, None))], num_classes=len(names), in_channels=channels, norm="batch")
    return Pretrained(net, Normalise(torch.full((channels,), 120.0), torch.full((channels,), 60.0)), names, {})


@case("usual", "side by side", "fc", "gmp", "native", "square", "tall", "panorama", "one pixel", "long names")
@case("one class", "two classes", "grey")
def prediction(kind: str) -> Figure:
    """What `nin predict` draws, and in two rows what the page in the browser shows."""
    picture, trained, own = photograph(), published(), {}
    if kind in ("fc", "gmp"):
        trained = published(f"cifar10-{kind}")
    elif kind == "grey":
        trained = with_classes(tuple("0123456789"), 1)
    elif kind in ("one class", "two classes", "long names"):
        trained = with_classes({"one class": ("cat",), "two classes": ("cat", "dog"), "long names": LONG}[kind])
    elif kind in ("square", "tall", "panorama", "one pixel"):
        shape = {"square": (300, 300), "tall": (60, 300), "panorama": (451, 40), "one pixel": (1, 1)}[kind]
        picture = (
            picture.crop((100, 100, 100 + shape[0], 100 + shape[1])) if kind == "one pixel" else picture.resize(shape)
        )
    (found,) = predict.predict(trained, [picture], "native" if kind == "native" else "training")
    if kind == "side by side":
        own = {"rows": 2, "whole": False}
    return predict.draw(trained, found, **own)


def crops(number: int, channels: int = 3) -> torch.Tensor:
    """Parts of the photograph, (N, C, 32, 32)."""
    picture = photograph().resize((120, 80)).convert("RGB" if channels == 3 else "L")
    pixels = torch.from_numpy(np.array(picture)).reshape(80, 120, channels).permute(2, 0, 1)
    return torch.stack([pixels[:, 4 * n : 4 * n + 32, 8 * n : 8 * n + 32] for n in range(number)])


@case("usual", "one image", "one class", "long names", "grey digits", "17 classes")
def papers_figure(kind: str) -> Figure:
    """What `nin predict figure=paper` draws; the answers are wrong but for one."""
    if kind == "grey digits":
        trained, digits = with_classes(tuple("0123456789"), 1), SETS["digits"].parse({}, 32)
        return maps.draw_paper_figure(trained, digits.test_images[:, :1], digits.test_labels, rows=3)
    names = {"one class": ("cat",), "long names": LONG, "17 classes": tuple(f"flower {n}" for n in range(17))}.get(kind)
    trained = with_classes(names) if names else published()
    images = crops({"one image": 1, "one class": 1, "usual": 10}.get(kind, 3))
    labels = torch.arange(len(images)) % len(trained.classes)
    scores, of_images = predict.class_maps(trained, images)
    return maps.draw_maps(images, labels, scores, of_images, trained.classes)


@case("usual", "one class", "two images", "long names", "17 classes", "all wrong")
def confusions(kind: str) -> Figure:
    """What `nin evaluate` draws."""
    names = {"one class": ("cat",), "long names": LONG, "17 classes": tuple(f"flower {n}" for n in range(17))}
    classes = names.get(kind, published().classes)
    draws = torch.Generator().manual_seed(0)
    matrix = torch.randint(0, 30, (len(classes), len(classes)), generator=draws) + 800 * torch.eye(len(classes)).long()
    if kind == "two images":
        matrix = torch.zeros_like(matrix)
        matrix[0, 0] = matrix[3, 5] = 1
    if kind == "all wrong":
        matrix = matrix.fill_diagonal_(0)
    error = 100 * (1 - matrix.diagonal().sum() / matrix.sum()).item()
    label = "cifar10-gap" if kind != "long names" else "2026-11-21_18-00-00_a_set_with_a_long_name_gap_article_1234567"
    return confusion.draw(matrix, classes, f"{label}: test error {error:.2f} % of {int(matrix.sum()):,} images")


# runs and studies -----------------------------------------------------------------------------------------------------


def record_of(epochs: int, data: str = "digits", **facts: object) -> Record:
    """The record of a finished run of `quick`, seed 3."""
    settings = settings_of(Config())
    settings["data"]["name"], settings["recipe"]["name"], settings["seed"] = data, "quick", 3
    settings["trainer"]["max_epochs"] = epochs
    facts = {"start": None, "parameters": 1, "precision": "32-true", "device": "cpu", "versions": {}} | facts
    return Record("finished", settings, commit="unknown", clean=False, **{"test_error": 1.666, **facts})


def metrics_of(epochs: int, held_out: bool = False, chance: bool = False) -> str:
    """A run's metrics.csv."""
    lines = ["epoch,step,lr,test_curve/error,test_curve/loss,train/error,train/loss,val/error,val/loss"]
    for n in range(epochs):
        error = 90.0 if chance else 60 * 0.7**n
        of_val = f"{error + 3},{error / 30 + 0.1}" if held_out else ","
        lines.append(f"{n},{n + 1},0.1,{error + 2},{error / 30},{error + 5},{error / 28},{of_val}")
    return "\n".join(lines) + "\n"


@case("usual", "held out", "one epoch", "two epochs", "200 epochs", "long names", "at chance", "no error")
def run(kind: str) -> Figure:
    """The curves of one run."""
    epochs = {"one epoch": 1, "two epochs": 2, "200 epochs": 200}.get(kind, 8)
    data = "a_set_with_a_name_of_many_letters_" * 3 if kind == "long names" else "digits"
    facts = {"at chance": {"test_error": 90.0}, "no error": {"test_error": 0.0}}.get(kind, {"test_error": 5.4})
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.csv"
        metrics.write_text(metrics_of(epochs, kind == "held out", kind == "at chance"))
        return curves.draw(metrics, record_of(epochs, data, **facts))


def frame(*made: dict) -> pd.DataFrame:
    """Rows as they are read from a study's file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        rows.append(file, made)
        return rows.ended(file)


def curve(head: str, seed: int, epochs: int = 8) -> tuple[float, ...]:
    """A test error after each epoch."""
    end = 8 + HEADS.index(head) + 0.3 * seed
    return tuple(round(end + 50 * 0.5**epoch, 2) for epoch in range(1, epochs + 1))


def of_head(head: str, seed: int, epochs: int = 8, **given: object) -> dict:
    found = curve(head, seed, epochs)
    return make_row(head, seed, found[-1], curve=found, trainer__max_epochs=epochs, **given)


def study(kind: str) -> pd.DataFrame:
    """A study of heads and seeds."""
    heads, seeds, epochs = HEADS[:4], range(3), 8
    if kind == "one seed":
        seeds = range(1)
    if kind == "one epoch":
        epochs = 1
    if kind == "one head":
        heads = HEADS[:1]
    if kind == "all heads":
        heads = HEADS
    if kind == "one run":
        heads, seeds, epochs = HEADS[:1], range(1), 1
    given = {"data__name": "a_set_of_photographs_with_a_long_name"} if kind == "long names" else {}
    made = [of_head(head, seed, epochs, **given) for head in heads for seed in seeds]
    if kind == "a seed died":
        made[-1] = make_row("fc_dropout", 2, status="dead", curve=(90.0, 90.0, 90.0))
    if kind == "all died":
        made = [make_row(head, seed, status="dead", curve=(90.0, 90.0)) for head in heads for seed in seeds]
    return frame(*made)


STUDIES = (
    "usual",
    "one seed",
    "one epoch",
    "one head",
    "all heads",
    "one run",
    "a seed died",
    "all died",
    "long names",
)


def title_of(made: pd.DataFrame, kind: str) -> str:
    variant = ["model.blocks=[{widths: [24, 20, 12], kernel_size: 5, dropout: true}]"] * (kind == "long names")
    return ", ".join([made.condition.iloc[0].title, *variant])


@case(*STUDIES)
def heads_of_a_study(kind: str) -> Figure:
    made = study(kind)
    return report.draw_heads(made, title_of(made, kind))


@case(*STUDIES)
def curves_of_a_study(kind: str) -> Figure:
    made = study(kind)
    return report.draw_curves(made, title_of(made, kind))


# claims ---------------------------------------------------------------------------------------------------------------


def subjects(kind: str, heads: tuple[str, ...] = ("gap", "fc_dropout", "fc", "gmp")) -> list[Subject]:
    """Nets that claims are asked of, with random weights and images."""
    count = 2 if kind == "two images" else 20
    if kind == "one net":
        heads = heads[:1]
    name = " digits modern 150 epochs from a-net-with-a-long-name, frozen" if kind == "long names" else ""
    seeds = range(2 if kind == "two seeds" else 1)
    return [subject(tiny(head, seed), head + name, count) for head in heads for seed in seeds]


OF_NETS = ("usual", "one net", "two seeds", "two images", "long names")


@case(*OF_NETS)
def sizes(kind: str) -> Figure:
    return size.answer(subjects(kind), range(24, 65, 8)).figure


@case(*OF_NETS)
def shifts(kind: str) -> Figure:
    return shift.answer(subjects(kind)).figure


@case(*OF_NETS)
def maps_of_classes(kind: str) -> Figure:
    return channels.answer(subjects(kind)).figure


@case(*OF_NETS)
def maps_at_objects(kind: str) -> Figure:
    return objects.answer(subjects(kind)).figure


@case("usual", "one seed", "never", "a seed died", "one head")
def convergences(kind: str) -> Figure:
    """Epochs to an accuracy."""
    heads = HEADS[:1] if kind == "one head" else HEADS[:4]
    seeds = range(1) if kind == "one seed" else range(3)
    made = [claim_row(make_row, h, s, curve=" ".join(map(str, curve(h, s)))) for h in heads for s in seeds]
    if kind == "never":
        made = [claim_row(make_row, h, s, curve="70 60 50 40 35 30 25 22") for h in heads for s in seeds]
    if kind == "a seed died":
        made[-1] = claim_row(make_row, heads[-1], 2, status="dead")
    (answer,) = convergence.answers(frame(*made))
    return answer.figure


@case("usual", "one seed", "two shares", "without gap", "a seed died")
def overfittings(kind: str) -> Figure:
    """Errors by the share of the training images."""
    shares = {0.01: 800, 0.05: 160, 0.2: 40, 1.0: 8}
    if kind == "two shares":
        shares = {0.05: 160, 1.0: 8}
    made = []
    for share, epochs in shares.items():
        for head in ("gap", "fc_dropout", "fc") if kind != "without gap" else ("fc_dropout", "fc"):
            for seed in range(1) if kind == "one seed" else range(3):
                error = 10 / share**0.35 + HEADS.index(head) + 0.4 * seed
                made.append(claim_row(make_row, head, seed, error, 2.0, share, epochs))
    if kind == "a seed died":
        made[0] = claim_row(make_row, "gap", 0, share=0.01, epochs=800, status="dead")
    (answer,) = overfitting.answers(frame(*made))
    return answer.figure


@case("usual", "one seed", "one way", "a seed died", "long names")
def transfers(kind: str) -> Figure:
    """Errors from scratch, fine-tuned and probed."""
    start = "a-published-net-with-a-long-name-of-its-own" if kind == "long names" else "cifar10-quick"
    ways = [({}, 30.0), ({"start": start}, 20.0), ({"start": start, "freeze": True}, 50.0)]
    made = []
    for way, error in ways[1:2] if kind == "one way" else ways:
        for head in ("gap", "fc_dropout", "fc"):
            for seed in range(1) if kind == "one seed" else range(3):
                made.append(claim_row(make_row, head, seed, error + HEADS.index(head) + 0.5 * seed, **way))
    if kind == "a seed died":
        made[0] = claim_row(make_row, "gap", 0, status="dead")
    (answer,) = transfer.answers(frame(*made))
    return answer.figure


def main(folder: Path, word: str = "") -> None:
    for name, draw in CASES.items():
        if word in name:
            files.save_figure(draw(), folder / f"{name}.png", dpi=100)
    print(f"{len(list(folder.glob('*.png')))} pictures in {folder}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3 or sys.argv[1].startswith("-"):
        sys.exit((__doc__ or "").strip())
    main(Path(sys.argv[1]), *sys.argv[2:])
