"""The pages for people: what is generated is up to date, what is linked exists, what is shown runs."""

import re

import pytest

import nin
from builders import ROOT
from nin import cli
from nin.studies import pages, report, rows

PAGES = sorted(
    page
    for folder in ("", "checkpoints/", "checkpoints/claims/**/", "conf/", "nin/", "tests/")
    for page in ROOT.glob(f"{folder}*.md")
)
RUNS = ROOT / "checkpoints" / "runs.csv"


def block(page, name):
    """What stands between a page's marks of this name."""
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", (ROOT / page).read_text(), re.S)[1]


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9216


def test_tables_of_results_are_those_of_the_rows_and_cards():
    ended = rows.ended(RUNS)
    assert block("README.md", "results") == pages.results_table(ended)
    assert block("README.md", "findings") == pages.findings(ended)
    assert block("checkpoints/README.md", "nets") == report.nets_table(cli.variant_of)
    assert block("checkpoints/README.md", "rows") == report.text(ended, RUNS)


CLAIMS = [page for page in PAGES if page.name in ("nets.md", "runs.md")]


@pytest.mark.parametrize("page", CLAIMS, ids=lambda page: str(page.relative_to(ROOT / "checkpoints")))
def test_the_table_on_top_of_a_page_of_claims_says_what_its_sections_say(page):
    top, *sections = re.split(r"^## ", page.read_text(), flags=re.M)
    lines = top[top.index("| claim | measured | verdict |") :].strip().splitlines()[2:]
    rows_on_top = [tuple(each.replace("\\|", "|") for each in line[2:-2].split(" | ")) for line in lines]
    below = []
    for section in sections:
        _, claim, finding, verdict, *_ = section.split("\n\n")
        below.append((claim.removeprefix("> "), finding, re.fullmatch(r"Verdict: \*\*(.*)\*\*\.", verdict)[1]))
    assert below and rows_on_top == below


def test_every_page_of_claims_is_compared():
    found = {page for page in (ROOT / "checkpoints").rglob("*.md") if "| claim | measured |" in page.read_text()}
    assert found == set(CLAIMS) and len(found) >= 3


def test_tables_of_settings_are_those_of_the_schema():
    page = "conf/README.md"
    assert block(page, "settings") == pages.settings_table()
    assert block(page, "heads") == pages.heads_table()
    shown = block(page, "recipes").splitlines()
    names = re.findall(r"`(\w+)`", shown[0])
    assert set(names) == {file.stem for file in (ROOT / "conf" / "recipe").glob("*.yaml")}
    recipes = {name: cli.compose([f"recipe={name}"]) for name in names}
    assert "\n".join(shown) == pages.recipes_table(recipes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_links_to_lines_name_what_stands_there():
    text = (ROOT / "nin" / "README.md").read_text()
    links = re.findall(r"\[`([^`]+)`\]\(([\w/]+\.py)#L(\d+)\)", text)
    assert len(links) >= 12
    for name, file, line in links:
        assert name in (ROOT / "nin" / file).read_text().splitlines()[int(line) - 1], (name, file, line)


@pytest.mark.parametrize("page", ["README.md", "nin/README.md"])
def test_the_python_of_a_page_runs(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        if "L.Trainer" not in code and "onnxruntime" not in code:  # in test_train.py and test_export.py
            exec(code, {})
    assert "cat" in capsys.readouterr().out


def test_the_front_page_names_published_nets_alone():
    named = set(re.findall(r"\b(?:cifar100?|mnist|flowers17)-[a-z-]*[a-z]", (ROOT / "README.md").read_text()))
    assert named <= set(nin.available()) and {"cifar10-gap-best", "cifar10-gap", "cifar10-fc"} <= named
