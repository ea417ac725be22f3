"""The classes that a trained net sees in pictures, and where it sees them.

python scripts/predict.py checkpoint=runs/… IMAGE_OR_FOLDER …     top classes, and a picture of their class maps
python scripts/predict.py checkpoint=runs/… pictures=false FOLDER many pictures: predictions.csv alone
python scripts/predict.py checkpoint=runs/… class=dog IMAGE       the map of one class; top=10 shows the ten best
python scripts/predict.py checkpoint=runs/… size=native IMAGE     at the picture's own size instead of the training size
python scripts/predict.py checkpoint=runs/… test=10               ten random images of the net's test set
python scripts/predict.py checkpoint=runs/… figure=paper          the paper's figure: test images and all class maps
python scripts/predict.py checkpoint=runs/… figure=blanking       do the maps light up at the object? a number

A folder is searched with its subfolders. predictions.csv in out=FOLDER then has a line per picture: file, class,
probability and the runners-up. Pictures in out=FOLDER are left out where another folder is searched, since drawings are
written there; their number is printed. Choose another out=FOLDER to predict them. A run that has not finished predicts
with its last whole epoch, except under figure=blanking.

The heads gap and gmp have a map for each class. Under every other head class activation maps are computed. Pictures are
written to out=FOLDER, by default maps/. Test images come from data.root=FOLDER or NIN_DATA; seed=1, 2, … samples
others. figure=blanking takes 1,000 of them, or test=N.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nin import files
from nin.checks import counted, one_of, printable, whole_number
from nin.cli import as_setting, looks_like_checkpoint, plain_settings, run_script, similar
from nin.config import pasted
from nin.errors import SettingError, UsageError

if TYPE_CHECKING:
    from nin.pretrained import Pretrained

DEFAULTS = {"checkpoint": "", "size": "training", "figure": "", "test": "0", "seed": "0", "out": "maps"}
DEFAULTS |= {"data.root": "", "pictures": "true", "top": "3", "class": ""}
TABLE = "predictions.csv"


def main(arguments: list[str]) -> None:
    assigned = [each for each in arguments if each.partition("=")[0] in DEFAULTS and "=" in each]
    assigned = [each for each in assigned if not os.path.exists(each)]  # a file may be called size=big.png
    paths = [each for each in arguments if each not in assigned]
    settings = plain_settings(assigned, DEFAULTS)
    check(settings, paths)

    from nin.run.machine import keep_freed_memory

    keep_freed_memory()
    if settings["figure"] == "blanking":
        draw_blanking(settings)
        return

    from tqdm import tqdm

    from nin import pictures, predict
    from nin.run import unfinished

    predict.read_size(settings["size"])
    root, number = settings["data.root"] or None, int(settings["test"])
    trained = unfinished.load(settings["checkpoint"], fold=True, root=root)
    label, out = predict.label_of(settings["checkpoint"]), files.make_folder(settings["out"])
    if settings["figure"] == "paper":
        draw_paper(trained, out / f"paper_{label}.png", root)
        return
    sources = [
        (str(file), file) for file in pictures.find_pictures(paths, out, lambda left: print(_left_out(left, out)))
    ]
    sources += predict.sample_test_images(trained, number, root, int(settings["seed"])) if number else []
    print(f"{printable(label)} knows {predict.known_classes(trained)}")
    draws, of_class = settings["pictures"] == "true", settings["class"] or None
    many = predict.Many(trained, sources, out, label, settings["size"], draws, int(settings["top"]), of_class)
    writes_table = not draws or any(map(os.path.isdir, paths))
    try:
        for name, prediction, drawing in tqdm(many, total=len(sources), disable=len(sources) < 5):
            if drawing:
                said = f"{name}: {prediction.in_words(many.printed(prediction))}"
                print(printable(said), f" ({printable(drawing)})")
    finally:
        if writes_table and many.rows:  # of an interrupted command those before
            files.write(out / TABLE, many.table())
            print(f"{counted(len(many.rows), 'picture')}: {printable(out / TABLE)}")


def _left_out(pictures: list[Path], out: Path) -> str:
    """How many pictures are left out, and where."""
    number = counted(len(pictures), "picture")
    return (
        f"left out {number} in {printable(out)}, where drawings are written; to predict them choose another out=FOLDER"
    )


def check(settings: dict[str, str], paths: list[str]) -> None:
    """Raises UsageError or SettingError for a command line that is incomplete or contradicts itself."""
    figure = settings["figure"]
    for place, path in enumerate(paths):
        if path.startswith("-") and not os.path.lexists(path):
            written = as_setting(path, paths[place + 1 :], lambda each: similar(each, DEFAULTS))
            raise UsageError(f"{path}: no such option; {written}")
    if not settings["checkpoint"]:
        for path in filter(looks_like_checkpoint, paths):
            raise UsageError(f"{path}: did you mean {pasted('checkpoint', path, in_quotes=False)}?")
        raise UsageError("checkpoint= is required: a run's folder, a weights file or a published name")
    if figure:
        one_of(("paper", "blanking"), figure=figure)
    one_of(("true", "false"), pictures=settings["pictures"])
    whole_number(1, 1000, top=settings["top"])
    for name in ("test", "seed"):
        number = whole_number(0, 999_999_999, **{name: settings[name]})
        if figure == "paper" and number:
            raise SettingError(name, settings[name], "figure=paper takes the first test images of each class")
    if figure and settings["size"] != "training":
        raise SettingError("size", settings["size"], f"figure={figure} takes test images as they are")
    if figure == "blanking" and settings["test"] == "1":
        raise SettingError("test", 1, "figure=blanking requires at least 2 test images")
    if figure and paths:
        raise SettingError("figure", figure, f"takes test images, got {paths[0]}")
    if not paths and not figure and not int(settings["test"]):
        raise UsageError("expected pictures or folders of pictures, or test= and a number of test images")


def draw_paper(trained: Pretrained, file: Path, root: str | None) -> None:
    from nin.run.evaluate import images_of
    from nin.studies import maps, nets

    test = images_of(trained, root, memory=nets.WHOLE).set
    files.save_figure(maps.draw_paper_figure(trained, test.test_images, test.test_labels), file, dpi=80)
    print(printable(file))


def draw_blanking(settings: dict[str, str]) -> None:
    from nin import predict
    from nin.studies import nets, objects

    checkpoint, number, seed = settings["checkpoint"], int(settings["test"]) or 1000, int(settings["seed"])
    subjects = nets.gather([checkpoint], settings["data.root"] or None, number, seed)
    file = files.make_folder(settings["out"]) / f"blanking_{predict.label_of(checkpoint)}.png"
    answer = objects.answer(subjects)
    files.save_figure(answer.figure, file)
    print(f"{answer.title}\n\n{answer.table}\n\n{answer.finding}\n")
    print(printable(file))


def start() -> None:
    run_script(main)
