"""Prints the cost of a net layer by layer, with a fully connected head and with global average pooling.

The net takes no memory, however large it is.

python scripts/cost.py                           the authors' CIFAR-10 net
python scripts/cost.py model=vgg_regressor       a net whose fully connected head takes 3.6 GB
python scripts/cost.py checkpoint=cifar10-gap head=gmp

Settings:

  model=cifar10     the net: cifar10, imagenet (the authors'), vgg_regressor, alexnet, vgg19, inception_v3
  checkpoint=       a trained net in its place: a run's folder, a weights file or a published name
  head=             another head beside fc and gap; by default the checkpoint's
"""

from nin.cli import plain_settings, run_script
from nin.errors import SettingError, UsageError


def main(arguments: list[str]) -> None:
    settings = plain_settings(arguments, {"model": "", "checkpoint": "", "head": ""})
    model, checkpoint = settings["model"], settings["checkpoint"]
    if model and checkpoint:
        raise UsageError(f"model={model} checkpoint={checkpoint}: choose one of the two")

    from nin import pretrained
    from nin.studies import cost

    if checkpoint:
        trained = pretrained.load(checkpoint)
        net, head = cost.of_checkpoint(trained), trained.net.arguments["head"]
    elif model and model not in cost.NETS:
        raise SettingError("model", model, f"must be one of {', '.join(cost.NETS)}")
    else:
        net, head = cost.NETS[model or "cifar10"], "gap"
    heads = cost.beside(settings["head"] or head)
    print(cost.table(cost.compare(checkpoint or model or "cifar10", net, heads)))


def start() -> None:
    run_script(main)
