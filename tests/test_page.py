"""The page in a browser: what a visitor does with the Restore tab, and that nothing goes wrong in the console."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, EXPERTS, LAYERS, SHAPE, Server, tab
from PIL import Image
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Response, expect

from sod_core.packs.find import ASSETS
from sod_core.restore.pack import Pack
from sod_core.ui.restore.words import MODE_TITLES
from sod_core.worlds import canvas

EXPERTS_TITLE = "Where the {} features (experts) fire"
ALPHA = "#alpha input[type=number]"
ACCENT = "rgb(232, 89, 12)"
PATCHES = SHAPE.grid**2
STOP_ON_THE_WAY = """alpha => new Promise(done => {
    const stop = Array.from(document.querySelectorAll("button")).find(button => button.innerText.trim() === "Stop");
    const look = () => {
        const value = document.querySelector(alpha).value;
        if (0 < value && value < 10) stop.click();
        else if (document.contains(stop) && stop.checkVisibility()) return setTimeout(look, 10);
        done();
    };
    look();
})"""
"""From inside the page: the way from here may take longer than the whole sweep when the machine is busy."""
PATIENCE = 60_000
"""Milliseconds to wait for what must come; only a failure takes so long."""
expect.set_options(timeout=PATIENCE)


@contextmanager
def opened(window: BrowserContext, server: Server, query: str = "") -> Iterator[Page]:
    """The page, ready. Nothing may go wrong in it until the test is done."""
    wrong: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text} {message.location}")

    def on_response(response: Response) -> None:
        if response.status >= 400:
            wrong.append(f"{response.status}: {response.url}")
        elif not response.url.startswith((server.url, "data:", "blob:")):
            wrong.append(f"from elsewhere: {response.url}")

    with tab(window, PATIENCE, wrong) as page:
        page.on("console", on_console)
        page.on("response", on_response)
        try:
            page.goto(server.url + query)
            page.wait_for_selector("#bars .sod-bars")
            page.wait_for_selector("#curves .js-plotly-plot .scatterlayer path")
            expect(page.locator("#heat .sod-picture svg")).to_have_count(3)
            expect(page.locator("#verdict h3")).to_be_visible()
            expect(page.locator("#verdict h3")).not_to_contain_text("Measuring")
            eventually(page, lambda: len(shown_examples(page)) == 1)
            yield page
        finally:
            page.remove_listener("console", on_console)
            page.remove_listener("response", on_response)
    assert not wrong


@pytest.fixture
def page(window: BrowserContext, server: Server) -> Iterator[Page]:
    with opened(window, server) as page:
        yield page


# ---------------------------------------------------------------- help


def eventually(page: Page, condition: Callable[[], bool]) -> None:
    """Waits until it holds: the parts of the page that one answer changes are drawn one after the other."""
    for _ in range(PATIENCE // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    assert condition()


BARS = """() => ["original", "unlearned", "restored"].map(which => [which, Array.from(
    document.querySelectorAll(`#bars i.${which}`), bar => Number(bar.style.transform.match(/scaleY\\((.*)\\)/)[1]))])"""


def traces(page: Page, figure: str) -> dict[str, list[float]]:
    """{name of the trace: its y values} of the figure #bars or #curves."""
    if figure == "bars":
        return dict(page.evaluate(BARS))
    script = "id => document.querySelector(`#${id} .js-plotly-plot`).data.map(t => [t.name, Array.from(t.y)])"
    return dict(page.evaluate(script, figure))


def restored(page: Page) -> list[float]:
    return traces(page, "bars")["restored"]


def classes(page: Page) -> list[str]:
    """The labels under the bars, the forgotten class marked."""
    return page.locator("#bars th[scope=col]").all_inner_texts()


def heat(page: Page) -> str:
    return page.locator("#heat .sod-heats").inner_html()


def unmarked(markup: str) -> str:
    """Without what tells which patch is chosen, and which the keyboard reaches."""
    return re.sub(' (class="on"|tabindex="0"|role="button")', "", markup)


def warning(page: Page, says: str) -> None:
    """Waits for a warning with these words."""
    expect(page.get_by_test_id("toast-text").filter(has_text=says).first).to_be_visible()


def choose(page: Page, menu: str, option: str) -> None:
    page.get_by_role("combobox", name=menu, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def move_alpha(page: Page, alpha: float, curve: str = "experts", control: str = "range") -> None:
    """Moves the slider (or fills in its number) to a multiple of 0.5, and waits for the figures."""
    page.locator(f"#alpha input[type={control}]").fill(str(alpha))
    expect(page.locator("#curves .sod-now")).to_have_attribute("data-alpha", f"{alpha:g}")
    target = next(i for i, name in enumerate(classes(page)) if "▸" in name)
    eventually(
        page, lambda: restored(page)[target] == pytest.approx(traces(page, "curves")[curve][int(2 * alpha)], abs=1e-3)
    )
    expect(page.locator("#verdict")).to_contain_text(f"Now: {restored(page)[target]:.0%}")


def pick_patch(page: Page, patch: int) -> None:
    page.locator("#heat .sod-picture svg").first.locator("rect").nth(patch).click()
    expect(page.locator("#inspector .sod-title")).to_contain_text(
        f"patch {patch // SHAPE.grid + 1}, {patch % SHAPE.grid + 1}"
    )


def shown_examples(page: Page) -> list[str]:
    """The numbers of the examples that are framed as shown; none with an image of one's own."""
    script = "(all, accent) => all.filter(e => getComputedStyle(e).borderColor === accent).map(e => e.dataset.pick)"
    return page.locator("#picker button").evaluate_all(script, ACCENT)


def shown_class(page: Page) -> list[str]:
    return [page.locator(f"#picker [data-pick='{i}']").get_attribute("title") for i in shown_examples(page)]


def figures(page: Page) -> tuple:
    """Everything that an image, a model or a control decides."""
    found = [traces(page, "bars"), traces(page, "curves"), classes(page), shown_examples(page)]
    expect(page.locator("#verdict")).not_to_contain_text("Measuring")
    return *found, page.locator("#verdict h3").inner_text(), page.locator("#verdict p").last.inner_text(), heat(page)


# ---------------------------------------------------------------- what is there at first


class TestTheFirstPage:
    """What leaves the page as it finds it, so that one page serves all."""

    @pytest.fixture(scope="class")
    @classmethod
    def page(cls, window: BrowserContext, server: Server) -> Iterator[Page]:
        with opened(window, server) as page:
            yield page

    def test_the_first_page(self, page):
        expect(page).to_have_title("Suppression or Deletion")
        bars = traces(page, "bars")
        assert list(bars) == ["original", "unlearned", "restored"]
        for values in bars.values():
            assert len(values) == len(CLASSES) and sum(values) == pytest.approx(1, abs=1e-3)
        assert bars["restored"] == bars["unlearned"] != bars["original"]  # alpha is 0
        assert classes(page) == ["▸ apple", "pear", "plum"] and shown_class(page) == ["apple"]
        expect(page.locator("#verdict h3")).to_contain_text("apple")
        names = {"experts", "random features", "random, equally active", "copied CLS, no features"}
        assert names | {"experts on patches only"} == set(traces(page, "curves"))
        for panel, which in zip(page.locator("#heat figure").all(), bars):
            expect(panel.locator("rect")).to_have_count(PATCHES)
            expect(panel.locator("figcaption")).to_have_text(which)
        expect(page.locator("#heat .sod-title")).to_contain_text(EXPERTS_TITLE.format("apple"))
        expect(page.locator("#heat .sod-bar")).to_be_visible()
        expect(page.locator("#picker button")).to_have_count(9)

    @pytest.mark.parametrize("control", ["range", "number"])
    def test_the_slider_moves_the_bars(self, page, control):
        before, curves = traces(page, "bars"), traces(page, "curves")
        heats = [panel.inner_html() for panel in page.locator("#heat figure").all()]
        move_alpha(page, 5, control=control)
        bars = traces(page, "bars")
        assert bars["restored"] != before["restored"] and sum(bars["restored"]) == pytest.approx(1, abs=1e-3)
        assert (bars["original"], bars["unlearned"]) == (before["original"], before["unlearned"])
        assert traces(page, "curves") == curves  # only the marker moves
        eventually(page, lambda: page.locator("#heat figure").nth(2).inner_html() != heats[2])
        assert [page.locator("#heat figure").nth(i).inner_html() for i in (0, 1)] == heats[:2]
        move_alpha(page, 0, control=control)
        assert traces(page, "bars") == before

    def test_the_reset_button_is_a_move_too(self, page):
        before = traces(page, "bars")
        move_alpha(page, 5)
        page.get_by_role("button", name="Reset to default value").click()
        expect(page.locator(ALPHA)).to_have_value("0")
        eventually(page, lambda: traces(page, "bars") == before)


# ---------------------------------------------------------------- alpha


def test_play_sweeps_to_10(page):
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(ALPHA)).to_have_value("10")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    eventually(page, lambda: restored(page)[0] == pytest.approx(traces(page, "curves")["experts"][-1], abs=1e-3))


def test_stop_stops(page):
    for _ in range(3):  # on a machine that is too busy, a sweep is over before Stop has reached the server
        page.get_by_role("button", name="Play").click()
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        page.evaluate(STOP_ON_THE_WAY, ALPHA)
        expect(page.get_by_role("button", name="Play")).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        if float(page.locator(ALPHA).input_value()) < 10:
            break
    assert 0 < float(page.locator(ALPHA).input_value()) < 10
    move_alpha(page, 9.5)  # the sweep does not go on over what comes next
    move_alpha(page, 9)
    expect(page.locator(ALPHA)).to_have_value("9")


def test_play_follows_a_change_of_model(page):
    """Whatever is chosen while alpha sweeps, the end shows what the controls say."""
    page.get_by_role("button", name="Play").click()
    eventually(page, lambda: float(page.locator(ALPHA).input_value()) > 0)
    choose(page, "Unlearned model", "Retrained, forgot pear")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator(ALPHA)).to_have_value("10")
    expect(page.locator("#heat .sod-title")).to_contain_text(EXPERTS_TITLE.format("pear"))
    eventually(page, lambda: restored(page)[1] == pytest.approx(traces(page, "curves")["experts"][-1], abs=1e-3))
    swept, curves = restored(page), traces(page, "curves")
    move_alpha(page, 9)
    move_alpha(page, 10)
    assert restored(page) == pytest.approx(swept, abs=3e-3) and traces(page, "curves") == curves


# ---------------------------------------------------------------- patches and latents


def firing_latent(page: Page) -> int:
    """The latent of the inspector that fires most in the original, and so on at least one example."""
    rows = page.locator("#inspector tbody tr").all_inner_texts()
    values = {int(row.split()[0]): float(row.split()[1]) for row in rows}
    assert max(values.values()) > 0
    return max(values, key=values.get)


def test_a_patch_shows_its_latents_and_a_latent_its_heat(page):
    experts_heat = heat(page)
    pick_patch(page, 5)
    rows = page.locator("#inspector tbody tr")
    assert 1 <= rows.count() <= 8
    for row in rows.all_inner_texts():
        latent, original, unlearned, restored, *expert_for = row.split()
        assert 0 <= int(latent) < 64 and min(float(original), float(unlearned), float(restored)) >= 0
        found = [word.strip(",") for word in expert_for]
        assert found == [CLASSES[c] for c in EXPERTS if int(latent) in EXPERTS[c]]
    expect(page.locator("#heat rect.on")).to_have_count(3)
    back = page.get_by_role("button", name="Back to the experts' heat")
    expect(back).to_be_hidden()
    latent = firing_latent(page)
    page.locator(f"#inspector tr[data-pick='{latent}']").click()
    expect(page.locator("#heat .sod-title")).to_contain_text(f"Where latent {latent} fires")
    expect(page.locator("#strongest .sod-title")).to_contain_text(f"latent {latent}")
    assert page.locator("#strongest figure").count() >= 1
    expect(page.locator(f"#inspector tr[data-pick='{latent}']")).to_have_class("on")
    move_alpha(page, 3)  # the latent and the patch stay chosen
    expect(page.locator("#heat .sod-title")).to_contain_text(f"Where latent {latent} fires")
    expect(page.locator("#heat rect.on")).to_have_count(3)
    move_alpha(page, 0)
    back.click()
    expect(page.locator("#heat .sod-title")).to_contain_text(EXPERTS_TITLE.format("apple"))
    expect(back).to_be_hidden()
    expect(page.locator("#strongest figure")).to_have_count(0)
    eventually(page, lambda: unmarked(heat(page)) == unmarked(experts_heat))


def test_an_example_where_a_latent_fires_can_be_picked(page):
    """Also the one that the page began with, after another was picked."""
    [first] = shown_examples(page)
    pick_patch(page, 5)
    page.locator(f"#inspector tr[data-pick='{firing_latent(page)}']").click()
    strongest = page.locator("#strongest button")
    expect(strongest.first).to_be_visible()
    page.locator("#picker button[title=plum]").first.click()
    expect(page.locator("#verdict")).to_contain_text("This plum")
    for index in (first, strongest.last.get_attribute("data-pick")):
        page.locator(f"#strongest [data-pick='{index}']").click()
        eventually(page, lambda: shown_examples(page) == [index])  # noqa: B023


def test_a_latent_can_be_typed(page):
    page.get_by_role("button", name="Advanced").click()
    box = page.get_by_label("Show the heat of one latent")
    box.fill("17")
    box.press("Enter")
    expect(page.locator("#heat .sod-title")).to_contain_text("Where latent 17 fires")
    before = heat(page)
    box.fill("64")
    box.press("Enter")
    warning(page, "latent 64 does not exist")
    assert heat(page) == before
    page.get_by_role("button", name="Back to the experts' heat").click()
    expect(page.locator("#heat .sod-title")).to_contain_text(EXPERTS_TITLE.format("apple"))
    expect(box).to_have_value("")


def test_the_table_of_latents_takes_the_keyboard(page):
    pick_patch(page, 5)
    row = page.locator("#inspector tbody tr").nth(1)
    latent = row.get_attribute("data-pick")
    row.press("Enter")
    expect(page.locator("#heat .sod-title")).to_contain_text(f"Where latent {latent} fires")


# ---------------------------------------------------------------- images


def test_another_example(page):
    before = traces(page, "bars")
    page.locator("#picker button[title=plum]").first.click()
    expect(page.locator("#verdict")).to_contain_text("This plum")
    eventually(page, lambda: traces(page, "bars")["original"] != before["original"])
    eventually(page, lambda: shown_class(page) == ["plum"])
    assert classes(page)[0] == "▸ apple"


def write_image(path: Path) -> Path:
    pixels = np.random.default_rng(7).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def upload(page: Page, path: Path) -> None:
    page.locator("#own input[type=file]").set_input_files(path)


def test_an_image_of_ones_own(page, tmp_path):
    before = traces(page, "bars")["original"]
    page.get_by_role("button", name="Your own image").click()
    upload(page, write_image(tmp_path / "own.png"))
    eventually(page, lambda: traces(page, "bars")["original"] != before)
    eventually(page, lambda: shown_examples(page) == [])
    expect(page.locator("#verdict")).to_contain_text("Your image")
    own = traces(page, "bars")["original"]
    choose(page, "Unlearned model", "Retrained, forgot pear")
    eventually(page, lambda: classes(page)[1] == "▸ pear")
    assert traces(page, "bars")["original"] == own and shown_examples(page) == []  # the image stays
    page.locator("#picker button[title=apple]").first.click()
    eventually(page, lambda: traces(page, "bars")["original"] == before)
    eventually(page, lambda: shown_class(page) == ["apple"])
    expect(page.locator("#own img")).to_have_count(0)


def test_a_file_that_is_no_image_changes_nothing(page, tmp_path):
    words, cut = tmp_path / "words.png", write_image(tmp_path / "cut.png")
    words.write_bytes(b"words")
    cut.write_bytes(cut.read_bytes()[:2000])
    page.get_by_role("button", name="Your own image").click()
    for alpha, broken, says in ((5, words, "not an image"), (2, cut, "damaged or cut short")):
        before = figures(page)
        # The browser shows what was sent to it as a picture, and may say that it cannot: not in the console.
        upload(page, broken)
        warning(page, says)
        assert figures(page) == before
        move_alpha(page, alpha)
        assert traces(page, "bars")["original"] == before[0]["original"]


# ---------------------------------------------------------------- controls


def test_another_model_brings_its_class(page):
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Random labels, forgot apple")
    choose(page, "Unlearned model", "Retrained, forgot pear")
    eventually(page, lambda: classes(page) == ["apple", "▸ pear", "plum"])
    eventually(page, lambda: shown_class(page) == ["pear"])
    expect(page.locator("#heat .sod-title")).to_contain_text(EXPERTS_TITLE.format("pear"))
    expect(page.locator("#verdict h3")).to_contain_text("pear")
    expect(page.locator("#picker button").first).to_have_attribute("title", "pear")


def test_every_control_changes_the_restored_model(page):
    move_alpha(page, 5)
    page.get_by_role("button", name="Advanced").click()
    untouched = {name: values for name, values in traces(page, "bars").items() if name != "restored"}

    def changes(act: Callable[..., None], *arguments: str) -> None:
        before = restored(page)
        act(*arguments)
        eventually(page, lambda: restored(page) != before)
        assert {name: values for name, values in traces(page, "bars").items() if name != "restored"} == untouched

    changes(lambda: page.get_by_role("radio", name=str(LAYERS[0])).click())
    for mode in ("amplify", "direct_injection", "add", "cls_copy", "state_copy", "inject"):
        changes(choose, page, "Mode", MODE_TITLES[mode])
    for tokens in ("patches only", "CLS only", "CLS and patches"):
        changes(choose, page, "Tokens edited", tokens)
    for kind in ("random", "random, equally active", "all", "experts of the class"):
        changes(choose, page, "Features edited", kind)
    for name in ("plum", "the forgotten class"):
        changes(choose, page, "Experts of which class", name)


def test_a_list_of_ones_own(page):
    page.get_by_role("button", name="Advanced").click()
    mine = page.get_by_label("My list of latents")
    expect(mine).to_be_hidden()
    choose(page, "Features edited", "my list")
    expect(mine).to_be_visible()
    move_alpha(page, 1, curve="your selection")  # an empty list edits nothing, and is no mistake
    assert restored(page) == traces(page, "bars")["unlearned"]
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    mine.fill("1, 5, 9")
    mine.press("Enter")
    expect(page.get_by_text("Edited latents (3): 1, 5, 9")).to_be_visible()
    eventually(page, lambda: "your selection" in traces(page, "curves"))
    move_alpha(page, 5, curve="your selection")
    before = figures(page)
    for text, says in (("1, x", "'x' is not a latent id"), ("64", "latent 64 does not exist")):
        mine.fill(text)
        mine.press("Enter")
        warning(page, says)
        assert figures(page) == before
    mine.fill("40")
    mine.press("Enter")
    expect(page.get_by_text("Edited latents (1): 40")).to_be_visible()


# ---------------------------------------------------------------- packs


def test_a_pack_that_cannot_be_used_leaves_the_page_as_it_is(page):
    before = figures(page)
    choose(page, "Pack", "broken (cannot be used)")
    warning(page, "pack.json cannot be read")
    assert figures(page) == before
    page.locator("#picker button[title=plum]").first.click()
    expect(page.locator("#verdict")).to_contain_text("This plum")


def test_the_embedded_pack_and_back(page):
    """It opens on a boat that SalUn made the model forget, and the boat returns as alpha moves."""
    before = figures(page)
    choose(page, "Pack", Pack(ASSETS / "canvas").manifest.title)
    eventually(page, lambda: "▸ boat" in classes(page) and len(classes(page)) == len(canvas.OBJECTS))
    eventually(page, lambda: shown_class(page) == ["boat"])
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("SalUn, forgot boat")
    expect(page.locator("#model + *, .sod-note-model").first).to_contain_text("%")
    expect(page.locator("#verdict h3")).to_contain_text("boat returns at alpha")
    boat = canvas.OBJECTS.index("boat")
    eventually(page, lambda: restored(page)[boat] < 0.5 < traces(page, "bars")["original"][boat])
    move_alpha(page, 2)
    assert restored(page)[boat] > 0.5
    choose(page, "Pack", "Fruit, a tiny ViT")
    eventually(page, lambda: classes(page) == before[2])
    move_alpha(page, 0)
    eventually(page, lambda: figures(page) == before)


# ---------------------------------------------------------------- two visitors, other looks


def test_two_visitors_do_not_see_each_other(window, server, page):
    """Two tabs of one browser."""
    before = figures(page)
    with opened(window, server) as other:
        eventually(other, lambda: figures(other) == before)
        choose(other, "Unlearned model", "Retrained, forgot pear")
        eventually(other, lambda: classes(other)[1] == "▸ pear")
        other.locator("#picker button[title=plum]").last.click()
        expect(other.locator("#verdict")).to_contain_text("This plum")
        move_alpha(other, 4)
        assert figures(page) == before
        move_alpha(page, 5)
        assert traces(page, "bars")["original"] == before[0]["original"] and shown_class(page) == ["apple"]
        assert classes(other)[1] == "▸ pear" and shown_class(other) == ["plum"]
        expect(other.locator(ALPHA)).to_have_value("4")
        move_alpha(other, 5)
        assert classes(other)[1] == "▸ pear" and shown_class(other) == ["plum"]
    with opened(window, server) as third:  # whoever comes next starts afresh
        eventually(third, lambda: figures(third) == before)


def test_a_phone(browser, server):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    context = browser.new_context(**phone)
    with opened(context, server) as page:
        widths = "() => [document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth]"
        assert page.evaluate(widths) == [390, 390, 390]
        page.locator("#heat .sod-picture svg").first.locator("rect").nth(5).tap()
        expect(page.locator("#inspector tbody tr").first).to_be_visible()
        assert page.evaluate(widths) == [390, 390, 390]
        move_alpha(page, 5)
        for part in ("#bars", "#heat", "#curves", "#alpha", "#picker"):
            box = page.locator(part).bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= 390
        page.evaluate("() => document.querySelector('#curves').scrollIntoView()")
        eventually(page, lambda: 0 <= page.locator("#alpha").bounding_box()["y"] < 100)  # alpha stays in sight
    context.close()


def luminance(page: Page, selector: str, property: str) -> float:
    """0 (black) to 255 (white) of an element's computed colour."""
    colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{property}")
    red, green, blue = (float(part) for part in colour.split("(")[1].split(")")[0].split(",")[:3])
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes(window, server, theme):
    with opened(window, server, f"?__theme={theme}") as page:
        for selector, property in (
            ("#verdict h3", "color"),
            ("#verdict p", "color"),
            ("#bars td", "color"),
            ("#curves .ytick text", "fill"),
        ):
            assert abs(luminance(page, selector, property) - luminance(page, "gradio-app", "backgroundColor")) > 100
