"""A conf/ of one's own, and commands run in an empty folder."""

import shutil

import pytest

from builders import CONF
from nin.cli import conf as of_files


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A copy of conf/ that the command line reads; returns what adds a file to it."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(of_files, "CONF", tmp_path / "conf")

    def add(name, content):
        (tmp_path / "conf" / f"{name}.yaml").write_text(content)

    return add


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command of `cli` with arguments in an empty folder; returns its exit code, output and errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(start, *arguments, **options):
        monkeypatch.setattr("sys.argv", ["train.py", *arguments])
        capsys.readouterr()
        try:
            start(**options)
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call
