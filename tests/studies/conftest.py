import pytest

from nin import config
from nin.config import Config
from nin.studies import rows


def make_row(head="gap", seed=0, error=10.0, status="ok", variant="", curve=(), start=("", "", ""), **values):
    """A row of `quick` on CIFAR-10. `values` are its settings by name, with __ for the dot, or columns: val_error,
    precision, commit, clean or torch."""
    columns = {
        name: values.pop(name) for name in ("val_error", "precision", "commit", "clean", "torch") if name in values
    }
    settings = {
        "data.name": "cifar10",
        "recipe.name": "quick",
        "trainer.max_epochs": 8,
        "head.name": head,
        "seed": seed,
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    learnt = status == "ok"
    return {
        **{name: settings[key] for name, key in rows.NAMED.items()},
        **{"status": status, "test_error": error if learnt else None, "train_error": error / 2 if learnt else None},
        **{"val_error": None, "seconds": None, "images_per_second": None, "precision": "", "hardware": "cpu"},
        **{
            "torch": "2.14.1+cpu",
            "commit": "c" * 40,
            "clean": True,
            "variant": variant,
            "test_curve": tuple(curve),
            "curves": {},
        },
        **dict(zip(("start_name", "start_sha256", "start_head"), start, strict=True)),
        "settings": {**config.consequential(config.settings_of(Config())), **settings},
        **columns,
    }


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
