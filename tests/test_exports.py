"""The menu "Export": files say what the server says; JSON gives the same through the command line."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LAYERS, Server
from PIL import Image
from playwright.sync_api import BrowserContext, Page
from test_mask_pack import made  # noqa: F401  the tiny pack
from test_page import move_alpha, opened, traces

from sod_core.__main__ import _parser
from sod_core.clamp.pack import ClampPack
from sod_core.data import charts
from sod_core.erase.pack import ErasePack
from sod_core.machine import again
from sod_core.mask import sweep
from sod_core.mask.pack import open_mask_pack
from sod_core.restore import drawing
from sod_core.restore.drawing import Drawing, Moment
from sod_core.ui import overlays
from sod_core.ui.clamp import exports as clamp_exports
from sod_core.ui.clamp import filling
from sod_core.ui.clamp import visitor as clamp_visitor
from sod_core.ui.clamp import work as clamp_work
from sod_core.ui.clamp.figures import Point
from sod_core.ui.erase import exports as erase_exports
from sod_core.ui.erase import figures as erase_figures
from sod_core.ui.erase import tab as erase_tab
from sod_core.ui.erase.shown import Shown
from sod_core.ui.mask import exports as mask_exports
from sod_core.ui.mask import visitor as mask_visitor
from sod_core.ui.mask import work
from sod_core.ui.restore import exports as restore_exports
from sod_core.ui.restore.figures import style
from sod_core.ui.restore.visitor import ALPHAS, Controls, Visitor

ORANGE = np.array([232, 89, 12])
CONTROLS = (LAYERS[1], "inject", 1.25, "all", "experts", "", 0)


@pytest.fixture
def visitor(pack, pack_folder, monkeypatch) -> Visitor:
    monkeypatch.setattr("sod_core.ui.restore.visitor.shared_pack", lambda name: pack)
    found = Visitor(str(pack_folder))  # a pack's name on the command line, too
    found.choose_example(4)
    return found


def export_of(visitor: Visitor, kind: str, *values: Any, scale: str = "inferno") -> tuple[str, bytes]:
    return restore_exports.make(kind, scale, visitor, *(values or CONTROLS))


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def probabilities(found: dict) -> torch.Tensor:
    return torch.tensor(found["logits"]).softmax(-1)


# ---------------------------------------------------------------- pictures


def a_drawing(values: list[float]) -> Drawing:
    still = {"original": [0.0] * 4, "unlearned": [0.0] * 4}
    curve = charts.Line("experts", [0, 10], [0.0, 1.0], charts.ACCENT, "solid", 4)
    shares = {"original": values, "unlearned": values}
    picture = Image.new("RGB", (8, 8), "white")
    return Drawing("$x^2", "a\nb", ["a", "b", "c"], 1, shares, "heat", still, 2.0, "cividis", 2, picture, [curve])


def bar_pixels(picture: Image.Image, place: int, classes: int, dpi: int) -> float:
    """Share of the axes' height that the restored model's bar of a class fills, counted in orange pixels."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    x = (1.0 + 10.5 * (place + 0.28 + 0.6) / (classes + 0.2)) * dpi
    column = pixels[round(1.55 * dpi) : round(3.75 * dpi), round(x)]
    return (np.abs(column - ORANGE).max(1) < 12).sum() / (2.2 * dpi) * 1.02


def test_the_bars_are_as_high_as_what_they_say():
    shares = [0.25, 0.5, 0.75]
    content = drawing.png(a_drawing([0.1, 0.2, 0.3]), Moment(2.0, shares, [0, 1, 2, 3]))
    picture = Image.open(io.BytesIO(content))
    assert picture.format == "PNG" and picture.size == (1200, 1120)
    assert [bar_pixels(picture, i, 3, charts.DPI) for i in range(3)] == pytest.approx(shares, abs=0.01)


def test_a_moving_picture_has_a_frame_for_each_alpha():
    moments = [Moment(alpha, [alpha / 10, 0.5, 1 - alpha / 10], [alpha, 0, 0, 0]) for alpha in (0.0, 2.5, 5.0, 10.0)]
    found = Image.open(io.BytesIO(drawing.gif(a_drawing([0.1, 0.2, 0.3]), moments)))
    assert found.n_frames == 4 and found.info["loop"] == 0
    for place, moment in enumerate(moments):
        found.seek(place)
        shown = [bar_pixels(found, i, 3, charts.GIF_DPI) for i in range(3)]
        assert shown == pytest.approx(moment.probabilities, abs=0.015)
        heat = np.asarray(found.convert("RGB")).astype(int)[round(5.5 * charts.GIF_DPI), round(8.3 * charts.GIF_DPI)]
        wanted = charts.heat_over(Image.new("RGB", (8, 8), "white"), moment.heat, 2, 2.0, "cividis").getpixel((9, 9))
        assert np.abs(heat - wanted).max() < 25  # a palette of 255 colours for all


def test_the_heat_of_a_picture_is_the_page_s():
    """By hand: white at brightness 0.8 is 204; over it the hottest colour at 0.85, and nothing where nothing fires."""
    found = charts.heat_over(Image.new("RGB", (4, 4), "white"), [0.0, 1.0, 3.0, 2.0], 2, 2.0, "inferno")
    hottest = charts.scale("inferno")[-1]
    assert found.size == (384, 384) and found.getpixel((10, 10)) == (204, 204, 204)
    for corner in ((10, 300), (300, 300)):  # beyond the top is the last colour
        wanted = [0.85 * c + 0.15 * 204 for c in hottest]
        assert found.getpixel(corner) == pytest.approx(wanted, abs=2)
    assert f"rgb{hottest}" == overlays.colours("inferno")[-1]
    with pytest.raises(ValueError, match="unknown colour scale 'rainbow'; known: inferno, cividis"):
        charts.scale("rainbow")


# ---------------------------------------------------------------- Restore


def test_restores_table_holds_the_curves(visitor):
    name, content = export_of(visitor, "csv")
    curves = visitor.measure(Controls(*CONTROLS), visitor.version)
    found = rows_of(content)
    assert name.startswith("restore-") and name.endswith(f"-{visitor.entry.id}-layer{LAYERS[1]}.csv")
    assert [float(row["alpha"]) for row in found] == ALPHAS
    for curve in curves:
        assert [float(row[style(curve.key)[0]]) for row in found] == curve.probability


def test_restores_pictures_show_the_models_probabilities(visitor):
    controls = Controls(*CONTROLS)
    name, content = export_of(visitor, "png", scale="cividis")
    assert name.endswith(f"-layer{LAYERS[1]}-alpha1.25.png")
    restored = visitor.probabilities(controls).restored.tolist()
    picture = Image.open(io.BytesIO(content))
    assert [bar_pixels(picture, i, 3, charts.DPI) for i in range(3)] == pytest.approx(restored, abs=0.01)
    _, content = export_of(visitor, "gif")
    moving, swept = Image.open(io.BytesIO(content)), visitor.sweep(controls).probabilities
    assert moving.n_frames == 41
    for place in (0, 8, 40):
        moving.seek(place)
        shown = [bar_pixels(moving, i, 3, charts.GIF_DPI) for i in range(3)]
        assert shown == pytest.approx(swept[5 * place].tolist(), abs=0.015)


@pytest.mark.parametrize(
    "controls",
    [
        CONTROLS,
        (LAYERS[0], "amplify", 0.35, "patches", "random", "", 7),
        (LAYERS[0], "inject", 3.0, "cls", "experts", "plum", 0),
        (LAYERS[1], "add", 2.0, "all", "own", "", 0),
        (LAYERS[1], "cls_copy", 1.0, "all", "experts", "", 0),
    ],
)
def test_restores_json_gives_the_same_through_the_command_line(visitor, run, tmp_path, controls):
    visitor.edit_own_list(controls[0], "9, 1, 5")
    name, content = export_of(visitor, "json", *controls)
    (tmp_path / name).write_bytes(content)
    outcome = run("restore", f"--from={tmp_path / name}")
    assert outcome.code == 0, outcome.err
    found, held = json.loads(outcome.out), json.loads(content)["figures"]
    assert found["classes"] == held["classes"] and held["lacks"] == ""
    for which in ("original", "unlearned"):
        assert probabilities(found[which]).tolist() == pytest.approx(held[which]["probabilities"], abs=1e-5)
    assert [row["alpha"] for row in found["restored"]] == [*ALPHAS, controls[2]]
    for row, was in zip(found["restored"], held["restored"]):
        assert probabilities(row).tolist() == pytest.approx(was["probabilities"], abs=1e-5)
    assert found["restored"][-1]["logits"] != found["unlearned"]["logits"]


def drawn_again(run, path: Path, content: bytes, kind: str) -> bytes:
    """What `draw` makes of an exported JSON file."""
    path.write_bytes(content)
    outcome = run("draw", path, "--out", path.with_suffix(f".{kind}"))
    assert outcome.code == 0, outcome.err
    return path.with_suffix(f".{kind}").read_bytes()


def same(one: bytes, other: bytes, kind: str) -> bool:
    """Tables by their bytes, pictures by their pixels: three frames of a moving one."""
    if kind == "csv":
        return one == other
    first, second = (Image.open(io.BytesIO(content)) for content in (one, other))
    frames = getattr(first, "n_frames", 1)
    if frames != getattr(second, "n_frames", 1):
        return False
    for place in {0, frames // 2, frames - 1}:
        first.seek(place), second.seek(place)
        if first.convert("RGB").tobytes() != second.convert("RGB").tobytes():
            return False
    return True


@pytest.mark.parametrize("kind", ["png", "gif", "csv"])
def test_restores_json_is_drawn_again(visitor, run, tmp_path, kind):
    visitor.choose_model(next(entry.id for entry in visitor.entries if entry.id != visitor.entry.id))
    visitor.edit_own_list(LAYERS[0], "9, 1, 5")
    visitor.show_latent(LAYERS[0], 5)
    controls = (LAYERS[0], "amplify", 0.35, "patches", "own", "", 7)
    said, wanted = (export_of(visitor, one, *controls, scale="cividis")[1] for one in ("json", kind))
    found = drawn_again(run, tmp_path / "x.json", said, kind)
    assert same(found, wanted, kind)
    if kind == "png":  # by its own colour scale
        assert not same(found, export_of(visitor, kind, *controls)[1], kind)


@pytest.mark.parametrize("kind", ["png", "csv"])
def test_a_scoreboards_json_is_drawn_again(run, tmp_path, kind):
    said, wanted = (restore_exports.make_board(one, "inferno", "digits", None)[1] for one in ("json", kind))
    assert same(drawn_again(run, tmp_path / "x.json", said, kind), wanted, kind)


@pytest.mark.parametrize(
    "held, out, said",
    [
        ({}, "x.png", "no JSON that the app's Export menu made"),
        ([], "x.png", "no JSON that the app's Export menu made"),
        ({"tab": "erase", "page": {"pack": 3}, "figures": {}}, "x.png", "no JSON that the app's Export menu made"),
        ({"tab": "mask", "page": {}, "figures": {}}, "x.png", "no JSON that the app's Export menu made"),
        ({"tab": "restore", "page": {"pack": "/etc"}, "figures": {}}, "x.png", "/etc"),
        ({"tab": "restore", "page": {}, "figures": {"lacks": "It lacks."}}, "x.png", "drawn again: It lacks."),
        ({"tab": "atlas", "page": {}, "figures": {}}, "x.gif", "nothing moves in the atlas"),
        ({}, "x.bmp", "a name that ends in .png, .gif or .csv"),
    ],
)
def test_what_cannot_be_drawn_again_is_said(run, tmp_path, held, out, said):
    (tmp_path / "x.json").write_text(json.dumps(held))
    outcome = run("draw", tmp_path / "x.json", "--out", tmp_path / out)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / out).exists()


def test_what_is_said_beside_a_file_wins(visitor, run, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(export_of(visitor, "json")[1])
    found = json.loads(run("restore", "--from", path, "--alpha", "0.5", "--layer", LAYERS[0]).out)
    assert [row["alpha"] for row in found["restored"]] == [0.5] and found["layer"] == LAYERS[0]
    Image.new("RGB", (64, 64), "red").save(tmp_path / "own.png")
    other = json.loads(run("restore", "--from", path, "--image", tmp_path / "own.png").out)
    assert other["original"] != found["original"]


def test_an_own_image_is_in_its_picture_only(visitor, run, tmp_path):
    Image.new("RGB", (64, 64), (12, 200, 90)).save(tmp_path / "secret.png")
    visitor.own_image(str(tmp_path / "secret.png"))
    path = tmp_path / "x.json"
    for kind in ("json", "csv"):
        path.write_bytes(export_of(visitor, kind)[1])
        assert "secret" not in path.read_text() and "base64" not in path.read_text()
    path.write_bytes(export_of(visitor, "json")[1])
    assert json.loads(path.read_text())["figures"]["lacks"] == "This file does not hold your own image."
    assert "--image" in run("restore", "--from", path).err
    assert run("restore", "--from", path, "--image", tmp_path / "secret.png").code == 0
    pixels = np.asarray(Image.open(io.BytesIO(export_of(visitor, "png")[1])).convert("RGB")).reshape(-1, 3).astype(int)
    assert (np.abs(pixels - [70, 135, 99]).max(1) < 40).any()  # its green, paler


def test_no_page_no_image_no_file(visitor):
    with pytest.raises(ValueError, match="still opening"):
        restore_exports.make("png", "inferno", None, *CONTROLS)
    visitor.picture = None
    with pytest.raises(ValueError, match="no image yet"):
        export_of(visitor, "csv")


# ---------------------------------------------------------------- Mask


@pytest.fixture
def masked(made_mask, monkeypatch) -> mask_visitor.Page:
    """The Mask tab on the tiny pack, at a dose of 0.6 of what red touches."""
    pack = open_mask_pack(str(made_mask))
    monkeypatch.setattr("sod_core.ui.mask.exports.shared_mask_pack", lambda name: pack)
    return mask_visitor.Page(shown=(str(made_mask), "saw-all", ("red",), "activations"), position=60)


@pytest.fixture(scope="module")
def made_mask(made):  # noqa: F811
    return made


def of_mask(page: mask_visitor.Page) -> sweep.Sweep:
    pack = mask_exports.shared_mask_pack(page.shown[0])
    return work.swept(pack, "saw-all", [0], page.shown[3])


def test_masks_table_and_pictures_hold_the_sweep(masked):
    found = of_mask(masked)
    rows = rows_of(mask_exports.make("csv", "inferno", masked)[1])
    assert [float(row["forget"]) for row in rows] == found.forget and len(rows) == 101
    assert [float(row["retain"]) for row in rows] == found.retain and [int(row["pairs"]) for row in rows] == found.pairs
    assert [float(row["right: red"]) for row in rows] == [row[0] for row in found.by_class]
    drawn = {at: float(row["random_forget"]) for at, row in enumerate(rows) if row["random_forget"]}
    assert drawn == dict(zip(found.random_at, found.random_forget))
    name, content = mask_exports.make("png", "inferno", masked)
    assert name.endswith("-saw-all-red-dose60.png") and Image.open(io.BytesIO(content)).size == (1200, 860)
    moving = Image.open(io.BytesIO(mask_exports.make("gif", "inferno", masked)[1]))
    assert moving.n_frames == 51
    classes = len(found.by_class[0])
    for place in (0, 50):  # the forgotten class's orange bar, before and after
        moving.seek(place)
        column = np.asarray(moving.convert("RGB")).astype(int)
        x = round((1.0 + 10.5 * 0.6 / (classes + 0.2)) * charts.GIF_DPI)
        column = column[round(6.3 * charts.GIF_DPI) : round(7.8 * charts.GIF_DPI), x]
        height = (np.abs(column - ORANGE).max(1) < 12).sum() / (1.5 * charts.GIF_DPI) * 1.02
        assert height == pytest.approx(found.by_class[2 * place][0], abs=0.02)


@pytest.mark.parametrize(
    "method, position", [("activations", 60), ("examples", 2), (sweep.EACH, 3), ("activations", 0)]
)
def test_masks_json_gives_the_same_through_the_command_line(masked, run, tmp_path, method, position):
    masked.shown, masked.position = (*masked.shown[:3], method), position
    found = of_mask(masked)
    path = tmp_path / "mask.json"
    content = json.loads(mask_exports.make("json", "inferno", masked)[1])
    content["options"]["pack"] = masked.shown[0]  # the page's pack has a name, this one a folder
    path.write_text(json.dumps(content))
    outcome = run("mask", "evaluate", "--from", path, "--json", "-")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    row = told["doses"][0] if position else told["before"] | {"pairs": 0}
    for key, value in (("pairs", found.pairs), ("forget_accuracy", found.forget), ("retain_accuracy", found.retain)):
        assert row[key] == content["figures"][key] == value[position]


@pytest.mark.parametrize("kind", ["png", "csv"])
def test_masks_json_is_drawn_again(masked, run, tmp_path, kind):
    said, wanted = (mask_exports.make(one, "inferno", masked)[1] for one in ("json", kind))
    assert same(drawn_again(run, tmp_path / "x.json", said, kind), wanted, kind)


# ---------------------------------------------------------------- Clamp


@pytest.fixture
def clamped(clamp_folder, monkeypatch) -> clamp_visitor.Page:
    """The Clamp tab on the tiny pack, answered."""
    pack = ClampPack(clamp_folder)
    monkeypatch.setattr("sod_core.ui.clamp.exports.shared_pack", lambda name: pack)
    asking = replace(filling.opening(pack), prompt="the potion is", latents=(2, 5), rule="own", refusal=7, tokens=6)
    page = clamp_visitor.Page()
    page.asked(str(clamp_folder), asking)
    page.answered(str(clamp_folder), asking, clamp_work.answer(pack, asking, lambda told: None, lambda: False))
    return page


def test_clamps_json_gives_the_same_texts_through_the_command_line(clamped, run, clamp_folder, tmp_path):
    held = json.loads(clamp_exports.make("json", "inferno", clamped)[1])
    held["options"]["pack"] = str(clamp_folder)
    path = tmp_path / "clamp.json"
    path.write_text(json.dumps(held))
    texts = {column["title"]: column["text"] for column in held["figures"]["columns"]}
    outcome = run("clamp", "text", "--from", path, "--json", "-")
    assert outcome.code == 0, outcome.err
    untouched, prime = json.loads(outcome.out)["variants"]
    assert (untouched["text"], prime["text"]) == (texts["Untouched"], texts["Clamp Prime"])
    assert {fired["latent"] for token in prime["prompt_tokens"] for fired in token["fired"]} <= {2, 5}
    beside = held["figures"]["columns"][2]["options"]
    asked = [part for name, value in beside.items() for part in (f"--{name}={value}",)]
    refusal = json.loads(run("clamp", "text", "--from", path, *asked, "--json", "-").out)["variants"][1]
    assert (refusal["method"], refusal["text"]) == ("refusal", texts["Refusal Clamp"])


def test_clamps_curves_are_what_was_measured(clamped):
    with pytest.raises(ValueError, match="no curves yet"):
        clamp_exports.make("csv", "inferno", clamped)
    with pytest.raises(ValueError, match="no sweep of the coefficient"):
        clamp_exports.make("gif", "inferno", clamped)
    points = [Point(-30.0, 0.25, 0.5, 0.75, 0.3), Point(-10.0, 0.5, float("nan"), 0.8, 0.4)]
    clamped.measured["prime"] = points
    rows = rows_of(clamp_exports.make("csv", "inferno", clamped)[1])
    assert [tuple(row.values()) for row in rows] == [
        ("prime", "measured here", "-30.0", "0.25", "0.5", "0.75", "0.3"),
        ("prime", "measured here", "-10.0", "0.5", "", "0.8", "0.4"),
    ]
    name, content = clamp_exports.make("gif", "inferno", clamped)
    assert name.startswith("clamp-") and Image.open(io.BytesIO(content)).n_frames == 2
    name, content = clamp_exports.make("png", "inferno", clamped)
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    value = clamped.now[1].value
    assert name.endswith(f"coefficient{value:g}.png") and picture.shape == (760, 1200, 3)
    assert ((np.abs(picture - ORANGE).max(2) < 12).sum()) > 200  # the curve that was measured here
    with pytest.raises(ValueError, match="no answer yet"):
        clamp_exports.make("png", "inferno", clamp_visitor.Page())


def of_folder(content: bytes, folder: Path) -> bytes:
    """The page's pack has a name, the test's a folder."""
    held = json.loads(content)
    held["page"]["pack"] = str(folder)
    return json.dumps(held).encode()


@pytest.mark.parametrize("kind", ["png", "gif", "csv"])
def test_clamps_json_is_drawn_again(clamped, run, clamp_folder, tmp_path, kind):
    clamped.measured["prime"] = [Point(-30.0, 0.25, 0.5, 0.75, 0.3), Point(-10.0, 0.5, float("nan"), 0.8, 0.4)]
    said, wanted = (clamp_exports.make(one, "inferno", clamped)[1] for one in ("json", kind))
    assert same(drawn_again(run, tmp_path / "x.json", of_folder(said, clamp_folder), kind), wanted, kind)


# ---------------------------------------------------------------- Erase


@pytest.fixture(scope="module")
def erased(erase_folder) -> Shown:
    """The Erase tab on the tiny pack, drawn."""
    pack = ErasePack(erase_folder)
    sae, concept = pack.manifest.saes[0].id, pack.manifest.concepts[0]
    asking = erase_tab.read((f"An image of {concept}.", [concept], sae, -3.0, "exact", 1, 90.0, False, 4, 2.0, 5, ""))
    how = erase_tab.settings(pack, asking)
    return erase_tab.draw(pack, asking, how, lambda told: None, threading.Event())


def test_erases_json_draws_the_same_through_the_command_line(erased, run, erase_folder, tmp_path):
    held = json.loads(erase_exports.make("json", "inferno", erased)[1])
    held["options"]["pack"] = str(erase_folder)
    path = tmp_path / "erase.json"
    path.write_text(json.dumps(held))
    outcome = run("erase", "image", "--from", path, "--out", tmp_path / "drawn")
    assert outcome.code == 0, outcome.err
    told = json.loads((tmp_path / "drawn" / "result.json").read_text())
    assert told["settings"] == held["figures"]["settings"]
    assert told["latent_by_step"] == pytest.approx(held["figures"]["latent_by_step"], abs=1e-5)
    for what, (before, after) in told["judged"].items():
        assert held["figures"]["judged"][what]["before"] == pytest.approx(before, abs=1e-4)
        assert held["figures"]["judged"][what]["after"] == pytest.approx(after, abs=1e-4)
    picture = Image.open(io.BytesIO(erase_exports.make("png", "inferno", erased)[1]))
    drawn = [erase_figures.enlarged(Image.open(tmp_path / "drawn" / name)) for name in ("before.png", "after.png")]
    for place, one in enumerate(drawn):
        corner = place * one.width
        part = np.asarray(picture.crop((corner, 0, corner + one.width, one.height))).astype(int)
        assert np.abs(part - np.asarray(one.convert("RGB")).astype(int)).max() <= 2
    assert drawn[0].tobytes() != drawn[1].tobytes() and picture.width == 3 * drawn[0].width


@pytest.mark.parametrize("kind", ["png", "gif", "csv"])
def test_erases_json_is_drawn_again(erased, run, erase_folder, tmp_path, kind):
    said, wanted = (erase_exports.make(one, "cividis", erased)[1] for one in ("json", kind))
    assert same(drawn_again(run, tmp_path / "x.json", of_folder(said, erase_folder), kind), wanted, kind)


def test_erases_table_and_moving_picture(erased):
    rows = rows_of(erase_exports.make("csv", "inferno", erased)[1])
    maps = erased.drawn.heat[:, 0]
    assert [float(row["mean_latent"]) for row in rows] == pytest.approx(maps.mean((1, 2)).tolist())
    assert [float(row["share_of_picture"]) for row in rows] == pytest.approx((maps > 0).mean((1, 2)).tolist())
    assert [row["edited"] for row in rows] == ["0", "1", "1", "1"]
    name, content = erase_exports.make("gif", "inferno", erased)
    assert Image.open(io.BytesIO(content)).n_frames == len(erased.frames) == 2
    assert name.startswith("erase-") and name.endswith("-factor-3-seed5.gif")
    with pytest.raises(ValueError, match="nothing is drawn yet"):
        erase_exports.make("png", "inferno", None)


# ---------------------------------------------------------------- --from


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "no JSON that the app's Export menu made"),
        ("[]", "no JSON that the app's Export menu made"),
        ('{"sod_core": ["restore"]}', "no JSON that the app's Export menu made"),
        ('{"sod_core": ["mask", "evaluate"], "options": {}}', "write python -m sod_core mask evaluate --from FILE"),
        ('{"sod_core": ["restore"], "options": {"json": "/etc/passwd"}}', "no exported file has: json"),
        ('{"sod_core": ["restore"], "options": {"alpha": [[1]]}}', "no exported file has: a nested one"),
        ('{"sod_core": [], "options": {}}', "holds an option that no exported file has"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_gets_one_sentence(run, tmp_path, text, says):
    path = tmp_path / "x.json"
    path.write_text(text)
    outcome = run("restore", "--from", path)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1


def test_a_missing_file_and_an_example_that_is_none(run, pack_folder, tmp_path):
    assert "cannot be read: No such file" in run("restore", "--from", tmp_path / "none.json").err
    told = run(
        "restore", "--pack", pack_folder, "--unlearned", "salun-apple", "--example", 99, "--target-class", "pear"
    )
    assert told.code == 2 and "has no example 99; it has 9 here, from 0" in told.err


def test_options_are_what_one_would_type(tmp_path):
    path = tmp_path / "x.json"
    options = {"prompt": "--json=/tmp/x", "value": -30, "beta": True, "per-codebook": False, "alpha": [0, 1.5]}
    path.write_text(json.dumps({"sod_core": ["clamp", "text"], "options": options}))
    _parser()  # what it adds the option to
    found = again.expanded(["clamp", "text", "--from", str(path), "--tokens", "3", "--value=-5"])
    typed = ["clamp", "text", "--prompt=--json=/tmp/x", "--beta", "--alpha", "0", "1.5"]
    assert found == [*typed, "--tokens", "3", "--value=-5", "--from", str(path)]
    assert again.expanded(["restore", "--pack", "x"]) == ["restore", "--pack", "x"]


# ---------------------------------------------------------------- in the browser


def exported(page: Page, menu: str, kind: str, folder: Path) -> Path:
    if not page.locator(f"#{menu}-export details").evaluate("menu => menu.open"):
        page.locator(f"#{menu}-export summary").click()
    with page.expect_download(timeout=60_000) as found:
        page.locator(f"#{menu}-export [data-export={kind}]").click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


@pytest.fixture
def page(window: BrowserContext, server: Server) -> Iterator[Page]:
    with opened(window, server, "?heat=cividis") as page:
        yield page


def test_the_menu_of_restore(page, tmp_path):
    move_alpha(page, 2.5)
    table = exported(page, "restore", "csv", tmp_path)
    assert table.name.startswith("restore-fruit-") and table.suffix == ".csv"
    rows = rows_of(table.read_bytes())
    for name, values in traces(page, "curves").items():
        assert [round(float(row[name]), 4) for row in rows] == values
    picture = exported(page, "restore", "png", tmp_path)
    assert picture.stem == f"{table.stem}-alpha2.5"
    shown = [bar_pixels(Image.open(picture), i, 3, charts.DPI) for i in range(3)]
    assert shown == pytest.approx(traces(page, "bars")["restored"], abs=0.01)
    held = json.loads(exported(page, "restore", "json", tmp_path).read_text())
    assert held["options"]["pack"] == "fruit" and held["figures"]["restored"][-1]["alpha"] == 2.5
