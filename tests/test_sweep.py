"""The slider's sweep: every position against the edit itself, from coarse to fine, and what the page draws from it."""

from __future__ import annotations

import base64
import html
import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import LAYERS, SHAPE, Models, Server
from playwright.sync_api import BrowserContext, Page, expect
from test_page import ALPHA, eventually, opened, pick_patch

from sod_core.data import images
from sod_core.restore import sweep as sweeps
from sod_core.restore.pack import Pack
from sod_core.restore.session import Session
from sod_core.restore.sweep import ALPHAS, STRIDES, Sweep
from sod_core.ui.restore import stage
from sod_core.ui.restore.visitor import Controls, Visitor

EDIT = (LAYERS[0], "inject", (3, 7, 11), "all")
IDS = (1, 2, 7)
SHOWN = """() => ({
    bars: Array.from(document.querySelectorAll('#bars tr.restored td'), cell => cell.innerText),
    heat: Array.from(document.querySelectorAll('#heat [data-model=restored] title'), title => title.textContent),
    latents: Array.from(document.querySelectorAll('#inspector tbody tr'), row => row.children[3].innerText),
    now: document.querySelector('#verdict').innerText.match(/Now: (.*?)%/)[1],
    rough: document.querySelectorAll('.sod-rough').length,
})"""
MOVE = """alpha => {
    const range = document.querySelector('#alpha input[type=range]');
    range.value = alpha;
    range.dispatchEvent(new Event('input', {bubbles: true}));
}"""


@pytest.fixture
def session(models: Models) -> Session:
    session = Session(lambda: models.original, lambda: models.unlearned, models.sae_at, LAYERS)
    session.set_image(models.images[:1])
    return session


def filled(session: Session, stride: int, edit=EDIT, ids=IDS) -> Sweep:
    found = Sweep(3, SHAPE.grid**2)
    for positions in found.left(ids, stride):
        found.fill(session, edit, ids, positions)
    return found


# ---------------------------------------------------------------- the sweep


@pytest.mark.parametrize("mode", ["inject", "amplify", "direct_injection", "add", "cls_copy", "state_copy"])
def test_every_position_is_the_edit_at_that_alpha(session, mode):
    edit = (LAYERS[0], mode, (3, 7, 11), "all")
    found = filled(session, 1, edit)
    assert len(ALPHAS) == 201 and ALPHAS[0] == 0 and ALPHAS[-1] == 10 and ALPHAS[33] == 1.65
    for i in (0, 1, 20, 33, 137, 200):
        logits = session.restore([i * 0.05], *edit)[0, 0]
        assert torch.allclose(found.probabilities[i], logits.softmax(-1), atol=1e-6)
        latents = session.restored_latents(i * 0.05, *edit)[0, 1:]
        assert torch.allclose(found.heat(IDS)[i], latents[:, 1] + latents[:, 2] + latents[:, 7], atol=1e-4)


def test_a_patch_over_alpha_is_that_patch_of_the_whole_state(session):
    found = session.restored_at([0.0, 0.7, 4.0], *EDIT, 5)
    for row, alpha in zip(found, (0.0, 0.7, 4.0)):
        assert torch.allclose(row[0], session.restored_latents(alpha, *EDIT)[0, 6], atol=1e-4)


def test_from_coarse_to_fine_nothing_is_computed_twice(session, monkeypatch):
    asked: list[float] = []
    restore = session.restore
    monkeypatch.setattr(session, "restore", lambda alphas, *edit: asked.extend(alphas) or restore(alphas, *edit))
    found, known = Sweep(3, SHAPE.grid**2), []
    assert found.stride(IDS) == 0
    for stride in STRIDES:
        for positions in found.left(IDS, stride):
            assert len(positions) <= 8
            found.fill(session, EDIT, IDS, positions)
        assert found.stride(IDS) == stride
        known.append(len(asked))
    assert known == [21, 41, 201] and len(set(asked)) == 201
    assert set(asked[:21]) == {i / 2 for i in range(21)}
    for positions in found.left((4,), 10):  # another heat of the same edit runs no tail
        found.fill(session, EDIT, (4,), positions)
    assert len(asked) == 201 and found.stride((4,)) == 10 and found.stride(IDS) == 1


def test_what_overflows_is_known_and_no_number(session, monkeypatch):
    restore = session.restore

    def overflows(alphas, *edit):
        found = restore(alphas, *edit).clone()
        found[torch.tensor(alphas) > 5] = torch.nan
        return found

    monkeypatch.setattr(session, "restore", overflows)
    found = filled(session, 1)
    assert found.stride(IDS) == 1 and found.probabilities[:101].isfinite().all()
    assert found.probabilities[101:].isinf().all()


# ---------------------------------------------------------------- a visitor's


@pytest.fixture
def visitor(pack, monkeypatch) -> Visitor:
    monkeypatch.setattr("sod_core.ui.restore.visitor.shared_pack", lambda name: pack)
    return Visitor("fruit")


def test_the_experts_curve_is_the_coarse_sweep(visitor, monkeypatch):
    controls = Controls(LAYERS[0], "inject", 1.0)
    alone = {curve.key: curve for curve in visitor.measure(controls, visitor.version) or []}
    visitor._curves.clear()
    assert visitor.fill(controls, visitor.version, STRIDES[0])
    swept = {curve.key: curve for curve in visitor.measure(controls, visitor.version) or []}
    assert swept.keys() == alone.keys()
    for key, curve in alone.items():
        assert swept[key].returns_at == curve.returns_at
        assert swept[key].probability == pytest.approx(curve.probability, abs=1e-6)


def test_what_is_drawn_has_a_name_of_its_own(visitor):
    controls = Controls(LAYERS[0], "inject", 1.0)
    names = {visitor.drawn(controls)}
    assert visitor.drawn(Controls(LAYERS[0], "inject", 4.0)) in names  # alpha is what moves
    names.add(visitor.drawn(Controls(LAYERS[1], "inject", 1.0)))
    names.add(visitor.drawn(Controls(LAYERS[0], "inject", 1.0, features="random")))
    visitor.show_latent(LAYERS[0], 5)
    names.add(visitor.drawn(controls))
    visitor.show_latent(LAYERS[0], None)
    visitor.choose_example(7)
    names.add(visitor.drawn(controls))
    visitor.choose_model("retrain-pear")
    names.add(visitor.drawn(controls))
    assert len(names) == 6


def test_whoever_asks_for_something_else_ends_the_filling(visitor):
    controls = Controls(LAYERS[0], "inject", 1.0)
    assert not visitor.fill(controls, visitor.version - 1, 1)
    assert visitor.sweep(controls).stride(visitor.heat_ids(controls)) == 0


def test_few_sweeps_are_kept_and_none_of_another_image(visitor):
    controls = [Controls(LAYERS[0], mode, 1.0) for mode in ("inject", "amplify", "add", "cls_copy", "state_copy")]
    first = visitor.sweep(controls[0])
    assert visitor.sweep(controls[0]) is first
    for one in controls[1:]:
        visitor.sweep(one)
    assert len(visitor._sweeps) == 4 and visitor.sweep(controls[0]) is not first
    visitor.choose_example(1)
    assert not visitor._sweeps


def test_the_answer_holds_the_numbers_themselves():
    probabilities = torch.arange(402.0).reshape(201, 2) / 7
    element = stage.sweep('a"b', [0, 4], 5, probabilities, torch.zeros(201, 3), 2.5)
    data = json.loads(html.unescape(element.split('data-sweep="')[1].removesuffix('"></div>')))
    assert (data["drawn"], data["classes"], data["every"], data["top"]) == ('a"b', "0,4", 0.25, 2.5)
    found = np.frombuffer(base64.b64decode(data["probabilities"]), "<f4").reshape(41, 2)
    assert np.array_equal(found, probabilities[::5].numpy())


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def page(window: BrowserContext, server: Server) -> Iterator[Page]:
    with opened(window, server) as page:
        eventually(page, lambda: '"every": 0.05' in (page.locator("#sweep [data-sweep]").get_attribute("data-sweep")))
        yield page


@pytest.fixture
def exact(pack_folder) -> tuple[Pack, Session]:
    """What the first page shows, by the pack itself."""
    pack = Pack(pack_folder)
    session = pack.session(pack.manifest.unlearned[0].id)
    session.set_image(pack.preprocess(images.read(pack_folder / "examples" / "apple" / "0.png"))[None])
    return pack, session


def test_no_request_while_the_slider_moves_and_the_server_s_own_figures(page, exact):
    """At positions chosen at random, to the last digit shown."""
    pack, session = exact
    pick_patch(page, 5)
    eventually(page, lambda: page.locator("#series [data-series]").count() == 1)
    rows = [int(row.get_attribute("data-pick")) for row in page.locator("#inspector tbody tr").all()]
    experts = pack.expert_ids(LAYERS[0], 0)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for position in random.Random(4).sample(range(201), 12):
        alpha = ALPHAS[position]
        page.evaluate(MOVE, alpha)
        shown = page.evaluate(SHOWN)
        edit = (page_layer(page), "inject", experts, "all")
        expected = session.restore([alpha], *edit)[0, 0].softmax(-1).tolist()
        latents = session.restored_latents(alpha, *edit)[0]
        assert shown["bars"] == [f"{100 * value:.1f}" for value in expected]
        assert shown["now"] == f"{100 * expected[0]:.0f}" and shown["rough"] == 0
        assert shown["heat"] == [f"{value:.2f}" for value in latents[1:, experts].sum(1).tolist()]
        assert shown["latents"] == [f"{latents[6, j]:.2f}" for j in rows]
        expect(page.locator("#curves .sod-now")).to_have_attribute("data-alpha", f"{alpha:g}")
        expect(page.locator(ALPHA)).to_have_value(f"{alpha:g}")
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(ALPHA)).to_have_value("10")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert asked == []


def page_layer(page: Page) -> int:
    return int(page.locator("input[type=radio]:checked").first.get_attribute("value") or 0) or LAYERS[0]


def test_an_alpha_between_positions_is_the_server_s(page, exact):
    pack, session = exact
    page.locator(ALPHA).fill("1.33")
    page.locator(ALPHA).press("Enter")
    edit = (page_layer(page), "inject", pack.expert_ids(LAYERS[0], 0), "all")
    expected = [f"{100 * value:.1f}" for value in session.restore([1.33], *edit)[0, 0].softmax(-1).tolist()]
    eventually(page, lambda: page.evaluate(SHOWN)["rough"] == 0 and page.evaluate(SHOWN)["bars"] == expected)


def test_a_value_between_computed_positions_is_marked(page):
    """A coarse sweep in place of the whole one: straight lines, and the mark, until the position is known."""
    page.evaluate(MOVE, 0)
    place = page.locator("#sweep [data-sweep]")
    whole = place.get_attribute("data-sweep")
    data = json.loads(whole)
    coarse = {}
    for name, columns in (("probabilities", 3), ("heat", SHAPE.grid**2)):
        values = np.frombuffer(base64.b64decode(data[name]), "<f4").reshape(201, columns)[::10].copy()
        coarse[name] = base64.b64encode(values.tobytes()).decode()
    values = np.frombuffer(base64.b64decode(data["probabilities"]), "<f4").reshape(201, 3)
    change = """text => { document.querySelector('#sweep [data-sweep]').dataset.sweep = text;
        document.querySelector('#series').append(document.createElement('b')); }"""
    page.evaluate(change, json.dumps(data | coarse | {"every": 0.5}))
    page.wait_for_timeout(50)
    page.evaluate(MOVE, 1.2)
    shown = page.evaluate(SHOWN)
    assert shown["rough"] == 2 and shown["now"].startswith("≈ ")
    between = 0.6 * values[20] + 0.4 * values[30]
    assert [float(text) for text in shown["bars"]] == pytest.approx((100 * between).tolist(), abs=0.051)
    page.evaluate(MOVE, 1.5)
    shown = page.evaluate(SHOWN)
    assert shown["rough"] == 0 and shown["bars"] == [f"{100 * value:.1f}" for value in values[30].tolist()]
    page.evaluate(change, whole)
    page.wait_for_timeout(50)
    page.evaluate(MOVE, 1.2)
    assert page.evaluate(SHOWN)["bars"] == [f"{100 * value:.1f}" for value in values[24].tolist()]


def test_a_sweep_of_something_else_is_not_drawn(page, exact):
    """Of another image or edit: as long as the right one has not come, the server is asked."""
    pack, session = exact
    page.evaluate(MOVE, 2)
    change = """() => { const place = document.querySelector('#sweep [data-sweep]');
        const data = JSON.parse(place.dataset.sweep);
        place.dataset.sweep = JSON.stringify({...data, drawn: 'another'});
        document.querySelector('#series').append(document.createElement('b')); }"""
    page.evaluate(change)
    page.wait_for_timeout(50)
    before = page.evaluate(SHOWN)["bars"]
    page.evaluate(f"alpha => {{ ({MOVE})(alpha); window.seen = ({SHOWN})(); }}", 7)
    seen = page.evaluate("() => window.seen")
    assert seen["bars"] == before and seen["rough"] >= 1
    edit = (page_layer(page), "inject", pack.expert_ids(LAYERS[0], 0), "all")
    expected = [f"{100 * value:.1f}" for value in session.restore([7.0], *edit)[0, 0].softmax(-1).tolist()]
    eventually(page, lambda: page.evaluate(SHOWN)["bars"] == expected and page.evaluate(SHOWN)["rough"] == 0)


def test_the_steps_are_the_slider_s(page):
    assert page.locator("#alpha input[type=range]").get_attribute("step") == f"{sweeps.STEP:g}"
