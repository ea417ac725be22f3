"""Answers claims about pooling from trained nets and from a study's rows: tables, pictures and verdicts.

python scripts/claims.py checkpoint=runs/A,runs/B            all claims about nets: size, shift, channels, objects
python scripts/claims.py checkpoint=A,B,C claim=shift        one claim, of published nets
python scripts/claims.py study=FILE                          all claims about runs: convergence, overfitting, transfer,
                                                              replacement

checkpoint=    folders of runs, weights files or published names
study=         CSV file of scripts/ablate.py
claim=         one or several of size, shift, channels, objects, convergence, overfitting, transfer, replacement
images=N       number of test images, drawn once; by default all
out=FOLDER     for pictures and two pages, nets.md and runs.md; by default claims/
data.root=     folder of the sets, by default the environment variable NIN_DATA

Convergence reads any study that varies head and seed. Overfitting reads a study that varies data.share. A small share
makes an epoch short: with the epochs below each share has 3,116 to 3,120 steps. Fewer epochs take less time, and heads
are compared within a share in any case:

python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.2 trainer.max_epochs=40
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.05 trainer.max_epochs=164
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.01 trainer.max_epochs=1040

Add eval_curve=false: then the test images are not evaluated after each of so many epochs. The warm-up keeps its epochs.

It belongs to a checkout of the repository.
"""

import shlex
import sys
from contextlib import suppress

from nin import cli

DEFAULTS = {"checkpoint": "", "study": "", "claim": "", "images": "", "out": "claims", "data.root": ""}


def main(arguments: list[str]) -> None:
    settings = cli.plain_settings(arguments, DEFAULTS)
    from nin import files
    from nin.run.machine import keep_freed_memory
    from nin.studies.claims import Pages, Questions

    keep_freed_memory()
    questions = Questions.of_settings(settings)
    stated = [argument for argument in arguments if not argument.startswith("data.root=")]
    out = files.make_folder(settings["out"])  # before minutes of measurements
    try:
        pages = Pages(out, f"python scripts/claims.py {shlex.join(stated)}")
        for page, heading, answer in questions.answers():
            print(pages.add(page, heading, answer), flush=True)
    finally:
        with suppress(OSError):  # it is not empty
            out.rmdir()
    for reason in questions.unanswered:
        print(f"not answered: {reason}", file=sys.stderr)


def start() -> None:
    cli.run_script(main)
