"""What a trained net sees in pictures, and where.

python scripts/predict.py checkpoint=runs/… IMAGE_OR_FOLDER …     top classes, and a picture of their class maps
python scripts/predict.py checkpoint=runs/… size=native IMAGE     at the picture's own size instead of the training size
python scripts/predict.py checkpoint=runs/… test=10               ten images, drawn from the test set of its training
python scripts/predict.py checkpoint=runs/… figure=paper          the paper's figure: test images and all class maps
python scripts/predict.py checkpoint=runs/… figure=blanking       do the maps light up at the object? a number

The maps of a pooling head are its classes'. For a fully connected head class activation maps are worked out, which
needs captum: pip install 'network-in-network[cam]'
Pictures go to out=FOLDER, by default maps/. Test images come from data.root=FOLDER or NIN_DATA, and other ones with
seed=1, 2, …; figure=blanking takes 1,000 of them, or test=N.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from nin import pictures, pretrained
from nin.data import DataError
from nin.run import images_of
from nin.studies import claims_of_nets, maps, nets
from nin.studies.answer import ClaimError

FIGURES = ("paper", "blanking")


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    settings = {"checkpoint": "", "size": "training", "figure": "", "test": "0", "seed": "0"}
    settings |= {"out": "maps", "data.root": ""}
    paths = []
    for argument in arguments:
        name, given, value = argument.partition("=")
        if given and name in settings and not Path(argument).exists():
            settings[name] = value
        else:
            paths.append(argument)
    if wrong := complain(settings, paths):
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    out = Path(settings["out"])
    try:
        trained = pretrained.load(settings["checkpoint"])
        if settings["figure"]:
            test_figure(trained, settings, out)
        else:
            found: list[Path | tuple[str, Image.Image]] = [*pictures.find_pictures(paths)]
            found += drawn(trained, settings)
            predict(trained, found, settings["size"], out, name_of(settings["checkpoint"]))
    except (pretrained.CheckpointError, pictures.PictureError, ClaimError, DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def complain(settings: dict[str, str], paths: list[str]) -> str:
    """What is wrong with the command line, in words; empty where nothing is."""
    if not settings["checkpoint"]:
        return "checkpoint= must be given: a run's folder, a weights file or a published name"
    if (
        settings["size"] != "native"
        and settings["size"] != "training"
        and not (settings["size"].isdecimal() and 0 < int(settings["size"]) <= 4096)
    ):
        return f"size={settings['size']}: choose training, native or a number of pixels"
    if settings["figure"] and settings["figure"] not in FIGURES:
        return f"figure={settings['figure']}: choose one of {', '.join(FIGURES)}"
    for name in ("test", "seed"):
        if not settings[name].isdecimal() or len(settings[name]) > 9:
            return f"{name}={settings[name]}: a whole number from 0 to 999999999"
    if settings["figure"] and settings["size"] != "training":
        return f"size={settings['size']}: figure={settings['figure']} takes test images as they are"
    for name in ("test", "seed"):
        if settings["figure"] == "paper" and int(settings[name]):
            return f"{name}={settings[name]}: figure=paper takes the first test images of each class"
    if settings["figure"] == "blanking" and settings["test"] == "1":
        return "test=1: figure=blanking takes two test images at least"
    if paths and settings["figure"]:
        return f"figure={settings['figure']} is drawn of test images and takes no {paths[0]}"
    if not paths and not settings["figure"] and not int(settings["test"]):
        return "give a picture or a folder of pictures, or test= and a number of test images"
    return ""


def name_of(checkpoint: str) -> str:
    """What tells the pictures of this checkpoint from another's: its name, or its run's."""
    path = Path(checkpoint)
    if path.suffix != ".safetensors":
        return path.name
    return path.absolute().parent.name if path.stem == "model" else path.stem


def drawn(trained: pretrained.Pretrained, settings: dict[str, str]) -> list[tuple[str, Image.Image]]:
    """As many test images as test= says, with names that tell number and class."""
    if not int(settings["test"]):
        return []
    data = images_of(trained, settings["data.root"] or None).set
    draws = torch.Generator().manual_seed(int(settings["seed"]))
    chosen = torch.randperm(len(data.test_labels), generator=draws)[: int(settings["test"])]
    names = [f"test_{i}_{data.classes[data.test_labels[i]]}" for i in chosen]
    return [
        (name, Image.fromarray(data.test_images[i].permute(1, 2, 0).numpy()))
        for name, i in zip(names, chosen, strict=True)
    ]


def predict(
    trained: pretrained.Pretrained, found: Sequence[Path | tuple[str, Image.Image]], size: str, out: Path, net: str
) -> None:
    """Says what each picture is, a file or a name with the picture itself, and saves where that was seen."""
    out.mkdir(parents=True, exist_ok=True)
    training_size = trained.net.arguments["image_size"]
    failures: list[str] = []
    taken = {file.resolve() for file in found if isinstance(file, Path)}  # the pictures, and what has been written
    for source in tqdm(found, disable=len(found) < 5):
        file = source if isinstance(source, Path) else Path(source[0])
        try:
            picture, shown_as = pictures.read_picture(source) if isinstance(source, Path) else source[1], None
            if size != "native":
                shown_as = pictures.resize(picture, 512)
                picture = pictures.resize(picture, training_size if size == "training" else int(size))
            seen = maps.look(trained, picture)
            target, number = out / f"{file.stem}_{net}.png", 2
            while target.resolve() in taken:
                target, number = out / f"{file.stem}_{net}_{number}.png", number + 1
            taken.add(target.resolve())
            maps.draw(trained, picture, seen, shown_as).savefig(target, dpi=150)
        except (pictures.PictureError, ValueError) as error:
            failures.append(str(error) if str(file) in str(error) else f"{file}: {error}")
            continue
        best = seen[0].topk(min(3, len(trained.classes)))
        said = ", ".join(f"{trained.classes[k]} {100 * p:.1f} %" for p, k in zip(*map(list, best), strict=True))
        print(f"{file}: {said}  ({target})")
    if failures:
        raise pictures.PictureError("; ".join(failures))


def test_figure(trained: pretrained.Pretrained, settings: dict[str, str], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{settings['figure']}_{name_of(settings['checkpoint'])}.png"
    root = settings["data.root"] or None
    if settings["figure"] == "blanking":
        chosen = nets.gather([settings["checkpoint"]], root, int(settings["test"]) or 1000, int(settings["seed"]))
        answer = claims_of_nets.objects(chosen)
        answer.figure.savefig(file, dpi=150)
        print(f"{answer.title}\n\n{answer.table}\n\n{answer.finding}\n")
    else:
        data = images_of(trained, root)
        maps.draw_paper_figure(trained, data.set.test_images, data.set.test_labels).savefig(file, dpi=80)
    print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
