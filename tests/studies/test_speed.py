import pytest

from nin.cli import compose
from nin.errors import SettingError
from nin.studies.speed import Speeds, benchmark, table


@pytest.mark.parametrize("overrides", [[], ["model.norm=none", "recipe=paper"]])
def test_the_three_ways_are_timed_and_compared(overrides):
    settings = compose([*overrides, "data.batch_size=4", "data.share=0.01", "model=plain"])
    speeds = benchmark(settings, steps=1, rounds=1)
    assert settings.data.share == 0.01  # the caller's settings stay as they were
    assert set(speeds.rounds) == {"lightning", "bare step", "usual port"}
    assert all(len(values) == 1 and values[0] > 0 for values in speeds.rounds.values())


def test_medians_and_ratios():
    speeds = Speeds({"lightning": [4, 2, 6], "bare step": [8, 2, 4], "usual port": [2, 2, 2]}, "a machine")
    assert speeds.images_per_second("lightning") == 4
    assert (speeds.ratio("bare step"), speeds.ratio("usual port")) == (1, 2)
    assert "  lightning          4.0 images/s" in table(speeds)
    assert "lightning is 1.000 of the bare step" in table(speeds)
    assert "lightning is 2.00 times the usual port" in table(speeds)


def test_images_of_another_size_are_refused():
    with pytest.raises(SettingError, match=r"data\.size=64: the steps are timed"):
        benchmark(compose(["data=flowers17", "data.size=64"]))
