import json
import runpy
import shlex

import pytest
from conftest import CONF, NARROW, ROOT

from nin import pretrained, run
from nin.command import compose

SHORT = ["data=digits", NARROW, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.progress_bar=false"]


def publish(*arguments):
    return runpy.run_path(str(ROOT / "scripts" / "publish.py"))["main"]([str(a) for a in arguments])


def test_a_card_states_the_command_that_trained_its_net(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path / "shelf")
    settings = compose(CONF, [*SHORT, "head=fc", "seed=7"])
    run.train(settings, tmp_path / "run")
    assert publish(tmp_path / "run", "digits-fc") == 0, capsys.readouterr()
    card = json.loads((tmp_path / "shelf" / "digits-fc.json").read_text())
    python, script, *overrides = shlex.split(card["command"])
    assert (python, script) == ("python", "scripts/train.py")
    again = compose(CONF, [*overrides, "trainer.progress_bar=false"])
    assert again == settings
    assert card["schedule"] == "the recipe's, scaled from 4 epochs to 1"


def test_the_cards_error_is_that_of_the_net_with_its_whitening_as_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path / "shelf")
    settings = compose(CONF, [*SHORT, "recipe=paper", "head=fc_dropout", "trainer.precision=auto"])
    summary = run.train(settings, tmp_path / "run")
    again = run.evaluate_checkpoint(compose(CONF, [f"checkpoint={tmp_path / 'run'}"]))[0]
    assert again == pytest.approx(summary["test_error"], abs=1e-3)
    assert publish(tmp_path / "run", "digits-paper") == 0, capsys.readouterr()
    card = json.loads((tmp_path / "shelf" / "digits-paper.json").read_text())
    error = run.evaluate_checkpoint(compose(CONF, ["checkpoint=digits-paper", "trainer=cpu"]))[0]
    assert card["test_error"] == pytest.approx(error, abs=1e-4)
    assert card["test_error"] == pytest.approx(summary["test_error"], abs=2)
    (whitening,) = (tmp_path / "shelf").glob("whitening-*.safetensors")
    assert whitening.stat().st_size < 20e6


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nosuch", "name"], 1)])
def test_what_cannot_be_published_is_refused(arguments, code, capsys):
    assert publish(*arguments) == code
    assert capsys.readouterr().err.startswith("error: ")
