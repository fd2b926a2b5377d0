"""The Mask tab in a browser, and /mask: the slider asks nobody, what rests asks once, files load again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from conftest import Server, endpoints, serving, tab
from forks import Forks
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from test_mask_pack import NAMES, made  # noqa: F401  the tiny pack

from sod_core.mask import edit, encoder, evaluate, evidence, sweep
from sod_core.mask.pack import MaskPack, open_mask_pack
from sod_core.mask.session import Dose
from sod_core.sparse import bottleneck_file
from sod_core.ui.mask import api, details, links, stage, visitor, work
from sod_core.worlds import drawn

PATIENCE = 60_000
RED = [0]


@pytest.fixture(scope="module")
def pack(made) -> MaskPack:  # noqa: F811
    return open_mask_pack(str(made))


@pytest.fixture(scope="module")
def swept(pack) -> sweep.Sweep:
    return sweep.sweep(pack.session("saw-all"), RED, "activations")


@pytest.fixture(scope="module")
def server(pack_folder: Path, made, forks: Forks, tmp_path_factory) -> Iterator[Server]:  # noqa: F811
    folder = tmp_path_factory.mktemp("mask-server")
    shutil.copytree(pack_folder, folder / "packs" / "fruit")
    shutil.copytree(made, folder / "packs" / "corners")
    with serving(folder / "packs", folder, forks=forks, TMPDIR=str(folder)) as found:
        yield found


@pytest.fixture
def page(window: BrowserContext, server: Server) -> Iterator[Page]:
    expect.set_options(timeout=PATIENCE)
    wrong: list[str] = []
    with tab(window, PATIENCE, wrong) as page:
        page.set_viewport_size({"width": 1500, "height": 1200})
        page.goto(server.url)
        page.get_by_role("tab", name="Mask").click()
        expect(page.locator("#mask-stage .sod-tile b").first).to_be_visible()
        page.locator("#mask-pack input").click()
        page.get_by_role("option", name="corners", exact=True).click()
        expect(page.locator("#mask-stage .sod-tile.forget span")).to_have_text("of red still named")
        expect(page.locator("#mask-named")).to_contain_text("cosine")
        yield page
    assert not wrong


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def move(page: Page, position: int) -> None:
    """As a hand on the slider that has not let go."""
    page.evaluate(
        """at => { const range = document.querySelector('#mask-stage input[type=range]');
            range.value = at; range.dispatchEvent(new Event('input', {bubbles: true})); }""",
        position,
    )


def tiles(page: Page) -> list[str]:
    return page.locator("#mask-stage .sod-tile b").all_inner_texts()


# ---------------------------------------------------------------- the sweep


def test_a_sweep_is_what_every_dose_gives(pack, swept):
    session = pack.session("saw-all")
    for place in (0, 37, 100):
        mask = session.forget(RED, Dose(share=place / 100))
        found = session.figures(mask, RED)
        assert swept.pairs[place] == int(mask.sum())
        assert (swept.forget[place], swept.retain[place]) == (found.forget, found.retain)
        assert swept.by_class[place] == list(found.by_class) and swept.by_style[place] == found.by_style.tolist()
        assert swept.called[place] == pytest.approx((found.confusion[0] / found.confusion[0].sum()).tolist())
    assert swept.touched == swept.pairs[-1] and swept.random_at == [*range(0, 101, 5)]
    allowed = session.bottleneck.allowed
    mask = session.forget(RED, Dose(share=0.5))
    each = [session.figures(edit.random_mask(mask, allowed, seed), RED).forget for seed in range(3)]
    assert swept.random_forget[10] == pytest.approx(sum(each) / 3)
    assert swept.retrained[0] == 0 and swept.logit[0] == 0
    opened = sweep.opening(swept, evaluate.FORGET_GOAL)
    assert swept.forget[opened] <= 0.02 < swept.forget[opened - 1]


def test_examples_come_one_by_one(pack):
    found = sweep.sweep(pack.session("saw-all"), [1, 2], "examples")
    assert [dose.examples for dose in found.doses] == [None, *range(1, 81)]
    assert found.pairs == sorted(found.pairs) and found.pairs[0] == 0


def test_equally_many_of_each_codebook(pack):
    session = pack.session("saw-all")
    found = sweep.sweep(session, RED, sweep.EACH)
    assert found.doses[0].pairs == 0 and all(dose.per_codebook for dose in found.doses)
    last = session.forget(RED, found.doses[-1])
    assert torch.equal(last, session.forget(RED, Dose(share=1.0)))  # the whole of what the class touches
    half = session.forget(RED, found.doses[len(found.doses) // 2])
    touched = last.sum(1).clamp(max=found.doses[len(found.doses) // 2].pairs)
    assert torch.equal(half.sum(1), touched)
    data = stage.data(pack.manifest, ("a",), RED, found)
    assert data["unit"] == "pairs of each codebook" and data["labels"][1] == str(found.doses[1].pairs)
    assert len(data["abstained"]) == len(found.doses)


def test_a_link_is_read_value_by_value(pack, monkeypatch):
    monkeypatch.setattr(links, "folders", lambda: {"corners": pack.manifest.folder})
    asked = {"pack": "corners", "bottleneck": "saw-all", "forget": "red;blue", "method": "examples"}
    link, page = links.Link(asked | {"tab": "mask", "dose": "7", "image": "2"}, "mask"), visitor.Page()
    assert link.pack("other") == "corners"
    assert link.opened(pack, page, "saw-all", ["red"]) == ("saw-all", ["red", "blue"], "examples")
    assert (page.dose, page.picked, link.problems) == (7, 2, [])
    wrong = {"pack": "/etc", "bottleneck": "x", "forget": "red;boat", "method": "y", "dose": "101", "image": "-1"}
    link, page = links.Link(wrong | {"tab": "mask"}, "mask"), visitor.Page()
    assert link.pack("corners") == "corners"
    assert link.opened(pack, page, "saw-all", ["red"]) == ("saw-all", ["red"], "activations")
    assert (page.dose, page.picked, len(link.problems)) == (None, 3, 6)
    assert link.sentence().count("'") == 12 and "red?boat" in link.sentence()
    shown = visitor.Page(shown=("corners", "saw-all", ("red", "blue"), "examples"), own=Image.new("RGB", (2, 2)))
    assert "image" not in links.element(shown).split("data-lacks")[0] and "your own image" in links.element(shown)


def test_votes_are_those_of_the_bottleneck(pack):
    session = pack.session("saw-all")
    mask = session.forget(RED, Dose(share=0.5))
    features = session.test.features[0]
    found, shares = sweep.votes(session, mask, features)
    assert sum(shares) == pytest.approx(1)
    b = session.bottleneck
    for c, vote in enumerate(found):
        away = (features @ b.projection[c] - b.keys[c]).double().square().sum(1)
        order = away.masked_fill(~b.allowed[c] | mask[c], torch.inf)
        assert vote.pair == int(order.argmin()) and vote.rank == int((away < away[vote.pair]).sum())
        if vote.called >= 0:
            positive = b.values[c, vote.pair].clamp(min=0)
            assert vote.called == int(positive.argmax()) and vote.share == pytest.approx(
                float(positive.max() / positive.sum())
            )


def test_an_image_is_encoded_as_the_pack_s_own_were():
    embedded = open_mask_pack("canvas-mask")
    found = encoder.encode(embedded, "retrain-cat", drawn.picture(embedded.manifest.examples_seed, 17))
    assert torch.allclose(found, embedded.features("retrain-cat").test.features[17], atol=0.1)
    pictures = work.pictures(embedded)
    assert len(pictures) == 60 == len(set(work.picture_names(embedded, "original")))


def test_an_encoder_that_is_not_here_is_a_sentence(pack):
    with pytest.raises(ValueError, match="encoder saw is not on this computer"):
        encoder.encode(pack, "saw", Image.new("RGB", (64, 64)))


def test_what_is_shown_holds_every_figure_and_no_markup_of_names(pack, swept):
    data = stage.data(pack.manifest, ("a", 1), RED, swept)
    assert data["forget"] == [round(value, 4) for value in swept.forget] and data["key"] == "a|1"
    assert "<b>" not in details.picker([Image.new("RGB", (2, 2))], ["<b>x"], 0)
    assert "Nothing is stored" in details.evidence(None, [])
    embedded = open_mask_pack("canvas-mask")
    case, ways = work.case(embedded, "retrain-boat-retain", ["boat"], "activations")
    html = details.evidence(case, ways)
    assert "never saw the class" in html and all(way in html for way in ways) and html.count("<b>deleted</b>") == 2
    assert work.case(embedded, "retrain-boat-retain", ["boat"], "examples") == (None, [])


# ---------------------------------------------------------------- the page


def test_the_slider_asks_nobody_and_shows_the_server_s_figures(page: Page, swept):
    page.wait_for_timeout(1000)  # for what the page still has to say of its opening
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    draw = random.Random(0)
    for position in (0, 100, *(draw.randrange(101) for _ in range(12))):
        move(page, position)
        assert tiles(page) == [percent(swept.forget[position]), percent(swept.retain[position])]
        cells = page.locator("#mask-stage .sod-cells tr.mine td").all_inner_texts()
        shown = [*swept.by_style[position][0], swept.by_class[position][0]]
        assert cells == [str(int(100 * round(value, 4) + 0.5)) for value in shown]
    assert not [url for url in asked if "gradio_api" in url]


def test_what_rests_is_asked_once_and_unmasking_brings_all_back(page: Page, swept):
    page.get_by_role("button", name="Unmask").click()
    assert tiles(page)[0] == percent(swept.forget[0])
    expect(page.locator("#mask-named")).to_contain_text("Nothing is masked")
    expect(page.locator("#mask-votes")).to_contain_text("0 of 8 codebooks fell back")
    page.get_by_role("button", name="Smallest dose that forgets").click()
    expect(page.locator("#mask-named")).to_contain_text("area under the curve")
    assert tiles(page)[0] == percent(swept.forget[stage.start(swept)])
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(f"document.querySelector('#mask-stage input[type=range]').value == {stage.start(swept)}")


def test_another_choice_another_figure(page: Page):
    page.locator("#mask-classes input").click()
    page.get_by_role("option", name="blue", exact=True).click()
    expect(page.locator("#mask-stage .sod-tile.forget span")).to_have_text("of red and blue still named")
    page.get_by_label("by enrichment", exact=False).check()
    expect(page.locator("#mask-stage .sod-tile b").first).to_be_visible()
    page.locator("#mask-classes input").click()
    page.get_by_role("option", name="green", exact=True).click()
    expect(page.get_by_text("all classes are to be forgotten")).to_be_visible()
    expect(page.locator("#mask-stage .sod-tile.forget span")).to_have_text("of red and blue still named")


def test_learned_again_and_taken_away(page: Page, pack):
    page.wait_for_timeout(1000)  # a figure that is only now whole takes the last file back
    page.locator("#mask-learn").click()
    expect(page.locator("#mask-learned")).to_contain_text("red right after 10 of its images were counted again")
    page.locator("#mask-make").click()
    with page.expect_download() as download:
        page.locator("#mask-file").click()
    assert download.value.suggested_filename == "saw-all-red-masked.safetensors"
    file = Path(download.value.path())
    found = bottleneck_file.read(file.rename(file.with_suffix(".safetensors")))
    session = pack.session("saw-all")
    wanted = session.forget(RED, Dose(share=stage.start(sweep.sweep(session, RED, "activations")) / 100))
    assert torch.equal(found.masked, wanted)


def test_an_image_of_ones_own_votes(page: Page, tmp_path):
    """On the embedded pack, whose encoder is here; its picture is shown, and an example takes its place again."""
    page.locator("#mask-pack input").click()
    page.get_by_role("option", name="Canvas", exact=False).first.click()
    expect(page.locator("#mask-stage .sod-tile.forget span")).to_have_text("of boat still named")
    before = page.locator("#mask-votes").inner_text()
    drawn.picture(5, 3).resize((90, 90)).save(tmp_path / "boat.png")
    page.locator("#mask-own input[type=file]").set_input_files(tmp_path / "boat.png")
    expect(page.locator("#mask-votes .sod-own")).to_be_visible()
    expect(page.locator("#mask-votes")).to_contain_text("your own")
    page.locator("#mask-picker button").nth(3).click()
    expect(page.locator("#mask-votes")).not_to_contain_text("your own")
    assert page.locator("#mask-votes").inner_text() == before


# ---------------------------------------------------------------- the endpoint


@pytest.fixture(scope="module")
def client(made, tmp_path_factory) -> Iterator[Client]:  # noqa: F811
    packs = tmp_path_factory.mktemp("served")
    shutil.copytree(made, packs / "corners")
    with endpoints(api.build, packs) as found:
        yield found


def test_mask_gives_what_the_command_line_gives(client, pack):
    found = client.predict(pack="corners", forget="red, blue", share=0.4, images=3, api_name="/mask")
    session = pack.session("saw-all")
    same = evaluate.evaluate(session, [0, 2], [Dose(share=0.4)], NAMES)
    assert found["doses"] == same["doses"] and found["before"] == same["before"]
    mask = session.forget([0, 2], Dose(share=0.4))
    named = evidence.named_by(evidence.prototype(session.bottleneck, mask), session.test, [0, 2])
    assert found["names"]["auc"] == named.auc and set(found["names"]["scores"]) == set(NAMES)
    assert found["relearned"] == sweep.relearning(session, [0, 2], mask, 3)
    assert (
        client.predict(pack="corners", forget="red", method="examples", share=4, api_name="/mask")["relearned"] is None
    )


@pytest.mark.parametrize(
    "sent, why",
    [
        ({"forget": "red", "pack": "../corners"}, "unknown pack"),
        ({"forget": ""}, "choose a class"),
        ({"forget": "pink"}, "unknown class 'pink'"),
        ({"forget": "red", "share": 2}, "from 0 to 1"),
        ({"forget": "red", "bottleneck": "none"}, "unknown bottleneck"),
        ({"forget": "red, green, blue"}, "all classes"),
    ],
)
def test_mistakes_are_sentences(client, sent, why):
    with pytest.raises(AppError, match=why):
        client.predict(**{"pack": "corners"} | sent, api_name="/mask")


def test_the_address_follows_and_opens_the_same_page(page, window, server):
    def address(of: Page) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(of.url).query).items()}

    first = {"tab": "mask", "pack": "corners", "forget": "red", "method": "activations", "image": "3"}
    page.wait_for_function("() => new URLSearchParams(location.search).get('pack') === 'corners'")
    assert first.items() <= address(page).items()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowRight")
    dose = page.locator("#mask-stage input[type=range]").input_value()
    page.wait_for_function("dose => new URLSearchParams(location.search).get('dose') === dose", arg=dose)
    assert int(dose) > 0
    with tab(window, PATIENCE, []) as other:
        other.goto(page.url)
        expect(other.get_by_role("tab", name="Mask")).to_have_attribute("aria-selected", "true")
        expect(other.locator("#mask-stage .sod-tile.forget span")).to_have_text("of red still named")
        assert tiles(other) == tiles(page)
        assert other.locator("#mask-stage input[type=range]").input_value() == dose
        other.wait_for_function("address => location.href === address", arg=page.url)
    with tab(window, PATIENCE, []) as other:
        other.goto(f"{server.url}?tab=mask&pack=corners&forget=nothing")
        expect(other.get_by_test_id("toast-text").filter(has_text="forget 'nothing'")).to_be_visible()
        expect(other.locator("#mask-stage .sod-tile.forget span")).to_have_text("of red still named")


def test_a_pack_whose_features_are_not_here_says_what_makes_them(page, window, server):
    shown, missing = tiles(page), "python -m sod_core mask features --pack clip-cifar10"
    page.locator("#mask-pack input").click()
    page.get_by_role("option", name="CIFAR-10, bottlenecks on CLIP ViT-B/32", exact=True).click()
    expect(page.get_by_text(missing)).to_be_visible()
    expect(page.locator("#mask-pack input")).to_have_value("corners")
    assert tiles(page) == shown
    with tab(window, PATIENCE, []) as other:
        other.goto(f"{server.url}?tab=mask&pack=clip-cifar10")
        expect(other.get_by_text(missing)).to_be_visible()
        expect(other.locator("#mask-stage .sod-tile b").first).to_be_visible()
        expect(other.locator("#mask-pack input")).to_have_value("Canvas, bottlenecks on three ViTs")
