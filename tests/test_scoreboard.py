"""The Scoreboard tab: what its table holds, and what a visitor does with it in a browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import UNLEARNED, Server, serving, tab, write_manifest
from forks import Forks
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from test_page import ALPHA, STOP_ON_THE_WAY

from sod_core.restore import report, working
from sod_core.restore.judged import CONTROLS
from sod_core.restore.pack import Pack
from sod_core.ui.restore import exports, figures, scoreboard
from sod_core.ui.restore.visitor import Controls

PATIENCE = 20_000
NAMES = ("experts", *CONTROLS)
VERDICTS = ("suppressed", "suppressed after this layer", "partly", "deleted", "cannot tell at this layer")
VERDICTS += (working.NO_VERDICT, working.OTHER_ORDER)


def row(id: str, target: str, values: tuple | None, verdict: str, alpha: float) -> dict:
    """A stored row; `values` are R of NAMES."""
    scores = dict(zip(NAMES, values or [None] * len(NAMES)))
    return {
        **{"id": id, "method": "salun", "target": target, "images": 30, "target_images": 10, "verdict": verdict},
        **{"original": 0.9, "unlearned": 0.1, "restored": 0.7, "alpha": alpha, "overshoot": values and 0.95},
        **{"retain_original": 0.9, "retain_unlearned": 0.87654, "retain_restored": 0.8},
        "scores": {
            name: {"value": r, "low": r and r - 0.1, "high": r and r + 0.05, "alpha": r and alpha}
            for name, r in scores.items()
        },
        **{"probe": {"1": 0.7, "2": 0.81}, "probe_original": {"1": None, "2": None}, "curves": {}},
        "margin": {"value": None, "low": None, "high": None, "yardstick": None},
        "readout_margin": {"value": 0.04, "low": -0.1, "high": 0.123, "yardstick": None},
        **{"readout": 0.04, "yardstick": None, "confusion_before": [], "confusion_after": []},
    }


def board() -> dict:
    apple, pear = UNLEARNED
    return {
        **{"format": report.FORMAT, "pack": "fruit"},
        "data": "examples",
        "images": 30,
        "settings": {"layer": 2, "mode": "inject", "max_alpha": 2.0, "seed": 0},
        "rows": [
            row(apple, "apple", (0.75, 0.0, 0.05, 1.0, 0.99, 0.02, 0.9), "suppressed", 1.5),
            row(pear, "pear", (0.25, 0.2, 0.2, 0.5, 0.6, 0.01, 0.4), "deleted", 1.0) | {"retain_unlearned": 0.5},
        ],
    }


@pytest.fixture
def scored(spoilt_pack: Path) -> Pack:
    (spoilt_pack / "scoreboard.json").write_text(json.dumps(board()))
    return Pack(spoilt_pack)


# ---------------------------------------------------------------- the table


def test_the_cells(scored):
    first, second = scoreboard.cells(board(), scored)
    found = dict(zip(scoreboard.HEADERS, first, strict=True))
    assert found == {
        **{"model": scoreboard.TITLES.get("salun", "salun"), "forgot": "apple", "forget": 0.1, "retain": 0.877},
        **{"R experts": 0.75, "interval": "0.65 to 0.80", "R random": 0.0, "R matched": 0.05, "R copied CLS": 1.0},
        **{"margin": "–", "R copied state": 0.99, "R patches": 0.02, "R all": 0.9, "overshoot": 0.95, "readout": 0.04},
        **{"readout margin": "0.04 [-0.10, 0.12]", "probe": 0.81, "verdict": "suppressed"},
        **{"seconds": None, "id": "random_labels-apple"},
        "link": "[open](?pack=fruit&model=random_labels-apple&layer=2&mode=inject&alpha=1.5)",
    }
    assert second[-2] == "retrain-pear" and len(second) == len(first)


def test_a_row_is_a_link(scored):
    links = [cells[scoreboard.LINK] for cells in scoreboard.cells(board(), scored)]
    assert links[1] == "[open](?pack=fruit&model=retrain-pear&layer=2&mode=inject&alpha=1)"
    gone = board() | {"rows": [board()["rows"][0] | {"id": "gone"}]}
    assert scoreboard.cells(gone, scored)[0][scoreboard.LINK] == ""


def test_cells_of_what_is_not_defined(scored):
    lost = board()
    lost["rows"] = [row("retrain-pear", "pear", None, "not forgotten", 0) | {"probe": {"1": None}}]
    (found,) = (dict(zip(scoreboard.HEADERS, cells)) for cells in scoreboard.cells(lost, scored))
    assert found["interval"] == "" and found["verdict"] == "not forgotten"
    assert {found[name] for name in ("R experts", "R random", "overshoot", "probe", "seconds")} == {None}


def exported_board(scored: Pack, kind: str, monkeypatch) -> tuple[str, bytes]:
    monkeypatch.setattr("sod_core.ui.restore.exports.shared_pack", lambda name: scored)
    return exports.make_board(kind, "inferno", "fruit", None)


def test_the_csv(scored, monkeypatch):
    name, content = exported_board(scored, "csv", monkeypatch)
    assert name == "scoreboard-fruit-layer2-inject.csv"
    first, second = csv.DictReader(io.StringIO(content.decode()))
    assert (first["id"], first["R_experts"], first["R_experts_low"]) == ("random_labels-apple", "0.75", "0.65")
    assert (second["retain_gate_none"], second["probe_layer2"], second["verdict"]) == ("0.8", "0.81", "deleted")


def test_the_picture_has_a_point_for_each_model(scored, monkeypatch):
    name, content = exported_board(scored, "png", monkeypatch)
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert name.endswith(".png") and picture.shape == (700, 1200, 3)
    orange = np.argwhere(np.abs(picture - [232, 89, 12]).max(2) < 12)
    y = 200 + 420 * (1 - (0.75 + 0.15) / 1.3)  # suppressed: R 0.75, where the axes lie
    assert np.abs(orange[:, 0] - y).min() < 2


def test_the_json_measures_the_same_through_the_command_line(spoilt_pack, run, tmp_path, monkeypatch):
    asked = ("evaluate", "--pack", spoilt_pack, "--images", 9, "--layer", 2)
    assert run(*asked, "--store").code == 0
    name, content = exported_board(Pack(spoilt_pack), "json", monkeypatch)
    held = json.loads(content)
    held["options"]["pack"] = str(spoilt_pack)
    (tmp_path / name).write_text(json.dumps(held))
    outcome = run("evaluate", "--from", tmp_path / name, "--json", "-")
    assert outcome.code == 0 and json.loads(outcome.out) == held["figures"]["rows"]


def test_nothing_to_export(pack, monkeypatch):
    with pytest.raises(ValueError, match="nothing is stored for"):
        exported_board(pack, "csv", monkeypatch)


def test_what_is_shown(scored):
    note, cells, figure, *_ = scoreboard._show(scored)
    assert "Caution: only 10 of the test images show apple, fewer than 30. The intervals of R are up to 0.15" in note
    assert "30 images (examples), layer 2, mode inject, alpha up to 2." in note
    assert cells == scoreboard.cells(board(), scored)
    points = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert points == {"suppressed": ([0.87654], [0.75]), "deleted": ([0.5], [0.25])}


def test_a_pack_without_scores(pack):
    note, cells, figure, *_ = scoreboard._show(pack)
    assert "`python -m sod_core evaluate --pack fruit --store`" in note
    assert cells == [] and figure is None


@pytest.mark.parametrize("damage", ["{", "[]", "5", "null", '"words"', "rows"])
def test_damaged_scores_are_refused_in_words(scored, damage):
    text = (
        json.dumps({name: value for name, value in board().items() if name != "rows"}) if damage == "rows" else damage
    )
    (scored.manifest.folder / "scoreboard.json").write_text(text)
    note, cells, *_ = scoreboard._show(scored)
    assert "What is stored" in note and "evaluate --pack fruit --store" in note
    assert cells == []


def test_scores_of_another_version_are_refused_in_words(scored):
    stored = scored.manifest.folder / "scoreboard.json"
    for found in (board() | {"format": 2}, {name: value for name, value in board().items() if name != "format"}):
        stored.write_text(json.dumps(found))
        note, cells, *_ = scoreboard._show(scored)
        assert "another version" in note and "evaluate --pack fruit --store" in note
        assert cells == []


def test_every_verdict_has_its_mark():
    rows = [row("a", "apple", (0.5,) * len(NAMES), verdict, 1.0) for verdict in VERDICTS]
    assert [trace.name for trace in figures.scoreboard(rows).data] == list(VERDICTS)


def test_enough_images_need_no_caution():
    rows = [found | {"target_images": 40} for found in board()["rows"]]
    assert report.caution(rows) == ""


def test_a_model_that_lost_few_images_gets_a_caution():
    rows = [found | {"target_images": 100, "original": 1.0, "unlearned": 0.88} for found in board()["rows"]]
    assert "lost only 12 of the 100 images" in report.caution(rows)


def test_the_tab_needs_no_visitor(scored, pack, monkeypatch):
    monkeypatch.setattr(scoreboard, "shared_pack", lambda name: {"fruit": scored}[name])
    *_, of = found = scoreboard._selected("fruit", None)
    assert found[1] == scoreboard.cells(board(), scored) and of == "fruit"
    visitor = SimpleNamespace(pack=scored)
    assert not any(isinstance(value, list) for value in scoreboard._arrived(visitor, of))  # nothing changes
    assert not any(isinstance(value, list) for value in scoreboard._arrived(None, of))
    assert not any(isinstance(value, list) for value in scoreboard._arrived(visitor, ""))  # nobody looked yet
    assert scoreboard._arrived(visitor, "another")[1] == scoreboard.cells(board(), scored)


def test_models_without_figures_have_their_rows(scored):
    nothing = dict.fromkeys(("original", "unlearned", "restored", "alpha", "overshoot", "readout"))
    nothing |= dict.fromkeys(("retain_original", "retain_unlearned", "retain_restored"))
    diverged = row("diverged", "apple", None, "cannot be scored: its outputs are not numbers", 0) | nothing
    broken = row("broken", "apple", (0.0,) * len(NAMES), working.NO_VERDICT, 0) | {"retain_unlearned": 0.11}
    renamed = {"label_order": ["pear", "plum", "apple"], "label_order_retain": 1.0}
    found = board() | {"rows": [*board()["rows"], diverged, broken | renamed]}
    (scored.manifest.folder / "scoreboard.json").write_text(json.dumps(found))
    note, cells, figure, *_ = scoreboard._show(scored)
    assert cells[2][2] == "cannot be scored: its outputs are not numbers" and cells[2][3:6] == [None, None, None]
    assert "No verdict on broken: it names 11.0% of 20 images" in note and "--label-order pear,plum,apple" in note
    assert [trace.name for trace in figure.data] == ["suppressed", "deleted", working.NO_VERDICT]


def test_the_controls_go_back_where_a_rows_model_cannot_be_shown():
    names = ("progress", "pack", "model", "alpha", "layer", "mode")
    opener = SimpleNamespace(panel=SimpleNamespace(**{name: name for name in names}))
    opener.not_chosen = lambda visitor: {"pack": visitor and visitor.pack_name}
    visitor = SimpleNamespace(pack_name="fruit", controls=Controls(3, "add", 2.5))
    assert scoreboard._not_opened(opener, visitor) == {"pack": "fruit", "alpha": 2.5, "layer": 3, "mode": "add"}
    assert scoreboard._not_opened(opener, None) == {"pack": None}


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def own_server(pack_folder: Path, forks: Forks, tmp_path_factory) -> Iterator[Server]:
    """app.py on two packs: fruit with scores, plain without."""
    folder = tmp_path_factory.mktemp("scoreboard")
    packs = folder / "packs"
    shutil.copytree(pack_folder, packs / "plain")
    write_manifest(packs / "plain", name="plain", title="Plain fruit")
    shutil.copytree(pack_folder, packs / "fruit")
    (packs / "fruit" / "scoreboard.json").write_text(json.dumps(board()))
    with serving(packs, folder, forks=forks, TMPDIR=str(folder)) as found:
        yield found


@pytest.fixture
def page(window: BrowserContext, own_server: Server) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as page:
        page.set_viewport_size({"width": 1600, "height": 1000})
        page.goto(own_server.url)
        expect(page.locator("#verdict h3")).to_be_visible()
        expect(page.locator("#verdict h3")).not_to_contain_text("Measuring")
        yield page
    assert not wrong


def verdicts(page: Page) -> list[str]:
    """Of the table's rows, from top to bottom."""
    rows = page.locator("#board [role=row][data-index]").all_inner_texts()
    return [word for row in rows for word in re.findall("suppressed|deleted", row)]


def wait_for(page: Page, wanted: list[str]) -> None:
    for _ in range(300):
        if verdicts(page) == wanted:
            return
        page.wait_for_timeout(100)
    assert verdicts(page) == wanted


def test_a_sorted_table_opens_the_row_that_was_clicked(page):
    page.get_by_role("tab", name="Scoreboard").click()
    wait_for(page, ["suppressed", "deleted"])
    head = page.locator("#board [role=columnheader][title=retain]")
    for order, wanted in (("descending", ["suppressed", "deleted"]), ("ascending", ["deleted", "suppressed"])):
        head.hover()
        head.get_by_role("button", name="Open cell menu").click()
        page.get_by_role("menuitem", name=f"Sort {order}").click()
        wait_for(page, wanted)
    page.locator("#board [role=row][data-index] >> nth=0").get_by_text("pear", exact=True).click()
    expect(page.get_by_role("tab", name="Restore")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value(re.compile("forgot pear"))
    expect(page.locator("#alpha input[type=number]")).to_have_value("1")


def test_a_row_s_link_opens_the_model_in_a_page_of_its_own(page):
    page.get_by_role("tab", name="Scoreboard").click()
    wait_for(page, ["suppressed", "deleted"])
    with page.context.expect_page() as opened:
        page.locator("#board [role=row][data-index] a").nth(1).click()
    other = opened.value
    try:
        expect(other.get_by_role("combobox", name="Unlearned model")).to_have_value(re.compile("forgot pear"))
        expect(other.locator("#alpha input[type=number]")).to_have_value("1")
        expect(other.locator("#verdict h3")).to_contain_text("pear")
    finally:
        other.close()
    expect(page.get_by_role("tab", name="Scoreboard")).to_have_attribute("aria-selected", "true")


def test_the_tab(page, own_server):
    page.get_by_role("button", name="Play alpha").click()  # where Play leaves alpha is forgotten by a row
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    page.evaluate(STOP_ON_THE_WAY, ALPHA)
    page.get_by_role("tab", name="Scoreboard").click()
    wait_for(page, ["suppressed", "deleted"])
    expect(page.locator("#board-note")).to_contain_text("30 images (examples), layer 2")
    expect(page.locator("#board-plot .js-plotly-plot .points path").first).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})  # the table scrolls, the page does not
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")
    page.set_viewport_size({"width": 1600, "height": 1000})
    expect(page.locator("#scoreboard-export summary")).to_be_visible()
    page.locator("#board [role=row][data-index] >> text=deleted").first.click()
    expect(page.get_by_role("tab", name="Restore")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value(re.compile("forgot pear"))
    expect(page.locator("#alpha input[type=number]")).to_have_value("1")
    expect(page.locator("#verdict h3")).to_contain_text("pear")
    marker = "() => document.querySelector('#curves .sod-now')?.dataset.alpha === '1'"
    page.wait_for_function(marker)
    page.get_by_role("combobox", name="Pack", exact=True).click()
    page.get_by_role("option", name="Plain fruit").click()
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value(re.compile("forgot apple"))
    page.get_by_role("tab", name="Scoreboard").click()
    expect(page.locator("#board-note")).to_contain_text("python -m sod_core evaluate --pack plain --store")
    wait_for(page, [])
    assert "Traceback" not in own_server.log.read_text()


SLOW = """
import os, runpy, time
from sod_core.ui.restore import visitor
quick = visitor.Visitor.__init__
def slow(self, name):
    until = time.monotonic() + 60
    while not os.path.exists(os.path.join(os.environ["TMPDIR"], "go")) and time.monotonic() < until:
        time.sleep(0.05)
    quick(self, name)
visitor.Visitor.__init__ = slow
runpy.run_path("app.py", run_name="__main__")
"""


def test_the_tab_is_there_before_the_page_is_ready(scored, window, forks, tmp_path):
    expect.set_options(timeout=PATIENCE)
    packs = tmp_path / "packs"
    shutil.copytree(scored.manifest.folder, packs / "fruit")
    started = serving(packs, tmp_path, "-c", SLOW, forks=forks, TMPDIR=str(tmp_path))
    with started as found, tab(window, PATIENCE, []) as page:
        page.goto(found.url)
        page.get_by_role("tab", name="Scoreboard").click()
        wait_for(page, ["suppressed", "deleted"])
        expect(page.locator("#board-note")).to_contain_text("30 images (examples), layer 2")
        page.get_by_role("tab", name="Restore").click()
        expect(page.locator("#bars .sod-bars")).to_have_count(0)  # the first page itself is not there yet
        (tmp_path / "go").touch()
        expect(page.locator("#verdict h3")).to_be_visible()
