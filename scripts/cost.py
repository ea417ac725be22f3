"""What a net costs layer by layer, with a fully connected head and with global average pooling. No memory is needed.

python scripts/cost.py                           the authors' CIFAR-10 net
python scripts/cost.py model=vgg_regressor       a net whose fully connected head takes 3.6 GB
"""

import sys

from nin.studies import cost


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    name = arguments[0].removeprefix("model=") if arguments else "cifar10"
    if len(arguments) > 1 or name not in cost.NETS:
        print(f"error: {' '.join(arguments)}: give model= and one of {', '.join(cost.NETS)}", file=sys.stderr)
        return 2
    print(cost.compare(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
