"""Which classes a net takes for which."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor


def worst_pairs(matrix: Tensor, classes: Sequence[str], pairs: int = 5) -> str:
    """The most frequent confusions of a matrix (K, K) of counts, true class by row, a line each."""
    wrong = matrix.clone().fill_diagonal_(0)
    counts, where = wrong.flatten().topk(min(pairs, wrong.numel()))
    width = max(map(len, classes))
    lines = []
    for count, place in zip(counts.tolist(), where.tolist(), strict=True):
        true, taken_for = divmod(place, len(classes))
        if count:
            share = 100 * count / matrix[true].sum().item()
            lines.append(f"{classes[true]:>{width}} taken for {classes[taken_for]:{width}} {count:4d} ({share:4.1f} %)")
    return "\n".join(lines) or "no image is confused"


def draw(matrix: Tensor, classes: Sequence[str], title: str) -> Figure:
    """The matrix as a picture: shares of each true class in %, its diagonal left pale so that the confusions show."""
    shares = 100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    shown = shares.clone().fill_diagonal_(0)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shown, cmap="Oranges", vmin=0)
    for row in range(len(classes)):
        for column in range(len(classes)):
            share = shares[row, column].item()
            if share >= 0.05:
                dark = row != column and share > 0.6 * shown.max()
                weight = "bold" if row == column else "normal"
                axis.text(column, row, f"{share:.1f}", ha="center", va="center", size=8, weight=weight,
                          color="white" if dark else "black")  # fmt: skip
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel="taken for", ylabel="true class", title=title)
    return figure
