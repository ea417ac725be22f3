"""The claims about pooling that are asked of runs, by their rows. Those that are asked of nets are in
`nin.studies.claims_of_nets`.

convergence    does pooling learn more slowly than a fully connected head?
overfitting    without parameters there is less to overfit with
transfer       does a net that pools transfer worse?
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from nin.pretrained import available, read_card
from nin.studies.answer import (
    COLOURS,
    FULLY_CONNECTED,
    Answer,
    ClaimError,
    clean,
    label,
    overall,
    table_row,
    table_rule,
)
from nin.studies.report import ACCURACIES, epochs_table
from nin.studies.rows import ALL_HEADS, Condition, Row, epochs_to, interval, made_with, mean_and_deviation, paired

HEAD_IN_NAME = re.compile(r"(?<![a-z])(gap|gmp|fc[-_]dropout|fc)(?![a-z])")


def convergence(rows: Sequence[Row], accuracies: Sequence[float] = ACCURACIES) -> list[Answer]:
    """Epochs to a test accuracy (%), by head, and the difference to GAP seed by seed; an answer a condition. Runs count
    in which nothing but head and seed was varied; where there is a condition with several heads, those alone. Nets that
    died are told, and in no mean. Raises ClaimError where no row has a test curve."""
    runs: dict[Condition, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.variant and (row.test_curve or row.status == "dead"):
            runs[row.condition].append(row)
    runs = {condition: found for condition, found in runs.items() if any(row.status == "ok" for row in found)}
    if not runs:
        raise ClaimError("convergence: no row of the study has a test curve and nothing varied but head and seed")
    several = {c for c, of_condition in runs.items() if len({row.head for row in of_condition}) > 1}
    return [_convergence(runs[condition], accuracies) for condition in sorted(several or runs)]


def _convergence(rows: Sequence[Row], accuracies: Sequence[float]) -> Answer:
    lines = [epochs_table(rows, accuracies)]
    rows = [row for row in rows if row.status == "ok"]
    reached = {(row.head, row.seed, a): epochs_to(row, a) for row in rows for a in accuracies}
    heads = [head for head in ALL_HEADS if any(row.head == head for row in rows)]
    if "gap" in heads and len(heads) > 1:
        lines += ["", table_row("minus `gap`, each seed that reached it with both", *(f"{a:g} %" for a in accuracies))]
        lines.append(table_rule(len(accuracies)))
        for head in heads[1:]:
            cells = []
            for a in accuracies:
                of_head = sorted((s, e) for (h, s, b), e in reached.items() if (h, b) == (head, a) and e is not None)
                pairs = [(e, reached.get(("gap", s, a))) for s, e in of_head]
                differences = [e - g for e, g in pairs if g is not None]
                each = ", ".join(f"{d:+.2f}" for d in differences)
                cells.append(f"{each} (mean {np.mean(differences):+.2f})" if len(differences) > 1 else each or "none")
            lines.append(table_row(f"`{head}`", *cells))
    lines += ["", "Between the ends of two epochs the error is taken to fall in a straight line. In the verdict what"]
    lines[-1] += " was never reached counts as reached an epoch after the last; what neither head reached does not"
    lines[-1] += f" count. All hold for this recipe and this number of epochs. {made_with(rows)}"

    figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(heads) * len(accuracies)), layout="constrained")
    axis = clean(figure.subplots(), "x")
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
    condition = rows[0].condition
    return Answer(
        f"convergence-{condition.stem}",
        f"Epochs to an accuracy: {condition.title}",
        "A net with global average pooling converges more slowly than one with a fully connected head.",
        "\n".join(lines),
        figure,
        _sooner_or_later(reached, most),
    )


def _sooner_or_later(reached: dict[tuple[str, int, float], float | None], most: int) -> str:
    """Whether fully connected heads reach the accuracies before GAP of the same seed does. What was never reached
    counts as reached an epoch after the last; what neither reached does not count."""
    found = []
    for head in FULLY_CONNECTED:
        differences: dict[int, list[float]] = defaultdict(list)  # of each seed
        for (h, seed, accuracy), epoch in reached.items():
            of_gap = reached.get(("gap", seed, accuracy), 0)
            if h == head and of_gap != 0 and (epoch, of_gap) != (None, None):
                differences[seed].append((epoch or most + 1) - (of_gap or most + 1))
        if differences:
            found.append((f"`{head}`", [float(np.mean(of_seed)) for of_seed in differences.values()]))
    return _verdict(found, "epochs of a fully connected head minus those of `gap`, mean over the accuracies")


def _verdict(found: Sequence[tuple[str, Sequence[float]]], what: str, below: bool = True) -> str:
    """What paired differences, a fully connected head's minus GAP's, say of a claim that holds where they are `below` 0
    or, if not, above: one word where all say the same, else a word each. Fewer than three seeds, or an interval with 0
    in it, decide nothing."""
    if not found:
        return "Not answered: there are no runs of `gap` and of a fully connected head with a seed in common."
    verdicts = [
        "undecided" if not _clear(differences) else "supported" if (np.mean(differences) < 0) == below else "refuted"
        for _, differences in found
    ]
    one = len(set(verdicts)) == 1
    few = max(len(differences) for _, differences in found) < 3
    each = [
        f"{name} {paired(differences)}" + f", {verdict}" * (not one)
        for (name, differences), verdict in zip(found, verdicts, strict=True)
    ]
    return f"{overall(verdicts)}{' by so few seeds' * few}: {what}: {(', ' if one else '; ').join(each)}."


def overfitting(rows: Sequence[Row]) -> list[Answer]:
    """Training error and test error (%) by head and by the share of the training images (`data.share`), an answer a
    recipe. Where a share was trained for several numbers of epochs, the most count that two heads have. Raises
    ClaimError where nothing but one share was trained on. Nets that died are told, and in no mean."""
    varied = [(share, row) for row in rows if (share := _share(row)) is not None]
    conditions = defaultdict(list)
    for share, row in varied:
        conditions[row.condition._replace(epochs=0)].append((share, row))
    several = {c: found for c, found in conditions.items() if len({s for s, row in found if row.status == "ok"}) > 1}
    if not several:
        raise ClaimError(
            "overfitting: the study has no runs with several shares of the training images; train them with "
            "scripts/ablate.py data.share=0.01,0.05,0.2,1"
        )
    return [_overfitting(condition, found) for condition, found in sorted(several.items())]


def _share(row: Row) -> float | None:
    """What was trained on, of the training images; None where something else was varied too."""
    return float(row.varied.get("data.share", 1)) if set(row.varied) <= {"data.share"} else None


def _overfitting(condition: Condition, found: Sequence[tuple[float, Row]]) -> Answer:
    dead = [(row.head, share, row.epochs) for share, row in found if row.status == "dead"]
    found = [(share, row) for share, row in found if row.status == "ok"]
    heads_of: dict[tuple[float, int], set[str]] = defaultdict(set)
    for share, row in found:
        heads_of[share, row.epochs].add(row.head)
    epochs = {share: max((len(h) > 1, e) for (s, e), h in heads_of.items() if s == share)[1] for share, _ in found}
    runs = {(row.head, share, row.seed): row for share, row in found if row.epochs == epochs[share]}
    heads = [head for head in ALL_HEADS if any(h == head for h, _, _ in runs)]
    lines = [
        table_row(
            *("images", "epochs", "head", "n", "training error (%)", f"{condition.errors} (%)"),
            *("minus training error", f"{condition.errors} minus `gap`'s"),
        ),
        table_rule(7),
    ]
    further = []  # how much further above its training error a fully connected head's test error is than gap's
    means: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    minus: dict[str, list[tuple[float, list[float]]]] = defaultdict(list)
    for share in sorted(epochs):
        for head in heads:
            chosen = [row for (h, s, _), row in sorted(runs.items()) if (h, s) == (head, share)]
            if not chosen:
                continue
            train, test = [row.train_error for row in chosen], [row.error for row in chosen]
            gaps = [b - a for a, b in zip(train, test, strict=True)]
            beside = [(r, g) for r in chosen if head != "gap" and (g := runs.get(("gap", share, r.seed)))]
            differences = [r.error - g.error for r, g in beside]
            more = [(r.error - r.train_error) - (g.error - g.train_error) for r, g in beside]
            if head in FULLY_CONNECTED and beside:
                further.append((f"`{head}` with {100 * share:g} % of the images", more))
            cells = [mean_and_deviation(values) for values in (train, test, gaps)]
            cells.append("" if head == "gap" else paired(differences, len(chosen)))
            died = dead.count((head, share, epochs[share]))
            n = f"{len(chosen)}" + f", {died} died" * bool(died)
            lines.append(table_row(f"{100 * share:g} %", str(epochs[share]), f"`{head}`", n, *cells))
            means[head].append((100 * share, float(np.mean(train)), float(np.mean(test))))
            if beside:
                minus[head].append((100 * share, more))
    lines += ["", "On ten class maps of 8×8 a fully connected head has 6,410 parameters, to the trunk's 966,986."]
    lines[-1] += " Where the training error is 0 under both heads, what is judged is the test error."
    lines[-1] += f" {made_with([*runs.values()])}"
    what = f"{condition.errors} minus training error, of a fully connected head minus that of `gap` (points)"
    finding = _verdict(further, what, below=False)

    figure = Figure(figsize=(9.4 if minus else 5.6, 4.0), layout="constrained")
    axes = figure.subplots(1, 2 if minus else 1, squeeze=False)[0]
    for axis in axes:
        clean(axis).set(xscale="log", xlabel="share of the training images, and epochs")
        axis.set_xticks([100 * share for share in epochs], [f"{100 * s:g} %\n{e} epochs" for s, e in epochs.items()])
        axis.xaxis.set_minor_locator(NullLocator())
    ends = []
    for head, points in means.items():
        shares, train, test = zip(*points, strict=True)
        axes[0].plot(shares, test, "o-", color=COLOURS[head], markersize=4)
        axes[0].plot(shares, train, "o:", color=COLOURS[head], markersize=3, alpha=0.8)
        ends.append((shares[-1], test[-1], head, COLOURS[head]))
    axes[0].plot([], [], "o-", color="#555555", markersize=4, label=condition.errors)
    axes[0].plot([], [], "o:", color="#555555", markersize=3, label="training error")
    axes[0].set(ylabel="error (%)", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    label(axes[0], ends)
    ends = []
    for head, points in minus.items():
        for share, differences in points:
            axes[1].scatter([share] * len(differences), differences, s=10, color=COLOURS[head], alpha=0.5, linewidths=0)
        shares, middles = zip(*((share, float(np.mean(d))) for share, d in points), strict=True)
        axes[1].plot(shares, middles, "o-", color=COLOURS[head], markersize=4)
        ends.append((shares[-1], middles[-1], head, COLOURS[head]))
    if minus:
        axes[1].plot([100 * min(epochs), 100 * max(epochs)], [0, 0], color=COLOURS["gap"], linewidth=1.5)
        axes[1].set_ylabel(f"{condition.errors} − training error, minus gap's (points)")
        label(axes[1], [*ends, (100 * max(epochs), 0.0, "gap", COLOURS["gap"])])
    title = f"Training error and {condition.errors}: {condition.title}"
    name = f"overfitting-{condition.stem}"
    claim = "Without parameters of its own global average pooling overfits less than a fully connected head."
    return Answer(name, title, claim, "\n".join(lines), figure, finding)


WAYS = {"from scratch": set(), "fine-tuned": {"checkpoint"}, "probed": {"checkpoint", "freeze"}}
LINEAR = "linear probe"  # `gap` on the frozen blocks of a net of any head: one 1×1 convolution learns, for all the same


def transfer(rows: Sequence[Row]) -> list[Answer]:
    """Test error (%) on a set of nets that were trained on another one before, by head: from scratch, fine-tuned
    (`checkpoint=NAME`) and with all frozen that the checkpoint brought (`freeze=true`), under its own head and under
    `head=gap`; an answer a condition. Raises ClaimError where no run started from a checkpoint."""
    ways = [(next((way for way, names in WAYS.items() if set(row.varied) == names), None), row) for row in rows]
    conditions = sorted({row.condition for way, row in ways if way in ("fine-tuned", "probed")})
    if not conditions:
        raise ClaimError(
            "transfer: no run of the study started from a checkpoint, with nothing else varied; train some with "
            "scripts/ablate.py data=flowers17 recipe=transfer checkpoint=cifar10-gap head=gap freeze=false,true"
        )
    return [_transfer(c, [(way, row) for way, row in ways if way and row.condition == c]) for c in conditions]


def _transfer(condition: Condition, found: Sequence[tuple[str, Row]]) -> Answer:
    groups: dict[tuple[str, str, str], dict[int, Row]] = defaultdict(dict)  # by way, head and checkpoint; of seeds
    for way, row in found:
        checkpoint = row.varied.get("checkpoint", "")
        trained = _head_in(checkpoint) if row.head == "gap" and way == "probed" else None
        if trained:
            groups[LINEAR, trained, checkpoint][row.seed] = row
        if trained in (None, "gap"):
            groups[way, row.head, checkpoint][row.seed] = row
    ways, heads = [*WAYS, LINEAR], [head for head in ALL_HEADS if any(h == head for _, h, _ in groups)]
    if all(head == "gap" for way, head, _ in groups if way == LINEAR):  # the same as probed
        ways.remove(LINEAR)
        groups = defaultdict(dict, {key: runs for key, runs in groups.items() if key[0] != LINEAR})
    order = sorted(groups, key=lambda key: (ways.index(key[0]), heads.index(key[1]), key[2]))
    columns = (
        "",
        "head",
        "from",
        f"{condition.errors} of each seed (%)",
        "mean ± s.d.",
        "n",
        "minus `gap`",
        "minus from scratch",
    )
    lines = [table_row(*columns), table_rule(len(columns) - 1)]
    found_out = []
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axis = clean(figure.subplots(), "y")
    for way, head, checkpoint in order:
        runs = groups[way, head, checkpoint]
        errors = {seed: row.error for seed, row in sorted(runs.items()) if row.error is not None}
        of_gap = [key for key in order if key[:2] == (way, "gap")]
        # nets of several trainings, or published ones, whose cards tell: the one that was trained alike
        if len({key[2] for key in [*of_gap, (way, head, checkpoint)]} & {*available()}) > 1 or len(of_gap) > 1:
            of_gap = [key for key in of_gap if _training(key[2]) == _training(checkpoint)]
        cells = []
        for others in (of_gap, [("from scratch", "gap" if way == LINEAR else head, "")]):
            other = groups.get(others[0], {}) if others and others[0] != (way, head, checkpoint) else {}
            pairs = [(e, other[s].error) for s, e in errors.items() if s in other and other[s].error is not None]
            differences = [one - another for one, another in pairs]
            cells.append(paired(differences, len(runs)) if differences else "")
            if len(cells) == 1 and way != "from scratch" and head in FULLY_CONNECTED and differences:
                found_out.append((f"{way} `{head}`", differences))
        each = ", ".join(f"{row.error:.2f}" if s in errors else row.status for s, row in sorted(runs.items()))
        mean = mean_and_deviation([*errors.values()]) if errors else "none"
        lines.append(table_row(way, f"`{head}`", checkpoint, each, mean, str(len(errors)), *cells))
        at = ways.index(way) + 0.18 * (heads.index(head) - (len(heads) - 1) / 2)
        axis.scatter([at] * len(errors), [*errors.values()], s=16, color=COLOURS[head], alpha=0.7, linewidths=0)
        if errors:
            axis.hlines(np.mean([*errors.values()]), at - 0.07, at + 0.07, color=COLOURS[head], linewidth=2)
    for head in heads:
        axis.scatter([], [], s=16, color=COLOURS[head], label=head)
    axis.set(ylabel=f"{condition.errors} (%): a dot a seed, a line the mean", xlim=(-0.5, len(ways) - 0.5))
    axis.set_xticks(range(len(ways)), ways)
    axis.legend(frameon=False, fontsize=9)
    lines += ["", "Intervals (95 %) are over the seeds of new layers and order. The nets they start from are the same,"]
    lines[-1] += " and so are the test images: of other nets of these heads, and of other images, they say nothing."
    if any(way == "probed" for way, _, _ in order):
        lines[-1] += (
            " A probe trains what depends on the number of classes: the last 1×1 layer, and the linear layer of a "
            "fully connected head."
        )
    if LINEAR in ways:
        lines[-1] += (
            " The linear probe gives the frozen blocks of every net one 1×1 layer and average pooling, the same for "
            "all: so `gap` was trained to be read, and the others were not. Of `gap` these are the probed runs again, "
            "and all are compared with `gap` from scratch."
        )
    lines[-1] += f" {made_with([row for _, row in found])}"
    finding = _verdict(found_out, "error of a fully connected head minus that of `gap` (points)")
    claim = "A net with global average pooling transfers worse to another set than one with a fully connected head."
    title = f"Transfer to {condition.title}"
    return Answer(f"transfer-{condition.stem}", title, claim, "\n".join(lines), figure, finding)


def _training(checkpoint: str) -> tuple | str:
    """How a net was trained, whatever its head: of a published one recipe, epochs and seed, else its name without the
    head."""
    if checkpoint in available():
        card = read_card(checkpoint)
        return card["recipe"], card["epochs"], card["seed"]
    return HEAD_IN_NAME.sub("", checkpoint)


def _head_in(checkpoint: str) -> str | None:
    """The head that the name of a checkpoint tells, if any: a published name or the folder of a run."""
    told = HEAD_IN_NAME.findall(Path(checkpoint).name)
    return told[-1].replace("-", "_") if told else None


def _clear(differences: Sequence[float]) -> bool:
    """Whether three seeds or more, not all of one difference, leave no doubt about the sign."""
    if len(differences) < 3 or max(differences) - min(differences) < 1e-6:
        return False
    low, high = interval(differences)
    return low > 0 or high < 0
