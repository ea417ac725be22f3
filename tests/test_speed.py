import pytest
from conftest import CONF

from nin.command import compose
from nin.config import ConfigError
from nin.studies.speed import benchmark


@pytest.mark.parametrize("overrides", [[], ["model.norm=none", "recipe=paper"]])
def test_the_three_ways_are_timed_and_compared(overrides):
    overrides = [*overrides, "data.batch_size=8", "data.share=0.01", "trainer.progress_bar=false"]
    found = benchmark(compose(CONF, overrides), steps=2, rounds=1)
    speeds = found["images_per_second"]
    assert set(speeds) == {"lightning", "bare step", "usual port"}
    assert all(speed > 0 for speed in speeds.values())
    for other in ("bare step", "usual port"):
        ratio = speeds["lightning"] / speeds[other]
        assert found[f"lightning : {other}"] == pytest.approx(ratio, abs=0.02)


def test_images_of_another_size_are_refused():
    with pytest.raises(ConfigError, match=r"data\.size=64: what is timed"):
        benchmark(compose(CONF, ["data=flowers17", "data.size=64"]))
