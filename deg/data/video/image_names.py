"""Which files of a folder of images are its frames, and in which order. There are two rules:

    natural         img1.png  IMG2.PNG  img10.png    endings in either case; numbers in the names count as numbers
    deepethogram    img1.png  img10.png              endings in lower case; the order of the text

They differ less often than it seems: numbers of equal length (img001.png) are in the same order as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from deg.errors import show_path
from deg.types import ImageOrder

IMAGE_SUFFIXES = (".bmp", ".jpg", ".png", ".jpeg", ".tiff", ".tif")
"""Endings of image files; DeepEthogram knows them in lower case only."""


def images_of(names: Iterable[str], order: ImageOrder) -> list[str]:
    """Return those of the names in a folder that are frames, in their order."""
    if order == "deepethogram":
        return sorted(name for name in names if name.endswith(IMAGE_SUFFIXES))
    return sorted((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), key=_by_number)


def unlike_deepethogram(folder: Path) -> str | None:
    """Return how DeepEthogram's frames of a folder differ from those of the natural order; None if they do not."""
    try:
        images = images_of((file.name for file in folder.iterdir()), "natural")
    except OSError:
        return None  # reported by whoever opens the folder
    seen = [name for name in images if name.endswith(IMAGE_SUFFIXES)]
    unseen = [name for name in images if not name.endswith(IMAGE_SUFFIXES)]
    differences = []
    if unseen:
        differences.append(
            f"does not see {len(unseen)} of the {len(images)} images, because it knows endings only in lower case "
            f"({show_path(unseen[0])})"
        )
    if swapped := next(((one, other) for one, other in pairwise(seen) if one > other), None):
        differences.append(f"takes {show_path(swapped[1])} before {show_path(swapped[0])}")
    if not differences:
        return None
    return (
        f"{show_path(folder)}: DeepEthogram has other frames than deg here: it {' and '.join(differences)}. If the "
        "labels were made with it, write `image_order: deepethogram` under `project` in project_config.yaml, and deg "
        "keeps its frames. Otherwise rename the images (img001.png, img002.png, ...), and both have the same."
    )


def _by_number(name: str) -> tuple[str, str]:
    """Return a key that sorts names as text is sorted, except that numbers at the same place are sorted by value."""
    return re.sub("[0-9]+", _sortable, name), name


def _sortable(number: re.Match[str]) -> str:
    """Return a digit, which sorts a number among other characters, the count of its digits, and the digits."""
    digits = number[0].lstrip("0")
    return f"0{chr(len(digits))}{digits}"
