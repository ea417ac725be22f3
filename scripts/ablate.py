"""Runs an ablation study: every combination of the values given, one run each, one row each in a CSV file.

python scripts/ablate.py data=digits head=gap,fc seed=0,1                       four short runs
python scripts/ablate.py head=gap,fc,fc_dropout seed=0,1,2 recipe=quick         the heads of the paper's Table 5
python scripts/ablate.py model.dropout=0,0.5 seed=0,1,2 recipe=quick            any setting is an axis
python scripts/ablate.py head=gap,fc recipe=quick data.share=0.01 trainer.max_epochs=800 eval_curve=false
                                                                  as many steps as with all images at 8 epochs

Overrides are those of scripts/train.py, with Hydra's sweep syntax; the test error is recorded after each epoch unless
eval_curve=false is given, or training images are held out by data.val. What is recorded is not run again, and an
interrupted study goes on where it stopped; a run is known by its settings, so that an edited recipe wants a file of its
own. Two more settings:

study=FILE    the CSV file, by default checkpoints/runs.csv, the rows of README.md; give your own for a study apart
jobs=N        N runs side by side, by default 1
"""

import shlex
import signal
import sys
from pathlib import Path

from nin.command import sweep
from nin.config import ConfigError
from nin.studies import ablation
from nin.studies.report import table
from nin.studies.rows import RowsError

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    own = {"study": str(ROOT / "checkpoints" / "runs.csv"), "jobs": "1"}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in own:
            own[name] = value
        else:
            overrides.append(argument)
    file = Path(own["study"])
    if not own["jobs"].isdecimal() or int(own["jobs"]) == 0:
        print(f"error: jobs={own['jobs']}: a number of runs from 1 up", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does, ends the runs too
    try:
        decided = any(o.startswith(("eval_curve=", "data.val=")) for o in overrides)
        curve = [] if decided else ["eval_curve=true"]
        points = [[*point, *curve] for point in sweep(ROOT / "conf", overrides)]
        rows = ablation.study(points, file, ROOT / "runs" / "ablation", int(own["jobs"]))
    except (ConfigError, RowsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except (ablation.StoppedError, KeyboardInterrupt) as error:
        reason = f"error: {error}; " if str(error) else ""
        print(f"{reason}stopped: the same command goes on where it was, {file} has the rows so far", file=sys.stderr)
        return 1 if reason else 130
    report = f"python scripts/report.py {shlex.quote(f'study={file}')}"
    print(f"\n{table(rows)}\n{len(rows)} rows in {file}; the report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
