"""Makes the tables and figures of a study from its rows.

python scripts/report.py                  checkpoints/runs.csv: prints the tables, puts them and the table of the
                                          published nets into README.md, and saves the figures
python scripts/report.py study=FILE       another study: prints the tables, and saves the figures beside the file
"""

from pathlib import Path

from nin import cli
from nin.errors import SettingError

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "checkpoints" / "runs.csv"


def main(arguments: list[str]) -> None:
    from nin import files
    from nin.studies import report, rows

    file = Path(cli.plain_settings(arguments, {"study": str(PUBLISHED)})["study"])
    if not file.is_file():
        raise SettingError("study", file, "does not exist; scripts/ablate.py creates it")
    is_published = file.resolve() == PUBLISHED
    ended = rows.ended(file)
    for figure_file, figure in report.figures(ended, file):
        files.save_figure(figure, figure_file)
    text = report.text(ended, file, ROOT if is_published else file.parent)
    if is_published:
        report.into_page(ROOT / "README.md", rows=text, nets=report.nets_table())
    print(text)  # last: the reader may close the pipe


if __name__ == "__main__":
    cli.run_script(main)
