"""For everybody: axe-core finds nothing serious on any tab, all is used by keyboard, heat has a second colour scale."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import LAYERS, SHAPE, Server, tab
from playwright.sync_api import BrowserContext, Page, expect
from plotly.colors import sample_colorscale
from test_page import eventually, heat, opened

from sod_core.ui import overlays
from sod_core.ui.page import TABS

PATIENCE = 60_000
GRAVE = ("serious", "critical")
THEMES = {"light": False, "dark": True}
REACHABLE = """() => {
    const kinds = 'button, a[href], input, select, textarea, summary, [role=button], [role=slider], [role=tab], mark';
    window.reached = new Set();
    window.wanted = Array.from(document.querySelectorAll(kinds)).filter((e) => !e.disabled
        && e.checkVisibility({visibilityProperty: true})
        && !e.matches('[type=file], .visually-hidden *, [aria-hidden=true], [aria-hidden=true] *'));
    document.activeElement.blur();
}"""
FILLS = "all => all.map(e => getComputedStyle(e).fill)"
FOCUSED = """() => {
    const on = document.activeElement;
    if (on === document.body || reached.has(on)) return false;
    reached.add(on);
    return true;
}"""
NOT_REACHED = """() => wanted.filter((e) => {
    if (!e.isConnected || reached.has(e)) return false;
    const group = e.type === 'radio' ? Array.from(document.getElementsByName(e.name)) : [];
    return !group.some((other) => reached.has(other));  // the arrows go on from the chosen one
}).map((e) => e.outerHTML.slice(0, 200))"""


def worked(page: Page, name: str) -> None:
    """The tab as it is after some work, with all that unfolds unfolded."""
    if name != "restore":
        page.get_by_role("tab", name=name.capitalize(), exact=True).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    if name == "scoreboard":
        expect(page.locator("#board-plot .js-plotly-plot")).to_be_visible()
    elif name == "erase":
        expect(page.locator("#erase-concepts")).to_contain_text("boat")
        page.locator("#erase-generate").click()
        expect(page.locator("#erase-bars .js-plotly-plot")).to_be_visible()
    elif name == "clamp":
        expect(page.locator("#clamp-firing table")).to_be_visible()
        expect(page.locator("#clamp-ask")).to_be_visible()
    elif name == "atlas":
        expect(page.locator("#atlas-scatter circle").first).to_be_attached()
        expect(page.locator("#atlas-latent figcaption").first).to_contain_text(" to ")  # both models' heat is there
    elif name == "mask":
        expect(page.locator("#mask-votes .sod-votes").first).to_be_visible()
    panel.locator("button.label-wrap:not(.open)").evaluate_all("all => all.forEach(closed => closed.click())")
    page.wait_for_timeout(600)  # until Gradio has unfolded it, and the page's script has named what lacks a name


@pytest.fixture(params=TABS)
def at_work(request, window: BrowserContext, server: Server) -> Iterator[Page]:
    """Each tab in turn, on the embedded packs."""
    expect.set_options(timeout=PATIENCE)
    with opened(window, server, "?pack=canvas&patch=27&latent=7") as page:
        worked(page, request.param)
        yield page


def findings(page: Page) -> list[str]:
    """What axe-core finds that is grave: rule, where, and why."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}"
        for rule in found
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


def darken(page: Page, dark: bool) -> None:
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
    page.wait_for_timeout(400)  # colours fade into each other


def test_axe_finds_nothing_grave(at_work):
    for dark in THEMES.values():
        darken(at_work, dark)
        assert findings(at_work) == []
    darken(at_work, False)


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_grave_on_the_stage_and_among_the_keys(window, server, theme):
    with opened(window, server) as page:
        darken(page, THEMES[theme])
        page.locator("[data-page=keys]").click()
        assert findings(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("p")
        page.wait_for_timeout(300)
        assert findings(page) == []
        page.keyboard.press("Escape")
        darken(page, False)


def test_axe_would_find_it(window, server):
    with opened(window, server) as page:
        page.evaluate("document.querySelector('.sod-header p').style.color = '#ccc'")
        page.evaluate("document.querySelector('[data-page=keys]').insertAdjacentHTML('afterend', '<button></button>')")
        assert [line.split(":")[0] for line in findings(page)] == ["button-name", "color-contrast"]


def test_tab_reaches_everything(at_work):
    at_work.evaluate(REACHABLE)
    for _ in range(600):
        at_work.keyboard.press("Tab")
        if not at_work.evaluate(FOCUSED) and at_work.evaluate("document.activeElement !== document.body"):
            break
    assert at_work.evaluate("wanted.length") > 20 and at_work.evaluate("reached.size") > 20
    assert at_work.evaluate(NOT_REACHED) == []


# ---------------------------------------------------------------- by keyboard alone


def focus(page: Page, selector: str) -> None:
    page.locator(selector).first.focus()


def test_the_heat_by_keyboard(window, server):
    with opened(window, server) as page:
        grid, patches = SHAPE.grid, page.locator("#heat figure").first.locator("rect")
        expect(page.locator("#heat rect[tabindex='0']")).to_have_count(3)  # one of each model
        focus(page, "#heat rect[tabindex='0']")
        for key in ("ArrowLeft", "ArrowUp"):  # over the edge nothing is
            page.keyboard.press(key)
        expect(patches.nth(0)).to_be_focused()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        expect(patches.nth(grid + 1)).to_be_focused()
        assert page.locator("#alpha input[type=range]").input_value() == "0"  # the arrows were the patch's
        values = [figure.locator("rect").nth(grid + 1).text_content() for figure in page.locator("#heat figure").all()]
        named = ", ".join(f"{which} {v}" for which, v in zip(("original", "unlearned", "restored"), values))
        expect(page.locator(".sod-patch")).to_have_text(f"Patch 2, 2: {named}")
        page.keyboard.press("Enter")
        expect(page.locator("#inspector .sod-title")).to_contain_text("patch 2, 2")
        expect(patches.nth(grid + 1)).to_be_focused()  # the answer drew a new one
        expect(page.locator(".sod-patch")).to_have_text(f"Patch 2, 2: {named}")
        focus(page, "#inspector tr[data-pick]")
        latent = page.locator("#inspector tr[data-pick]").first.get_attribute("data-pick")
        page.keyboard.press("Enter")
        expect(page.locator("#heat .sod-title")).to_contain_text(f"latent {latent}")
        expect(page.locator(f"#inspector tr[data-pick='{latent}']")).to_be_focused()


def test_a_visitor_without_a_mouse(window, server):
    with opened(window, server) as page:
        focus(page, "#picker button:last-child")
        page.keyboard.press("Enter")
        eventually(page, lambda: "example=" in page.url and "example=0" not in page.url)
        focus(page, "#alpha input[type=range]")
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        eventually(page, lambda: parse_qs(urlsplit(page.url).query)["alpha"] == ["0.2"])
        focus(page, "#layer input:not(:checked)")
        page.keyboard.press("Space")
        eventually(page, lambda: f"layer={LAYERS[0]}" in page.url)
        page.get_by_role("tab", name="Clamp").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#clamp-ask")).to_be_visible()
        page.locator("[data-page=keys]").focus()
        page.keyboard.press("Enter")
        expect(page.locator("dialog.sod-keys")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("[data-page=keys]")).to_be_focused()


# ---------------------------------------------------------------- the heat's colours


def colours(page: Page) -> list[str]:
    """Of the original's patches, as the browser draws them."""
    return page.locator("#heat [data-model=original] rect").evaluate_all(FILLS)


def expected(page: Page, scale: str) -> list[str]:
    """Worked out anew from the numbers in the page."""
    values = [float(text) for text in page.locator("#heat [data-model=original] rect").all_text_contents()]
    still = page.locator("#heat [data-model=unlearned] rect").all_text_contents()
    top = max(*values, *map(float, still))
    steps = sample_colorscale(scale, [i / 63 for i in range(64)])
    return [steps[round(value / top * 63)] for value in values]


def alike(found: list[str], wanted: list[str]) -> bool:
    """Colours to within a step of the scale: the numbers in the page are rounded."""
    split = [[list(map(int, text[4:-1].split(","))) for text in texts] for texts in (found, wanted)]
    return all(max(abs(a - b) for a, b in zip(*pair)) <= 8 for pair in zip(*split))


def test_the_heat_in_a_second_colour_scale(window, server):
    with opened(window, server) as page:
        before, inferno = heat(page), colours(page)
        assert alike(inferno, expected(page, "Inferno")) and len(set(inferno)) > 1
        page.get_by_role("button", name="Heat: Inferno").click()
        expect(page.get_by_role("button", name="Heat: Cividis")).to_be_visible()
        assert heat(page) == before and alike(colours(page), expected(page, "Cividis"))
        assert not alike(colours(page), inferno)
        bar = "getComputedStyle(document.querySelector('#heat .sod-bar i')).backgroundImage"
        assert overlays.colours("cividis")[-1] in page.evaluate(bar)
        page.locator("#alpha input[type=range]").fill("5")  # what the page's script draws follows, too
        fills = page.locator("#heat [data-model=restored] rect").evaluate_all(
            "a => a.map(e => getComputedStyle(e).fill)"
        )
        assert set(fills) <= set(overlays.colours("cividis"))
        eventually(page, lambda: "heat=cividis" in page.url)
        address = page.url
    with opened(window, server, "?" + urlsplit(address).query) as page:
        expect(page.get_by_role("button", name="Heat: Cividis")).to_be_visible()
        assert set(colours(page)) <= set(overlays.colours("cividis"))
        page.keyboard.press("h")
        eventually(page, lambda: "heat=" not in page.url)
        assert set(colours(page)) <= set(overlays.colours("inferno"))


def test_unknown_colours_get_a_sentence_and_the_default(window, server):
    expect.set_options(timeout=PATIENCE)
    with tab(window, PATIENCE, []) as page:
        page.goto(server.url + "?heat=rainbow")
        expect(page.locator("#page-head [role=status]")).to_have_text(
            "This link asks for what is not here: the colours of the heat."
        )
        expect(page.get_by_role("button", name="Heat: Inferno")).to_be_visible()
