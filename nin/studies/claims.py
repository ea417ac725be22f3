"""The claims about pooling, each put as a question to trained nets or to the rows of a study.

size           any image size will do
shift          a shifted image is still recognised
channels       a channel means a class
convergence    does pooling learn more slowly than a fully connected head?
overfitting    without parameters there is less to overfit with

An answer is a table, a figure and, where the numbers say it by themselves, a sentence.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from nin import pretrained
from nin.data.augment import PAD_MODES
from nin.data.module import EVALUATION_BATCH
from nin.pretrained import Pretrained
from nin.run import images_of
from nin.studies.ablation import HEADS, Row, epochs_to, interval, mean_and_deviation, paired
from nin.studies.report import COLOURS
from nin.studies.report import convergence as epochs_table

OF_NETS = ("size", "shift", "channels")
OF_ROWS = ("convergence", "overfitting")
SIZES = tuple(range(24, 65, 4))  # pixels
SHIFTS = tuple(range(9))  # pixels
ACCURACIES = (80, 85, 90)  # %
STYLES = ("-", "--", ":", "-.")


class ClaimError(RuntimeError):
    """Nothing to answer a question from."""


@dataclass(frozen=True)
class Answer:
    """Of one question: `name` for a file, `title` for people, a Markdown `table`, a `figure`, a sentence or none."""

    name: str
    title: str
    table: str
    figure: Figure
    finding: str = ""


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
    def colour(self) -> str:
        return COLOURS[self.trained.net.arguments["head"]]


def gather(checkpoints: Sequence[str], root: str | None = None, images: int | None = None) -> list[Net]:
    """The nets of these checkpoints, each with the test set of the data it was trained on.

    A net is named by its head, and by what else differs among them.

    Args:
        checkpoints: folders of runs, weights files or published names.
        root: folder of CIFAR-10, as in `nin.data.Images`.
        images: how many of the test images, the first ones; None for all.

    Raises:
        nin.pretrained.CheckpointError: a checkpoint that cannot be read.
        nin.data.DataError: a set that is missing or damaged.
        ValueError: a net of another set than the known ones.
    """
    found = [pretrained.load(checkpoint) for checkpoint in checkpoints]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sets = {}
    for trained in found:
        name = trained.facts.get("data", "unknown")
        if name not in sets:
            sets[name] = images_of(trained, root).set
    names = _names(found, checkpoints)
    styles: dict[str, list[str]] = defaultdict(list)
    for name, trained in zip(names, found, strict=True):
        if name not in (of_head := styles[trained.net.arguments["head"]]):
            of_head.append(name)
    nets = []
    for name, trained in zip(names, found, strict=True):
        test = sets[trained.facts["data"]]
        style = STYLES[styles[trained.net.arguments["head"]].index(name) % len(STYLES)]
        trained.to(device)
        nets.append(Net(name, style, trained, test.test_images[:images], test.test_labels[:images].to(device)))
    return sorted(nets, key=lambda net: (HEADS.index(net.trained.net.arguments["head"]), net.name))


def _names(found: Sequence[Pretrained], checkpoints: Sequence[str]) -> list[str]:
    facts = [[t.facts.get("data"), t.facts.get("recipe"), f"{t.facts.get('epochs')} epochs"] for t in found]
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


def _batches(net: Net, bar: tqdm) -> Iterator[Tensor]:
    """The images, a batch at a time, on the net's device."""
    for images in net.images.split(EVALUATION_BATCH):
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
                try:
                    said = [net.trained(resize(x, [pixels, pixels], antialias=True)) for x in _batches(net, bar)]
                    found[pixels] = _error(torch.cat(said).argmax(1), net)
                except ValueError as error:
                    refused.setdefault(net.name, f"`{net.name}` at {pixels} pixels: {error}")
                    bar.update(len(net.labels))
    places = _by_name(nets)
    lines = [_row("net", *(f"{pixels} px" for pixels in sizes)), _rule(len(sizes))]
    findings = []
    for name, chosen in places.items():
        taken = [pixels for pixels in sizes if all(pixels in errors[i] for i in chosen)]
        cells = {p: mean_and_deviation([errors[i][p] for i in chosen]) for p in taken}
        lines.append(_row(f"`{name}`", *(cells.get(pixels, "refused") for pixels in sizes)))
        if len(taken) > 1:
            best = min(taken, key=lambda p: sum(errors[i][p] for i in chosen))
            ends = " and ".join(f"{cells[p]} % at {p}" for p in (taken[0], taken[-1]))
            findings.append(f"`{name}` takes {len(taken)} of {len(sizes)} sizes, best {best} ({cells[best]} %), {ends}")
        elif taken:
            findings.append(f"`{name}` takes {taken[0]} pixels alone ({cells[taken[0]]} %)")
    for sentence in refused.values():
        lines += ["", sentence]

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = _clean(figure.subplots())
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
    _label(axis, ends)
    for line, (note, colour) in enumerate(notes):
        at = (5, -3 - 13 * line)
        axis.annotate(
            note, (own, 1), at, ("data", "axes fraction"), "offset points", fontsize=9, va="top", color=colour
        )
    title = f"Test error by image size ({_counted(nets)})"
    return Answer("size", title, "\n".join(lines), figure, _sentence(findings))


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
    places = _by_name(nets)
    lines = []
    for what, values in (("test error (%)", errors), ("same prediction as unshifted (%)", kept)):
        lines += [_row(f"{what}, shifted by", *(f"{p} px" for p in pixels)), _rule(len(pixels))]
        for fill in PAD_MODES:
            for name, chosen in places.items():
                cells = zip(*(values[i, fill] for i in chosen), strict=True)
                lines.append(_row(f"`{name}`, fill {fill}", *(mean_and_deviation(cell) for cell in cells)))
        lines.append("")

    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    axes = figure.subplots(2, len(PAD_MODES), sharex=True, sharey="row")
    for row, (what, values) in enumerate((("test error (%)", errors), ("same prediction (%)", kept))):
        for axis, fill in zip(axes[row], PAD_MODES, strict=True):
            _clean(axis)
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
                _label(axis, ends)
    at = 4 if 4 in pixels else pixels[-1]
    said = [
        f"`{name}` {mean_and_deviation([kept[i, 'reflect'][pixels.index(at)] for i in chosen])} %"
        for name, chosen in places.items()
    ]
    finding = f"Shifted by {at} pixels with reflected borders, this many predictions stay: {', '.join(said)}."
    title = f"Shifted images, a quarter of them each way ({_counted(nets)})"
    return Answer("shift", title, "\n".join(lines).strip(), figure, finding)


# a channel means a class ----------------------------------------------------------------------------------------------


@torch.no_grad()
def channels(nets: Sequence[Net]) -> Answer:
    """How often (%) the map with the highest mean is the true class's own, and which it is otherwise.

    Under global average pooling that is the accuracy by definition. A fully connected head ties no map to a class, so
    the best one-to-one naming of the maps, found on these very images, stands beside it.
    """
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
        _row("net", "accuracy (%)", "the true class's map has the highest mean (%)", "maps named best one-to-one (%)"),
        _rule(3),
    ]
    for name, chosen in places.items():
        cells = (mean_and_deviation([values[i] for i in chosen]) for values in (accuracies, own, named))
        lines.append(_row(f"`{name}`", *cells))
    if any(net.trained.net.arguments["head"] == "gap" for net in nets):
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
        pooled = net.trained.net.arguments["head"] in ("gap", "gmp")
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
    finding = f"The true class's own map has the highest mean for {', '.join(said)} of the images."
    return Answer("channels", f"Does a channel mean a class? ({_counted(nets)})", "\n".join(lines), figure, finding)


# from the rows of a study ---------------------------------------------------------------------------------------------


def convergence(rows: Sequence[Row], accuracies: Sequence[float] = ACCURACIES) -> list[Answer]:
    """Epochs to a test accuracy (%), by head, and the difference to GAP seed by seed; an answer a condition. Runs count
    in which nothing but head and seed was varied. Raises ClaimError where no row has a test curve."""
    plain = [row for row in rows if row.test_curve and not row.variant]
    if not plain:
        raise ClaimError("convergence: no row of the study has a test curve and nothing varied but head and seed")
    return [
        _convergence([r for r in plain if r.condition == c], accuracies) for c in sorted({r.condition for r in plain})
    ]


def _convergence(rows: Sequence[Row], accuracies: Sequence[float]) -> Answer:
    reached = {(row.head, row.seed, a): epochs_to(row, a) for row in rows for a in accuracies}
    heads = [head for head in HEADS if any(row.head == head for row in rows)]
    lines = [epochs_table(rows, accuracies)]
    if "gap" in heads and len(heads) > 1:
        lines += ["", _row("minus `gap`, each seed that reached it with both", *(f"{a:g} %" for a in accuracies))]
        lines.append(_rule(len(accuracies)))
        for head in heads[1:]:
            cells = []
            for a in accuracies:
                of_head = sorted((s, e) for (h, s, b), e in reached.items() if (h, b) == (head, a) and e is not None)
                pairs = [(e, reached.get(("gap", s, a))) for s, e in of_head]
                differences = [e - g for e, g in pairs if g is not None]
                each = ", ".join(f"{d:+d}" for d in differences)
                cells.append(f"{each} (mean {np.mean(differences):+.2f})" if len(differences) > 1 else each or "none")
            lines.append(_row(f"`{head}`", *cells))

    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(heads) * len(accuracies)), layout="constrained")
    axis = _clean(figure.subplots(), "x")
    most = max(row.epochs for row in rows)
    never = most + max(1, most / 12)
    for y, accuracy in enumerate(accuracies):
        for place, head in enumerate(heads):
            at = y + 0.2 * (place - (len(heads) - 1) / 2)
            found = [e for (h, _, a), e in reached.items() if (h, a) == (head, accuracy)]
            ended = [e for e in found if e is not None]
            missed = len(found) - len(ended)
            heights = at + np.linspace(-0.05, 0.05, len(found)) * (len(found) > 1)
            axis.scatter(ended, heights[: len(ended)], s=16, color=COLOURS[head], zorder=3, linewidths=0)
            axis.scatter([never] * missed, heights[len(ended) :], s=16, facecolors="none", edgecolors=COLOURS[head])
            if ended:
                axis.vlines(np.mean(ended), at - 0.08, at + 0.08, color=COLOURS[head], linewidth=5, alpha=0.35)
            last = never if missed else max(ended)
            text = f"{head} ({missed} of {len(found)} never)" if missed else head
            axis.annotate(text, (last, at), (7, 0), textcoords="offset points", va="center", fontsize=8,
                          color=COLOURS[head])  # fmt: skip
    axis.set_yticks(range(len(accuracies)), [f"{a:g} %" for a in accuracies])
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="epochs to this test accuracy (a dot a seed, a bar the mean)", xlim=(0, never * 1.02))
    axis.invert_yaxis()
    data, recipe, epochs, precision = rows[0].condition
    title = f"Epochs to an accuracy: {data}, recipe {recipe}, {epochs} epochs, {precision}"
    name = f"convergence-{data}-{recipe}-{epochs}-{precision}".strip("-")
    return Answer(name, title, "\n".join(lines), figure)


def overfitting(rows: Sequence[Row]) -> list[Answer]:
    """Training error and test error (%) by head and by the share of the training images (`data.share`), an answer a
    recipe. Where a share was trained for several numbers of epochs, the most count. Raises ClaimError where nothing
    but one share was trained on."""
    varied = [(share, row) for row in rows if row.status == "ok" and (share := _share(row)) is not None]
    conditions = defaultdict(list)
    for share, row in varied:
        conditions[row.data, row.recipe, row.precision].append((share, row))
    several = {c: found for c, found in conditions.items() if len({share for share, _ in found}) > 1}
    if not several:
        raise ClaimError(
            "overfitting: the study has no runs with several shares of the training images; train them with "
            "scripts/ablate.py data.share=0.01,0.05,0.2,1"
        )
    return [_overfitting(condition, found) for condition, found in sorted(several.items())]


def _share(row: Row) -> float | None:
    """What was trained on, of the training images; None where something else was varied too."""
    given = [override.split("=")[1] for override in shlex.split(row.variant) if override.startswith("data.share=")]
    return float(given[0]) if given and row.variant == f"data.share={given[0]}" else None if row.variant else 1.0


def _overfitting(condition: tuple[str, str, str], found: Sequence[tuple[float, Row]]) -> Answer:
    epochs = {share: max(row.epochs for s, row in found if s == share) for share, _ in found}
    runs = {(row.head, share, row.seed): row for share, row in found if row.epochs == epochs[share]}
    heads = [head for head in HEADS if any(h == head for h, _, _ in runs)]
    lines = [
        _row("images", "epochs", "head", "n", "training error (%)", "test error (%)", "test − training", "minus `gap`"),
        _rule(7),
    ]
    findings = []
    means: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    minus: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for share in sorted(epochs):
        for head in heads:
            chosen = [row for (h, s, _), row in sorted(runs.items()) if (h, s) == (head, share)]
            if not chosen:
                continue
            train, test = [row.train_error for row in chosen], [row.test_error for row in chosen]
            gaps = [b - a for a, b in zip(train, test, strict=True)]
            gap = [(r.test_error, runs.get(("gap", share, r.seed))) for r in chosen]
            differences = [error - other.test_error for error, other in gap if other and head != "gap"]
            cells = [mean_and_deviation(values) for values in (train, test, gaps)]
            cells.append("" if head == "gap" else paired(differences))
            lines.append(_row(f"{100 * share:g} %", str(epochs[share]), f"`{head}`", str(len(chosen)), *cells))
            means[head].append((100 * share, float(np.mean(train)), float(np.mean(test))))
            if differences:
                minus[head].append((100 * share, differences))
            if share == min(epochs) and _clear(differences):
                findings.append(f"`{head}` {cells[-1]}")
    finding = (
        f"With {100 * min(epochs):g} % of the images, test error minus that of `gap` in points (95 % interval), where "
        f"its sign is clear: {', '.join(findings)}."
    )

    figure = Figure(figsize=(9.4 if minus else 5.6, 4.0), layout="constrained")
    axes = figure.subplots(1, 2 if minus else 1, squeeze=False)[0]
    for axis in axes:
        _clean(axis).set(xscale="log", xlabel="share of the training images")
        axis.xaxis.set_major_locator(FixedLocator([100 * share for share in epochs]))
        axis.xaxis.set_major_formatter("{x:g} %")
        axis.xaxis.set_minor_locator(NullLocator())
    ends = []
    for head, points in means.items():
        shares, train, test = zip(*points, strict=True)
        axes[0].plot(shares, test, "o-", color=COLOURS[head], markersize=4)
        axes[0].plot(shares, train, "o:", color=COLOURS[head], markersize=3, alpha=0.8)
        ends.append((shares[-1], test[-1], head, COLOURS[head]))
    axes[0].plot([], [], "o-", color="#555555", markersize=4, label="test")
    axes[0].plot([], [], "o:", color="#555555", markersize=3, label="training")
    axes[0].set(ylabel="error (%)", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    _label(axes[0], ends)
    ends = []
    for head, points in minus.items():
        for share, differences in points:
            axes[1].scatter([share] * len(differences), differences, s=10, color=COLOURS[head], alpha=0.5, linewidths=0)
        shares, middles = zip(*((share, float(np.mean(d))) for share, d in points), strict=True)
        axes[1].plot(shares, middles, "o-", color=COLOURS[head], markersize=4)
        ends.append((shares[-1], middles[-1], head, COLOURS[head]))
    if minus:
        axes[1].plot([100 * min(epochs), 100 * max(epochs)], [0, 0], color=COLOURS["gap"], linewidth=1.5)
        axes[1].set_ylabel("test error minus gap's, seed by seed (points)")
        _label(axes[1], [*ends, (100 * max(epochs), 0.0, "gap", COLOURS["gap"])])
    data, recipe, precision = condition
    title = f"Training and test error: {data}, recipe {recipe}, {precision}".rstrip(", ")
    name = f"overfitting-{data}-{recipe}-{precision}".strip("-")
    return Answer(name, title, "\n".join(lines), figure, finding if findings else "")


def _clear(differences: Sequence[float]) -> bool:
    """Whether three seeds or more leave no doubt about the sign."""
    if len(differences) < 3:
        return False
    low, high = interval(differences)
    return low > 0 or high < 0


# tables and figures ---------------------------------------------------------------------------------------------------


def _progress(what: str, nets: Sequence[Net], passes: int) -> tqdm:
    return tqdm(total=passes * sum(len(net.labels) for net in nets), desc=what, unit=" images", leave=False)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * (columns + 1) + "|"


def _sentence(findings: Sequence[str]) -> str:
    text = "; ".join(findings)
    return f"{text}." if text else ""


def _clean(axis: Axes, grid: str = "both") -> Axes:
    axis.grid(alpha=0.25, axis=grid)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _label(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names lines at their ends (x, y, name, colour), none over another. To be called when the axis has its limits."""
    low, high = axis.get_ylim()
    apart = 0.055 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [y for _, y, _, _ in ends]
    for i in range(1, len(ends)):
        if ends[i][0] == ends[i - 1][0]:
            heights[i] = max(heights[i], heights[i - 1] + apart)
    for (x, _, name, colour), height in zip(ends, heights, strict=True):
        axis.annotate(name, (x, height), (8, 0), textcoords="offset points", va="center", color=colour, fontsize=9,
                      annotation_clip=False)  # fmt: skip
