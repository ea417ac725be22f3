import errno
import http.server
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from builders import Payload
from nin import download, files
from nin.data import archive
from nin.data.archive import md5, no_files, unpickle
from nin.data.sets import CIFAR10
from nin.errors import DataError

FOLDER, PACKED = CIFAR10.folder, CIFAR10.file


# downloads ------------------------------------------------------------------------------------------------------------


def test_bad_addresses_are_given_up_for_the_next(tmp_path, made, server, capsys):
    url, asked = server
    paths = ["/missing", "/nonsense", "/altered", "/short", "/slow", "/good"]
    root = tmp_path / "root"
    assert made.archive.fetch(root, urls=[url(path) for path in paths]) == made.parts
    assert asked == paths
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("404", "md5", "slow"))
    assert sorted(file.name for file in root.iterdir()) == sorted([FOLDER, PACKED])
    assert sorted(file.name for file in (root / FOLDER).iterdir()) == sorted(made.parts)
    assert made.archive.fetch(root, urls=[url("/good")]) == made.parts
    assert len(asked) == len(paths)  # a whole set is not downloaded again


def test_a_slow_address_gets_a_second_chance_when_no_other_is_left(tmp_path, made, server):
    url, asked = server
    made.archive.fetch(tmp_path, urls=[url("/slower"), url("/slow"), url("/missing")])
    assert asked == ["/slower", "/slow", "/missing", "/slow"]


def test_a_silent_address_is_given_up(tmp_path, made, server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(download, "SILENCE", 0.2)
    with pytest.raises(DataError, match=r"/silent: .*timed out"):
        made.archive.fetch(tmp_path, urls=[url("/silent")])


def test_an_endless_answer_is_given_up(tmp_path, made, server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", len(made.packed) - 1)
    with pytest.raises(DataError, match="the answer is longer than"):
        made.archive.fetch(tmp_path, urls=[url("/good")])


class Drip(http.server.BaseHTTPRequestHandler):
    """Answers that never end, each by its path: a byte now and then, in the line of the status, in the headers, in the
    lines of chunks, in the body; or as much as the line carries. /good/… has the archive."""

    def setup(self):
        super().setup()
        self.connection.settimeout(30)

    def handle_one_request(self):
        self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        self.close_connection = True
        begin, drop, wait = self.server.kinds[self.server.asked]
        self.server.asked += 1
        with suppress(OSError):
            self.wfile.write(begin)
            while not self.server.ended.wait(wait):
                self.wfile.write(drop)


def drips(draws):
    """Beginnings of an answer, what follows for ever, and the seconds between two pieces of it."""
    ok, size = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n\r\n"
    for wait in (draws.uniform(0.02, 0.1) for _ in range(4)):
        yield b"", b"H", wait
        yield b"HTTP/1.1 200 ", b"O", wait
        yield ok + b"X: ", b"x", wait
        yield ok, b"X: y\r\n", wait
        yield ok + size % draws.randrange(10**6), b"x", wait
        yield ok + b"\r\n", b"x", wait
        yield ok + b"Transfer-Encoding: chunked\r\n\r\n", b"0", wait
        yield ok + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", wait
        yield ok + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", wait
        yield b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", wait
    for length in (b"-1", b"abc", b"9" * 30, b"1e9", b""):
        yield ok + b"Content-Length: " + length + b"\r\n\r\n", bytes(1 << 16), 0
    yield ok + b"\r\n", bytes(1 << 16), 0


@pytest.mark.tries(46)
def test_an_address_that_never_ends_is_given_up_for_the_next(tmp_path, made, server, tried, monkeypatch):
    url, _ = server
    kinds = list(drips(random.Random(9)))
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 2e6)
    monkeypatch.setattr(download, "TRIAL", 0.3)
    monkeypatch.setattr(download, "time", time)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip) as httpd:
        httpd.daemon_threads = True
        httpd.kinds, httpd.asked, httpd.ended = kinds, 0, threading.Event()
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        for number, kind in enumerate(kinds):
            drip = f"http://127.0.0.1:{httpd.server_port}/{number}"
            found = download.download([drip, url("/good")], made.archive.md5, md5)
            assert found == made.packed
            tried(kind)
        httpd.ended.set()
        httpd.shutdown()


def test_what_a_server_says_is_printed_without_control_characters(made, server, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("404 \x1b[2J\r\nnot\x07 found\u202e")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError) as error:
        download.download(["http://127.0.0.1/\x1b[31m"], made.archive.md5, md5)
    assert str(error.value).isprintable()
    assert capsys.readouterr().out.rstrip("\n").isprintable()


def test_the_addresses_of_the_entry_are_the_default(tmp_path, made, server):
    url, asked = server
    assert replace(made.archive, urls=[url("/good")]).fetch(tmp_path) == made.parts
    assert asked == ["/good"]


def test_all_unreachable_names_the_folder_and_the_ways_out(tmp_path, made, server):
    url, _ = server
    urls = [url("/missing"), "http://127.0.0.1:9/x", "nonsense", "http://localhost:abc/x"]
    with pytest.raises(DataError) as error:
        made.archive.fetch(tmp_path / "root", urls=urls)
    for word in (str(tmp_path / "root"), FOLDER, PACKED, "data.urls", "data=digits", *urls):
        assert word in str(error.value)
    with pytest.raises(DataError, match=r"data\.urls is empty"):
        made.archive.fetch(tmp_path / "root", urls=[])


def test_downloads_side_by_side_all_end_with_the_whole_set(tmp_path, made, server):
    url, _ = server
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made.archive.fetch(tmp_path, urls=[url("/good")]), range(8)))
    assert all(each == made.parts for each in found)
    assert not list(tmp_path.rglob(f"{files.TEMPORARY}*"))


@pytest.mark.parametrize("moment", [1, 5], ids=["the archive", "a part"])
@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        KeyboardInterrupt(),
    ],
    ids=["full", "read-only", "quota", "ctrl-c"],
)
def test_an_interrupted_download_leaves_no_half_file(tmp_path, made, server, monkeypatch, moment, fault):
    url, asked = server
    root, flushes = tmp_path / "root", []

    def faulty(handle):
        flushes.append(handle)
        if len(flushes) == moment:
            raise fault

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", faulty)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else DataError) as error:
            made.archive.fetch(root, urls=[url("/good"), url("/good")])
    if isinstance(fault, OSError):
        assert str(root) in str(error.value) and fault.strerror in str(error.value)
    assert asked == ["/good"]  # a full disk is no reason to ask the next address
    assert not list(root.rglob(f"{files.TEMPORARY}*"))
    for file in root.glob(f"{FOLDER}/*"):
        assert file.read_bytes() == made.parts[file.name]
    assert made.archive.fetch(root, urls=[url("/good")]) == made.parts


def test_a_folder_that_cannot_be_written_is_named(tmp_path, made, server):
    url, _ = server
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"{tmp_path}/file/root"):
        made.archive.fetch(tmp_path / "file" / "root", urls=[url("/good")])


# what lies on the disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, made):
    """A folder with the archive alone."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / PACKED).write_bytes(made.packed)
    return tmp_path / "root"


@pytest.fixture
def unpacked(root, made):
    """A folder with the parts alone."""
    made.archive.fetch(root, download=False)
    (root / PACKED).unlink()
    return root


def test_an_archive_put_in_place_is_unpacked(root, made):
    assert made.archive.fetch(root, download=False) == made.parts


def test_each_file_is_read_and_hashed_once(unpacked, made, monkeypatch):
    read, hashed = [], []
    monkeypatch.setattr(files, "read", lambda file: read.append(file.name) or file.read_bytes())
    monkeypatch.setattr(archive, "md5", lambda data: hashed.append(len(data)) or md5(data))
    assert made.archive.fetch(unpacked, download=False) == made.parts
    assert sorted(read) == sorted(made.parts)
    assert sorted(hashed) == sorted(map(len, made.parts.values()))


def test_what_a_killed_download_leaves_is_not_taken_for_a_set(tmp_path, made, server):
    url, _ = server
    (tmp_path / f"{files.TEMPORARY}abc-{PACKED}").write_bytes(made.packed[:100])
    (tmp_path / PACKED).write_bytes(made.packed[:-1])
    (tmp_path / FOLDER).mkdir()
    with pytest.raises(DataError, match="data_batch_1 is missing and 6 more"):
        made.archive.fetch(tmp_path, download=False)
    assert made.archive.fetch(tmp_path, urls=[url("/good")]) == made.parts


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "missing"])
@pytest.mark.parametrize("part", list(CIFAR10.parts))
def test_any_damaged_part_is_named_and_mended(unpacked, made, part, damage):
    file, good = unpacked / FOLDER / part, made.parts[part]
    middle = len(good) // 2
    altered = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"cut": good[:middle], "empty": b"", "altered": altered}[damage])
    with pytest.raises(DataError) as error:
        made.archive.fetch(unpacked, download=False)
    message = str(error.value)
    assert "\n" not in message
    found = "is missing" if damage == "missing" else f"has md5 {md5(file.read_bytes())}, expected {md5(good)}"
    assert f"{part} {found}" in message
    (unpacked / PACKED).write_bytes(made.packed)
    assert made.archive.fetch(unpacked, download=False) == made.parts
    assert file.read_bytes() == good


def test_a_damaged_part_is_mended_by_a_download(unpacked, made, server):
    url, asked = server
    (unpacked / FOLDER / "data_batch_3").write_bytes(b"")
    assert made.archive.fetch(unpacked, urls=[url("/good")]) == made.parts
    assert asked == ["/good"]


def test_an_archive_with_other_contents_is_refused(root, made):
    other = replace(made.archive, parts={**made.archive.parts, "data_batch_6": None})
    with pytest.raises(DataError, match=rf"{PACKED} does not contain {FOLDER} as expected \(data_batch_6 is missing\)"):
        other.fetch(root, download=False)
    no_tar = replace(made.archive, md5=md5(b"no archive"))
    (root / PACKED).write_bytes(b"no archive")
    with pytest.raises(DataError, match=f"{FOLDER} cannot be read from or written to"):
        no_tar.fetch(root, download=False)


def test_a_set_without_files():
    assert no_files("anywhere", download=False) == {}


# pickles --------------------------------------------------------------------------------------------------------------


def test_a_pickle_in_place_of_a_part_does_not_run(unpacked, made, tmp_path):
    for part, good in made.parts.items():
        file = unpacked / FOLDER / part
        file.write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
        with pytest.raises(DataError, match=f"{part} has md5"):
            made.archive.fetch(unpacked, download=False)
        file.write_bytes(good)
    assert not (tmp_path / "marker").exists()


def test_only_arrays_and_plain_containers_are_unpickled(tmp_path):
    plain = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "name": "ä", "pair": (1.5, None)}
    for protocol in (3, 4):
        again = unpickle(pickle.dumps(plain, protocol), "batch")
        assert np.array_equal(again.pop("data"), plain["data"])
        assert again == {name: value for name, value in plain.items() if name != "data"}
    marker = tmp_path / "marker"
    objects = {"x": [Payload(marker)]}, np.save, np.float64(1), np.array([Payload(marker)], dtype=object)
    for content in map(pickle.dumps, objects):
        with pytest.raises(DataError, match=r"^batch cannot be read .* is neither a NumPy array nor a plain container"):
            unpickle(content, "batch")
    for content in (b"", b"nonsense", pickle.dumps(plain)[:-20]):
        with pytest.raises(DataError, match=r"^batch cannot be read"):
            unpickle(content, "batch")
    assert not marker.exists()
