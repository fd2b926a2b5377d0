"""The embedded diffusion pack as it ships: small, whole, able to draw and erase, and docs/erase.md has its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sod_core.build.canvas_diffusion import builder
from sod_core.erase import drawings, stored, unlearncanvas
from sod_core.erase.pack import ErasePack
from sod_core.packs.find import ASSETS
from sod_core.ui.erase import menus, tab
from sod_core.worlds import canvas

FOLDER = ASSETS / "canvas-diffusion"
ERASE = (ASSETS.parent / "docs" / "erase.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pack() -> ErasePack:
    return ErasePack(FOLDER)


def figures(stage: str) -> dict:
    return json.loads((FOLDER / "figures" / f"{stage}.json").read_text())


def test_it_is_whole_and_small(pack: ErasePack) -> None:
    assert pack.missing() == [] and pack.lacking() == []
    assert pack.manifest.concepts == canvas.OBJECTS and pack.manifest.styles == canvas.STYLES
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10_000_000 and sum(sizes.values()) < 120_000_000
    assert not [path for path in FOLDER.rglob("*") if path.suffix in (".bin", ".pkl", ".ckpt", ".pth")]


def test_it_is_a_pipeline_as_any_other(pack: ErasePack) -> None:
    index = json.loads((FOLDER / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert pack.manifest.hook_point in dict(pack.pipeline().unet.named_modules())


def test_judges_find_what_was_asked_for_and_not_what_was_erased(pack: ErasePack) -> None:
    """Ten objects in one style, and one of them erased: what the figures say of 600 images shows on a few."""
    wanted = unlearncanvas.asked(canvas.OBJECTS, ("watercolour",), (77,), bare=False)
    judges = pack.judge("object"), pack.judge("style")
    id = pack.manifest.saes[0].id
    plain = unlearncanvas.count("house", wanted, drawings.draw(pack, wanted, 25, 4.0), *judges)
    assert plain.in_domain.right >= 6 and plain.cross_domain.right >= 8
    how = drawings.settings(pack, id, ("house",), "exact")
    houses = unlearncanvas.asked(("house",), canvas.STYLES, (78,), bare=False)
    erased = unlearncanvas.count("house", houses, drawings.draw(pack, houses, 25, 4.0, id, how), *judges)
    kept = unlearncanvas.count("house", houses, drawings.draw(pack, houses, 25, 4.0), *judges)
    assert erased.unlearned.right + 3 <= kept.unlearned.right


@pytest.mark.parametrize("name", ["supervised", "unsupervised"])
def test_every_concept_has_statistics_and_the_best_setting_that_was_tried(pack: ErasePack, name: str) -> None:
    assert pack.statistics(name).names == canvas.OBJECTS
    tried = figures("saes")[name]["tried"]
    for concept, setting in pack.settings(name).items():
        best = max(tried[concept], key=lambda t: t["ua"] + t["ira"] + t["cra"])
        assert (setting.factor, setting.percentile) == (best["factor"], best["percentile"])


def test_the_page_opens_with_a_pair_that_its_controls_drew(pack: ErasePack) -> None:
    pair, opening = stored.read(pack), menus.opening(pack)
    asking = tab.read(opening.values())
    how = tab.settings(pack, asking)
    assert stored.is_of(pair.result, how, asking.sae, asking.prompt, asking.steps, asking.guidance, asking.seed)
    assert not stored.is_of(pair.result, how, asking.sae, asking.prompt, asking.steps, asking.guidance, 1)
    other = replace(how, factor=1.0)
    assert not stored.is_of(pair.result, other, asking.sae, asking.prompt, asking.steps, asking.guidance, 0)
    again = drawings.judged(pack, [pair.drawn.before[0], pair.drawn.after[0]])
    for what, rows in pair.result["judged"].items():
        for told, found in zip(rows, again[what], strict=True):
            assert found == pytest.approx(told, abs=0.02)  # PNG has 8 bits
    before, after = pair.result["judged"]["object"]
    assert before["boat"] > 0.5 > 0.2 > after["boat"]  # it shows the effect
    assert pair.drawn.heat[:, 0].mean((1, 2)) == pytest.approx(pair.result["latent_by_step"], rel=1e-3)


def test_the_pages_figures_are_those_of_the_records() -> None:
    for line in [*builder.table(figures("erased")), *builder.earlier_table(figures("earlier"))]:
        assert line in ERASE
    drawn = figures("drawn")
    for what in ("object", "style"):
        assert f"the {what} in {100 * drawn[what]['found']:.1f} %" in ERASE


def test_the_means_are_those_of_the_concepts() -> None:
    for row in figures("erased")["rows"]:
        for share in ("ua", "ira", "cra"):
            values = [found[share] for found in row["by_concept"].values()]
            assert len(values) == 10 and row[share] == pytest.approx(sum(values) / 10)
            assert all(0 <= value <= 1 for value in values)


def test_paths_stay_inside(pack: ErasePack) -> None:
    assert all(Path(pack.manifest.path(entry.folder)).is_relative_to(FOLDER) for entry in pack.manifest.saes)
