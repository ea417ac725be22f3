"""What pooling is said to do, asked of trained nets and of a study's rows: a table each, and a picture.

python scripts/claims.py checkpoint=runs/A,runs/B              all that can be asked of nets: size, shift, channels,
                                                               objects
python scripts/claims.py checkpoint=A,B,C claim=shift          one question; published names will do too
python scripts/claims.py study=FILE                            all that is asked of rows: convergence, overfitting,
                                                               transfer

claim=         one or several of size, shift, channels, objects, convergence, overfitting, transfer
images=N       how many test images, drawn once; by default all
out=FOLDER     where the pictures go, and two pages with all of it, nets.md and runs.md; by default claims/
data.root=     folder of CIFAR-10, by default NIN_DATA

The rows of convergence are those of any study of scripts/ablate.py, heads and seeds. For overfitting a study varies
data.share. A small share makes an epoch short: with these epochs all shares have as many steps; with fewer it takes
less time, and the heads are compared within a share all the same:

python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.2 trainer.max_epochs=40
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.05 trainer.max_epochs=160
python scripts/ablate.py study=FILE head=gap,fc seed=0,1,2 recipe=quick data.share=0.01 trainer.max_epochs=800

With eval_curve=false the test images are not evaluated after each of so many epochs. The warm-up keeps its epochs.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nin import pretrained
from nin.command import plain_settings
from nin.config import ConfigError
from nin.data import DataError
from nin.studies import claims_of_nets, claims_of_runs, nets
from nin.studies.answer import Answer, ClaimError, table_row, table_rule
from nin.studies.rows import RowsError, ended

OF_NETS = {
    "size": claims_of_nets.size,
    "shift": claims_of_nets.shifts,
    "channels": claims_of_nets.channels,
    "objects": claims_of_nets.objects,
}
OF_ROWS = {
    "convergence": claims_of_runs.convergence,
    "overfitting": claims_of_runs.overfitting,
    "transfer": claims_of_runs.transfer,
}
QUESTIONS = (*OF_NETS, *OF_ROWS)


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    defaults = {"checkpoint": "", "study": "", "claim": "", "images": "", "out": "claims", "data.root": ""}
    try:
        settings = plain_settings(arguments, defaults)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if wrong := complain(settings):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    out = Path(settings["out"])
    given = [argument for argument in arguments if not argument.startswith("data.root=")]
    made_by = f"Made by `python scripts/claims.py {shlex.join(given)}`."
    pages: dict[str, list[Answer]] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, heading, answer in answers(settings):
            answer.figure.savefig(out / f"{answer.name}.png", dpi=150, metadata={"Software": None})
            print(f"{section(answer)}\n\n{out / answer.name}.png\n", flush=True)
            answered = pages.setdefault(name, [])
            answered.append(answer)
            (out / f"{name}.md").write_text(page([heading, made_by], answered))
    except (
        pretrained.CheckpointError,
        ClaimError,
        RowsError,
        DataError,
        ValueError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def complain(settings: dict[str, str]) -> str:
    """What is wrong with the command line, in words; empty where nothing is."""
    asked = settings["claim"].split(",") if settings["claim"] else []
    for claim in asked:
        if claim not in QUESTIONS:
            return f"claim={claim}: choose one of {', '.join(QUESTIONS)}"
        needed = "checkpoint" if claim in OF_NETS else "study"
        if not settings[needed]:
            return f"claim={claim}: it is asked of {'nets' if needed == 'checkpoint' else 'rows'}; give {needed}="
    if not settings["checkpoint"] and not settings["study"]:
        return "give checkpoint= and runs' folders, weights files or published names, or study= and a study's CSV file"
    if settings["study"] and not Path(settings["study"]).is_file():
        return f"study={settings['study']}: there is no such file"
    if settings["images"] and not (settings["images"].isdecimal() and int(settings["images"]) > 1):
        return f"images={settings['images']}: a number of test images from 2 up"
    return ""


def section(answer: Answer) -> str:
    """An answer in Markdown, without its picture."""
    return "\n\n".join([f"## {answer.title}", f"> {answer.claim}", answer.finding, answer.table])


def page(top: Sequence[str], answered: Sequence[Answer]) -> str:
    """A page in Markdown: what is asked, what was found in short, then each answer with its table and its picture."""
    short = [table_row("what is said", "what was found"), table_rule(1)]
    short += [table_row(answer.claim, answer.finding) for answer in answered]
    parts = [f"{section(answer)}\n\n![{answer.title}]({answer.name}.png)" for answer in answered]
    return "\n\n".join(["# What is said about pooling, measured", *top, "\n".join(short), *parts]) + "\n"


def answers(settings: dict[str, str]) -> Iterator[tuple[str, str, Answer]]:
    """One answer after the other, with the name of its page and what stands on top of it. A question that finds nothing
    to be answered from is an error only where it was asked by name, or none is answered."""
    asked = settings["claim"].split(",") if settings["claim"] else QUESTIONS
    of_nets = [claim for claim in asked if claim in OF_NETS and settings["checkpoint"]]
    of_rows = [claim for claim in asked if claim in OF_ROWS and settings["study"]]
    answered = False
    if of_nets:
        images = int(settings["images"]) if settings["images"] else None
        asked_nets = nets.gather(settings["checkpoint"].split(","), settings["data.root"] or None, images)
    if of_rows:
        rows = ended(Path(settings["study"]))
    for claim in (*of_nets, *of_rows):
        try:
            found = [OF_NETS[claim](asked_nets)] if claim in OF_NETS else OF_ROWS[claim](rows)
        except ClaimError as error:
            if settings["claim"]:
                raise
            print(f"not answered: {error}\n", file=sys.stderr)
            continue
        for answer in found:
            if claim in OF_NETS:
                yield "nets", f"Asked of these nets:\n\n{nets.described(asked_nets)}", answer
            else:
                yield "runs", f"Asked of the runs in `{Path(settings['study']).name}`.", answer
            answered = True
    if not answered:
        raise ClaimError("nothing of what was given answers any question")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
