"""scripts/demo.py: the page in a browser."""

import base64
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from builders import ROOT
from claims import tiny
from nin import pictures, predict, pretrained
from nin.data.sets import SETS

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def browser():
    """A headless Chromium: the machine's, else playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("there is no Chromium here: playwright install chromium")
        yield opened
        opened.close()


def two_nets(folder):
    """A GAP and an FC net as weights files."""
    nets = {head: tiny(head, seed) for seed, head in enumerate(("gap", "fc"))}
    with torch.no_grad():  # untrained it takes everything for one class: its scores get the mean 0
        last = [module for module in nets["gap"].modules() if isinstance(module, nn.Conv2d)][-1]
        last.bias -= nets["gap"](SETS["digits"].parse({}, 32).test_images).mean(0)
    for head, trained in nets.items():
        pretrained.save(folder / f"{head}.safetensors", trained)
    return nets


@pytest.fixture
def served(tmp_path):
    """The page, of a GAP and an FC net: its address and the two nets."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    nets = two_nets(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "checkpoint=gap.safetensors,fc.safetensors"]
    page = subprocess.Popen([*command, f"port={port}"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout.readline() == f"open http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        yield f"http://127.0.0.1:{port}", nets
    finally:
        page.terminate()
        page.communicate(timeout=60)
    assert page.returncode == 0


FILE = """base64 => {
    const transfer = new DataTransfer()
    const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0))
    transfer.items.add(new File([bytes], "picture.png", {type: "image/png"}))
    return transfer
}"""


def test_a_dropped_picture_is_classified_and_its_maps_are_shown(browser, served, tmp_path):
    address, nets = served
    torch.manual_seed(0)
    Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()).save(tmp_path / "picture.png")
    seen = pictures.read_picture(tmp_path / "picture.png")
    best = {head: str(predict.predict(trained, [seen])[0].best(1)[0]) for head, trained in nets.items()}
    assert best["gap"] != best["fc"]  # else a page that mixes them up would pass

    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    elsewhere = []
    page.on("request", lambda r: elsewhere.append(r.url) if r.url.startswith("http") and address not in r.url else None)
    page.goto(address)
    dropped = page.evaluate_handle(FILE, base64.b64encode((tmp_path / "picture.png").read_bytes()).decode())
    page.locator("input[type=file]").first.locator("xpath=..").dispatch_event("drop", {"dataTransfer": dropped})
    for side, head in enumerate(("gap", "fc")):
        page.locator(f"#classes{side} h2", has_text=best[head]).wait_for()
        page.wait_for_function(f"document.querySelector('#maps{side} img')?.naturalWidth > 500")
    page.locator("#net1 input").click()
    page.get_by_role("option").first.click()  # the GAP net on both sides
    page.locator("#classes1 h2", has_text=best["gap"]).wait_for()
    digits = SETS["digits"].parse({}, 32)
    examples = [digits.test_images[(digits.test_labels == k).nonzero()[0]] for k in range(10)]
    said = [str(nets["gap"](image).argmax().item()) for image in examples]
    other = next(k for k in range(10) if said[k] != best["gap"])
    page.locator(".gallery-item").nth(other).click()
    for side in (0, 1):
        page.locator(f"#classes{side} h2", has_text=said[other]).wait_for()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    if "SCREENSHOT" in os.environ:
        shutil.copy(tmp_path / "page.png", os.environ["SCREENSHOT"])
    assert len(set(Image.open(tmp_path / "page.png").convert("L").tobytes())) > 100  # not an empty page
    assert elsewhere == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "checkpoint= is required"),
        (["checkpoint=net", "port=0"], 2, "port=0: expected an integer from 1 to 65535"),
        (["checkpoint=net", "port=" + "9" * 5000], 2, "expected an integer from 1 to 65535"),
        (["net"], 2, "net: expected NAME=VALUE"),
        (["checkpoint=net"], 1, "checkpoint=net: does not exist"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, arguments, code, words):
    ended, said, errors = script("demo.py", *arguments)
    assert (ended, said) == (code, "")
    assert words in errors and len(errors.splitlines()) == 1


def test_a_port_that_is_taken_is_named(script, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    two_nets(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said, errors = script("demo.py", "checkpoint=gap.safetensors", f"port={port}")
    assert (code, said) == (2, "")
    assert errors == f"error: port={port}: cannot be served on; choose another\n"


def test_without_gradio_the_command_says_what_to_install(script, tmp_path, monkeypatch):
    two_nets(tmp_path)
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, errors = script("demo.py", "checkpoint=gap.safetensors")
    assert code == 2 and errors == "error: the page requires gradio: pip install 'network-in-network[demo]'\n"


@pytest.fixture
def demo():
    """The functions of the command."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    return vars(import_module("nin.commands.demo"))


def test_the_page_looks_at_pictures_and_refuses_what_is_none(demo, tmp_path):
    """Without a browser: the page's own function, and a picture that cannot be read."""
    import gradio

    nets = two_nets(tmp_path)
    page = demo["page"](nets, [])
    look = next(f.fn for f in page.fns.values() if f.fn.__name__ == "look")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    probabilities, figure = look(str(tmp_path / "picture.png"), "fc")
    assert sum(probabilities.values()) == pytest.approx(1) and len(figure.axes) == 5
    assert look(None, "gap") == (None, None)
    (tmp_path / "bad.png").write_text("text")
    with pytest.raises(gradio.Error, match="not a picture"):
        look(str(tmp_path / "bad.png"), "gap")
    nets["gap"].facts["test_error"] = 6.64
    assert [demo["describe"](nets[name], name) for name in nets] == ["gap, 6.64 % test error, gap", "fc, fc"]


def test_the_page_opens_with_an_example_answered_and_names_its_classes(demo, tmp_path):
    import gradio

    nets = two_nets(tmp_path)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.png")
    parts = list(demo["page"](nets, [tmp_path / "picture.png"]).blocks.values())
    (title,) = (part.value for part in parts if isinstance(part, gradio.Markdown))
    assert "They know 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in title
    shown = [part.value for part in parts if isinstance(part, gradio.Label)]
    seen = [pictures.read_picture(tmp_path / "picture.png")]
    expected = [max(predict.predict(trained, seen)[0].probabilities.tolist()) for trained in nets.values()]
    assert [each["confidences"][0]["confidence"] for each in shown] == pytest.approx(expected)
    assert all(part.value["plot"] for part in parts if isinstance(part, gradio.Plot))
    assert next(part.value for part in parts if isinstance(part, gradio.Image))
    nets["fc"].classes = ("cat", "dog")
    assert (
        demo["known"](nets) == "- gap knows 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.\n- fc knows 2 classes: cat, dog."
    )
    assert demo["known"]({"fc": nets["fc"]}) == "It knows 2 classes: cat, dog."


def test_the_first_example_is_a_photograph_where_the_net_knows_what_it_shows(script, demo, tmp_path, monkeypatch):
    assert demo["PHOTOGRAPH"].is_file()
    opened = []
    monkeypatch.setitem(vars(import_module("nin.commands.demo")), "serve", lambda page, port, host: opened.append(page))
    monkeypatch.setitem(demo, "page", lambda nets, examples: [file.name for file in examples])
    two_nets(tmp_path)
    for checkpoint in ("cifar10-gap", "gap.safetensors"):
        assert script("demo.py", f"checkpoint={checkpoint}", "data.root=nowhere")[0] == 0
    assert [names[0] for names in opened] == ["chelsea.png", "0.png"]


@pytest.mark.tries(200)
def test_only_the_pages_own_names_are_answered(demo, tried):
    """On this machine alone: localhost and its addresses. For other machines: any address, which no other site can have
    as its name, and the machine's name."""
    draws = random.Random(10)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-."
    for _ in range(90):
        name = "".join(draws.choices(letters, k=draws.randrange(1, 30)))
        foreign = draws.choice(
            ("{}.example", "127.0.0.1.{}.example", "localhost.{}x", "{}@evil.example", "x{}localhost")
        )
        host = foreign.format(name) + draws.choice(("", ":7860", ":80"))
        for served in ("127.0.0.1", "0.0.0.0"):
            assert not demo["OwnHost"](None, served).is_own(host), host
            tried(host)
    odd = "|[::1|]|a b|http://|:7860|[::1]x|\0|127.1.evil|::1|0x7f.1|null|/|?|@|[|[]|[zz]|..|%"
    for host in odd.split("|"):
        assert not demo["OwnHost"](None, "127.0.0.1").is_own(host), host
        tried(host)
    for host in ("localhost", "LocalHost:7860", "127.0.0.1:1", "127.9.9.9", "[::1]:7860"):
        assert demo["OwnHost"](None, "127.0.0.1").is_own(host) and demo["OwnHost"](None, "0.0.0.0").is_own(host)
    for host in ("192.168.1.7:7860", "10.0.0.1", "[fe80::1]:80", socket.gethostname()):
        assert demo["OwnHost"](None, "0.0.0.0").is_own(host) and not demo["OwnHost"](None, "localhost").is_own(host)


def test_an_address_that_is_none_of_this_machine_is_named(script, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    two_nets(tmp_path)
    for host in ("no such host", "x" * 300, "a..b", "", "192.0.2.1"):
        code, said, errors = script("demo.py", "checkpoint=gap.safetensors", f"host={host}", "port=7999")
        assert (code, said) == (2, "") and errors.startswith("error: host="), errors
        assert len(errors.splitlines()) == 1


def ask(port, method, path, body=None, **headers):
    """The status and the content of an answer of the page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def upload(port, content, name="picture.png", **headers):
    """Sends a file as the page in a browser does; returns the status, and its place or what is wrong."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x", **headers}
    status, answer = ask(port, "POST", "/gradio_api/upload", head + content + b"\r\n--x--\r\n", **headers)
    return status, json.loads(answer)[0] if status == 200 else answer.decode()


def look(port, file, net):
    """The page's answer to an uploaded file."""
    data = json.dumps({"data": [{"path": file, "meta": {"_type": "gradio.FileData"}}, net]})
    _, answer = ask(port, "POST", "/gradio_api/call/look", data, **{"Content-Type": "application/json"})
    return ask(port, "GET", f"/gradio_api/call/look/{json.loads(answer)['event_id']}")[1].decode()


def served_here(demo, page, asked):
    """Serves the page in this process, and calls `asked` with its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    page.block_thread = lambda: asked(port)
    try:
        with demo["all_files_in_one_folder"]() as folder:
            demo["serve"](page, port)
            page.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not folder.exists()


@pytest.mark.tries(26)
def test_bad_uploads_and_strange_requests_are_a_sentence(demo, tmp_path, tried, monkeypatch):
    monkeypatch.setattr(predict, "draw", lambda *_, **__: Figure(figsize=(1, 1)))  # a real one takes a second
    page, draws = demo["page"](two_nets(tmp_path), []), random.Random(11)
    good, claim = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(good, "PNG")
    Image.new("1", (15_000, 12_000)).save(claim, "PNG")  # 180 million pixels in 30 kB
    bad = {
        "text.txt": b"hello",
        "empty.png": b"",
        "page.html": b"<script>alert(1)</script>",
        "huge.png": claim.getvalue(),
    }
    bad |= {"drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n"}
    bad |= {f"cut{n}.png": good.getvalue()[: draws.randrange(60)] for n in range(5)}
    bad |= {f"noise{n}.jpg": draws.randbytes(draws.randrange(1, 9999)) for n in range(5)}

    def asked(port):
        for name, content in bad.items():
            status, file = upload(port, content, name)
            assert status == 200 and Path(file).is_relative_to(tempfile.gettempdir())
            answer = look(port, file, "gap")
            assert '"error": "the picture: ' in answer and tempfile.gettempdir() not in answer, (name, answer)
            tried(name)
        for megabytes in (21, 25, 40):
            assert upload(port, bytes(megabytes << 20)) == (
                413,
                "File size exceeded maximum allowed size of 20971520 bytes.",
            )
            tried(megabytes)
        assert upload(port, bytes(19 << 20))[0] == 200
        for host in ("evil.example", f"localhost.evil.example:{port}", "10.0.0.1"):
            assert ask(port, "GET", "/", Host=host) == (421, b"This page answers to the address that it printed.\n")
            tried(host)
        for origin in ("http://evil.example", "null", "https://localhost.evil.example", "file://"):
            assert upload(port, good.getvalue(), Origin=origin)[0] == 421
            tried(origin)
        _, file = upload(port, good.getvalue())
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda n: look(port, file, ("gap", "fc")[n % 2]), range(30)))
        assert all("event: complete" in answer for answer in answers)
        assert ask(port, "GET", "/")[0] == 200

    served_here(demo, page, asked)


def killed(demo):
    """The folder of a page whose process was killed, with an upload inside."""
    before = {*Path(tempfile.gettempdir()).iterdir()}
    if (child := os.fork()) == 0:
        with demo["all_files_in_one_folder"]() as folder:
            (folder / "upload").mkdir()
            (folder / "upload" / "picture.png").write_bytes(b"a picture")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (folder,) = {*Path(tempfile.gettempdir()).iterdir()} - before
    assert (folder / "upload" / "picture.png").is_file()
    return folder


@pytest.mark.tries(16)
def test_what_a_killed_page_leaves_is_removed_by_the_next_one_and_nothing_else(demo, tmp_path, monkeypatch, tried):
    """Folders of killed pages, each found by the next one, among those of pages that are served, of others, and names
    that look alike."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    kept, draws = [], random.Random(12)
    name = demo["FOLDER"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / demo["LOCK"]).touch()

    def make(kind):
        made = tmp_path / "temporary" / (f"x{name}" if kind == "other" else f"{name}{draws.randrange(10**9)}")
        if kind == "link":
            made.symlink_to(tmp_path / "elsewhere")
        elif kind == "file":
            made.write_text("a file")
        else:
            made.mkdir()
            (made / "content").write_text("content")
        if kind in ("other", "anothers"):
            (made / demo["LOCK"]).touch()
        if kind == "anothers":
            os.chown(made, 12345, -1)
        return made

    with ExitStack() as served:
        for kind in ["link", "file", "without lock", "other", *["anothers"] * (os.getuid() == 0)]:
            kept.append(make(kind))
        for _ in range(16):
            left = killed(demo)
            if draws.random() < 0.3:
                kept.append(served.enter_context(demo["own_folder"]()))
            demo["remove_leftovers"]()
            assert not left.exists() and {*(tmp_path / "temporary").iterdir()} == {*kept}
            tried(left)
        assert sum((folder / "content").is_file() for folder in kept) == 2 + (os.getuid() == 0)
        assert (tmp_path / "elsewhere" / demo["LOCK"]).is_file()
    assert len([folder for folder in kept if os.path.lexists(folder)]) == 4 + (os.getuid() == 0)


def test_the_page_is_served_to_this_machine_until_a_signal(demo, tmp_path, capsys):
    answers = []

    def asked(port):
        answers.append((port, ask(port, "GET", "/")[1]))
        os.kill(os.getpid(), signal.SIGTERM)

    page = demo["page"](two_nets(tmp_path), [])
    try:
        with pytest.raises(KeyboardInterrupt):
            served_here(demo, page, asked)
    finally:
        page.close()
    ((port, answer),) = answers
    assert b"Network in Network" in answer
    assert f"open http://127.0.0.1:{port}/ (Ctrl-C ends it)\n" in capsys.readouterr().out
