"""Evaluates a trained net on its test set, in fp32: the error, the worst confusions, and a picture of all of them.

python scripts/evaluate.py checkpoint=runs/2026-11-21_18-00-00_digits_gap_0        a run's folder
python scripts/evaluate.py checkpoint=weights.safetensors data.root=FOLDER         a weights file
python scripts/evaluate.py checkpoint=cifar10-gap                                  a published net
python scripts/evaluate.py checkpoint=cifar10_nin.caffemodel                       the authors' own net: 10.4 %

A run that has not finished is evaluated as it was after its last whole epoch.
"""

from pathlib import Path

from nin.checks import printable
from nin.cli import command
from nin.config import Config
from nin.errors import UsageError

SETTINGS = (
    "checkpoint",
    "data.root",
    "data.download",
    "data.urls",
    "data.memory",
    "data.workers",
    "trainer",
)  # the others come with the checkpoint


def main(settings: Config, folder: Path) -> None:
    if settings.checkpoint is None:
        raise UsageError("checkpoint= is required: a run's folder, a weights file or a published name")

    from nin import files, predict
    from nin.run import unfinished
    from nin.run.evaluate import evaluate_pretrained
    from nin.run.processes import rank
    from nin.studies import confusion

    own = {name: getattr(settings.data, name) for name in ("root", "download", "urls", "memory", "workers")}
    trained = unfinished.load(settings.checkpoint, **own)
    evaluation = evaluate_pretrained(trained, settings)
    matrix, classes = evaluation.confusion, evaluation.classes
    print(f"\nof {evaluation.images:,} images\n{confusion.worst_pairs(matrix, classes)}")
    print(f"\ntest error {evaluation.error:.2f} %")
    if evaluation.top5_error is not None:
        print(f"top-5 error {evaluation.top5_error:.2f} %")
    if rank():  # process 0 alone writes
        return
    label, checkpoint = predict.label_of(settings.checkpoint), Path(settings.checkpoint)
    picture = (checkpoint if checkpoint.is_dir() else folder) / f"confusion_{label}.png"
    title = f"{label}: test error {evaluation.error:.2f} % of {evaluation.images:,} images"
    files.save_figure(confusion.draw(matrix, classes, title), picture)
    print(f"all confusions: {printable(picture)}")


def check(settings: Config) -> None:
    """Raises SettingError if this machine lacks the devices of the settings."""
    from nin.run import build

    with build.settings_under("trainer"):
        build.check_devices(settings.trainer)


def start() -> None:
    command(main, check=check, settings=SETTINGS)
