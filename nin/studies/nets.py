"""The trained nets that answer claims, and their test images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nin import pretrained
from nin.checks import counted, is_integer, one_line
from nin.data.module import evaluation_batch
from nin.data.sets import ImageSet
from nin.errors import CheckpointError
from nin.plan import HEADS
from nin.predict import has_class_maps
from nin.pretrained import Pretrained
from nin.run.evaluate import facts_of_folder, images_of, set_of
from nin.studies.comparisons import training_of
from nin.studies.tables import COLOURS, LINES, table_row, table_rule

WHOLE = 1e6  # GB: a folder's pictures are read into memory, however many
FIRST = 8  # test images for which a net's scores must be finite before it is asked anything


@dataclass(frozen=True)
class Subject:
    """A net with its test images. Subjects of one name are seeds of one training.

    Attributes:
        name: its head, and the facts that distinguish it from the other subjects.
        style: Matplotlib's line style, which distinguishes names with one head.
        trained: the net.
        images: test images, (N, C, H, W) uint8.
        labels: their classes, (N), on the net's device.
        blank: the mean colour of the training images, (C, 1, 1) uint8.
    """

    name: str
    style: str
    trained: Pretrained
    images: Tensor
    labels: Tensor
    blank: Tensor

    @property
    def head(self) -> str:
        """The name of the head."""
        return self.trained.net.arguments["head"]

    @property
    def pools(self) -> bool:
        """Whether the head pools."""
        return HEADS[self.head].pools

    @property
    def has_class_maps(self) -> bool:
        """Whether the last maps are the classes' own: whether the head pools one map per class."""
        return has_class_maps(self.trained)

    @property
    def colour(self) -> str:
        """The colour of the head in figures."""
        return COLOURS[self.head]

    @property
    def seed(self) -> int | None:
        """The seed of the training."""
        return self.trained.facts.get("seed")


def gather(
    checkpoints: Sequence[str], root: str | None = None, images: int | None = None, seed: int = 0
) -> list[Subject]:
    """The nets of these checkpoints, each with the test images of the set it was trained on.

    Args:
        checkpoints: folders of runs, weights files or published names.
        root: folder of the sets, as in `nin.data.Images`.
        images: number of test images, drawn once for all nets of a set; None takes all.
        seed: of the draw.

    Returns:
        the subjects in the order of the table of heads, then of their names.

    Raises:
        CheckpointError: a checkpoint cannot be read, does not fit its set, has scores that are not finite, or is the
            same net as another one.
        DataError: a set is missing or damaged.
        SettingError: a net was trained on an unknown set.
    """
    nets = [pretrained.load(checkpoint) for checkpoint in checkpoints]
    _check_distinct(nets, checkpoints)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drawn: dict[tuple, tuple[ImageSet, Tensor, Tensor, Tensor]] = {}
    names = _names(nets, checkpoints)
    styles = _styles(nets, names)
    subjects = []
    for name, trained, checkpoint in zip(names, nets, checkpoints, strict=True):
        try:
            of_set = _set_of(trained)
            if of_set not in drawn:
                drawn[of_set] = _draw_images(trained, root, images, seed)
            whole, test_images, labels, blank = drawn[of_set]
            _check(trained.to(device), whole, test_images[:FIRST].to(device))
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint={one_line(checkpoint)}: {error}") from error
        subjects.append(Subject(name, styles[name], trained, test_images, labels.to(device), blank))
    return sorted(subjects, key=lambda subject: ([*HEADS].index(subject.head), subject.name))


def _check_distinct(nets: Sequence[Pretrained], checkpoints: Sequence[str]) -> None:
    """Raises CheckpointError where a net is there twice, which would count as two seeds."""
    first: dict[str | None, str] = {}
    for trained, checkpoint in zip(nets, checkpoints, strict=True):
        if trained.sha256 in first:
            same = f"is the same net as {one_line(first[trained.sha256])}; name it once"
            raise CheckpointError(f"checkpoint={one_line(checkpoint)}: {same}")
        first[trained.sha256] = checkpoint


def _set_of(trained: Pretrained) -> tuple:
    """The facts that decide on a net's test images: its set and their size; of a folder also its pictures and the seed
    that drew from them."""
    size = trained.net.arguments["image_size"]
    sides = size if isinstance(size, list | tuple) else (size, size)
    facts = facts_of_folder(trained)
    return set_of(trained), *sides, facts.get("sha256") or facts.get("root"), facts.get("seed")


@torch.no_grad()
def _check(trained: Pretrained, whole: ImageSet, first: Tensor) -> None:
    """Raises CheckpointError where the net does not fit the set, or its scores of the first images are not finite."""
    pretrained.check_fit(trained, whole, str(trained.facts.get("data")))
    if not trained(first).isfinite().all():
        raise CheckpointError(pretrained.NOT_FINITE)


def _draw_images(
    trained: Pretrained, root: str | None, count: int | None, seed: int
) -> tuple[ImageSet, Tensor, Tensor, Tensor]:
    """The set of a net, its test images, their labels, and the mean colour of the training images."""
    whole = images_of(trained, root, memory=WHOLE).set
    order = torch.randperm(len(whole.test_labels), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = order.sort().values
    blank = whole.train_images.float().mean((0, 2, 3)).round().to(torch.uint8)[:, None, None]
    return whole, whole.test_images[chosen], whole.test_labels[chosen], blank


def _names(nets: Sequence[Pretrained], checkpoints: Sequence[str]) -> list[str]:
    """A name for each net: its head, the facts that differ among the nets, and the settings that differ among the nets
    of this name. If two nets share name and seed, they are not seeds of one training, and get the names of their
    checkpoints."""
    facts = [_facts_in_words(trained) for trained in nets]
    differs = [len(set(values)) > 1 for values in zip(*facts, strict=True)]
    names = []
    for trained, values in zip(nets, facts, strict=True):
        distinctive = [value for value, differ in zip(values, differs, strict=True) if differ]
        names.append(" ".join([trained.net.arguments["head"], *distinctive]))
    names = [" ".join([name, *each]) for name, each in zip(names, _differing_settings(nets, names), strict=True)]
    seeds = Counter((name, trained.facts.get("seed")) for name, trained in zip(names, nets, strict=True))
    ambiguous = {name for (name, _), count in seeds.items() if count > 1}
    for place, name in enumerate(names):
        if name in ambiguous:
            names[place] = f"{nets[place].net.arguments['head']} {checkpoints[place]}"
    return names


def _differing_settings(nets: Sequence[Pretrained], names: Sequence[str]) -> list[list[str]]:
    """For each net the settings NAME=VALUE of its training, as far as its card says, in which the nets of its name
    differ."""
    trainings = [{**training_of(trained.facts), "seed": ""} for trained in nets]
    differing = []
    for training, name in zip(trainings, names, strict=True):
        alike = [other for other, its_name in zip(trainings, names, strict=True) if its_name == name]
        settings = [each for each in training if len({other[each] for other in alike if each in other}) > 1]
        differing.append([f"{each}={training[each]}" for each in sorted(settings)])
    return differing


def _facts_in_words(trained: Pretrained) -> tuple[str, str, str, str]:
    facts = trained.facts
    start = facts.get("start")  # of a record of format 2; format 1 has the name alone
    origin = f"from {one_line(start['name'] if start else facts.get('started_from') or 'scratch')}"
    if facts.get("frozen"):
        origin += ", frozen"
    epochs = facts.get("epochs")
    length = counted(epochs, "epoch") if is_integer(epochs) else "unknown epochs"
    return str(facts.get("data")), str(facts.get("recipe")), length, origin


def _styles(nets: Sequence[Pretrained], names: Sequence[str]) -> dict[str, str]:
    """A line style for each name, different for the names of one head."""
    of_head: dict[str, list[str]] = defaultdict(list)
    for name, trained in zip(names, nets, strict=True):
        same_head = of_head[trained.net.arguments["head"]]
        if name not in same_head:
            same_head.append(name)
    return {name: LINES[i % len(LINES)] for same_head in of_head.values() for i, name in enumerate(same_head)}


def described(subjects: Sequence[Subject]) -> str:
    """A Markdown table of the nets: how they were trained, and their own test errors."""
    columns = ("data", "recipe", "epochs", "seed", "test_error", "commit")
    lines = [table_row("net", "data", "recipe", "epochs", "seed", "test error (%)", "commit"), table_rule(len(columns))]
    for subject in subjects:
        facts = {**subject.trained.facts, "commit": str(subject.trained.facts.get("commit", ""))[:8]}
        lines.append(table_row(f"`{subject.name}`", *(str(facts.get(column, "")) for column in columns)))
    return "\n".join(lines)


def batches(subject: Subject, bar: tqdm, pixels: int | None = None) -> Iterator[Tensor]:
    """The test images in batches, (B, C, H, W) uint8, on the net's device.

    Args:
        subject: the net with its images.
        bar: a progress bar, which counts images.
        pixels: the side that the images will have, so that a batch needs the memory of an evaluation; by default
            their own.
    """
    pixels = pixels or max(subject.images.shape[2:])
    for images in subject.images.split(evaluation_batch(subject.labels.device, pixels**2)):
        yield images.to(subject.labels.device)
        bar.update(len(images))


def error_of(predictions: Tensor, subject: Subject) -> float:
    """The error in % of predicted classes, (N)."""
    return 100 * (predictions != subject.labels).double().mean().item()


def images_in_words(subjects: Sequence[Subject]) -> str:
    """The number of test images in words, or their numbers."""
    return ", ".join(counted(count, "test image") for count in sorted({len(subject.labels) for subject in subjects}))


def progress(name: str, subjects: Sequence[Subject], passes: int) -> tqdm:
    """A progress bar over a number of passes through the images of all nets."""
    return tqdm(total=passes * sum(len(s.labels) for s in subjects), desc=name, unit=" images", leave=False)
