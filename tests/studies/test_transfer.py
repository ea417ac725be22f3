from functools import partial

import pytest

from claims import body, claim_row, drawn
from nin import pretrained
from nin.errors import ClaimError
from nin.studies import comparisons, transfer


@pytest.fixture
def run(row):
    return partial(claim_row, row)


@pytest.fixture
def rows(run):
    """Both heads from scratch, fine-tuned and probed; `fc` is 5 points worse."""
    ways = [({}, 30.0), ({"start": "net"}, 20.0), ({"start": "net", "freeze": True}, 50.0)]
    made = []
    for way, error in ways:
        made += [run("gap", seed, error + seed, **way) for seed in range(3)]
        made += [run("fc", seed, error + seed + 5 + 0.1 * (seed == 1), **way) for seed in range(3)]
    return made


def from_scratch(row):
    return row["start_name"] == ""


def test_each_way_is_compared_with_gap_and_with_training_from_scratch(run, rows, frame):
    dead = run("fc", 0, status="dead")
    rows = [dead if from_scratch(row) and (row["head"], row["seed"]) == ("fc", 0) else row for row in rows]
    varied = run("gap", 0, 1.0, start="net", model__dropout=0.4, variant="model.dropout=0.4")
    another = run("fc", 0, 1.0, start="another")
    (answer,) = transfer.answers(frame(*rows, varied, another))
    lines = body(answer.table)
    assert [line[:3] for line in lines] == [
        ["from scratch", "`gap`", ""],
        ["from scratch", "`fc`", ""],
        ["fine-tuned", "`gap`", "net"],
        ["fine-tuned", "`fc`", "another"],
        ["fine-tuned", "`fc`", "net"],
        ["probed", "`gap`", "net"],
        ["probed", "`fc`", "net"],
    ]
    assert lines[1][3:6] == ["dead, 36.10, 37.00", "36.55 ± 0.64", "2"]
    assert lines[2][3:] == ["20.00, 21.00, 22.00", "21.00 ± 1.00", "3", "", "-10.00 (3 times the same)"]
    assert lines[6][6].startswith("+5.03 (") and lines[6][7].startswith("+20.00 (")
    assert answer.verdict == "refuted in part"  # of another there is one seed
    assert "probed `fc` +5.03 (" in answer.finding and "scratch" not in answer.finding


def test_without_a_fully_connected_head_there_is_no_verdict(rows, frame):
    (answer,) = transfer.answers(frame(*(row for row in rows if row["head"] == "gap" or from_scratch(row))))
    assert answer.verdict == "not answered"


def test_the_mean_decides_and_not_a_single_seed(run, frame):
    mixed = dict(enumerate((19.9, 26.0, 27.0, 28.1, 29.2)))  # the first is below gap's
    rows = [run("gap", seed, 20.0 + seed, start="net") for seed in mixed]
    rows += [run("fc", seed, error, start="net") for seed, error in mixed.items()]
    assert transfer.answers(frame(*rows))[0].verdict == "refuted"


def test_heads_may_disagree_by_way(rows, run, frame):
    better = [
        run("fc", row["seed"], 10.0 + 0.9 * row["seed"], start="net", freeze=True)
        if row["head"] == "fc" and row["settings"]["freeze"]
        else row
        for row in rows
    ]
    assert transfer.answers(frame(*better))[0].verdict == "mixed"


def tuned(run, heads_of):
    """Five seeds of each head and start, `fc` 6 points worse than `gap`."""
    return [
        run(head, seed, 20.0 + seed + (6 + 0.1 * seed) * (head == "fc"), start=start)
        for head, start in heads_of
        for seed in range(5)
    ]


def test_published_nets_are_compared_where_their_cards_say_that_they_were_trained_alike(run, frame, monkeypatch):
    """By the sha256 of the weights: a net that was published again is another net."""
    cards = {
        "a-gap": {"recipe": "quick", "epochs": 8, "seed": 0},
        "a-fc": {"recipe": "quick", "epochs": 8, "seed": 0},
        "b-gap": {"recipe": "paper", "epochs": 260, "seed": 0},
    }
    sha256 = {name: f"{name}-".ljust(64, "0") for name in cards}  # as in the rows
    monkeypatch.setattr(comparisons, "available", lambda: list(cards))
    monkeypatch.setattr(comparisons, "read_card", lambda name: {"data": "svhn", "sha256": sha256[name], **cards[name]})

    def finding(*heads_of):
        answers = transfer.answers(frame(*tuned(run, heads_of)))
        return next(answer.finding for answer in answers if "| `fc` |" in answer.table)

    alike = finding(("gap", "a-gap"), ("fc", "a-fc"))
    assert "fine-tuned `fc` +6.20 (" in alike
    assert finding(("gap", "b-gap"), ("fc", "a-fc")).startswith("Judging the claim requires")  # trained otherwise
    assert finding(("gap", "a-gap"), ("gap", "b-gap"), ("fc", "a-fc")) == alike  # the right one of two
    assert finding(("gap", "a-gap"), ("fc", "run")) == alike  # of a run nothing is known, and there is one `gap`
    assert finding(("gap", "run-1"), ("gap", "run-2"), ("fc", "run")).startswith("Judging the claim requires")
    sha256["a-fc"] = "f" * 64
    assert finding(("gap", "a-gap"), ("gap", "b-gap"), ("fc", "a-fc")).startswith("Judging the claim requires")


def test_starts_that_were_trained_otherwise_are_answered_apart(run, frame, monkeypatch):
    """With the same runs from scratch beside each, and a picture each."""
    cards = {
        "a-gap": {"recipe": "modern", "epochs": 40, "settings": {"recipe": {"lr": 0.1}}},
        "a-fc": {"recipe": "modern", "epochs": 40, "settings": {"recipe": {"lr": 0.1}}},
        "b-gap": {"recipe": "modern", "epochs": 40, "settings": {"recipe": {"lr": 0.2}}},
        "c-gap": {"recipe": "quick", "epochs": 8, "settings": {"recipe": {"lr": 0.1}}},
    }
    facts = {name: {"data": "svhn", "seed": 0, "sha256": f"{name}-".ljust(64, "0"), **cards[name]} for name in cards}
    monkeypatch.setattr(comparisons, "available", lambda: list(cards))
    monkeypatch.setattr(comparisons, "read_card", lambda name: facts[name])
    starts = [("gap", "a-gap"), ("gap", "c-gap"), ("gap", "run"), ("fc", "a-fc"), ("gap", "b-gap")]
    rows = [run("gap", 0), *tuned(run, starts)]
    answers = transfer.answers(frame(*rows))
    froms = [[line[2] for line in body(answer.table)] for answer in answers]
    assert froms == [["", "a-gap", "a-fc"], ["", "b-gap"], ["", "c-gap"], ["", "run"]]
    assert [answer.title.partition(", from nets of ")[2] for answer in answers] == [
        "modern, 40 epochs",
        "modern, 40 epochs, as b-gap",
        "quick, 8 epochs",
        "unknown training",
    ]
    assert len({answer.name for answer in answers}) == 4 and answers[0].name.endswith("-modern-40-epochs")
    (alone,) = transfer.answers(frame(*(row for row in rows if row["start_name"] in ("", "a-gap", "a-fc", "run"))))
    assert ", from nets of" not in alone.title and len(body(alone.table)) == 4


def test_a_net_that_was_published_again_has_a_line_of_its_own(run, frame):
    rows = tuned(run, [("gap", "net"), ("fc", "net")])
    again = [{**row, "start_sha256": "e" * 64} for row in rows if row["head"] == "fc"]
    lines = body(transfer.answers(frame(*rows, *again))[0].table)
    assert [line[:3] for line in lines] == [
        ["fine-tuned", "`gap`", "net (net-0000)"],
        ["fine-tuned", "`fc`", "net (eeeeeeee)"],
        ["fine-tuned", "`fc`", "net (net-0000)"],
    ]


def test_a_net_has_the_name_that_it_is_published_under_today(run, frame, monkeypatch):
    card = {"data": "svhn", "recipe": "quick", "epochs": 8, "seed": 0, "sha256": "net-".ljust(64, "0")}
    monkeypatch.setattr(comparisons, "available", lambda: ["net-quick"])
    monkeypatch.setattr(comparisons, "read_card", lambda name: card)
    lines = body(transfer.answers(frame(*tuned(run, [("gap", "net"), ("fc", "other")])))[0].table)
    assert [line[2] for line in lines] == ["net-quick", "other"]


def test_a_net_that_was_renamed_between_its_runs_is_one_start(run, frame):
    rows = tuned(run, [("gap", "net"), ("fc", "net")])
    renamed = [{**row, "start_name": "new"} if row["seed"] == 2 else row for row in rows]
    (before,), (after,) = (transfer.answers(frame(*each)) for each in (rows, renamed))
    assert body(after.table) == body(before.table) and after.finding == before.finding


@pytest.mark.parametrize("how", ["row", "card"])
def test_further_training_on_the_same_set_is_no_transfer(run, rows, frame, how):
    """Known from the row, or from the card of the published net that the run started from."""
    known = {"start_data": "cifar10"} if how == "row" else {"start_sha256": pretrained.read_card("mnist-gap")["sha256"]}
    further = [{**run(head, 5, 1.0, start="it"), **known} for head in ("gap", "fc")]
    if how == "card":
        further = [{**row, "data": "mnist", "settings": {**row["settings"], "data.name": "mnist"}} for row in further]
    assert comparisons.refined(frame(*rows, *further)).tolist() == [False] * len(rows) + [True] * 2
    (with_them,), (without,) = (transfer.answers(frame(*each)) for each in ([*rows, *further], rows))
    assert (with_them.table, with_them.finding) == (without.table, without.finding)
    with pytest.raises(ClaimError, match="no run"):
        transfer.answers(frame(*further))


@pytest.mark.parametrize("same", [True, False])
def test_of_ones_own_pictures_the_same_are_the_same_set(run, frame, same):
    known = {"data__name": "folder", "data__sha256": "a" * 64, "recipe__name": "refine"}
    made = frame({**run("gap", 0, 1.0, start="it", **known), "start_data": f"folder {('a' if same else 'b') * 64}"})
    assert comparisons.refined(made).tolist() == [same]


def test_training_on_another_set_is_transfer_by_any_recipe(run, frame):
    further = [run(head, 0, 1.0, start="it", recipe__name="refine") for head in ("gap", "fc")]
    made = frame(*({**row, "start_data": "cifar100"} for row in further))
    assert comparisons.refined(made).tolist() == [False, False] and len(transfer.answers(made)) == 1


def test_without_a_start_there_is_no_transfer(run, frame):
    with pytest.raises(ClaimError, match="checkpoint="):
        transfer.answers(frame(run("gap", 0), run("fc", 0)))


@pytest.fixture
def probes(run):
    """The last layer of `gap` on the blocks of three nets, whose names do not tell their heads, and `fc` on its own."""
    errors = {
        ("gap", "one", "gap"): 40.0,
        ("gap", "two", "fc_dropout"): 44.0,
        ("gap", "three", "fc"): 47.0,
        ("fc", "three", "fc"): 30.0,
    }
    return [
        run(head, seed, error + seed + 0.1 * (seed == 1) * (name != "one"), start=(name, of), freeze=True)
        for (head, name, of), error in errors.items()
        for seed in range(3)
    ]


def test_a_linear_probe_is_the_same_for_the_blocks_of_every_head(probes, frame):
    (answer,) = transfer.answers(frame(*probes))
    assert [line[:3] for line in body(answer.table)] == [
        ["probed", "`gap`", "one"],
        ["probed", "`fc`", "three"],
        ["linear probe", "`gap`", "one"],
        ["linear probe", "`fc_dropout`", "two"],
        ["linear probe", "`fc`", "three"],
    ]
    assert "probed `fc` -9.97 (-10.11 to -9.82), supported" in answer.finding
    assert "linear probe `fc_dropout` +4.03 (+3.89 to +4.18), refuted; linear probe `fc` +7.03" in answer.finding
    assert "The linear probe puts" in answer.table
    assert {"linear probe", "fc_dropout"} < drawn(answer.figure)
    assert "from scratch" not in drawn(answer.figure)  # there is no such run


def test_of_gap_alone_a_linear_probe_is_what_probed_is(probes, frame):
    own = [row for row in probes if row["head"] == row["start_head"]]
    (answer,) = transfer.answers(frame(*own))
    assert "linear probe" not in answer.table and "linear probe" not in drawn(answer.figure)


def test_cards_of_published_nets_are_known_by_their_weights():
    cards = comparisons.published_cards()
    for name in pretrained.available():
        card = pretrained.read_card(name)
        assert cards[card["sha256"]] == {**card, "name": name}
