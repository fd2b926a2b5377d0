"""Many visitors at one server: slow downloads, faults of the hub, models of their own, and nobody feels the others."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gradio as gr
import httpx
import numpy as np
import pyarrow
import pytest
import torch
from conftest import (
    CLASSES,
    LAYERS,
    SHAPE,
    UNLEARNED,
    Server,
    random_vit,
    serving,
    write_manifest,
)
from fake_hub import FakeHub
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import apply_diff
from PIL import Image
from playwright.sync_api import Error, Page, expect
from pyarrow import parquet
from starlette.datastructures import Headers
from test_page import choose, classes, eventually, figures, move_alpha, opened, shown_examples, traces, warning
from torch import nn

from sod_core.data import images
from sod_core.models import vit as vits
from sod_core.packs.errors import PackError
from sod_core.packs.hub import HubFile
from sod_core.packs.own import parse_hub
from sod_core.restore.edit import MODES
from sod_core.restore.pack import Pack
from sod_core.ui import app as ui
from sod_core.ui import intake
from sod_core.ui.restore import opening
from sod_core.ui.restore import panel as panels
from sod_core.ui.restore import tab as restore_tab
from sod_core.ui.restore.visitor import Controls, Visitor

APPLES = ("gala", "boskoop", "cox")
"""Classes of the packs that come from the hub."""
TREES = ("elm", "oak", "yew")
"""Classes of `grove`, whose original is right on all of its examples."""
FRUIT, GROVE = "Fruit, a tiny ViT", "Grove"
FIRST, SECOND = UNLEARNED
SLOW = 30_000
"""Bytes a second: the largest file takes nine seconds."""
SECONDS = 60
"""For what must come; only a failure takes so long."""
START = (  # a download's progress is told once a chunk, and these files are smaller than one
    "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 2048\n"
    "import runpy; runpy.run_path('app.py', run_name='__main__')"
)


# ---------------------------------------------------------------- the server, its packs and its hub


class Place(NamedTuple):
    server: Server
    hub: FakeHub
    cache: Path
    fruit: Path
    """The tiny pack's folder."""

    def plant(self, name: str, with_examples: bool = True) -> str:
        """Puts a pack on the hub, and its pack.json into the server's packs; returns its title."""
        plant(self.server.packs, self.hub, self.fruit, name, with_examples)
        return name.capitalize()

    def gets(self, name: str) -> list[tuple[str, str | None]]:
        """(file, range) of all that was downloaded of a planted pack, in order."""
        gets = [r for r in self.hub.requests if r.method == "GET" and f"/{name}/resolve/" in r.path]
        return [(r.path.split(f"{self.hub.commit}/")[1], r.range) for r in gets]

    def is_here(self, name: str) -> bool:
        """Whether all files of a planted pack are in the server's cache, but for its data set and its second model."""
        folder = self.cache / f"models--grower--{name}"
        here = [path for path in folder.glob("snapshots/*/**/*") if path.is_file()]
        return len(here) == len(self.hub.files[f"grower/{name}"]) - 1 and not [*folder.glob("blobs/*.part")]


def plant(packs: Path, hub: FakeHub, fruit: Path, name: str, with_examples: bool = True) -> None:
    """A pack whose folder holds pack.json only; its files, which are fruit's, are on the hub."""
    (packs / name).mkdir()
    examples_source = {"repo_id": f"grower/{name}", "file": "test.parquet", "image": "img", "label": "label"}
    changes = {"name": name, "title": name.capitalize(), "classes": list(APPLES), "examples": None}
    changes |= {"source": {"repo_id": f"grower/{name}"}, "examples_source": examples_source}
    write_manifest(packs / name, **changes)
    patterns = ("*.pth", "*.pt", "*.npy", "unlearned/*.pth")
    files = {str(path.relative_to(fruit)): path.read_bytes() for p in patterns for path in fruit.glob(p)}
    hub.files[f"grower/{name}"] = files
    if with_examples:
        hub.files[f"datasets/grower/{name}"] = {"test.parquet": examples_table(fruit)}


def examples_table(fruit: Path) -> bytes:
    """Fruit's example images as a data set's Parquet file."""
    rows = [
        (label, path) for label, name in enumerate(CLASSES) for path in sorted((fruit / "examples" / name).iterdir())
    ]
    table = {
        "img": [{"bytes": path.read_bytes(), "path": path.name} for _, path in rows],
        "label": [label for label, _ in rows],
    }
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(table), out)
    return out.getvalue()


def schooled(folder: Path) -> nn.Module:
    """The pack's original with a classifier that is right on all of its examples."""
    pack, vit = Pack(folder), random_vit(0)
    labels = torch.tensor([example.label for example in pack.examples()])
    with torch.no_grad():
        last = vit.forward_head(vit.forward_features(pack.example_inputs()), pre_logits=True)
        design = torch.cat([last, torch.ones(len(last), 1)], dim=1)
        solved = torch.linalg.lstsq(design, 20 * nn.functional.one_hot(labels).float(), driver="gelsd").solution
        vit.head.weight.copy_(solved[:-1].T)
        vit.head.bias.copy_(solved[-1])
    assert torch.equal(pack.example_predictions(vit), labels)
    return vit


def forgetful(vit: nn.Module, *lost: int) -> dict[str, torch.Tensor]:
    """A checkpoint of the same model that never names these classes."""
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    state["head.bias"][list(lost)] -= 1e4
    return state


@pytest.fixture(scope="module")
def place(pack_folder: Path, tmp_path_factory) -> Iterator[Place]:
    """app.py as a process of its own, with `fruit`, which it opens on, `grove`, and `orchard`, which is on the hub."""
    folder = tmp_path_factory.mktemp("visitors")
    packs = folder / "packs"
    shutil.copytree(pack_folder, packs / "fruit")
    shutil.copytree(pack_folder, packs / "grove")
    for old, new in zip(CLASSES, TREES):
        (packs / "grove" / "examples" / old).rename(packs / "grove" / "examples" / new)
    write_manifest(packs / "grove", name="grove", title=GROVE, classes=list(TREES))
    torch.save(schooled(packs / "grove").state_dict(), packs / "grove" / "vit_fruit_original.pth")
    with FakeHub({}) as hub:
        plant(packs, hub, pack_folder, "orchard")
        home = hub.environment(folder / "home")
        with serving(packs, folder, "-c", START, **home, SOD_ALLOW_UPLOADS="") as server:
            yield Place(server, hub, folder / "home" / "hub", pack_folder)


@pytest.fixture(autouse=True)
def sound_hub(request) -> Iterator[None]:
    """Whatever a test did to the hub is over with it."""
    yield
    if "place" in request.fixturenames:
        hub = request.getfixturevalue("place").hub
        hub.down, hub.broken, hub.bytes_per_second, hub.cut_after = False, None, None, None


# ---------------------------------------------------------------- visitors without a browser


def _classes(props: dict[str, Any]) -> list[str]:
    return " ".join(props.get("elem_classes") or []).split()


def _update(value: Any) -> dict[str, Any]:
    """What an output says of its component."""
    is_update = isinstance(value, dict) and value.get("__type__") == "update"
    return {key: one for key, one in value.items() if key != "__type__"} if is_update else {"value": value}


class Tab:
    """A page's side of the conversation: it sends what a page sends, one event at a time, and keeps what comes back.

    A component goes by its elem_id, its label or its class; `controls` are values by such names, set at the start.
    """

    _numbers = itertools.count()
    _http = httpx.Client(timeout=SECONDS, verify=False, trust_env=False)

    def __init__(self, place: Place, headers: dict[str, str] | None = None, controls: dict[str, Any] | None = None):
        self.url, self.headers = place.server.url, headers
        self.session = f"tab-{next(self._numbers)}"
        config = self._http.get(f"{self.url}/config", headers=headers).raise_for_status().json()
        self.components = {one["id"]: one["props"] for one in config["components"]}
        self.values = {id: props.get("value") for id, props in self.components.items()}
        self.dependencies = config["dependencies"]
        self.said: list[str] = []
        """Every toast so far."""
        self.bars: list[str] = []
        """Every progress bar so far."""
        self._last: dict[str, list[Any]] = {}
        self.values |= {self.id(name): value for name, value in (controls or {}).items()}
        self._fire(0)

    def id(self, name: str) -> int:
        """The component that goes by this name."""
        for of in (lambda props: [props.get("elem_id")], lambda props: [props.get("label")], _classes):
            found = [id for id, props in self.components.items() if name in of(props)]
            if len(found) == 1:
                return found[0]
        raise KeyError(name)

    def __getitem__(self, name: str) -> Any:
        return self.values[self.id(name)]

    def move(self, alpha: float | None, times: int = 1) -> Tab:
        """Asks for an alpha, as the page does for one between the slider's positions."""
        self.values[self.id("alpha")] = alpha
        return self.send("sweep", data={"alpha": alpha}, times=times)

    def open(self, pack: str) -> Tab:
        return self.send("pack", pack)

    def send(self, name: str, value: Any = None, data: dict[str, Any] | None = None, times: int = 1) -> Tab:
        """Gives a component a value (with `data` it is clicked, and has none), and fires its event."""
        id = self.id(name)
        if data is None:
            self.values[id] = value
        return self._fire(id, data, times)

    def _fire(self, id: int, data: dict[str, Any] | None = None, times: int = 1) -> Tab:
        """The event of a component, then whatever the page fires after it. The page itself has number 0."""
        wanted = [found for found in self.dependencies if id in [target[0] for target in found["targets"]]]
        first = list(wanted)
        while wanted:
            one = wanted.pop(0)
            self._exchange([one] * times, data if one in first else None)
            wanted += [found for found in self.dependencies if found["trigger_after"] == one["id"]]
        return self

    def _post(self, where: str, **what: Any) -> Any:
        answer = self._http.post(f"{self.url}/gradio_api/{where}", headers=self.headers, **what)
        return answer.raise_for_status().json()

    def _exchange(self, events: list[dict[str, Any]], data: dict[str, Any] | None) -> None:
        """Sends some events at once, and hears the server out."""
        sent = {}
        for dependency in events:
            values = [self.values[id] for id in dependency["inputs"]]
            event = {"data": values, "fn_index": dependency["id"], "session_hash": self.session, "event_data": data}
            sent[self._post("queue/join", json=event)["event_id"]] = dependency["outputs"]
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with self._http.stream("GET", address, headers=self.headers) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {"msg": "", "event_id": None}
                self._hear(message, sent.get(message["event_id"], []))

    def _hear(self, message: dict[str, Any], outputs: list[int]) -> None:
        kind, event = message["msg"], message["event_id"]
        if kind == "log":
            self.said.append(message["log"])
        elif kind in ("process_generating", "process_completed"):
            assert message["success"], message["output"]
            found = message["output"]["data"]
            if kind == "process_generating" and event in self._last:  # what has changed since
                found = [apply_diff(value, changed) for value, changed in zip(self._last[event], found)]
            self._last[event] = found
            self.bars += [one["value"] for one in found if "<progress" in str(_update(one).get("value"))]
            for id, one in zip(outputs, found):
                self.components[id] |= _update(one)
                if "value" in _update(one):
                    self.values[id] = _update(one)["value"]

    def upload(self, path: Path) -> dict[str, Any]:
        """A file's data, as a page has it once it has sent it to the server."""
        with path.open("rb") as file:
            [there] = self._post("upload", files={"files": file})
        return {"path": there, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def own_image(self, path: Path) -> Tab:
        return self.send("own", self.upload(path))

    def own_model(self, text: str | Path) -> Tab:
        return self.send("own-model", str(text))

    @property
    def models(self) -> list[str]:
        """The titles in the menu of models."""
        return [title for title, _ in self.components[self.id("model")]["choices"]]

    def figures(self) -> list[Any]:
        """Everything that is shown of the image, the model and the controls."""
        names = (
            "verdict",
            "bars",
            "heat",
            "curves",
            "inspector",
            "strongest",
            "picker",
            "sod-note-model",
            "sod-hidden",
            "sweep",
            "series",
        )
        return [self[name] for name in names]


def noise(path: Path, seed: int) -> Path:
    """Writes an image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 40 + 7 * seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def one_sentence(message: str) -> str:
    assert message and "\n" not in message and len(message) < 300
    assert "Traceback" not in message and "NoneType" not in message
    return message


def ask(client: Client, image: Path, **changes: Any) -> dict[str, Any]:
    """/restore, with fruit's first model unless something else is asked for."""
    settings = {"pack": "fruit", "unlearned": FIRST, "target_class": "0", "layer": 1, "alphas": "0, 1, 2.5"}
    settings |= {"mode": "inject", "tokens": "all", "chosen": "experts", "seed": 0}
    return client.predict(handle_file(image), **settings | changes, api_name="/restore")


# ---------------------------------------------------------------- sixteen at once


class Job(NamedTuple):
    """What one visitor does. No two do the same."""

    image: Path
    number: int

    @property
    def model(self) -> str:
        return (FIRST, SECOND)[self.number % 2]

    @property
    def controls(self) -> dict[str, Any]:
        n = self.number
        return {"layer": LAYERS[n // 2 % 2], "mode": MODES[n % len(MODES)], "seed": n}

    @property
    def alphas(self) -> list[float]:
        return [0.5 + 0.45 * self.number, 0.1 * self.number]

    @property
    def goes_by_events(self) -> bool:
        return self.number % 3 == 0

    def done(self, place: Place, client: Client) -> list[Any]:
        """By the API, and as a page: some by the events that a Client can send, the others with image and model."""
        settings = {"unlearned": self.model, "alphas": str(self.alphas), "target_class": str(self.number % 3)}
        answer = ask(client, self.image, chosen="random", **settings | self.controls)
        return [answer, *(self.by_events(client) if self.goes_by_events else self.by_page(place))]

    def by_events(self, client: Client) -> list[Any]:
        layer, mode, seed = self.controls.values()
        rest = ("all", ("experts", "random", "matched")[self.number % 3], "", seed)
        found = [client.predict("fruit", layer, mode, self.alphas[0], *rest, api_name="/open_pack")]
        settled = client.submit(api_name="/settle")
        settled.result()
        found += settled.outputs()
        return [*found, client.predict(layer, mode, self.alphas[1], *rest, api_name="/move_alpha")]

    def by_page(self, place: Place) -> list[Any]:
        layer, mode, seed = self.controls.values()
        names = {"Layer (the block whose output is edited)": layer, "Mode": mode, "Seed of the random features": seed}
        tab = Tab(place, controls=names).own_image(self.image).send("model", self.model)
        found = [tab.figures(), tab.move(self.alphas[0]).figures()]
        assert tab.said == []
        return found


def test_sixteen_at_once_get_what_each_gets_alone(place, tmp_path):
    jobs = [Job(noise(tmp_path / f"{number}.png", number), number) for number in range(16)]
    clients = [Client(place.server.url, verbose=False) for _ in jobs]
    alone = [  # what goes by events has a session, which has to be new for both
        job.done(place, Client(place.server.url, verbose=False) if job.goes_by_events else client)
        for job, client in zip(jobs, clients)
    ]
    assert len({json.dumps(answer) for answer, *_ in alone}) == len({json.dumps(shown) for _, *shown in alone}) == 16
    with ThreadPoolExecutor(len(jobs)) as visitors:
        together = list(visitors.map(lambda job, client: job.done(place, client), jobs, clients))
    for expected, found in zip(alone, together):
        assert found == expected


# ---------------------------------------------------------------- downloads


def share(page: Page) -> float:
    """How far the progress bar is filled; 0 while it does not say."""
    value = page.locator("#progress progress").get_attribute("value")
    return float(value or 0)


def expect_pack(page: Page, title: str, first_class: str) -> None:
    """Waits until the page shows a pack and nothing of a download."""
    eventually(page, lambda: classes(page)[0] == f"▸ {first_class}")
    expect(page.get_by_role("combobox", name="Pack", exact=True)).to_have_value(title)
    expect(page.locator("#progress progress")).to_have_count(0)
    expect(page.locator("#verdict h3")).to_contain_text(first_class)


def choose_pack(page: Page, title: str) -> None:
    """Whatever the menu adds to its title."""
    page.get_by_role("combobox", name="Pack", exact=True).click()
    page.get_by_role("option", name=re.compile(f"^{title}")).click()


def settled(page: Page) -> tuple:
    """The figures, once nothing is drawn any more."""
    before = None
    for _ in range(SECONDS):
        try:
            found = figures(page)
        except Error:  # a figure is just being drawn
            found = None
        if found is not None and found == before:
            return found
        before = found
        page.wait_for_timeout(100)
    pytest.fail("the figures go on changing")


def begin(page: Page, title: str, file: str = "vit_fruit_original.pth") -> None:
    """Chooses a pack that is away, and waits until its first file is coming in."""
    choose_pack(page, title)
    expect(page.locator("#progress progress")).to_be_visible()
    expect(page.locator("#progress")).to_contain_text(file)
    expect(page.locator("#progress")).to_contain_text("of 0.3 MB")
    eventually(page, lambda: share(page) > 0)
    before = share(page)
    eventually(page, lambda: share(page) > before)


def test_a_slow_download_disturbs_nobody(place, window):
    """Of two visitors who want the same pack one download serves both; a third works on meanwhile."""
    client, apple = Client(place.server.url, verbose=False), place.fruit / "examples" / "apple" / "0.png"
    alone = ask(client, apple)
    second = Tab(place)
    place.hub.requests.clear()
    place.hub.bytes_per_second = SLOW
    with opened(window, place.server) as page, ThreadPoolExecutor(1) as elsewhere:
        begin(page, "Orchard")
        later = elsewhere.submit(second.open, "orchard")
        eventually(page, lambda: second.bars != [])
        assert [ask(client, apple) for _ in range(3)] == [alone] * 3
        assert page.locator("#progress progress").is_visible() and not later.done()
        move_alpha(page, 5)  # the page itself works on with the pack that is open
        place.hub.bytes_per_second = None
        expect_pack(page, "Orchard", "gala")
        later.result(SECONDS)
        expect(page.locator("#picker button")).to_have_count(9)
    assert second.said == [] and second["pack"] == "orchard" and "gala" in json.dumps(second["bars"])
    fetched = place.gets("orchard")
    assert len(fetched) == len({file for file, _ in fetched}) == 9 and {range for _, range in fetched} == {None}
    found = ask(client, apple, pack="orchard")
    assert {k: found[k] for k in ("original", "unlearned", "restored")} == {
        k: alone[k] for k in ("original", "unlearned", "restored")
    }


def test_who_chooses_another_pack_meanwhile_keeps_it(place, window):
    away = place.plant("hedge")
    with opened(window, place.server) as page:
        place.hub.bytes_per_second = SLOW
        begin(page, away)
        choose_pack(page, GROVE)
        expect_pack(page, GROVE, "elm")
        page.wait_for_timeout(700)  # two looks at the download
        expect_pack(page, GROVE, "elm")
        assert not place.is_here("hedge")
        shown = settled(page)
        place.hub.bytes_per_second = None
        eventually(page, lambda: place.is_here("hedge"))  # it is not lost either
        page.wait_for_timeout(500)
        expect_pack(page, GROVE, "elm")
        assert settled(page) == shown
        choose_pack(page, away)
        expect_pack(page, "Hedge", "gala")
    fetched = place.gets("hedge")
    assert len(fetched) == len(set(fetched)) and {range for _, range in fetched} == {None}


def test_a_hub_that_fails_leaves_the_page_as_it_is(place, window):
    away = place.plant("meadow")
    with opened(window, place.server) as page:
        before = settled(page)

        def fails(says: str) -> None:
            """A toast, and the page is as it was."""
            warning(page, says)
            expect(page.get_by_test_id("toast-text")).to_have_count(1)
            one_sentence(page.get_by_test_id("toast-text").inner_text())
            page.get_by_test_id("toast-close").click()
            expect(page.get_by_test_id("toast-text")).to_have_count(0)
            expect_pack(page, FRUIT, "apple")
            assert settled(page) == before

        place.hub.down = True
        choose_pack(page, away)
        fails("cannot be reached")
        place.hub.down, place.hub.bytes_per_second = False, SLOW
        begin(page, away)
        eventually(page, lambda: share(page) > 0.1)
        place.hub.broken, place.hub.down = 503, True  # cut off, and refused when the client tries again
        page.wait_for_timeout(300)
        place.hub.down = False
        fails("answers 503")
        move_alpha(page, 5)
        place.hub.requests.clear()
        place.hub.broken, place.hub.bytes_per_second = None, None
        choose_pack(page, away)
        expect_pack(page, "Meadow", "gala")
    [resumed] = [range for file, range in place.gets("meadow") if file == "vit_fruit_original.pth"]
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 20_000


def test_a_pack_without_its_data_set_takes_an_image_of_ones_own(place, tmp_path):
    place.plant("heath", with_examples=False)
    tab = Tab(place).open("heath")
    [said] = tab.said
    assert "Without examples, use an image of your own" in one_sentence(said)
    assert tab["pack"] == "heath" and tab["verdict"].startswith("### Upload an image of your own")
    assert (tab["bars"], tab["curves"], tab["heat"]) == (None, None, "")
    tab.own_image(noise(tmp_path / "own.png", 1))
    assert "### Your image" in tab["verdict"] and "<svg" in tab["heat"] and "gala" in json.dumps(tab["bars"])
    bars, curves = tab["bars"], tab["curves"]
    tab.move(5)
    assert tab["bars"] != bars and tab["curves"] == curves  # alpha is the page's script's
    assert "equally active" not in json.dumps(curves)  # nobody knows how active they are
    place.hub.files["datasets/grower/heath"] = {"test.parquet": examples_table(place.fruit)}
    other = Tab(place).open("heath")
    assert other.said == [] and "data-pick" in other["picker"] and other["bars"] is not None


def test_an_unlearned_model_is_fetched_when_it_is_chosen(place):
    place.plant("paddock")
    tab = Tab(place).open("paddock")
    away, name = tab.models[1], "Retrained, forgot boskoop"
    assert away.startswith(name) and away != name
    place.hub.requests.clear()
    place.hub.broken = 500
    before = tab.figures()
    tab.send("model", SECOND)
    assert "answers 500" in one_sentence(tab.said.pop()) and tab.figures() == before and tab["model"] == FIRST
    place.hub.broken = None
    time.sleep(opening.TWICE_SECONDS + 0.1)  # sooner, it is the same choice
    tab.send("model", SECOND)
    assert tab.said == [] and tab["model"] == SECOND and len(place.gets("paddock")) == 1
    assert tab.figures() != before and "boskoop" in tab["verdict"]
    assert tab.models[1] == name


# ---------------------------------------------------------------- overtaken: what a page asks for last is what it shows


class Handlers(NamedTuple):
    """The Restore tab's handlers as Gradio calls them; each gives what it shows, one {component: value} after another.

    They take (visitor, turn, ..., *CONTROLS).
    """

    open_pack: Callable[..., Iterator[dict]]
    choose_model: Callable[..., Iterator[dict]]
    own_model: Callable[..., Iterator[dict]]


CONTROLS = (1, "inject", 0.0, "all", "experts", "", 0)


@pytest.fixture
def handlers(pack_folder, monkeypatch, tmp_path) -> Handlers:
    """With the packs `fruit` and `berry`."""
    shutil.copytree(pack_folder, tmp_path / "more" / "berry")
    write_manifest(tmp_path / "more" / "berry", name="berry")
    monkeypatch.setenv("SOD_PACKS", os.pathsep.join([str(pack_folder.parent), str(tmp_path / "more")]))
    with gr.Blocks() as app:
        restore_tab.build(app, "fruit")
    named = {fn.api_name: fn.fn for fn in app.fns.values()}
    return Handlers(*(named[name] for name in Handlers._fields))


@pytest.fixture
def visitor(handlers) -> Visitor:
    return Visitor("fruit")


def changes(shown: dict) -> set[str | None]:
    """The elem_ids of the components that it changes."""
    return {component.elem_id for component, value in shown.items() if value != gr.skip()}


def last_of(shown: list[dict], name: str) -> Any:
    """What it says of a component in the end."""
    said = [value for found in shown for component, value in found.items() if component.elem_id == name]
    return [value for value in said if value != gr.skip()][-1]


def assert_silent(shown: Iterator[dict], meanwhile: tuple[set[str], ...] = ()) -> None:
    """Shows nothing but `meanwhile`.

    It ends with a yield that changes nothing: Gradio sends the last one again once the handler is through, and blanks
    all of the handler's components if there was none.
    """
    *before, last = [changes(found) for found in shown]
    assert last == set() and [found for found in before if found] == list(meanwhile)


def taking(turn: opening.Turn, work: Callable) -> Callable:
    """`work`, while which the page asks for something else."""

    def run(*arguments: Any) -> Any:
        turn.take()
        return work(*arguments)

    return run


@pytest.mark.filterwarnings("ignore::UserWarning")  # what is a toast in a running app
@pytest.mark.parametrize("failure", [None, PackError("the hub cannot be reached")], ids=["runs", "fails"])
def test_what_was_overtaken_shows_no_progress_and_no_mistake(handlers, visitor, monkeypatch, failure):
    """Between two looks at the download the page has asked for something else."""
    turn = opening.Turn()

    def done(wait: float | None) -> bool:
        turn.take()
        if failure is not None:
            raise failure
        return False

    coming = SimpleNamespace(done=done, here=1, total=2, name="file", number=0, share=0.5)
    monkeypatch.setattr(opening.download, "start", lambda *_: coming)
    monkeypatch.setattr(opening, "needed", lambda pack: [HubFile("user/repo", "file")])
    assert_silent(handlers.open_pack(visitor, turn, "berry", *CONTROLS))


@pytest.mark.parametrize("open_now", [True, False], ids=["the one that is open", "another"])
def test_who_goes_back_while_a_pack_comes_in_stays_there(handlers, visitor, monkeypatch, open_now):
    """The progress bar goes, and the download's end shows nothing."""
    turn, over = opening.Turn(), []
    coming = SimpleNamespace(done=lambda wait: bool(over), here=1, total=2, name="file", number=0, share=0.5)
    monkeypatch.setattr(opening.download, "start", lambda *_: coming)
    away = "berry" if open_now else "canvas"
    monkeypatch.setattr(
        opening, "needed", lambda pack: [HubFile("user/repo", "file")] if pack.manifest.name == away else []
    )
    first = handlers.open_pack(visitor, turn, away, *CONTROLS)
    assert changes(next(first)) == {"progress"}
    back = list(handlers.open_pack(visitor, turn, "fruit" if open_now else "berry", *CONTROLS))
    assert last_of(back, "progress").visible is False
    over.append(True)
    assert_silent(first)


def test_who_goes_back_while_a_model_comes_in_stays_there(handlers, visitor, monkeypatch):
    turn, over = opening.Turn(), []
    coming = SimpleNamespace(done=lambda wait: bool(over), here=1, total=2, name="file", number=0, share=0.5)
    monkeypatch.setattr(opening.download, "start", lambda *_: coming)
    monkeypatch.setattr(visitor.pack, "lacking", lambda id=None: [HubFile("user/repo", "file")] if id == SECOND else [])
    first = handlers.choose_model(visitor, turn, SECOND, *CONTROLS)
    assert changes(next(first)) == {"progress"}
    back = list(handlers.choose_model(visitor, turn, FIRST, *CONTROLS))
    assert last_of(back, "progress").visible is False
    over.append(True)
    assert_silent(first)
    assert visitor.entry.id == FIRST


def test_a_pack_that_was_overtaken_while_it_loaded_is_not_shown(handlers, visitor, monkeypatch):
    turn = opening.Turn()
    monkeypatch.setattr(opening, "Visitor", taking(turn, opening.Visitor))
    assert_silent(handlers.open_pack(visitor, turn, "berry", *CONTROLS), meanwhile=({"progress"},))


def test_a_model_that_was_overtaken_while_it_loaded_is_not_shown(handlers, visitor, monkeypatch):
    turn = opening.Turn()
    monkeypatch.setattr(visitor, "choose_model", taking(turn, visitor.choose_model))
    assert_silent(handlers.choose_model(visitor, turn, SECOND, *CONTROLS))


def test_an_own_model_that_was_overtaken_while_it_was_measured_is_not_shown(
    handlers, visitor, monkeypatch, pack_folder
):
    turn, path = opening.Turn(), pack_folder / "unlearned" / f"{SECOND}.pth"
    monkeypatch.setattr(visitor, "add_model", taking(turn, visitor.add_model))
    shown = handlers.own_model(request(), visitor, turn, str(path), None, "", *CONTROLS)
    assert_silent(shown, meanwhile=({"progress"},))


def test_a_choice_that_is_sent_twice_shows_what_one_shows(place):
    """Gradio's menus send theirs twice: when it is made, and when the menu is left."""
    once = Tab(place).open("grove").send("model", SECOND)
    for _ in range(3):
        twice = Tab(place)
        twice.send("pack", "grove", times=2).send("model", SECOND, times=2)
        assert twice.said == [] and twice.figures() == once.figures()
        assert (twice["pack"], twice["model"], twice.models) == ("grove", SECOND, once.models)
        assert twice.move(2).figures() != once.figures()


# ---------------------------------------------------------------- crashes


def test_what_goes_wrong_for_one_is_nothing_to_the_others(place, tmp_path):
    words, cut, misfit = tmp_path / "words.png", tmp_path / "cut.png", tmp_path / "misfit.pth"
    words.write_text("no image")
    cut.write_bytes(noise(cut, 3).read_bytes()[:2000])
    torch.save(random_vit(0, replace(SHAPE, dim=48)).state_dict(), misfit)
    client = Client(place.server.url, verbose=False)
    one, other = Tab(place), Tab(place).open("grove")
    one.own_image(noise(tmp_path / "own.png", 4)).move(2)
    before, answer = one.figures(), ask(client, tmp_path / "own.png")
    wrongs: list[Callable[[], Tab]] = [
        lambda: other.own_image(words),
        lambda: other.own_image(cut),
        lambda: other.own_model(misfit),
        lambda: other.own_model(words),
        lambda: other.send("picker", data={"pick": 99}),
        lambda: other.send("heat", data={"pick": "first"}),
        lambda: other.send("heat", data={}),
        lambda: other.send("pack", "moss"),
        lambda: other.send("Show the heat of one latent (its id, then Enter)", -3),
        lambda: other.send("Seed of the random features", -1),
    ]

    def crash(wrong: Callable[[], Tab]) -> None:
        said, shown = len(other.said), other.figures()
        try:
            wrong()
            one_sentence(other.said[said])
        except AssertionError as error:  # Gradio itself refuses what no page can send
            assert "not in the list of choices" in str(error) or "greater than" in str(error)
        assert other.figures() == shown
        other.values |= {other.id("pack"): "grove", other.id("alpha"): 0}

    with ThreadPoolExecutor(1) as elsewhere:
        crashes = elsewhere.submit(lambda: [crash(wrong) for wrong in wrongs])
        answers = []
        while not crashes.done():
            answers.append((one.move(2).figures(), ask(client, tmp_path / "own.png")))
        crashes.result()
    assert answers and all(found == (before, answer) for found in answers) and one.said == []
    for path in (words, cut):
        with pytest.raises(AppError):
            ask(client, path)
    assert ask(client, tmp_path / "own.png") == answer
    assert other.move(1).figures() != before and "elm" in other["verdict"]


# ---------------------------------------------------------------- models of one's own


def leave(page: Page, menu: str) -> None:
    """Opens a menu, and clicks elsewhere."""
    page.get_by_role("combobox", name=menu, exact=True).click()
    expect(page.get_by_role("option").first).to_be_visible()
    page.locator("header").click()
    expect(page.get_by_role("option")).to_have_count(0)
    page.wait_for_timeout(500)


def test_a_model_by_its_path_is_its_visitors_alone(place, window, tmp_path):
    """And it stays, with an image of theirs and with alpha, when a menu is left without a choice."""
    path = tmp_path / "mine.pth"
    original = vits.new(SHAPE)
    original.load_state_dict(torch.load(place.server.packs / "grove" / "vit_fruit_original.pth"))
    torch.save(forgetful(original, 2), path)  # it works, so that there is a verdict
    other = Tab(place)
    with opened(window, place.server) as page:
        choose_pack(page, GROVE)
        expect_pack(page, GROVE, TREES[0])
        before = traces(page, "bars")
        page.get_by_role("button", name="Your own unlearned model").click()
        expect(page.locator("#own-model")).to_be_visible()
        expect(page.locator("input[type=file]")).to_have_count(0)  # checkpoints are not uploaded here
        page.locator("#own-model input, #own-model textarea").fill(str(path))
        choose(page, "It forgot", TREES[2])
        page.get_by_role("button", name="Load and measure it").click()
        model = page.get_by_role("combobox", name="Unlearned model")
        expect(model).to_have_value(f"Own: mine.pth, forgot {TREES[2]}")
        expect(page.locator(".sod-note-model").first).to_contain_text(f"Forget accuracy ({TREES[2]})")
        expect(page.locator(".sod-note-model").first).to_contain_text("on 9 examples")
        expect(page.locator("#progress progress")).to_have_count(0)
        assert settled(page)[2][2] == f"▸ {TREES[2]}" and traces(page, "bars")["unlearned"] != before["unlearned"]
        page.get_by_role("button", name="Your own image").click()
        page.locator("#own input[type=file]").set_input_files(noise(tmp_path / "own.png", 2))
        expect(page.locator("#verdict h3")).to_contain_text("Your image")
        eventually(page, lambda: shown_examples(page) == [])
        move_alpha(page, 1)
        shown = settled(page)
        assert not any("Own:" in title for title in [*other.models, *Tab(place).models])
        for menu in ("Unlearned model", "Mode", "Pack"):
            leave(page, menu)
            expect(page.locator("#alpha input[type=number]")).to_have_value("1")
            expect(model).to_have_value(f"Own: mine.pth, forgot {TREES[2]}")
            assert settled(page) == shown


@pytest.mark.parametrize("lost", range(3))
def test_the_class_that_a_model_lost_most_of_is_found(place, tmp_path, lost):
    path = tmp_path / "own.pth"
    original = vits.new(SHAPE)
    original.load_state_dict(torch.load(place.server.packs / "grove" / "vit_fruit_original.pth"))
    torch.save(forgetful(original, lost), path)
    tab = Tab(place).open("grove").own_model(path)
    name = TREES[lost]
    assert tab.said == [] and tab["model"] == f"own-own.pth-{lost}"
    assert tab.models == ["Random labels, forgot elm", "Retrained, forgot oak", f"Own: own.pth, forgot {name}"]
    note = f"Forget accuracy ({name}) **0.0%**, retain accuracy (the others) **100.0%**, on 9 examples."
    assert tab["sod-note-model"] == note
    assert name in tab["verdict"] and f"▸ {name}" in json.dumps(tab["bars"], ensure_ascii=False)
    other = Tab(place).open("grove")
    before = other.figures()
    with pytest.raises(AssertionError):
        other.send("model", f"own-own.pth-{lost}")
    assert other.figures() == before


def test_a_class_that_is_named_is_taken(place, tmp_path):
    path = tmp_path / "own.pth"
    original = vits.new(SHAPE)
    original.load_state_dict(torch.load(place.server.packs / "grove" / "vit_fruit_original.pth"))
    torch.save(forgetful(original, 0, 2), path)
    tab = Tab(place).open("grove")
    tab.values[tab.id("It forgot")] = "yew"
    tab.own_model(path)
    assert tab["model"] == "own-own.pth-2" and "(yew) **0.0%**" in tab["sod-note-model"]
    assert "**50.0%**" in tab["sod-note-model"]  # of elm and oak


def test_a_file_that_was_written_again_is_read_again(place, tmp_path):
    """Who trains a model looks at one file many times."""
    path = tmp_path / "own.pth"
    tab, other = Tab(place), Tab(place)
    for mine in (tab, other):
        mine.values[mine.id("It forgot")] = "apple"
    shown = []
    for seed in (5, 6):
        torch.save(random_vit(seed).state_dict(), path)
        shown.append(tab.own_model(path).figures())
    assert tab.said == [] and shown[0] != shown[1]


def test_what_does_not_fit_is_told_with_both_shapes(place, tmp_path):
    tab = Tab(place)
    before = tab.figures()

    def refused(text: str | Path, *says: str) -> None:
        tab.own_model(text)
        said = one_sentence(tab.said.pop())
        assert tab.said == [] and all(part in said for part in says), said
        assert tab.figures() == before and len(tab.models) == 2 and tab["model"] == FIRST

    torch.save(random_vit(0, replace(SHAPE, dim=48)).state_dict(), tmp_path / "wide.pth")
    refused(tmp_path / "wide.pth", "wide.pth", "48", "32")
    torch.save(random_vit(0, replace(SHAPE, classes=5)).state_dict(), tmp_path / "five.pth")
    refused(tmp_path / "five.pth", "five.pth", "5", "3")
    torch.save({"a": 1}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "other.pth")
    (tmp_path / "words.pth").write_text("words")
    refused(tmp_path / "words.pth", "words.pth")
    refused(tmp_path / "nothing.pth", "there is no file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "there is no file")
    refused(tmp_path, "five.pth", "name what is meant")
    refused("  ", "name a checkpoint")
    refused("hub:user/repo", "hub:user/repo/file")
    assert tab.move(3).figures() != before


def test_a_model_from_the_hub(place, tmp_path):
    torch.save(random_vit(9).state_dict(), tmp_path / "own.pth")
    place.hub.files["someone/models"] = {"weights/forgot.pth": (tmp_path / "own.pth").read_bytes()}
    place.hub.requests.clear()
    tab = Tab(place)
    tab.values[tab.id("It forgot")] = "pear"
    before = tab.figures()
    tab.own_model("hub:someone/models/weights/missing.pth")
    assert "someone/models has no file weights/missing.pth" in one_sentence(tab.said.pop())
    tab.own_model("hub:someone/elsewhere/forgot.pth")
    assert "no repository someone/elsewhere" in one_sentence(tab.said.pop())
    assert tab.figures() == before and tab.said == []
    tab.own_model("hub:someone/models/weights/forgot.pth")
    assert tab["model"] == "own-forgot.pth-1" and tab.models[-1] == "Own: forgot.pth, forgot pear"
    by_hub, by_path = tab.figures(), Tab(place)
    by_path.values[by_path.id("It forgot")] = "pear"
    by_path.own_model(tmp_path / "own.pth")
    assert by_hub[:5] == by_path.figures()[:5] != before[:5]
    Tab(place).own_model("hub:someone/models/weights/forgot.pth")  # it is here by now
    assert [r.path.split("/resolve/")[1] for r in place.hub.requests if r.method == "GET"] == [
        f"{place.hub.commit}/weights/forgot.pth"
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "203.0.113.9"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Host": "suppression.example"},
        {"Host": "suppression.example:7860"},
        {"Host": "127.0.0.1.example"},
    ],
    ids=lambda headers: str(*headers.items()),
)
def test_who_sits_elsewhere_names_no_files(place, tmp_path, headers):
    path = tmp_path / "own.pth"
    torch.save(random_vit(5).state_dict(), path)
    place.hub.files["someone/models"] = {"own.pth": path.read_bytes()}
    place.hub.requests.clear()
    tab = Tab(place, headers)
    before = tab.figures()
    tab.own_model(path)
    assert "only at the computer that serves this page" in one_sentence(tab.said.pop())
    tab.own_model("/etc/hostname")
    assert "only at the computer that serves this page" in one_sentence(tab.said.pop())
    tab.own_model("hub:someone/models/own.pth")
    assert "fetches no models for visitors" in one_sentence(tab.said.pop())
    assert tab.said == [] and tab.figures() == before and len(tab.models) == 2
    assert place.hub.requests == []


def test_an_alpha_beyond_the_slider_is_its_end(place):
    tab = Tab(place).move(10)
    shown = tab.figures()
    for beyond, end in ((50, 10), (-3, 0), (None, 0), (1e39, 10)):
        tab.move(beyond)
        assert (tab.figures() == shown) == (end == 10) and not tab.said


def test_uploads_of_models_are_refused_even_without_the_button(place, tmp_path):
    tab = Tab(place)
    assert tab.components[tab.id("Or upload it")]["visible"] is False
    torch.save(random_vit(5).state_dict(), tmp_path / "own.pth")
    tab.values[tab.id("Or upload it")] = tab.upload(tmp_path / "own.pth")
    before = tab.figures()
    tab.send("own-load", data={})
    assert "takes no uploads of models" in one_sentence(tab.said.pop())
    assert tab.figures() == before and len(tab.models) == 2


# ---------------------------------------------------------------- who may bring what


def request(client: str | None = "127.0.0.1", **headers: str) -> Any:
    """Stands in for a gr.Request."""
    named = {name.replace("_", "-"): value for name, value in ({"host": "127.0.0.1:7860"} | headers).items()}
    return SimpleNamespace(headers=Headers(named), client=client and SimpleNamespace(host=client))


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "127.0.0.1", "localhost:7860", "localhost", "[::1]:7860"])
@pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
def test_a_browser_on_this_computer(host, client):
    assert intake.at_this_computer(request(client, host=host))


@pytest.mark.parametrize(
    "elsewhere",
    [
        request("192.168.1.7"),
        request(None),
        request("testclient"),
        request(host="192.168.1.2:7860"),
        request(host="0.0.0.0:7860"),
        request(host="demo.gradio.live"),
        request(host="localhost.evil.example:7860"),
        request(host=""),
        request(x_forwarded_for="127.0.0.1"),
        request(X_FORWARDED_FOR="127.0.0.1"),
        request(x_forwarded_for=""),
        request(forwarded="for=127.0.0.1"),
        request(x_real_ip="127.0.0.1"),
    ],
    ids=lambda r: f"{r.client and r.client.host} {dict(r.headers)}",
)
def test_a_browser_elsewhere(elsewhere):
    assert not intake.at_this_computer(elsewhere)


@pytest.mark.parametrize("value", ["", "0", "true", None])
def test_the_owner_allows_no_uploads_unless_they_say_so(monkeypatch, pack_folder, tmp_path, value):
    monkeypatch.setenv("SOD_PACKS", str(pack_folder.parent))
    monkeypatch.delenv("SOD_MAX_UPLOAD_MB", raising=False)
    if value is None:
        monkeypatch.delenv("SOD_ALLOW_UPLOADS", raising=False)
    else:
        monkeypatch.setenv("SOD_ALLOW_UPLOADS", value)
    (tmp_path / "own.pth").write_bytes(b"weights")
    for local in (True, False):
        with pytest.raises(PackError, match="takes no uploads"):
            intake.own_model("", str(tmp_path / "own.pth"), local)
    with pytest.raises(PackError, match="fetches no models for visitors"):
        intake.own_model("hub:user/repo/own.pth", None, False)
    assert intake.own_model("hub:user/repo/own.pth", None, True) == HubFile("user/repo", "own.pth")
    with gr.Blocks():
        assert panels.layout("fruit").own_file.visible is False
    assert ui.launch_options()["max_file_size"] == images.MAX_BYTES == 20 * 2**20


def test_the_owner_allows_uploads(monkeypatch, pack_folder, tmp_path):
    monkeypatch.setenv("SOD_PACKS", str(pack_folder.parent))
    monkeypatch.setenv("SOD_ALLOW_UPLOADS", "1")
    monkeypatch.delenv("SOD_MAX_UPLOAD_MB", raising=False)
    assert ui.launch_options()["max_file_size"] == 1500 * 10**6
    monkeypatch.setenv("SOD_MAX_UPLOAD_MB", "1")
    assert ui.launch_options()["max_file_size"] == images.MAX_BYTES  # images are no smaller than before
    path = tmp_path / "own.pth"
    path.write_bytes(bytes(10**6))
    for local in (True, False):
        assert intake.own_model("", str(path), local) == path
        assert intake.own_model("own.pth#ema", str(path), local) == Path(f"{path}#ema")
        assert intake.own_model(" #ema", str(path), local) == Path(f"{path}#ema")
        assert intake.own_model("hub:user/repo/other.pth#ema", str(path), local) == path  # these words mean another
    assert intake.own_model("hub:user/repo/own.pth@v2", None, False) == parse_hub("hub:user/repo/own.pth@v2")
    with pytest.raises(PackError, match="only at the computer"):  # uploads are one thing, the server's files another
        intake.own_model(str(path), None, False)
    path.write_bytes(bytes(10**6 + 1))
    with pytest.raises(PackError, match=r"own.pth is larger than the 1\.0 MB"):
        intake.own_model("", str(path), True)
    with gr.Blocks():
        file = panels.layout("fruit").own_file
    assert file.visible is not False and file.file_types == intake.CHECKPOINT_SUFFIXES
    monkeypatch.setenv("SOD_MAX_UPLOAD_MB", "lots")
    with pytest.raises(PackError, match="'lots' is no whole number of megabytes"):
        intake.own_model("", str(path), True)


def test_curves_are_of_the_model_that_is_there_once_a_change_is_over(visitor, handlers):
    controls, other = Controls(LAYERS[0], "inject", 1.0), Visitor("fruit")
    with visitor.lock:  # as held while a model is changed
        measuring = threading.Thread(target=visitor.measure, args=(controls, visitor.version))
        measuring.start()
        time.sleep(0.3)
        visitor.choose_model(SECOND)
    measuring.join()
    other.choose_model(SECOND)
    assert visitor.curves(controls) == other.measure(controls, other.version)


def test_own_files_of_one_name_are_told_apart(visitor, tmp_path):
    paths = [tmp_path / str(number) / "own.pth" for number in range(2)]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        torch.save(random_vit(20 + seed).state_dict(), path)
    ids = [visitor.add_model(path, path.name, 1) for path in (*paths, *paths)]
    assert ids == ["own-own.pth-1", "own-own.pth (2)-1"] * 2
    assert [Path(visitor.entry_called(id).file) for id in ids[:2]] == paths and len(visitor.entries) == 4
    assert visitor.entry_called(ids[1]).method == "Own: own.pth (2)"


def test_a_model_that_lost_nothing_has_to_be_told_its_class(visitor, tmp_path):
    torch.save(visitor.pack.original().state_dict(), tmp_path / "own.pth")
    with pytest.raises(PackError, match="say which class this model forgot"):
        visitor.add_model(tmp_path / "own.pth", "own.pth", None)
    assert visitor.add_model(tmp_path / "own.pth", "own.pth", 2) == "own-own.pth-2"


def test_a_class_without_examples_is_not_measured(visitor, monkeypatch):
    of_others = [example for example in visitor.pack.examples() if example.label != 1]
    monkeypatch.setattr(visitor.pack, "examples", lambda: of_others)
    monkeypatch.setattr(visitor.pack, "example_predictions", lambda model: torch.zeros(len(of_others)))
    assert visitor.pack.accuracy_on_examples(visitor.pack.original(), 1) == (None, 0.5)


def test_what_a_visitor_makes_the_server_fetch_is_bounded(handlers, visitor, monkeypatch, tmp_path):
    """Who sits at the server is not bounded."""
    monkeypatch.setenv("SOD_ALLOW_UPLOADS", "1")
    monkeypatch.setenv("SOD_MAX_UPLOAD_MB", "1")
    out = io.BytesIO()
    torch.save({"state_dict": random_vit(5).state_dict(), "optimizer": torch.zeros(300_000)}, out)
    assert len(out.getvalue()) > 10**6
    with FakeHub({"user/repo": {"own.pth": out.getvalue()}}) as hub:
        hub.use(monkeypatch, tmp_path)
        words = ("hub:user/repo/own.pth", None, "apple", *CONTROLS)
        elsewhere = request(x_forwarded_for="203.0.113.9")
        with pytest.warns(UserWarning, match=r"own.pth has 1\.\d MB; at most 1\.0 MB are taken"):
            shown = list(handlers.own_model(elsewhere, visitor, opening.Turn(), *words))
        assert not any(r.method == "GET" for r in hub.requests) and visitor.entry.id == FIRST
        assert not any("verdict" in changes(found) for found in shown)
        shown = list(handlers.own_model(request(), visitor, opening.Turn(), *words))
        assert any("verdict" in changes(found) for found in shown) and visitor.entry.id == "own-own.pth-0"


@pytest.mark.filterwarnings("ignore:The value passed into gr.Dropdown")
def test_a_page_says_which_of_several_models_in_a_file_it_read(handlers, visitor, monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setattr(opening.gr, "Info", said.append)
    path = tmp_path / "train.ckpt"
    torch.save({"state_dict": random_vit(5).state_dict(), "state_dict_ema": random_vit(6).state_dict()}, path)
    for text, title in ((f"{path}", "train.ckpt"), (f"{path}#state_dict_ema", "train.ckpt#state_dict_ema")):
        list(handlers.own_model(request(), visitor, opening.Turn(), text, None, "apple", *CONTROLS))
        assert visitor.entry.id == f"own-{title}-0"
        expected = visitor.pack.model_at(Path(text))
        assert len(said) == 1 and "train.ckpt#state_dict_ema" in said[0]
        seed = 6 if "#" in text else 5
        assert torch.equal(expected.head.weight, random_vit(seed).head.weight)
    elsewhere = request(x_forwarded_for="203.0.113.9")
    with pytest.warns(UserWarning, match="only at the computer"):
        list(handlers.own_model(elsewhere, visitor, opening.Turn(), str(path), None, "apple", *CONTROLS))


def test_an_image_stays_bounded_where_models_may_be_larger(visitor, monkeypatch, tmp_path):
    monkeypatch.setenv("SOD_ALLOW_UPLOADS", "1")
    assert ui.launch_options()["max_file_size"] > images.MAX_BYTES
    path = noise(tmp_path / "large.bmp", 1)
    with path.open("ab") as file:
        file.truncate(images.MAX_BYTES)
    visitor.own_image(str(path))
    before = visitor.picture_uri
    with path.open("ab") as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(images.ImageError, match="20 MB"):
        visitor.own_image(str(path))
    assert visitor.picture_uri == before


# ---------------------------------------------------------------- the pack that a page opens on


@pytest.fixture
def shelf(pack_folder, monkeypatch, tmp_path) -> Path:
    """Packs on the disk: `fruit`, and `orchard`, of which there is only pack.json. No variable says what to open."""
    for name in ("SOD_DEFAULT_PACK", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    packs = tmp_path / "packs"
    shutil.copytree(pack_folder, packs / "fruit")
    with FakeHub({}) as hub:
        plant(packs, hub, pack_folder, "orchard")
        hub.use(monkeypatch, tmp_path / "home")  # nothing is cached
        monkeypatch.setenv("SOD_PACKS", str(packs))
        yield packs
        assert hub.requests == []


@pytest.mark.parametrize(
    ("asked", "opens"),
    [(None, "canvas"), ("fruit", "fruit"), ("orchard", "orchard"), ("moss", "canvas"), ("", "canvas")],
)
def test_the_default_pack(shelf, monkeypatch, caplog, asked, opens):
    """The one that is asked for, even if it has to be downloaded; a name that is none is told in the log."""
    if asked is not None:
        monkeypatch.setenv("SOD_DEFAULT_PACK", asked)
    assert ui.default_pack() == opens
    assert ("SOD_DEFAULT_PACK names no pack: moss" in caplog.text) is (asked == "moss")


def test_a_default_pack_that_is_damaged_gives_way(shelf, monkeypatch, caplog):
    (shelf / "fruit" / "pack.json").write_text('{"format": 1,')
    monkeypatch.setenv("SOD_DEFAULT_PACK", "fruit")
    assert ui.default_pack() == "canvas"
    assert "pack fruit cannot be used" in caplog.text


def test_a_space_opens_on_what_it_preloads(shelf, monkeypatch):
    """cifar10 once it is there, the embedded pack if it is not."""
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert ui.default_pack() == "canvas"
    needed = ui.needed
    monkeypatch.setattr(ui, "needed", lambda pack: [] if pack.manifest.name == "cifar10" else needed(pack))
    assert ui.default_pack() == "cifar10"
    monkeypatch.setenv("SOD_DEFAULT_PACK", "fruit")
    assert ui.default_pack() == "fruit"
    monkeypatch.delenv("SOD_DEFAULT_PACK")
    monkeypatch.delenv("SPACE_ID")
    assert ui.default_pack() == "canvas"


def test_without_the_embedded_pack_the_first_that_is_here_is_opened(shelf, monkeypatch):
    found = {name: shelf / name for name in ("orchard", "fruit")}
    monkeypatch.setattr(ui, "folders", lambda: found)
    assert ui.default_pack() == "fruit"
    del found["fruit"]
    with pytest.raises(PackError, match="there is no pack to open"):
        ui.default_pack()
