import pytest

from nin.cli import compose
from nin.run.train import train
from runs import SHORT


@pytest.fixture(scope="session")
def ended(tmp_path_factory):
    """A short run on the digits with held-out images, a test curve and TensorBoard: its folder and its record."""
    folder = tmp_path_factory.mktemp("ended") / "run"
    return folder, train(compose([*SHORT, "data.val=100", "eval_curve=true", "logger=tensorboard"]), folder)
