import pytest

from claims import cells, claim_row, drawn
from nin.errors import ClaimError
from nin.studies import replacement, rows

CURVES = {"train_error": [50.0, 1.0], "train_loss": [2.0, 0.1], "test_loss": [2.5, 0.5]}


def run(row, head, seed, error, frozen=True, **settings):
    settings = {"model__backbone": "squeezenet1_1", "freeze": frozen, **settings}
    variant = "freeze=true model.weights=file" if frozen else ""
    made = claim_row(row, head, seed, error, curve=f"{error + 10} {error}", variant=variant, **settings)
    return {**made, "curves": CURVES}


def frame_of(tmp_path, made):
    rows.append(tmp_path / "runs.csv", made)
    return rows.ended(tmp_path / "runs.csv")


def test_heads_are_compared_with_pooling_seed_by_seed(tmp_path, row):
    made = [run(row, "gap_article", seed, 10.0 + seed) for seed in range(3)]
    made += [run(row, "fc_article", seed, 12.0 + seed + 0.1 * (seed == 1)) for seed in range(3)]
    made += [run(row, "gmp_article", seed, 9.0 + 3 * seed) for seed in range(3)]
    made += [run(row, "gap", seed, 1.0) for seed in range(3)]  # of another kind
    (answer,) = replacement.answers(frame_of(tmp_path, made))
    assert answer.verdict == "supported" and "squeezenet1_1, frozen" in answer.title
    assert "`fc_article` +2.03 (+1.89 to +2.18)" in answer.finding and "gmp" not in answer.finding
    pooling, fc = cells(answer.table, "`gap_article`"), cells(answer.table, "`fc_article`")
    assert pooling == ["10.00, 11.00, 12.00", "11.00 ± 1.00", "3", "2.00 ± 0.00", "0.50 ± 0.00", "10.00 ± 0.00", ""]
    assert fc[-1] == "+2.03 (+1.89 to +2.18)" and "`gap`" not in answer.table
    assert "The backbone was frozen" in answer.table
    assert {"epoch", "cross-entropy", "fc_article, mean of 3 seeds", "training images"} <= drawn(answer.figure)


def test_frozen_and_fine_tuned_runs_are_kept_apart(tmp_path, row):
    made = [
        run(row, head, seed, 10.0 + seed * (head == "gap_article"), frozen)
        for head in ("gap_article", "fc_article") for seed in range(2) for frozen in (False, True)
    ]  # fmt: skip
    found = replacement.answers(frame_of(tmp_path, made))
    assert [answer.name.rpartition("-")[2] for answer in found] == ["tuned", "frozen"]
    assert all(answer.verdict == "undecided" for answer in found)  # two seeds


def test_trained_weights_and_none_are_kept_apart(tmp_path, row):
    made = [
        run(row, head, seed, 10.0 + 30 * (weights == "none") + seed * (1 + (head == "fc_article")), False, **{
            "model__weights": weights
        })
        for head in ("gap_article", "fc_article") for seed in range(3) for weights in ("imagenet", "none")
    ]  # fmt: skip
    for each in made:
        each["variant"] = f"model.weights={each['settings']['model.weights']}"
    answers = replacement.answers(frame_of(tmp_path, made))
    assert [cells(answer.table, "`gap_article`")[1:3] for answer in answers] == [
        ["11.00 ± 1.00", "3"],
        ["41.00 ± 1.00", "3"],
    ]
    assert ['model.weights="none"' in answer.title for answer in answers] == [False, True]
    assert len({answer.name for answer in answers}) == 2


def test_curves_of_several_lengths_are_drawn(tmp_path, row):
    made = [run(row, head, seed, 10.0) for head in ("gap_article", "fc_article") for seed in range(2)]
    made[0] = {**made[0], "test_curve": (50.0,), "curves": {}}
    made[1] = {**made[1], "curves": {"test_loss": [2.0], "train_error": []}}
    (answer,) = replacement.answers(frame_of(tmp_path, made))
    assert answer.verdict == "undecided"


def test_a_study_without_pooling_or_with_it_alone_has_no_answer(tmp_path, row):
    made = [run(row, "gap_article", 0, 10.0), run(row, "fc_article", 0, 9.0, frozen=False)]
    made += [run(row, "gmp_article", 0, 12.0)]  # no fully connected layers
    with pytest.raises(ClaimError, match=r"claim=replacement: .* experiment=flowers17_squeezenet"):
        replacement.answers(frame_of(tmp_path, made))


def test_mean_change_is_the_mean_change_of_the_last_epochs():
    assert replacement.mean_change([90.0] * 20 + [10.0, 12.0] * 5) == 2.0
    assert replacement.mean_change([5.0, 5.0]) == 0.0
