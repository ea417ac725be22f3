import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import anything
from nin import checks
from nin.errors import NINError, SettingError, one_line

GOOD = {
    "integer": (lambda **s: checks.integer(1, 10, **s), st.integers(1, 10) | st.just(np.int64(4))),
    "boolean": (checks.boolean, st.booleans()),
    "fraction": (checks.fraction, st.floats(0, 1, exclude_max=True)),
    "share": (checks.share, st.floats(0, 1, exclude_min=True)),
    "positive": (checks.positive, st.floats(0, 1e300, exclude_min=True) | st.integers(1, 9)),
    "non_negative": (checks.non_negative, st.floats(0, 1e300) | st.just(0)),
    "one_of": (lambda **s: checks.one_of(("a", "b"), **s), st.sampled_from("ab")),
    "sides": (lambda **s: checks.sides(9, **s), st.integers(1, 9) | st.tuples(st.integers(1, 9), st.integers(1, 9))),
}
BAD = {
    "integer": [0, 11, 2.0, True, None, "3", math.nan, 10**400],
    "boolean": [0, 1, "true", None],
    "fraction": [1, -0.1, math.nan, False, "0.5"],
    "share": [0, 1.01, math.inf, None],
    "positive": [0, -1, math.inf, math.nan, True],
    "non_negative": [-1e-9, math.inf, "0"],
    "one_of": ["c", None, ["a"], 3],
    "sides": [0, 10, (1, 2, 3), (1, 2.0), "4", True],
}


@settings(max_examples=100)
@given(st.text() | st.integers(-5, 20).map(str) | st.sampled_from(["9" * 5000, "１２", "1_0", "+3", "3.0", " 3", "٣"]))
def test_a_whole_number_is_read_or_refused(text):
    try:
        number = checks.whole_number(2, 12, images=text)
        assert 2 <= number <= 12 and int(text) == number
    except SettingError as error:
        assert error.setting == "images" and error.reason == "expected an integer from 2 to 12"
        assert text not in [str(number) for number in range(2, 13)]


@pytest.mark.parametrize("name", GOOD)
def test_a_check_accepts_what_it_says_and_names_what_it_refuses(name):
    check, good = GOOD[name]

    @settings(max_examples=50)
    @given(good)
    def accepted(value):
        check(some_setting=value)

    accepted()
    for value in BAD[name]:
        with pytest.raises(SettingError, match=r"some_setting=.*: (expected|must be one of) ") as refused:
            check(some_setting=value)
        assert refused.value.setting == "some_setting"
        assert refused.value.value is value or refused.value.value == value
        assert refused.value.exit_code == 2 and isinstance(refused.value, NINError)


def test_a_refusal_takes_the_name_of_the_setting_above_it():
    refused = SettingError("lr", -1, "expected a number above 0").under("recipe")
    assert (refused.setting, refused.value, refused.reason) == ("recipe.lr", -1, "expected a number above 0")
    assert str(refused) == "recipe.lr=-1: expected a number above 0"
    assert str(refused.renamed("rate")) == "rate=-1: expected a number above 0"


def test_a_number_of_things_is_spelled():
    assert [checks.counted(number, "image") for number in (0, 1, 2, 1200)] == [
        *("0 images", "1 image", "2 images", "1,200 images")
    ]


@settings(max_examples=100)
@given(anything)
def test_any_value_is_one_line(value):
    line = one_line(value)
    assert len(line) <= 301 and "\n" not in line


def test_yaml_words_for_yaml_values():
    assert [one_line(value) for value in (None, True, False, "a\n b")] == ["null", "true", "false", "a b"]


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        ("0::/user.slice/job_1\n", {"user.slice/job_1/memory.max": 3 * 10**9, "user.slice/memory.max": 2 * 10**9}),
        ("4:memory:/slurm/job\n1:cpu:/\n", {"memory/slurm/job/memory.limit_in_bytes": 2 * 10**9}),
        ("0::/\nno group\n\n", {"memory.max": 2 * 10**9, "elsewhere/memory.max": 1}),
    ],
)
def test_the_limit_of_a_job_is_found_wherever_it_stands(tmp_path, lines, limits):
    for name, limit in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{limit}\n")
    (tmp_path / "own").write_text(lines)
    found = [int(file.read_text()) for file in checks._memory_limits(tmp_path, tmp_path / "own") if file.exists()]
    assert min(found) == 2 * 10**9
    assert list(checks._memory_limits(tmp_path, tmp_path / "missing"))
