import pytest

from claims import drawn
from nin.config import Config, settings_of
from nin.run import curves
from nin.run.record import Record

METRICS = "epoch,step,lr,test_curve/error,test_curve/loss,train/error,train/loss\n"


def record_of(epochs, data="digits"):
    settings = settings_of(Config())
    settings["data"]["name"], settings["recipe"]["name"], settings["seed"] = data, "quick", 3
    settings["trainer"]["max_epochs"] = epochs
    facts = {"start": None, "parameters": 1, "precision": "32-true", "device": "cpu", "versions": {}}
    return Record("finished", settings, **facts, commit="unknown", clean=False, test_error=1.666)


@pytest.fixture
def figure_of(tmp_path):
    """Draws the curves of so many epochs; returns the figure."""

    def draw(epochs, **rest):
        rows = [f"{n},{n + 1},0.1,{30 - n},{2 - 0.1 * n},{40 - n},{2.1 - 0.1 * n}\n" for n in range(epochs)]
        (tmp_path / "metrics.csv").write_text(METRICS + "".join(rows))
        return curves.draw(tmp_path / "metrics.csv", record_of(epochs, **rest))

    return draw


def test_a_title_says_which_run_it_is_and_how_it_ended(figure_of):
    figure = figure_of(4)
    assert figure.get_suptitle() == "gap on digits, recipe quick, seed 3, 4 epochs: test error 1.67 %"
    loss, error = figure.axes
    assert {"training, augmented", "test", "test, after the last epoch", "loss", "error (%)"} <= drawn(figure)
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 2, 3, 4]] * 2
    assert (list(error.lines[-1].get_xdata()), list(error.lines[-1].get_ydata())) == ([4], [1.666])


@pytest.mark.parametrize("loss", ["inf", "nan", "1e30"])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_loss_that_overflowed_is_left_out(tmp_path, loss, all_of_them):
    rows = [f"{n},{n + 1},0.1,30,{loss if n == 1 or all_of_them else 2},40,{loss}\n" for n in range(3)]
    (tmp_path / "metrics.csv").write_text(METRICS + "".join(rows))
    figure = curves.draw(tmp_path / "metrics.csv", record_of(3))
    figure.savefig(tmp_path / "curves.png")
    assert figure.axes[1].get_ylim() == (0, 1.08 * 40)


def test_one_epoch_is_a_point(figure_of):
    figure = figure_of(1)
    assert figure.get_suptitle().startswith("gap on digits, recipe quick, seed 3, 1 epoch: ")
    for line in figure.axes[0].lines:
        assert list(line.get_xdata()) == [1] and line.get_marker() == "." and line.get_markersize() >= 10


def test_a_long_title_is_broken(figure_of):
    lines = figure_of(2, data="x" * 150).get_suptitle().splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= curves.WIDTH
