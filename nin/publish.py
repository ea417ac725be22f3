"""Publishing: the net of a run becomes a weights file and a card, under a name for `nin.load` and checkpoint=NAME."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from nin import files, pretrained
from nin.checks import one_line, sides
from nin.config import Config
from nin.cost import multiply_accumulates
from nin.data.preprocess import Whiten, upper_triangle
from nin.errors import CheckpointError, NINError
from nin.plan import LARGEST
from nin.pretrained import Pretrained
from nin.run import record as records
from nin.run.record import Record

if TYPE_CHECKING:
    from nin.run.evaluate import Evaluation

WHITENING = "whitening"  # the beginning of the names of files that nets share
TOLERANCE = 2e-3  # of a whitening's numbers: two whitenings that differ by less share one file
GOLDEN_BATCHES = 4  # batches (1,000 images of 32×32) whose error a card states too, so that it is checked in seconds


def publish(
    run: str | Path, name: str, *, command: str, recipe_epochs: int | None = None, folder: Path | None = None
) -> Path:
    """Writes the net of a run and its card among the published nets; returns the card's path.

    The card's test error is measured here, on the CPU in fp32, with the whitening as it is published.

    Args:
        run: the folder of a finished run.
        name: the name that the net gets.
        command: the command that trained it.
        recipe_epochs: the recipe's own number of epochs; the card states it if the run has another.
        folder: where it goes, by default among the published nets.

    Raises:
        CheckpointError: the run has no net, or the name is taken or not a name.
        DataError: the run's test set is missing.
        RunError: the run's summary is damaged, or a file cannot be written.
    """
    from nin.run.evaluate import evaluate_pretrained

    folder = folder or pretrained.CHECKPOINTS
    check_name(name, folder)
    trained, record = pretrained.load(run), read_run(run)
    check_same_run(trained, record, run)
    facts: dict[str, Any] = {"command": command}
    if recipe_epochs not in (None, record.epochs):
        facts["schedule"] = f"the recipe's, scaled from {recipe_epochs} epochs to {record.epochs}"
    whitening = None
    if isinstance(trained.preprocess, Whiten):
        whitening, facts["whitening"] = share_whitening(trained, folder)
    on_cpu = Config()
    on_cpu.trainer.accelerator = "cpu"
    on_cpu.data.root = record.settings["data"]["root"]
    measured = measured_again(record, evaluate_pretrained(trained, on_cpu))
    on_cpu.trainer.limit_test_batches = GOLDEN_BATCHES
    facts["error_of_first_batches"] = round(evaluate_pretrained(trained, on_cpu).error, 4)
    without_root = {**record.settings, "data": {**record.settings["data"], "root": None}}
    record = replace(measured, settings=without_root, weights_sha256=None)  # the published file has another
    return publish_net(trained, name, {**record.to_dict(), **facts}, folder, whitening)


def measured_again(record: Record, evaluation: Evaluation) -> Record:
    """A run's record with what another evaluation measured on the test set."""
    return replace(
        record,
        test_error=round(evaluation.error, 4),
        test_images=evaluation.images,
        chance_error=round(evaluation.chance_error, 4),
        top5_error=None if evaluation.top5_error is None else round(evaluation.top5_error, 4),
        class_errors=record.class_errors and evaluation.class_errors,
    )


def read_run(run: str | Path) -> Record:
    """The record of a finished run. Raises CheckpointError if the folder contains none."""
    record = records.read(Path(run))
    if record is None or record.status != "finished":
        raise CheckpointError(f"run={one_line(run)}: this folder contains no finished run")
    return record


def check_same_run(trained: Pretrained, record: Record, run: str | Path) -> None:
    """Raises CheckpointError if a folder's record and weights are of different runs, as when one was replaced."""
    wrong = f"run={one_line(run)}: {records.FILE} does not match the weights:"
    if record.weights_sha256 not in (None, trained.sha256):
        raise CheckpointError(f"{wrong} expected sha256 {trained.sha256}, got {record.weights_sha256}")
    for name in ("data", "head", "recipe", "seed", "epochs"):
        theirs, its = trained.facts.get(name), getattr(record, name)
        if theirs != its:
            raise CheckpointError(f"{wrong} expected {name} {one_line(theirs)}, got {one_line(its)}")


def check_name(name: str, folder: Path | None = None) -> None:
    """Raises CheckpointError unless a net can be published under `name` in `folder`."""
    folder = folder or pretrained.CHECKPOINTS
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise CheckpointError(f"name={one_line(name)}: expected small letters, digits and hyphens")
    if name == WHITENING:
        raise CheckpointError(f"name={name}: the files of whitenings have this name; choose another")
    if (folder / f"{name}.json").exists():
        raise CheckpointError(f"name={name}: {folder} already contains this name; remove its card and weights first")


def publish_net(
    trained: Pretrained, name: str, facts: Mapping[str, Any], folder: Path | None = None, whitening: Path | None = None
) -> Path:
    """Writes a net's weights and card into `folder`; returns the card's path.

    Args:
        trained: the net.
        name: the name that it gets.
        facts: the beginning of the card: "data", the set that it was trained on, and any others.
        folder: where it goes, by default among the published nets.
        whitening: the shared file of its whitening, from `publish_whitening`.

    Raises:
        CheckpointError: the name is taken, or not a name.
        RunError: a file cannot be written; neither weights nor card are left then.
    """
    folder = files.make_folder(folder or pretrained.CHECKPOINTS)
    check_name(name, folder)
    of_file = Pretrained(trained.net, trained.preprocess, trained.classes, {"data": facts["data"]})
    content = pretrained.serialise(of_file, whitening)
    file = folder / f"{name}-{files.sha256(content)[:8]}.safetensors"
    files.write(file, content)
    try:
        card = {**facts, **describe(file)}
        files.write(folder / f"{name}.json", json.dumps(card, indent=2) + "\n")
    except NINError:
        file.unlink()  # weights without a card would have no name
        raise
    return folder / f"{name}.json"


def describe(file: Path) -> dict[str, Any]:
    """The facts of a card that its weights file states: checksum, net, classes, cost and the golden logits."""
    trained = pretrained.load(file)
    size = sides(LARGEST, image_size=trained.net.arguments["image_size"])
    logits = trained(pretrained.golden_images(size, trained.channels)).detach()
    return {
        "file": file.name,
        "sha256": trained.sha256,
        "bytes": file.stat().st_size,
        "net": trained.net.arguments,
        "classes": list(trained.classes),
        "preprocessing": trained.preprocess.name,
        "multiply_accumulates": multiply_accumulates(trained.net, trained.channels, *size),
        "golden_logits": [[round(value, 6) for value in row] for row in logits.tolist()],
        "licence": f"weights: Apache-2.0; trained on {trained.facts['data']}, whose images are not part of this",
    }


def share_whitening(trained: Pretrained, folder: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Publishes a net's whitening, and replaces the net's own by the published one, which is rounded to fp16.

    Returns the file and the card's facts about it."""
    images = pretrained.golden_images(trained.preprocess.shape[1:], trained.channels)
    exact = trained.preprocess(images)
    file, trained.preprocess = publish_whitening(trained.preprocess, folder)
    change = (trained.preprocess(images) - exact).abs().max().item()
    return file, {"file": file.name, "matrix": "fp16", "changes_a_pixel_by": round(change, 5)}


def publish_whitening(whiten: Whiten, folder: Path | None = None) -> tuple[Path, Whiten]:
    """Writes a whitening that several nets share, half of its symmetric matrix in fp16; returns the file and the
    whitening in it.

    A file that already contains the same whitening, up to rounding, is returned instead.

    Raises:
        RunError: it cannot be written.
    """
    folder = files.make_folder(folder or pretrained.CHECKPOINTS)
    for file in sorted(folder.glob(f"{WHITENING}-{'[0-9a-f]' * 8}.safetensors")):
        tensors = pretrained.read_whitening(safetensors.torch.load(files.read(file)))
        mean, matrix = (tensors[f"preprocess.{name}"] for name in ("mean", "matrix"))
        pairs = (mean, whiten.mean), (matrix, whiten.matrix)
        if all(here.shape == there.shape and (here - there).abs().max() < TOLERANCE for here, there in pairs):
            return file, Whiten(mean, matrix, whiten.shape)
    stored = {"preprocess.mean": whiten.mean, pretrained.TRIANGLE: upper_triangle(whiten.matrix.half())}
    content = safetensors.torch.save(stored)
    file = folder / f"{WHITENING}-{files.sha256(content)[:8]}.safetensors"
    files.write(file, content)
    return file, Whiten(whiten.mean, pretrained.read_whitening(stored)["preprocess.matrix"], whiten.shape)
