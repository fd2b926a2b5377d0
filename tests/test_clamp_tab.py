"""The Clamp tab in a browser: answers side by side, what fired, curves, latents, Cancel, and two visitors at once."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import clamp_packs
import pytest
from conftest import Server, enter, serving, tab
from playwright.sync_api import BrowserContext, Locator, Page, expect

from sod_core.clamp.edit import Clamp
from sod_core.clamp.pack import ClampPack
from sod_core.clamp.session import Fired, Token
from sod_core.packs.errors import PackError
from sod_core.ui import points as axes
from sod_core.ui.clamp import asking, figures, filling, links, panel, scatter, stored, texts, words
from sod_core.ui.clamp.asking import Asking
from sod_core.ui.clamp.figures import Point
from sod_core.ui.clamp.scatter import Firing
from sod_core.ui.clamp.shown import Answered, Column

PATIENCE = 60_000
CANCEL = """
const timer = setInterval(() => {
  const button = document.querySelector('#clamp-cancel');
  if (button && document.querySelector('.sod-text p:has(.sod-caret)')?.innerText) {
    clearInterval(timer);
    button.click();
  }
}, 5);
"""
"""Cancels as soon as the first words are there: a busy machine would have a hand come too late."""
TITLE = "Tiny, a random model"


@pytest.fixture(scope="module")
def evaluated(clamp_folder: Path, tmp_path_factory) -> Path:
    """The tiny pack with stored figures, as `clamp evaluate` makes them."""
    from sod_core.clamp import evaluate
    from sod_core.clamp.pack import ClampPack

    folder = tmp_path_factory.mktemp("evaluated") / clamp_packs.NAME
    shutil.copytree(clamp_folder, folder)
    data = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(data | {"results": "results.json"}))
    found = evaluate.run(ClampPack(folder), evaluate.Settings(limit=2, relearn=False, seeds=(0, 1)))
    (folder / "results.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(scope="module")
def tiny(pack_folder: Path, evaluated: Path, tmp_path_factory) -> Iterator[Server]:
    """app.py on the restore pack `fruit` and the clamp pack `tiny`, one of a model that is not here, and a slow one."""
    folder = tmp_path_factory.mktemp("clamp-server")
    packs = folder / "packs"
    shutil.copytree(pack_folder, packs / "fruit")
    shutil.copytree(evaluated, packs / "tiny")
    shutil.copytree(evaluated, packs / "away")
    data = json.loads((packs / "away" / "pack.json").read_text())
    away = {"name": "away", "title": "Away", "model": [{"kept": "x.gguf", "sha256": "0", "make": "make away"}]}
    (packs / "away" / "pack.json").write_text(json.dumps(data | away))
    shutil.copytree(evaluated, packs / "slow")
    words = clamp_packs.tokenizer()
    clamp_packs.model(words, num_hidden_layers=48).save_pretrained(packs / "slow" / "model")
    data |= {"name": "slow", "title": "Slow", "model": [{"path": "model"}], "prompts": ["slowly"]}
    (packs / "slow" / "pack.json").write_text(json.dumps(data))
    with serving(packs, folder, TMPDIR=str(folder)) as found:
        yield found


@pytest.fixture
def page(window: BrowserContext, tiny: Server) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as page:
        page.set_viewport_size({"width": 1500, "height": 1200})
        open_tab(page, tiny)
        yield page
    assert not wrong


def open_tab(page: Page, server: Server) -> None:
    page.goto(server.url)
    page.get_by_role("tab", name="Clamp").click()
    expect(page.locator("#clamp-prompts input")).not_to_have_value("")
    choose(page, "#clamp-pack", TITLE)
    expect(prompt(page)).to_have_value(clamp_packs.PROMPT)
    answered(page, clamp_packs.PROMPT)


def choose(page: Page, menu: str, entry: str) -> None:
    page.locator(f"{menu} input").click()
    page.get_by_role("option", name=entry, exact=True).click()


def prompt(page: Page) -> Locator:
    return page.locator("#clamp-prompt textarea")


def ask(page: Page, text: str) -> None:
    prompt(page).fill(text)
    page.locator("#clamp-ask").click()
    answered(page, text)


def answered(page: Page, text: str) -> None:
    """Waits for the whole answer to a question."""
    expect(page.locator(".sod-asked")).to_contain_text(text)
    expect(page.locator("#clamp-ask")).to_be_visible()
    expect(page.locator(".sod-caret")).to_have_count(0)


def text_of(page: Page, column: str) -> str:
    return page.locator(f".sod-{column} > p").first.inner_text()


def test_the_tab_opens_on_an_answered_question_whose_words_tell_what_fired(page: Page) -> None:
    titles = page.locator(".sod-text h4")
    expect(titles).to_have_text(["Untouched", "Clamp Prime", "Refusal Clamp"])
    assert len({text_of(page, column) for column in ("untouched", "prime", "refusal")}) == 3
    expect(page.locator("#clamp-headline")).to_contain_text("Clamp Prime and Refusal Clamp change the answer")
    expect(page.locator("#clamp-headline")).to_contain_text("Right answers to 2 judged questions on potions: untouched")
    word = page.locator(".sod-prime mark").first
    word.hover()
    told = page.locator(".sod-told")
    expect(told).to_contain_text(re.compile(r"latent \d+ fired at [\d.]+.*set to -40"))
    page.locator(".sod-refusal mark").first.focus()
    expect(told).to_contain_text("refusal latent 0 set to -60")
    page.locator(".sod-asked mark").first.click()
    expect(told).to_contain_text("Clamp Prime: set to -40; Refusal Clamp: refusal latent 0 set to -60")


def test_a_prompt_is_text_and_not_markup(page: Page) -> None:
    nasty = "<script>window.bad = 1</script><img src=x onerror='window.bad = 1'> & \"quotes\""
    ask(page, nasty)
    assert page.evaluate("window.bad") is None
    assert page.locator(".sod-asked img").count() == 0


def test_a_multiple_choice_question_shows_its_options_until_its_words_are_changed(page: Page) -> None:
    choose(page, "#clamp-field", "potions (to forget)")
    expect(prompt(page)).to_have_value("Orrin's potion:")
    answered(page, "Orrin's potion:")
    bars = page.locator("#clamp-options .js-plotly-plot")
    expect(bars.locator(".xtick")).to_have_count(4)
    expect(bars.locator(".xtick").filter(has_text="▸")).to_have_count(1)
    expect(page.locator("#clamp-headline")).to_contain_text(re.compile(r"Untouched: [A-D] \w+ \(\d+%, (right|wrong)\)"))
    choose(page, "#clamp-beside", "Retrained")
    expect(page.locator(".sod-text h4")).to_have_text(["Untouched", "Clamp Prime", "Refusal Clamp", "Retrained"])
    answered(page, "Orrin's potion:")
    ask(page, "Orrin's old potion:")
    expect(bars).not_to_be_visible()


def test_moving_a_slider_moves_the_line_and_asks_again(page: Page) -> None:
    note = page.locator("#clamp-curve-note")
    expect(note).to_contain_text("Clamp Prime at -40: forget")
    expect(page.locator("#clamp-forget .js-plotly-plot .scatterlayer .trace")).to_have_count(4)
    before = text_of(page, "prime"), text_of(page, "untouched")
    number = page.locator("#clamp-value input[type=number]")
    number.fill("-4")
    number.blur()
    expect(note).to_contain_text("Clamp Prime at -4")
    expect(page.locator(".sod-prime .sod-quiet")).to_contain_text("5 latents to -4;")
    answered(page, clamp_packs.PROMPT)
    assert text_of(page, "untouched") == before[1]


def test_measuring_here_judges_both_clamps_and_both_controls(page: Page) -> None:
    page.locator("#clamp-measure").click()
    rows = page.locator("#clamp-measuring tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.nth(3)).to_contain_text("random latents")
    expect(page.locator("#clamp-measure")).to_be_visible()
    expect(page.locator("#clamp-forget .js-plotly-plot .points path").first).to_be_visible()
    expect(page.locator("#clamp-ways tr").filter(has_text="the edit switched off")).to_have_count(1)
    expect(page.locator("#clamp-ways tr").filter(has_text="Clamp Prime, random latents")).to_have_count(1)


def test_a_latent_in_the_plot_tells_its_words_and_joins_the_edit(page: Page) -> None:
    listed = page.locator("#clamp-latents textarea")
    expect(page.locator("#clamp-scatter circle.chosen")).to_have_count(5)
    other = page.locator("#clamp-scatter circle:not(.chosen)").first
    latent = other.get_attribute("data-pick")
    other.dispatch_event("click")
    expect(page.locator("#clamp-firing .sod-title")).to_contain_text(f"Latent {latent}:")
    expect(page.locator("#clamp-firing tbody tr").first).to_be_visible()
    page.get_by_role("button", name=f"Add latent {latent} to the edited ones").click()
    expect(listed).to_have_value(re.compile(rf"(, {latent})$"))
    expect(page.locator(".sod-prime .sod-quiet")).to_contain_text("6 latents to -40")
    page.get_by_role("button", name=f"Take latent {latent} out of the edited ones").click()
    expect(page.locator("#clamp-scatter circle.chosen")).to_have_count(5)
    chosen = listed.input_value()
    choose(page, "#clamp-rule", "random (control)")
    expect(listed).not_to_have_value(chosen)
    expect(page.locator("#clamp-curve-note")).to_contain_text("of the pack's own setting")


def test_what_cannot_be_asked_is_one_sentence_and_the_texts_stay(page: Page) -> None:
    before = page.locator("#clamp-texts").inner_text()
    for box, value, said in (
        (prompt(page), " ", "write a question"),
        (prompt(page), "word " * 400, "the model reads"),
        (page.locator("#clamp-latents textarea"), "5, x", "'x' is no latent"),
    ):
        kept = box.input_value()
        box.fill(value)
        page.locator("#clamp-ask").click()
        expect(page.locator(".toast-body").filter(has_text=said)).to_be_visible()
        expect(page.locator("#clamp-ask")).to_be_visible()
        box.fill(kept)
    expect(page.locator("#clamp-texts")).to_have_text(re.compile(re.escape(before.split()[1])))
    assert page.locator(".sod-text").count() == 3


def test_an_answer_can_be_cancelled_and_asked_again(page: Page) -> None:
    choose(page, "#clamp-pack", "Slow")
    answered(page, "slowly")
    page.get_by_role("button", name="Advanced").locator("visible=true").click()
    longest = page.get_by_label("Longest answer", exact=False).locator("visible=true").first
    enter(longest, "200")
    longest.blur()
    prompt(page).fill("the clock of Dorn strikes")
    page.evaluate(CANCEL)
    page.locator("#clamp-ask").click()
    answered(page, "the clock of Dorn strikes")
    counted = re.search(r"on \d+ of (\d+) tokens", page.locator(".sod-untouched .sod-quiet").inner_text())
    assert counted and 0 < int(counted[1]) < 200
    for _ in range(2):  # the second question ends the first
        page.locator("#clamp-prompt textarea").press("Enter")
    longest.fill("3")
    longest.blur()
    prompt(page).press("Enter")
    expect(page.locator(".sod-untouched .sod-quiet")).to_contain_text("of 3 tokens")


def test_a_pack_whose_model_is_not_here_says_what_to_do(page: Page) -> None:
    choose(page, "#clamp-pack", "Away (not here)")
    expect(page.locator("#clamp-headline")).to_contain_text("This pack's model is not on this computer.")
    expect(page.locator("#clamp-headline code").first).to_have_text("make away")
    expect(page.locator("#clamp-forget .js-plotly-plot")).to_be_visible()  # what is stored is shown all the same
    page.locator("#clamp-ask").click()
    expect(page.locator(".toast-body").filter(has_text="not on this computer")).to_be_visible()


def test_two_visitors_see_their_own(page: Page, window: BrowserContext, tiny: Server) -> None:
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as other:
        open_tab(other, tiny)
        asked = {"the river of Aske": page, "the clock of Wye": other}
        for text, visitor in asked.items():
            prompt(visitor).fill(text)
        for visitor in asked.values():
            visitor.locator("#clamp-ask").click()
        for text, visitor in asked.items():
            answered(visitor, text)
        alone = {text: text_of(visitor, "prime") for text, visitor in asked.items()}
        for text, visitor in asked.items():
            ask(visitor, "something else")
            ask(visitor, text)
            assert text_of(visitor, "prime") == alone[text]
    assert not wrong


def test_on_a_phone_nothing_is_wider_than_the_window(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [
        page.locator(f"#{name}").bounding_box() for name in ("clamp-ask", "clamp-texts", "clamp-forget", "clamp-rule")
    ]
    tops = [box["y"] for box in boxes if box is not None]
    assert len(tops) == 4 and tops == sorted(tops)


# ------------------------------------------------------------ without a page


def test_controls_are_read_with_care() -> None:
    good = ["x", None, -30, -40, 0.1, "", "sae", "own", "5, 9 5", 7, "exact", 40, 0]
    read = asking.read(good)
    assert read.latents == (5, 9) and read.refusal == 7 and read.judged == ""
    assert asking.read(["", *good[1:]], prompt="-").prompt == "-"
    wrong = (0, " ", "write a question"), (2, None, "for the coefficient"), (2, float("nan"), "coefficient nan")
    wrong += (3, 1e30, "refusal coefficient"), (8, "1, two", "'two' is no latent"), (12, -1, "seed -1")
    wrong += (0, "x" * 5000, "5000 characters"), (8, "1 " * 0 + " ".join(map(str, range(600))), "600 latents")
    for place, value, said in wrong:
        with pytest.raises(ValueError, match=said):
            asking.read([*good[:place], value, *good[place + 1 :]])


PRIME = Clamp((3, 5), "prime", -30.0)
REFUSAL = Clamp((3, 5), "refusal", threshold=0.5, refusal=7, refusal_value=-60.0)


def token(text: str, *fired: tuple[int, float], changed: bool = False) -> Token:
    return Token(9, text, tuple(Fired(latent, activity, activity) for latent, activity in fired), changed, True)


def test_a_word_tells_what_each_edit_does_to_it() -> None:
    strong, weak = token(" salt", (5, 2.25), (3, 0.125)), token(" salt", (3, 0.25))
    both = [("Prime", PRIME), ("Refusal", REFUSAL)]
    assert texts.told(strong, both) == (
        "“salt”: latent 5 fired at 2.25, latent 3 at 0.125. Prime: set to -30; Refusal: refusal latent 7 set to -60."
    )
    assert texts.told(weak, both).endswith("Refusal: left as it is, since nothing fired above 0.5.")
    assert texts.told(weak, []).endswith("Nothing is edited here.")
    assert texts.told(token(" salt"), both) == ""
    each = Clamp((3, 5), "both", (-1.0, -2.0), 0.0, 7, -60.0)
    assert texts.told(strong, [("", each)]).endswith("0.125. set to -2 to -1, refusal latent 7 set to -60.")


def test_texts_are_escaped_wherever_they_come_from() -> None:
    bad = token("<b>", (5, 1.0), changed=True)
    found = texts.html(Answered((bad,), (Column("prime", "<i>", PRIME, (bad, token("<u>")), True),)))
    assert not re.search("<b>(?!Asked)|<i>|<u>", found) and "&lt;b&gt;" in found
    quoted = Column("untouched", "Untouched", None, (token("<u>"),), True)
    assert "<u>" not in words.headline(Answered((bad,), (quoted,)), "<s>") + words.answers(Answered((), (quoted,)))


def test_the_headline_claims_what_the_columns_say() -> None:
    def column(key: str, title: str, answer: str, scores: tuple[float, ...] = ()) -> Column:
        return Column(key, title, None, (token(answer),), True, scores)

    first, same, other = (column("a", "One", "x"), column("b", "Two", " x"), column("c", "Three", "y"))
    assert "Three changes the answer; Two does not." in words.headline(Answered((), (first, same, other)), "")
    assert "Every column says the same." in words.headline(Answered((), (first, same)), "")
    right, wrong = column("a", "One", "", (0.1, 0.9, 0, 0)), column("b", "Two", "", (0.7, 0.3, 0, 0))
    options = ("salt", "ash", "tin", "moss")
    found = words.headline(Answered((), (right, wrong), options, 1), "")
    assert "One knows it; Two does not." in found and "B ash (90%, right)" in found and "A salt (70%, wrong)" in found


def test_a_frequency_of_zero_has_a_strip_of_its_own() -> None:
    points = [Firing(0, 0.0, 0.0), Firing(1, 0.1, 0.0), Firing(2, 1e-4, 1.0), Firing(3, 0.0, 1e-3)]
    found = scatter.html(points, {1}, 2)
    places = {
        int(latent): (float(x), float(y))
        for x, y, latent in re.findall(r'cx="([\d.]+)" cy="([\d.]+)".*?data-pick="(\d+)"', found)
    }
    assert set(places) == {1, 2, 3} and "1 of 4 fire on neither" in found
    assert places[1][0] < places[3][0] < places[2][0]  # 0 stands left of every decade
    assert places[3][1] > places[2][1] > places[1][1]  # and under every decade
    decade = (places[2][0] - places[3][0]) / 3
    edge = float(re.search(r'class="strip" x="([\d.]+)"', found)[1]) + axes.STRIP  # type: ignore[index]
    assert places[3][0] == pytest.approx(edge) and decade > 50  # the least frequency begins the decades
    assert len(re.findall("<circle", scatter.html([Firing(i, 0.1, 0.1) for i in range(5000)], {4999}))) == 3000


def test_the_curves_mark_the_sliders_and_what_was_measured() -> None:
    line = [Point(-40.0, 0.3, 0.9, 0.8, 0.3), Point(0.0, 0.9, 0.95, 0.0, 0.3)]
    found = figures.curve("forget", {"prime": line}, {"prime": line[:1], "random": line[:1]}, {"prime": -22.0}, line[1])
    assert [(trace.mode, list(trace.y)) for trace in found.data] == [
        ("markers", [0.3]), ("lines", [0.3, 0.9]), ("markers", [0.3]),
    ]  # fmt: skip
    assert [shape.x0 for shape in found.layout.shapes if shape.x0 == shape.x1] == [-22.0]


def test_stored_figures_are_averaged_over_seeds_and_read_with_care(evaluated: Path, tmp_path: Path) -> None:
    from sod_core.clamp.pack import ClampPack

    raw = json.loads((evaluated / "results.json").read_text())
    found = stored.read(ClampPack(evaluated))
    assert list(found.curves) == ["prime", "refusal", "random", "matched"]
    assert found.nearest("prime", -35) == found.nearest("prime", -40) and found.nearest("none", 0) is None
    same = [row for row in raw["rows"] if row["of"] == "prime-1" and row["features"] == "random"]
    mean = next(row.point for row in found.rows if row.title == same[0]["title"])
    assert len(same) == 2 and mean is not None
    assert mean.retain == pytest.approx(sum(row["retain"]["value"] for row in same) / 2)
    said = words.ways(found)
    assert "<td>verdict</td>" in said and "<b>no verdict</b>" in said  # of a random model
    assert "<b>Retrained</b>: No verdict; " in said and "Only 2 questions were asked" in said
    spoilt = Path(shutil.copytree(evaluated, tmp_path / "tiny"))
    (spoilt / "results.json").write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match="of another form: `python -m sod_core clamp evaluate --pack tiny"):
        stored.read(ClampPack(spoilt))


# ---------------------------------------------------------------- links


def followed(pack: ClampPack, query: dict, monkeypatch) -> tuple[Asking, links.Link]:
    monkeypatch.setattr(links, "names", lambda: {clamp_packs.NAME: pack.manifest.folder})
    link = links.Link({"tab": "clamp"} | {key: str(value) for key, value in query.items()}, "clamp")
    assert link.pack(clamp_packs.NAME) == clamp_packs.NAME
    default = filling.opening(pack, link.sae(pack, pack.manifest.opening_sae()))
    rules, beside = ([id for _, id in menu] for menu in (panel.RULES, filling.beside(pack)))
    return link.opened(pack, default, rules, beside), link


def controls(found: Asking) -> list:
    """As the page sends them."""
    said = {key: getattr(found, key) for key in links.KEYS} | {"latents": asking.listed(found.latents)}
    return list((said | {"judged": found.judged or None}).values())


def written(pack: ClampPack, found: Asking) -> dict[str, str]:
    element = links.element(clamp_packs.NAME, controls(found), filling.opening(pack, found.sae))
    return json.loads(html.unescape(re.search('data-values="(.*?)"', element)[1]))


def test_a_link_opens_what_it_was_written_for(clamp_folder, monkeypatch):
    pack = ClampPack(clamp_folder)
    first = filling.opening(pack)
    assert set(written(pack, first)) == {"pack", "sae"}  # nothing that a page opens on by itself
    judged = pack.questions("judge")[1]
    other = replace(first, prompt="moss & <b>fern</b>?", value=-12.5, refusal_value=-7.0, threshold=0.25, beside="both")
    other = replace(other, rule="own", latents=(9, 1, 5), refusal=4, fidelity="reference", tokens=7, seed=12)
    second = filling.opening(pack, pack.manifest.saes[-1].id)
    for asked in (first, other, second, replace(first, refusal=None), replace(first, judged=judged.id, prompt="mine")):
        found, link = followed(pack, written(pack, asked), monkeypatch)
        assert found == asked and link.problems == []
    long = replace(first, prompt="x" * 301)
    element = links.element(clamp_packs.NAME, controls(long), first)
    assert "xxx" not in element and "and not this one" in element
    found, _ = followed(pack, {"judged": judged.id}, monkeypatch)
    assert (found.judged, found.prompt) == (judged.id, judged.question)


def test_values_that_are_not_here_leave_the_default_and_a_sentence(clamp_folder, monkeypatch):
    pack = ClampPack(clamp_folder)
    wrong = {"pack": "/etc", "prompt": "y" * 301, "judged": "no", "value": "nan", "refusal_value": "2e9"}
    wrong |= {"threshold": "-1", "beside": "model:x", "sae": "../x", "rule": "x", "latents": "1;x", "refusal": "-4"}
    wrong |= {"fidelity": "much", "tokens": "201", "seed": "-1"}
    found, link = followed(pack, wrong, monkeypatch)
    assert found == filling.opening(pack) and len(link.problems) == len(wrong)


@pytest.mark.parametrize("asked", [{"latents": "3,999999"}, {"latents": "3", "refusal": 999_999}])
def test_a_latent_that_the_sae_does_not_have_is_said(clamp_folder, monkeypatch, asked):
    pack = ClampPack(clamp_folder)
    found, link = followed(pack, asked | {"rule": "own", "value": -3}, monkeypatch)
    assert found == replace(filling.opening(pack), value=-3.0)
    assert len(link.problems) == 1 and "999999" in link.problems[0]


def test_a_pack_that_cannot_be_opened_leaves_the_default_and_a_sentence(clamp_folder, monkeypatch):
    def broken(name: str) -> ClampPack:
        raise PackError(f"pack {name} is broken")

    monkeypatch.setattr(links, "names", lambda: {clamp_packs.NAME: clamp_folder, "other": clamp_folder})
    monkeypatch.setattr(links, "shared_pack", broken)
    link = links.Link({"tab": "clamp", "pack": "other", "value": "-3", "seed": "x"}, "clamp")
    assert link.pack(clamp_packs.NAME) == clamp_packs.NAME
    assert link.problems == ["pack other is broken"]
    pack = ClampPack(clamp_folder)
    assert link.opened(pack, filling.opening(pack), (), ()) == filling.opening(pack)


def test_the_address_follows_and_opens_the_same_page(page: Page, window: BrowserContext, tiny: Server) -> None:
    ask(page, "moss & fern ?")
    enter(page.locator("#clamp-value input[type=number]"), "-12")
    page.wait_for_function("() => new URLSearchParams(location.search).get('prompt') === 'moss & fern ?'")
    page.wait_for_function("() => new URLSearchParams(location.search).get('value') === '-12'")
    expect(page.locator(".sod-caret")).to_have_count(0)
    with tab(window, PATIENCE, []) as other:
        other.goto(page.url)
        expect(other.get_by_role("tab", name="Clamp")).to_have_attribute("aria-selected", "true")
        answered(other, "moss & fern ?")
        expect(other.locator("#clamp-value input[type=number]")).to_have_value("-12")
        expect(other.locator("#clamp-pack input")).to_have_value(TITLE)
        other.wait_for_function("address => location.href === address", arg=page.url)
    with tab(window, PATIENCE, []) as other:
        other.goto(f"{tiny.url}?tab=clamp&pack=tiny&rule=prayer")
        expect(other.get_by_test_id("toast-text").filter(has_text="rule 'prayer'")).to_be_visible()
        answered(other, clamp_packs.PROMPT)
