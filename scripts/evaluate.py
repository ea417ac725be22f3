"""Evaluates a trained net on its test set, in fp32: error, the worst confusions, and a picture of all of them.

python scripts/evaluate.py checkpoint=runs/2026-11-21_18-00-00_digits_gap_0        a run's folder
python scripts/evaluate.py checkpoint=weights.safetensors data.root=FOLDER         a weights file
python scripts/evaluate.py checkpoint=cifar10-gap                                  a published net
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from nin import run
from nin.command import command
from nin.config import Config, ConfigError
from nin.processes import rank
from nin.studies import confusion

SETTINGS = ("checkpoint", "data.root", "data.download", "data.urls", "trainer")  # the others are the checkpoint's own


def main(settings: Config, folder: Path) -> None:
    for override in HydraConfig.get().overrides.task:
        name = override.lstrip("+").split("=")[0]
        if name not in SETTINGS and not name.startswith("trainer."):
            raise ConfigError(f"{override}: the checkpoint brings its own; to be set are {', '.join(SETTINGS)}")
    if settings.checkpoint is None:
        raise ConfigError("checkpoint= must be given: a run's folder, a weights file or a published name")
    error, matrix, classes = run.evaluate_checkpoint(settings)
    name = Path(settings.checkpoint).name
    picture = Path(settings.checkpoint) if Path(settings.checkpoint).is_dir() else folder
    picture /= f"confusion_{name}.png"
    print(f"\nof {matrix.sum():,} images\n{confusion.worst_pairs(matrix, classes)}")
    if rank():  # process 0 alone writes
        return
    try:
        confusion.draw(matrix, classes, f"{name}: test error {error:.2f} %").savefig(picture, dpi=150)
        print(f"all of them: {picture}")
    finally:  # a picture that cannot be saved costs the picture alone
        print(f"\ntest error {error:.2f} %")


if __name__ == "__main__":
    command(Path(__file__).parents[1] / "conf", main, "nofolder")
