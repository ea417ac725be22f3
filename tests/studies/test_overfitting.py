from functools import partial

import pytest

from claims import body, claim_row, drawn
from nin.errors import ClaimError
from nin.studies import overfitting


@pytest.fixture
def run(row):
    return partial(claim_row, row)


@pytest.fixture
def rows(run):
    """Two heads that are equal on all images, and apart on 5 % of them."""
    made = [run(head, seed, 10 + 0.1 * seed) for head in ("gap", "fc") for seed in range(3)]
    for seed in range(3):
        made.append(run("gap", seed, 40 + seed, 1.0, 0.05, 160))
        made.append(run("fc", seed, 45 + seed + 0.1 * (seed == 1), 0.0, 0.05, 160))
    return made


def test_the_longest_runs_of_each_share_count(run, rows, frame):
    shorter = run("gap", 0, 80.0, 60.0, 0.05, 8)
    varied = run("gap", 0, 1.0, share=0.05, epochs=160, model__dropout=0.4, variant="model.dropout=0.4")
    (answer,) = overfitting.answers(frame(*rows, shorter, varied))
    lines = body(answer.table)
    assert [line[:4] for line in lines] == [
        ["5 %", "160", "`gap`", "3"],
        ["5 %", "160", "`fc`", "3"],
        ["100 %", "8", "`gap`", "3"],
        ["100 %", "8", "`fc`", "3"],
    ]
    assert lines[0][4:] == ["1.00 ± 0.00", "41.00 ± 1.00", "40.00 ± 1.00", ""]
    assert lines[1][7].startswith("+5.03 (")
    assert answer.verdict == "supported in part"  # with all images the heads are equal
    assert answer.finding.startswith("Test error minus training error, of a fully connected head minus that of `gap`")
    assert "`fc` with 5 % of the images +6.03 (+5.89 to +6.18), supported" in answer.finding
    assert answer.name == "overfitting-cifar10-quick"


def test_a_longer_run_of_one_head_alone_does_not_count(run, rows, frame):
    longer = [run("gap", seed, 8.0, epochs=40) for seed in range(3)]
    (answer,) = overfitting.answers(frame(*rows, *longer))
    assert ["100 %", "8", "`fc`", "3"] in [line[:4] for line in body(answer.table)]


def test_nets_that_died_are_counted_and_not_averaged(run, rows, frame):
    (answer,) = overfitting.answers(frame(*rows, run("fc", 3, share=0.05, epochs=160, status="dead")))
    assert "| 5 % | 160 | `fc` | 3, 1 died |" in answer.table


def test_seeds_that_disagree_decide_nothing(run, rows, frame):
    doubtful = [run("fc", seed, 45 + 10 * seed, share=0.05, epochs=160) for seed in range(3)]
    (answer,) = overfitting.answers(frame(*(row for row in rows if row["head"] == "gap"), *doubtful))
    assert answer.verdict == "undecided"


def test_held_out_images_judge_where_there_are_some(run, rows, frame):
    held_out = [
        run(row["head"], row["seed"], row["test_error"], share=row["settings"]["data.share"], epochs=row["epochs"],
            data__val=5000, val_error=99.0)
        for row in rows
    ]  # fmt: skip
    answers = overfitting.answers(frame(*rows, *held_out))
    assert ["99.00" in answer.table for answer in answers] == [False, True]
    assert answers[1].title.startswith("Training error and held-out error: ")
    assert "held-out error (%)" in answers[1].table


def test_one_share_alone_is_no_study_of_overfitting(run, frame):
    with pytest.raises(ClaimError, match=r"data\.share="):
        overfitting.answers(frame(run("gap", 0), run("fc", 0)))


def test_a_figure_compares_with_gap_where_it_can(run, rows, frame):
    (answer,) = overfitting.answers(frame(*rows))
    assert len(answer.figure.axes) == 2
    assert {"5 %\n160 epochs", "100 %\n8 epochs", "gap", "fc", "test error"} < drawn(answer.figure)
    (alone,) = overfitting.answers(frame(*(row for row in rows if row["head"] == "fc")))
    assert len(alone.figure.axes) == 1 and alone.verdict == "not answered"
    assert body(alone.table)[0][7] == "no common seed"


def test_heads_of_which_all_died_are_named(frame, row):
    statuses = {"gap": "ok", "fc": "dead"}
    rows = frame(*(row(head, seed, status=status) for head, status in statuses.items() for seed in range(3)))
    assert overfitting.all_died(rows) == "All runs died of `fc` at 100 % (3)."
    assert overfitting.all_died(rows[rows["head"] == "gap"]) == ""
