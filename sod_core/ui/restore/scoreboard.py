"""The Scoreboard tab: every unlearned model of the pack judged by the same controls, from the stored evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from ...restore import report, scores, spread, working
from ...restore.judged import ALPHAS, CONTROLS, YARDSTICK
from ...restore.pack import Pack, shared_pack
from ...unlearn import TITLES
from .. import exports, handling
from . import answers, figures
from . import exports as restore_exports
from .opening import Opener, Turn
from .visitor import Visitor

HEADERS = ["model", "forgot", "verdict", "forget", "retain", "R experts", "interval", "R random", "R matched"]
HEADERS += [
    "margin",
    "R copied CLS",
    "R copied state",
    "R patches",
    "R all",
    "overshoot",
    "readout",
    "readout margin",
    "probe",
    "seconds",
    "id",
    "link",
]
LINK = HEADERS.index("link")
PRIVATE = {"show_progress": "hidden", "api_visibility": "private"}


def build(tab: gr.Tab, tabs: gr.Tabs, opener: Opener, settled: dict, first: str) -> None:
    """Fills the current tab: the table, the picture, the rules of the verdict, the CSV.

    It needs no visitor: until one has come it shows pack `first`, on which pages open.
    """
    panel = opener.panel
    note = gr.Markdown(elem_classes="sod-quiet", elem_id="board-note")
    kinds: list[Any] = ["markdown" if name == "link" else "auto" for name in HEADERS]
    table = gr.Dataframe(
        headers=HEADERS, datatype=kinds, interactive=False, wrap=False, elem_id="board", show_search="filter"
    )
    picture = gr.Plot(show_label=False, elem_id="board-plot")
    gr.Markdown(_rules(), elem_classes="sod-quiet")
    export = exports.Menu("scoreboard", ("png", "csv", "json"))
    export.wire(restore_exports.make_board, [gr.State(first), opener.visitor])
    several = gr.Markdown(elem_classes="sod-wide-table", elem_id="board-spread", visible=False)
    dots = gr.Plot(show_label=False, elem_id="board-spread-plot", visible=False)
    shown = [note, table, picture, several, dots]
    of = gr.State("")  # the pack whose figures are shown
    arrived = handling.kept(_arrived, len(shown) + 1), [opener.visitor, of], [*shown, of]
    selected = handling.kept(partial(_selected, first), len(shown) + 1), opener.visitor, [*shown, of]
    tab.select(*selected, **PRIVATE, queue=False)
    for opened in (opener.loaded, opener.opened):
        opened.then(*arrived, **PRIVATE)
    outputs = [tabs, panel.alpha, panel.layer, panel.mode, panel.progress, panel.pack, panel.model, panel.own]
    outputs += panel.everything

    def open_row(event: gr.SelectData, visitor: Visitor | None, turn: Turn, *values: Any) -> Iterator[dict]:
        """Shows a row's model in the Restore tab, at the layer and mode it was judged at and where it peaks."""
        if event.index[1] == LINK:  # the browser follows it
            yield {panel.progress: gr.skip()}
            return
        visitor = answers.there(visitor)
        board = report.read(visitor.pack.manifest.folder)
        if board is None:
            raise ValueError("what was stored is gone; measure anew")
        id = event.row_value[HEADERS.index("id")]
        alpha = next(row["alpha"] for row in board["rows"] if row["id"] == id) or 0.0  # None of one without figures
        settings = board["settings"]
        at = (settings["layer"], settings["mode"], alpha, *values[3:])
        menus = {panel.alpha: alpha, panel.layer: settings["layer"], panel.mode: settings["mode"]}
        yield {tabs: gr.Tabs(selected="restore")} | menus
        yield from opener.show_model(visitor, turn, id, at)

    table.select(
        handling.kept_stream(open_row, lambda event, visitor, *_: _not_opened(opener, visitor)),
        [opener.visitor, opener.turn, *panel.controls],
        outputs,
        concurrency_limit=32,
        **PRIVATE,
    ).then(**settled)


def _not_opened(opener: Opener, visitor: Visitor | None) -> dict:
    """The menus, and the controls that went ahead, go back to what is shown."""
    panel, back = opener.panel, opener.not_chosen(visitor)
    if visitor is not None and visitor.controls is not None:
        shown = visitor.controls
        back |= {panel.alpha: shown.alpha, panel.layer: shown.layer, panel.mode: shown.mode}
    return back


def _selected(first: str, visitor: Visitor | None) -> list:
    """What is shown, and of which pack."""
    pack = shared_pack(first) if visitor is None else visitor.pack
    return [*_show(pack), pack.manifest.name]


def _arrived(visitor: Visitor | None, of: str) -> list:
    """Fills the tab anew where a page has opened another pack than the tab shows."""
    if visitor is None or of in ("", visitor.pack.manifest.name):
        return [gr.skip()] * 6
    return [*_show(visitor.pack), visitor.pack.manifest.name]


def _show(pack: Pack) -> list:
    return [*_stored(pack), *_spread(pack)]


def _spread(pack: Pack) -> list:
    """How much the figures vary over classes and seeds, where the pack knows."""
    try:
        found = spread.read(pack)
    except ValueError as error:
        return [gr.Markdown(f"{str(error).capitalize()}.", visible=True), gr.Plot(visible=False)]
    if found is None:
        return [gr.Markdown(visible=False), gr.Plot(visible=False)]
    others = spread.beside(pack.manifest.folder)
    text = f"### Over classes and seeds\n{spread.told(found)}\n\n{spread.table(found)}"
    for name, rows in others.items():
        text += f"\n\n**Beside {name}**: each of its models, one seed.\n\n{spread.compared(found, name, rows)}"
    return [gr.Markdown(text, visible=True), gr.Plot(figures.spread(spread.rows(found), others), visible=True)]


def _stored(pack: Pack) -> list:
    command = f"`python -m sod_core evaluate --pack {pack.manifest.name} --store`"
    try:
        board = report.read(pack.manifest.folder)
        problem = f"Nothing is stored for {pack.manifest.title}; {command} does it."
    except ValueError as error:
        board, problem = None, f"{error}. {command} measures anew."
    if board is None:
        return [problem, [], None]
    settings, data = board["settings"], f"{board['images']} images ({board['data']})"
    note = (
        f"**{pack.manifest.title}**: {data}, layer {settings['layer']}, mode {settings['mode']}, alpha up to "
        f"{settings['max_alpha']:g}. Click a row to see the model in the Restore tab, at the alpha where it peaks; "
        "its link stands at the row's end; to sort, point at a column's head and open its ⋮. "
        f"{report.caution(board['rows'])}"
    )
    if any(row["method"] == YARDSTICK for row in board["rows"]):
        note += pack.manifest.retraining_caution
    return [note, cells(board, pack), figures.scoreboard(board["rows"])]


def cells(board: dict[str, Any], pack: Pack) -> list[list]:
    """The table's rows, in the order of HEADERS."""
    seconds = {entry.id: entry.seconds for entry in pack.manifest.unlearned}
    found = []
    for row in board["rows"]:
        r = {name: score["value"] for name, score in row["scores"].items()}
        experts = row["scores"]["experts"]
        interval = "" if r["experts"] is None else f"{experts['low']:.2f} to {experts['high']:.2f}"
        probe = max((value for value in row["probe"].values() if value is not None), default=None)
        chance, others = ([r[name] for name in part] for part in (CONTROLS[:2], CONTROLS[2:]))
        found.append(
            [
                TITLES.get(row["method"], row["method"]),
                row["target"],
                row["verdict"],
                _rounded(row["unlearned"]),
                _rounded(row["retain_unlearned"]),
                _rounded(r["experts"]),
                interval,
                *(_rounded(value) for value in chance),
                report.margin(row["margin"]),
                *(_rounded(value) for value in (*others, row["overshoot"], row["readout"])),
                report.margin(row["readout_margin"]),
                _rounded(probe),
                _rounded(seconds.get(row["id"]), 0),
                row["id"],
                _link(board, row, pack),
            ]
        )
    return found


def _link(board: dict[str, Any], row: dict[str, Any], pack: Pack) -> str:
    """To the row's model in the Restore tab, as a click on the row shows it; none to what the pack does not list."""
    if row["id"] not in [entry.id for entry in pack.manifest.unlearned]:
        return ""
    settings = board["settings"]
    at = {"layer": settings["layer"], "mode": settings["mode"], "alpha": f"{row['alpha'] or 0:g}"}
    return f"[open](?{urlencode({'pack': pack.manifest.name, 'model': row['id']} | at)})"


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def _rules() -> str:
    return (
        "**Verdict**: by the *margin*, the experts' R less the better of *random* and *matched*, less what the same is "
        "in the models retrained without the class; in brackets its 95 % interval, over images. Every interval has to "
        f"agree as a whole: from {scores.SUPPRESSED} on *suppressed*, below {scores.DELETED} *deleted*, between them "
        f"*partly*, else *{scores.UNDECIDED}* by so many images. R = (restored - unlearned) / "
        "(original - unlearned) on the forgotten class, every edit at the alpha that suits it best. Two verdicts are "
        f"for what no edit at this layer can show. *{scores.SUPPRESSED_AFTER}*: it is not *suppressed* by that, but "
        "the original's own later blocks still find the class in this model's hidden state (*readout*, at least "
        f"{scores.SUPPRESSED} more than in a model retrained without the class, *readout margin*): it is there, and "
        "only later blocks "
        f"hide it. *{scores.CANNOT_TELL}*: that is not so either, and no edit, not even the original's whole state "
        f"(*R copied state*), restores {scores.DELETED}: what follows this layer does not listen to it; or random "
        "features restore as much as the experts. Look at the probe, and evaluate another layer. There is *no verdict* "
        f"on a model that does not work, with a retain accuracy below {working.LEAST_RETAINED:.0%} of the original's, "
        "nor on one whose outputs seem to be in another order; one that cannot be loaded, or gives NaN, *cannot be "
        "scored*.\n\n"
        f"*overshoot*: R of the experts up to alpha {ALPHAS[-1]:g}. *readout*: the original's later blocks run on the "
        "unlearned model's hidden state; share of the class's images that they name rightly, less the share of the "
        "others that they take for it (1 all there, 0 chance). *probe*: how well a linear classifier reads the class "
        "in the unlearned model's CLS tokens (balanced accuracy, best layer; 0.5 is chance). It is high in a model "
        "retrained without the class, too, so it decides nothing. That model is the yardstick: where a control "
        "restores even that one, what it says of the others is worth nothing."
    )
