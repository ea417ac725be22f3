import base64
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_claims import tiny
from torch import nn

from nin import pictures, pretrained
from nin.data import load_digits
from nin.studies import maps

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


@pytest.fixture
def served(tmp_path):
    """The page, of a GAP and an FC net: its address and the two nets."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    pytest.importorskip("captum", reason="captum is not installed")
    nets = {head: tiny(head, seed) for seed, head in enumerate(("gap", "fc"))}
    with torch.no_grad():  # untrained it takes everything for one class: its scores get the mean 0
        last = [module for module in nets["gap"].modules() if isinstance(module, nn.Conv2d)][-1]
        last.bias -= nets["gap"](load_digits().test_images).mean(0)
    for head, trained in nets.items():
        pretrained.save(tmp_path / f"{head}.safetensors", trained)
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


def test_a_dropped_picture_is_classified_and_its_maps_are_shown(served, browser, tmp_path):
    address, nets = served
    torch.manual_seed(0)
    Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()).save(tmp_path / "picture.png")
    seen = pictures.resize(pictures.read_picture(tmp_path / "picture.png"), 32)
    best = {head: str(maps.look(trained, seen)[0].argmax().item()) for head, trained in nets.items()}
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
    digits = load_digits()
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
        ([], 2, "checkpoint= must be given"),
        (["checkpoint=net", "port=0"], 2, "port=0: from 1 to 65535"),
        (["net"], 2, "net: give NAME=VALUE"),
        (["checkpoint=net"], 1, "checkpoint=net: there is no such file or folder"),
    ],
)
def test_a_wrong_command_is_one_sentence(script, arguments, code, words):
    ended, said, errors = script("demo.py", *arguments)
    assert (ended, said) == (code, "")
    assert words in errors and len(errors.splitlines()) == 1
