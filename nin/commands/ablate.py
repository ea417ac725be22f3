"""Runs an ablation study: each combination of the given values is one run and one row of a CSV file.

python scripts/ablate.py study=my.csv data=digits head=gap,fc seed=0,1          four short runs, rows in my.csv
python scripts/ablate.py head=gap,fc,fc_dropout seed=0,1,2 recipe=quick         the heads of the paper's Table 5
python scripts/ablate.py model.dropout=0,0.5 seed=0,1,2 recipe=quick            any setting is an axis
python scripts/ablate.py head=gap,fc recipe=quick data.share=0.01 trainer.max_epochs=1040 eval_curve=false
                                                                  as many steps as with all images at 8 epochs

The overrides are those of scripts/train.py, with Hydra's sweep syntax. The test error is recorded after each epoch,
unless eval_curve=false is given or data.val holds training images out. Recorded runs are not repeated, and an
interrupted study continues where it stopped. A run is known by its settings: after an edit of a recipe its runs are
made anew, and the report keeps them apart from the old ones. More settings:

study=FILE    the CSV file; by default runs.csv, in a checkout checkpoints/runs.csv, from which README.md is made: name
              another for a study of your own
runs=FOLDER   the folder of the runs' folders, by default runs/ablation; name another where this checkout is read-only
jobs=N        runs side by side, by default 1
table=N       one of the paper's tables, 1 to 5: lists its runs, and the paper's figures beside the study's. Overrides
              replace those of the list: table=5 recipe=quick seed=0,1,2
train=true    trains the runs of that table
"""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from nin import cli, files
from nin.checks import counted, one_of, whole_number
from nin.config import pasted
from nin.errors import SettingError
from nin.run.started import spelled

if TYPE_CHECKING:
    from nin.studies.ablation import Point

HOME = files.CHECKOUT or Path()  # where studies are kept
PUBLISHED = HOME / "checkpoints" / "runs.csv" if files.CHECKOUT else Path("runs.csv")
OWN = {"study": str(PUBLISHED), "runs": str(HOME / "runs" / "ablation"), "jobs": "1", "table": "", "train": "false"}


def main(arguments: list[str]) -> None:
    from nin.studies import ablation, report

    own = [argument for argument in arguments if argument.partition("=")[0].lstrip("-") in OWN]
    overrides = [argument for argument in arguments if argument not in own]
    settings = cli.plain_settings(own, OWN)
    file, jobs, number = Path(settings["study"]), whole_number(1, 1000, jobs=settings["jobs"]), settings["table"]
    one_of(("true", "false"), train=settings["train"])
    if settings["train"] == "true" and not number:
        raise SettingError("train", "true", "requires table=; without it every run is trained")
    if number and settings["train"] != "true":
        also = [each for each in own if each.partition("=")[0].lstrip("-") in ("study", "runs", "jobs")]
        print(_listed(number, overrides, file, also))
        return
    points = _points_of_table(number, overrides) if number else cli.points(overrides)
    if not any(override.lstrip("+").startswith("eval_curve=") for override in overrides):
        points = [point.with_test_curve() for point in points]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C it ends the runs too
    rows = ablation.study(points, file, Path(settings["runs"]), jobs)
    print(f"\n{report.table(rows)}\n{counted(len(rows), 'row')} in {file}{_report_of(file)}")


def _points_of_table(number: str, overrides: list[str]) -> list[Point]:
    """The points of one of the paper's tables, under these overrides."""
    from nin.studies import papers

    one_of([str(each) for each in papers.TABLES], table=number)
    return [point for run in papers.TABLES[int(number)] for point in cli.points(papers.overrides_of(run, overrides))]


def _listed(number: str, overrides: list[str], file: Path, own: list[str]) -> str:
    """One of the paper's tables for people: its figures beside the study's, its runs, and the command that trains them,
    with the study's own settings."""
    from nin.studies import papers, rows

    points = _points_of_table(number, overrides)
    runs = "\n".join(f"  {spelled('train')} {point.command}" for point in points)
    also = shlex.join(["table=" + number, *own, *overrides, "train=true"])
    return (
        f"{papers.table(int(number), rows.ended(file))}\n\n{counted(len(points), 'run')}:\n{runs}\n\n"
        f"Train those that {file} lacks: {spelled('ablate')} {also}"
    )


def _report_of(file: Path) -> str:
    """The command that reports a study, where there is one."""
    return f"; the report: {spelled('report')} {pasted('study', file, in_quotes=False)}" if files.CHECKOUT else ""


def start() -> None:
    cli.run_script(main)
