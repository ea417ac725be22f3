import http.server
import io
import pickle
import tarfile
import threading
from dataclasses import dataclass, replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from flowers import make_flowers
from nin import download
from nin.data.archive import Archive, md5
from nin.data.sets import CIFAR10


@dataclass(frozen=True)
class Made:
    """A small set with CIFAR-10's names: its entry, its packed archive, and the parts inside."""

    archive: Archive
    packed: bytes
    parts: dict[str, bytes]


@pytest.fixture(scope="session")
def made() -> Made:
    rng = np.random.default_rng(0)
    parts = {}
    for name in CIFAR10.parts:
        batch = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
        parts[name] = pickle.dumps({"label_names": list("abcdefghij")} if name == "batches.meta" else batch, 4)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in [*parts.items(), ("readme.html", b"")]:
            member = tarfile.TarInfo(f"{CIFAR10.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sums = {name: md5(content) for name, content in parts.items()}
    return Made(replace(CIFAR10, md5=md5(packed.getvalue()), parts=sums), packed.getvalue(), parts)


@pytest.fixture
def server(made, monkeypatch):
    """Serves /good, /altered, /short, /missing, /nonsense, /silent, and by a clock of its own /slow and /slower."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/nonsense":
                self.wfile.write(b"nonsense\r\n")
                return
            if self.path.startswith("/missing"):
                self.send_error(404)
                return
            body = made.packed[::-1] if self.path == "/altered" else made.packed
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.path == "/silent":
                ended.wait(60)
                return
            self.wfile.write(body[:100] if self.path == "/short" else body)

        def log_message(self, *args):
            pass

    def read(answer):  # a slow answer is there when the clock has moved on
        whole(answer)
        clock.now += {"/slow": 20, "/slower": 2e7}.get(urlsplit(answer.url).path, 0)

    asked, ended, clock = [], threading.Event(), SimpleNamespace(now=0.0)
    whole = download._Answer.read
    monkeypatch.setattr(download._Answer, "read", read)
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield lambda path: f"http://127.0.0.1:{httpd.server_port}{path}", asked
        ended.set()
        httpd.shutdown()


@pytest.fixture(scope="session")
def flowers_root(tmp_path_factory):
    return make_flowers(tmp_path_factory.mktemp("flowers"))
