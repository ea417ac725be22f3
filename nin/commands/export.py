"""Writes a trained net into one file for programs without PyTorch, and compares its answers with PyTorch's.

python scripts/export.py checkpoint=cifar10-gap                         cifar10-gap.onnx
python scripts/export.py checkpoint=runs/… out=FOLDER/net.onnx           a run's net, to a file of your choice
python scripts/export.py checkpoint=weights.safetensors                  a weights file

Pixels go in, (N, C, H, W) uint8, at any size if the net accepts it; logits and class maps come out. Preprocessing is
inside, class names and card are in the metadata. It requires the extra [onnx].

Settings:

  checkpoint=       a trained net: a run's folder, a weights file or a published name
  format=onnx       the format; there is one
  out=              the file; by default the net's name, in the current folder
"""

from __future__ import annotations

from pathlib import Path

from nin.checks import one_of
from nin.cli import plain_settings, run_script
from nin.errors import SettingError, UsageError


def main(arguments: list[str]) -> None:
    settings = plain_settings(arguments, {"checkpoint": "", "format": "onnx", "out": ""})
    one_of(("onnx",), format=settings["format"])
    if not settings["checkpoint"]:
        raise UsageError("checkpoint= is required: a run's folder, a weights file or a published name")
    if settings["out"] and Path(settings["out"]).suffix != ".onnx":
        raise SettingError("out", settings["out"], "expected the name of a file that ends in .onnx")

    from nin import export, files, predict, pretrained

    export.check_installed()
    trained = pretrained.load(settings["checkpoint"])
    file = Path(settings["out"] or f"{predict.label_of(settings['checkpoint'])}.onnx")
    files.make_folder(file.parent)  # before the work
    content = export.to_onnx(trained)
    print("images  size       difference of logits  of maps   (largest value)")
    for row in export.compare(content, trained):
        size = f"{row.height}×{row.width}"
        print(f"{row.images:<7} {size:<10} {row.logits[0]:<21.1e} {row.maps[0]:<9.1e} ({row.maps[1]:.1f})")
    files.write(file, content)
    print(f"{file}: {len(content) / 1e6:.1f} MB")


def start() -> None:
    run_script(main)
