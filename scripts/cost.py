"""What a net costs layer by layer, with a fully connected head and with global average pooling. No memory is needed.

python scripts/cost.py                           the authors' CIFAR-10 net
python scripts/cost.py model=vgg_regressor       a net whose fully connected head takes 3.6 GB
python scripts/cost.py model=vgg19               or imagenet, the authors' net for it, or alexnet
python scripts/cost.py checkpoint=cifar10-gap    any trained net: a run's folder, a weights file or a published name
"""

import sys

from nin import pretrained
from nin.studies import cost


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    kind, _, name = (arguments or ["model=cifar10"])[0].partition("=")
    if len(arguments) > 1 or kind not in ("model", "checkpoint") or (kind == "model" and name not in cost.NETS):
        choices = ", ".join(cost.NETS)
        print(f"error: {' '.join(arguments)}: give model= and one of {choices}, or checkpoint=", file=sys.stderr)
        return 2
    try:
        net = cost.NETS[name] if kind == "model" else cost.of_checkpoint(pretrained.load(name))
        print(cost.compare(name, *net))
    except (pretrained.CheckpointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
