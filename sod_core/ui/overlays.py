"""Heatmaps, the example picker and the latent inspector, as HTML that the page's one script makes clickable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape

from plotly.colors import sample_colorscale

_SCALE = "Inferno"
_STEPS = 64

CLICKS = """
const pick = (event) => {
  const hit = event.target.closest('[data-pick]');
  if (hit) trigger('click', {kind: hit.dataset.kind, pick: Number(hit.dataset.pick)});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && event.target.matches('tr, circle')) pick(event);
});
"""
"""js_on_load of every component here: a click (or Enter) on anything with data-pick reaches the server."""


@cache
def colours() -> list[str]:
    """The heat's colour scale, cold to hot."""
    return sample_colorscale(_SCALE, [i / (_STEPS - 1) for i in range(_STEPS)])


def picture_style(uri: str, example: int | None) -> str:
    """The picture behind the heatmaps, and the frame of the chosen example: sent once an image, not once an alpha."""
    frame = "" if example is None else f'#picker [data-pick="{example}"] {{ border-color: var(--sod-accent); }}'
    return f"<style>:root {{ --sod-picture: url({uri}); }} {frame}</style>"


def progress_bar(label: str, share: float | None) -> str:
    """A bar filled to `share`, 0 to 1; with None it only says that something is under way."""
    value = "" if share is None else f' value="{share:.4f}"'
    return f'<label class="sod-progress">{escape(label)}<progress max="1"{value}></progress></label>'


def top(*still: Sequence[float]) -> float:
    """Where the colour scale ends: the largest value that alpha does not move, or 1 where nothing fires."""
    return max((value for values in still for value in values), default=0.0) or 1.0


def heat_panels(
    heat: Mapping[str, Sequence[float]], grid: int, title: str, selected: int | None, marks: str = ""
) -> str:
    """Three heatmaps on one colour scale, and its colour bar.

    heat: {model: [N] values}, row by row. The scale ends at the largest value of the original and the
    unlearned model, so that it does not move with alpha; hotter patches of the restored one take its last colour.
    `marks`: attributes that tell the page's script what it is a heat of.
    """
    end = top(*(values for which, values in heat.items() if which != "restored"))
    panels = "".join(
        f'<figure class="sod-heat" data-model="{which}">'
        f'<div class="sod-picture">{squares(values, grid, grid, end, selected)}</div>'
        f"<figcaption>{which}</figcaption></figure>"
        for which, values in heat.items()
    )
    above = max(heat["restored"], default=0) > end * 1.001
    return (
        f'<div class="sod-title">{escape(title)}</div>'
        f'<div class="sod-heats" {marks}>{panels}</div>'
        f"{scale_bar(end, above)}"
    )


def scale_bar(top: float, above: bool = False) -> str:
    """The colour bar of heatmaps that end at `top`; `above`: some values are larger."""
    gradient = ", ".join(colours()[::7])
    return (
        f'<div class="sod-bar"><span>0</span><i style="background:linear-gradient(90deg,{gradient})"></i>'
        f"<span>{top:.2g}{' and above' if above else ''}</span></div>"
    )


def squares(values: Sequence[float], columns: int, rows: int, top: float, selected: int | None = None) -> str:
    """One heatmap as an SVG of rows x columns squares; warmer is more opaque, cold ones show the picture."""
    scale = colours()
    cells = []
    for i, value in enumerate(values):
        share = min(max(value / top, 0.0), 1.0)
        y, x = divmod(i, columns)
        mark = ' class="on"' if i == selected else ""
        cells.append(
            f'<rect x="{x}" y="{y}" width="1" height="1" fill="{scale[round(share * (_STEPS - 1))]}" '
            f'fill-opacity="{0.12 + 0.73 * share if share > 0 else 0:.2f}" data-kind="patch" data-pick="{i}"{mark}>'
            f"<title>{value:.2f}</title></rect>"
        )
    return f'<svg viewBox="0 0 {columns} {rows}" role="img" aria-label="heatmap">{"".join(cells)}</svg>'


def example_picker(thumbs: Sequence[str], labels: Sequence[int], names: Sequence[str], first: int) -> str:
    """All examples, those of class `first` before the others."""
    order = sorted(range(len(labels)), key=lambda i: (labels[i] != first, labels[i], i))
    buttons = "".join(
        f'<button type="button" data-kind="example" data-pick="{i}" title="{escape(names[labels[i]])}" '
        f'aria-label="example: {escape(names[labels[i]])}">'
        f'<img src="{thumbs[i]}" alt=""></button>'
        for i in order
    )
    return f'<div class="sod-picker">{buttons}</div>'


def latent_table(
    title: str, rows: Sequence[tuple[int, float, float, float, str]], chosen: int | None, marks: str = ""
) -> str:
    """Latents of a patch: (id, value in original, unlearned, restored, classes it is an expert for).

    `marks`: attributes that tell the page's script which patch of what it is.
    """
    if not rows:
        return f'<div class="sod-title">{escape(title)}</div><p class="sod-quiet">No latent fires here.</p>'
    body = "".join(
        f'<tr data-kind="latent" data-pick="{j}" tabindex="0"{" class=on" if j == chosen else ""}>'
        f"<td>{j}</td><td>{o:.2f}</td><td>{u:.2f}</td><td>{r:.2f}</td><td>{escape(classes)}</td></tr>"
        for j, o, u, r, classes in rows
    )
    return (
        f'<div class="sod-title">{escape(title)}</div><table class="sod-latents" {marks}>'
        f"<thead><tr><th>latent</th>"
        f"<th>original</th><th>unlearned</th><th>restored</th><th>expert for</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def strongest_examples(title: str, found: Sequence[tuple[str, str, float, int]]) -> str:
    """Example images where a latent fires most: (thumbnail, class, value, index)."""
    if not found:
        return f'<div class="sod-title">{escape(title)}</div><p class="sod-quiet">It fires on none of the examples.</p>'
    items = "".join(
        f'<figure><button type="button" data-kind="example" data-pick="{index}" aria-label="show this example">'
        f'<img src="{uri}" alt="{escape(name)}"></button><figcaption>{escape(name)} {value:.1f}</figcaption></figure>'
        for uri, name, value, index in found
    )
    return f'<div class="sod-title">{escape(title)}</div><div class="sod-strip">{items}</div>'
