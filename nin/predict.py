"""Predictions: the classes that a net sees in a picture, and where it sees them.

Under global average pooling the net itself says where: the mean of a class's map is the class's score. The maps below a
fully connected head belong to no class. There each position's contribution to a class's score is computed.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from nin import caffe, files
from nin.checks import counted, integer, literal, memory_gb, shortened, sides, some_of, whole_number
from nin.cost import inference_cost
from nin.errors import CheckpointError, DataError, PictureError, SettingError
from nin.pictures import read_picture, resize, to_picture, to_tensor
from nin.plan import HEADS
from nin.pretrained import NOT_FINITE, Pretrained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

PictureSource = tuple[str, Path | Image.Image]  # a name for people, and a file or a picture
Size = str | int  # "training", "native" or a number of pixels
MAX_PIXELS = 4096  # per side of a chosen size
TOP, MOST, MOST_DRAWN = 3, 1000, 100  # number of best classes that are shown: by default, at most, and in a picture
PANEL, PANELS = 2.6, 6  # width of a panel of a drawing in inches, and panels in a row
COLOURBAR = 0.9  # its width, and the gaps'
MOST_NAMED = 20  # failures in one sentence
CANVAS = 512  # pixels of the longer side of a drawn picture
LONGEST_STEM = 100  # bytes of a picture's name, and of a net's, in the name of a drawing; file systems have 255
BATCH = 16  # pictures that are read at a time
PIXELS = BATCH * 128 * 128  # pixels that are predicted at a time, of one picture at least


@dataclass(frozen=True)
class Prediction:
    """The scores and class maps of one picture.

    Attributes:
        classes: names of the K classes.
        photograph: the whole picture.
        picture: the pixels that the net saw: the middle of the photograph, at the size of its input.
        probabilities, logits: (K).
        maps: class maps, (K, h, w); None where they were not asked for.
    """

    classes: tuple[str, ...]
    photograph: Image.Image
    picture: Image.Image
    probabilities: Tensor
    logits: Tensor
    maps: Tensor | None

    def best(self, number: int = 3) -> list[int]:
        """The most probable classes, best first."""
        return self.probabilities.topk(min(number, len(self.classes))).indices.tolist()

    def __str__(self) -> str:
        """The three best classes: "cat 81.0 %, dog 12.3 %, frog 2.2 %"."""
        return self.in_words(self.best())

    def in_words(self, classes: Sequence[int]) -> str:
        """Names and probabilities of classes: "cat 81.0 %, dog 12.3 %"."""
        return ", ".join(f"{_before_number(self.classes[k])} {100 * self.probabilities[k]:.1f} %" for k in classes)

    def seen_box(self) -> tuple[float, float, float, float]:
        """The middle of the photograph that the net saw: left, top, width and height in the photograph's pixels."""
        scale = min(self.photograph.width / self.picture.width, self.photograph.height / self.picture.height)
        width, height = scale * self.picture.width, scale * self.picture.height
        return (self.photograph.width - width) / 2, (self.photograph.height - height) / 2, width, height

    def canvas(self) -> Image.Image:
        """The middle of the photograph that the net saw, with enough pixels for the eye."""
        scale = CANVAS / max(self.picture.size)
        return resize(
            self.photograph, [max(1, round(scale * side)) for side in (self.picture.height, self.picture.width)]
        )


# predicting -----------------------------------------------------------------------------------------------------------


def has_class_maps(trained: Pretrained) -> bool:
    """Whether the head pools one map per class, so that the maps are the classes' own."""
    head = HEADS[trained.net.arguments["head"]]
    return head.pools and not head.of_features


@torch.no_grad()
def class_maps(trained: Pretrained, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of images (N, C, H, W) uint8, and where in the images each class is: maps (N, K, h, w).

    Under a head that pools one map per class these are the net's own maps. Under any other head they are class
    activation maps by HiResCAM (Draelos and Carin, 2020): the maps times the gradient of a class's score, summed over
    channels. Under a single linear layer a class's map then sums to its score minus the bias.

    Raises:
        SettingError: the head or the preprocessing requires another image size.
    """
    maps = trained.forward_maps(images)
    if has_class_maps(trained):
        return trained.net.head(maps), maps
    with torch.enable_grad():
        maps.requires_grad_()
        logits = trained.net.head(maps)
        gradients = [torch.autograd.grad(score.sum(), maps, retain_graph=True)[0] for score in logits.unbind(1)]
    return logits.detach(), torch.stack([(maps.detach() * gradient).sum(1) for gradient in gradients], 1)


def map_centres(trained: Pretrained, height: int, width: int, maps: Sequence[int]) -> list[list[float]]:
    """Where rows and columns of class maps (h, w) are in an image of this height and width, in pixels from 0. A
    backbone's are taken to divide the image equally."""
    plan = getattr(trained.net, "plan", None)
    if plan is not None:
        return [plan.map_centres(side) for side in (height, width)]
    sides = zip((height, width), maps, strict=True)
    return [[(position + 0.5) * side / number - 0.5 for position in range(number)] for side, number in sides]


def read_size(size: Size) -> Size:
    """A size for `predict`, which may be given as text. Raises SettingError."""
    if size in ("training", "native"):
        return size
    try:
        return whole_number(1, MAX_PIXELS, size=str(size))
    except SettingError as error:
        reason = f"must be training, native or a number of pixels from 1 to {MAX_PIXELS}"
        raise SettingError("size", size, reason) from error


def predict(
    trained: Pretrained, pictures: Sequence[Image.Image], size: Size = "training", maps: bool = True
) -> list[Prediction]:
    """Predictions of pictures.

    Args:
        trained: the net.
        pictures: PIL images in RGB, as `nin.pictures.read_picture` returns them.
        size: "training" resizes the middle of each picture to the size that the net was trained at; a number of pixels
            to that size; "native" leaves each picture as it is.
        maps: whether to compute class maps.

    Raises:
        PictureError: a picture is too small for the net, too large for this machine, or of a size that head or
            preprocessing do not accept.
        SettingError: another size.
    """
    size = read_size(size)
    if size == "native":
        return [prediction for each in pictures for prediction in _predict(trained, [each], [each], maps)]
    pixels = trained.net.arguments["image_size"] if size == "training" else size
    height, width = sides(MAX_PIXELS, size=pixels)
    number = max(1, PIXELS // (height * width))
    predictions: list[Prediction] = []
    for start in range(0, len(pictures), number):
        batch = pictures[start : start + number]
        predictions += _predict(trained, batch, [resize(each, pixels) for each in batch], maps)
    return predictions


def _predict(
    trained: Pretrained, photographs: Sequence[Image.Image], seen: list[Image.Image], with_maps: bool
) -> list[Prediction]:
    """Predictions of photographs; `seen` are the parts of them that the net gets, all of one size."""
    pixels = f"{seen[0].width}×{seen[0].height} pixels"
    try:
        _check_memory(trained, len(seen), seen[0])
        images = torch.stack([to_tensor(each, trained.channels) for each in seen])
        if with_maps:
            logits, maps = class_maps(trained, images)
        else:
            with torch.no_grad():
                logits = trained(images)
    except SettingError as error:
        raise PictureError(f"{pixels}: {error}") from error
    except MemoryError as error:
        raise PictureError(f"{pixels}: there is not enough memory") from error
    pictures = [to_picture(image) for image in images]
    if not logits.isfinite().all():
        raise PictureError(f"{pixels}: {NOT_FINITE}")
    each_map = maps.cpu() if with_maps else [None] * len(images)
    columns = zip(photographs, pictures, logits.softmax(1).cpu(), logits.cpu(), each_map, strict=True)
    return [Prediction(trained.classes, *column) for column in columns]


def _check_memory(trained: Pretrained, number: int, picture: Image.Image) -> None:
    """Raises PictureError if so many pictures of this size are too small for the net or too large for this machine."""
    pixels = f"{picture.width}×{picture.height} pixels"
    try:
        needed, _ = inference_cost(trained.net, number, trained.channels, picture.height, picture.width)
    except RuntimeError as error:
        raise PictureError(f"{pixels} are too few for this net") from error
    if needed > memory_gb():
        raise PictureError(
            f"{pixels} are too many for this machine: they need at least {needed:,.1f} GB of memory, it has "
            f"{memory_gb():,.1f} GB"
        )


def predict_each(
    trained: Pretrained, sources: Sequence[PictureSource], size: Size = "training", maps: bool = True
) -> Iterator[tuple[str, Prediction | PictureError]]:
    """The name of each source in turn, with its prediction or the reason why it has none; arguments as `predict`."""
    number = 1 if read_size(size) == "native" else BATCH
    for start in range(0, len(sources), number):
        group = sources[start : start + number]
        read: list[Image.Image | PictureError] = [_read(source) for _, source in group]
        good = [each for each in read if isinstance(each, Image.Image)]
        try:
            predictions: Iterator[Prediction | PictureError] = iter(predict(trained, good, size, maps) if good else [])
        except PictureError:  # of one of them, perhaps
            predictions = (_alone(trained, picture, size, maps) for picture in good)
        for (name, _), picture in zip(group, read, strict=True):
            yield name, next(predictions) if isinstance(picture, Image.Image) else picture


def _alone(trained: Pretrained, picture: Image.Image, size: Size, maps: bool) -> Prediction | PictureError:
    try:
        return predict(trained, [picture], size, maps)[0]
    except PictureError as error:
        return error


def _read(source: Path | Image.Image) -> Image.Image | PictureError:
    try:
        return read_picture(source) if isinstance(source, Path) else source
    except PictureError as error:
        return error


@dataclass
class Many:
    """Predictions of many pictures, one after the other. Iterating predicts, draws, and fills the rows of the table.

    Attributes:
        trained: the net.
        sources: names and files or pictures.
        folder: of the drawings (see `name_drawings`) and of the table; it is created.
        label: distinguishes the drawings of this net from another's, see `label_of`.
        size: as in `predict`.
        draws: whether to draw class maps.
        top: number of the best classes that drawings and table show.
        class_name: the class whose map is drawn instead of the best ones'.
        rows: the rows of the table so far; see `table`.
    """

    trained: Pretrained
    sources: Sequence[PictureSource]
    folder: Path
    label: str
    size: Size = "training"
    draws: bool = True
    top: int = TOP
    class_name: str | None = None
    rows: list[dict[str, str]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        integer(1, MOST_DRAWN if self.draws else MOST, top=self.top)
        if self.class_name is not None and self.class_name not in self.trained.classes:
            near = get_close_matches(self.class_name, self.trained.classes, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            reason = f"unknown to this net, which knows {known_classes(self.trained)}{hint}"
            raise SettingError("class", self.class_name, reason)

    def __iter__(self) -> Iterator[tuple[str, Prediction, Path | None]]:
        """The name of each source, its prediction, and the new file that shows its class maps.

        Raises:
            PictureError: after all other pictures: those that could not be predicted, each with its reason.
            RunError: the folder cannot be created, or a drawing cannot be written.
        """
        files.make_folder(self.folder)
        self.rows, failures = [], []
        drawings: Sequence[Path | None] = [None] * len(self.sources)
        if self.draws:
            drawings = name_drawings(self.sources, self.folder, self.label)
        predictions = predict_each(self.trained, self.sources, self.size, maps=self.draws)
        for (name, prediction), (_, source), drawing in zip(predictions, self.sources, drawings, strict=True):
            self.rows.append(self._row(name, prediction, drawing))
            if isinstance(prediction, PictureError):
                is_named = str(prediction).startswith(f"{source}:")
                failures.append(str(prediction) if is_named else f"{name}: {prediction}")
                continue
            if drawing:
                self._draw(prediction, drawing)
            yield name, prediction, drawing
        if failures:
            raise PictureError(_several(failures))

    def shown(self, prediction: Prediction) -> list[int]:
        """The classes of a prediction that a drawing shows."""
        if self.class_name is not None:
            return [self.trained.classes.index(self.class_name)]
        return prediction.best(self.top)

    def printed(self, prediction: Prediction) -> list[int]:
        """The classes of a prediction that are printed: the best ones, and the class that was asked for."""
        best = prediction.best(self.top)
        return best + [k for k in self.shown(prediction) if k not in best]

    def _draw(self, prediction: Prediction, drawing: Path) -> None:
        shown = self.shown(prediction)
        rows = math.ceil((len(shown) + 2) / PANELS)
        files.save_figure(draw(self.trained, prediction, rows=rows, shown=shown), drawing)

    def _row(self, name: str, prediction: Prediction | PictureError, drawing: Path | None) -> dict[str, str]:
        if isinstance(prediction, PictureError):
            return {"file": name, "error": str(prediction)}
        row = {"file": name, "picture": str(drawing or "")}
        for place, k in enumerate(prediction.best(self.top), 1):
            suffix = f"_{place}" if place > 1 else ""
            row |= {
                f"class{suffix}": prediction.classes[k],
                f"probability{suffix}": f"{prediction.probabilities[k]:.4f}",
            }
        return row

    def table(self) -> bytes:
        """The rows as CSV: file, class, probability, the runners-up (class_2, probability_2, …), the drawing as
        picture, and for a picture that could not be predicted the reason as error."""
        columns = ["file", "class", "probability"]
        for place in range(2, min(self.top, len(self.trained.classes)) + 1):
            columns += [f"class_{place}", f"probability_{place}"]
        columns += [*(["picture"] if self.draws else []), "error"]
        return files.csv_table([columns, *([row.get(column, "") for column in columns] for row in self.rows)])


def _several(failures: Sequence[str]) -> str:
    """The first failures in one sentence, and the number of the others."""
    more = f"; and {len(failures) - MOST_NAMED:,} more" if len(failures) > MOST_NAMED else ""
    return "; ".join(failures[:MOST_NAMED]) + more


def name_drawings(sources: Sequence[PictureSource], folder: Path, label: str) -> list[Path]:
    """A file NAME_LABEL.png in `folder` for each source; NAME_LABEL_2.png, … where that name is taken.

    Taken are the names of the sources and of the other drawings. What is too long for a file's name is cut.
    """
    taken = {source.resolve() for _, source in sources if isinstance(source, Path)}
    drawings = []
    numbers: Counter[str] = Counter()  # of the names with a stem so far: a thousand folders may have an image.jpg each
    for name, _ in sources:
        stem = f"{_cut(Path(name).stem)}_{_cut(label)}"
        file = None
        while file is None or file.resolve() in taken:
            numbers[stem] += 1
            file = folder / (f"{stem}_{numbers[stem]}.png" if numbers[stem] > 1 else f"{stem}.png")
        taken.add(file.resolve())
        drawings.append(file)
    return drawings


def _cut(text: str) -> str:
    """The beginning of a text that has at most LONGEST_STEM bytes in a file's name."""
    text = text[:LONGEST_STEM]
    while len(os.fsencode(text)) > LONGEST_STEM:
        text = text[:-1]
    return text


def label_of(checkpoint: str) -> str:
    """A checkpoint's name in the names of pictures: the published name, the run's folder or the weights file. A long
    one is cut."""
    path = Path(os.path.abspath(checkpoint))
    if path.suffix not in (".safetensors", caffe.SUFFIX):
        return _cut(path.name)
    return _cut(path.parent.name if path.stem == "model" else path.stem)


def known_classes(trained: Pretrained, most: int = 20) -> str:
    """The number of classes and the names of at most `most` of them: "2 classes: cat, dog"."""
    return f"{counted(len(trained.classes), 'class', 'classes')}: {some_of(trained.classes, most)}"


# test images ----------------------------------------------------------------------------------------------------------


def sample_test_images(trained: Pretrained, number: int, root: str | None = None, seed: int = 0) -> list[PictureSource]:
    """Random test images of the set that the net was trained on, with names that contain number and class.

    Args:
        trained: the net.
        number: how many.
        root: folder of the sets, as in `nin.data.Images`.
        seed: of the random numbers.

    Raises:
        CheckpointError: the net does not say on which set it was trained.
        DataError: the set is missing or damaged.
    """
    from nin.run.evaluate import images_of

    of_net = images_of(trained, root).set
    return [
        (f"test_{i}_{of_net.classes[of_net.test_labels[i]]}", to_picture(of_net.test_images[i]))
        for i in of_net.sample_test(number, seed).tolist()
    ]


def save_examples(trained: Pretrained, folder: Path, root: str | None = None) -> tuple[list[Path], str]:
    """Writes a test image of each class into `folder`, as 0.png, 1.png, …

    Returns:
        The files; and why there are none where the net's test set is not on this machine, else "".
    """
    from nin.run.evaluate import images_of

    try:
        of_net = images_of(trained, root, download=False).set
    except (DataError, CheckpointError) as error:
        return [], str(error)
    examples = []
    for k in of_net.test_labels.unique().tolist():  # a folder's class may have no test picture
        examples.append(folder / f"{k}.png")
        to_picture(of_net.test_images[(of_net.test_labels == k).nonzero()[0, 0]]).save(examples[-1])
    return examples, ""


def _before_number(name: str) -> str:
    """A class's name in front of a number: with a colon where it ends in a digit."""
    return f"{name}:" if name[-1:].isdigit() else name


# drawing --------------------------------------------------------------------------------------------------------------


def draw(
    trained: Pretrained, prediction: Prediction, top: int = TOP, rows: int = 1, whole: bool = True, shown: Sequence = ()
) -> Figure:
    """The photograph, the pixels that the net saw, and class maps overlaid on the picture.

    Each map has its class's probability, its score, and the statistic of the map that the score comes from. Positive
    evidence is overlaid on one shared colour scale; where a map is 0 or less the picture stays clear.

    Args:
        trained: the net.
        prediction: of a picture.
        top: number of maps, if `shown` does not choose them.
        rows: rows of panels.
        whole: whether the whole photograph is shown too, if the net saw it at another size.
        shown: numbers of the classes whose maps are shown; by default the `top` best.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    drawn, canvas = [*(shown or prediction.best(top))], prediction.canvas()
    places = map_centres(trained, prediction.picture.height, prediction.picture.width, prediction.maps.shape[1:])
    shows_whole = whole and prediction.photograph.size != prediction.picture.size
    panels = (2 if shows_whole else 1) + len(drawn)
    columns = math.ceil(panels / rows)
    shapes = [canvas.size, prediction.photograph.size] if shows_whole else [canvas.size]
    highest = PANEL * max(min(1.0, height / width) for width, height in shapes)
    figure = Figure(figsize=(PANEL * columns + COLOURBAR, rows * (max(highest, 1) + 0.5)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set(xticks=[], yticks=[], anchor="N")
        axis.spines[:].set_visible(False)
    if shows_whole:
        _draw_photograph(axes[0], prediction)
    _draw_seen(axes[panels - len(drawn) - 1], prediction.picture)
    scale = ScalarMappable(Normalize(0, max(prediction.maps[drawn].max().item(), 1e-6)), "inferno")
    for axis, k in zip(axes[panels - len(drawn) :], drawn, strict=False):
        _overlay(axis, canvas, _smooth(prediction.maps[k], places, prediction.picture.size), scale)
        name = literal(shortened(trained.classes[k]))
        axis.set_title(f"{_before_number(name)}  {100 * prediction.probabilities[k]:.1f} %", fontsize=10)
        axis.set_xlabel(f"score {_signed(prediction.logits[k])}, {_evidence(trained, prediction.maps[k])}", fontsize=8)
    height, width = prediction.maps.shape[1:]
    name = f"class map, {width}×{height}"
    figure.colorbar(scale, ax=axes[columns - 1 :: columns], shrink=0.7 / rows, panchor=False, label=name)
    return figure


def _draw_photograph(axis: Axes, prediction: Prediction) -> None:
    """The whole photograph, with a frame around the middle that the net saw."""
    from matplotlib.patches import Rectangle

    photograph, (left, top, width, height) = prediction.photograph, prediction.seen_box()
    scale = CANVAS / max(photograph.size)
    small = photograph.resize([max(1, round(scale * side)) for side in photograph.size])
    axis.imshow(small, extent=(0, photograph.width, photograph.height, 0))
    axis.set_title(f"photograph, {photograph.width}×{photograph.height}", fontsize=10)
    if (width, height) != photograph.size:
        axis.add_patch(Rectangle((left, top), width, height, fill=False, color="white", linewidth=3))
        axis.add_patch(Rectangle((left, top), width, height, fill=False, color="black", linewidth=1))
        axis.set_xlabel("the net sees the framed part", fontsize=8)


def _draw_seen(axis: Axes, picture: Image.Image) -> None:
    """The pixels that the net saw, each a square."""
    axis.imshow(picture, interpolation="nearest" if max(picture.size) < CANVAS else "antialiased")
    axis.set_title(f"the net sees {picture.width}×{picture.height} pixels", fontsize=10)


def _overlay(axis: Axes, canvas: Image.Image, fine: Tensor, scale: ScalarMappable) -> None:
    """A smooth class map over the grey picture, the more opaque the larger its values."""
    colours = scale.to_rgba(fine)
    colours[..., 3] = 0.8 * scale.norm(fine).clip(0, 1) ** 0.7
    axis.imshow(ImageOps.grayscale(canvas), cmap="gray", vmin=0, vmax=255)
    axis.imshow(colours, extent=(-0.5, canvas.width - 0.5, canvas.height - 0.5, -0.5))


def _smooth(class_map: Tensor, places: Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """A class map at 256×256 points of the picture, within its own bounds. Bilinear interpolation would draw a star at
    each maximum.

    Args:
        class_map: (h, w).
        places: of its rows and columns in the picture, as `map_centres` returns them.
        size: width and height of the picture in pixels.
    """
    points = (np.arange(256) + 0.5) / 256
    grid = []
    for centres, side in zip(places, reversed(size), strict=True):
        position = np.interp(points * side - 0.5, centres, range(len(centres)))
        grid.append(torch.tensor((2 * position + 1) / len(centres) - 1, dtype=class_map.dtype))
    rows, columns = torch.meshgrid(*grid, indexing="ij")
    fine = F.grid_sample(
        class_map[None, None], torch.stack([columns, rows], 2)[None], "bicubic", "border", align_corners=False
    )[0, 0]
    return fine.clamp(class_map.min(), class_map.max())


def _evidence(trained: Pretrained, class_map: Tensor) -> str:
    """The statistic of a class's map that its score comes from."""
    if not has_class_maps(trained):
        return f"map sum {_signed(class_map.sum())}"
    if HEADS[trained.net.arguments["head"]].layer == "max":
        return f"map max {_signed(class_map.max())}"
    return f"map mean {_signed(class_map.mean())}"


def _signed(number: Tensor) -> str:
    """A number with two decimals and a minus sign, not a hyphen."""
    return f"{number:.2f}".replace("-", "−")
