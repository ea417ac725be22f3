"""The confusion matrix of a net: the most frequent confusions, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nin.checks import literal, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 5  # confusions that are listed, at most


def worst_pairs(matrix: Tensor, classes: Sequence[str]) -> str:
    """The most frequent confusions, one per line.

    Args:
        matrix: counts (K, K), the true class by row.
        classes: the K names.
    """
    wrong = matrix.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().topk(min(PAIRS, wrong.numel()))
    width = max(map(len, classes))
    lines = []
    for count, place in zip(counts.tolist(), places.tolist(), strict=True):
        true, taken_for = divmod(place, len(classes))
        if count:
            share = 100 * count / matrix[true].sum().item()
            lines.append(f"{classes[true]:>{width}} taken for {classes[taken_for]:{width}} {count:4d} ({share:4.1f} %)")
    return "\n".join(lines) or "no image is confused"


def draw(matrix: Tensor, classes: Sequence[str], title: str) -> Figure:
    """The matrix as a figure: shares of each true class in %, and the numbers of images that they are shares of. The
    colours show the confusions; the diagonal has none.

    Args:
        matrix: counts (K, K), the true class by row.
        classes: the K names.
        title: of the figure.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = matrix.sum(1).tolist()
    shares = (100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    wrong = shares.copy()
    np.fill_diagonal(wrong, 0)
    scale = min(max(1.0, len(classes) / 12), 6)
    figure = Figure(figsize=(6.4 * scale, 5.6 * scale), layout="constrained")
    axis = figure.subplots()
    classes = [literal(shortened(name)) for name in classes]
    display = ConfusionMatrixDisplay(wrong, display_labels=classes)
    display.plot(ax=axis, cmap="Oranges", values_format=".1f", colorbar=False, im_kw={"vmin": 0}, text_kw={"size": 8})
    for text, share in zip(display.text_.flat, shares.flat, strict=True):
        text.set_visible(share >= 0.05)
    for text, share in zip(display.text_.diagonal(), shares.diagonal(), strict=True):
        text.set(text=f"{share:.1f}", color="black", weight="bold")
    axis.set_xticks(axis.get_xticks(), classes, rotation=45, ha="right")
    names = [f"{name} ({count:,})" for name, count in zip(classes, counts, strict=True)]
    axis.set_yticks(axis.get_yticks(), names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="taken for (% of the true class's images)", ylabel="true class (images)")
    figure.suptitle(textwrap.fill(literal(title), int(56 * scale), break_on_hyphens=False), fontsize=11)
    return figure
