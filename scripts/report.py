"""Makes the tables and figures of a study from its rows.

python scripts/report.py                  checkpoints/runs.csv: tables printed and put into README.md, figures saved,
                                          and the table of the published nets brought up to date
python scripts/report.py study=FILE       another study: tables printed, figures saved beside the file
"""

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nin import pretrained
from nin.command import plain_settings
from nin.config import ConfigError
from nin.recovery import RunError, replace
from nin.studies import report
from nin.studies.answer import table_row, table_rule
from nin.studies.rows import Row, RowsError, ended, epochs_to

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "checkpoints" / "runs.csv"


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        file = Path(plain_settings(arguments, {"study": str(PUBLISHED)})["study"])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not file.is_file():
        print(f"error: study={file}: there is no such file", file=sys.stderr)
        return 2
    try:
        rows = ended(file)
        published = file.resolve() == PUBLISHED
        text, figures = of_rows(rows, file, ROOT if published else file.parent)
        for draw in figures:
            draw()
        if published:
            into_readme(rows=text, nets=of_nets())
        print(text)  # last: who reads it may stop reading
    except (RowsError, pretrained.CheckpointError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def of_rows(rows: Sequence[Row], file: Path, page: Path) -> tuple[str, list[Callable[[], None]]]:
    """The tables of a study's rows in Markdown, for a page in the folder `page`, and what draws their figures beside
    the study's file. The test set is in no figure of runs that held training images out."""
    parts, figures = [], []
    for_tables = report.without_claims(rows)
    for condition in report.conditions(for_tables):
        chosen = [row for row in for_tables if row.condition == condition]
        parts.append(report.table(chosen))
        for variant in sorted({row.variant for row in chosen}):
            heads = [row for row in chosen if row.variant == variant]
            curves = [row for row in heads if row.test_curve and not condition.held_out]
            if len({row.head for row in heads}) == 1:
                continue
            title = ", ".join(filter(None, [condition.title, variant]))
            stem = re.sub(r"[^\w.]+", "-", "-".join(filter(None, [condition.stem, variant])))
            if len(stem) > 150:  # a file's name has an end
                stem = f"{stem[:140]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
            for kind, plot, of in (("heads", report.plot_heads, heads), ("curves", report.plot_curves, curves)):
                if of:
                    figure = file.parent / "figures" / f"{stem}-{kind}.png"
                    figures.append(partial(plot, of, figure, title))
                    parts.append(f"![{kind}: {title}]({os.path.relpath(figure, page)})")
            if any(epochs_to(row, accuracy) for row in curves for accuracy in report.ACCURACIES):
                parts.append(f"\n{report.epochs_table(heads)}\n")
    if others := len(rows) - len(for_tables):
        parts.append(
            f"\n{others} more runs are of recipe `transfer` or had a share of the training images: "
            f"`scripts/claims.py {shlex.quote(f'study={os.path.relpath(file, page)}')}` reports them.\n"
        )
    return "\n".join(parts), figures


def of_nets() -> str:
    """The published nets in Markdown, from their cards."""
    columns = "name", "head", "recipe", "epochs", "parameters", "file", "test error"
    lines = [table_row(*columns), table_rule(len(columns) - 1)]
    for name in pretrained.available():
        card = pretrained.read_card(name)
        lines.append(
            table_row(
                *(f"`{name}`", card["head"], f"`{card['recipe']}`", str(card["epochs"]), f"{card['parameters']:,}"),
                *(f"{card['bytes'] / 1e6:.1f} MB", f"{card['test_error']:.2f} %"),
            )
        )
    return "\n".join(lines)


def into_readme(**blocks: str) -> None:
    """Puts each text between README.md's marks of its name. Raises OSError where there are none."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, block in blocks.items():
        marked = re.compile(rf"<!-- {name} -->.*<!-- end of {name} -->", re.S)
        if not marked.search(text):
            raise OSError(f"{readme} has no place marked <!-- {name} -->")
        marks = f"<!-- {name} -->\n{block}\n<!-- end of {name} -->"
        text = marked.sub(lambda _, marks=marks: marks, text)
    replace(readme, text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
