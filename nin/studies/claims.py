"""The claims about pooling, their answers from trained nets and from a study's rows, and pages of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nin import files
from nin.checks import integer, one_of, whole_number
from nin.errors import ClaimError, SettingError, UsageError
from nin.run.started import spelled
from nin.studies import channels, convergence, nets, objects, overfitting, replacement, rows, shift, size, transfer
from nin.studies.answer import Answer
from nin.studies.tables import table_row, table_rule

OF_NETS = {"size": size.answer, "shift": shift.answer, "channels": channels.answer, "objects": objects.answer}
OF_ROWS = {"convergence": convergence.answers, "overfitting": overfitting.answers, "transfer": transfer.answers}
OF_ROWS["replacement"] = replacement.answers
CLAIMS = (*OF_NETS, *OF_ROWS)
MOST_IMAGES = 10**9


@dataclass
class Questions:
    """Claims, and the nets and the study that are to answer them.

    Attributes:
        claims: names of `CLAIMS`; by default all that the nets and the study can answer.
        checkpoints: folders of runs, weights files or published names.
        study: a study's CSV file.
        images: number of test images, drawn once; None takes all.
        root: folder of the sets, as in `nin.data.Images`.
        unanswered: after `answers`, why a claim that was not asked by name has no answer: one sentence each.
    """

    claims: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    study: str | Path | None = None
    images: int | None = None
    root: str | None = None
    unanswered: list[str] = field(default_factory=list, init=False)

    @classmethod
    def of_settings(cls, settings: Mapping[str, str]) -> Questions:
        """The questions of a command line: claim, checkpoint (both separated by commas), study, images and data.root.

        Raises:
            SettingError, UsageError: as `check` does.
        """
        claims, checkpoints = ([*filter(None, settings[name].split(","))] for name in ("claim", "checkpoint"))
        images = settings["images"]
        questions = cls(
            claims=claims,
            checkpoints=checkpoints,
            study=settings["study"] or None,
            images=whole_number(2, MOST_IMAGES, images=images) if images else None,
            root=settings["data.root"] or None,
        )
        questions.check()
        return questions

    def check(self) -> None:
        """Raises SettingError or UsageError if this cannot be asked."""
        for claim in self.claims:
            one_of(CLAIMS, claim=claim)
            if claim in OF_NETS and not self.checkpoints:
                raise SettingError("claim", claim, "requires nets; add checkpoint=")
            if claim in OF_ROWS and not self.study:
                raise SettingError("claim", claim, "requires the rows of a study; add study=")
        if not self.checkpoints and not self.study:
            raise UsageError(
                "nothing to ask; add checkpoint= with runs' folders, weights files or published names, or study= with "
                "a study's CSV file"
            )
        if self.study and not Path(self.study).is_file():
            raise SettingError("study", self.study, f"does not exist; {spelled('ablate')} creates it")
        if self.images is not None:
            integer(2, MOST_IMAGES, images=self.images)

    def answers(self) -> Iterator[tuple[str, str, Answer]]:
        """One answer after the other, with the name of its page, "nets" or "runs", and the page's first paragraph.

        Raises:
            ClaimError: a claim that was asked by name cannot be answered, or none can.
            SettingError, UsageError: as `check` raises them.
            CheckpointError, DataError: as `nin.studies.nets.gather` raises them.
            RowsError: as `nin.studies.rows.ended` raises it.
        """
        self.check()
        claims = self.claims or CLAIMS
        of_nets = [claim for claim in claims if claim in OF_NETS and self.checkpoints]
        of_rows = [claim for claim in claims if claim in OF_ROWS and self.study]
        subjects = nets.gather(self.checkpoints, self.root, self.images) if of_nets else []
        study = rows.ended(self.study) if of_rows else None
        about_nets = f"Nets:\n\n{nets.described(subjects)}"
        about_rows = f"Runs: `{Path(self.study or '').name}`."
        answered = False
        for claim in (*of_nets, *of_rows):
            try:
                answers = [OF_NETS[claim](subjects)] if claim in OF_NETS else OF_ROWS[claim](study)
            except ClaimError as error:
                if self.claims:
                    raise
                self.unanswered.append(str(error))
                continue
            for answer in answers:
                answered = True
                yield ("nets", about_nets, answer) if claim in OF_NETS else ("runs", about_rows, answer)
        if not answered:
            raise ClaimError(f"no claim can be answered: {'; '.join(self.unanswered)}")


@dataclass
class Pages:
    """Pages of answers in a folder, nets.md and runs.md, with their pictures; written anew with each answer.

    Attributes:
        folder: of the pages; it is created if need be.
        command: the command that makes them.
    """

    folder: Path
    command: str
    answered: dict[str, list[Answer]] = field(default_factory=dict, init=False)

    def add(self, page: str, heading: str, answer: Answer) -> str:
        """Writes an answer's picture and page; returns the answer in Markdown, and the picture's path.

        Raises:
            RunError: the folder or a file cannot be written.
        """
        picture = self.folder / f"{answer.name}.png"
        files.save_figure(answer.figure, picture)
        self.answered.setdefault(page, []).append(answer)
        text = page_of([heading, f"Made by `{self.command}`."], self.answered[page])
        files.write(self.folder / f"{page}.md", text)
        return f"{section(answer)}\n\n{picture}\n"


def section(answer: Answer) -> str:
    """An answer in Markdown, without its picture."""
    verdict = f"Verdict: **{answer.verdict}**."
    return "\n\n".join([f"## {answer.title}", f"> {answer.claim}", answer.finding, verdict, answer.table])


def page_of(top: Sequence[str], answers: Sequence[Answer]) -> str:
    """A page in Markdown: paragraphs on top, all claims and verdicts in short, then each answer with its picture."""
    short = [table_row("claim", "measured", "verdict"), table_rule(2)]
    short += [table_row(answer.claim, answer.finding, answer.verdict) for answer in answers]
    parts = [f"{section(answer)}\n\n![{answer.title}]({answer.name}.png)" for answer in answers]
    return "\n\n".join(["# Claims about pooling, measured", *top, "\n".join(short), *parts]) + "\n"
