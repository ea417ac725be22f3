"""Predictions: the classes that a net sees in a picture, and where it sees them.

Under global average pooling nothing has to be computed to see where: the mean of a class's map is the class's score.
The maps below a fully connected head are not classes'. There each position's contribution to a class's score is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from nin import files
from nin.checks import one_line, sides
from nin.cost import activations
from nin.errors import CheckpointError, DataError, PictureError, SettingError
from nin.pictures import read_picture, resize, to_picture, to_tensor
from nin.plan import HEADS
from nin.pretrained import Pretrained
from nin.run.machine import memory_gb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Source = tuple[str, Path | Image.Image]  # a name for people, and a file or a picture
Size = str | int  # "training", "native" or a number of pixels
LARGEST = 4096  # pixels of a chosen size
CANVAS = 512  # pixels of the picture that class maps are laid over
BATCH = 16  # pictures that are read at a time
PIXELS = BATCH * 128 * 128  # pixels that are predicted at a time, of one picture at least


@dataclass(frozen=True)
class Prediction:
    """What a net says of one picture.

    Attributes:
        classes: names of the K classes.
        picture: the picture, at the size at which the net saw it.
        canvas: the same, with enough pixels for the eye.
        probabilities, logits: (K).
        maps: class maps, (K, h, w).
    """

    classes: tuple[str, ...]
    picture: Image.Image
    canvas: Image.Image
    probabilities: Tensor
    logits: Tensor
    maps: Tensor

    def best(self, number: int = 3) -> list[int]:
        """The most probable classes, best first."""
        return self.probabilities.topk(min(number, len(self.classes))).indices.tolist()

    def __str__(self) -> str:
        """The three best classes: "cat 81.0 %, dog 12.3 %, frog 2.2 %"."""
        return ", ".join(f"{self.classes[k]} {100 * self.probabilities[k]:.1f} %" for k in self.best())


# predicting -----------------------------------------------------------------------------------------------------------


def has_class_maps(trained: Pretrained) -> bool:
    """Whether the maps that the head reads are the classes' own: whether it pools one map a class."""
    head = HEADS[trained.net.arguments["head"]]
    return head.pools and not head.of_features


@torch.no_grad()
def class_maps(trained: Pretrained, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of images (N, C, H, W) uint8, and where in the images each class is: maps (N, K, h, w).

    Under a head that pools a map a class these are the net's own maps. Under any other head they are class activation
    maps by HiResCAM (Draelos and Carin, 2020): the maps times the gradient of a class's score, summed over channels.
    Under a single linear layer a class's map then sums to its score minus the bias.

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


def read_size(size: Size) -> Size:
    """A size as `predict` takes it, of text as well. Raises SettingError."""
    if size in ("training", "native"):
        return size
    pixels = int(size) if str(size).isdecimal() and len(str(size)) < 9 else 0
    if not 0 < pixels <= LARGEST:
        raise SettingError("size", size, f"must be training, native or a number of pixels from 1 to {LARGEST}")
    return pixels


def predict(trained: Pretrained, pictures: Sequence[Image.Image], size: Size = "training") -> list[Prediction]:
    """What the net sees in pictures.

    Args:
        trained: the net.
        pictures: PIL images in RGB, as `nin.pictures.read_picture` returns them.
        size: "training" resizes the middle of each picture to the size that the net was trained at; a number of pixels
            to that size; "native" leaves each picture as it is.

    Raises:
        PictureError: a picture is too small for the net, too large for this machine, or of a size that head or
            preprocessing do not accept.
        SettingError: another size.
    """
    size = read_size(size)
    if size == "native":
        return [prediction for each in pictures for prediction in _predict(trained, [each], [each])]
    pixels = trained.net.arguments["image_size"] if size == "training" else size
    height, width = sides(LARGEST, size=pixels)
    number = max(1, PIXELS // (height * width))
    predictions: list[Prediction] = []
    for start in range(0, len(pictures), number):
        batch = pictures[start : start + number]
        seen, canvases = ([resize(each, wanted) for each in batch] for wanted in (pixels, CANVAS))
        predictions += _predict(trained, seen, canvases)
    return predictions


def _predict(trained: Pretrained, seen: list[Image.Image], canvases: list[Image.Image]) -> list[Prediction]:
    """Predictions of pictures of one size."""
    pixels = f"{seen[0].width}×{seen[0].height} pixels"
    try:
        _check_memory(trained, len(seen), seen[0])
        logits, maps = class_maps(trained, torch.stack([to_tensor(each, trained.channels) for each in seen]))
    except SettingError as error:
        raise PictureError(f"{pixels}: {error}") from error
    columns = zip(seen, canvases, logits.softmax(1).cpu(), logits.cpu(), maps.cpu(), strict=True)
    return [Prediction(trained.classes, *column) for column in columns]


def _check_memory(trained: Pretrained, number: int, picture: Image.Image) -> None:
    pixels = f"{picture.width}×{picture.height} pixels"
    try:
        outputs = activations(trained.net, number, trained.channels, picture.height, picture.width)
    except RuntimeError as error:
        raise PictureError(f"{pixels} are too few for this net") from error
    needed = 2 * 4 * max(outputs) / 1e9  # a layer's input and output in fp32, at the least
    if needed > memory_gb():
        raise PictureError(
            f"{pixels} are too many for this machine: they need at least {needed:,.1f} GB of memory, it has "
            f"{memory_gb():,.1f} GB"
        )


def predict_each(
    trained: Pretrained, sources: Sequence[Source], size: Size = "training"
) -> Iterator[tuple[str, Prediction | PictureError]]:
    """The name of each source in turn, with its prediction or the reason why it has none; arguments as `predict`."""
    number = 1 if read_size(size) == "native" else BATCH
    for start in range(0, len(sources), number):
        group = sources[start : start + number]
        read: list[Image.Image | PictureError] = [_read(source) for _, source in group]
        good = [each for each in read if isinstance(each, Image.Image)]
        try:
            predictions: Iterator[Prediction | PictureError] = iter(predict(trained, good, size) if good else [])
        except PictureError as error:
            predictions = iter([error] * len(good))
        for (name, _), picture in zip(group, read, strict=True):
            yield name, next(predictions) if isinstance(picture, Image.Image) else picture


def _read(source: Path | Image.Image) -> Image.Image | PictureError:
    try:
        return read_picture(source) if isinstance(source, Path) else source
    except PictureError as error:
        return error


def predict_files(
    trained: Pretrained, sources: Sequence[Source], folder: Path, label: str, size: Size = "training"
) -> Iterator[tuple[str, Prediction, Path]]:
    """Predicts pictures and draws each one's class maps into `folder`: its name, the prediction and the new file.

    Args:
        trained: the net.
        sources: names and files or pictures.
        folder: for the drawings, NAME_LABEL.png each; it is created. Neither a source nor an earlier drawing of this
            call is overwritten.
        label: tells the drawings of this net from another's, see `label_of`.
        size: as in `predict`.

    Raises:
        PictureError: after all other pictures: those that could not be predicted, each with its reason.
        RunError: a drawing cannot be written.
    """
    make_folder(folder)
    taken = {source.resolve() for _, source in sources if isinstance(source, Path)}
    failures = []
    for name, prediction in predict_each(trained, sources, size):
        if isinstance(prediction, PictureError):
            failures.append(str(prediction) if name in str(prediction) else f"{name}: {prediction}")
            continue
        file = _free(folder, f"{Path(name).stem}_{label}", taken)
        with files.writing(file) as part:
            draw(trained, prediction).savefig(part, dpi=150)
        yield name, prediction, file
    if failures:
        raise PictureError("; ".join(failures))


def make_folder(folder: str | Path) -> Path:
    """A folder for pictures, which is created if need be. Raises PictureError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"{one_line(folder)}: this folder cannot be created ({reason})") from error
    return Path(folder)


def _free(folder: Path, stem: str, taken: set[Path]) -> Path:
    """A file STEM.png, STEM_2.png, … that is not in `taken`, to which it is added."""
    file, number = folder / f"{stem}.png", 2
    while file.resolve() in taken:
        file, number = folder / f"{stem}_{number}.png", number + 1
    taken.add(file.resolve())
    return file


def label_of(checkpoint: str) -> str:
    """What names the pictures of a checkpoint: the published name, the run's folder or the weights file."""
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        return path.name
    return path.absolute().parent.name if path.stem == "model" else path.stem


# test images ----------------------------------------------------------------------------------------------------------


def draw_test_images(trained: Pretrained, number: int, root: str | None = None, seed: int = 0) -> list[Source]:
    """Random test images of the set that the net was trained on, with names that tell number and class.

    Args:
        trained: the net.
        number: how many.
        root: folder of the sets, as in `nin.data.Images`.
        seed: of the draw.

    Raises:
        CheckpointError: the net does not say on which set it was trained.
        DataError: the set is missing or damaged.
    """
    from nin.run.evaluate import images_of

    test = images_of(trained, root).set
    order = torch.randperm(len(test.test_labels), generator=torch.Generator().manual_seed(seed))[:number]
    return [(f"test_{i}_{test.classes[test.test_labels[i]]}", to_picture(test.test_images[i])) for i in order.tolist()]


def save_examples(trained: Pretrained, folder: Path, root: str | None = None) -> tuple[list[Path], str]:
    """Writes a test image of each class into `folder`, as CLASS.png.

    Returns:
        The files; and why there are none where the net's test set is not on this machine, else "".
    """
    from nin.run.evaluate import images_of

    try:
        test = images_of(trained, root, download=False).set
    except (DataError, CheckpointError) as error:
        return [], str(error)
    written = []
    for k, name in enumerate(test.classes):
        written.append(folder / f"{name}.png")
        to_picture(test.test_images[(test.test_labels == k).nonzero()[0, 0]]).save(written[-1])
    return written, ""


# drawing --------------------------------------------------------------------------------------------------------------


def draw(trained: Pretrained, prediction: Prediction, top: int = 3, rows: int = 1) -> Figure:
    """The picture, and the class maps of its `top` classes overlaid on it, in `rows` rows of panels.

    Each map has its class's probability, its score, and what of the map the score comes from. Positive evidence is
    overlaid on one shared colour scale; where a map is 0 or less the picture stays clear.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    best = prediction.best(top)
    scale = ScalarMappable(Normalize(0, max(prediction.maps[best].max().item(), 1e-6)), "inferno")
    columns = math.ceil((1 + len(best)) / rows)
    figure = Figure(figsize=(2.6 * columns + 0.3, 3.1 + 2.9 * (rows - 1)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    axes[0].imshow(prediction.canvas)
    axes[0].set_title(f"seen at {prediction.picture.width}×{prediction.picture.height}", fontsize=10)
    for axis, k in zip(axes[1:], best, strict=False):
        _overlay(axis, prediction.canvas, prediction.maps[k], scale)
        axis.set_title(f"{trained.classes[k]}  {100 * prediction.probabilities[k]:.1f} %", fontsize=10)
        axis.set_xlabel(f"score {prediction.logits[k]:.2f}, {_evidence(trained, prediction.maps[k])}", fontsize=8)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.colorbar(scale, ax=axes[columns - 1 :: columns], shrink=0.7 / rows, label="class map")
    return figure


def _overlay(axis: Axes, canvas: Image.Image, class_map: Tensor, scale: ScalarMappable) -> None:
    """A class map over the grey picture, the more opaque the larger its values."""
    fine = F.interpolate(class_map[None, None], size=(256, 256), mode="bilinear")[0, 0]
    colours = scale.to_rgba(fine)
    colours[..., 3] = 0.8 * scale.norm(fine).clip(0, 1) ** 0.7
    axis.imshow(ImageOps.grayscale(canvas), cmap="gray", vmin=0, vmax=255)
    axis.imshow(colours, extent=(-0.5, canvas.width - 0.5, canvas.height - 0.5, -0.5))


def _evidence(trained: Pretrained, class_map: Tensor) -> str:
    """What of a class's map its score comes from."""
    if not has_class_maps(trained):
        return f"map sum {class_map.sum():.2f}"
    if HEADS[trained.net.arguments["head"]].layer == "max":
        return f"map max {class_map.max():.2f}"
    return f"map mean {class_map.mean():.2f}"
