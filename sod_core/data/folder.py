"""The one reader of a folder of images with a folder for each class, divided into train/ and val/ or not.

A class's folder is called as the class, or as the data set calls it (`names.Names`); case and spaces around the name do
not matter. Any other folder that holds images is refused. Images in folders below a class's are its images, too; links
to folders are followed at the level of the classes only. Hidden files, and those that systems and programs leave
behind, are passed over; every other file that is not read is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from . import images
from .names import Names
from .pictures import Pictures, counted, some

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing")
WASTE = (
    *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "#recycle", "lost+found"),
    "system volume information",
)
"""What systems leave in folders, besides names that begin with a dot."""
WHAT = "--data is canvas, a folder with a folder of images for each class, or hub:user/dataset/file.parquet"


class _Contents(NamedTuple):
    pictures: list[Path]
    others: list[Path]
    """Files of other kinds, links that lead nowhere, links to folders."""


def read(folder: Path, names: Names, use: Sequence[str], split: str | None = None) -> Pictures:
    """The images of a folder, in the order of the classes and of their paths.

    `use`: TRAIN or HELD_OUT, the part that is taken of a divided folder; `split` names it instead. Raises ValueError
    with one sentence for a folder that is not understood as a whole.
    """
    if not os.path.isdir(folder):
        is_file = os.path.isfile(folder)
        raise ValueError(f"{folder} is {'a file and ' if is_file else ''}no folder; {WHAT}")
    place = _place(folder, names, use, split)
    notes = [f"the images are those of {place}, a part of {folder}"] if place != folder else []
    classes, others = _classes(place, names)
    labels = [label for label, found in classes.items() for _ in found]
    paths = [path for found in classes.values() for path in found]
    if not paths:
        raise ValueError(_nothing(place, names, others))
    return Pictures(labels, _reader(place, paths), paths, str(place), notes + _notes(place, paths, others))


def _reader(place: Path, paths: list[Path]) -> Callable[[int], Image.Image]:
    def read_it(number: int) -> Image.Image:
        try:
            return images.read(paths[number])
        except images.ImageError as error:
            raise images.ImageError(f"{_name(place, paths[number])}: {error}") from error

    return read_it


def _name(place: Path, path: Path) -> str:
    return path.relative_to(place).as_posix()


# ---------------------------------------------------------------- train/ and val/ above the classes


def _place(folder: Path, names: Names, use: Sequence[str], split: str | None) -> Path:
    """The folder with the classes: `folder` itself, or the part of it that is used."""
    inside = [path for path in _entries(folder) if os.path.isdir(path)]
    parts = [path for path in inside if _is_part(path, names)]
    known = ", ".join(path.name for path in parts)
    if split is not None:
        for path in inside:
            if _called(path) == split.strip().casefold() and (path in parts or _holds_classes(path, names)):
                return path
        there = f"it has {known}" if parts else "it is not divided, so leave --split out"
        raise ValueError(f"{folder} has no part {split!r}; {there}")
    if not parts:
        return folder
    beside = [path.name for path in inside if path not in parts and names.label(path.name) is not None]
    if beside:
        raise ValueError(f"{folder} has classes ({some(beside)}) beside the parts {known}: say with --split which part")
    fitting = [path for path in parts if _called(path) in use]
    if len(fitting) > 1:
        fitting = [path for path in fitting if _holds_classes(path, names)]
    if not fitting:
        flat = [path.name for path in inside if path not in parts and _called(path) in use]
        if flat:
            raise ValueError(
                f"{folder} has {known} and {flat[0]}, which holds no folder of a class: sort its images into such "
                "folders, or say with --split which part to use"
            )
        wanted = "to train on" if use is TRAIN else "held out"
        raise ValueError(f"{folder} is divided into {known}, none of which is {wanted}: say with --split which to use")
    if len(fitting) > 1:
        names_of = " and ".join(path.name for path in fitting)
        raise ValueError(f"{folder} has {names_of}, and one is used: say with --split which")
    return fitting[0]


def _called(path: Path) -> str:
    return path.name.strip().casefold()


def _is_part(path: Path, names: Names) -> bool:
    """Whether a folder is a part of a data set, and not one of its classes, which may be called "train" as well."""
    if _called(path) not in (*TRAIN, *HELD_OUT):
        return False
    if names.label(path.name) is not None:
        return _holds_classes(path, names)
    return any(os.path.isdir(inner) for inner in _entries(path))


def _holds_classes(path: Path, names: Names) -> bool:
    return any(os.path.isdir(inner) and names.label(inner.name) is not None for inner in _entries(path))


# ---------------------------------------------------------------- the classes


def _classes(place: Path, names: Names) -> tuple[dict[int, list[Path]], list[Path]]:
    """{class: its images}, in the order of the classes, and the files that are not read."""
    found: dict[int, tuple[Path, list[Path]]] = {}
    others = []
    for path in _entries(place):
        if not os.path.isdir(path):
            others.append(path)
            continue
        contents = _walk(path)
        others += contents.others
        label = names.label(path.name)
        if label is None:
            _check_stranger(place, path, contents, names)
        elif contents.pictures:
            if label in found:
                both = f"{found[label][0].name!r} and {path.name!r}"
                raise ValueError(f"{place} has two folders of class {names.classes[label]}, {both}: make them one")
            found[label] = path, contents.pictures
    return {label: found[label][1] for label in sorted(found)}, others


def _check_stranger(place: Path, path: Path, contents: _Contents, names: Names) -> None:
    """Raises ValueError for a folder of no class, unless it holds other files only, or is called as an image is."""
    is_empty = not contents.others and path.suffix.lower() not in images.SUFFIXES
    if not contents.pictures and not is_empty:
        return
    deeper = _with_classes(path, names)
    if deeper is not None:
        raise ValueError(f"{place} has a folder {_name(place, deeper)!r}, which holds the classes: give that folder")
    raise ValueError(f"{place} has a folder {path.name!r}, {names.stranger(path.name)}")


def _with_classes(folder: Path, names: Names, levels: int = 4) -> Path | None:
    """The folder itself or the first one below it, so many levels down, that holds classes or parts with classes."""
    inside = [path for path in _entries(folder) if os.path.isdir(path)]
    parts = [path for path in inside if _is_part(path, names)]
    if _holds_classes(folder, names) or any(_holds_classes(part, names) for part in parts):
        return folder
    below = (_with_classes(path, names, levels - 1) for path in inside if levels > 1)
    return next((found for found in below if found is not None), None)


def _walk(folder: Path) -> _Contents:
    found = _Contents([], [])
    for path in _entries(folder):
        if os.path.isdir(path) and not os.path.islink(path):
            deeper = _walk(path)
            found.pictures.extend(deeper.pictures)
            found.others.extend(deeper.others)
        elif os.path.isfile(path) and path.suffix.lower() in images.SUFFIXES:
            found.pictures.append(path)
        else:
            found.others.append(path)
    return found


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden or left behind."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from error
    return [path for path in found if not path.name.startswith(".") and path.name.casefold() not in WASTE]


# ---------------------------------------------------------------- sentences


def _nothing(place: Path, names: Names, others: list[Path]) -> str:
    loose = [path for path in others if path.suffix.lower() in images.SUFFIXES and os.path.isfile(path)]
    if loose:
        return (
            f"{place} holds images ({some([path.name for path in loose])}) but no folder of a class: put them into "
            f"folders that are called as the classes of {names.whose}: {', '.join(names.classes)}"
        )
    there = some([_name(place, path) for path in others])
    what = f"no images that are read, only {there}" if others else "no images"
    return f"{place} holds {what}; give a folder with a folder of images for each class of {names.whose}"


def _notes(place: Path, paths: list[Path], others: list[Path]) -> list[str]:
    deep = sorted({_name(place, path.parent) for path in paths if len(path.relative_to(place).parts) > 2})
    notes = [f"images in folders below the classes were read, too: {some(deep)}"] if deep else []
    if others:
        left = some([_name(place, path) for path in others])
        notes.append(f"{counted(len(others), 'file')} left out, being no image of a class that can be read: {left}")
    return notes
