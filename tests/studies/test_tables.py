import pytest
from matplotlib.figure import Figure

from nin.plan import HEADS
from nin.studies import tables


def test_equal_differences_have_an_interval_without_width():
    assert tables.interval([0.1, 0.1, 0.1]) == pytest.approx((0.1, 0.1))


def test_the_interval_is_the_t_interval():
    low, high = tables.interval([1.0, 2.0, 3.0, 6.0])  # mean 3, s.d. 2.160, t(0.975, 3) = 3.182
    assert (low, high) == pytest.approx((3 - 3.18245 * 2.16025 / 2, 3 + 3.18245 * 2.16025 / 2), abs=1e-3)


@pytest.mark.parametrize(
    ("differences", "seeds", "text"),
    [
        ([], 3, "no common seed"),
        ([0.5], 3, "+0.50 (one seed)"),
        ([0.5, 0.5], 3, "+0.50 (2 times the same)"),
        ([1.2, 1.0, 1.3], 3, "+1.17 (+0.79 to +1.55)"),
        ([1.2, 1.0, 1.3], 4, "+1.17 (+0.79 to +1.55; 3 pairs)"),
        ((-1.2, -1.0, -1.3), 0, "-1.17 (-1.55 to -0.79)"),
    ],
)
def test_paired_differences(differences, seeds, text):
    assert tables.paired(differences, seeds) == text
    assert tables.paired(differences, seeds, noun="image") == text.replace("seed", "image")


def test_the_mean_and_its_deviation():
    assert tables.mean_and_deviation([10.0]) == "10.00"
    assert tables.mean_and_deviation([10.0, 10.4, 10.2]) == "10.20 ± 0.20"


def test_epochs_to_an_accuracy():
    curve = (30.0, 19.0, 21.0, 14.0)
    assert [tables.epochs_to(curve, a) for a in (70, 80, 86, 90)] == [1, pytest.approx(1 + 10 / 11), 4, None]
    assert tables.epochs_to((), 80) is None


def test_what_rows_were_made_with(frame, row):
    one, other = row(commit="a" * 40, torch="2.15.0+cu132"), row("fc", commit="b" * 40, clean=False, torch="2.14.1+cpu")
    assert tables.made_with(frame(other, one)) == "Commit aaaaaaaa, bbbbbbbb+changes; torch 2.14.1, 2.15.0."


def test_the_error_of_each_seed(frame, row):
    assert tables.each_seed(frame(row(error=10.0), row(seed=1, status="dead"), row(seed=2, error=9.5))) == (
        "10.00, dead, 9.50"
    )
    assert [tables.died(number) for number in (0, 2)] == ["", ", 2 died"]


def test_the_stem_of_a_file():
    assert tables.file_stem("cifar10-quick", "", "a=[b, c]").startswith("cifar10-quick-a-b-c--")
    assert tables.file_stem("cifar10-quick", "model=cnn a.b=1e-05") == "cifar10-quick-model-cnn-a.b-1e-05"
    assert tables.table_row("a|b", "`x=[a|b]`").replace(r"\|", "").count("|") == 3
    odd = ["x=-1", "x=1", "x=1e-05", "x=1e+05", "x=[1, 2]", "x=[1 2]", "x=[12]", "x='1'", "x=1\n", "x= 1", "x=日本"]
    assert len({tables.file_stem("c", each) for each in odd}) == len(odd)
    long = [tables.file_stem("x", "ä" * 200 + end) for end in "ab"]
    assert len(set(long)) == 2 and max(len(stem.encode()) for stem in long) <= 150


def test_markdown():
    assert [tables.table_row("head", "n"), tables.table_rule(1)] == ["| head | n |", "|---|---|"]


def test_every_head_has_a_colour_of_its_own():
    assert list(tables.COLOURS) == list(HEADS) and len(set(tables.COLOURS.values())) == len(HEADS)
    assert {*tables.POOLING, *tables.FULLY_CONNECTED} == {*HEADS} and "gap" in tables.POOLING
    assert tables.FULLY_CONNECTED == ("fc_dropout", "fc", "fc_article")


def test_no_label_stands_on_another():
    axis = tables.clean(Figure().subplots(), "x")
    axis.set_ylim(0, 1)
    assert not axis.spines["top"].get_visible()
    ends = ((1, 0.5, "a", "red"), (1, 0.51, "b", "blue"), (1, 0.9, "c", "black"), (2, 0.5, "d", "black"))
    tables.label(axis, [(*end, "-") for end in ends])
    heights = {text.get_text(): text.xy[1] for text in axis.texts}
    assert heights["b"] - heights["a"] == pytest.approx(0.055) and (heights["c"], heights["d"]) == (0.9, 0.5)


def test_long_names_stand_in_a_legend_with_the_styles_of_their_lines():
    axis = Figure().subplots()
    tables.label(axis, [(1, 0.5, "a name that is too long for the margin", "red", "--"), (1, 0.6, "b", "red", ":")])
    (legend,) = axis.figure.legends
    assert [line.get_linestyle() for line in legend.get_lines()] == ["--", ":"]
