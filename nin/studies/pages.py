"""Tables of the documentation that are made from rows, cards and settings, so that no page can disagree with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from nin.checks import counted, one_line
from nin.config import Config, consequential, settings_of, type_in_words
from nin.plan import HEADS
from nin.studies.tables import mean_and_deviation, table_row, table_rule

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A line of the table of results on the front page: the runs of one head in one condition without a variant.

    Attributes:
        what: the conditions in words.
        recipe, head: of the runs.
        epochs: of the runs.
        paper: the paper's error in %, if it has such an experiment.
    """

    what: str
    recipe: str
    head: str
    epochs: int
    paper: float | None = None


RESULTS = (
    Result("paper's regime, no augmentation", "paper", "gap", 150, 10.41),
    Result("the same", "paper", "fc_dropout", 150, 10.88),
    Result("the same", "paper", "fc", 150, 11.59),
    Result("`modern` recipe, augmented", "modern", "gap", 40, 8.81),
    Result("`quick` recipe, augmented", "quick", "gap", 8),
    Result("the same", "quick", "fc", 8),
    Result("the same", "quick", "fc_dropout", 8),
    Result("the same", "quick", "gmp", 8),
)


def results_table(rows: pd.DataFrame, results: Sequence[Result] = RESULTS) -> str:
    """The front page's table in Markdown, from the rows of CIFAR-10 as returned by `nin.studies.rows.ended`."""
    columns = ("CIFAR-10, test error (%)", "head", "paper", "here", "n", "epochs", "machine")
    lines = [table_row(*columns), table_rule(len(columns) - 1)]
    plain = rows[(rows.data == "cifar10") & (rows.label == "") & (rows.held_out == 0) & (rows.status == "ok")]
    for result in results:
        runs = plain[(plain.recipe == result.recipe) & (plain["head"] == result.head) & (plain.epochs == result.epochs)]
        if not len(runs):
            continue
        machine = ", ".join(dict.fromkeys(runs.hardware.map(_machine)))
        paper = f"{result.paper:.2f}" if result.paper is not None else ""
        error = mean_and_deviation(list(runs.error))
        cells = (result.what, f"`{result.head}`", paper, f"**{error}**", str(len(runs)), str(result.epochs), machine)
        lines.append(table_row(*cells))
    return "\n".join(lines)


def _machine(hardware: str) -> str:
    """A row's hardware in a few words: "cpu: AMD EPYC, 2 threads" is "2 CPU threads"."""
    if not hardware.startswith("cpu"):
        return hardware
    return f"{counted(int(hardware.split(', ')[-1].split()[0]), 'CPU thread')}"


def settings_table(kind: type = Config, prefix: str = "") -> str:
    """Every setting in Markdown, a table for each group: name, type or choices, default, one sentence."""
    hints, own, groups = get_type_hints(kind), [], []
    for each in fields(kind):
        name, hint = f"{prefix}{each.name}", hints[each.name]
        if is_dataclass(hint):
            groups.append(f"### `{name}`: {hint.__doc__}\n\n{settings_table(hint, f'{name}.')}")
            continue
        choices = each.metadata["choices"]
        values = ", ".join(f"`{choice}`" for choice in choices) if choices else type_in_words(hint)
        default = one_line(getattr(kind(), each.name))
        own.append(table_row(f"`{name}`", values, f"`{default}`", each.metadata["says"]))
    head = [table_row("setting", "values", "default", "meaning"), table_rule(3)]
    return "\n\n".join(["\n".join([*head, *own]), *groups])


def heads_table() -> str:
    """Every head in Markdown: its name, what it reads and what it does."""
    lines = [table_row("`head=`", "reads", "what it does"), table_rule(2)]
    for name, head in HEADS.items():
        lines.append(table_row(f"`{name}`", "a backbone's features" if head.of_features else "class maps", head.says))
    return "\n".join(lines)


def recipes_table(recipes: Mapping[str, Config]) -> str:
    """Recipes side by side in Markdown: the settings in which they differ, a column for each."""
    settings = {name: consequential(settings_of(config)) for name, config in recipes.items()}
    names = [name for name in next(iter(settings.values())) if name != "recipe.name"]
    differing = [name for name in names if len({str(of_recipe[name]) for of_recipe in settings.values()}) > 1]
    lines = [table_row("setting", *(f"`{name}`" for name in settings)), table_rule(len(settings))]
    for name in sorted(differing, key=lambda name: name != "trainer.max_epochs"):  # the length first
        lines.append(table_row(f"`{name}`", *(_value(of_recipe[name]) for of_recipe in settings.values())))
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(each, float) for each in value):
        return ", ".join(f"{each:.3g}" for each in value) or "none"
    return one_line(value)
