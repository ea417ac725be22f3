"""The claims about pooling that are asked of trained nets. Those that are asked of runs are in `nin.studies.report`.

size           any image size will do
shift          a shifted image is still recognised
channels       a channel means a class
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from nin import pretrained
from nin.bounds import sides
from nin.data.augment import PAD_MODES
from nin.data.module import EVALUATION_BATCH
from nin.data.preprocess import Whiten
from nin.model import LARGEST
from nin.pretrained import Pretrained
from nin.run import images_of
from nin.studies.ablation import HEADS, interval, mean_and_deviation, paired
from nin.studies.answer import (
    COLOURS,
    FULLY_CONNECTED,
    POOLING,
    Answer,
    ClaimError,
    clean,
    label,
    table_row,
    table_rule,
)

SIZES = tuple(range(24, 65, 4))  # pixels
SHIFTS = tuple(range(9))  # pixels
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Net:
    """A trained net and the test images it is asked about. Nets of one name are seeds of one thing; `style` tells
    names of one head apart in a figure."""

    name: str
    style: str
    trained: Pretrained
    images: Tensor
    labels: Tensor

    @property
    def head(self) -> str:
        return self.trained.net.arguments["head"]

    @property
    def colour(self) -> str:
        return COLOURS[self.head]


def gather(checkpoints: Sequence[str], root: str | None = None, images: int | None = None) -> list[Net]:
    """The nets of these checkpoints, each with the test set of the data it was trained on.

    A net is named by its head, and by what else differs among them.

    Args:
        checkpoints: folders of runs, weights files or published names.
        root: folder of CIFAR-10, as in `nin.data.Images`.
        images: how many of the test images, drawn once for all nets of a set; None for all.

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
            order = torch.randperm(len(found_set.test_labels), generator=torch.Generator().manual_seed(0))[:images]
            chosen = order.sort().values
            sets[which] = found_set.test_images[chosen], found_set.test_labels[chosen]
    names = _names(found, checkpoints)
    styles: dict[str, list[str]] = defaultdict(list)
    for name, trained in zip(names, found, strict=True):
        if name not in (of_head := styles[trained.net.arguments["head"]]):
            of_head.append(name)
    nets = []
    for name, trained in zip(names, found, strict=True):
        test_images, test_labels = sets[_set(trained)]
        style = STYLES[styles[trained.net.arguments["head"]].index(name) % len(STYLES)]
        trained.to(device)
        nets.append(Net(name, style, trained, test_images, test_labels.to(device)))
    return sorted(nets, key=lambda net: (HEADS.index(net.head), net.name))


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


def _batches(net: Net, bar: tqdm, pixels: int | None = None) -> Iterator[Tensor]:
    """The images, a batch at a time, on the net's device; as many as memory is meant for when a side has `pixels`."""
    pixels = pixels or max(net.images.shape[2:])
    for images in net.images.split(max(1, EVALUATION_BATCH * 32 * 32 // pixels**2)):
        yield images.to(net.labels.device)
        bar.update(len(images))


def _error(predictions: Tensor, net: Net) -> float:
    return 100 * (predictions != net.labels).double().mean().item()


def _by_name(nets: Sequence[Net]) -> dict[str, list[int]]:
    """Where the nets of each name are."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, net in enumerate(nets):
        places[net.name].append(i)
    return places


def _counted(nets: Sequence[Net]) -> str:
    return ", ".join(f"{n:,} test images" for n in sorted({len(net.labels) for net in nets}))


# any size -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def size(nets: Sequence[Net], sizes: Sequence[int] = SIZES) -> Answer:
    """Test error (%) by the size of the image: the test images resized (bilinear, antialiased) to `sizes` pixels. What
    a net says of a size that it does not take stands below the table."""
    errors: list[dict[int, float]] = [{} for _ in nets]
    refused: dict[str, str] = {}
    with _progress("size", nets, len(sizes)) as bar:
        for net, found in zip(nets, errors, strict=True):
            for pixels in sizes:
                if why := _refusal(net, pixels):
                    refused.setdefault(net.name, f"`{net.name}` at {pixels} pixels: {why}")
                    bar.update(len(net.labels))
                    continue
                resized = (resize(x, [pixels, pixels], antialias=True) for x in _batches(net, bar, pixels))
                found[pixels] = _error(torch.cat([net.trained(x) for x in resized]).argmax(1), net)
    places = _by_name(nets)
    lines = [table_row("net", *(f"{pixels} px" for pixels in sizes)), table_rule(len(sizes))]
    findings = []
    for name, chosen in places.items():
        taken = [pixels for pixels in sizes if all(pixels in errors[i] for i in chosen)]
        cells = {p: mean_and_deviation([errors[i][p] for i in chosen]) for p in taken}
        lines.append(table_row(f"`{name}`", *(cells.get(pixels, "refused") for pixels in sizes)))
        if len(taken) > 1:
            best = min(taken, key=lambda p: sum(errors[i][p] for i in chosen))
            ends = " and ".join(f"{cells[p]} % at {p}" for p in (taken[0], taken[-1]))
            findings.append(f"`{name}` takes {len(taken)} of {len(sizes)} sizes, best {best} ({cells[best]} %), {ends}")
        elif taken:
            findings.append(f"`{name}` takes {taken[0]} pixels alone ({cells[taken[0]]} %)")
    for sentence in refused.values():
        lines += ["", sentence]

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = clean(figure.subplots())
    own = nets[0].images.shape[-1]
    axis.axvline(own, color="#bbbbbb", linewidth=1, zorder=0)
    ends, notes = [], [(f"trained at {own}", "#777777")]
    for name, chosen in places.items():
        net = nets[chosen[0]]
        taken = [pixels for pixels in sizes if all(pixels in errors[i] for i in chosen)]
        for i in chosen if len(chosen) > 1 else ():
            axis.plot(taken, [errors[i][p] for p in taken], net.style, color=net.colour, alpha=0.25, linewidth=1)
        means = [np.mean([errors[i][p] for i in chosen]) for p in taken]
        axis.plot(taken, means, net.style, color=net.colour, marker="o", markersize=4)
        if len(taken) > 1:
            ends.append((taken[-1], means[-1], name, net.colour))
        else:
            notes.append((f"{name}: {means[0]:.2f} % here, takes no other" if taken else f"{name}: none", net.colour))
    axis.margins(y=0.15)
    axis.set(xlabel="side of the image (pixels)", ylabel="test error (%)", xticks=sizes, ylim=(0, None))
    label(axis, ends)
    for line, (note, colour) in enumerate(notes):
        at = (5, -3 - 13 * line)
        axis.annotate(
            note, (own, 1), at, ("data", "axes fraction"), "offset points", fontsize=9, va="top", color=colour
        )
    pooling = [  # whitening is tied to a size, whatever the head
        len(found) == len(sizes)
        for net, found in zip(nets, errors, strict=True)
        if net.head in POOLING and not isinstance(net.trained.preprocess, Whiten)
    ]
    said = "Not answered" if not pooling else "Supported" if all(pooling) else "In part" if any(pooling) else "Refuted"
    finding = f"{said}: {'; '.join(findings) or 'no net takes any of the sizes'}."
    if any(pooling):
        finding += " What a net takes it does not therefore know: it was trained on images of one size."
    claim = "A net that pools takes images of any size, one with a fully connected head only the size it was built for."
    title = f"Test error by image size ({_counted(nets)})"
    return Answer("size", title, claim, "\n".join(lines), figure, finding)


def _refusal(net: Net, pixels: int) -> str:
    """What a net says of images of this size that it does not take; nothing where it takes them."""
    try:
        net.trained(net.images.new_zeros(1, net.images.shape[1], pixels, pixels))
    except (ValueError, RuntimeError) as error:  # the second is torch's, where nothing is left of the image
        return str(error).splitlines()[0]
    return ""


# shifts ---------------------------------------------------------------------------------------------------------------


def shift(images: Tensor, pixels: int, fill: str) -> Tensor:
    """Preprocessed images (N, C, H, W) moved by `pixels`, of each four one to the right, one to the left, one down, one
    up. What becomes free is filled with zero, which is the training images' mean, or reflected."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pixels,) * 4, mode=PAD_MODES[fill])
    moved = torch.empty_like(images)
    corners = ((pixels, 0), (pixels, 2 * pixels), (0, pixels), (2 * pixels, pixels))  # top, left of the window
    for direction, (top, left) in enumerate(corners):
        moved[direction::4] = padded[direction::4, :, top : top + height, left : left + width]
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def shifts(nets: Sequence[Net], pixels: Sequence[int] = SHIFTS) -> Answer:
    """Test error (%) of images shifted by `pixels`, and the share of them (%) for which a net predicts what it predicts
    for the image in its place. Of each four images one goes right, one left, one down, one up."""
    errors: dict[tuple[int, str], list[float]] = {}
    kept: dict[tuple[int, str], list[float]] = {}
    same: list[Tensor] = []  # of each net: (N), whether an image's prediction stays, at one shift, reflected
    at = pixels.index(4) if 4 in pixels else len(pixels) - 1
    with _progress("shift", nets, 1 + len(PAD_MODES) * sum(p > 0 for p in pixels)) as bar:
        for i, net in enumerate(nets):

            def predict(p: int, fill: str, net: Net = net) -> Tensor:
                prepared = (net.trained.preprocess(images) for images in _batches(net, bar))
                return torch.cat([net.trained.net(shift(x, p, fill)).argmax(1) for x in prepared])

            still = predict(0, "zero")
            for fill in PAD_MODES:
                predicted = [predict(p, fill) if p else still for p in pixels]
                errors[i, fill] = [_error(found, net) for found in predicted]
                kept[i, fill] = [100 * (found == still).double().mean().item() for found in predicted]
                if fill == "reflect":
                    same.append((predicted[at] == still).double().cpu())
    places = _by_name(nets)
    lines = []
    for what, values in (("test error (%)", errors), ("same prediction as unshifted (%)", kept)):
        lines += [table_row(f"{what}, shifted by", *(f"{p} px" for p in pixels)), table_rule(len(pixels))]
        for fill in PAD_MODES:
            for name, chosen in places.items():
                cells = zip(*(values[i, fill] for i in chosen), strict=True)
                lines.append(table_row(f"`{name}`, fill {fill}", *(mean_and_deviation(cell) for cell in cells)))
        lines.append("")

    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    axes = figure.subplots(2, len(PAD_MODES), sharex=True, sharey="row")
    for row, (what, values) in enumerate((("test error (%)", errors), ("same prediction (%)", kept))):
        for axis, fill in zip(axes[row], PAD_MODES, strict=True):
            clean(axis)
            ends = []
            for name, chosen in places.items():
                net = nets[chosen[0]]
                for i in chosen if len(chosen) > 1 else ():
                    axis.plot(pixels, values[i, fill], net.style, color=net.colour, alpha=0.25, linewidth=1)
                mean = np.mean([values[i, fill] for i in chosen], axis=0)
                axis.plot(pixels, mean, net.style, color=net.colour, marker="o", markersize=3.5)
                ends.append((pixels[-1], mean[-1], name, net.colour))
            if row == 0:
                axis.set_title({"zero": "fill: zero (the mean)", "reflect": "fill: reflected"}[fill], fontsize=10)
            else:
                axis.set_xlabel("shift (pixels)")
            axis.set_xticks(pixels)
            if fill == tuple(PAD_MODES)[-1]:
                axes[row, 0].set(ylabel=what, ylim=(0, None) if row == 0 else (None, 100.5))
                label(axis, ends)
    stay = {name: mean_and_deviation([kept[i, "reflect"][at] for i in chosen]) for name, chosen in places.items()}
    finding = (
        f"{_steadier(nets, same)} Shifted by {pixels[at]} pixels with reflected borders this many predictions stay: "
        f"{', '.join(f'`{name}` {share} %' for name, share in stay.items())}."
    )
    claim = "Where an object is matters less to a net that averages over all places than to a fully connected head."
    title = f"Shifted images, a quarter of them each way ({_counted(nets)})"
    return Answer("shift", title, claim, "\n".join(lines).strip(), figure, finding)


def _steadier(nets: Sequence[Net], same: Sequence[Tensor]) -> str:
    """Whether more predictions of GAP stay than of a fully connected head that was trained like it, image by image."""
    found, verdicts = [], set()
    for i, gap in enumerate(nets):
        for j, other in enumerate(nets):
            alike = all(
                gap.trained.facts.get(f) == other.trained.facts.get(f) for f in ("data", "recipe", "epochs", "seed")
            )
            if gap.head == "gap" and other.head in FULLY_CONNECTED and alike:
                differences = (100 * (same[i] - same[j])).tolist()
                low, high = interval(differences)
                found.append(f"{paired(differences)} against `{other.name}`")
                verdicts.add("Supported" if low > 0 else "Refuted" if high < 0 else "Undecided")
    if not found:
        return "Not answered: there is no net with `gap` and one with a fully connected head that were trained alike."
    return (
        f"{verdicts.pop() if len(verdicts) == 1 else 'In part'} by these nets, one a seed: of `gap` more predictions "
        f"stay by {', '.join(found)} (points, 95 % interval over images)."
    )


# a channel means a class ----------------------------------------------------------------------------------------------


@torch.no_grad()
def channels(nets: Sequence[Net]) -> Answer:
    """How often (%) the map with the highest mean is the true class's own, and which it is otherwise. Nets that have
    another number of maps than of classes are left out.

    Under global average pooling that is the accuracy by definition. A fully connected head ties no map to a class, so
    the best one-to-one naming of the maps, found on these very images, stands beside it.
    """
    nets = [net for net in nets if net.trained.forward_maps(net.images[:1]).shape[1] == len(net.trained.classes)]
    if not nets:
        raise ClaimError("channels: no net has as many last maps as classes")
    counts = []  # of each net: (class, map with the highest mean)
    accuracies = []
    with _progress("channels", nets, 1) as bar:
        for net in nets:
            parts = [net.trained.forward_maps(images) for images in _batches(net, bar)]
            highest = torch.cat([maps.mean((2, 3)).argmax(1) for maps in parts])
            logits = torch.cat([net.trained.net.head(maps) for maps in parts])
            accuracies.append(100 - _error(logits.argmax(1), net))
            count = torch.zeros(len(net.trained.classes), parts[0].shape[1], dtype=torch.long, device=highest.device)
            count.index_put_((net.labels, highest), torch.ones_like(highest), accumulate=True)
            counts.append(count.cpu().numpy())
    own = [100 * count.trace() / count.sum() for count in counts]
    named = [100 * count[linear_sum_assignment(-count)].sum() / count.sum() for count in counts]
    places = _by_name(nets)
    lines = [
        table_row(
            "net", "accuracy (%)", "the true class's map has the highest mean (%)", "maps named best one-to-one (%)"
        ),
        table_rule(3),
    ]
    for name, chosen in places.items():
        cells = (mean_and_deviation([values[i] for i in chosen]) for values in (accuracies, own, named))
        lines.append(table_row(f"`{name}`", *cells))
    if any(net.head == "gap" for net in nets):
        lines += ["", "For `gap` the first two are one by definition: the mean of a class's map is its score."]

    figure = Figure(figsize=(1.5 + 3.2 * len(places), 4.5), layout="constrained")
    axes = figure.subplots(1, len(places), squeeze=False)[0]
    for axis, chosen in zip(axes, places.values(), strict=True):
        net, count = nets[chosen[0]], counts[chosen[0]]
        shares = 100 * count / count.sum(1, keepdims=True).clip(min=1)
        drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for (k, m), share in np.ndenumerate(shares):
            if share >= 1:
                colour = "white" if share > 55 else "#333333"
                axis.text(m, k, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        pooled = net.head in ("gap", "gmp")
        columns = net.trained.classes if pooled else [f"no. {m + 1}" for m in range(shares.shape[1])]
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        same = axis is not axes[0] and net.trained.classes == nets[0].trained.classes
        axis.set_yticks(range(len(shares)), [] if same else net.trained.classes, fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        of_seed = f" (seed {net.trained.facts.get('seed')})" if len(chosen) > 1 else ""
        axis.set_title(f"{net.name}{of_seed}: {own[chosen[0]]:.1f} % own map", fontsize=10, color=net.colour)
        axis.set_xlabel("map with the highest mean", fontsize=9)
    axes[0].set_ylabel("true class", fontsize=9)
    figure.colorbar(drawn, ax=axes[-1], shrink=0.75, label="images of the class (%)")
    said = [f"`{name}` {mean_and_deviation([own[i] for i in chosen])} %" for name, chosen in places.items()]
    others = [i for i, net in enumerate(nets) if net.head in FULLY_CONNECTED]
    chance = 100 / counts[0].shape[1]
    if others:
        refuted, supported = max(own[i] for i in others) < 2 * chance, all(own[i] > 0.9 * accuracies[i] for i in others)
        verdict = "Refuted" if refuted else "Supported" if supported else "In part"
        finding = f"{verdict} for fully connected heads; under `gap` true by definition. "
    else:
        finding = "Not answered, for want of a net with a fully connected head; under `gap` true by definition. "
    finding += (
        f"The true class's own map has the highest mean for {', '.join(said)} of the images, by chance {chance:g} %."
    )
    title = f"Does a channel mean a class? ({_counted(nets)})"
    claim = "Each of the last maps means a class, whatever head reads them."
    return Answer("channels", title, claim, "\n".join(lines), figure, finding)


def _progress(what: str, nets: Sequence[Net], passes: int) -> tqdm:
    return tqdm(total=passes * sum(len(net.labels) for net in nets), desc=what, unit=" images", leave=False)
