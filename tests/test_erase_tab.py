"""The Erase tab in a browser: drawing, heat by step, all objects, cancelling, and two visitors at once."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import Server, enter, serving, tab
from forks import Forks
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, expect
from test_exports import exported

from sod_core.erase.edit import Settings, factor_for
from sod_core.erase.pack import ErasePack
from sod_core.ui.erase import figures, links, menus
from sod_core.ui.erase import tab as erase_tab
from sod_core.ui.erase.panel import NO_STYLE

PATIENCE = 60_000


@pytest.fixture(scope="module")
def doodles(pack_folder: Path, erase_folder: Path, forks: Forks, tmp_path_factory) -> Iterator[Server]:
    """app.py on the restore pack `fruit` and the diffusion pack `doodles`."""
    folder = tmp_path_factory.mktemp("erase-server")
    shutil.copytree(pack_folder, folder / "packs" / "fruit")
    shutil.copytree(erase_folder, folder / "packs" / "doodles")
    with serving(folder / "packs", folder, forks=forks, TMPDIR=str(folder)) as found:
        yield found


@pytest.fixture
def page(window: BrowserContext, doodles: Server) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as page:
        page.set_viewport_size({"width": 1500, "height": 1200})
        open_tab(page, doodles)
        yield page
    assert not wrong


def open_tab(page: Page, server: Server) -> None:
    """Opens the advanced controls first: what a pack brings then stands in them before a test types anything."""
    page.goto(server.url)
    page.get_by_role("tab", name="Erase").click()
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    expect(steps(page)).to_be_visible()
    open_pack(page, "Doodles", "An image of sun in Van Gogh style.", "3 objects", 4)


def open_pack(page: Page, title: str, asked: str, objects: str, default_steps: int) -> None:
    """Waits for all that the pack brings."""
    choose(page, "#erase-pack", title)
    expect(prompt(page)).to_have_value(asked)
    expect(page.locator("#erase-grid")).to_contain_text(objects)
    expect(steps(page)).to_have_value(str(default_steps))


def open_canvas(page: Page) -> None:
    """The embedded pack: the tiny one is done before a click arrives."""
    open_pack(page, "Canvas world, small Stable Diffusion", "An image of boat in watercolour style.", "10 objects", 25)
    expect(pictures(page)).to_have_count(2)  # its stored pair


def pictures(page: Page) -> Locator:
    return page.locator("#erase-pictures img")


def steps(page: Page) -> Locator:
    fields = page.locator(".gradio-container").get_by_label("Denoising steps", exact=False)
    return fields.locator("visible=true").first


def choose(page: Page, menu: str, entry: str) -> None:
    page.locator(f"{menu} input").click()
    page.get_by_role("option", name=entry, exact=True).click()


def prompt(page: Page) -> Locator:
    return page.locator("#erase-prompt textarea")


def generate(page: Page) -> None:
    page.locator("#erase-generate").click()
    expect(page.locator("#erase-headline h3")).to_be_visible()
    expect(page.locator("#erase-generate")).to_be_visible()
    expect(page.locator("#erase-preview .sod-preview")).to_have_count(0)


def test_a_visitor_draws_with_and_without_a_concept(page: Page, tmp_path: Path) -> None:
    choose(page, "#erase-object", "dog")
    expect(prompt(page)).to_have_value("An image of dog in Van Gogh style.")
    choose(page, "#erase-style", "no style")
    expect(prompt(page)).to_have_value("An image of dog.")
    expect(page.locator("#erase-factor input[type=number]")).to_have_value("-20")  # the pack's best
    generate(page)
    expect(page.locator("#erase-headline")).to_contain_text("dog erased")
    expect(pictures(page)).to_have_count(2)
    sources = page.eval_on_selector_all("#erase-pictures img", "all => all.map(i => i.src)")
    assert sources[0] != sources[1]
    page.get_by_label("before, on the left, against after").press("ArrowRight")
    assert page.locator(".sod-compare").evaluate("figure => figure.style.getPropertyValue('--at')") == "51%"
    expect(page.locator("#erase-heat svg rect")).to_have_count(16)
    expect(page.locator("#erase-bars .js-plotly-plot .bars path").first).to_be_visible()
    before = page.locator("#erase-heat").inner_html()
    step = page.get_by_label("number input for Denoising step", exact=True).locator("visible=true")
    step.fill("1" if "at step 1" not in before else "0")
    step.press("Enter")
    expect(page.locator("#erase-heat .sod-title")).to_contain_text(re.compile("at step [01]"))
    saved = json.loads(exported(page, "erase", "json", tmp_path).read_text())
    assert saved["options"]["prompt"] == "An image of dog." and saved["options"]["concept"] == ["dog"]
    assert Image.open(exported(page, "erase", "gif", tmp_path)).n_frames == 2


def test_the_tab_opens_with_a_drawn_pair_and_another_pack_clears_it(page: Page, doodles: Server) -> None:
    expect(page.locator("#erase-headline h3")).to_have_count(0)  # Doodles stores none
    choose(page, "#erase-pack", "Canvas world, small Stable Diffusion")
    expect(page.locator("#erase-headline")).to_contain_text("boat erased")
    page.goto(f"{doodles.url}?tab=erase")
    expect(page.locator("#erase-headline")).to_contain_text("boat erased")
    expect(page.locator(".sod-compare img")).to_have_count(2)
    expect(page.locator("#erase-heat svg rect")).to_have_count(64)
    expect(page.locator("#erase-bars .js-plotly-plot .bars path").first).to_be_visible()
    page.goto(f"{doodles.url}?tab=erase&seed=1")  # what nobody drew
    expect(prompt(page)).to_have_value("An image of boat in watercolour style.")
    page.wait_for_timeout(300)
    expect(page.locator(".sod-compare img")).to_have_count(0)


def test_all_objects_are_shown_before_and_after(page: Page) -> None:
    page.locator("#erase-grid").click()
    expect(page.locator(".sod-objects figure")).to_have_count(3)
    expect(page.locator(".sod-objects img")).to_have_count(6)


def test_without_a_concept_nothing_changes_and_without_a_prompt_nothing_is_drawn(page: Page) -> None:
    page.locator("#erase-concepts input").press("Backspace")
    generate(page)
    expect(page.locator("#erase-headline")).to_contain_text("Nothing is erased")
    sources = page.eval_on_selector_all("#erase-pictures img", "all => all.map(i => i.src)")
    prompt(page).fill(" ")
    page.locator("#erase-generate").click()
    expect(page.get_by_text("write a prompt, or choose an object")).to_be_visible()
    expect(page.locator("#erase-generate")).to_be_visible()
    assert page.eval_on_selector_all("#erase-pictures img", "all => all.map(i => i.src)") == sources


@pytest.mark.parametrize("button", ("generate", "grid"))
def test_a_drawing_can_be_cancelled_and_the_next_one_works(page: Page, button: str) -> None:
    open_canvas(page)
    stored = pictures(page).first.get_attribute("src")
    enter(steps(page), "100")
    # from inside the page, as soon as it draws and (of one image) shows it: 100 steps are done within seconds
    shown = "'#erase-preview img'" if button == "generate" else "'#erase-cancel'"
    page.evaluate(
        f"""() => {{ const timer = setInterval(() => {{
            const cancel = document.querySelector('#erase-cancel');
            if (document.querySelector({shown}) && cancel?.offsetParent) {{
                clearInterval(timer); cancel.click(); window.cancelled = true;
            }}
        }}, 20); }}"""
    )
    page.locator(f"#erase-{button}").click()
    page.wait_for_function("window.cancelled")
    expect(page.locator("#erase-generate")).to_be_visible()
    expect(page.locator("#erase-preview .sod-preview")).to_have_count(0)
    assert page.locator(".sod-objects figure").count() == 0 and pictures(page).first.get_attribute("src") == stored
    enter(steps(page), "2")
    generate(page)
    expect(pictures(page).first).not_to_have_attribute("src", stored)


def test_a_second_drawing_ends_the_first_and_cancel_finds_it(page: Page) -> None:
    open_canvas(page)
    stored = pictures(page).first.get_attribute("src")
    enter(steps(page), "100")
    for _ in range(3):
        prompt(page).press("Enter")
    expect(page.locator("#erase-preview img").first).to_be_visible()
    prompt(page).fill(" ")
    prompt(page).press("Enter")  # refused, while another is drawn: that one keeps its button
    expect(page.get_by_text("write a prompt, or choose an object")).to_be_visible()
    page.locator("#erase-cancel").click()
    expect(page.locator("#erase-generate")).to_be_visible()
    expect(page.locator("#erase-preview .sod-preview")).to_have_count(0)
    assert pictures(page).first.get_attribute("src") == stored


def test_a_number_that_is_refused_leaves_no_bar_behind(page: Page) -> None:
    seed = page.get_by_label("Seed").locator("visible=true").first
    enter(seed, "-1", key="Tab")
    page.locator("#erase-generate").click()
    expect(page.locator(".toast-body").first).to_be_visible()
    expect(page.locator("#erase-preview .sod-preview")).to_have_count(0)
    seed.fill("1")
    generate(page)


def test_a_long_prompt_says_what_was_not_read(page: Page) -> None:
    prompt(page).fill("x " * 80 + "boat")
    generate(page)
    expect(page.locator("#erase-headline")).to_contain_text("it did not read")
    expect(page.locator("#erase-headline")).to_contain_text("boat”")


def test_two_visitors_see_their_own(page: Page, window: BrowserContext, doodles: Server) -> None:
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as other:
        open_tab(other, doodles)
        pages = {"dog": page, "cat": other}
        for name, page in pages.items():
            choose(page, "#erase-object", name)
            expect(prompt(page)).to_have_value(f"An image of {name} in Van Gogh style.")
        for page in pages.values():
            page.locator("#erase-generate").click()
        for name, page in pages.items():
            expect(page.locator("#erase-headline")).to_contain_text(f"{name} erased")
    assert not wrong


def test_controls_are_read_with_care() -> None:
    good = ["x", ["cat"], "one", -1, "exact", 0, 99, False, 25, 4, 7, ""]
    assert erase_tab.read(tuple(good)).seed == 7
    assert erase_tab.read(tuple([*good[:8], 10_000, 4, 7, None])).steps == 100
    wrong = (0, " ", "prompt"), (6, None, "percentile"), (10, None, "seed"), (8, None, "steps"), (5, 25, "nothing")
    wrong += (10, -1, "seed -1"), (10, 10**20, "seed 10+ is out of range")
    for place, value, said in wrong:
        with pytest.raises(ValueError, match=said):
            erase_tab.read(tuple([*good[:place], value, *good[place + 1 :]]))


def test_a_page_that_loads_late_does_not_overwrite_a_choice(erase_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(erase_tab, "shared_erase_pack", lambda name: ErasePack(erase_folder))
    opened = erase_tab._Opened()
    filled = erase_tab._open(opened, "doodles")
    assert filled[3] == "An image of sun in Van Gogh style."
    request = SimpleNamespace(query_params={})
    for late in (erase_tab._first(request, opened, "canvas-diffusion"), erase_tab._open(opened, "doodles")):
        assert late == gr.skip()
    first = erase_tab._first(request, erase_tab._Opened(), "doodles")
    assert opened.name == first[0] == "doodles" and first[5 + 3] == filled[3]


# ---------------------------------------------------------------- links


OPENING = links.Opening("sun", "Van_Gogh", "a sun", ["sun"], "random", -22.0, "exact", 0, 95.0, False, 4, 4.0, 0)


def followed(asked: dict, erase_folder: Path, monkeypatch) -> tuple[links.Opening, links.Link]:
    monkeypatch.setattr(links, "folders", lambda: {"doodles": erase_folder})
    link = links.Link({"tab": "erase"} | {key: str(value) for key, value in asked.items()}, "erase")
    assert link.pack("doodles") == "doodles"
    return link.opened(ErasePack(erase_folder), OPENING, NO_STYLE), link


def written(shown: links.Opening) -> dict[str, str]:
    found = re.search('data-values="(.*?)"', links.element("doodles", shown))
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(
    "shown",
    [
        OPENING,
        links.Opening(
            "cat",
            NO_STYLE,
            'cats & <b>dogs</b>; "x"',
            ["cat", "dog"],
            "random",
            -3.5,
            "reference",
            2,
            99.9,
            True,
            7,
            0.5,
            12,
        ),
        OPENING._replace(concepts=[]),
        OPENING._replace(concepts=["cat", "sun"], factors="-8, 0.5"),
    ],
)
def test_a_link_opens_what_it_was_written_for(erase_folder, monkeypatch, shown):
    found, link = followed(written(shown), erase_folder, monkeypatch)
    assert found == shown and link.problems == []


def test_what_a_link_leaves_out_and_cannot_hold():
    assert not {"fidelity", "start_step", "beta", "seed"} & written(OPENING).keys()
    for prompt in ("x" * 301, "a dog\nand a cat", "a\u200bdog"):
        other = OPENING._replace(prompt=prompt)
        assert "prompt" not in written(other) and "and not this one" in links.element("doodles", other)


def test_values_that_are_not_here_leave_the_default_and_a_sentence(erase_folder, monkeypatch):
    wrong = {"pack": "/etc", "object": "horse", "style": "Monet", "prompt": "y" * 301, "concepts": "cat;horse"}
    wrong |= {"sae": "../x", "factor": "nan", "fidelity": "much", "start_step": "-1", "percentile": "101"}
    wrong |= {"beta": "2", "steps": "101", "guidance": "1e9", "seed": "9999999999"}
    found, link = followed(wrong, erase_folder, monkeypatch)
    assert found == OPENING and len(link.problems) == len(wrong)
    assert link.sentence().startswith("This link asks for what is not here: pack '?etc'; ")
    assert "object 'horse'" in link.sentence() and "concepts 'cat?horse'" in link.sentence()


def test_the_address_follows_and_opens_the_same_page(page: Page, window, doodles: Server) -> None:
    choose(page, "#erase-object", "dog")
    expect(prompt(page)).to_have_value("An image of dog in Van Gogh style.")
    prompt(page).fill("Two dogs & a cat")
    enter(page.locator("#erase-factor input[type=number]"), "-3.5")
    page.wait_for_function("() => new URLSearchParams(location.search).get('prompt') === 'Two dogs & a cat'")
    page.wait_for_function("() => new URLSearchParams(location.search).get('factor') === '-3.5'")
    with tab(window, PATIENCE, []) as other:
        other.goto(page.url)
        expect(other.get_by_role("tab", name="Erase")).to_have_attribute("aria-selected", "true")
        expect(prompt(other)).to_have_value("Two dogs & a cat")
        expect(other.locator("#erase-object input")).to_have_value("dog")
        expect(other.locator("#erase-factor input[type=number]")).to_have_value("-3.5")
        expect(other.locator("#erase-pack input")).to_have_value("Doodles")
        other.wait_for_function("address => location.href === address", arg=page.url)
    with tab(window, PATIENCE, []) as other:
        other.goto(f"{doodles.url}?tab=erase&pack=doodles&object=horse")
        expect(other.get_by_test_id("toast-text").filter(has_text="object 'horse'")).to_be_visible()
        expect(prompt(other)).to_have_value("An image of sun in Van Gogh style.")


def test_each_of_several_concepts_has_its_own_factor(page: Page, tmp_path: Path) -> None:
    factor, each = page.locator("#erase-factor"), page.locator("#erase-factors textarea, #erase-factors input")
    choose(page, "#erase-object", "dog")
    expect(factor.locator("input[type=number]")).to_have_value("-20")
    expect(page.get_by_role("option")).to_have_count(0)
    expect(each).to_be_hidden()
    choose(page, "#erase-concepts", "sun")
    expect(each).to_have_value("-20, -22")  # the pack's best of each
    expect(page.locator("#erase-factors")).to_contain_text("Factor of each: dog, sun")
    expect(factor).to_be_hidden()
    each.fill("-3, 0.5")
    page.wait_for_function("() => new URLSearchParams(location.search).get('factors') === '-3, 0.5'")
    generate(page)
    expect(page.locator("#erase-headline")).to_contain_text("factors -3, 0.5, exact")
    saved = json.loads(exported(page, "erase", "json", tmp_path).read_text())
    assert saved["options"]["factor"] == [-3.0, 0.5]
    each.fill("-3")
    page.locator("#erase-generate").click()
    said = "1 factors for 2 concepts: write one for each of dog, sun"
    expect(page.get_by_test_id("toast-text").filter(has_text=said)).to_be_visible()


def test_factors_are_read_with_care() -> None:
    assert menus.factors(" -8;−2.5  0", ["a", "b", "c"]) == (-8.0, -2.5, 0.0)
    assert menus.written((-8.0, 0.25)) == "-8, 0.25"
    for text, said in (
        ("-8", "1 factors for 2"),
        ("", "0 factors for 2"),
        ("1, x", "'x' is no"),
        ("1, 1e9", "'1e9' is"),
    ):
        with pytest.raises(ValueError, match=said):
            menus.factors(text, ["a", "b"])


def test_beta_scales_in_both_fidelities(erase_folder: Path) -> None:
    pack = ErasePack(erase_folder)
    for fidelity in ("exact", "reference"):
        values = ("x", ["dog", "cat"], "random", 0.0, fidelity, 1, 95.0, True, 4, 4.0, 0, "-20, -3")
        how = erase_tab.settings(pack, erase_tab.read(values))
        assert how.beta and how.factor is None and how.start_step == 1 and how.fidelity == fidelity
        for concept, multiplier, factor in zip(how.concepts, how.each("multiplier"), (-20, -3)):
            assert factor_for(pack.statistics("random"), concept, multiplier, 95) == pytest.approx(factor)


def test_judge_bars_mark_what_is_erased() -> None:
    rows = {"object": [{"cat": 0.9, "dog": 0.1}, {"cat": 0.2, "dog": 0.8}]}
    figure = figures.judge_bars(rows, ("cat",))
    assert [list(trace.y) for trace in figure.data] == [[0.9, 0.1], [0.2, 0.8]]
    assert list(figure.data[0].x) == ["<b>▸ cat</b>", "dog"]
    assert figures.judge_bars({}, ("cat",)) is None


def shown(left_out: str = "", **how: object) -> SimpleNamespace:
    settings = Settings(("cat",), **{"factor": 0.0, **how})
    return SimpleNamespace(how=settings, left_out=left_out, judged={}, drawn=SimpleNamespace(heat=None))


def test_the_headline_claims_no_erasure_that_there_is_not() -> None:
    assert figures.headline(shown()).startswith("### cat erased")
    assert figures.headline(shown(factor=1.0)).startswith("### Nothing is erased.")
    assert figures.headline(shown(factor=1.0, fidelity="reference")).startswith("### cat erased")  # the error's sign


def test_a_headline_stays_short_whatever_was_not_read() -> None:
    said = figures.headline(shown("red sail " + "in the evening sun " * 90 + "and a boat"))
    assert len(said) < 300 and "“red sail in" in said and " ... " in said and "and a boat”" in said
