import math
import re
import resource
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from nin import NIN, Block
from nin.data import Batches, Images, Normalise
from nin.errors import DeadNetError, RunError
from nin.run.callbacks import (
    DeadNetWatch,
    EpochLines,
    Estimate,
    MetricsFile,
    RunProgress,
    evaluations_in_steps,
    in_words,
    remedies,
    say,
)
from nin.run.checkpoint import AtomicCheckpointIO
from nin.task import Classifier


def small_net(**arguments) -> NIN:
    blocks = [Block(8, dropout=True), Block((8, 8, None))]
    return NIN(blocks, image_size=8, **{"init": "kaiming", **arguments})


def loader(steps: int, size: int = 4, noise: bool = False) -> Batches:
    torch.manual_seed(0)
    labels = torch.arange(steps * size) % 10
    images = torch.randint(0, 256, (steps * size, 3, 8, 8), dtype=torch.uint8)
    if not noise:
        images = (images // 8 + (labels * 20)[:, None, None, None]).to(torch.uint8)
    normalise = Normalise(torch.full((3,), 120.0), torch.full((3,), 60.0))
    return Batches(images.permute(0, 2, 3, 1), labels, size, normalise, augment=lambda x, g: x)


def fit(task: Classifier, train: Batches, *callbacks: L.Callback, **arguments) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_progress_bar": False, **arguments},
    )
    trainer.fit(task, train)
    return trainer


# dead nets -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named():
    with pytest.raises(DeadNetError, match=r"not finite.*lower recipe.lr \(now 1e\+12\)"):
        fit(Classifier(small_net(), lr=1e12), loader(64), DeadNetWatch())


def collapsed() -> NIN:
    net = small_net(last_relu=True)
    nn.init.zeros_(net.blocks.block2.conv3.weight)
    nn.init.constant_(net.blocks.block2.conv3.bias, -1.0)  # every score is zero for every image, and stays so
    return net


@pytest.mark.parametrize(
    ("steps", "died_at"),
    [(400, 300), (300, 300), (299, 100), (150, 100), (120, 100), (100, 100), (99, None)],
)
def test_the_collapse_is_named_once_it_is_certain(steps, died_at):
    """A long run has 300 steps to find its way, a short one 100."""
    expected = pytest.raises(DeadNetError, match=rf"collapsed by step {died_at}.*ln 10") if died_at else nullcontext()
    with expected:
        fit(Classifier(collapsed(), lr=0.01), loader(steps, size=1), DeadNetWatch())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_no_remedy_is_what_the_net_has_already(init, norm):
    said = remedies(Classifier(small_net(init=init, norm=norm)))
    assert ("model.init=kaiming" in said) == (init != "kaiming") and ("model.norm=batch" in said) == (norm != "batch")
    assert said.startswith("another seed, a longer recipe.warmup (now 0 epochs)") and said.count(" or ") == 1
    another = nn.Linear(2, 2)
    another.num_classes = 2
    assert "model." not in remedies(Classifier(another))


def test_the_last_step_is_looked_at_too():
    class Late(L.Callback):
        """Keeps the mean loss away from chance until the window has passed."""

        def on_train_batch_end(self, trainer, task, outputs, *_):
            if trainer.global_step <= 20:
                outputs["cross_entropy"] += 1

    with pytest.raises(DeadNetError, match="collapsed by step 120"):
        fit(Classifier(collapsed(), lr=0.01), loader(120, size=1), Late(), DeadNetWatch())


@pytest.mark.parametrize("steps", [150, 400])
@pytest.mark.parametrize("kind", ["slow", "small from the start"])
def test_a_slow_net_is_left_alone(steps, kind):
    if kind == "slow":
        net = small_net(last_relu=False)
        with torch.no_grad():
            net.blocks.block2.conv3.weight.mul_(0.01)  # the loss is near ln 10, and yet the images count
    else:
        net = small_net(init="gaussian")  # scores that differ by 1e-7 from the start: slow, not collapsed
    trainer = fit(Classifier(net, lr=1e-9), loader(steps, noise=True), DeadNetWatch())
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(math.log(10), abs=0.01)
    assert trainer.global_step == steps


def test_a_learning_net_is_left_alone_and_learns():
    task = Classifier(small_net(norm="batch", dropout=0.1), schedule="linear", lr=0.05, last_lr=1)
    trainer = fit(task, loader(400), DeadNetWatch(), max_epochs=2)
    assert trainer.callback_metrics["train/loss"].item() < 1.8


def test_the_watch_changes_no_weight():
    weights = []
    for callbacks in ([DeadNetWatch()], []):
        torch.manual_seed(0)
        net = small_net(dropout=0.5, norm="batch")
        fit(Classifier(net, lr=0.01), loader(110), *callbacks)
        weights.append(net.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_watch_remembers_over_an_interruption():
    watch = DeadNetWatch()
    fit(Classifier(collapsed(), lr=0.01), loader(60, size=1), watch)
    state = watch.state_dict()
    assert (state["losses"] > 0).sum() == 60 and state["first_spread"] == 0
    again = DeadNetWatch()
    again.load_state_dict(state)
    assert torch.equal(again.losses, watch.losses) and again.first_spread == 0


# files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def room_for(size: int):
    """Files cannot grow beyond `size` bytes: the system itself refuses, whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_metrics(file: Path, n: int) -> None:
    callback = MetricsFile(file)
    callback.load_state_dict({"rows": [{"epoch": n, "train/loss": 0.5}] * 900})
    callback.write()


@pytest.mark.parametrize(
    "save",
    [lambda file, n: AtomicCheckpointIO().save_checkpoint({"n": n, "x": torch.zeros(9000)}, file), save_metrics],
    ids=["last.ckpt", "metrics.csv"],
)
def test_a_full_disk_leaves_the_file_before(tmp_path, save):
    file = tmp_path / "file"
    save(file, 1)
    before = file.read_bytes()
    with room_for(4000), pytest.raises(RunError, match=r"cannot be written \(.*\); the file before is as it was"):
        save(file, 2)
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and file.read_bytes() == before
    save(file, 2)
    assert file.read_bytes() != before


def test_a_checkpoint_is_written_beside_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")  # where Lightning's own would write
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1


# progress ------------------------------------------------------------------------------------------------------------


def test_the_bar_names_what_it_evaluates_and_counts_down(capsys):
    task, data = Classifier(small_net()), loader(6)
    trainer = fit(task, data, RunProgress("training images"), enable_progress_bar=True)
    trainer.validate(task, data, verbose=False)
    trainer.test(task, data, verbose=False)
    said = capsys.readouterr().out
    assert "Evaluating the held-out images" in said and "Evaluating the training images" in said
    assert "DataLoader" not in said
    assert re.search(r"epoch 1/1: \d/6, left=\d+ s", said)


EPOCH = r"epoch (\d)/3: training loss \d\.\d{3}, error \d+\.\d\d %; rate 0\.\d+"


@pytest.mark.parametrize("columns", [40, 200])
def test_a_line_stays_of_each_epoch_above_the_bar(capsys, monkeypatch, columns):
    """The output is no terminal, as in a pipe; tqdm takes its width from the environment there."""
    monkeypatch.setenv("COLUMNS", str(columns + 1))
    monkeypatch.setenv("LINES", "24")
    fit(Classifier(small_net()), loader(6), RunProgress(), EpochLines(), enable_progress_bar=True, max_epochs=3)
    said = capsys.readouterr().out
    pieces = [piece.rstrip() for piece in re.split(r"[\r\n]", said)]
    kept = [match[1] for piece in pieces if (match := re.fullmatch(EPOCH, piece))]
    assert kept == ["1", "2", "3"]
    bars = [piece for piece in pieces if piece and not re.fullmatch(EPOCH, piece)]
    assert bars and max(map(len, bars)) <= columns
    assert all(re.match(r"epoch \d/3: \d/6", bar) for bar in bars if bar.startswith("epoch"))


def test_without_a_bar_the_epochs_lines_are_all_that_is_printed(capsys):
    fit(Classifier(small_net()), loader(6), EpochLines(), max_epochs=3)
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(EPOCH, line)[1] for line in lines] == ["1", "2", "3"]


def test_process_0_alone_prints(capsys):
    for number in (0, 1):
        say(SimpleNamespace(is_global_zero=number == 0), f"from process {number}")
    assert capsys.readouterr().out == "from process 0\n"


def test_the_evaluations_count_as_steps():
    """A step is three forward passes of as many images."""
    data = Images("digits", batch_size=100, val=137, eval_curve=True)
    data.setup()
    trainer = SimpleNamespace(datamodule=data, limit_val_batches=1.0)
    after_epoch, at_end = evaluations_in_steps(trainer)
    assert after_epoch == pytest.approx((137 + 360) / 300)
    assert at_end == pytest.approx((1300 + 137 + 360) / 300)
    trainer.limit_val_batches = 1  # of two batches of test images, of one of held-out images
    assert evaluations_in_steps(trainer)[0] == pytest.approx((137 + 180) / 300)
    assert evaluations_in_steps(SimpleNamespace(datamodule=None, limit_val_batches=1.0)) == (0, 0)


@pytest.mark.parametrize(
    ("least", "epochs", "recipe", "said"),
    [(0, 1, "modern", True), (0, 10, "modern", True), (0, 10, "quick", True), (600, 10, "modern", False)],
)
def test_an_estimate_is_printed_where_the_run_is_long(capsys, least, epochs, recipe, said):
    fit(Classifier(small_net(), name=recipe), loader(6), Estimate(least), max_epochs=epochs)
    found = re.fullmatch(
        r"training takes about \d+ s on this CPU(; recipe=quick takes about \d+ s)?\n", capsys.readouterr().out
    )
    assert bool(found) == said
    assert not found or bool(found[1]) == (epochs > 8 and recipe != "quick")


def test_times_in_words():
    assert [in_words(s) for s in (5, 89, 4000, 5400)] == ["5 s", "89 s", "67 min", "1.5 h"]
