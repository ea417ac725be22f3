"""Makes the tables and figures of a study from its rows.

python scripts/report.py                       checkpoints/runs.csv: prints the tables, saves the figures, and puts
                                               every generated table into the pages of the repository
python scripts/report.py study=FILE            another study: prints the tables, saves the figures beside the file
python scripts/report.py study=FILE > page.md  its tables and figures as a page, in the folder of the file

It belongs to a checkout of the repository: the pages are there.
"""

from pathlib import Path

from nin import cli
from nin.errors import SettingError
from nin.run.started import spelled

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "checkpoints" / "runs.csv"
RECIPES = (
    "paper_literal",
    "paper",
    "paper_caffe",
    "paper_cifar100",
    "paper_fast",
    "modern",
    "quick",
    "best",
    "speedrun",
    "refine",
    "transfer",
    "article",
)


def main(arguments: list[str]) -> None:
    from nin import files
    from nin.studies import pages, report, rows

    file = Path(cli.plain_settings(arguments, {"study": str(PUBLISHED)})["study"])
    if not file.is_file():
        raise SettingError("study", file, f"does not exist; {spelled('ablate')} creates it")
    ended = rows.ended(file)
    for figure_file, figure in report.figures(ended, file):
        files.save_figure(figure, figure_file)
    text = report.text(ended, file)
    if file.resolve() == PUBLISHED:
        recipes = {name: cli.compose([f"recipe={name}"]) for name in RECIPES}
        tables = {"recipes": pages.recipes_table(recipes), "heads": pages.heads_table()}
        report.into_page(ROOT / "checkpoints" / "README.md", rows=text, nets=report.nets_table(cli.variant_of))
        report.into_page(ROOT / "conf" / "README.md", **tables, settings=pages.settings_table())
        front = {"results": pages.results_table(ended), "findings": pages.findings(ended)}  # not without runs
        report.into_page(ROOT / "README.md", **front)
    print(text)  # last: the reader may close the pipe


def start() -> None:
    cli.run_script(main)
