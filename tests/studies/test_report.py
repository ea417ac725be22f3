import random
import re
from itertools import product
from pathlib import Path

import pytest
from matplotlib.collections import PathCollection

from builders import ROOT
from nin import files
from nin.errors import RunError
from nin.studies import overfitting, papers, report, rows, transfer

PUBLISHED = ROOT / "checkpoints" / "runs.csv"


def line(frame, start):
    (only,) = (line for line in report.table(frame).splitlines() if line.startswith(start))
    return only


def test_the_table(frame, row):
    made = frame(
        *(row("gap", s, e) for s, e in ((0, 10.0), (1, 10.4), (2, 10.2))),
        *(row("fc", s, e) for s, e in ((1, 11.4), (0, 11.2), (2, 11.5), (7, 30.0))),
        row("fc_dropout", 0, status="dead"),
        row("gap", 0, 12.0, variant="model.dropout=0.5", model__dropout=0.6),
    )
    lines = report.table(made).splitlines()
    assert lines[0] == "**cifar10, recipe quick, 8 epochs**"
    assert "| `gap` | 10.00, 10.40, 10.20 | 10.20 ± 0.20 | 3 | 5.10 ± 0.10 |  |" in lines
    fc = line(made, "| `fc` |")
    assert "11.20, 11.40, 11.50, 30.00" in fc and "| 4 |" in fc  # by seed
    assert "+1.17 (+0.79 to +1.55; 3 pairs)" in fc  # the three seeds in common: 1.2, 1.0, 1.3
    assert "| dead | none | 0 |" in line(made, "| `fc_dropout` |")
    assert "+2.00 (one seed)" in line(made, "| `gap` `model.dropout=0.5` |")
    assert lines[-1].endswith("recipe: `gap` 10.41, `fc_dropout` 10.88, `fc` 11.59.")


def test_variants_without_a_plain_gap_are_compared_with_the_first(frame, row):
    half = {"variant": "model.dropout=0.5", "model__dropout": 0.5}
    none = {"variant": "model.dropout=0", "model__dropout": 0.0}
    made = frame(
        *(row("gap", s, e + s, **of) for of, e in ((half, 11.0), (none, 10.0)) for s in (0, 1)),
        row("fc", 0, 12.0, **half),
        row("gap", 2, status="dead", **half),
    )
    of_none, of_half = line(made, "| `gap` `model.dropout=0` "), line(made, "| `gap` `model.dropout=0.5` ")
    assert of_none == "| `gap` `model.dropout=0` | 10.00, 11.00 | 10.50 ± 0.71 | 2 | 5.25 ± 0.35 |  |"
    assert "| 11.00, 12.00, dead | 11.50 ± 0.71, 1 of 3 died | 2 |" in of_half
    assert of_half.endswith("| against `model.dropout=0`: +1.00 (2 times the same) |")
    assert line(made, "| `fc`").endswith("| +1.00 (one seed) |")  # with gap under the same dropout


def test_runs_before_and_after_an_edit_of_a_recipe_stand_apart(frame, row):
    made = frame(*(row(head, 0, e, recipe__lr=lr) for head, lr, e in (
        *(("gap", 0.04, 10.0), ("fc", 0.04, 11.0), ("gap", 0.05, 20.0), ("fc", 0.05, 20.5)),
    )))  # fmt: skip
    assert "| 10.00 | 10.00 | 1 |" in line(made, "| `gap` `recipe.lr=0.04` ")
    assert line(made, "| `fc` `recipe.lr=0.05` ").endswith("| +0.50 (one seed) |")
    assert line(made, "| `gap` `recipe.lr=0.05` ").endswith("| against `recipe.lr=0.04`: +10.00 (one seed) |")


def test_held_out_images_are_compared_by_their_own_error(frame, row):
    made = [row(head, 0, 50.0, data__val=1000, val_error=e) for head, e in (("gap", 9.0), ("fc", 9.5))]
    text = report.table(frame(*made, row()))
    assert "**cifar10, recipe quick, 8 epochs, 1,000 training images held out**" in text
    assert "| head | held-out error of each seed (%) |" in text and "| head | test error of each seed (%) |" in text
    assert "| `fc` | 9.50 | 9.50 | 1 | 25.00 | +0.50 (one seed) |" in text


def test_heads_of_a_backbone_are_compared_with_their_own_pooling(frame, row):
    made = [row(head, error=10.0 + n) for n, head in enumerate(("gap_article", "fc_article", "gap"))]
    text = report.table(frame(*made))
    assert text.index("`gap`") < text.index("`gap_article`")
    assert "| `fc_article` | 11.00 | 11.00 | 1 | 5.50 | +1.00 (one seed) |" in text
    assert "| minus `gap_article` (95 %) |" in report.table(frame(*made[:2]))


def test_the_table_of_epochs(frame, row):
    made = frame(
        *(row(curve=(30.0, 19.0, 21.0, 14.0)), row(seed=1, curve=(18.0, 17.0)), row(seed=2)),
        row("fc", status="dead"),
        row("gmp"),
    )
    lines = report.epochs_table(made).splitlines()
    assert lines[0] == "| head | epochs to 80 % | epochs to 85 % | epochs to 90 % |"
    assert lines[2] == "| `gap` | 1.45 ± 0.64 | 3.86 (1 never) | (2 never) |"
    assert lines[3:] == ["| `fc`, 1 died |  |  |  |", "| `gmp` | no curve | no curve | no curve |"]


def test_figures_show_each_seed_each_mean_and_each_death(frame, row, tmp_path):
    made = [row(head, s, 10 + s, curve=(30.0, 19.0)) for head in ("gap", "fc") for s in range(2)]
    figure = report.draw_heads(frame(*made, row("fc_article", status="dead")), "title")
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["gap", "fc", "fc_article"]
    points = {tuple(point) for drawn in axis.collections for point in drawn.get_offsets().tolist()}
    assert {(0.0, 10.0), (0.0, 11.0), (1.0, 10.0), (1.0, 11.0), (2.0, 0.96), (0.32, 10.41)} <= points
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["paper, Table 5: no augmentation", "one seed", "mean of the seeds", "a seed that died"]
    for name in ("a.png", "b.png"):
        files.save_figure(report.draw_heads(frame(*made), "title"), tmp_path / "new" / name)
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()


@pytest.mark.parametrize("errors", [(8.0, 99.9), (10.0,), (0.0,)])
@pytest.mark.parametrize("dead", [0, 9])
def test_no_mark_of_the_heads_is_cut(frame, row, errors, dead):
    made = [row("gap", s, error) for s, error in enumerate(errors)]
    made += [row("fc", s, status="dead") for s in range(dead)] + [row("gmp", 0, 11.0)]
    (axis,) = report.draw_heads(frame(*made), "title").axes
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    marks = [each for each in axis.collections if isinstance(each, PathCollection)]
    for drawn in marks:
        inside = drawn.get_offset_transform() == axis.transData
        for x, y in drawn.get_offsets().tolist():
            assert left < x < right and (low < y < high if inside else 0.9 < y < 1)
    columns = [round(x) for each in marks for x, y in each.get_offsets().tolist() if y == 0.96]
    assert columns == [1] * dead  # no cross is nearer to another head


def test_where_every_seed_died_the_axis_has_all_errors(frame, row):
    (axis,) = report.draw_heads(frame(row(status="dead"), row("fc", status="dead")), "title").axes
    assert axis.get_ylim() == (0, 100)


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_curves_of_seeds_are_a_mean_and_a_band(frame, row):
    made = [row("gap", s, curve=(30.0 + 2 * s, 19.0 - s)) for s in range(3)] + [row("fc", curve=(40.0, 20.0))]
    made.append(row("fc", 1, status="dead", curve=(90.0,)))
    (axis,) = report.draw_curves(frame(*made), "title").axes
    assert [list(each.get_ydata()) for each in axis.lines] == [[32.0, 18.0], [40.0, 20.0], [90.0], []]
    band, _ = axis.collections  # the other one is in the legend
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} == {(1, 30), (1, 34), (2, 17), (2, 19)}
    assert legend(axis) == ["gap, mean of 3 seeds", "fc", "lowest to highest seed", "a seed that died"]
    assert axis.get_yscale() == "log"


def test_curves_of_one_epoch_are_points(frame, row):
    made = [row("gap", s, curve=(30.0 + s,)) for s in range(3)] + [row("fc", curve=(40.0,))]
    (axis,) = report.draw_curves(frame(*made), "title").axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == "o"]
    assert points == [(pytest.approx(0.96), 31.0), (pytest.approx(1.04), 40.0)]
    assert list(axis.get_xticks()) == [1] and axis.get_xlim()[0] < 0.96


def test_a_head_without_a_curve_is_named(frame, row):
    (axis,) = report.draw_curves(frame(row(curve=(30.0, 20.0)), row("fc")), "title").axes
    assert legend(axis) == ["gap", "fc: no curve was recorded"]


def test_a_logarithmic_axis_has_numbers_to_read(frame, row):
    generator = random.Random(0)
    for _ in range(20):
        low = 10 ** generator.uniform(-1.5, 1.9)
        high = min(100.0, low * 10 ** generator.uniform(0.05, 2))
        (axis,) = report.draw_curves(frame(row(curve=(high, low))), "title").axes
        bottom, top = axis.get_ylim()
        ticks = [tick for tick in axis.get_yticks() if bottom <= tick <= top]
        assert axis.get_yscale() == "log" and 2 <= len(ticks) <= 16, (low, high, ticks)


def test_an_error_of_zero_is_drawn(frame, row):
    (axis,) = report.draw_curves(frame(row(curve=(3.0, 0.0)), row("fc", curve=(4.0, 1.0))), "title").axes
    assert axis.get_yscale() == "linear"


def test_the_report_of_a_study(tmp_path, row, script):
    file, figures = tmp_path / "runs.csv", tmp_path / "figures"
    rows.append(file, [row("gap", 0, 10.0, curve=(30.0, 10.0)), row("fc", 0, 11.0, curve=(35.0, 11.0))])
    code, first, _ = script("report.py", f"study={file}")
    assert (code, script("report.py", f"study={file}")[1]) == (0, first)
    assert "| `fc` | 11.00 |" in first and "epochs to 80 %" in first
    assert len(list(figures.glob("*.png"))) == 2
    small = {"variant": "data.size=64", "data__size": 64}
    long = {"variant": "x" * 200, "data__size": 65}
    rows.append(file, [row(head, curve=(9.0, 8.0), **of) for head, of in product(("gap", "fc"), (small, long))])
    held_out = {"curve": (9.0,), "data__val": 100, "val_error": 1.0}  # no figure shows their test error
    share = {"variant": "data.share=0.5", "data__share": 0.5}
    rows.append(file, [row(head, **held_out, **of) for head, of in product(("gap", "fc"), ({}, share))])
    code, printed, _ = script("report.py", f"study={file}")
    drawn = {picture.stem for picture in figures.glob("*.png")}
    assert {"cifar10-quick-8-data.size-64-heads", "cifar10-quick-8-data.size-64-curves"} <= drawn
    assert {stem for stem in drawn if "val100" in stem} == {"cifar10-quick-8-val100-heads"}
    assert max(map(len, drawn)) < 170 and len(drawn) == 7
    assert "](figures/cifar10-quick-8-val100-heads.png)" in printed
    assert "\n2 more runs (" in printed and re.search(
        r"are reported by `scripts/claims.py study=\S+/runs\.csv`", printed
    )


def test_a_net_that_was_trained_further_is_in_the_tables(frame, row):
    """A run that started from a net of another set is left to the claim about transfer."""
    mine, curve = {"start": ("mine", "ab" * 32, "gap", "cifar10")}, (7.0, 6.0)
    other = {"start": ("other", "cd" * 32, "gap", "cifar100"), "variant": "checkpoint=other"}
    further = [row(head, 0, 6.0, curve=curve, recipe__name="refine", **mine) for head in ("gap", "fc")]
    made = frame(row("gap", 0, 8.0), *further, row("gap", 0, 7.0, **other))
    printed = report.text(made, Path("runs.csv"))
    _, table = printed.split("**cifar10, recipe refine, 8 epochs**")
    for head in ("gap", "fc"):  # neither is compared, with the other or with the paper's: `fc` is a new head
        assert f"| `{head}` `checkpoint=mine` | 6.00 | 6.00 | 1 | 3.00 |  |" in table
    assert "Table 5" not in table and "epochs to" not in table and "checkpoint-mine" in table
    assert "| 7.00 |" not in printed and "\n1 more run (" in printed
    assert "refine" not in papers.table(1, made)  # it is no run of the paper's


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_the_tables_or_in_the_claims(frame, row, seed):
    """Of rows with any start, share, recipe and variant; the page says how many only the claims show."""
    moments = random.Random(seed)
    starts = ["", "cifar10", "digits"]
    made = []
    for number in range(12):
        start, share, recipe = moments.choice(starts), moments.choice([1.0, 0.1]), moments.choice(["quick", "transfer"])
        values = {"recipe__name": recipe, "data__share": share, "freeze": moments.choice([False, bool(start)])}
        if start:
            values["start"] = (f"of-{start}", start.ljust(64, "0"), "gap", start)
        values["model__dropout"] = moments.choice([0.5, 0.5, 0.1])
        values["variant"] = "model.dropout=0.1" if values["model__dropout"] == 0.1 else ""
        made.append(row(moments.choice(["gap", "fc"]), number, 10 + number, **values))
    rows = frame(*made)
    shown = set(report.tabulated(rows).index)
    claimed = set()
    for module in (transfer, overfitting):
        claimed |= {index for group in module.groups_of(rows) for index in group.rows.index}
    assert shown | claimed == set(rows.index)
    hidden = len(rows) - len(shown)
    assert ("more run" in report.text(rows, Path("runs.csv"))) == bool(hidden)
    assert all(rows.start_name[index] == "" or index not in claimed for index in shown)


def test_a_study_that_does_not_exist_is_named(script, tmp_path):
    assert script("report.py", "study=no.csv")[::2] == (
        *(2, "error: study=no.csv: does not exist; python scripts/ablate.py creates it\n"),
    )
    code, _, errors = script("report.py", "studies=no.csv")
    assert code == 2 and "studies" in errors
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    code, _, errors = script("report.py", "study=bad.csv")
    assert code == 1 and errors.startswith("error: bad.csv: row 1 is not a row of a study")


def test_a_page_gets_its_blocks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# A\n<!-- rows -->\nold\n<!-- end of rows -->\nend")
    report.into_page(page, rows=r"new \1")
    assert page.read_text() == "# A\n<!-- rows -->\nnew \\1\n<!-- end of rows -->\nend"
    with pytest.raises(RunError, match=r"README\.md lacks the lines <!-- nets -->"):
        report.into_page(page, rows="newer", nets="")
    assert "newer" not in page.read_text()
