"""Training images per second: this project's run, the bare step, and the loop of a usual port (nin/studies/speed.py).

python scripts/benchmark.py                                                                the default recipe
python scripts/benchmark.py model.norm=none model.dropout=0.5 recipe.optimiser=sgd         as the authors have it
python scripts/benchmark.py trainer=cpu data.batch_size=64
"""

from pathlib import Path

from nin.cli import command
from nin.config import Config

SETTINGS = ("model", "head", "data", "recipe", "trainer", "experiment", "seed")


def main(config: Config, folder: Path) -> None:
    from nin.run.machine import versions
    from nin.run.trainer import precision
    from nin.studies import speed

    speeds = speed.benchmark(config)
    print(f"\n{speeds.device}, torch {versions()['torch']}")
    print(f"batch {config.data.batch_size}, {precision(config)}, norm {config.model.norm}\n")
    print(speed.table(speeds))


def check(config: Config) -> None:
    from nin.run import build

    build.check(config)


def start() -> None:
    command(main, check=check, settings=SETTINGS)
