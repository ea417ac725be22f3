"""The claims about pooling that are asked of trained nets. Those that are asked of runs are in
`nin.studies.claims_of_runs`.

size           any image size will do
shift          a shifted image is still recognised
channels       a channel means a class
objects        the maps light up at the object
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

from nin.backbones import SMALLEST
from nin.data.augment import PAD_MODES
from nin.data.preprocess import Whiten
from nin.studies import maps
from nin.studies.answer import (
    FULLY_CONNECTED,
    POOLING,
    Answer,
    ClaimError,
    clean,
    label,
    overall,
    table_row,
    table_rule,
)
from nin.studies.nets import Net, batches, by_name, counted, error_of, progress
from nin.studies.rows import interval, mean_and_deviation, paired

SHIFTS = tuple(range(9))  # pixels


# any size -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def size(nets: Sequence[Net], sizes: Sequence[int] | None = None) -> Answer:
    """Test error (%) by the size of the image: the test images resized (bilinear, antialiased) to `sizes` pixels, by
    default in eighths of their own size from three quarters of it to twice. What a net says of a size that it does not
    take stands below the table."""
    own = nets[0].images.shape[-1]
    sizes = sizes or range(3 * own // 4, 2 * own + 1, max(1, own // 8))
    errors: list[dict[int, float]] = [{} for _ in nets]
    refused: dict[str, str] = {}
    with progress("size", nets, len(sizes)) as bar:
        for net, found in zip(nets, errors, strict=True):
            for pixels in sizes:
                if why := _refusal(net, pixels):
                    refused.setdefault(net.name, f"`{net.name}` at {pixels} pixels: {why}")
                    bar.update(len(net.labels))
                    continue
                resized = (resize(x, [pixels, pixels], antialias=True) for x in batches(net, bar, pixels))
                found[pixels] = error_of(torch.cat([net.trained(x) for x in resized]).argmax(1), net)
    places = by_name(nets)
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
    pooling = [  # whitening is tied to a size, and a backbone has a smallest one, whatever the head
        all(pixels in found for pixels in sizes if pixels >= _smallest(net))
        for net, found in zip(nets, errors, strict=True)
        if net.head in POOLING and not isinstance(net.trained.preprocess, Whiten)
    ]
    said = overall(["supported" if takes else "refuted" for takes in pooling]) if pooling else "Not answered"
    finding = f"{said}: {'; '.join(findings) or 'no net takes any of the sizes'}."
    if any(pooling):
        finding += " What a net takes it does not therefore know: it was trained on images of one size."
    claim = "A net that pools takes images of any size, one with a fully connected head only the size it was built for."
    title = f"Test error by image size ({counted(nets)})"
    return Answer("size", title, claim, "\n".join(lines), figure, finding)


def _smallest(net: Net) -> int:
    return SMALLEST.get(net.trained.net.arguments.get("backbone"), 1)


def _refusal(net: Net, pixels: int) -> str:
    """What a net says of images of this size that it does not take; nothing where it takes them."""
    if pixels < _smallest(net):
        return f"{net.trained.net.arguments['backbone']} takes from {_smallest(net)} pixels a side"
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
    same: list[Tensor] = []  # of each net: (N), at how many of the shifts (%), reflected, an image's prediction stays
    at = pixels.index(4) if 4 in pixels else len(pixels) - 1
    with progress("shift", nets, 1 + len(PAD_MODES) * sum(p > 0 for p in pixels)) as bar:
        for i, net in enumerate(nets):

            def predict(p: int, fill: str, net: Net = net) -> Tensor:
                prepared = (net.trained.preprocess(images) for images in batches(net, bar))
                return torch.cat([net.trained.net(shift(x, p, fill)).argmax(1) for x in prepared])

            still = predict(0, "zero")
            for fill in PAD_MODES:
                predicted = [predict(p, fill) if p else still for p in pixels]
                errors[i, fill] = [error_of(found, net) for found in predicted]
                kept[i, fill] = [100 * (found == still).double().mean().item() for found in predicted]
                if fill == "reflect":
                    stays = [found == still for p, found in zip(pixels, predicted, strict=True) if p]
                    same.append(100 * torch.stack(stays).double().mean(0).cpu())
    places = by_name(nets)
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
    title = f"Shifted images, a quarter of them each way ({counted(nets)})"
    return Answer("shift", title, claim, "\n".join(lines).strip(), figure, finding)


def _steadier(nets: Sequence[Net], same: Sequence[Tensor]) -> str:
    """Whether more predictions of GAP stay than of a fully connected head that was trained like it: image by image the
    share of the shifts, with reflected borders."""
    found = []
    for i, gap in enumerate(nets):
        for j, other in enumerate(nets):
            alike = all(
                gap.trained.facts.get(f) == other.trained.facts.get(f) for f in ("data", "recipe", "epochs", "seed")
            )
            if gap.head == "gap" and other.head in FULLY_CONNECTED and alike:
                differences = (same[i] - same[j]).tolist()
                low, high = interval(differences)
                verdict = "supported" if low > 0 else "refuted" if high < 0 else "undecided"
                found.append((verdict, f"{paired(differences)} against `{other.name}`"))
    if not found:
        return "Not answered: there is no net with `gap` and one with a fully connected head that were trained alike."
    verdicts = [verdict for verdict, _ in found]
    each = [said + f", {verdict}" * (len(set(verdicts)) > 1) for verdict, said in found]
    return (
        f"{overall(verdicts)} by these nets, one a head: of `gap` more predictions stay by {'; '.join(each)} (points, "
        "over all shifts with reflected borders, as training had them; 95 % interval over images)."
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
    with progress("channels", nets, 1) as bar:
        for net in nets:
            parts = [net.trained.forward_maps(images) for images in batches(net, bar)]
            highest = torch.cat([maps.mean((2, 3)).argmax(1) for maps in parts])
            logits = torch.cat([net.trained.net.head(maps) for maps in parts])
            accuracies.append(100 - error_of(logits.argmax(1), net))
            count = torch.zeros(len(net.trained.classes), parts[0].shape[1], dtype=torch.long, device=highest.device)
            count.index_put_((net.labels, highest), torch.ones_like(highest), accumulate=True)
            counts.append(count.cpu().numpy())
    own = [100 * count.trace() / count.sum() for count in counts]
    named = [100 * count[linear_sum_assignment(-count)].sum() / count.sum() for count in counts]
    places = by_name(nets)
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
        verdict = "Refuted" if refuted else "Supported" if supported else "Supported in part"
        finding = f"{verdict} for fully connected heads; under `gap` true by definition. "
    else:
        finding = "Not answered, for want of a net with a fully connected head; under `gap` true by definition. "
    finding += (
        f"The true class's own map has the highest mean for {', '.join(said)} of the images, by chance {chance:g} %."
    )
    title = f"Does a channel mean a class? ({counted(nets)})"
    claim = "Each of the last maps means a class, whatever head reads them."
    return Answer("channels", title, claim, "\n".join(lines), figure, finding)


# maps light up at the object ------------------------------------------------------------------------------------------


def objects(nets: Sequence[Net]) -> Answer:
    """How much the true class's score falls when the quarter of the image under the brightest part of its map is
    blanked, against the quarter under another image's map and one at random (`nin.studies.maps.blanking`). Below a
    fully connected head the maps are class activation maps. Raises ClaimError where a net's maps cannot be had, or show
    no place."""
    found = []
    with progress("objects", nets, 1) as bar:
        for net in nets:
            try:
                found.append(maps.blanking(net.trained, net.images, net.labels, net.blank))
            except ValueError as error:  # maps too small to show a place, or the library for activation maps missing
                raise ClaimError(f"objects: {error}") from error
            bar.update(len(net.labels))
    places = by_name(nets)
    names = [net.name + f", seed {net.trained.facts.get('seed')}" * (len(places[net.name]) > 1) for net in nets]
    further = [[np.subtract(drops[0], other).tolist() for other in drops[1:]] for drops in found]
    lines = [
        table_row(
            *("score lost by blanking a quarter", "under the map", "under another image's", "at random"),
            *("minus another image's (95 %)", "minus at random (95 %)"),
        ),
        table_rule(5),
    ]
    figure = Figure(figsize=(6.4, 0.9 + 0.5 * len(nets)), layout="constrained")
    axis = clean(figure.subplots(), "x")
    for y, (net, name, drops, differences) in enumerate(zip(nets, names, found, further, strict=True)):
        under, elsewhere, chance = (float(np.mean(drop)) for drop in drops)
        means = (f"{mean:.2f}" for mean in (under, elsewhere, chance))
        lines.append(table_row(f"`{name}`", *means, *map(paired, differences)))
        low, high = interval(differences[0])
        axis.plot([chance, under], [y, y], color=net.colour, linewidth=1.5, alpha=0.5, zorder=1)
        axis.plot([elsewhere + low, elsewhere + high], [y, y], color=net.colour, linewidth=7, alpha=0.35, zorder=2)
        axis.scatter([chance], [y], s=30, facecolors="white", edgecolors=net.colour, zorder=3)
        axis.scatter([elsewhere], [y], s=30, marker="D", facecolors="white", edgecolors=net.colour, zorder=3)
        axis.scatter([under], [y], s=30, color=net.colour, zorder=3)
    axis.scatter([], [], s=30, facecolors="white", edgecolors="#555555", label="at random")
    axis.scatter([], [], s=30, marker="D", facecolors="white", edgecolors="#555555", label="under another image's map")
    axis.scatter([], [], s=30, color="#555555", label="under the map's brightest part")
    axis.plot([], [], color="#555555", linewidth=7, alpha=0.35, label="95 % interval: the map's minus another's")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_yticks(range(len(nets)), names)
    axis.set(xlim=(0, None), ylim=(len(nets) - 0.5, -0.5), xlabel="fall of the true class's score, a quarter blanked")
    axis.tick_params(axis="y", length=0)
    verdicts = []
    for net, differences in zip(nets, further, strict=True):
        if maps.pools(net.trained):
            lows, highs = zip(*map(interval, differences), strict=True)
            verdicts.append("supported" if min(lows) > 0 else "refuted" if max(highs) < 0 else "undecided")
    said = overall(verdicts) if verdicts else "Not answered, for want of a net that pools"
    other, chance = (
        ", ".join(f"`{name}` {paired(differences)}" for name, differences in zip(names, each, strict=True))
        for each in zip(*further, strict=True)
    )
    finding = f"{said}: blanked under the map the score falls further than under another image's map, by {other}, "
    finding += f"and than at random, by {chance}."
    if verdicts and not all(maps.pools(net.trained) for net in nets):
        finding += (
            " The maps below a fully connected head had to be worked out; those of a head that pools are the net's."
        )
    claim = "Under pooling the class maps light up at the object, though nothing was trained to find it."
    title = f"Do the maps light up at the object? ({counted(nets)})"
    return Answer("objects", title, claim, "\n".join(lines), figure, finding)
