import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

from builders import ROOT
from claims import claim_row, tiny
from nin import pretrained
from nin.errors import RunError, SettingError, UsageError
from nin.studies import claims, rows
from nin.studies.claims import CLAIMS, Pages, Questions

PAGES = ROOT / "checkpoints" / "claims"


@pytest.fixture
def run(row):
    return partial(claim_row, row)


@pytest.fixture
def study(tmp_path, run):
    """A study's file that answers all claims about runs."""
    made = [run("gap", 0, curve="30 9"), run("fc", 0, curve="30 19"), run("gap", 0, 40.0, share=0.05)]
    rows.append(tmp_path / "runs.csv", [*made, run("gap", 0, 20.0, start="net")])
    return tmp_path / "runs.csv"


def test_the_command_answers_all_claims(script, tmp_path, study):
    for head in ("gap", "fc"):
        pretrained.save(tmp_path / f"{head}.safetensors", tiny(head))
    code, printed, _ = script("claims.py", "checkpoint=gap.safetensors,fc.safetensors", "study=runs.csv", "images=20")
    assert code == 0
    assert len(re.findall("^## ", printed, re.M)) == len(re.findall(r"^Verdict: \*\*", printed, re.M)) == 7
    pictures = sorted((tmp_path / "claims").glob("*.png"))
    assert [picture.stem.split("-")[0] for picture in pictures] == sorted(
        {*CLAIMS} - {"replacement"}
    )  # of the article's heads
    of_nets, of_runs = ((tmp_path / "claims" / f"{name}.md").read_text() for name in ("nets", "runs"))
    for picture in pictures:
        assert f"claims/{picture.name}" in printed
        assert (f"]({picture.name})" in of_nets) == (picture.stem in ("channels", "objects", "shift", "size"))
        assert (f"]({picture.name})" in of_nets) != (f"]({picture.name})" in of_runs)
        assert np.asarray(Image.open(picture).convert("L")).std() > 5  # more than an empty canvas
    assert of_nets.count("| digits | quick | 8 | 0 |") == 2
    assert "A verdict requires 3 seeds. | undecided |" in of_runs
    assert "Made by `python scripts/claims.py checkpoint=gap.safetensors,fc.safetensors study=runs.csv images=20`." in (
        of_runs
    )
    assert sorted(file.suffix for file in (tmp_path / "claims").iterdir()) == [".md"] * 2 + [".png"] * 7


def test_a_claim_without_an_answer_is_an_error_only_if_it_was_asked_by_name(script, tmp_path, run):
    rows.append(tmp_path / "runs.csv", [run("gap", 0, curve="30 9"), run("fc", 0, curve="30 19")])
    code, printed, errors = script("claims.py", "study=runs.csv")
    assert code == 0 and printed.count("## ") == 1
    assert [line.split(":")[1] for line in errors.splitlines()] == [
        f" claim={claim}" for claim in ("overfitting", "transfer", "replacement")
    ]
    code, printed, errors = script("claims.py", "study=runs.csv", "claim=transfer")
    assert (code, printed) == (1, "") and errors.startswith("error: claim=transfer: no run of the study")
    rows.append(tmp_path / "empty.csv", [run("gap", 0)])
    code, printed, errors = script("claims.py", "study=empty.csv")
    assert (code, printed) == (1, "") and errors.startswith("error: no claim can be answered: claim=convergence: ")


def test_claims_come_in_the_order_in_which_they_are_asked(study):
    questions = Questions(claims=["transfer", "convergence"], study=study)
    assert [answer.name.split("-")[0] for _, _, answer in questions.answers()] == ["transfer", "convergence"]


@pytest.mark.parametrize(
    ("questions", "error", "words"),
    [
        (Questions(), UsageError, "nothing to ask; add checkpoint="),
        (Questions(["speed"], ["net"]), SettingError, "claim=speed: must be one of size, shift, channels"),
        (Questions(["convergence"], ["net"]), SettingError, "claim=convergence: requires the rows of a study; add"),
        (Questions(["size"], study="runs.csv"), SettingError, "claim=size: requires nets; add checkpoint="),
        (Questions(study="none.csv"), SettingError, "study=none.csv: does not exist"),
        (Questions(checkpoints=["net"], images=1), SettingError, "images=1: expected an integer from 2"),
    ],
)
def test_what_cannot_be_asked_is_refused(questions, error, words):
    with pytest.raises(error, match=re.escape(words)):
        questions.check()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "add checkpoint="),
        (["checkpoint=net", "claim=size,speed"], 2, "claim=speed: must be one of size, shift, channels"),
        (["checkpoint=net", "images=few"], 2, "images=few: expected an integer from 2"),
        (["checkpoint=net", "images=" + "9" * 5000], 2, "expected an integer from 2"),
        (["checkpoint=net", "size=3"], 2, "size=3: "),
        (["checkpoint=net"], 1, "checkpoint=net: does not exist"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, tmp_path, arguments, code, words):
    ended, printed, errors = script("claims.py", *arguments)
    assert (ended, printed) == (code, "")
    assert words in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_pages_that_cannot_be_written_are_an_error(tmp_path, study):
    (tmp_path / "file").touch()
    page, heading, answer = next(Questions(claims=["transfer"], study=study).answers())
    with pytest.raises(RunError, match="file: this folder cannot be created"):
        Pages(tmp_path / "file", "command").add(page, heading, answer)


@pytest.mark.skipif(not PAGES.exists(), reason="no pages are published")
def test_the_published_pages_show_the_published_rows_and_nets():
    study = rows.ended(ROOT / "checkpoints" / "runs.csv")
    of_runs, of_nets = ((PAGES / f"{name}.md").read_text() for name in ("runs", "nets"))
    answers = [answer for ask in claims.OF_ROWS.values() for answer in ask(study)]
    assert claims.page_of([], answers).split("\n\n")[1:] == of_runs.split("\n\n")[3:]
    names = re.search(r"checkpoint=([\w,-]+)", of_nets)[1].split(",")
    for card in map(pretrained.read_card, names):
        assert f"| {card['recipe']} | {card['epochs']} | {card['seed']} | {card['test_error']} |" in of_nets
    for picture in re.findall(r"\]\((.*\.png)\)", of_runs + of_nets):
        assert (PAGES / picture).stat().st_size > 0


def test_a_published_page_of_nets_has_the_text_of_today():
    text = (PAGES / "nets.md").read_text()
    for claim in claims.OF_NETS:
        module = getattr(claims, claim)
        assert f"\n> {module.CLAIM}\n" in text
