import platform
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

from nin.checks import memory_gb
from nin.run import machine
from nin.run import train as training
from runs import in_a_fork, pages_mapped


def test_the_commit_says_whether_anything_was_changed_that_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("NIN_COMMIT", raising=False)
    assert machine.commit(tmp_path) == ("unknown", False)
    for given, found in (("abc", ("abc", True)), ("abc+changes", ("abc", False))):
        monkeypatch.setenv("NIN_COMMIT", given)
        assert machine.commit(tmp_path) == found
    for name in ("net.py", "runs.csv"):
        (tmp_path / name).write_text("before")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit, clean = machine.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", commit) and clean
    (tmp_path / "runs.csv").write_text("a row more")  # of this very study
    assert machine.commit(tmp_path) == (commit, True)
    (tmp_path / "net.py").write_text("after")
    assert machine.commit(tmp_path) == (commit, False)
    (tmp_path / "net.py").write_text("before")
    (tmp_path / "notes.txt").write_text("on nothing that counts")
    assert machine.commit(tmp_path) == (commit, True)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("new")
    assert machine.commit(tmp_path) == (commit, False)
    (tmp_path / ".git" / "HEAD").write_text("damaged")
    assert machine.commit(tmp_path) == ("unknown", False)


def test_what_is_recorded_of_a_machine():
    assert set(machine.versions()) == {"python", "torch", "torchvision", "lightning"}
    assert machine.versions()["torch"] == torch.__version__
    assert machine.device_name(torch.device("cpu")).startswith("cpu: ")
    assert 0 < machine.peak_memory_gb() < 2 * memory_gb()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library than glibc provides the memory")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept(kept):
    assert (in_a_fork(pages_mapped, kept) < 100) == kept


@pytest.mark.parametrize(("kind", "waits"), [("cpu", []), ("cuda", ["cuda"]), ("mps", ["mps"])])
def test_the_time_is_that_of_the_device(kind, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device.type))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    assert 0 <= machine.now(torch.device(kind)) <= machine.now(torch.device("cpu")) and waited == waits


@pytest.mark.parametrize(
    ("kind", "initialised", "forgotten"), [("cpu", True, []), ("cuda", False, []), ("cuda", True, ["cuda"])]
)
def test_each_run_has_a_peak_memory_of_its_own(kind, initialised, forgotten, monkeypatch):
    found = []

    def load(run):
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: found.append(device.type))
    monkeypatch.setattr(training, "_load_images", load)
    strategy = SimpleNamespace(root_device=torch.device(kind))
    with pytest.raises(InterruptedError):
        training._train(SimpleNamespace(config=SimpleNamespace(seed=0), trainer=SimpleNamespace(strategy=strategy)))
    assert found == forgotten
