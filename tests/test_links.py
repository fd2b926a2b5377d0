"""A link for every moment, the keys and the mode for the stage: what an address says, read again, and followed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import LAYERS, SHAPE, UNLEARNED, Server
from playwright.sync_api import BrowserContext, Page, expect
from test_page import ALPHA, choose, classes, eventually, heat, move_alpha, opened, pick_patch, restored, warning
from test_sweep import MOVE
from torch import Tensor, nn

from sod_core.packs.errors import PackError
from sod_core.restore.session import Session
from sod_core.ui import page as pages
from sod_core.ui.restore import links, shown
from sod_core.ui.restore.links import Link
from sod_core.ui.restore.opening import Opener
from sod_core.ui.restore.visitor import Controls, Visitor

PLAIN = Controls(LAYERS[1], "inject", 0.0)


@pytest.fixture
def known(pack, monkeypatch) -> None:
    for module in ("visitor", "opening"):
        monkeypatch.setattr(f"sod_core.ui.restore.{module}.shared_pack", lambda name: pack)
    monkeypatch.setattr("sod_core.ui.restore.links.folders", lambda: {"fruit": pack.manifest.folder})


def made(link: Link) -> Visitor:
    """As the page makes its visitor."""
    steps = Opener(None, None)._made(link.pack("fruit"), link)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def followed(asked: dict, default: Controls = PLAIN) -> tuple[Visitor, Controls, Link]:
    """What a page that opens at an address shows."""
    link = Link({key: str(value) for key, value in asked.items()}, "restore")
    visitor = made(link)
    return visitor, link.opened(visitor, default), link


def of(visitor: Visitor, controls: Controls) -> dict:
    return links.of(visitor, controls) | {"alpha": controls.alpha}


# ---------------------------------------------------------------- what a link says


@pytest.mark.parametrize(
    "controls",
    [
        PLAIN,
        Controls(LAYERS[0], "amplify", 3.45, "patches", "random", "plum", 12),
        Controls(LAYERS[1], "state_copy", 10.0, "cls", "own"),
        Controls(LAYERS[0], "add", 0.05, "all", "matched", "", 2**31 - 1),
    ],
)
def test_a_link_opens_what_it_was_written_for(known, controls):
    visitor = Visitor("fruit")
    visitor.choose_model("retrain-pear")
    visitor.choose_example(7)
    visitor.edit_own_list(controls.layer, "9, 1, 5")
    visitor.show_latent(controls.layer, 17)
    visitor.choose_patch(3)
    written = of(visitor, controls)
    other, found, link = followed(written)
    assert found == controls and link.problems == [] and of(other, found) == written
    assert (other.entry.id, other.example, other.patch) == ("retrain-pear", 7, 3)
    assert other.latent(controls.layer) == 17 and other.own_ids == ([1, 5, 9] if controls.features == "own" else [])
    visitor.version += 1
    assert shown.moving(visitor, controls)[1:3] == [
        text.replace(other.drawn(found), visitor.drawn(controls)) for text in shown.moving(other, found)[1:3]
    ]


@pytest.fixture
def passes(monkeypatch) -> list[nn.Module]:
    """Every model that runs over an image, in order."""
    found, run = [], Session._run

    def counted(session: Session, which: str, model: Callable[[], nn.Module], inputs: Tensor):
        found.append(model())
        return run(session, which, model, inputs)

    monkeypatch.setattr(Session, "_run", counted)
    return found


@pytest.mark.parametrize("place", range(len(UNLEARNED)))
def test_a_link_to_a_model_runs_no_other(known, pack, passes, place):
    id = list(UNLEARNED)[place]
    visitor = made(Link({"model": id}, "restore"))
    assert visitor.entry.id == id
    assert [run is pack.original() for run in passes] == [True, False]  # the original, and one more
    assert passes[1] is pack.unlearned(id)


def test_a_model_that_cannot_be_had_is_said_and_the_first_shown(known, pack, monkeypatch):
    first, other = list(UNLEARNED)[:2]
    load = type(pack).unlearned

    def damaged(pack, id):
        if id == other:
            raise PackError(f"{id} is damaged")
        return load(pack, id)

    monkeypatch.setattr(type(pack), "unlearned", damaged)
    link = Link({"model": other}, "restore")
    assert made(link).entry.id == first and link.problems == [f"{other} is damaged"]


def test_an_empty_address_is_the_page_as_it_always_opens(known):
    visitor, controls, link = followed({})
    assert controls == PLAIN and link.problems == [] and link.sentence() == ""
    assert of(visitor, controls) == of(Visitor("fruit"), PLAIN)


@pytest.mark.parametrize(
    "key, value",
    [
        ("pack", "vegetables"),
        ("pack", "../fruit"),
        ("pack", "/etc"),
        ("model", "nobody"),
        ("model", "/tmp/model.pth"),
        ("layer", "77"),
        ("layer", "x"),
        ("mode", "inject2"),
        ("alpha", "nan"),
        ("alpha", "11"),
        ("alpha", "-1"),
        ("alpha", "1e0"),
        ("example", "400"),
        ("example", "-1"),
        ("tokens", "some"),
        ("features", "none"),
        ("class", "boat"),
        ("seed", str(2**31)),
        ("seed", "٣"),
        ("latents", "1;rm"),
        ("latents", "1," * 5000),
        ("latent", "x"),
        ("patch", str(SHAPE.grid**2)),
    ],
)
def test_what_is_unknown_gets_a_sentence_and_the_default(known, key, value):
    visitor, controls, link = followed({key: value})
    assert controls == PLAIN and of(visitor, controls) == of(Visitor("fruit"), PLAIN)
    assert link.problems == [f"{key} '{value[:40].replace('/', '?').replace(';', '?')}'"]
    assert link.sentence().startswith("This link asks for what is not here: ") and "\n" not in link.sentence()


def test_what_does_not_exist_says_so(known):
    _, _, link = followed({"latent": "64", "latents": "1,64", "features": "own"})
    assert len(link.problems) == 2 and all("latent 64 does not exist" in said for said in link.problems)


def test_no_html_comes_back_from_a_link(known):
    asked = dict.fromkeys(("pack", "model", "class", "mode", "latents", "tab"), "<img src=x onerror=alert(1)>")
    link = Link(asked, "restore")
    link.opened(made(link), PLAIN)
    assert len(link.problems) == 6 and not re.search('[<>"&]', link.sentence())


def test_an_own_image_and_an_own_model_are_in_no_link(known, pack_folder, pack):
    visitor = Visitor("fruit")
    visitor.own_image(str(pack_folder / "examples" / "pear" / "0.png"))
    assert "example" not in links.of(visitor, PLAIN)
    assert links.lacking(visitor) == "The link does not hold your own image."
    file = pack.manifest.path(pack.manifest.unlearned[0].file)
    visitor.choose_model(visitor.add_model(file, "mine.pth", 0))
    written = links.of(visitor, PLAIN)
    assert "model" not in written and not any("/" in str(value) or "mine" in str(value) for value in written.values())
    assert links.lacking(visitor) == "The link does not hold your own image and your own model."


def test_an_address_is_another_tab_s():
    query = {"tab": "mask", "pack": "canvas-mask"}
    assert Link(query, "restore", "scoreboard").asked == {} and Link(query, "mask").asked == query
    assert Link({"pack": "fruit"}, "restore").asked == {"pack": "fruit"} and Link({"pack": "fruit"}, "mask").asked == {}
    unknown = Link({"tab": "nowhere", "pack": "fruit"}, "restore")
    assert unknown.asked["pack"] == "fruit" and unknown.problems == ["tab 'nowhere'"]


# ---------------------------------------------------------------- the page


@pytest.fixture
def page(window: BrowserContext, server: Server) -> Iterator[Page]:
    with opened(window, server) as page:
        yield page


def address(page: Page) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlsplit(page.url).query).items()}


def test_the_address_follows_and_opens_the_same_page(page, window, server):
    first = {"pack": "fruit", "model": "random_labels-apple", "mode": "inject", "alpha": "0"}
    eventually(page, lambda: first.items() <= address(page).items())
    choose(page, "Unlearned model", "Retrained, forgot pear")
    page.locator("#layer input[type=radio]").first.click()
    eventually(page, lambda: (address(page).get("model"), address(page)["layer"]) == ("retrain-pear", str(LAYERS[0])))
    page.locator("#picker button[title=plum]").last.click()
    expect(page.locator("#verdict")).to_contain_text("This plum")
    pick_patch(page, 5)
    row = page.locator("#inspector tbody tr").first
    latent = row.get_attribute("data-pick")
    row.click()
    expect(page.locator("#heat .sod-title")).to_contain_text(f"Where latent {latent} fires")
    move_alpha(page, 2.5)
    wanted = {"latent": latent, "patch": "5", "alpha": "2.5", "example": page_example(page)}
    eventually(page, lambda: wanted.items() <= address(page).items())
    query = "?" + urlsplit(page.url).query
    with opened(window, server, query) as other:
        expect(other.locator(ALPHA)).to_have_value("2.5")
        expect(other.get_by_role("combobox", name="Unlearned model")).to_have_value("Retrained, forgot pear")
        expect(other.locator("#heat .sod-title")).to_contain_text(f"Where latent {latent} fires")
        eventually(other, lambda: restored(other) == restored(page) and classes(other) == classes(page))
        assert figures_of(heat(other)) == figures_of(heat(page))
        expect(other.locator("#inspector tr.on")).to_have_attribute("data-pick", latent)
        eventually(other, lambda: "?" + urlsplit(other.url).query == query)
    page.get_by_role("tab", name="Scoreboard").click()
    eventually(page, lambda: address(page).get("tab") == "scoreboard")
    page.get_by_role("tab", name="Restore").click()
    eventually(page, lambda: "?" + urlsplit(page.url).query == query)


def page_example(page: Page) -> str:
    return page.locator("#picker button[title=plum]").last.get_attribute("data-pick")


def figures_of(markup: str) -> list[str]:
    return re.findall("<title>(.*?)</title>", markup)


def test_a_link_that_asks_for_what_is_not_here(window, server):
    with opened(window, server, "?pack=fruit&model=nobody&layer=99&alpha=1") as page:
        warning(page, "This link asks for what is not here: model 'nobody'; layer '99'.")
        expect(page.locator(ALPHA)).to_have_value("1")
        expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Random labels, forgot apple")
        eventually(page, lambda: address(page).get("model") == "random_labels-apple")


def test_a_link_to_a_tab(window, server):
    with opened_at(window, server, "?tab=scoreboard&pack=fruit&alpha=3") as page:
        expect(page.get_by_role("tab", name="Scoreboard")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#board-note")).to_contain_text("python -m sod_core evaluate --pack fruit --store")
        eventually(page, lambda: address(page).get("alpha") == "3" and address(page)["tab"] == "scoreboard")


class opened_at:
    """As `test_page.opened`, for a tab whose figures are others."""

    def __init__(self, window: BrowserContext, server: Server, query: str):
        self.page = window.new_page()
        self.page.goto(server.url + query)

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.page.close()


def test_a_change_of_the_address_asks_nobody(page):
    """Neither does the browser, for what Plotly names by an address."""
    eventually(page, lambda: "model" in address(page))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for alpha in ("0.5", "1"):
        page.evaluate(MOVE, alpha)
        eventually(page, lambda: address(page)["alpha"] == alpha)  # noqa: B023
        page.wait_for_timeout(200)
    clips = "() => Array.from(document.querySelectorAll('#curves [clip-path]'), e => e.getAttribute('clip-path'))"
    found = page.evaluate(clips)
    assert found and not any("http" in clip for clip in found) and asked == []


def test_copy_link(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    eventually(page, lambda: "model" in address(page))
    move_alpha(page, 4)
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#page-head [role=status]")).to_contain_text("Copied.")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == page.url and "alpha=4" in copied


def test_the_keys(page):
    eventually(page, lambda: "model" in address(page))
    page.keyboard.press("ArrowRight")
    expect(page.locator(ALPHA)).to_have_value("0.05")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.locator(ALPHA)).to_have_value("0.55")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(ALPHA)).to_have_value("0.5")
    eventually(page, lambda: address(page)["alpha"] == "0.5")
    layer = int(address(page)["layer"])
    page.keyboard.press("l")
    eventually(page, lambda: int(address(page)["layer"]) == LAYERS[(LAYERS.index(layer) + 1) % len(LAYERS)])
    page.keyboard.press("2")
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Retrained, forgot pear")
    eventually(page, lambda: address(page)["model"] == "retrain-pear")
    page.keyboard.press("9")  # there is no ninth
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    assert float(page.locator(ALPHA).input_value()) < 10
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Retrained, forgot pear")


def test_a_key_in_a_box_is_a_letter(page):
    page.get_by_role("button", name="Your own unlearned model").click()
    box = page.get_by_label("Checkpoint")
    box.fill("")
    box.press_sequentially("lcp2? x")
    expect(box).to_have_value("lcp2? x")
    assert page.evaluate("() => document.body.className").find("sod-present") < 0
    expect(page.locator("#page-head dialog")).to_be_hidden()
    expect(page.get_by_role("combobox", name="Unlearned model")).to_have_value("Random labels, forgot apple")


def test_all_keys_are_listed(page):
    page.keyboard.press("?")
    expect(page.locator("#page-head dialog")).to_be_visible()
    assert page.locator("#page-head kbd").all_inner_texts() == list(pages.KEYS)
    page.keyboard.press("l")  # the list is open: nothing moves
    page.keyboard.press("Escape")
    expect(page.locator("#page-head dialog")).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    expect(page.locator("#page-head dialog")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#page-head dialog")).to_be_hidden()


def test_the_stage(page):
    """The figure, alpha and Play fill the window, in large type; the rest goes, and comes back."""
    before = size(page, "#verdict h3")
    page.get_by_role("button", name="Present").click()
    gone = ("#pack", "#picker", "#curves", ".sod-header", "#layer")
    for selector in gone:
        expect(page.locator(selector).first).to_be_hidden()
    for selector in ("#verdict", "#bars", "#heat", "#alpha", "#play"):
        expect(page.locator(selector)).to_be_visible()
    assert size(page, "#verdict h3") > 1.3 * before and size(page, "#bars tr.restored td") >= 20
    height = page.evaluate("() => window.innerHeight")
    for selector in ("#bars .sod-bars", "#heat .sod-heats", "#alpha", "#play"):
        box = page.locator(selector).bounding_box()
        assert 0 <= box["y"] and box["y"] + box["height"] <= height
    page.keyboard.press("c")  # controls on
    expect(page.locator("#picker")).to_be_visible()
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    expect(page.locator(ALPHA)).to_have_value("0.05")
    page.keyboard.press("Escape")
    for selector in gone[1:]:
        expect(page.locator(selector).first).to_be_visible()
    assert size(page, "#verdict h3") == before


def size(page: Page, selector: str) -> float:
    """Pixels of an element's type."""
    return page.locator(selector).first.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")
