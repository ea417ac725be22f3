"""What a net costs layer by layer, with a fully connected head and with global average pooling. No memory is needed.

python scripts/cost.py                           the authors' CIFAR-10 net
python scripts/cost.py model=vgg_regressor       a net whose fully connected head takes 3.6 GB
python scripts/cost.py model=vgg19               or alexnet, inception_v3, or imagenet, the authors' net for it
python scripts/cost.py checkpoint=cifar10-gap    any trained net: a run's folder, a weights file or a published name
python scripts/cost.py head=gmp                  another head beside these two
"""

import sys

from nin import pretrained
from nin.command import plain_settings
from nin.config import ConfigError
from nin.studies import cost


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        settings = plain_settings(arguments, {"model": "", "checkpoint": "", "head": ""})
        if settings["model"] and settings["checkpoint"]:
            raise ConfigError(f"{' '.join(arguments)}: give model= or checkpoint=")
        name = settings["checkpoint"] or settings["model"] or "cifar10"
        if not settings["checkpoint"] and name not in cost.NETS:
            raise ConfigError(f"model={name}: choose one of {', '.join(cost.NETS)}, or give checkpoint=")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if settings["checkpoint"]:
            trained = pretrained.load(name)
            net, own = cost.of_checkpoint(trained), trained.net.arguments["head"]
        else:
            net, own = cost.NETS[name], "gap"
        print(cost.compare(name, *net, cost.beside(settings["head"] or own)))
    except (pretrained.CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
