"""Makes the tables and figures of a study from its rows.

python scripts/report.py                      checkpoints/runs.csv: tables printed and put into README.md, figures saved
python scripts/report.py study=FILE           another study: tables printed, figures saved beside the file
"""

import os
import re
import sys
from pathlib import Path

from nin.recovery import RunError, replace
from nin.studies import ablation, report

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "checkpoints" / "runs.csv"


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    unknown = [a for a in arguments if not a.startswith("study=")]
    file = Path(arguments[0].removeprefix("study=")) if arguments and not unknown else PUBLISHED
    if unknown or not file.exists():
        print(f"error: {unknown[0] if unknown else file}: give study=FILE, the CSV of a study", file=sys.stderr)
        return 2
    try:
        return write([row for row in ablation.read(file) if row.status in ablation.DONE], file)
    except (ablation.RowsError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def write(rows: list[ablation.Row], file: Path) -> int:
    parts = []
    for condition in sorted({row.condition for row in rows}):
        chosen = [row for row in rows if row.condition == condition]
        heads = [row for row in chosen if not row.variant]
        data, recipe, epochs, precision = condition
        parts.append(ablation.table(chosen))
        if len({row.head for row in heads}) > 1:
            title = f"{data}, recipe {recipe}, {epochs} epochs, {precision}"
            for kind, plot in (("heads", report.plot_heads), ("curves", report.plot_curves)):
                figure = file.parent / "figures" / f"{data}-{recipe}-{epochs}-{precision}-{kind}.png"
                plot(heads, figure, title)
                parts.append(f"![{kind}: {title}]({os.path.relpath(figure, ROOT)})")
            parts.append(f"\n{report.epochs_table(heads)}\n")
    text = "\n".join(parts)
    print(text)
    if file == PUBLISHED:
        readme = ROOT / "README.md"
        block = f"<!-- report -->\n{text}\n<!-- end of report -->"
        marked = re.compile(r"<!-- report -->.*<!-- end of report -->", re.S)
        before = readme.read_text()
        if not marked.search(before):
            print("error: README.md has no place marked <!-- report --> for the tables", file=sys.stderr)
            return 1
        replace(readme, marked.sub(lambda _: block, before))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
