import csv
import errno
import fcntl
import io
import os
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from builders import ROOT
from nin import files
from nin.errors import LockedError, RunError


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_file_is_written_whole_and_read_back(tmp_path_factory, before, after):
    file = tmp_path_factory.mktemp("whole") / "file.bin"
    files.write(file, before)
    files.write(file, after)
    assert files.read(file) == after
    assert [each.name for each in file.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("letter", ["a", "é", "日", "🐈"])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, letter):
    for suffix in ("", ".png"):
        file = tmp_path / (letter * ((255 - len(suffix)) // len(letter.encode())) + suffix)
        files.write(file, "x")
        with files.writing(file) as part:
            assert part.suffix == suffix
            part.write_text("y")
        assert file.read_text() == "y"


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    files.write(tmp_path / "text", "3×3 ─► Bäume")
    assert (tmp_path / "text").read_bytes().decode() == "3×3 ─► Bäume"


def test_permissions_are_those_of_open_or_of_the_file_before(tmp_path):
    files.write(tmp_path / "new", "")
    (tmp_path / "usual").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    files.write(tmp_path / "new", "again")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    files.write(tmp_path / "file", "ours")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink() and (tmp_path / "file").read_text() == "ours"


def test_a_pipe_and_a_folder_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(RunError, match=f"{name} cannot be written"):
            files.write(tmp_path / name, "ours")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_what_cannot_be_written_leaves_the_file_before(tmp_path, error):
    file = tmp_path / "file"
    file.write_text("before")
    with pytest.raises(RunError, match=rf"file cannot be written \({error.strerror}\)"), files.writing(file) as part:
        part.write_text("half")
        raise error
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "before")]
    with pytest.raises(KeyError), files.writing(file):
        raise KeyError("any other error stays what it is")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "before")]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    reason = r"cannot be written \(No such file or directory\); the file before is as it was"
    with pytest.raises(RunError, match=reason):
        files.write(tmp_path / "none" / "file", "")


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "thing"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "nothing": lambda: None}[kind]()
    with pytest.raises(OSError):
        files.read(path)


def test_every_file_reaches_the_disk_before_its_name_does(tmp_path, monkeypatch):
    """The order that survives a power cut: flush the file, rename it, flush its folder."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle):
        calls.append(("fsync", "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"))
        fsync(handle)

    def recorded_replace(*names):
        calls.append(("rename", Path(names[1]).name))
        replace(*names)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    files.write(tmp_path / "file", "content")
    assert calls == [("fsync", "file"), ("rename", "file"), ("fsync", "folder")]


def test_a_lock_keeps_others_out_and_names_its_owner(tmp_path):
    file, found = tmp_path / ".lock", []

    def other():
        try:
            with files.lock(file):
                found.append("inside")
        except LockedError as error:
            found.append(str(error))

    with files.lock(file):
        assert files.is_locked(file)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [f"{file} is locked by process {os.getpid()}"]
    assert not files.is_locked(file) and not files.is_locked(tmp_path / "never")
    other()
    assert found[1:] == ["inside"] and file.exists()


def test_a_lock_on_a_file_system_without_locks_is_the_librarys(tmp_path, monkeypatch):
    """Its marker names the process that holds it, and must stay what it is."""
    file = tmp_path / ".lock"
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not implemented")))
    plain = FileLock(tmp_path / "plain", is_singleton=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with plain, files.lock(file):
            marker = [line for line in (tmp_path / "plain").read_text().splitlines() if line]
            assert [line for line in file.read_text().splitlines() if line] == marker
            with pytest.raises(LockedError, match=rf"\.lock is locked by process {os.getpid()}$"), files.lock(file):
                pass
        with files.lock(file):
            pass


def test_a_file_system_without_modes_or_that_fails_late_is_told_apart(tmp_path, monkeypatch):
    file = tmp_path / "file"
    monkeypatch.setattr(os, "fchmod", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no modes")))
    files.write(file, "one")
    fsync = os.fsync

    def fails_on_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fails_on_folders)
    with pytest.raises(RunError, match=r"\(Input/output error\); it is there, but a power cut may undo it"):
        files.write(file, "two")
    assert file.read_text() == "two" and [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError), files.lock(tmp_path / ".lock"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


RACER = """
import os, sys, time
from nin import files
from nin.errors import LockedError

inside, log = sys.argv[1] + "/inside", sys.argv[1] + "/log"
for _ in range(int(sys.argv[2])):
    try:
        with files.lock(sys.argv[1] + "/.lock"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where another one is inside
            time.sleep(0.0005)
            os.unlink(inside)
            with open(log, "a") as opened:
                opened.write("i")
    except LockedError:
        time.sleep(0.0002)
"""


def test_of_three_racing_processes_never_two_are_inside(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RACER, str(tmp_path), "300"]
    racers = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert ended == [("", 0)] * 3
    assert len((tmp_path / "log").read_text()) > 10


def test_a_table_is_read_back_whatever_its_cells_contain():
    names = ["a", "b,c", 'd"e', "f\rg", "h\ni", "j\r\nk", "", " l ", "\udcff", "ü"]
    table = files.csv_table([names, names[::-1]])
    read = csv.reader(io.StringIO(table.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    assert list(read) == [names, names[::-1]] and b"\r\n" in table and table.endswith(b"\n")
