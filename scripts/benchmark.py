"""Training images per second: this project's run, the bare step, the loop of the usual port. See nin/studies/speed.py.

python scripts/benchmark.py                                                                the default recipe
python scripts/benchmark.py model.norm=none model.dropout=0.5 recipe.optimiser=sgd         as the authors have it
"""

from pathlib import Path

from nin import provenance, run
from nin.command import command
from nin.config import Config
from nin.studies import speed


def main(settings: Config, folder: Path) -> None:
    settings.trainer.progress_bar = False
    found = speed.benchmark(settings)
    print(f"\n{found['device']}, torch {provenance.versions()['torch']}")
    print(f"batch {settings.data.batch_size}, {run.precision(settings)}, norm {settings.model.norm}\n")
    for name, value in found["images_per_second"].items():
        print(f"  {name:<12}{value:>10,.1f} images/s")
    print(f"\n  lightning is {found['lightning : bare step']:.3f} of the bare step")
    print(f"  lightning is {found['lightning : usual port']:.2f} times the usual port")


if __name__ == "__main__":
    command(Path(__file__).parents[1] / "conf", main, "nofolder")
