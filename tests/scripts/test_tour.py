"""scripts/tour.ipynb"""

import re

import nbformat
import pytest
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

from builders import ROOT

FILE = ROOT / "scripts" / "tour.ipynb"


class ThisPython(AsyncKernelManager):
    """A kernel of the Python that runs the tests, whatever kernels are installed."""

    @property
    def kernel_spec(self):
        return KernelSpec(**get_kernel_dict())


def read():
    return nbformat.read(FILE, as_version=4)


def outputs(notebook):
    """The outputs of each code cell by its id: text without decimals, which differ between machines, and pictures."""
    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown[cell.id] = [
                (output.name, re.sub(r"\d+\.\d+(e[+-]\d+)?", "…", output.text))
                if output.output_type == "stream"
                else (output.output_type, sorted(output.data))
                for output in cell.outputs
            ]
    return shown


@pytest.mark.parametrize("folder", ["scripts", "."])
def test_the_tour_runs_and_shows_what_is_stored(folder, monkeypatch, tmp_path):
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("NIN_DATA", str(tmp_path / "empty"))  # it needs no set of images
    notebook = read()
    where = {"metadata": {"path": str(ROOT / folder)}}
    before = sorted((ROOT / folder).iterdir())
    options = {"timeout": 300, "kernel_manager_class": ThisPython, "coalesce_streams": True, "resources": where}
    NotebookClient(notebook, **options).execute()  # raises where a cell does; what is called equal is asserted there
    assert outputs(notebook) == outputs(read())
    assert sorted((ROOT / folder).iterdir()) == before


def test_what_is_stored_is_small_and_clean():
    notebook = read()
    assert FILE.stat().st_size < 600_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    printed = [output for cell in code for output in cell.outputs if output.output_type == "stream"]
    assert {output.name for output in printed} == {"stdout"}  # no warnings, no progress bars
    assert sum(output.text.count("equal: ") for output in printed) == 5
    assert not re.search(r"/(home|root|opt|tmp|usr|Users)/|[Ww]arning", "".join(output.text for output in printed))
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 4


def test_links_of_the_tour_lead_somewhere():
    text = "\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("https://")]
    assert links and all((FILE.parent / link).exists() for link in links)
