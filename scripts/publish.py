"""Publishes the net of a run: weights and card into checkpoints/, under a name for nin.load and checkpoint=NAME.

python scripts/publish.py runs/2026-11-21_18-00-00_cifar10_gap_0 cifar10-gap

The card's test error is measured here, on the CPU in fp32, with the whitening as it is published.
"""

import shlex
import sys
from pathlib import Path

from nin import pretrained
from nin.command import compose, load_settings, overrides_of
from nin.config import ConfigError
from nin.data import DataError, Whiten
from nin.run import evaluate_pretrained

CONF = Path(__file__).parents[1] / "conf"


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    if len(arguments) != 2:
        print("error: give the folder of a run and the name for its net", file=sys.stderr)
        return 2
    run, name = arguments
    try:
        pretrained.check_name(name)
        settings = load_settings(Path(run) / "config.yaml")
        trained, overrides = pretrained.load(run), overrides_of(settings, CONF)
        facts = trained.facts
        facts["command"] = shlex.join(["python", "scripts/train.py", *overrides])
        own = compose(CONF, [o for o in overrides if not o.startswith("trainer.max_epochs=")]).trainer.max_epochs
        if own != facts["epochs"] and f"recipe={facts['recipe']}" in overrides:
            facts["schedule"] = f"the recipe's, scaled from {own} epochs to {facts['epochs']}"
        whitening = None
        if isinstance(trained.preprocess, Whiten):
            images = pretrained.golden_images(trained.preprocess.shape[1:])
            exactly = trained.preprocess(images)
            whitening, trained.preprocess = pretrained.publish_whitening(trained.preprocess)
            change = (trained.preprocess(images) - exactly).abs().max().item()
            facts["whitening"] = {"file": whitening.name, "matrix": "fp16", "changes_a_pixel_by": round(change, 5)}
        on_cpu = compose(CONF, ["trainer=cpu"])
        on_cpu.data.root = settings["data"]["root"]
        facts["test_error"] = round(evaluate_pretrained(trained, on_cpu)[0], 4)
        card = pretrained.publish(trained, name, whitening=whitening)
    except (pretrained.CheckpointError, ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name}: {card}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
