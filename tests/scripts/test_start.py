"""What a script loads before it answers, and what it leaves behind."""

import json
import shlex
import subprocess
import sys

import pytest

from builders import ROOT
from nin.errors import NINError

SLOW = ("torch", "lightning", "torchvision", "torchmetrics", "matplotlib", "pandas", "scipy", "sklearn", "numpy")
# runs several commands in one process, and tells after each what it answered and which slow modules are loaded
PROBE = f"""
import contextlib, io, json, runpy, sys
for name, *arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    sys.argv, code = [name, *arguments], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if name == "nin":
                from nin.commands import main
                main()
            else:
                runpy.run_path({str(ROOT / "scripts")!r} + "/" + name, run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    loaded = [module for module in {SLOW!r} if module in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), loaded]))
"""


def probe(folder, *commands):
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)], capture_output=True, text=True, cwd=folder, check=True
    )
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_help_and_refusals_load_nothing_slow_and_leave_nothing(tmp_path):
    helps = [[name, "--help"] for name in ("train.py", "evaluate.py", "benchmark.py", "cost.py", "ablate.py")]
    wrong = [["train.py", "head=gpa"], ["train.py", "seed=-1"], ["train.py", "--multirun", "head=gap,gpa"]]
    wrong += [["evaluate.py", "head=gap"], ["benchmark.py", "nosuch=1"], ["cost.py", "nosuch=1"]]
    helps += [["nin", "--help"], ["nin", "train", "--help"], ["nin", "predict", "--help"]]
    wrong += [["nin"], ["nin", "nosuch"], ["nin", "train", "epochs=3"], ["nin", "evaluate", "cifar10-gap"]]
    answers = probe(tmp_path, *helps, *wrong)
    for command, (code, said, errors, loaded) in zip([*helps, *wrong], answers, strict=True):
        assert loaded == [], command
        if command in helps:
            typed = shlex.join(command[:-1]) if command[0] == "nin" else f"python scripts/{command[0]}"
            assert (code, errors) == (0, "") and f"{typed} " in said
        else:
            assert (code, said, errors.count("\n")) == (2, "", 1) and errors.startswith("error: "), command
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "data=digits", "trainer.accelerator=cpu"],
        ["evaluate.py", "checkpoint=cifar10-gap"],
        ["predict.py", "checkpoint=cifar10-gap", str(ROOT / "scripts" / "chelsea.png")],
        ["predict.py", "checkpoint=cifar10-gap", "figure=blanking"],
        ["demo.py", "checkpoint=cifar10-gap"],
        ["claims.py", "checkpoint=cifar10-gap"],
        ["benchmark.py"],
    ],
)
def test_whatever_computes_keeps_freed_memory(command, script, monkeypatch):
    """It is 1.5 to 2 times as fast on a CPU with glibc."""
    import nin.run.evaluate
    import nin.run.train
    import nin.studies.speed

    def kept():
        raise NINError("freed memory is kept")

    for module in (nin.run.machine, nin.run.train, nin.run.evaluate, nin.studies.speed):
        monkeypatch.setattr(module, "keep_freed_memory", kept)
    assert script(*command)[::2] == (1, "error: freed memory is kept\n")


def test_loading_a_net_imports_torch_and_no_training(tmp_path):
    """Nor torch's compiler, which takes 3 s: torch's meta device imports it for an initial weight, say."""
    code = "import sys, nin; nin.available(); assert 'lightning' not in sys.modules\nnet = nin.load('cifar10-gap')\n"
    code += "from nin import predict, cost; cost.activations(net.net, 1, 3, 32, 32)\n"
    code += "print([m for m in ('lightning', 'torchvision', 'torchmetrics', 'torch._dynamo', 'sympy', 'pandas', "
    code += "'matplotlib', 'hydra') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["head=gpa"], 2, ["head=gpa", "fc_dropout, gap, gap_article, gmp"]),
        (["nosuch=1"], 2, ["nosuch=1", "--help lists all settings"]),
        (["model.blocks=[]"], 2, ["model.blocks=[]", "expected 1 to 1000 blocks"]),
        (["model.blocks=[{widths: [8, 8, 3]}]"], 2, ["head.name=gap", "3 maps for 10 classes"]),
        (["model=inception_v3"], 2, ["data.size=32", "at least 75 pixels"]),
        (["trainer.limit_test_batches=0.3", "data=digits"], 2, ["trainer.limit_test_batches=0.3"]),
        (["trainer.limit_test_batches=0.6", "data=digits", "data.share=0.1"], 2, ["trainer.limit_test_batches=0.6"]),
        (["data.root=/nonexistent", "data.download=false"], 1, ["/nonexistent"]),
        (["checkpoint=/nonexistent", "data=digits"], 1, ["checkpoint=/nonexistent"]),
        (["checkpoint=/nonexistent", "data=digits", "hydra.run.dir=new/er"], 1, ["checkpoint=/nonexistent"]),
    ],
)
def test_a_refused_run_is_one_sentence_and_leaves_nothing(overrides, code, words, script, tmp_path):
    ended, said, errors = script("train.py", *overrides)
    assert (ended, said) == (code, "")
    assert len(errors.strip().splitlines()) == 1
    assert all(word in errors for word in ("error: ", *words)), errors
    assert list(tmp_path.iterdir()) == []


def test_commands_that_train_nothing_leave_nothing(script, tmp_path):
    missing = ["checkpoint=cifar10-fc", "data.root=.", "data.download=false"]
    for name, *arguments in (
        ["evaluate.py", "checkpoint=nope"],
        ["evaluate.py", "checkpoint=nope", f"hydra.run.dir={tmp_path}"],
        ["evaluate.py", *missing],
        ["evaluate.py", *missing, "hydra.run.dir=new/er"],
        ["benchmark.py", "data=flowers17", "data.size=64"],
    ):
        assert script(name, *arguments)[0] in (1, 2)
        assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_the_users_folder_alone(script, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert script("train.py", "checkpoint=/nonexistent", "data=digits", f"hydra.run.dir={tmp_path / 'mine'}")[0] == 1
    assert {path.name for path in (tmp_path / "mine").iterdir()} <= {"file", ".lock"}
