"""Publishes the net of a run: weights and card into checkpoints/, under a name for nin.load and checkpoint=NAME.

python scripts/publish.py runs/2026-11-21_18-00-00_cifar10_gap_0 cifar10-gap      a run's folder and the net's name
python scripts/publish.py runs/ablation/cifar10_fc_quick_0-1a2b3c4d cifar10-fc    a run of a study
python scripts/train.py head=gap checkpoint=cifar10-gap                           what is published is used by its name

It belongs to a checkout of the repository. A name consists of small letters, digits and hyphens, and is taken once. The
card's test error is measured here, on the CPU in fp32, with the whitening as it is published.
"""

from __future__ import annotations

from typing import Any

from nin import cli
from nin.errors import UsageError


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError("expected the folder of a run and a name for its net")

    from nin import publish

    run, name = arguments
    publish.check_name(name)
    settings = publish.read_run(run).settings
    epochs, command = recipe_epochs(settings), cli.command_of(settings)
    print(f"{name}: {publish.publish(run, name, command=command, recipe_epochs=epochs)}")


def recipe_epochs(settings: dict[str, Any]) -> int | None:
    """The length of a run of these settings' recipe on their set; None if conf/ has no such recipe."""
    overrides = [each for each in cli.overrides_of(settings) if not each.startswith("trainer.max_epochs=")]
    if not any(each.startswith(("recipe=", "experiment=")) for each in overrides):
        return None
    return cli.compose(overrides).trainer.max_epochs


def start() -> None:
    cli.run_script(main)
