"""The trained nets that a study asks, and the test images it asks them about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nin import pretrained
from nin.bounds import sides
from nin.data.module import EVALUATION_BATCH
from nin.model import LARGEST
from nin.pretrained import Pretrained
from nin.run import images_of
from nin.studies.answer import COLOURS, table_row, table_rule
from nin.studies.rows import ALL_HEADS

STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Net:
    """A trained net and the test images it is asked about. Nets of one name are seeds of one thing; `style` tells
    names of one head apart in a figure, `blank` is the training images' mean colour, (C, 1, 1) uint8."""

    name: str
    style: str
    trained: Pretrained
    images: Tensor
    labels: Tensor
    blank: Tensor

    @property
    def head(self) -> str:
        return self.trained.net.arguments["head"]

    @property
    def colour(self) -> str:
        return COLOURS[self.head]


def gather(checkpoints: Sequence[str], root: str | None = None, images: int | None = None, seed: int = 0) -> list[Net]:
    """The nets of these checkpoints, each with the test set of the data it was trained on.

    A net is named by its head, and by what else differs among them.

    Args:
        checkpoints: folders of runs, weights files or published names.
        root: folder of CIFAR-10, as in `nin.data.Images`.
        images: how many of the test images, drawn once for all nets of a set; None for all.
        seed: of the draw.

    Raises:
        nin.pretrained.CheckpointError: a checkpoint that cannot be read.
        nin.data.DataError: a set that is missing or damaged.
        ValueError: a net of another set than the known ones.
    """
    found = [pretrained.load(checkpoint) for checkpoint in checkpoints]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = {}
    for trained in found:
        if (which := _set(trained)) not in sets:
            found_set = images_of(trained, root).set
            order = torch.randperm(len(found_set.test_labels), generator=torch.Generator().manual_seed(seed))[:images]
            chosen = order.sort().values
            blank = found_set.train_images.float().mean((0, 2, 3)).round().to(torch.uint8)[:, None, None]
            sets[which] = found_set.test_images[chosen], found_set.test_labels[chosen], blank
    names = _names(found, checkpoints)
    styles: dict[str, list[str]] = defaultdict(list)
    for name, trained in zip(names, found, strict=True):
        if name not in (of_head := styles[trained.net.arguments["head"]]):
            of_head.append(name)
    nets = []
    for name, trained in zip(names, found, strict=True):
        test_images, test_labels, blank = sets[_set(trained)]
        style = STYLES[styles[trained.net.arguments["head"]].index(name) % len(STYLES)]
        trained.to(device)
        nets.append(Net(name, style, trained, test_images, test_labels.to(device), blank))
    return sorted(nets, key=lambda net: (ALL_HEADS.index(net.head), net.name))


def _set(trained: Pretrained) -> tuple[str | None, tuple[int, int]]:
    return trained.facts.get("data"), sides(LARGEST, image_size=trained.net.arguments["image_size"])


def described(nets: Sequence[Net]) -> str:
    """A Markdown table of the nets: what they were trained on and for how long, and their own test error."""
    columns = ("data", "recipe", "epochs", "seed", "test_error", "commit")
    lines = [table_row("net", *columns[:-2], "test error (%)", "commit"), table_rule(len(columns))]
    for net in nets:
        facts = {**net.trained.facts, "commit": str(net.trained.facts.get("commit", ""))[:8]}
        lines.append(table_row(f"`{net.name}`", *(str(facts.get(column, "")) for column in columns)))
    return "\n".join(lines)


def _names(found: Sequence[Pretrained], checkpoints: Sequence[str]) -> list[str]:
    facts = [
        [
            *(t.facts.get("data"), t.facts.get("recipe"), f"{t.facts.get('epochs')} epochs"),
            f"from {t.facts.get('started_from') or 'scratch'}" + ", frozen" * bool(t.facts.get("frozen")),
        ]
        for t in found
    ]
    differ = [len(set(column)) > 1 for column in zip(*facts, strict=True)]
    heads = [trained.net.arguments["head"] for trained in found]
    names = [
        " ".join([head, *(str(fact) for fact, telling in zip(of_net, differ, strict=True) if telling)])
        for head, of_net in zip(heads, facts, strict=True)
    ]
    twice = Counter((name, trained.facts.get("seed")) for name, trained in zip(names, found, strict=True))
    ambiguous = {name for (name, _), count in twice.items() if count > 1}  # one seed twice: not seeds of one thing
    return [
        f"{head} {checkpoint}" if name in ambiguous else name
        for name, head, checkpoint in zip(names, heads, checkpoints, strict=True)
    ]


def batches(net: Net, bar: tqdm, pixels: int | None = None) -> Iterator[Tensor]:
    """The images, a batch at a time, on the net's device; as many as memory is meant for when a side has `pixels`."""
    pixels = pixels or max(net.images.shape[2:])
    for images in net.images.split(max(1, EVALUATION_BATCH * 32 * 32 // pixels**2)):
        yield images.to(net.labels.device)
        bar.update(len(images))


def error_of(predictions: Tensor, net: Net) -> float:
    return 100 * (predictions != net.labels).double().mean().item()


def by_name(nets: Sequence[Net]) -> dict[str, list[int]]:
    """Where the nets of each name are."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, net in enumerate(nets):
        places[net.name].append(i)
    return places


def counted(nets: Sequence[Net]) -> str:
    return ", ".join(f"{n:,} test images" for n in sorted({len(net.labels) for net in nets}))


def progress(what: str, nets: Sequence[Net], passes: int) -> tqdm:
    """A bar over so many passes through the images of all nets."""
    return tqdm(total=passes * sum(len(net.labels) for net in nets), desc=what, unit=" images", leave=False)
