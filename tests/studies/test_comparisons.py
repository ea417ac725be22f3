from functools import partial

import pytest

from claims import claim_row
from nin.studies.comparisons import comparable, judge


@pytest.fixture
def run(row):
    return partial(claim_row, row)


def test_rows_that_vary_anything_else_are_left_out(run, frame):
    rows = [
        run("gap", 0),
        run("gap", 1, model__norm="batch", variant="model.norm=batch"),
        run("gap", 2, share=0.5),
        run("gap", 3, start="net"),
        run("gap", 4, start="net", freeze=True),
        run("gap", 5, start="net", share=0.5),
        run("gap", 6, model__blocks=[{"widths": [8, 8, None]}], variant="model.blocks=[{widths: [8, 8, null]}]"),
    ]

    def seeds(*varied):
        return [group.rows.seed.tolist() for group in comparable(frame(*rows), varied)]

    assert seeds() == [[0]]
    assert seeds("data.share") == [[0, 2]]
    assert seeds("checkpoint", "freeze") == [[0, 3, 4]]
    assert seeds("checkpoint") == [[0, 3]]


def test_conditions_are_kept_apart_unless_epochs_may_differ(run, frame):
    rows = frame(run("gap", 0), run("fc", 0), run("gap", 0, epochs=20), run("gap", 0, precision="bf16-mixed"))
    titles = [group.title for group in comparable(rows)]
    assert titles == [
        "cifar10, recipe quick, 8 epochs",
        "cifar10, recipe quick, 8 epochs, bf16-mixed",
        "cifar10, recipe quick, 20 epochs",
    ]
    assert comparable(rows)[0].stem == "cifar10-quick-8"
    merged = comparable(rows, ["trainer.max_epochs"])
    assert [(group.title, len(group.rows)) for group in merged] == [
        ("cifar10, recipe quick", 3),
        ("cifar10, recipe quick, bf16-mixed", 1),
    ]


def test_an_edited_recipe_never_counts_as_the_old_one(run, frame):
    """Both have the recipe's name and vary nothing."""
    rows = frame(run("gap", 0), run("fc", 0), run("gap", 0, recipe__lr=0.3), run("fc", 0, recipe__lr=0.3))
    old, new = comparable(rows)
    assert (len(old.rows), len(new.rows)) == (2, 2)
    assert (old.label, new.label) == ("recipe.lr=0.1", "recipe.lr=0.3")
    assert new.title == "cifar10, recipe quick, 8 epochs, recipe.lr=0.3" and new.stem == "cifar10-quick-8-recipe.lr-0.3"


def test_long_labels_make_files_of_their_own(run, frame):
    blocks = [[{"widths": [8] * 99 + [width, None]}] for width in (8, 9)]
    stems = [group.stem for group in comparable(frame(*(run("gap", 0, model__blocks=each) for each in blocks)))]
    assert len(set(stems)) == 2 and max(map(len, stems)) <= 150


def test_no_rows_make_no_group(frame):
    assert comparable(frame()) == []


@pytest.mark.parametrize(
    ("differences", "below", "verdict"),
    [
        ([-1.0, -1.1, -0.9], True, "supported"),
        ([-1.0, -1.1, -0.9], False, "refuted"),
        ([1.0, 1.1, 0.9], True, "refuted"),
        ([-1.0, 1.1, 0.9], True, "undecided"),
        ([-1.0, -1.1], True, "undecided"),
        ([-1.0, -1.0, -1.0], True, "undecided"),  # no spread: an interval says nothing
    ],
)
def test_three_seeds_and_an_interval_without_0_decide(differences, below, verdict):
    judged, finding = judge([("`fc`", differences)], "differences", below)
    assert judged == verdict and finding.startswith("differences: `fc` ")
    assert finding.endswith("A verdict requires 3 seeds.") == (len(differences) < 3)


def test_each_comparison_has_its_verdict_where_they_disagree():
    judged, finding = judge([("a", [1.0, 1.1, 0.9]), ("b", [-1.0, -1.1, -0.9]), ("c", [0.5])], "what")
    assert judged == "mixed"
    assert finding == (
        "what: a +1.00 (+0.75 to +1.25), refuted; b -1.00 (-1.25 to -0.75), supported; c +0.50 (one seed), undecided."
    )
    judged, finding = judge([("a", [1.0, 1.1, 0.9]), ("b", [2.0, 2.1, 1.9])], "what")
    assert (judged, finding) == ("refuted", "what: a +1.00 (+0.75 to +1.25), b +2.00 (+1.75 to +2.25).")
    assert judge([], "what")[0] == "not answered"
