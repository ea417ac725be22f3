"""Publishes the net of a run: weights and card into checkpoints/, under a name for nin.load and checkpoint=NAME.

python scripts/publish.py runs/2026-11-21_18-00-00_cifar10_gap_0 cifar10-gap
"""

import shlex
import sys
from pathlib import Path

from nin import pretrained
from nin.command import load_config, overrides_of
from nin.config import ConfigError
from nin.data import Whiten

ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    if len(arguments) != 2:
        print("error: give the folder of a run and the name for its net", file=sys.stderr)
        return 2
    run, name = arguments
    try:
        trained = pretrained.load(run)
        overrides = overrides_of(load_config(Path(run) / "config.yaml"), ROOT / "conf")
        trained.facts["command"] = shlex.join(["python", "scripts/train.py", *overrides])
        whitening = None
        if isinstance(trained.preprocess, Whiten):
            whitening = pretrained.publish_whitening(trained.preprocess)
        card = pretrained.publish(trained, name, whitening=whitening)
    except (pretrained.CheckpointError, ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{name}: {card}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
