import re
from types import SimpleNamespace

import pytest

from fits import fit, loader, small_net
from nin.data import Images
from nin.run.progress import EpochLines, Estimate, RunProgress, evaluations_in_steps, in_words, say
from nin.task import Classifier


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
    trainer = SimpleNamespace(datamodule=data, limit_val_batches=1.0, accumulate_grad_batches=1)
    after_epoch, at_end = evaluations_in_steps(trainer)
    assert after_epoch == pytest.approx((137 + 360) / 300)
    assert at_end == pytest.approx((1300 + 137 + 360) / 300)
    trainer.limit_val_batches = 1  # of two batches of test images, of one of held-out images
    assert evaluations_in_steps(trainer)[0] == pytest.approx((137 + 180) / 300)
    trainer.limit_val_batches, trainer.accumulate_grad_batches = 1.0, 4
    assert evaluations_in_steps(trainer)[1] == pytest.approx((1300 + 137 + 360) / 1200)
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
