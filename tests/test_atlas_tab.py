"""The Atlas tab: what it draws, its endpoint, and what a visitor does with it in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from conftest import EXPERTS, LAYERS, UNLEARNED, WIDTH, Server, endpoints, serving, tab, write_manifest
from forks import Forks
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import BrowserContext, Page, expect
from test_page import choose

from sod_core.__main__ import main
from sod_core.restore import atlas_actions, atlas_file, fates
from sod_core.restore.atlas import ORIGINAL
from sod_core.restore.pack import Pack
from sod_core.ui import overlays, points
from sod_core.ui.atlas import api, latent, links, scatter, table, work
from sod_core.ui.atlas import tab as tabs
from sod_core.ui.atlas.scatter import OFTEN, STRONGLY, Point
from sod_core.ui.atlas.visitor import ALL, EVERY, FORGOTTEN, Controls
from sod_core.ui.atlas.visitor import EXPERTS as ONLY_EXPERTS
from sod_core.ui.atlas.visitor import Page as State

PATIENCE = 20_000
APPLE, PEAR = UNLEARNED
HEAT_TO_COME = 'viewBox="0 0 0 0"'


@pytest.fixture(scope="module")
def made(pack_folder: Path, tmp_path_factory) -> Path:
    """The tiny pack with its atlas."""
    folder = Path(shutil.copytree(pack_folder, tmp_path_factory.mktemp("atlas") / "fruit"))
    assert main(["atlas", "--pack", str(folder), "--unlearned", APPLE, PEAR]) == 0
    return folder


@pytest.fixture(scope="module")
def stored(made: Path) -> Pack:
    return Pack(made)


@pytest.fixture
def state(stored, monkeypatch) -> State:
    """A page that shows the tiny pack."""
    monkeypatch.setattr("sod_core.ui.atlas.visitor.shared_pack", lambda name: {"fruit": stored}[name])
    found = State()
    found.follow(None, "fruit")
    return found


# ---------------------------------------------------------------- what is drawn


def test_the_scatter_shows_every_latent_that_fires(stored):
    atlas = work.stored(stored)
    controls = Controls(APPLE, 2)
    found = table.chosen(atlas, stored, controls)
    markup = scatter.html(table.points(found, OFTEN), OFTEN, "the images of apple", APPLE)
    drawn = set(map(int, re.findall(r'data-pick="(\d+)"', markup)))
    fires = atlas.layers[2].class_fires[:2, 0].sum(0) > 0
    assert drawn == set(fires.nonzero().flatten().tolist())
    chosen = set(map(int, re.findall(r'class="chosen" data-kind="latent" data-pick="(\d+)"', markup)))
    assert chosen == set(EXPERTS[0]) & drawn


def test_places_by_hand():
    found = [Point(0, 0.01, 1.0, "left", False, True), Point(1, 1.0, 0.0, "silenced", True, False)]
    markup = scatter.html(found, OFTEN, "all images", "x")
    x, y = points.across([0.01, 1.0]), points.upwards([1.0])
    assert f'cx="{x.at(0.01):.1f}" cy="{y.at(1.0):.1f}"' in markup and f'cy="{y.at(0):.1f}"' in markup
    assert x.at(0.1) - x.at(0.01) == pytest.approx(x.at(1.0) - x.at(0.1))
    assert y.at(0) > y.edge > y.at(1.0)  # the strip for 0 lies below
    assert "latent 1, silenced: 100% to 0%" in markup and 'class="chosen off"' in markup
    assert "2 of 2 latents fire" in markup and "1 of them are chosen by the filter" in markup
    assert 'class="silent"' not in markup
    many = [Point(0, 30.0, 0.2, "silenced", False, True), Point(1, 0.5, 8.0, "stronger", False, True)]
    strong = scatter.html(many, STRONGLY, "all images", "x")
    assert 'class="silent"' in strong and ">100</text>" in strong


def test_what_is_far_too_small_stands_at_the_end():
    axis = points.across([1e-9, 5.0], up_to_one=False)
    assert axis.decades == points.MOST_DECADES and axis.at(1e-9) == axis.edge < axis.at(1.0)
    assert axis.powers[-1] == pytest.approx(10.0)


def test_the_table_says_what_the_atlas_holds(stored):
    atlas = work.stored(stored)
    controls = Controls(APPLE, 1, ALL)
    found = table.chosen(atlas, stored, controls)
    rows = [dict(zip(table.HEADERS, row, strict=True)) for row in table.cells(atlas, stored, controls, found)]
    layer = atlas.layers[1]
    for row in rows:
        j = row["latent"]
        assert row["often"] == pytest.approx(layer.class_fires[0, :, j].sum().item() / 9, abs=6e-4)
        assert row["strength after"] == pytest.approx(layer.class_strength[1, :, j].mean().item(), abs=6e-4)
        assert row["fate"] == found.fates[j] and row["style"] == "" and row["on object"] is None
        assert row["expert for"] == ", ".join(name for c, name in enumerate(atlas.classes) if j in EXPERTS[c])
    listed = [row["latent"] for row in rows]
    experts = [j for j in listed if j in EXPERTS[0]]
    assert listed[: len(experts)] == experts  # they come first


@pytest.mark.parametrize("show", [EVERY, ONLY_EXPERTS, *fates.FATES])
def test_the_filter(stored, show):
    atlas = work.stored(stored)
    found = table.chosen(atlas, stored, Controls(PEAR, 2, FORGOTTEN, OFTEN, show))
    wanted = [
        show == EVERY or fate == show or (show == ONLY_EXPERTS and j in EXPERTS[1])
        for j, fate in enumerate(found.fates)
    ]
    assert found.kept == wanted and len(wanted) == WIDTH


def test_heat_is_clear_where_nothing_fires():
    found = latent.heat([0.0, 0.5, 1.0, 2.0], 1.0, "a <b>")
    assert found.startswith('<svg class="heat" viewBox="0 0 2 2" role="img" aria-label="a &lt;b&gt;">')
    paths = re.findall('<path d="(.*?)" fill="(.*?)" fill-opacity="(.*?)"/>', found)
    half, hottest = overlays.colour(32 / 63), overlays.colour(1)
    assert paths == [("M1 0h1v1h-1z", half, "0.49"), ("M0 1h1v1h-1zM1 1h1v1h-1z", hottest, "0.85")]
    assert "<path" not in latent.heat([0.0] * 4, 0.0, "")
    assert 'fill="var(--heat-0)" fill-opacity="0.12"' in latent.heat([1e-9, 0, 0, 0], 1.0, "")  # little is not nothing


def test_a_latents_page(stored):
    atlas = work.stored(stored)
    told = fates.told(atlas, 2, 3, APPLE)
    pictured = [latent.Pictured("data:p", [1.5, 0, 0, 0], [0, 0.25, 0, 0], 1.5, 0.25)] * len(told["strongest"])
    markup = latent.html(told, pictured, ["apple"], True, APPLE, ["A note <b>."])
    assert "Latent 3 of layer 2; expert for apple; " in markup and "A note &lt;b&gt;." in markup
    assert markup.count(f'heat in {APPLE}"') == len(told["strongest"]) and "1.5 to 0.2" in markup
    assert [int(j) for j in re.findall(r'data-kind="latent" data-pick="(\d+)"', markup)] == [
        one["latent"] for one in told["together"]
    ]
    query = parse_qs(urlsplit(latent.edit_link(told)).query)
    assert query == {
        **{"pack": ["fruit"], "model": [APPLE], "layer": ["2"], "mode": ["inject"], "alpha": ["1"]},
        **{"features": ["own"], "latents": ["3"], "latent": ["3"]},
    }
    assert "Styles" not in markup  # the images have none
    assert "Edit it in Restore" not in latent.html(told, pictured, [], False, APPLE)


# ---------------------------------------------------------------- handlers


def test_the_tab_needs_no_visitor(state):
    found = tabs._filled(state, Controls(APPLE, 2))
    assert len(found) == tabs.FILLED
    missing, button, drawn, rows, page, link = found[-6:]
    assert missing == "" and not button.visible and "<circle" in drawn and rows
    assert "Latent " in page and 'data-link="atlas"' in link and state.latent == rows[0][0]


def test_the_unlearned_models_heat_comes_second(state, stored):
    controls = Controls(APPLE, 2)
    tabs._filled(state, controls)
    state.latent = 3
    first = tabs._latent(state, controls)
    assert HEAT_TO_COME in first and " to " not in re.search("<figcaption>(.*?)</figcaption>", first)[1]
    second = tabs._settle(state, *controls)
    assert HEAT_TO_COME not in second
    atlas = work.stored(stored)
    numbers = [image["image"] for image in fates.told(atlas, 2, 3, APPLE)["strongest"]]
    sae, data = stored.sae(2), work.pictures(stored, atlas)
    session = stored.session(APPLE)
    for rank, number in enumerate(numbers):
        session.set_image(data.batch(number, 1).inputs)
        heat = session.latents("unlearned", 2)[0, 1:, 3]
        assert sae.latents == WIDTH and f"{heat.max().item():.1f}</figcaption>" in second
        top = atlas.layers[2].peaks[3, 0].item()
        words = re.findall(f'aria-label="(\\w+, heat in {APPLE})"', second)[rank]
        assert latent.heat(heat.tolist(), top, words) in second, rank


def test_heat_that_is_not_stored_is_computed(state, stored, monkeypatch):
    whole, controls = work.stored(stored), Controls(APPLE, 2)
    state.latent = int(whole.layers[2].patches.argmax())
    wanted = tabs._settle(state, *controls)
    layers = {number: replace(layer, heat=layer.heat[:, :2]) for number, layer in whole.layers.items()}
    monkeypatch.setattr(work, "stored", lambda pack: replace(whole, layers=layers))
    assert tabs._latent(state, controls).count(HEAT_TO_COME) > wanted.count(HEAT_TO_COME) == 0
    found = tabs._settle(state, *controls)
    paths = [[path.count("M") for path in re.findall('<path d="(.*?)"', markup)] for markup in (found, wanted)]
    assert HEAT_TO_COME not in found and sum(paths[0]) == sum(paths[1])  # the same patches fire


def test_a_pack_without_unlearned_models(stored, made, monkeypatch, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "alone"))
    write_manifest(folder, unlearned=[])
    assert main(["atlas", "--pack", str(folder)]) == 0
    monkeypatch.setattr("sod_core.ui.atlas.visitor.shared_pack", lambda name: {"alone": Pack(folder)}[name])
    state = State()
    state.follow(None, "alone")
    found = tabs._filled(state, tabs._of_pack(state, Controls(APPLE, 2, FORGOTTEN), True))
    assert found[2].value == ORIGINAL and "<circle" in found[-4] and "Latent" in found[-2]
    assert "heat in the original" in found[-2] and "heat in random" not in found[-2]


def test_a_stale_atlas_is_not_shown(state, stored, monkeypatch):
    monkeypatch.setattr(tabs, "stale", lambda *_: "the atlas was made with another file of the original")
    missing, button, drawn, rows, *_ = tabs._draw(state, *Controls(APPLE, 2))[1:]
    assert (
        missing.startswith("The atlas was made with another file")
        and "`python -m sod_core atlas --pack fruit`" in missing
    )
    assert not button.visible and drawn == "" and rows == []


def test_images_that_are_others_by_now_are_not_shown(state, stored, monkeypatch):
    other = SimpleNamespace(
        name="others", labels=torch.zeros(9, dtype=torch.long), styles=torch.zeros(0, dtype=torch.long)
    )
    monkeypatch.setattr(work, "_images", lambda *_: other)
    tabs._filled(state, Controls(APPLE, 2))
    page = tabs._latent(state, Controls(APPLE, 2))
    assert "The images are not shown: the atlas was made of other images (examples) than the pack has here" in page
    assert "<path" in page and f"heat in {APPLE}" not in page  # the original's is stored


def test_a_link_and_back(state):
    state.latent = 5
    controls = Controls(PEAR, LAYERS[0], "plum", STRONGLY, "silenced")
    said = json.loads(re.search('data-values="(.*?)"', links.element(state, controls))[1].replace("&quot;", '"'))
    assert said == {
        **{"pack": "fruit", "model": PEAR, "layer": "1", "latent": "5"},
        **{"images": "plum", "measure": "strongly", "show": "silenced"},
    }
    state.latent = None
    link = links.Link({"tab": "atlas"} | said, "atlas")
    assert link.opened(state, Controls(APPLE, 2)) == controls and state.latent == 5 and not link.problems
    link = links.Link({"tab": "atlas", "images": "x", "measure": "y", "show": "z", "layer": "9", "model": "m"}, "atlas")
    assert link.opened(state, Controls(APPLE, 2)) == Controls(APPLE, 2)
    assert link.sentence().count("'") == 6  # layer and model are Restore's to say


def test_computing_can_be_cancelled(stored):
    with pytest.raises(work.Cancelled):
        entry = stored.manifest.entry(APPLE)
        work.compute(stored, None, entry, lambda: stored.unlearned(APPLE), lambda told: None, lambda: True)


def test_what_is_computed_here_is_what_the_command_stores(stored):
    entry = stored.manifest.entry(APPLE)
    told: list[tuple[int, int]] = []
    found = work.compute(stored, None, entry, lambda: stored.unlearned(APPLE), told.append, lambda: False)
    whole, _ = atlas_actions.computed(stored, [APPLE], atlas_actions.images(stored))
    for layer in LAYERS:
        for name in ("class_fires", "class_strength", "style_fires", "strongest", "together"):
            assert torch.equal(getattr(found.layers[layer], name), getattr(whole.layers[layer], name))
    assert [model.id for model in found.models] == [ORIGINAL, APPLE] and told == [(9, 9)] * 2


# ---------------------------------------------------------------- the endpoint


@pytest.fixture(scope="module")
def client(made: Path, pack_folder: Path, tmp_path_factory) -> Iterator[Client]:
    packs = tmp_path_factory.mktemp("served")
    shutil.copytree(made, packs / "fruit")
    shutil.copytree(pack_folder, packs / "plain")
    write_manifest(packs / "plain", name="plain")
    with endpoints(lambda: api.build("fruit"), packs) as found:
        yield found


def test_the_endpoint_gives_a_latents_page(client, stored):
    found = client.predict(pack="fruit", model=APPLE, layer=2, latent="3", api_name="/atlas")
    assert found == json.loads(json.dumps(fates.told(atlas_file.read(stored), 2, 3, APPLE)))


def test_the_endpoint_gives_all_latents(client):
    found = client.predict(pack="fruit", model=PEAR, layer=1, images="plum", api_name="/atlas")
    assert found["images"] == 9 and set(found["latents"][0]) == set(table.HEADERS)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"pack": "/etc"}, "unknown pack"),
        ({"pack": "plain"}, "nothing is stored for pack plain"),
        ({"model": "nobody"}, "no model 'nobody'"),
        ({"layer": 7}, "no layer 7"),
        ({"latent": "99"}, "latents 0 to 63"),
        ({"latent": "x"}, "no whole number"),
        ({"images": "x"}, "unknown images"),
    ],
)
def test_what_the_endpoint_refuses(client, asked, said):
    with pytest.raises(AppError, match=said):
        client.predict(**{"pack": "fruit", "layer": 2} | asked, api_name="/atlas")


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def own_server(made: Path, pack_folder: Path, forks: Forks, tmp_path_factory) -> Iterator[Server]:
    """app.py on two packs: fruit with an atlas, plain without."""
    folder = tmp_path_factory.mktemp("atlas-server")
    packs = folder / "packs"
    shutil.copytree(made, packs / "fruit")
    shutil.copytree(pack_folder, packs / "plain")
    write_manifest(packs / "plain", name="plain", title="Plain fruit")
    with serving(packs, folder, forks=forks) as found:
        yield found


@pytest.fixture
def page(window: BrowserContext, own_server: Server) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as page:
        yield page
    assert not wrong


def opened(page: Page, server: Server, query: str) -> None:
    page.goto(server.url + query)
    expect(page.locator("#atlas-note")).to_contain_text("ruit")


def title(page: Page):
    return page.locator("#atlas-latent .sod-title").first


def address(page: Page) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlsplit(page.url).query).items()}


def test_points_rows_and_companions_open_a_latents_page(page, own_server, stored):
    opened(page, own_server, f"?tab=atlas&model={PEAR}&layer=2")
    expect(page.locator("#atlas-model input")).to_have_value("Retrained, forgot pear")
    expect(title(page)).to_contain_text("of layer 2")
    point = page.locator("#atlas-scatter circle.chosen").first
    picked = point.get_attribute("data-pick")
    point.focus()
    page.keyboard.press("Enter")
    expect(title(page)).to_contain_text(f"Latent {picked} of layer 2; expert for pear")
    expect(page.locator("#atlas-latent svg.heat[viewBox='0 0 0 0']")).to_have_count(0)  # the other model's has come
    told = fates.told(work.stored(stored), 2, int(picked), PEAR)
    expect(page.locator("#atlas-latent figure")).to_have_count(len(told["strongest"]))
    companion = page.locator("#atlas-latent .sod-acts button").first
    expect(companion).to_contain_text(f"latent {told['together'][0]['latent']}")
    companion.click()
    expect(title(page)).to_contain_text(f"Latent {told['together'][0]['latent']} of")
    row = page.locator("#atlas-rows [role=row][data-index]").nth(1)
    wanted = re.match(r"\s*(\d+)", row.inner_text())[1]
    row.get_by_text(wanted, exact=True).first.click()
    expect(title(page)).to_contain_text(f"Latent {wanted} of")
    page.wait_for_function(f"new URLSearchParams(location.search).get('latent') === '{wanted}'")


def test_a_page_leads_into_restore_with_the_latent_edited(page, own_server):
    opened(page, own_server, f"?tab=atlas&model={PEAR}&layer=1&latent=5")
    expect(title(page)).to_contain_text("Latent 5 of layer 1")
    page.get_by_role("link", name="Edit it in Restore").click()
    expect(page.locator("#heat .sod-title")).to_contain_text("Where latent 5 fires")
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Retrained, forgot pear")
    page.wait_for_function("new URLSearchParams(location.search).get('latents') === '5'")
    assert address(page)["features"] == "own" and address(page)["layer"] == "1"


def test_controls_and_a_link_that_opens_the_same_page(page, window, own_server):
    opened(page, own_server, "?tab=atlas")
    expect(page.locator("#atlas-scatter circle").first).to_be_attached()
    page.get_by_label("how strongly").check()
    expect(page.locator("#atlas-scatter .sod-title")).to_contain_text("how strongly, in the original")
    page.locator("#atlas-layer input[type=radio]").first.check()
    expect(title(page)).to_contain_text("of layer 1")
    page.wait_for_function("new URLSearchParams(location.search).get('measure') === 'strongly'")
    page.wait_for_function("new URLSearchParams(location.search).get('layer') === '1'")
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as other:
        opened(other, own_server, "?" + urlsplit(page.url).query)
        expect(title(other)).to_have_text(title(page).inner_text())
        expect(other.locator("#atlas-scatter .sod-title")).to_contain_text("how strongly, in the original")
    assert not wrong


def test_a_pack_without_an_atlas_is_computed_on_the_spot(page, own_server):
    opened(page, own_server, "?tab=atlas&pack=plain")
    expect(page.locator("#atlas-missing")).to_contain_text("python -m sod_core atlas --pack plain")
    page.get_by_role("button", name="Compute it here").click()
    expect(page.locator("#atlas-scatter circle").first).to_be_attached()
    expect(title(page)).to_contain_text("of layer 2")
    expect(page.locator("#atlas-cancel")).not_to_be_visible()


def test_a_visitors_own_checkpoint(page, own_server):
    opened(page, own_server, "?tab=atlas&pack=fruit")
    expect(page.locator("#atlas-scatter circle").first).to_be_attached()
    page.get_by_role("tab", name="Restore").click()
    expect(page.locator("#verdict h3")).not_to_contain_text("Measuring")
    page.get_by_role("button", name="Your own unlearned model").click()
    path = own_server.packs / "fruit" / "unlearned" / f"{PEAR}.pth"
    page.locator("#own-model input, #own-model textarea").fill(str(path))
    choose(page, "It forgot", "plum")
    page.get_by_role("button", name="Load and measure it").click()
    expect(page.get_by_role("combobox", name="Unlearned model").first).to_have_value(re.compile("^Own: "))
    page.get_by_role("tab", name="Atlas").click()
    expect(page.locator("#atlas-model input")).to_have_value(re.compile("^Own: "))
    expect(page.locator("#atlas-missing")).to_contain_text("one pass over the same 9 images")
    page.get_by_role("button", name="Compute it here").click()
    expect(page.locator("#atlas-scatter .sod-title")).to_contain_text(f"in the original and in Own: {PEAR}.pth")
    expect(page.locator("#atlas-missing")).to_be_empty()
    expect(page.get_by_role("link", name="Edit it in Restore")).to_have_count(0)
