"""scripts/demo.py: the page in a browser."""

import base64
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib import import_module

import pytest
import torch
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
        (["checkpoint=net"], 1, "checkpoint=net: no such file or folder"),
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


def test_the_page_is_served_to_this_machine_until_a_signal(demo, tmp_path, capsys):
    page, answers, before = demo["page"](two_nets(tmp_path), []), [], signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def asked():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        answers.append(connection.getresponse().read())
        os.kill(os.getpid(), signal.SIGTERM)

    page.block_thread = asked
    try:
        with pytest.raises(KeyboardInterrupt):
            demo["serve"](page, port)
    finally:
        signal.signal(signal.SIGTERM, before)
        page.close()
    assert b"Network in Network" in answers[0]
    assert f"open http://127.0.0.1:{port}/ (Ctrl-C ends it)\n" in capsys.readouterr().out
