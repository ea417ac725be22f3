import json
import runpy
import shlex

import pytest
from conftest import CONF, ROOT

from nin import pretrained, run
from nin.command import compose

SHORT = ["data=digits", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.progress_bar=false"]


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


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nosuch", "name"], 1)])
def test_what_cannot_be_published_is_refused(arguments, code, capsys):
    assert publish(*arguments) == code
    assert capsys.readouterr().err.startswith("error: ")
