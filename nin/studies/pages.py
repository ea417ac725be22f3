"""Tables of the documentation that are made from rows, cards and settings, so that no page can disagree with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any, get_type_hints

from nin.checks import counted, one_line
from nin.config import Config, consequential, settings_of, type_in_words
from nin.errors import RowsError
from nin.plan import HEADS
from nin.studies.tables import LEAST_SEEDS, interval, mean_and_deviation, paired_differences, table_row, table_rule

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A line of the table of results on the front page: the runs of one head in one condition.

    Attributes:
        what: the conditions in words.
        recipe, head: of the runs.
        epochs: of the runs.
        paper: the paper's error in %, if it has such an experiment.
        data: the set.
        shown: whether it is a line of the table; `findings` reads all.
        variant: what the runs vary of their recipe, as their rows are labelled.
    """

    what: str
    recipe: str
    head: str
    epochs: int
    paper: float | None = None
    data: str = "cifar10"
    shown: bool = True
    variant: str = ""


BEST = "data.cutout=12 recipe.weight_decay=0.04"  # as the run of cifar10-gap-best was started, before `recipe=best`
RESULTS = (
    Result("CIFAR-10, paper's regime (150 of 260 epochs, bf16), not augmented", "paper", "gap", 150, 10.41),
    Result("the same", "paper", "fc_dropout", 150, 10.88),
    Result("the same", "paper", "fc", 150, 11.59),
    Result("the same net and data under Muon: `paper_fast`", "paper_fast", "gap", 60, 10.41),
    Result("the same", "paper_fast", "fc_dropout", 60, 10.88),
    Result("the same", "paper_fast", "fc", 60, 11.59),
    Result("CIFAR-10, augmented, recipe `modern`", "modern", "gap", 40, 8.81),
    Result("the same", "modern", "fc", 40),
    Result("the same", "modern", "fc_dropout", 40),
    Result("the same", "modern", "gmp", 40),
    Result("the same in 8 epochs: `quick`", "quick", "gap", 8),
    Result("the same", "quick", "fc", 8, shown=False),
    Result("the same", "quick", "fc_dropout", 8, shown=False),
    Result("the same", "quick", "gmp", 8, shown=False),
    Result("`best`: `modern` with cutout and more decay", "modern", "gap", 200, 8.81, variant=BEST),
    Result("CIFAR-100, augmented (paper: not), `modern`", "modern", "gap", 40, 35.68, "cifar100"),
    Result("MNIST, `modern` without crops and flips", "modern", "gap", 20, 0.47, "mnist"),
)


def results_table(rows: pd.DataFrame, results: Sequence[Result] = RESULTS) -> str:
    """The front page's table in Markdown, from the rows as returned by `nin.studies.rows.ended`.

    Raises:
        RowsError: a line has no rows, as after a recipe was edited: its rows then have a label.
    """
    columns = ("test error (%)", "head", "paper", "here", "n", "epochs", "machine")
    lines = [table_row(*columns), table_rule(len(columns) - 1)]
    for result in filter(lambda each: each.shown, results):
        runs = _runs_of(rows, [result])[result.head]
        machine = ", ".join(dict.fromkeys(runs.hardware.map(_machine)))
        paper = f"{result.paper:.2f}" if result.paper is not None else ""
        error = mean_and_deviation(list(runs.error))
        cells = (result.what, f"`{result.head}`", paper, f"**{error}**", str(len(runs)), str(result.epochs), machine)
        lines.append(table_row(*cells))
    return "\n".join(lines)


def findings(rows: pd.DataFrame, results: Sequence[Result] = RESULTS) -> str:
    """What agrees with the paper and what differs from it, for the front page, from the same rows.

    The first sentence compares the order of the heads in the paper's regime with Table 5. The second has the
    differences from its errors, and the order in `quick` with the paired difference between `fc` and `gap`. The third
    has the error of `gap` in `paper_fast`, and whether its heads have the order of Table 5.

    Raises:
        RowsError: as `results_table` does.
    """
    runs = {
        recipe: _runs_of(rows, [each for each in results if each.recipe == recipe]) for recipe in ("paper", "quick")
    }
    error = {recipe: {head: each.error.mean() for head, each in heads.items()} for recipe, heads in runs.items()}
    paper = {each.head: each.paper for each in results if each.recipe == "paper" and each.paper is not None}
    here = sorted(error["paper"], key=error["paper"].get)
    agrees = here == sorted(paper, key=paper.get)
    seeds = {len(each) for each in runs["paper"].values()}
    order = (
        f"- **{'Agrees with' if agrees else 'Contradicts'} the paper{_reach(seeds)}:** in the paper's regime the heads "
        f"{'have' if agrees else 'do not have'} the order of its Table 5: {_listed(error['paper'])}. "
        f"{_certainty(seeds)}"
    )
    off = ", ".join(f"`{head}` is {_points(error['paper'][head], paper[head])}" for head in here)
    fc, gap = (runs["quick"][head] for head in ("fc", "gap"))
    alike = set(fc.precision) == set(gap.precision)
    minus = paired_differences(fc, gap) if alike else []
    differs = (
        f"- **Differs:** {off} than in the paper. In `quick` the order is "
        f"{', '.join(f'`{head}`' for head in sorted(error['quick'], key=error['quick'].get))}; `fc` minus `gap` is "
        f"{_judged(minus)}."
    )
    text = f"{order}\n{differs}\n{_elsewhere(rows, results)}"
    return re.sub(r"(?<=[ (])-(?=\d)", "−", text)


def _judged(minus: Sequence[float]) -> str:
    """The mean of paired differences, and whether it is significant."""
    if len(minus) < LEAST_SEEDS:
        few = f"n = {len(minus)}, too few to judge"
        return f"{mean(minus):.2f} points ({few})" if minus else f"unknown ({few})"
    low, high = interval(minus)
    significant = "significant" if low > 0 or high < 0 else "not significant"
    return f"{mean(minus):.2f} points (95 % interval {low:.2f} to {high:.2f}, n = {len(minus)}), {significant}"


def _reach(seeds: set[int]) -> str:
    return ", as far as one seed tells" if min(seeds) == 1 else ""


def _certainty(seeds: set[int]) -> str:
    """What the numbers of seeds of the heads let one conclude of the first two."""
    chance = ": the first two may differ by chance" if min(seeds) < 3 else ""
    return f"{_seeds(seeds)}{chance}."


def _seeds(seeds: set[int]) -> str:
    """ "n = 1 to 3" or "n = 1 each", of the heads' numbers of seeds."""
    return f"n = {min(seeds)}" + (f" to {max(seeds)}" if len(seeds) > 1 else " each")


def _elsewhere(rows: pd.DataFrame, results: Sequence[Result]) -> str:
    """What the paper's net reaches on its data with newer training."""
    fast = _runs_of(rows, [each for each in results if each.recipe == "paper_fast"])
    papers = {each.head: each.paper for each in results if each.recipe == "paper_fast" and each.paper is not None}
    errors, seeds = list(fast["gap"].error), {len(each) for each in fast.values()}
    agrees = sorted(fast, key=lambda head: fast[head].error.mean()) == sorted(papers, key=papers.get)
    return (
        "- **With newer training:** `paper_fast`, the paper's net on the same images under the optimiser Muon, has "
        f"{mean_and_deviation(errors)} % under `gap` (n = {len(errors)}; paper: {papers['gap']:.2f}). Its heads "
        f"{'have' if agrees else 'do not have'} the paper's order ({_seeds(seeds)})."
    )


def _runs_of(rows: pd.DataFrame, results: Sequence[Result]) -> dict[str, pd.DataFrame]:
    """The runs of each result by head; those of files that no commit has do not count. Raises RowsError where a
    result has none."""
    counted_rows = rows[(rows.held_out == 0) & (rows.status == "ok") & rows.clean]
    by_facts = {}
    for facts, regime in counted_rows.groupby(["data", "recipe", "epochs", "label"]):
        usual = _usual(regime.precision)
        for head, runs in regime.groupby("head"):
            of_precision = usual if (runs.precision == usual).any() else _usual(runs.precision)
            by_facts[*facts, head] = runs[runs.precision == of_precision]
    found = {}
    for each in results:
        facts = (each.data, each.recipe, each.epochs, each.variant, each.head)
        if facts not in by_facts:
            line = f"data={each.data} recipe={each.recipe} head={each.head} trainer.max_epochs={each.epochs}"
            variant = f"with {each.variant}" if each.variant else "without a variant"
            raise RowsError(f"the front page requires runs of {line}, of a commit and {variant}; train some")
        found[each.head] = by_facts[facts]
    return found


def _usual(precisions: pd.Series) -> str:
    """The precision of most runs: errors in several precisions have neither a common mean nor a difference."""
    return precisions.mode().iloc[0]


def _listed(error: Mapping[str, float]) -> str:
    return ", ".join(f"`{head}` {error[head]:.2f} %" for head in sorted(error, key=error.__getitem__))


def _points(error: float, other: float) -> str:
    """How much the error, as it is printed, is higher or lower than another one."""
    difference = float(f"{error:.2f}") - other
    return f"{abs(difference):.2f} points {'higher' if difference > 0 else 'lower'}"


def _machine(hardware: str) -> str:
    """A row's hardware in a few words: "cpu: AMD EPYC, 2 threads" is "2 CPU threads", "NVIDIA H200" is "H200"."""
    if ", then " in hardware:  # a run that was resumed on another machine
        return ", then ".join(map(_machine, hardware.split(", then ")))
    threads = re.fullmatch(r"cpu: .*, (\d+) threads?", hardware)
    return counted(int(threads[1]), "CPU thread") if threads else hardware.removeprefix("NVIDIA ")


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
