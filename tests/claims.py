"""Small nets and rows that claims are asked about, and what their tables say."""

from __future__ import annotations

from itertools import zip_longest
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from nin import GAP, NIN, Block, config
from nin.config import Config
from nin.data import Normalise
from nin.pretrained import Pretrained
from nin.studies import rows
from nin.studies.nets import Subject

CLASSES = tuple("0123456789")
BLACK = torch.zeros(3, 1, 1, dtype=torch.uint8)


def tiny(head="gap", seed=0, **facts) -> Pretrained:
    """A net of two blocks with random weights, and the facts of a run of `quick`."""
    torch.manual_seed(seed)
    net = NIN([Block(8), Block((8, 8, None))], head=head, init="kaiming", norm="batch", last_relu=False, dropout=0.0)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Pretrained(
        net, normalise, CLASSES, {"data": "digits", "recipe": "quick", "epochs": 8, "seed": seed, **facts}
    )


def subject(trained: Pretrained, name: str, count: int = 40) -> Subject:
    """The net with random images of 32×32, a tenth of each class."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
    return Subject(name, "-", trained, images, torch.arange(count) % 10, BLACK)


class Lit(nn.Module):
    """Its maps are the brightness of the image, 8×8; `head` scores a class by their mean, or ignores them."""

    arguments: ClassVar = {"head": "gap"}
    in_channels = 3

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind, self.weight, self.head = blind, nn.Parameter(torch.zeros(1)), GAP()

    def forward_maps(self, images):
        return F.avg_pool2d(images.mean(1, keepdim=True), 4).expand(-1, 10, -1, -1)

    def forward(self, images):
        return self.head(self.forward_maps(images)) * (not self.blind)


def make_row(head="gap", seed=0, error=10.0, status="ok", variant="", curve=(), start=("", "", ""), **values):
    """A row of `quick` on CIFAR-10. `values` are its settings by name, with __ for the dot, or columns: val_error,
    precision, commit, clean or torch."""
    columns = {
        name: values.pop(name) for name in ("val_error", "precision", "commit", "clean", "torch") if name in values
    }
    settings = {
        "data.name": "cifar10",
        "recipe.name": "quick",
        "trainer.max_epochs": 8,
        "head.name": head,
        "seed": seed,
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    learnt = status == "ok"
    return {
        **{name: settings[key] for name, key in rows.NAMED.items()},
        **{"status": status, "test_error": error if learnt else None, "train_error": error / 2 if learnt else None},
        **{"val_error": None, "seconds": None, "images_per_second": None, "precision": "", "hardware": "cpu"},
        **{"torch": "2.14.1+cpu", "commit": "c" * 40, "clean": True, "variant": variant},
        **{"test_curve": tuple(curve), "curves": {}},
        **{
            f"start_{name}": fact for name, fact in zip_longest(("name", "sha256", "head", "data"), start, fillvalue="")
        },
        "settings": {**config.consequential(config.settings_of(Config())), **settings},
        **columns,
    }


def claim_row(row, head, seed, error=10.0, train=2.0, share=1.0, epochs=8, curve="", start=None, **given):
    """A row made by the fixture `row`.

    Args:
        share: of the training images.
        curve: test errors after each epoch, with spaces between them.
        start: name, or name and head, of the net that the run started from; by default the net has the run's own head.
            Its sha256 is made of its name.
    """
    varied = [f"data.share={share}"] * (share != 1)
    settings = {"data__share": share, "trainer__max_epochs": epochs, "freeze": False, **given}
    facts = ("", "", "")
    if start:
        name, of_head = start if isinstance(start, tuple) else (start, head)
        facts = (name, f"{name}-".ljust(64, "0"), of_head)
        settings["checkpoint"] = name
        varied += [f"checkpoint={name}"] + ["freeze=true"] * settings["freeze"]
    variant = " ".join([*varied, given.pop("variant", "")]).strip()
    settings.pop("variant", None)
    curve = [float(each) for each in curve.split()]
    made = row(head, seed, error, variant=variant, curve=curve, start=facts, **settings)
    return {**made, "train_error": train if made["status"] == "ok" else None}


def cells(table: str, first: str) -> list[str]:
    """The cells of the only line of a Markdown table that begins with `first`, without it."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def body(table: str) -> list[list[str]]:
    """The cells of all lines of a Markdown table but its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def drawn(figure) -> set[str]:
    """Everything that is written in a figure."""
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text) if text.get_text()}
