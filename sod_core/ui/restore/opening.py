"""Handlers that open a pack or an unlearned model, and fetch it from the hub first where it is not here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...packs import download, hub, own
from ...packs.errors import PackError
from ...packs.hub import HubFile
from ...restore.pack import folders, shared_pack
from .. import handling, intake, overlays
from . import answers, links
from .panel import FORGOTTEN, MOST_LOST, Panel, model_choices, pack_choices
from .ready import needed
from .visitor import Controls, Visitor

LOOK_SECONDS = 0.3
"""Between two looks at a download's progress."""
TWICE_SECONDS = 1.0
"""The same choice within this time is one choice."""


class Turn:
    """Counts what one page has asked to open: whatever is overtaken ends, and shows nothing more."""

    def __init__(self) -> None:
        self.number = 0
        self.coming = ""
        """Which menu's choice is on its way: "pack", "model" or "" for neither."""
        self._asked, self._when = "", 0.0

    def again(self, name: str) -> bool:
        """Whether the same was asked a moment ago: a menu sends its choice when it is made and when it is left."""
        repeated = name == self._asked and time.monotonic() - self._when < TWICE_SECONDS
        self._asked, self._when = name, time.monotonic()
        return repeated

    def take(self) -> int:
        """A new number; it is overtaken once `number` has gone on."""
        self.number += 1
        return self.number


class Opener:
    """The handlers; what they yield are {component: value} for the components that change."""

    def __init__(self, panel: Panel, visitor: gr.State):
        self.panel, self.visitor = panel, visitor
        self.turn = gr.State(Turn())  # Gradio gives each page a copy of its own

    def wire(self, app: gr.Blocks, settled: dict) -> None:
        """Connects the pack and model menus, and the visitor's own model. `settled`: what runs after each."""
        p, visitor, turn = self.panel, self.visitor, self.turn
        every = {"trigger_mode": "multiple", "concurrency_limit": 32, "show_progress": "hidden"}
        opened = [visitor, p.pack, p.progress, p.model, p.own_class, *p.menus, *p.everything]
        self.loaded = app.load(
            handling.kept_stream(self.open_page, lambda request, *arguments: self.not_opened(*arguments)),
            [visitor, turn, p.pack, *p.controls],
            opened,
            api_visibility="private",
            **every,
        )
        self.loaded.then(**settled)
        self.opened = p.pack.input(
            handling.kept_stream(self.open_pack, self.not_opened),
            [visitor, turn, p.pack, *p.controls],
            opened,
            api_name="open_pack",
            api_visibility="undocumented",  # benchmarks/slider.py calls it
            **every,
        )
        self.opened.then(**settled)
        chosen = [p.progress, p.pack, p.model, p.own, *p.everything]
        p.model.input(
            handling.kept_stream(self.choose_model, self.not_chosen),
            [visitor, turn, p.model, *p.controls],
            chosen,
            api_visibility="private",
            **every,
        ).then(**settled)
        nothing = gr.State(None)
        for asked, file in ((p.own_load.click, p.own_file), (p.own_model.submit, nothing)):  # Enter means what is typed
            asked(
                handling.kept_stream(self.own_model, lambda request, *arguments: self.not_chosen(*arguments)),
                [visitor, turn, p.own_model, file, p.own_class, *p.controls],
                chosen,
                api_visibility="private",
                **every,
            ).then(**settled)

        p.link.click(
            handling.kept_stream(self.by_key, lambda event, *arguments: self.not_chosen(*arguments)),
            [visitor, turn, *p.controls],
            chosen,
            api_visibility="private",
            **every,
        ).then(**settled)
        p.own_order.click(
            handling.kept_stream(self.take_order, self.not_chosen),
            [visitor, turn, *p.controls],
            chosen,
            api_visibility="private",
            **every,
        ).then(**settled)

    def open_page(
        self, request: gr.Request, before: Visitor | None, turn: Turn, name: str, *values: Any
    ) -> Iterator[dict]:
        """As `open_pack`, of a page that opens: at the place that its address names."""
        link = links.Link(dict(request.query_params), "restore", "scoreboard", "atlas")
        name = link.pack(name)
        yield from self._until_overtaken(turn, lambda: self._opened(before, name, values, link), "pack")
        if link.problems:
            gr.Warning(link.sentence())

    def open_pack(self, before: Visitor | None, turn: Turn, name: str, *values: Any) -> Iterator[dict]:
        """Fetches what the pack lacks, then shows it. A page that opens falls back to a pack that is here."""
        if before is not None:
            again = turn.again(name)
            if again or before.pack_name == name:
                yield self._nothing() if again else self._stay(turn, "pack")
                return
        yield from self._until_overtaken(turn, lambda: self._opened(before, name, values), "pack")

    def _opened(
        self, before: Visitor | None, name: str, values: tuple, link: links.Link | None = None
    ) -> Iterator[dict]:
        seen = None if before is None else before.controls
        try:
            yield from self._fetched(name)
            visitor = yield from self._made(name, link)
        except PackError as error:
            if before is not None:
                raise
            gr.Warning(str(error))
            visitor = Visitor(next(other for other in _here() if other != name))
        yield self._nothing()  # who was overtaken ends here
        if before is not None:
            values = _latest(before, seen, values)
            with before.lock:  # what is still measured for the old pack shows nothing on the new one's page
                before.version += 1
        controls = _for_pack(visitor, values)
        if link is not None and visitor.pack_name == name:
            controls = link.opened(visitor, controls)
        yield {self.visitor: visitor} | self._pack_shown(visitor, controls)

    def _made(self, name: str, link: links.Link | None) -> Generator[dict, None, Visitor]:
        """With the model that a link names, and no other's pass; the pack's first where that cannot be had."""
        pack = shared_pack(name)
        id = None if link is None else link.model(pack)
        if link is not None and id is not None:
            try:
                yield from self._watched(pack.lacking(id))
                return Visitor(name, id)
            except PackError as error:
                link.problems.append(str(error))
        return Visitor(name)

    def not_opened(self, before: Visitor | None, *_: Any) -> dict:
        """The menu goes back to the pack that is open."""
        back = {} if before is None else {self.panel.pack: gr.update(value=before.pack_name)}
        return {self.panel.progress: gr.HTML(visible=False)} | back

    def choose_model(self, visitor: Visitor | None, turn: Turn, id: str, *values: Any) -> Iterator[dict]:
        """Fetches the model if it is not here, then shows it."""
        visitor = answers.there(visitor)
        again = turn.again(id)
        if again or visitor.entry.id == id:
            yield self._nothing() if again else self._stay(turn, "model")
            return
        yield from self.show_model(visitor, turn, id, values)

    def by_key(self, event: gr.EventData, visitor: Visitor | None, turn: Turn, *values: Any) -> Iterator[dict]:
        """Shows the model whose number was pressed, if there is one."""
        entries = answers.there(visitor).entries
        if int(event.model) < len(entries):
            yield from self.choose_model(visitor, turn, entries[int(event.model)].id, *values)
        else:
            yield self._nothing()

    def show_model(self, visitor: Visitor, turn: Turn, id: str, values: tuple) -> Iterator[dict]:
        """As `choose_model`, also for the model that is shown already."""
        yield from self._until_overtaken(turn, lambda: self._chosen(visitor, id, values), "model")

    def _chosen(self, visitor: Visitor, id: str, values: tuple) -> Iterator[dict]:
        seen = visitor.controls
        if id in [entry.id for entry in visitor.pack.manifest.unlearned]:
            yield from self._watched(visitor.pack.lacking(id))
        yield self._nothing()  # who was overtaken ends here, before the visitor's model changes
        yield self._model_shown(visitor, id, _latest(visitor, seen, values))

    def own_model(
        self,
        request: gr.Request,
        visitor: Visitor | None,
        turn: Turn,
        text: str | None,
        upload: str | None,
        forgotten: str,
        *values: Any,
    ) -> Iterator[dict]:
        """Takes a checkpoint of the visitor's own into their list, and shows it."""
        visitor = answers.there(visitor)
        local = intake.at_this_computer(request)
        found = intake.own_model(text or "", upload, local)
        yield from self._until_overtaken(turn, lambda: self._taken(visitor, found, local, forgotten, values))

    def _taken(
        self, visitor: Visitor, found: HubFile | Path, local: bool, forgotten: str, values: tuple
    ) -> Iterator[dict]:
        seen = visitor.controls
        if isinstance(found, HubFile):
            file, _ = own.without_key(found)
            yield from self._watched([file], None if local else intake.most_bytes())
            if local:  # nobody else may make the server fetch more than one bounded file
                yield from self._watched(own.shards(file))
            elif own.shards(file):
                raise PackError("a checkpoint in several files is taken only at the computer that serves this page")
            found = own.fetch(found)
        yield {self.panel.progress: _bar("Measuring it on the example images ...")}
        target = visitor.pack.manifest.class_index(forgotten) if forgotten else None
        with visitor.lock:
            id = visitor.add_model(found, found.name, target)
        if visitor.pack.note(found):
            gr.Info(visitor.pack.note(found))
        yield self._nothing()  # as above
        yield self._model_shown(visitor, id, _latest(visitor, seen, values))

    def take_order(self, visitor: Visitor | None, turn: Turn, *values: Any) -> Iterator[dict]:
        """Shows the visitor's own model with its outputs in the order that is offered."""
        visitor = answers.there(visitor)
        yield from self._until_overtaken(turn, lambda: self._ordered(visitor, values))

    def _ordered(self, visitor: Visitor, values: tuple) -> Iterator[dict]:
        seen = visitor.controls
        yield {self.panel.progress: _bar("Measuring it on the example images ...")}
        with visitor.lock:
            id = visitor.take_order()
        yield self._nothing()  # as above
        yield self._model_shown(visitor, id, _latest(visitor, seen, values))

    def not_chosen(self, visitor: Visitor | None, *_: Any) -> dict:
        """The menus go back to the pack and the model that are shown."""
        p, back = self.panel, {}
        if visitor is not None:
            back = {p.model: gr.update(value=visitor.entry.id), p.pack: gr.update(value=visitor.pack_name)}
        return {self.panel.progress: gr.HTML(visible=False)} | back

    # ------------------------------------------------------------ parts

    def _stay(self, turn: Turn, menu: str) -> dict:
        """What is open was chosen again, or sent again by a menu that was left: what the menu had sent for goes."""
        if turn.coming != menu:
            return self._nothing()
        turn.take()
        turn.coming = ""
        return {self.panel.progress: gr.HTML(visible=False)}

    def _until_overtaken(self, turn: Turn, steps: Callable[[], Iterator[dict]], menu: str = "") -> Iterator[dict]:
        """The steps as long as the page asks for nothing else to be opened; after that not even their errors."""
        mine, turn.coming = turn.take(), menu
        try:
            for step in steps():
                if turn.number != mine:
                    break
                yield step
        except Exception:
            if turn.number == mine:
                raise
        finally:
            if turn.number == mine:
                turn.coming = ""
        if turn.number != mine:
            yield self._nothing()

    def _nothing(self) -> dict:
        """Changes nothing: Gradio shows a handler's last answer again once it is through."""
        return {self.panel.progress: gr.skip()}

    def _fetched(self, name: str) -> Iterator[dict]:
        pack = shared_pack(name)
        yield from self._watched(needed(pack))
        try:
            yield from self._watched(pack.lacking_examples())
        except PackError as error:
            gr.Warning(f"{error}. Without examples, use an image of your own.")
        yield {self.panel.progress: _bar(f"Opening {pack.manifest.title} ...")}

    def _watched(self, files: list[HubFile], most_bytes: int | None = None) -> Iterator[dict]:
        """Progress bars until the files are here. Raises PackError."""
        if not files:
            return
        coming = download.start(files, most_bytes)
        while not coming.done(LOOK_SECONDS):
            size = f"{hub.megabytes(coming.here)} of {hub.megabytes(coming.total)}"
            label = f"{coming.name}: {size} (file {coming.number + 1} of {len(files)})"
            yield {self.panel.progress: _bar(label, coming.share)}

    def _pack_shown(self, visitor: Visitor, controls: Controls) -> dict:
        p, manifest = self.panel, visitor.pack.manifest
        names = [(name, name) for name in manifest.classes]
        values = dict(zip(p.controls, astuple(controls)))
        values[p.layer] = gr.Radio(list(manifest.layers), value=controls.layer)
        values[p.expert_class] = gr.Dropdown([FORGOTTEN, *names], value=controls.expert_class)
        shown = answers.after(visitor, astuple(controls), new_image=True, new_order=True)
        own = ", ".join(map(str, visitor.own_ids))
        return (
            {
                p.pack: gr.Dropdown(pack_choices(), value=visitor.pack_name),
                p.progress: gr.HTML(visible=False),
                p.model: gr.Dropdown(model_choices(visitor.entries, visitor.pack), value=visitor.entry.id),
                p.own_class: gr.Dropdown([MOST_LOST, *names], value=""),
                p.own_list: gr.Textbox(own, visible=controls.features == "own"),
                p.latent: visitor.latent(controls.layer),
            }
            | values
            | dict(zip(p.everything, shown))
        )

    def _model_shown(self, visitor: Visitor, id: str, values: tuple) -> dict:
        p = self.panel
        shown = answers.after(visitor, values, lambda v, _: v.choose_model(id), new_image=True, new_order=True)
        return {
            p.progress: gr.HTML(visible=False),
            p.pack: gr.update(value=visitor.pack_name),  # one that was on its way is given up
            p.model: gr.Dropdown(model_choices(visitor.entries, visitor.pack), value=id),
            p.own: gr.skip() if visitor.example is None else None,
        } | dict(zip(p.everything, shown))


def _for_pack(visitor: Visitor, values: tuple) -> Controls:
    """The page's controls, in a pack that has no such layer the middle one; experts are of its forgotten class."""
    controls, layers = answers.read(values), visitor.pack.manifest.layers
    layer = controls.layer if controls.layer in layers else layers[len(layers) // 2]
    return replace(controls, layer=layer, expert_class="")


def _latest(visitor: Visitor, seen: Controls | None, values: tuple) -> tuple:
    """`values`, or what the page's controls have said since the visitor's were `seen`."""
    latest = visitor.controls
    return values if latest is seen or latest is None else astuple(latest)


def _bar(label: str, share: float | None = None) -> gr.HTML:
    return gr.HTML(overlays.progress_bar(label, share), visible=True)


def _here() -> list[str]:
    """Names of the packs that need no download."""
    found = []
    for name in folders():
        try:
            if not needed(shared_pack(name)):
                found.append(name)
        except PackError:
            continue
    return found
