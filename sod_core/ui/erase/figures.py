"""What the Erase tab shows of a drawing: pictures, heatmaps, curves, and what the judges say of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from ...erase.unlearncanvas import Asked
from .. import overlays
from ..theme import ACCENT, ORIGINAL, calm
from .panel import SIDE
from .shown import Shown

_ENDS = 60
"""Characters that are shown from each end of what of a prompt was not read."""
_NAMES = 8
"""A judge's bars show so many names at most."""


def enlarged(image: Image.Image) -> Image.Image:
    """At least SIDE pixels high, by whole multiples, so that a small picture keeps its pixels' edges soft."""
    times = max(1, SIDE // image.height)
    return image if times == 1 else image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)


def compared(before: Image.Image, after: Image.Image) -> str:
    """Both in one frame: before on the left of the slider's handle, after on its right."""
    return (
        '<div class="sod-title sod-sides"><span>before</span><span>after</span></div>'
        f'<figure class="sod-compare"><img src="{_uri(before)}" alt="before"><img src="{_uri(after)}" alt="after">'
        '<input type="range" min="0" max="100" value="50" aria-label="before, on the left, against after"></figure>'
    )


def most_likely(row: dict[str, float]) -> str:
    """The name that a judge gives the largest probability."""
    return max(row, key=lambda name: row[name])


def headline(shown: Shown) -> str:
    """What the judges saw, in a sentence; and what of the prompt the model did not see."""
    concepts = " and ".join(shown.how.concepts)
    left_out = _abridged(shown.left_out)
    unread = f"\n\nThe prompt is too long for this model: it did not read “{left_out}”." if left_out else ""
    if concepts and set(shown.how.each("factor")) == {1} and shown.how.fidelity == "exact":
        return f"### Nothing is erased.\nA factor of 1 changes nothing.{unread}"
    if not concepts:
        return f"### Nothing is erased.\nChoose a concept.{unread}"
    title = f"### {concepts} erased"
    said = []
    for what, (before, after) in shown.judged.items():
        first, now = most_likely(before), most_likely(after)
        same = f"still {first}" if now == first else f"{first} before, now {now}"
        said.append(f"{what}: {same} ({before[first]:.0%} to {after[first]:.0%})")
    cut = 0.0 if shown.drawn.heat is None else float((shown.drawn.heat > 0).any(axis=(1, 2, 3)).mean())
    scales = shown.how.each("factor" if shown.how.factor is not None else "multiplier")
    what = "factor" if shown.how.factor is not None else "multiplier"
    how = f"{what} {scales[0]:.3g}"
    if len(set(scales)) > 1:
        how = f"{what}s {', '.join(f'{one:.3g}' for one in scales)}"
    how += ", by norms" if shown.how.beta else ""
    note = f"{how}, {shown.how.fidelity}; its latent fires in {cut:.0%} of the steps.{unread}"
    return f"{title}\nThe judges: {'; '.join(said)}. {note}" if said else f"{title}\n{note}"


def _abridged(text: str) -> str:
    """Its beginning and its end, if it is long."""
    return text if len(text) <= 2 * _ENDS else f"{text[:_ENDS].rstrip()} ... {text[-_ENDS:].lstrip()}"


def preview(images: Sequence[Image.Image], step: int, steps: int) -> str:
    """Before and after as far as they are denoised, under a bar."""
    bar = overlays.progress_bar(f"denoising, step {step} of {steps}", step / steps)
    pictures = "".join(f'<img src="{_uri(image)}" alt="">' for image in images)
    return f'<div class="sod-preview">{bar}<div>{pictures}</div></div>'


def waiting(text: str) -> str:
    return f'<div class="sod-preview">{overlays.progress_bar(text, None)}</div>'


def hottest(shown: Shown) -> int:
    """The step at which the concept's latents are largest."""
    return 0 if shown.drawn.heat is None else int(shown.drawn.heat[:, 0].mean((1, 2)).argmax())


def heat(shown: Shown, step: int) -> str:
    """The concept's latents over the picture before the edit, at one step, on the scale of all steps."""
    if shown.drawn.heat is None:
        return ""
    maps = shown.drawn.heat[:, 0]
    rows, columns = maps.shape[1:]
    top = float(maps.max()) or 1.0
    uri = _uri(shown.drawn.before[0])
    grid = overlays.squares(maps[step].flatten().tolist(), columns, rows, top)
    edited = "" if step >= shown.how.start_step else ", before the first step that is edited"
    title = f"The concept's latent at step {step}{edited}"
    return (
        f'<div class="sod-title">{escape(title)}</div><figure class="sod-heat sod-one">'
        f'<div class="sod-picture" style="--sod-picture: url({uri})">{grid}</div></figure>{overlays.scale_bar(top)}'
    )


def curve(shown: Shown, step: int) -> go.Figure | None:
    """The latents' mean over the picture, step by step; the chosen step is marked."""
    if shown.drawn.heat is None:
        return None
    mean = shown.drawn.heat[:, 0].mean((1, 2))
    share = (shown.drawn.heat[:, 0] > 0).mean((1, 2))
    figure = go.Figure()
    figure.add_scatter(
        name="mean latent before the edit",
        y=[round(v, 5) for v in mean.tolist()],
        line={"color": ACCENT, "width": 3},
        customdata=[round(v, 4) for v in share.tolist()],
        hovertemplate="step %{x}: %{y:.3f}, on %{customdata:.0%} of the picture<extra></extra>",
    )
    figure.add_vline(x=step, line={"color": ACCENT, "dash": "dot", "width": 1})
    if shown.how.start_step:
        figure.add_vrect(x0=0, x1=shown.how.start_step - 0.5, fillcolor=ORIGINAL, opacity=0.15, line_width=0)
    figure.update_layout(height=230, showlegend=True)
    figure.update_xaxes(title="denoising step")
    return calm(figure)


def judge_bars(judged: dict[str, list[dict[str, float]]], concepts: Sequence[str]) -> go.Figure | None:
    """Each judge's probabilities before and after; an erased concept is marked. None without judges."""
    if not judged:
        return None
    figure = make_subplots(cols=len(judged), subplot_titles=[f"{what} judge" for what in judged])
    for column, (before, after) in enumerate(judged.values(), 1):
        likeliest = sorted(before, key=lambda name: (name not in concepts, -max(before[name], after[name])))[:_NAMES]
        names = [name for name in before if name in likeliest]
        labels = [f"<b>▸ {name}</b>" if name in concepts else name for name in names]
        for title, row, colour in (("before", before, ORIGINAL), ("after", after, ACCENT)):
            figure.add_bar(
                name=title, x=labels, y=[row[name] for name in names], marker_color=colour, row=1, col=column,
                showlegend=column == 1, hovertemplate="%{x}: %{y:.1%}<extra>" + title + "</extra>",
            )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.22, bargroupgap=0.04, height=290)
    figure = calm(figure)
    figure.update_yaxes(range=[0, 1], tickformat=".0%", tickvals=[0, 0.5, 1])
    return figure.update_layout(legend={"y": 1.16}, margin={"t": 64})


def object_rows(
    wanted: Sequence[Asked],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    judged: dict[str, list[dict[str, float]]],
    concepts: Sequence[str],
) -> str:
    """All objects, before above after; what the judge calls each."""
    said = [most_likely(row) for row in judged.get("object", [])]
    columns = []
    for place, item in enumerate(wanted):
        cells = []
        for which, (image, at) in enumerate(((before[place], place), (after[place], len(wanted) + place))):
            name = said[at] if said else ""
            wrong = bool(said) and name != item.object
            meant = wrong == (item.object in concepts and which == 1)
            mark = "" if not said else f'<span class="{"sod-right" if meant else "sod-wrong"}">{escape(name)}</span>'
            cells.append(f'<img src="{_uri(image)}" alt="{escape(item.object)}">{mark}')
        head = f"<b>▸ {escape(item.object)}</b>" if item.object in concepts else escape(item.object)
        columns.append(f"<figure><figcaption>{head}</figcaption>{''.join(cells)}</figure>")
    title = f"Erasing {' and '.join(concepts)}: every object before (above) and after (below), with the judge's word"
    return f'<div class="sod-title">{escape(title)}</div><div class="sod-objects">{"".join(columns)}</div>'


def _uri(image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, "PNG" if image.width <= 128 else "WEBP")
    return f"data:image/{'png' if image.width <= 128 else 'webp'};base64,{base64.b64encode(data.getvalue()).decode()}"
