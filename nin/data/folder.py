"""A folder of your own pictures: its classes, its split and its sha256.

PHOTOS/rose/1.jpg, PHOTOS/tulip/2.png, …              one subfolder a class; training and test pictures are drawn
PHOTOS/train/rose/1.jpg, …, PHOTOS/test/rose/9.jpg, …  the split is given; val/ counts as test/ where there is no test/
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from nin import files
from nin.checks import cores, counted, one_line, some_of
from nin.errors import DataError, PictureError
from nin.pictures import SUFFIXES, files_below, is_picture, is_shown, read_picture

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # folders of a given split
TEST_PART = 5  # one of so many pictures of a class is a test picture, if the split is drawn
FEW = 10  # a class with fewer pictures is warned about
UNEQUAL = 5  # a ratio of the largest class to the smallest from which they are warned about
NAMED = 5  # files that a warning names


class Picture(NamedTuple):
    """A picture of a folder: its file, the number of its class, and the sha256 of its bytes."""

    file: Path
    label: int
    sha256: str


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, as files.

    Their order depends on their contents alone, so that renaming a file changes no run.

    Attributes:
        root: the folder.
        classes: the K names, sorted.
        given: training and test pictures where the folder has train/ and test/, else all pictures and none.
        is_split: whether the folder has train/ and test/, or other names of TRAIN and TEST.
        notes: sentences about what was left out or is unusual.
    """

    root: Path
    classes: tuple[str, ...]
    given: tuple[tuple[Picture, ...], tuple[Picture, ...]]
    is_split: bool
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The sha256 of names of classes and contents of pictures, by which the folder's runs are known."""
        digest = hashlib.sha256(repr((self.classes, self.is_split)).encode(errors="surrogateescape"))
        for part in self.given:
            digest.update(repr([(picture.label, picture.sha256) for picture in part]).encode())
        return digest.hexdigest()

    def split(self, seed: int) -> tuple[list[Picture], list[Picture]]:
        """Training and test pictures. Where they are drawn, a fifth of each class is for testing.

        The classes are mixed evenly: the last training pictures, which may be held out, have the shares of all.
        """
        train, test = (_by_class(part, len(self.classes)) for part in self.given)
        if not self.is_split:
            generator = torch.Generator().manual_seed(seed)
            drawn = [[one[i] for i in torch.randperm(len(one), generator=generator)] for one in train]
            numbers = [max(1, round(len(one) / TEST_PART)) if len(one) > 1 else 0 for one in drawn]
            test = [one[:number] for one, number in zip(drawn, numbers, strict=True)]
            train = [one[number:] for one, number in zip(drawn, numbers, strict=True)]
        return _mixed(train), _mixed(test)

    def split_in_words(self, seed: int) -> str:
        """The split for people: "the folder's own", or "1 of 5 pictures of a class drawn with seed 0"."""
        return "the folder's own" if self.is_split else f"1 of {TEST_PART} pictures of a class drawn with seed {seed}"


def _by_class(pictures: Sequence[Picture], classes: int) -> list[list[Picture]]:
    found: list[list[Picture]] = [[] for _ in range(classes)]
    for picture in pictures:
        found[picture.label].append(picture)
    return found


def _mixed(classes: Sequence[Sequence[Picture]]) -> list[Picture]:
    placed = [((place + 0.5) / len(one), picture) for one in classes for place, picture in enumerate(one)]
    return [picture for _, picture in sorted(placed, key=lambda each: (each[0], each[1].label))]


# listing --------------------------------------------------------------------------------------------------------------


def list_folder(root: str | Path, **_: Any) -> Listing:
    """Returns the pictures of a folder. Every file is read and decoded, for the sha256 of its content and to leave out
    what is damaged, several at a time.

    Raises:
        DataError: it does not exist, cannot be read, or has fewer than two classes with pictures.
    """
    found = scan(root)
    contents = _contents([file for part in found.parts for one in part.values() for file in one])
    notes = list(found.notes)
    if unread := [f"{file} ({reason})" for file, (_, reason) in contents.items() if reason]:
        notes.append(f"left out {counted(len(unread), 'picture')} that cannot be decoded: {some_of(unread, NAMED)}")
    kept = [
        {name: [file for file in one if not contents[file][1]] for name, one in part.items()} for part in found.parts
    ]
    classes = tuple(name for name in found.classes if any(part.get(name) for part in kept))
    if empty := [name for name in found.classes if name not in classes]:
        notes.append(f"left out {counted(len(empty), 'folder')} without a picture: {some_of(empty, NAMED)}")
    given = tuple(_pictures(part, classes, contents) for part in kept)
    once = {picture.file for part in given for picture in part}
    if repeated := [file for part in kept for one in part.values() for file in one if file not in once]:
        notes.append(f"left out {counted(len(repeated), 'repeated picture')}: {some_of(repeated, NAMED)}")
    listing = Listing(found.root, classes, given, found.is_split, tuple(notes + _duplicates(given)))
    with _telling(notes):
        _check_classes(found.root, classes)
        _check_parts(listing)
    return replace(listing, notes=listing.notes + tuple(_notes_on_numbers(listing)))


class Found(NamedTuple):
    """The files of a folder by part (training and test, or all and none) and class."""

    root: Path
    parts: tuple[dict[str, list[Path]], dict[str, list[Path]]]
    is_split: bool
    notes: list[str]

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted, those without a picture included."""
        return sorted({*self.parts[0], *self.parts[1]})


def scan(root: str | Path) -> Found:
    """Returns the files of a folder by class; no file is opened. Raises DataError as `list_folder` does."""
    root = Path(root)
    folders = _subfolders(root)
    split = _given_split(folders)
    notes = []
    if split and (others := [folder.name for folder in folders if folder not in split]):
        names = f"{split[0].name}/ and {split[1].name}/"
        notes.append(f"left out {counted(len(others), 'folder')} beside {names}: {some_of(others, NAMED)}")
    parts: list[dict[str, list[Path]]] = [{}, {}]
    unknown: Counter[str] = Counter()
    for part, base in zip(parts, split or (root,), strict=False):
        for folder in _subfolders(base):
            if folder.resolve() in (base.resolve(), *base.resolve().parents):
                notes.append(f"left out {one_line(folder)}, a link to a folder that contains it")
                continue
            part[folder.name] = _pictures_below(folder, unknown)
        loose = [file for file in _listed_in(base) if file.is_file()]
        if pictures := [file.name for file in loose if is_picture(file)]:
            notes.append(
                f"left out {counted(len(pictures), 'picture')} in {one_line(base)} itself, outside the folders of the "
                f"classes: {some_of(pictures, NAMED)}"
            )
        unknown.update(file.suffix.lower() or "no ending" for file in loose if not is_picture(file))
    if unknown:
        endings = ", ".join(f"{number:,} {suffix}" for suffix, number in unknown.most_common(NAMED))
        notes.append(f"ignored files that are no pictures in a supported format: {endings}")
    with_pictures = tuple(sorted({name for part in parts for name, one in part.items() if one}))
    with _telling(notes):
        _check_classes(root, with_pictures)
    return Found(root, tuple(parts), bool(split), notes)


def _given_split(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """The folders with training and test pictures, if both are among these."""
    by_name = {folder.name.lower(): folder for folder in reversed(folders)}
    train, test = (next((by_name[name] for name in names if name in by_name), None) for names in (TRAIN, TEST))
    return (train, test) if train and test else None


@contextmanager
def _telling(notes: Sequence[str]) -> Iterator[None]:
    """Adds the notes to a DataError of the block: what was left out may be the reason for it."""
    try:
        yield
    except DataError as error:
        if not notes:
            raise
        raise DataError(f"{error} ({'; '.join(notes)})") from error


def _subfolders(folder: Path) -> list[Path]:
    return [each for each in _listed_in(folder) if each.is_dir()]


def _listed_in(folder: Path) -> list[Path]:
    """The files and folders in a folder, sorted, but for hidden ones."""
    try:
        return sorted(each for each in folder.iterdir() if is_shown(each.name))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"data.root={one_line(folder)}: cannot be read ({reason}); expected a folder with one subfolder a class"
        ) from error


def _pictures_below(folder: Path, unknown: Counter[str]) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted; counts the endings of its other files."""
    pictures = []
    try:
        for file in files_below(folder):
            if is_picture(file):
                pictures.append(file)
            else:
                unknown[file.suffix.lower() or "no ending"] += 1
    except PictureError as error:
        raise DataError(f"data.root={one_line(error)}; make it readable, or remove it") from error
    return sorted(pictures)


def _check_classes(root: Path, classes: Sequence[str]) -> None:
    """Raises DataError for fewer than two classes, and for names that look the same."""
    if len(classes) < 2:
        got = f"one, {one_line(classes[0])}" if classes else f"no subfolder with a picture ({', '.join(SUFFIXES)})"
        hint = f"; if its subfolders are the classes, set data.root={one_line(root / classes[0])}" if classes else ""
        raise DataError(f"data.root={one_line(root)}: expected at least two subfolders with pictures, got {got}{hint}")
    looks = {name: unicodedata.normalize("NFC", one_line(name)) for name in classes}
    printed = Counter(looks.values())
    if alike := [name.replace(" ", "␣") for name in classes if printed[looks[name]] > 1 or not looks[name]]:
        raise DataError(
            f"data.root={one_line(root)}: folders whose names look the same, or like nothing, when printed: "
            f"{some_of(alike, NAMED)}; rename them"
        )


def _contents(paths: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """The sha256 of each file, and why it is no picture, or ""."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(32, 4 * cores())) as pool:
        # the threads change the filters of the whole process, which are restored afterwards
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        progress = tqdm(
            pool.map(_examined, paths), "listing pictures", len(paths), unit=" pictures", delay=2, leave=False
        )
        return dict(zip(paths, progress, strict=True))


def _examined(file: Path) -> tuple[str, str]:
    try:
        content = files.read(file)
        read_picture(file, least=1, content=content)  # as a whole, though at an eighth of its size where it is a JPEG
        return files.sha256(content), ""
    except PictureError as error:
        return "", one_line(error).removeprefix(f"{one_line(file)}: ")
    except OSError as error:
        return "", f"cannot be read ({error.strerror or one_line(error)})"


def _pictures(
    part: dict[str, list[Path]], classes: Sequence[str], contents: dict[Path, tuple[str, str]]
) -> tuple[Picture, ...]:
    """The pictures of a part by class and content; one that is there twice in a class counts once."""
    found = {}
    for label, name in enumerate(classes):
        for sha256, file in sorted((contents[file][0], file) for file in part.get(name, ())):
            found.setdefault((label, sha256), Picture(file, label, sha256))
    return tuple(found.values())


def _duplicates(parts: Sequence[Sequence[Picture]]) -> list[str]:
    """Sentences about pictures that stand in several classes, or in train/ and test/."""
    seen: dict[str, Picture] = {}
    classes, both = [], []
    for part, pictures in enumerate(parts):
        for picture in pictures:
            first = seen.setdefault(picture.sha256, picture)
            if first.label != picture.label:
                classes.append(f"{first.file} and {picture.file}")
            elif part and first.file != picture.file:
                both.append(f"{first.file} and {picture.file}")
    notes = []
    if classes:
        notes.append(f"{counted(len(classes), 'picture')} in several classes: {some_of(classes, NAMED)}")
    if both:
        number = counted(len(both), "test picture")
        notes.append(f"{number} also in train/, which makes the error too low: {some_of(both, NAMED)}")
    return notes


def _check_parts(listing: Listing) -> None:
    """Raises DataError without training or test pictures, or where they have no class in common."""
    train, test = listing.split(0)
    root = one_line(listing.root)
    if not train or not test:
        wanted = "a picture for training and one for testing"
        if not listing.is_split:
            wanted = "two different pictures of a class: one to train, one to test"
        raise DataError(f"data.root={root}: expected at least {wanted}")
    if not {picture.label for picture in train} & {picture.label for picture in test}:
        raise DataError(f"data.root={root}: no class has both training and test pictures")


def _notes_on_numbers(listing: Listing) -> list[str]:
    """Notes on small and unequal classes, and on those without a test picture."""
    notes = []
    numbers = Counter(picture.label for part in listing.given for picture in part)
    count = {listing.classes[label]: number for label, number in sorted(numbers.items())}
    if few := [f"{name} {number}" for name, number in count.items() if number < FEW]:
        notes.append(f"under {FEW} pictures: {some_of(few, NAMED)}; their errors say little")
    most, least = max(count, key=count.get), min(count, key=count.get)
    if count[most] >= UNEQUAL * count[least]:
        notes.append(
            f"unequal classes: {most} has {counted(count[most], 'picture')}, {least} {count[least]:,}; a net prefers "
            "the frequent ones"
        )
    test = {picture.label for picture in listing.split(0)[1]}
    if untested := [name for label, name in enumerate(listing.classes) if label not in test]:
        notes.append(f"no test picture shows {some_of(untested, NAMED)}: the error leaves that out")
    return notes


def table_of(listing: Listing, seed: int) -> bytes:
    """The split as a CSV file: part, class, file below the folder, sha256."""
    rows = [["part", "class", "file", "sha256"]]
    for part, pictures in zip(("train", "test"), listing.split(seed), strict=True):
        for picture in sorted(pictures, key=lambda each: (each.label, each.file)):
            name = listing.classes[picture.label]
            rows.append([part, name, str(picture.file.relative_to(listing.root)), picture.sha256])
    return files.csv_table(rows)
