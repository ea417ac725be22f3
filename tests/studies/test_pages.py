"""The front page's table and findings: what they count, and what they refuse. The other pages: tests/test_pages.py."""

import itertools
import json

import pytest

from nin.errors import RowsError
from nin.studies import pages


def settings_of(variant):
    pairs = (each.split("=") for each in variant.split())
    return {name.replace(".", "__"): json.loads(value) for name, value in pairs}


@pytest.fixture
def published(row):
    """One run of each line of the front page."""

    def make(error=10.0, **changes):
        return [
            row(
                each.head,
                error=error,
                variant=each.variant,
                recipe__name=each.recipe,
                data__name=each.data,
                trainer__max_epochs=each.epochs,
                **settings_of(each.variant),
            )
            | changes
            for each in pages.RESULTS
        ]

    return make


def test_two_seeds_are_too_few_for_a_significant_difference(frame, row, published):
    found = pages.findings(frame(*published(), row(seed=1, error=9.0)))
    assert "`fc` minus `gap` is 0.00 points (n = 1, too few to judge)" in found
    more = [row(head, seed, 10.0 + seed + 3.0 * (head == "fc")) for head in ("gap", "fc") for seed in (1, 2)]
    assert "is 2.00 points (95 % interval " in pages.findings(frame(*published(), *more))
    assert "unknown (n = 0, too few to judge)" in pages.findings(
        frame(*(each for each in published() if (each["recipe"], each["head"]) != ("quick", "fc")), row("fc", 5))
    )


def test_runs_of_another_precision_and_of_uncommitted_files_do_not_count(frame, row, published):
    plain = pages.results_table(frame(*published()))
    others = [row(seed=seed, error=50.0, precision="bf16-mixed", torch="x") for seed in range(1)]
    others += [row(seed=seed, error=50.0, clean=False) for seed in range(1, 5)]
    assert pages.results_table(frame(*published(), *others)) == plain


def test_a_run_on_two_machines_names_both():
    assert pages._machine("cpu: AMD EPYC, 2 threads, then NVIDIA H200") == "2 CPU threads, then H200"


def test_heads_are_compared_in_one_precision(frame, row, published):
    """Though most runs of `gap` are in another one."""
    made = [row(head, seed, 10.0 + seed + (head == "fc") * seed / 9) for head in ("gap", "fc") for seed in (1, 2, 3)]
    others = [row("gap", seed, 5.0, precision="16-mixed") for seed in range(5)]
    found = pages.findings(frame(*published(), *made, *others))
    assert "`fc` minus `gap` is 0.17 points" in found and "n = 4" in found
    plain = [each for each in published() if (each["head"], each["recipe"]) != ("fc", "quick")]
    fc = [row("fc", seed, 9.0, precision="16-mixed") for seed in range(3)]
    assert "unknown (n = 0, too few to judge)" in pages.findings(frame(*plain, *made[:3], *fc))


def test_a_line_without_runs_is_named_instead_of_left_out(frame, row, published):
    edited = [row(recipe__lr=0.05, seed=1)]  # after an edit of the recipe all its rows have a label
    for rows in (published()[1:], published(clean=False), [*published(), *edited]):
        for page in (pages.results_table, pages.findings):
            with pytest.raises(RowsError, match="the front page requires runs of data=cifar10 recipe="):
                page(frame(*rows))


def test_a_line_of_a_variant_has_that_variant_alone(frame, row, published):
    best = next(each for each in pages.RESULTS if each.variant)
    named = {"recipe__name": best.recipe, "trainer__max_epochs": best.epochs}
    plain = pages.results_table(frame(*published()))
    others = [
        row(seed=1, error=50.0, **named),
        row(seed=1, error=50.0, variant="recipe.ema=0.9", recipe__ema=0.9, **named),
    ]
    assert pages.results_table(frame(*published(), *others)) == plain
    second = row(seed=1, error=20.0, variant=best.variant, **named, **settings_of(best.variant))
    assert "**15.00 ± 7.07** | 2 | 200 |" in pages.results_table(frame(*published(), second))
    without = [each for each in published() if each["variant"] == ""]
    with pytest.raises(RowsError, match=f"of a commit and with {best.variant}"):
        pages.results_table(frame(*without))


@pytest.mark.parametrize(
    ("recipe", "opening"), [("paper", "- **{} the paper"), ("paper_fast", "Its heads {} the paper")]
)
@pytest.mark.parametrize("order", itertools.permutations(["gap", "fc_dropout", "fc"]))
def test_the_order_of_the_heads_is_that_of_the_rows(recipe, opening, order, frame, published):
    made = [
        each | {"test_error": 10.0 + order.index(each["head"])} if each["recipe"] == recipe else each
        for each in published()
    ]
    agree, differ = ("Agrees with", "Contradicts") if recipe == "paper" else ("have", "do not have")
    is_papers = order == ("gap", "fc_dropout", "fc")
    assert opening.format(agree if is_papers else differ) in pages.findings(frame(*made))


def test_a_difference_is_that_of_the_printed_figures(frame, row, published):
    settings = {"recipe__name": "paper", "trainer__max_epochs": 150}
    made = [each for each in published() if (each["recipe"], each["head"]) != ("paper", "gap")]
    made += [row("gap", seed, error, **settings) for seed, error in enumerate((10.69, 10.72))]
    assert "`gap` 10.71 %" in pages.findings(frame(*made)) and "`gap` is 0.30 points hi" in pages.findings(frame(*made))
