"""What tests share: places, a narrow net, and values that nobody would think of."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
# the three blocks of the paper's net an eighth as wide, for tests of all that does not depend on it
NARROW = (
    "model.blocks=[{widths: [24, 20, 12], kernel_size: 5, dropout: true}, {widths: 24, kernel_size: 5, dropout: true}, "
    "{widths: [24, 24, null], kernel_size: 3}]"
)


def choices(group):
    """The names of the files of a group in conf/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def tree():
    """Every path below the current folder."""
    return sorted(str(path) for path in Path().rglob("*"))


class StandIn:
    """In place of a CUDA graph: repeats the step itself, as a graph repeats its launches."""

    def __init__(self, step):
        self.replay = step


# the same examples everywhere, so that a failure comes from the change and not from the draw
settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("fixed")

huge = st.sampled_from([2**31, 2**63, 10**25, 10**400, -(10**400)])
odd = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 1e-320])
text = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\\"), max_size=8)
scalar = st.none() | st.booleans() | st.integers(-3, 70_000) | huge | st.floats() | odd | text
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcw_", min_size=1, max_size=4), inner),
    max_leaves=5,
)


def one_with_anything(good: dict):
    """Arguments that are meant well, of which up to two are replaced by anything."""

    @st.composite
    def arguments(draw):
        chosen = {name: draw(value) for name, value in good.items()}
        for name in draw(st.lists(st.sampled_from(sorted(good)), max_size=2, unique=True)):
            chosen[name] = draw(anything)
        return chosen

    return arguments()


class Ended(Counter):
    """Counts what was built and what was refused, so that a constructor which refuses everything fails its test."""

    def build(self, constructor, arguments: dict):
        """What is built, or None where it is refused by the name of one of its arguments."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                made = constructor(**arguments)
            except ValueError as refused:
                message = str(refused)
                assert len(message) < 1500 and "\n" not in message, message
                named = re.match(r"(\w+)(=|: | )", message)
                assert named and named[1] in arguments, (message, arguments)
                self["refused"] += 1
                return None
        self["built"] += 1
        return made

    def assert_both(self, least: int) -> None:
        """Fails unless at least so many were built, and so many refused."""
        assert min(self["built"], self["refused"]) >= least, dict(self)


class Payload:
    """A pickle of it makes a file at `marker` when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)
