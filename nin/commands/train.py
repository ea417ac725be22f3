"""Trains one net.

python scripts/train.py head=gap                                   the default recipe on CIFAR-10
python scripts/train.py head=gap data=digits                       no download, a minute or so
python scripts/train.py head=fc_dropout recipe=quick seed=1
python scripts/train.py head=gap recipe=paper                      the paper's regime
python scripts/train.py --help                                     all settings
"""

from datetime import datetime
from pathlib import Path

from nin.cli import command
from nin.config import Config


def main(config: Config, folder: Path) -> float | None:
    """Returns the held-out error for a sweeper that chooses values by it, None where nothing is held out."""
    from nin.run.train import closing_lines, train

    record = train(config, folder)
    print(closing_lines(record, folder))
    return record.val_error


def check(config: Config) -> None:
    from nin.run import build

    build.check(config)


def folder(config: Config) -> str:
    """The name of a run's folder: runs/2026-11-21_18-00-00_digits_gap_0."""
    return f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_{config.data.name}_{config.head.name}_{config.seed}"


def start() -> None:
    command(main, check=check, folder=folder, gives_error=True)
