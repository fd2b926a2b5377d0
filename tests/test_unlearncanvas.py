"""UA, IRA and CRA: shares of the images that exist, whatever subset was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sod_core.erase import unlearncanvas
from sod_core.erase.judges import JudgeSpec
from sod_core.erase.unlearncanvas import Asked, Count

OBJECTS, STYLES = ("Cats", "Dogs", "Sea"), ("Van_Gogh", "Ink_Art")
SHADES = {name: 40 + 80 * i for i, name in enumerate(OBJECTS)}
"""The red of an image is what its object's judge reads, the green what its style's judge reads."""


class Reader:
    """A judge that reads a name off a picture's colour."""

    def __init__(self, names: tuple[str, ...], channel: int):
        self.spec, self.names, self.channel = JudgeSpec("none", names, 8), names, channel

    def probabilities(self, images: list[Image.Image]) -> Tensor:
        shades = [image.convert("RGB").getpixel((4, 4))[self.channel] for image in images]
        return torch.nn.functional.one_hot(
            torch.tensor([(s - 20) // 80 for s in shades]).long(), len(self.names)
        ).float()


JUDGES = Reader(OBJECTS, 0), Reader(STYLES, 1)


def paint(path: Path, object: str, style: str) -> None:
    Image.new("RGB", (8, 8), (SHADES[object], 40 + 80 * STYLES.index(style), 0)).save(path, quality=100, subsampling=0)


def test_files_are_named_as_the_authors_scripts_name_them() -> None:
    wanted = unlearncanvas.asked(OBJECTS[:1], STYLES[:1], (188, 288))
    assert [item.file for item in wanted] == [
        "Van_Gogh_Cats_seed188.jpg", "Cats_seed188.jpg", "Van_Gogh_Cats_seed288.jpg", "Cats_seed288.jpg"
    ]  # fmt: skip


def test_counts_by_hand(tmp_path: Path) -> None:
    """Cats erased: of its 3 images one is still a cat; of 6 others one is wrong; of 6 styled ones two are wrong."""
    wanted = unlearncanvas.asked(OBJECTS, STYLES, (1,))
    for item in wanted:
        paint(tmp_path / item.file, item.object if item.object != "Cats" else "Dogs", item.style or "Ink_Art")
    paint(tmp_path / "Cats_seed1.jpg", "Cats", "Ink_Art")
    paint(tmp_path / "Ink_Art_Dogs_seed1.jpg", "Sea", "Van_Gogh")
    paint(tmp_path / "Ink_Art_Sea_seed1.jpg", "Sea", "Van_Gogh")
    found = unlearncanvas.judge(tmp_path, "Cats", wanted, *JUDGES)
    assert (found.unlearned, found.in_domain, found.cross_domain) == (Count(1, 3), Count(5, 6), Count(4, 6))
    assert (found.ua, found.ira, found.cra) == pytest.approx((2 / 3, 5 / 6, 4 / 6))


@pytest.mark.parametrize("objects", [OBJECTS, OBJECTS[:1], OBJECTS[1:]])
@pytest.mark.parametrize("styles", [STYLES, STYLES[:1], ()])
@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
@pytest.mark.parametrize("bare", [True, False])
def test_every_share_lies_between_0_and_1(tmp_path: Path, objects, styles, seeds, bare: bool) -> None:
    wanted = unlearncanvas.asked(objects, styles, seeds, bare)
    if not wanted:
        return
    for item in wanted:
        paint(tmp_path / item.file, item.object, item.style or STYLES[0])
    found = unlearncanvas.judge(tmp_path, "Cats", wanted, *JUDGES)
    expected = (0 if "Cats" in objects else None, 1 if objects != ("Cats",) else None, 1 if styles else None)
    assert (found.ua, found.ira, found.cra) == expected
    "\n".join(unlearncanvas.table([found]))  # a share that does not exist is a dash


def test_missing_and_broken_images_are_named_and_not_replaced(tmp_path: Path) -> None:
    wanted = unlearncanvas.asked(("Cats", "Dogs"), ("Van_Gogh",), (1,), bare=False)
    paint(tmp_path / wanted[1].file, "Dogs", "Van_Gogh")
    (tmp_path / wanted[0].file).write_bytes(b"\xff\xd8 cut short")
    found = unlearncanvas.judge(tmp_path, "Cats", [*wanted, Asked("Sea", None, 9)], *JUDGES)
    assert (found.missing, found.broken) == (("Sea_seed9.jpg",), ("Van_Gogh_Cats_seed1.jpg",))
    assert found.ua is None and found.ira == 1
    none = unlearncanvas.judge(tmp_path, "Cats", [Asked("Sea", None, 9)], *JUDGES)
    assert (none.ua, none.ira, none.cra, none.missing) == (None, None, None, ("Sea_seed9.jpg",))


def test_means_leave_out_what_does_not_exist() -> None:
    a = unlearncanvas.ConceptResult("a", Count(1, 4), Count(3, 4), Count(0, 0), (), ())
    b = unlearncanvas.ConceptResult("b", Count(0, 0), Count(1, 4), Count(2, 4), (), ())
    assert unlearncanvas.mean([a, b]) == {"ua": 0.75, "ira": 0.5, "cra": 0.5}


def test_intervals_are_the_bootstraps_over_images():
    """200 images, a share of a half: its standard error is 0.035; images that agree leave no doubt."""
    low, high = Count(100, 200).interval
    assert low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.015) and high == pytest.approx(
        0.5 + 1.96 * 0.0354, abs=0.015
    )
    assert (
        Count(100, 200).interval == (low, high) and Count(7, 7).interval == (1.0, 1.0) and Count(0, 0).interval is None
    )
    result = unlearncanvas.ConceptResult("a", Count(2, 7), Count(5, 7), Count(0, 0), (), ())
    kept = Count(2, 7).interval
    assert result.intervals == {"ua": (1 - kept[1], 1 - kept[0]), "ira": Count(5, 7).interval, "cra": None}
    line = list(unlearncanvas.table([result]))[2]
    assert f"| 71.4 [{100 - 100 * kept[1]:.1f}, {100 - 100 * kept[0]:.1f}] |" in line and "| - |" in line


def test_the_means_intervals_by_a_second_implementation():
    """Image by image: each concept's own are drawn anew, then shares are averaged over concepts."""
    counts = [((3, 30), (50, 60), (0, 0)), ((10, 40), (20, 20), (7, 9))]
    results = [
        unlearncanvas.ConceptResult(str(i), *(Count(*one) for one in each), (), ()) for i, each in enumerate(counts)
    ]
    found, rng = unlearncanvas.mean_intervals(results), np.random.default_rng(7)

    def share(right: int, of: int) -> float:
        return float(rng.choice([1] * right + [0] * (of - right), of).mean())

    for place, name in enumerate(("ua", "ira", "cra")):
        known = [each[place] for each in counts if each[place][1]]
        drawn = [np.mean([share(*one) for one in known]) for _ in range(2000)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        wanted = (1 - high, 1 - low) if name == "ua" else (low, high)
        assert found[name] == pytest.approx(wanted, abs=0.02), name
    line = list(unlearncanvas.table(results))[-1]
    assert line.startswith(f"| **mean** | 82.5 [{100 * found['ua'][0]:.1f}, {100 * found['ua'][1]:.1f}] |")
    assert unlearncanvas.mean_intervals([]) == {"ua": None, "ira": None, "cra": None}


def test_few_images_of_a_concept_are_a_caution():
    def result(n: int) -> unlearncanvas.ConceptResult:
        return unlearncanvas.ConceptResult(f"c{n}", Count(0, n), Count(1, 1), Count(1, 1), (), ())

    assert unlearncanvas.caution([result(30), result(0)]) == ""
    told = unlearncanvas.caution([result(30), result(20), result(7)])
    assert told.startswith("Caution: only 7 of the images show c7, fewer than 30: one image is 14 points of its UA.")
