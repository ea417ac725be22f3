import os
import signal

import pytest
import torch

from nin.cli import compose
from nin.data.sets import SETS
from nin.errors import CheckpointError, InterruptedRunError, SettingError
from nin.pretrained import load
from nin.run.evaluate import Evaluation, check_limit, evaluate_pretrained, images_of
from nin.task import Classifier
from runs import SHORT


def test_a_run_is_evaluated_again(ended):
    folder, kept = ended
    found = evaluate_pretrained(load(folder), compose(SHORT))
    assert found.error == pytest.approx(kept.test_error, abs=1e-4)
    assert (found.confusion.shape, found.images, found.classes) == ((10, 10), 360, tuple("0123456789"))
    assert 100 - 100 * found.confusion.trace() / 360 == pytest.approx(found.error, abs=1e-3)
    digits = SETS["digits"].load()
    assert found.confusion.sum(1).tolist() == digits.test_labels.bincount().tolist()  # the true class is the row's
    most = max(digits.test_labels.bincount().tolist())
    assert found.chance_error == pytest.approx(100 - 100 * most / 360)


def test_chance_answers_the_most_frequent_class():
    confusion = torch.tensor([[5, 1], [0, 2]])
    found = Evaluation(12.5, confusion, ("a", "b"), 0.1)
    assert (found.images, found.chance_error) == (8, 25)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_evaluation_says_so(ended, monkeypatch, number, code):
    batch = Classifier.test_step

    def told(*arguments):
        os.kill(os.getpid(), number)
        return batch(*arguments)

    monkeypatch.setattr(Classifier, "test_step", told)
    with pytest.raises(InterruptedRunError, match="stopped; run the same command again") as error:
        evaluate_pretrained(load(ended[0]), compose(SHORT))
    assert error.value.exit_code == code


def test_a_net_that_does_not_say_what_it_was_trained_on_is_refused(ended):
    trained = load(ended[0])
    for name in (None, "nosuch", ["digits"]):
        trained.facts["data"] = name
        with pytest.raises(CheckpointError, match=r"record has data=.*: must be one of cifar10"):
            images_of(trained)


def test_the_images_of_a_net_have_its_preprocessing(ended):
    trained = load(ended[0])
    data = images_of(trained, seed=3)
    assert data.preprocess is trained.preprocess and data.seed == 3
    assert data.set.classes == trained.classes


def test_a_share_of_less_than_a_batch_is_refused():
    check_limit(0.5, "test", range(2))
    check_limit(None, "test", range(2))
    check_limit(1, "test", range(2))
    with pytest.raises(SettingError, match=r"trainer\.limit_test_batches=0\.4: is less than one of 2 batches"):
        check_limit(0.4, "test", range(2))
