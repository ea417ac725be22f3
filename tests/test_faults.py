"""Faults of disks, files and people. README.md in this folder lists all that are tried, wherever the test is."""

import ast
import json
import pickle
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import CONF, ROOT
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pretrained import trained
from test_recovery import Payload

import nin
from nin import pretrained, run
from nin.command import compose
from nin.data import Whiten
from nin.folder import plot_curves
from nin.pretrained import CheckpointError, load, save
from nin.provenance import peak_memory_gb
from nin.recovery import AtomicCheckpointIO, RunError, replace
from nin.studies.rows import Row, RowsError, append, read

NARROW = "model.blocks=[{widths: 8, kernel_size: 5, stride: 2}, {widths: [8, 8, null]}]"
SHORT = ["data=digits", NARROW, "trainer.max_epochs=2", "trainer.limit_train_batches=2", "trainer.progress_bar=false"]


def rows() -> list[tuple[str, int, list[str]]]:
    """The table of README.md: fault, bad inputs, tests."""
    text = Path(__file__).with_name("README.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return [(fault, int(count), tests.replace("`", "").split(", ")) for fault, count, tests in lines]


def test_every_test_of_the_table_exists():
    assert len(rows()) == len({fault for fault, _, _ in rows()}) > 40
    for _, count, tests in rows():
        assert count > 0
        for test in tests:
            file, name = test.split("::")
            tree = ast.parse((Path(__file__).parent / file).read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run.train(compose(CONF, SHORT), folder)
    return folder


# full disks ----------------------------------------------------------------------------------------------------------


@contextmanager
def room_for(size: int):
    """Files cannot grow beyond `size` bytes: the system itself refuses, whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def row(seed: int) -> Row:
    return Row("x", "digits", "gap", "modern", seed, 1, "ok", 1.0, 1.0, 1.0, 1.0)


WRITERS = {
    "last.ckpt": lambda file, n: AtomicCheckpointIO().save_checkpoint({"n": n, "x": torch.zeros(9000)}, file),
    "metrics.csv": lambda file, n: replace(file, f"{n}," * 9000),
    "summary.json": lambda file, n: replace(file, json.dumps([n] * 9000)),
    "config.yaml": lambda file, n: replace(file, f"a: {'x' * 9000}{n}"),
    "model.safetensors": lambda file, n: save(file, trained()),
    "curves.png": lambda file, n: replace(file, lambda part: plot_curves(curves(file.parent, n), part)),
    "small.json": lambda file, n: pretrained.publish(trained(size=32), f"small{'' if n == 1 else n}", file.parent),
    "runs.csv": lambda file, n: [append(file, row(seed)) for seed in range(90 * n - 90, 90 * n)],
}


def curves(folder: Path, n: int) -> Path:
    (folder / "m.csv").write_text("epoch,train/loss,train/error\n" + f"0,{n},1\n1,1,1\n")
    return folder / "m.csv"


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_before(tmp_path, name):
    file = tmp_path / name
    WRITERS[name](file, 1)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with (
        room_for(min(4000, len(before[name]) + 200)),
        pytest.raises((RunError, CheckpointError, RowsError)) as error,
    ):
        WRITERS[name](file, 2)
    assert re.search(r"cannot be (written|added) \(.*\); .* as (it was|they were)", str(error.value))
    assert "\n" not in str(error.value)
    after = {each.name: each.read_bytes() for each in tmp_path.iterdir() if each.name != "m.csv"}
    if name == "runs.csv":  # the rows that had room are there, whole
        assert after[name].startswith(before[name]) and len(read(file)) >= 90
    else:
        assert after == {each: content for each, content in before.items() if each != "m.csv"}
    WRITERS[name](file, 2)


def test_a_disk_that_fills_in_the_second_epoch_costs_that_epoch(finished, tmp_path, monkeypatch):
    written = TorchCheckpointIO.save_checkpoint
    calls = []

    def full(self, checkpoint, path, storage_options=None):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return written(self, checkpoint, path, storage_options)

    with monkeypatch.context() as faulty:
        faulty.setattr(TorchCheckpointIO, "save_checkpoint", full)
        with pytest.raises(RunError, match=r"last\.ckpt cannot be written .*No space left"):
            run.train(compose(CONF, SHORT), tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0
    run.train(compose(CONF, [*SHORT, "resume=auto"]), tmp_path / "run")
    one, other = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (finished / "metrics.csv").read_bytes() == (tmp_path / "run" / "metrics.csv").read_bytes()


def test_a_full_disk_is_one_sentence_and_the_run_can_be_had_again(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SHORT, f"hydra.run.dir={folder}"]
    limited = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.argv = {command[1:]}
runpy.run_path(sys.argv[0], run_name="__main__")"""
    ended = subprocess.run([sys.executable, "-B", "-c", limited], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert re.fullmatch(r"error: .*last\.ckpt cannot be written \(.*\); .*\n", ended.stderr.splitlines(True)[-1])
    assert "Traceback" not in ended.stderr
    assert "test_error" in run.train(compose(CONF, [*SHORT, "resume=auto"]), folder)


def test_a_disk_that_is_full_for_the_run_itself_is_one_sentence(script, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(run, "train", full)
    code, _, errors = script("train.py", *SHORT)
    assert (code, errors) == (1, "error: [Errno 28] No space left on device: 'somewhere'\n")


# pickles -------------------------------------------------------------------------------------------------------------


def hostile(kind: str, marker: Path, file: Path) -> None:
    """A file that makes `marker` when it is unpickled."""
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "pytorch-lightning_version")
    payload = {**{part: {} for part in parts}, "epoch": 0, "global_step": 1, "hyper_parameters": Payload(str(marker))}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_the_hostile_files_are_hostile(tmp_path, kind):
    hostile(kind, tmp_path / "marker", tmp_path / "file")
    if kind == "pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("way", ["resume", "train", "evaluate", "predict", "nin.load"])
def test_no_way_in_runs_a_pickle(finished, script, tmp_path, way):
    marker, picture = tmp_path / "marker", tmp_path / "picture.png"
    Image.new("RGB", (40, 40), "red").save(picture)

    def enter(file):
        if way == "resume":
            return script("train.py", *SHORT, "resume=auto", f"hydra.run.dir={file.parent}")
        if way == "train":
            return script("train.py", *SHORT, f"checkpoint={file}", f"hydra.run.dir={tmp_path / file.name}-run")
        if way == "evaluate":
            return script("evaluate.py", f"checkpoint={file}", "trainer.progress_bar=false")
        if way == "predict":
            return script("predict.py", f"checkpoint={file}", picture)
        try:
            nin.load(file)
        except CheckpointError as error:
            return 1, "", f"error: {error}\n"
        return 0, "", ""

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if way == "resume":
        (folder / "model.safetensors").unlink()  # as if the run had not come to its end
    good = folder / ("last.ckpt" if way == "resume" else "model.safetensors")
    content = good.read_bytes()
    names = ["last.ckpt"] if way == "resume" else ["net.ckpt", "net.pt", "net.safetensors"]
    tried = 0
    for name in names:
        for kind in ("pickle", "zip", "legacy"):
            hostile(kind, marker, folder / name)
            code, _, errors = enter(folder / name)
            lines = errors.strip().splitlines()
            assert code == 1 and lines[-1].startswith("error: ") and "Traceback" not in errors, errors
            assert name in lines[-1]
            assert not marker.exists()
            tried += 1
    assert tried == (3 if way == "resume" else 9)
    good.write_bytes(content)
    code, _, errors = enter(good)
    assert code == 0, errors


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "predict.py"])
def test_no_pickle_runs_from_a_shell(tmp_path, name):
    hostile("zip", tmp_path / "marker", tmp_path / "net.pt")
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    arguments = {"train.py": SHORT, "evaluate.py": [], "predict.py": ["picture.png"]}[name]
    command = [sys.executable, str(ROOT / "scripts" / name), "checkpoint=net.pt", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1
    assert re.fullmatch(r"error: checkpoint=net\.pt: net\.pt is not a safetensors file .*\n", ended.stderr)
    assert not (tmp_path / "marker").exists()


def test_the_yaml_of_a_run_runs_nothing(finished, script, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'marker'}']")
    code, _, errors = script("train.py", *SHORT, "resume=auto", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1 and "config.yaml or summary.json is damaged" in errors
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "part",
    ["state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "shapes", "another net"],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(finished, tmp_path, part):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "model.safetensors").unlink()
    file = folder / "last.ckpt"
    found = torch.load(file, weights_only=True)
    if part == "shapes":
        states = found["optimizer_states"][0]["state"]
        states |= {key: {name: torch.zeros(7) for name in state} for key, state in states.items()}
        found["state_dict"] = {name: tensor[:0] for name, tensor in found["state_dict"].items() if tensor.ndim}
    elif part == "another net":
        found["state_dict"] = {f"x.{name}": tensor for name, tensor in found["state_dict"].items()}
    else:
        found[part] = {"epoch": "one", "loops": {"fit_loop": 3}, "callbacks": [1]}.get(part, [{"x": 1}])
    torch.save(found, file)
    with pytest.raises(RunError, match=r"last\.ckpt is damaged or not a checkpoint of a run"):
        run.train(compose(CONF, [*SHORT, "resume=auto"]), folder)
    assert torch.load(file, weights_only=True).keys() == found.keys()


# weights files and cards ---------------------------------------------------------------------------------------------


def header_of(file: Path) -> dict:
    size = struct.unpack("<Q", file.read_bytes()[:8])[0]
    return json.loads(json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]["nin"])


def wide(**block):
    return {"net": {"blocks": [block, {"widths": [8, 8, None]}]}}


NET_OF = {"num_classes": 10, "head": "gap", "image_size": 8, "norm": "batch"}
LIES = {
    "100 GB of weights": wide(widths=60_000),
    "a window of 10,000 pixels": wide(widths=8, kernel_size=10_000, padding=5000),
    "a stride of nothing": wide(widths=8, stride=0),
    "a huge width": wide(widths=10**400),
    "a width that is a fraction": wide(widths=8.5),
    "a width that is not a number": wide(widths=float("nan")),
    "a width that is text": wide(widths="888"),
    "a width that is none": wide(widths=None),
    "an unknown word of a block": wide(widths=8, code="x"),
    "a block that is a number": {"net": {"blocks": [3]}},
    "blocks without end": {"net": {"blocks": [{"widths": [1, 1, 1], "padding": 3}] * 5000}},
    "blocks that are text": {"net": {"blocks": "cifar10"}},
    "no net": {"net": None},
    "an unknown head": {"net": {"blocks": [{"widths": [8, 8, None]}], "head": "sum"}},
    "a head that is a list": {"net": {"blocks": [{"widths": [8, 8, None]}], "head": ["gap"]}},
    "a million classes": {"net": {"blocks": [{"widths": [8, 8, None]}], "num_classes": 10**6}},
    "classes that are numbers": {"classes": list(range(10))},
    "classes without end": {"classes": ["x"] * 100_000},
    "classes that are none": {"classes": None},
    "an unknown preprocessing": {"preprocess": {"name": ["whiten"]}},
    "no preprocessing": {"preprocess": None},
    "a whitening of another size": {"preprocess": {"name": "whiten", "shape": [10**9] * 3}},
    "another file for the whitening": {"preprocess": {"name": "whiten", "file": "../../x", "sha256": "0"}},
    "a whitening that is a number": {"preprocess": {"name": "whiten", "file": 3, "sha256": "0"}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_description_that_lies_is_refused(tmp_path, lie):
    file = tmp_path / "model.safetensors"
    save(file, trained())
    header, tensors = header_of(file), load_file(file)
    changed = dict(LIES[lie])
    if isinstance(changed.get("net"), dict):
        changed["net"] = {**header["net"], **changed["net"]}
    before = peak_memory_gb()
    save_file(tensors, str(file), metadata={"nin": json.dumps(header | changed)})
    with pytest.raises(CheckpointError) as error:
        load(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    assert peak_memory_gb() - before < 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["net.blocks.block1.conv1.weight", "net.blocks.block1.norm1.running_var"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name, value):
    file = tmp_path / "model.safetensors"
    save(file, trained())
    header, tensors = header_of(file), load_file(file)
    tensors[name].view(-1)[3] = value
    save_file(tensors, str(file), metadata={"nin": json.dumps(header)})
    with pytest.raises(CheckpointError, match=f"{name} holds values that are no finite numbers"):
        load(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused(tmp_path, dtype):
    file = tmp_path / "model.safetensors"
    save(file, trained())
    header, tensors = header_of(file), load_file(file)
    tensors["net.blocks.block1.conv1.weight"] = tensors["net.blocks.block1.conv1.weight"].to(dtype)
    save_file(tensors, str(file), metadata={"nin": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"conv1\.weight is of torch\..*, not torch\.float32"):
        load(file)


def lying_headers():
    """Bytes of safetensors files whose header is not of what follows it."""

    def file(header, data=b"\0" * 64, size=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if size is None else size) + text + data

    def tensor(shape=(16,), offsets=(0, 64), dtype="F32"):
        return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}

    yield "a header of 2^63 bytes", file(tensor(), size=2**63)
    yield "a header longer than the file", file(tensor(), size=10**6)
    yield "a header of no bytes", file(b"")
    yield "a header that is no JSON", file(b"{" * 100)
    yield "a header nested without end", file(b'{"a":' * 50_000)
    yield "a header that is no text", file(b"\xff\xfe" * 50)
    yield "a shape of 100 GB", file(tensor(shape=(25 * 10**9,)))
    yield "a shape beyond all numbers", file(tensor(shape=(2**62, 2**62)))
    yield "a shape below 0", file(tensor(shape=(-16,)))
    yield "data beyond the end", file(tensor(offsets=(0, 10**12), shape=(25 * 10**10,)))
    yield "data that ends before it begins", file(tensor(offsets=(64, 0)))
    yield "two tensors in one place", file({**tensor(), "v": tensor()["w"]})
    yield "an unknown type", file(tensor(dtype="PICKLE"))
    nested = json.dumps({"__metadata__": {"nin": "[" * 200_000}, **tensor()}).encode()
    yield "a description nested without end", file(nested)


@pytest.mark.parametrize(("lie", "content"), lying_headers(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_header_that_lies_is_refused(tmp_path, lie, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    before = peak_memory_gb()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert peak_memory_gb() - before < 0.5


def test_a_damaged_weights_file_is_loaded_or_refused(tmp_path):
    """What is altered in the weights alone cannot be told from other weights, but for a card's sha256."""
    file, draws = tmp_path / "model.safetensors", random.Random(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    save(file, trained(Whiten.fit(images.repeat(9, 1, 1, 1))))
    good = file.read_bytes()
    header = struct.unpack("<Q", good[:8])[0] + 8
    ended = {"loaded": 0, "refused": 0}
    for number in range(300):
        bad = bytearray(good)
        for _ in range(draws.choice([1, 4])):
            bad[draws.randrange(header if number % 2 else len(bad))] = draws.randrange(256)
        if number % 3 == 2:
            del bad[draws.randrange(len(bad)) :]
        file.write_bytes(bad)
        try:
            assert load(file)(images).shape == (2, 10)
            ended["loaded"] += 1
        except CheckpointError as error:
            assert "model.safetensors" in str(error) and len(str(error)) < 1500
            ended["refused"] += 1
    assert min(ended.values()) > 50, ended


@pytest.mark.parametrize(
    "card",
    [
        "[" * 100_000,
        '{"file": 3, "sha256": "0"}',
        '{"file": "small.safetensors", "sha256": NaN}',
        '{"file": "small.safetensors", "sha256": ' + "9" * 5000 + "}",
        "\0",
        "null",
    ],
    ids=["nested", "number", "nan", "huge", "zero", "null"],
)
def test_a_damaged_card_is_refused(tmp_path, monkeypatch, card):
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path)
    (tmp_path / "small.json").write_text(card)
    with pytest.raises(CheckpointError, match=r"its card small\.json is damaged"):
        nin.load("small")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "../../nothing", "/dev/null"], ids=range(5))
def test_a_name_that_is_no_checkpoint_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        nin.load(name)
    assert len(str(error.value)) < 600
