import random

import pytest

from nin.studies.answer import by_sign, of_differences, overall
from nin.studies.tables import interval


@pytest.mark.parametrize(
    ("verdicts", "one"),
    [
        (["supported", "supported"], "supported"),
        (["refuted"], "refuted"),
        (["undecided", "undecided"], "undecided"),
        (["supported", "undecided"], "supported in part"),
        (["undecided", "refuted", "refuted"], "refuted in part"),
        (["supported", "refuted", "undecided"], "mixed"),
        ([], "not answered"),
    ],
)
def test_several_verdicts_become_one(verdicts, one):
    assert overall(verdicts) == one


@pytest.mark.parametrize(
    ("interval", "verdict"), [((1, 2), "supported"), ((-2, -1), "refuted"), ((-1, 1), "undecided")]
)
def test_an_interval_decides_by_its_sign(interval, verdict):
    assert by_sign(*interval) == verdict


def test_few_or_equal_differences_decide_nothing():
    draw = random.Random(0)
    for _ in range(200):
        count, least, mean = draw.randint(1, 12), draw.randint(2, 12), draw.choice((-5.0, 0.01, 5.0))
        differences = [draw.gauss(mean, 1) for _ in range(count)] if draw.random() < 0.7 else [mean] * count
        verdict = of_differences(differences, least)
        if count < least or len(set(differences)) == 1:
            assert verdict == "undecided"
        else:
            assert verdict == by_sign(*interval(differences))
        opposite = {"supported": "refuted", "refuted": "supported"}.get(verdict, verdict)
        assert of_differences([-each for each in differences], least) == opposite
