import pytest

from nin.studies.answer import by_sign, overall


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
