"""The paper's five tables by number: the runs that repeat them, and the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nin.studies.tables import mean_and_deviation, table_row, table_rule

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PapersRun:
    """A line of a table of the paper that this project can repeat.

    Attributes:
        what: the line in words.
        error: the paper's, in %.
        overrides: of the command that repeats it, in the authors' regime.
        blocks: the net, as model.blocks names it.
        augmented: whether it trains on cropped and mirrored images; None if the table does not say.
    """

    what: str
    error: float
    overrides: tuple[str, ...]
    blocks: str
    augmented: bool | None = None

    @property
    def data(self) -> str:
        """The name of the set."""
        return next((each.partition("=")[2] for each in self.overrides if each.startswith("data=")), "cifar10")

    @property
    def head(self) -> str:
        """The name of the head."""
        return next((each.partition("=")[2] for each in self.overrides if each.startswith("head=")), "gap")

    @property
    def variant(self) -> str:
        """The label of its rows: the net, where the set does not choose it."""
        return " ".join(each for each in self.overrides if each.startswith("model="))

    @property
    def labels(self) -> tuple[str, str]:
        """Those of its rows: the net alone, where the recipe crops and mirrors as the line does, or all settings."""
        settings = [each for each in self.overrides if each.partition("=")[0] not in ("data", "head", "recipe")]
        return self.variant, " ".join(sorted(settings))

    def of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of a study's rows that repeat it: from scratch, on all images, in any regime, without another
        variant."""
        rows = rows[(rows.data == self.data) & (rows["head"] == self.head) & (rows.status == "ok")]
        rows = rows[(rows.held_out == 0) & (rows.share == 1) & (rows.start_name == "") & rows.label.isin(self.labels)]
        return rows[rows.settings.map(self._has_its_net).astype(bool)]

    def _has_its_net(self, settings: dict) -> bool:
        augmented = any(settings[f"data.{name}"] for name in ("pad", "flip", "cutout"))
        is_net = settings["model.blocks"] == self.blocks and settings["model.backbone"] is None
        return is_net and self.augmented in (None, augmented)


def _heads(name: str, errors: dict[str, float], *overrides: str) -> list[PapersRun]:
    blocks = "cnn" if overrides else "cifar10"
    return [
        PapersRun(f"{name}, {head}", error, ("recipe=paper", *overrides, f"head={head}"), blocks)
        for head, error in errors.items()
    ]


PLAIN = ("data.pad=0", "data.flip=false")
TITLES = {1: "CIFAR-10", 2: "CIFAR-100", 3: "SVHN", 4: "MNIST", 5: "pooling against fully connected heads, CIFAR-10"}
TABLES: dict[int, list[PapersRun]] = {
    1: [
        PapersRun("NIN", 10.41, ("recipe=paper", *PLAIN), "cifar10", augmented=False),
        PapersRun("NIN, augmented", 8.81, ("recipe=paper", "data.pad=4", "data.flip=true"), "cifar10", augmented=True),
    ],
    2: [PapersRun("NIN", 35.68, ("data=cifar100", "recipe=paper_cifar100"), "cifar100")],
    3: [PapersRun("NIN", 2.35, ("data=svhn", "recipe=paper"), "svhn")],
    4: [PapersRun("NIN", 0.47, ("data=mnist", "recipe=paper"), "mnist")],
    5: [
        *_heads("mlpconv", {"fc": 11.59, "fc_dropout": 10.88, "gap": 10.41}),
        *_heads("CNN", {"fc": 17.56, "fc_dropout": 15.99, "gap": 16.46}, "model=cnn"),
    ],
}


def heads_of(data: str, label: str) -> dict[str, float]:
    """The paper's errors, in %, of the net of a set and a row's label under each head: its Table 5; else empty."""
    return {run.head: run.error for run in TABLES[5] if (run.data, run.variant) == (data, label)}


def overrides_of(run: PapersRun, others: Sequence[str] = ()) -> list[str]:
    """The overrides of a run, and others, which replace those of the same name."""
    names = {other.partition("=")[0] for other in others}
    return [each for each in run.overrides if each.partition("=")[0] not in names] + list(others)


def table(number: int, rows: pd.DataFrame) -> str:
    """A table of the paper in Markdown: its figures, and for each recipe of our rows, at its longest, the mean over
    seeds."""
    lines = [f"**The paper's Table {number}: {TITLES[number]}**", ""]
    lines += [table_row("run", "paper (%)", "here (%)", "n", "regime here"), table_rule(4)]
    for run in TABLES[number]:
        name = f"{run.what} `{' '.join(run.overrides)}`"
        ours = run.of(rows).sort_values("epochs", ascending=False, kind="stable")
        if not len(ours):
            lines.append(table_row(name, f"{run.error:.2f}", "not run", "", ""))
        for condition in ours.drop_duplicates("recipe").condition:
            runs = ours[ours.condition == condition]
            regime = condition.title.partition(", ")[2]
            lines.append(table_row(name, f"{run.error:.2f}", mean_and_deviation(runs.error), str(len(runs)), regime))
    return "\n".join(lines)


def tables(rows: pd.DataFrame) -> str:
    """The paper's tables of which at least one line has a row here; "" if none has."""
    repeated = [number for number, runs in TABLES.items() if any(len(run.of(rows)) for run in runs)]
    return "\n\n".join(table(number, rows) for number in repeated)
