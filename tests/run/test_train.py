import csv
import math
import re
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file

from builders import ROOT
from nin import files, pretrained
from nin.cli import compose
from nin.data.sets import SETS
from nin.errors import CheckpointError, DeadNetError, RunError, SettingError
from nin.run import machine, record
from nin.run import train as training
from nin.run.build import build_net
from nin.run.record import Start
from nin.run.train import closing_lines, train
from runs import SHORT, in_a_fork, peak_of_a_run, results


def test_the_folder_of_a_run(ended):
    folder, kept = ended
    for name in ("config.yaml", "metrics.csv", "last.ckpt", "curves.png", "summary.json"):
        assert (folder / name).stat().st_size > 0
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert list(folder.glob("events.out.tfevents*"))
    assert record.read(folder) == kept
    assert (kept.status, kept.data, kept.epochs, kept.held_out, kept.start) == ("finished", "digits", 2, 100, None)
    assert 0 < kept.test_error < 100 and kept.test_images == 360
    assert kept.weights_sha256 == files.sha256((folder / "model.safetensors").read_bytes())
    facts = pretrained.load(folder).facts
    assert facts == {name: value for name, value in kept.to_dict().items() if name != "weights_sha256"}
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/error", "train/loss", "val/error", "test_curve/error", "lr"):
        assert sum(bool(row[name]) for row in rows) == 2, name


def test_the_closing_lines(ended):
    folder, kept = ended
    said = closing_lines(kept, folder)
    assert said.count("%") == 3 + kept.at_chance and f"python scripts/evaluate.py checkpoint={folder}" in said
    good, bad = (replace(kept, val_error=None, test_error=error) for error in (2.5, 89.5))
    assert closing_lines(good, folder).count("%") == 2
    assert re.search(
        r"The test error is not three standard errors below chance, which is \d\d\.\d\d %", closing_lines(bad, folder)
    )
    assert "\n1 epoch in " in closing_lines(replace(kept, settings=with_epochs(kept, 1)), folder)
    again = shlex.split(closing_lines(kept, Path("mnist-gap")).splitlines()[-1])[-1]
    assert again == "checkpoint='./mnist-gap'"  # else it is the published net


def with_epochs(kept, number):
    return {**kept.settings, "trainer": {**kept.settings["trainer"], "max_epochs": number}}


@pytest.mark.parametrize(
    "name", ["runs/a b", "it's", "$x", "a=1,b", "null", "1e3", "ä", "runs/2026-11-26_digits_gap_0"]
)
def test_the_closing_command_can_be_pasted(ended, name):
    command = closing_lines(ended[1], Path(name)).splitlines()[-1].removeprefix("Evaluate it again: ")
    python, script, override = shlex.split(command)
    assert (python, script, compose([override]).checkpoint) == ("python", "scripts/evaluate.py", name)
    assert (override == f"checkpoint={name}") == (name == "runs/2026-11-26_digits_gap_0")


def test_the_first_lines_and_a_line_an_epoch(tmp_path, capsys):
    short = [*SHORT, "data.val=100", "eval_curve=true", "trainer.max_epochs=1", "resume=auto"]
    kept = train(compose(short), tmp_path / "a run")
    resume, *first, epoch = capsys.readouterr().out.splitlines()
    assert first == [
        f"net     NIN, head gap: {kept.parameters:,} parameters",
        "data    digits: 1,337 training images, 100 held out, 360 test images",
        "recipe  modern, seed 0: 1 epoch of 6 steps",
        f"device  {kept.device}, {kept.precision}",
        f"folder  {tmp_path / 'a run'}",
    ]
    assert resume == f"resume=auto: {tmp_path / 'a run'} has no whole epoch to resume; training starts at epoch 1"
    assert re.fullmatch(
        r"epoch 1/1: training loss .*, error .* %; held-out loss .*, error .* %; test loss .*, error .* %; rate .*",
        epoch,
    )


def test_the_commit_of_a_record_is_that_of_the_code_that_ran(tmp_path, monkeypatch):
    """Another commit is checked out while the data are read and the net is trained."""
    commits = iter([("a" * 40, True)])
    machine.commit_at_start.cache_clear()
    monkeypatch.setattr(machine, "commit", lambda: next(commits, ("b" * 40, False)))
    try:
        for name in ("first", "second of the process"):
            kept = train(compose([*SHORT, "trainer.max_epochs=1"]), tmp_path / name)
            assert (kept.commit, kept.clean) == ("a" * 40, True)
    finally:
        machine.commit_at_start.cache_clear()


def test_the_bar_changes_no_weight(tmp_path, capsys):
    for bar in ("true", "false"):
        train(compose([*SHORT, f"trainer.progress_bar={bar}"]), tmp_path / bar)
    said = capsys.readouterr().out
    assert "Evaluating the test set" in said and "Evaluating the training images" in said
    assert results(tmp_path / "true") == results(tmp_path / "false")


def test_the_test_error_is_that_of_the_saved_net_computed_by_hand(ended):
    folder, kept = ended
    net, digits = pretrained.load(folder), SETS["digits"].load()
    with torch.no_grad():
        wrong = (net(digits.test_images).argmax(1) != digits.test_labels).double().mean().item()
        wrong_train = (net(digits.train_images[:-100]).argmax(1) != digits.train_labels[:-100]).double().mean().item()
        wrong_val = (net(digits.train_images[-100:]).argmax(1) != digits.train_labels[-100:]).double().mean().item()
    assert kept.test_error == pytest.approx(100 * wrong, abs=1e-3)
    assert kept.val_error == pytest.approx(100 * wrong_val, abs=1e-3)
    within = 0.1 if kept.precision == "32-true" else 2  # measured in the run's precision
    assert kept.train_error == pytest.approx(100 * wrong_train, abs=within)


def test_a_seed_decides_the_weights_to_the_last_bit_and_a_test_curve_changes_nothing(tmp_path):
    found = []
    for seed, curve in ((5, "true"), (5, "false"), (6, "false")):
        folder = tmp_path / f"{seed}{curve}"
        train(compose([*SHORT, "model.dropout=0.5", f"seed={seed}", f"eval_curve={curve}"]), folder)
        found.append(load_file(folder / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


# where a run starts --------------------------------------------------------------------------------------------------


def test_training_starts_from_a_checkpoint(ended, tmp_path):
    folder, before = ended
    start = [*SHORT, "data.val=100", f"checkpoint={folder}", "recipe.lr=1e-9"]
    again = train(compose(start), tmp_path)
    weights = [load_file(f / "model.safetensors")["net.blocks.block1.conv1.weight"] for f in (folder, tmp_path)]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)
    assert again.start == Start(str(folder), before.weights_sha256, "gap", "digits")


def test_a_run_says_what_it_starts_from(ended, tmp_path, capsys):
    folder, _ = ended
    short = [*SHORT, f"checkpoint={folder}", "trainer.max_epochs=1", "data.val=100"]
    train(compose(short), tmp_path / "same")
    assert f"\nstart   {folder} (head gap, digits); all layers are its own\n" in capsys.readouterr().out
    train(compose([*short, "head=fc"]), tmp_path / "other")
    said = capsys.readouterr().out
    assert f"\nstart   {folder} (head gap, digits); new layers: head" in said and "new layers: head, " not in said
    train(compose(SHORT), tmp_path / "scratch")
    assert "start " not in capsys.readouterr().out


def test_a_run_is_resumed_whatever_the_path_to_its_start(ended, tmp_path, monkeypatch):
    monkeypatch.chdir(ended[0].parent)
    short = [*SHORT, "data.val=100", "trainer.max_epochs=1", "resume=auto"]
    kept = train(compose([*short, f"checkpoint={ended[0].name}"]), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert train(compose([*short, f"checkpoint={ended[0]}"]), tmp_path / "run") == kept
    for other in ("null", "cifar10-gap", str(tmp_path / "nowhere")):
        with pytest.raises(SettingError, match=f"checkpoint is {ended[0].name} there, {other} here"):
            train(compose([*short, f"checkpoint={other}"]), tmp_path / "run")


def test_a_frozen_net_needs_something_to_train(ended, tmp_path):
    frozen = [*SHORT, f"checkpoint={ended[0]}", "freeze=true"]
    with pytest.raises(SettingError, match="freeze=true: nothing is left to train"):
        train(compose(frozen), tmp_path / "same")
    kept = train(compose([*frozen, "head=fc", "data.val=100"]), tmp_path / "fc")
    assert kept.frozen and kept.start.head == "gap" and kept.head == "fc"
    net, first = (load_file(folder / "model.safetensors") for folder in (tmp_path / "fc", ended[0]))
    name = "net.blocks.block1.conv1.weight"
    assert torch.equal(net[name], first[name])


def test_settings_that_contradict_a_checkpoint_are_refused(ended, tmp_path):
    folder, _ = ended
    with pytest.raises(SettingError, match=r"data\.preprocessing=whiten: the checkpoint was trained with normalise"):
        train(compose([*SHORT, f"checkpoint={folder}", "data.preprocessing=whiten"]), tmp_path)
    with pytest.raises(CheckpointError, match="norm is batch there, none here"):
        train(compose([*SHORT, f"checkpoint={folder}", "model.norm=none"]), tmp_path)
    for limit in ("limit_train_batches=0.01", "limit_test_batches=0.3"):
        with pytest.raises(SettingError, match=rf"trainer\.{limit}: is less than one of"):
            train(compose([*SHORT, f"trainer.{limit}"]), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


# nets that die, and nets that do not learn ---------------------------------------------------------------------------

DIES = [*SHORT, "recipe.lr=1e30", "recipe.optimiser=sgd"]


def test_a_net_that_dies_ends_with_exit_code_three_and_a_dead_record(tmp_path, script):
    code, _, errors = script("train.py", *DIES, "hydra.run.dir=run")
    assert code == 3
    assert errors.startswith("error: the loss is not finite any more") and errors.count("\n") == 1
    kept = record.read(tmp_path / "run")
    assert (kept.status, kept.test_error) == ("dead", None)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(DeadNetError):
        train(compose([*DIES, "resume=auto"]), tmp_path / "run")


def test_a_net_that_its_last_step_kills_is_dead(tmp_path):
    last = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "recipe.lr=1e30", "recipe.warmup=0"]
    with pytest.raises(DeadNetError, match=r"the trained net's loss is not finite; lower recipe\.lr \(now 1e\+30\)"):
        train(compose([*SHORT, *last, "recipe.optimiser=sgd", "recipe.schedule=step"]), tmp_path)
    assert record.read(tmp_path).status == "dead" and not (tmp_path / "model.safetensors").exists()


COLLAPSES = ["data.batch_size=16", "trainer.max_epochs=2", "trainer.limit_train_batches=75", "recipe=paper_literal"]
COLLAPSES += ["recipe.lr=0.5", "model.init=kaiming", "data.preprocessing=normalise"]


def test_a_short_run_that_collapses_is_dead(tmp_path):
    with pytest.raises(DeadNetError, match=r"collapsed by step 1[05]0"):
        train(compose([*SHORT, *COLLAPSES]), tmp_path)
    assert record.read(tmp_path).status == "dead"


def test_a_run_that_learns_nothing_says_so(tmp_path, script):
    code, said, _ = script("train.py", *SHORT, "recipe.lr=1e-9", "trainer.max_epochs=1", "hydra.run.dir=run")
    assert code == 0 and "is not three standard errors below chance" in said
    assert record.read(tmp_path / "run").at_chance


# steps ---------------------------------------------------------------------------------------------------------------


def test_a_gradient_is_scaled_down_to_the_norm_that_is_set(tmp_path):
    """A step of plain SGD at rate 1 is as long as its gradient."""
    one_step = [*SHORT, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "recipe.optimiser=sgd", "recipe.lr=1"]
    one_step += ["recipe.nesterov=false", "recipe.momentum=0", "recipe.weight_decay=0", "recipe.warmup=0"]
    one_step += ["recipe.bias_lr=1", "recipe.last_lr=1", "recipe.last_bias_lr=1", "recipe.schedule=step"]
    lengths = {}
    for clip in ("null", "0.01"):
        config = compose([*one_step, f"trainer.gradient_clip_val={clip}"])
        train(config, tmp_path / clip)
        lightning.seed_everything(config.seed, verbose=False)
        start = build_net(config, classes=10, channels=3).parameters()
        last = pretrained.load(tmp_path / clip).net.parameters()
        lengths[clip] = math.dist(*(torch.cat([p.detach().flatten() for p in net]).tolist() for net in (start, last)))
    assert lengths["0.01"] == pytest.approx(0.01, rel=1e-3)
    assert lengths["null"] > 0.02


def test_gradients_of_two_batches_make_the_step_of_one_twice_as_large(tmp_path, capsys):
    """And a remainder at the end of an epoch makes a step of its own."""
    plain = [*SHORT, "recipe.optimiser=sgd", "recipe.lr=0.05", "recipe.nesterov=false", "recipe.momentum=0.5"]
    plain += ["model.norm=none", "data.pad=0", "recipe.label_smoothing=0", "trainer.max_epochs=2"]
    plain += ["trainer.precision=32-true"]  # bf16 rounds sums of other parts otherwise
    of = {}
    for accumulated, size, batches in ((1, 64, 3), (2, 32, 6), (2, 32, 5)):
        folder = tmp_path / f"{accumulated}-{batches}"
        overrides = [f"trainer.accumulate_grad_batches={accumulated}", f"data.batch_size={size}"]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(compose([*plain, *overrides, f"trainer.limit_train_batches={batches}"]), folder)
        remainder = "the last step of an epoch has 1 of them, and a gradient of 1/2 of its size"
        assert any(remainder in str(each.message) for each in said) == (batches == 5)
        of[batches] = pretrained.load(folder).net.state_dict()
        assert "2 epochs of 3 steps" in capsys.readouterr().out
        assert [row["step"] for row in csv.DictReader((folder / "metrics.csv").open())] == ["3", "6"]
    for name in of[3]:
        torch.testing.assert_close(of[3][name], of[6][name], atol=1e-4, rtol=1e-3)
    assert any((of[3][name] - of[5][name]).abs().max() > 1e-4 for name in of[3])


@pytest.mark.slow
def test_memory_of_a_whitened_run_on_cifar10(cifar10_root, tmp_path):
    overrides = ["recipe=paper", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    overrides += ["trainer.limit_test_batches=1", f"data.root={cifar10_root}", "trainer.progress_bar=false"]
    assert in_a_fork(peak_of_a_run, overrides, tmp_path) < 3


def test_training_without_hydra_as_the_readme_of_nin_shows_it(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "nin" / "README.md").read_text(), re.S)
    code = next(block for block in blocks if "L.Trainer" in block)
    monkeypatch.chdir(tmp_path)
    assert "max_epochs=2" in code  # a minute on a slow core; an eighth of one epoch is enough here
    code = code.replace("max_epochs=2", "max_epochs=1, limit_train_batches=6, limit_test_batches=1")
    exec(
        code.replace("NIN(", "NIN([Block(12, 5), Block((12, 12, None))], ").replace("import NIN", "import NIN, Block"),
        {},
    )
    assert 0 <= float(re.search(r"'test/error': ([\d.]+)", capsys.readouterr().out)[1]) <= 100


def test_too_little_memory_of_a_gpu_is_a_sentence(tmp_path, monkeypatch):
    def fit(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.9 GiB"
        )

    monkeypatch.setattr(training, "fit", fit)
    with pytest.raises(RunError) as error:
        train(compose(SHORT), tmp_path)
    assert str(error.value) == (
        "CUDA out of memory. Tried to allocate 2.00 GiB; choose a data.batch_size below 32, or trainer.accelerator=cpu"
    )
