"""Trains one net.

python scripts/train.py head=gap                                   the default recipe on CIFAR-10
python scripts/train.py head=gap data=digits                       no download, a minute or so
python scripts/train.py head=fc_dropout recipe=quick seed=1
python scripts/train.py head=gap recipe=paper                      the authors' settings
python scripts/train.py --help                                     all settings
"""

from pathlib import Path

from nin import run
from nin.command import command
from nin.config import Config
from nin.folder import for_people


def main(settings: Config, folder: Path) -> None:
    summary = run.train(settings, folder)
    print(for_people(summary, folder))


if __name__ == "__main__":
    command(Path(__file__).parents[1] / "conf", main)
