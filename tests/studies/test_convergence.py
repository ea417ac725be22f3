from functools import partial

import pytest

from claims import cells, claim_row, drawn
from nin.errors import ClaimError
from nin.studies import convergence

CURVES = {
    ("gap", 0): "30 20 15 10",
    ("gap", 1): "30 20 16 14",
    ("gap", 2): "30 20 15 10",
    ("fc", 0): "40 25 20 15",
    ("fc", 1): "40 30 20 17",
    ("fc", 2): "40 30 25 20",
    ("fc", 9): "40 30 25 22",
}


@pytest.fixture
def run(row):
    return partial(claim_row, row)


@pytest.fixture
def rows(run):
    return [run(*key, curve=curve) for key, curve in CURVES.items()]


def test_epochs_are_paired_by_seed(run, rows, frame):
    varied = run("gap", 3, curve="1 1 1 1", model__dropout=0.4, variant="model.dropout=0.4")
    (answer,) = convergence.answers(frame(*rows, varied))
    upper, lower, _ = answer.table.split("\n\n")
    assert cells(upper, "`gap`")[0] == "2.00 ± 0.00"
    assert cells(upper, "`fc`")[0] == "3.33 ± 0.58 (1 never)"
    assert cells(lower, "`fc`") == ["+1.00, +1.00, +2.00 (mean +1.33)", "+1.00", "none"]
    # of each seed, with the ninth epoch for never: (1 + 1 + 5) / 3; (1 + 5.5) / 2, 90 % neither had; (2 + 6 + 5) / 3
    assert answer.verdict == "refuted"
    assert answer.finding.startswith("Epochs of a fully connected head minus those of `gap`")
    assert "`fc` +3.31 (+0.82 to +5.79)" in answer.finding
    assert answer.name == "convergence-cifar10-quick-8"


def test_nets_that_died_are_counted_and_not_averaged(run, rows, frame):
    dead = run("fc", 8, status="dead")
    (answer,) = convergence.answers(frame(*rows, dead, run("gap", 8, curve="30 20 15 10")))
    assert cells(answer.table, "`fc`, 1 died")[0] == "3.33 ± 0.58 (1 never)"
    assert "`fc` +3.31 (+0.82 to +5.79)" in answer.finding


def test_fully_connected_heads_that_are_sooner_support_the_claim(run, frame):
    sooner = {0: "30 19 9", 1: "30 14 9", 2: "19 14 9"}
    rows = [run("gap", seed, curve="40 30 30") for seed in sooner]
    (answer,) = convergence.answers(frame(*rows, *(run("fc", seed, curve=curve) for seed, curve in sooner.items())))
    assert answer.verdict == "supported"


def test_one_seed_decides_nothing(run, frame):
    (answer,) = convergence.answers(frame(run("gap", 0, curve="30 20 15 10"), run("fc", 0, curve="20 15 10 8")))
    assert answer.verdict == "undecided" and "`fc` -1.00 (one seed)" in answer.finding
    assert answer.finding.endswith("A verdict requires 3 seeds.")


def test_without_a_common_seed_or_a_curve_there_is_no_answer(run, frame):
    (answer,) = convergence.answers(frame(run("gap", 0, curve="30 19 14 9"), run("fc", 1, curve="30 19 14 9")))
    assert answer.verdict == "not answered"
    with pytest.raises(ClaimError, match="eval_curve=true"):
        convergence.answers(frame(run("gap", 0)))


def test_conditions_with_several_heads_come_alone(run, rows, frame):
    alone = run("gap", 0, epochs=20, curve="30 20 15 10")
    assert [answer.name for answer in convergence.answers(frame(*rows, alone))] == ["convergence-cifar10-quick-8"]
    (answer,) = convergence.answers(frame(alone))
    assert "minus `gap`" not in answer.table and answer.verdict == "not answered"


def test_an_edited_recipe_has_an_answer_of_its_own(run, rows, frame):
    edited = [run(*key, curve="20 15 10 9", recipe__lr=0.3) for key in CURVES]
    names = [answer.name for answer in convergence.answers(frame(*rows, *edited))]
    assert names == ["convergence-cifar10-quick-8-recipe.lr-0.1", "convergence-cifar10-quick-8-recipe.lr-0.3"]


def test_the_figure_has_a_dot_a_seed_and_says_who_never_got_there(rows, frame):
    (answer,) = convergence.answers(frame(*rows))
    assert {"gap", "fc (1 of 4 never)", "fc (4 of 4 never)", "gap (1 of 3 never)"} < drawn(answer.figure)
    dots = [len(points.get_offsets()) for points in answer.figure.axes[0].collections if len(points.get_paths()) == 1]
    assert sum(dots) >= 3 * len(CURVES)
