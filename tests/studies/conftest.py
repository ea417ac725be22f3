import pytest

from claims import make_row
from nin.studies import rows


@pytest.fixture
def row():
    """Makes a row: see `make_row`."""
    return make_row


@pytest.fixture
def frame(tmp_path):
    """Makes a frame of rows, as it is read from a study's file."""

    def make(*made):
        file = tmp_path / "frame.csv"
        file.unlink(missing_ok=True)
        rows.append(file, made)
        return rows.ended(file)

    return make
