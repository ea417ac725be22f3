"""What a trained net sees in pictures, and where.

python scripts/predict.py checkpoint=runs/… IMAGE_OR_FOLDER …     top classes, and a picture of their class maps
python scripts/predict.py checkpoint=runs/… size=native IMAGE     at the picture's own size instead of the training size
python scripts/predict.py checkpoint=runs/… figure=paper          the paper's figure: test images and all class maps
python scripts/predict.py checkpoint=runs/… figure=blanking       do the maps light up at the object? a number

The maps of a pooling head are its classes'. For a fully connected head class activation maps are worked out, which
needs captum: pip install 'network-in-network[cam]'
Pictures go to out=FOLDER, by default maps/. The test images of the last two come from data.root=FOLDER or NIN_DATA.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from nin import pretrained
from nin.data import DataError
from nin.run import images_of
from nin.studies import maps

FIGURES = ("paper", "blanking")


def main(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    settings = {"checkpoint": "", "size": "training", "figure": "", "out": "maps", "data.root": ""}
    paths = []
    for argument in arguments:
        name, given, value = argument.partition("=")
        if given and name in settings:
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
            predict(trained, maps.find_pictures(paths), settings["size"], out)
    except (pretrained.CheckpointError, maps.PictureError, DataError, ValueError, OSError) as error:
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
    if paths and settings["figure"]:
        return f"figure={settings['figure']} is drawn of test images and takes no {paths[0]}"
    if not paths and not settings["figure"]:
        return "give a picture or a folder of pictures"
    return ""


def predict(trained: pretrained.Pretrained, files: list[Path], size: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    training_size = trained.net.arguments["image_size"]
    failures: list[maps.PictureError] = []
    written: list[Path] = []
    for file in tqdm(files, disable=len(files) < 5):
        try:
            picture, shown_as = maps.read_picture(file), None
            if size != "native":
                shown_as = maps.resize(picture, 512)
                picture = maps.resize(picture, training_size if size == "training" else int(size))
            seen = maps.look(trained, picture)
            target = out / f"{file.stem}_maps.png"
            number = 2
            while target in written:
                target, number = out / f"{file.stem}_maps_{number}.png", number + 1
            written.append(target)
            maps.draw(trained, picture, seen, shown_as).savefig(target, dpi=150)
        except maps.PictureError as error:
            failures.append(error)
            continue
        best = seen[0].topk(min(3, len(trained.classes)))
        said = ", ".join(f"{trained.classes[k]} {100 * p:.1f} %" for p, k in zip(*map(list, best), strict=True))
        print(f"{file}: {said}  ({target})")
    if failures:
        raise maps.PictureError("; ".join(map(str, failures)))


def test_figure(trained: pretrained.Pretrained, settings: dict[str, str], out: Path) -> None:
    data = images_of(trained, settings["data.root"] or None)
    if settings["figure"] == "blanking":
        print(maps.blanking(trained, data.set))
        return
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"paper_{Path(settings['checkpoint']).stem}.png"
    maps.draw_paper_figure(trained, data.set.test_images, data.set.test_labels).savefig(file, dpi=80)
    print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
