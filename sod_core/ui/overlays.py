"""Heatmaps, the example picker and the latent inspector, as HTML that the page's one script makes clickable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..data.charts import SCALES as SCALES
from ..data.charts import STEPS, opacity, scale

HINT = "Point at a patch, or reach it with Tab and the arrows: its values."

CLICKS = """
const pick = (event) => {
  const hit = event.target.closest('[data-pick]');
  if (!hit) return;
  chosen = [same(hit), Array.from(element.querySelectorAll(same(hit))).indexOf(hit)];
  trigger('click', {kind: hit.dataset.kind, pick: Number(hit.dataset.pick)});
};
const same = (hit) => `[data-kind="${hit.dataset.kind}"][data-pick="${hit.dataset.pick}"]`;
let chosen = null, told = null;
const tell = (patch) => {  // what each model has there
  const place = element.querySelector('.sod-patch');
  if (!place || !patch || !patch.matches('rect')) return;
  told = patch;
  const grid = patch.ownerSVGElement.viewBox.baseVal.width, at = Number(patch.dataset.pick);
  const values = Array.from(element.querySelectorAll('figure[data-model]'), (figure) =>
    `${figure.dataset.model} ${figure.querySelectorAll('rect')[at].textContent}`);
  place.textContent = `Patch ${Math.floor(at / grid) + 1}, ${at % grid + 1}: ${values.join(', ')}`;
};
const step = (patch, key) => {  // along the grid; Tab leaves it
  const cells = Array.from(patch.ownerSVGElement.children), grid = patch.ownerSVGElement.viewBox.baseVal.width;
  const at = cells.indexOf(patch), by = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid, ArrowDown: grid}[key];
  const next = by && !(Math.abs(by) === 1 && Math.floor((at + by) / grid) !== Math.floor(at / grid)) && cells[at + by];
  if (next) { focusOn(next); patch.removeAttribute('tabindex'); patch.removeAttribute('role'); }
  return Boolean(by);
};
const focusOn = (hit) => {
  if (hit.matches('rect')) { hit.setAttribute('tabindex', 0); hit.setAttribute('role', 'button'); }
  hit.focus({preventScroll: true});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', (event) => {
  const on = event.target;
  const enters = event.key === 'Enter' && on.matches('tr, circle, rect') || event.key === ' ' && on.matches('rect');
  if (enters) pick(event);
  else if (!(on.matches('rect') && step(on, event.key))) return;
  event.preventDefault();
});
for (const kind of ['mouseover', 'focusin']) element.addEventListener(kind, (event) => tell(event.target));
document.addEventListener('sod-moved', () => { if (told && told.isConnected) tell(told); });
watch('value', () => {  // the answer replaced what had the focus
  const again = chosen && document.activeElement === document.body && element.querySelectorAll(chosen[0])[chosen[1]];
  if (again) focusOn(again);
  chosen = null;
});
"""
"""js_on_load of every component here: a click (or Enter) on anything with data-pick reaches the server."""


def colours(name: str) -> list[str]:
    """One of SCALES, cold to hot."""
    return [f"rgb({r}, {g}, {b})" for r, g, b in scale(name)]


def step(share: float) -> int:
    """The step of the scale at which a share of the hottest lies."""
    return round(share * (STEPS - 1))


def share(step: int) -> float:
    """The share of the hottest at a step of the scale."""
    return step / (STEPS - 1)


def colour(share: float) -> str:
    """Where a share of the hottest lies on the scale that the page has chosen."""
    return f"var(--heat-{step(share)})"


def scale_styles() -> str:
    """The scales as the page's properties: the first, unless the body's class names another."""
    rules: list[str] = []
    for name in SCALES:
        steps = ";".join(f"--heat-{i}:{found.replace(' ', '')}" for i, found in enumerate(colours(name)))
        rules.append(f"{':root' if not rules else f'body.sod-{name}'}{{{steps}}}")
    return f"<style>{''.join(rules)}</style>"


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
        f'<div class="sod-picture">{squares(values, grid, grid, end, selected, which)}</div>'
        f"<figcaption>{which}</figcaption></figure>"
        for which, values in heat.items()
    )
    above = max(heat["restored"], default=0) > end * 1.001
    return (
        f'<div class="sod-title">{escape(title)}</div>'
        f'<div class="sod-heats" {marks}>{panels}</div>'
        f'{scale_bar(end, above)}<p class="sod-quiet sod-patch" role="status">{_told(heat, grid, selected)}</p>'
    )


def _told(heat: Mapping[str, Sequence[float]], grid: int, selected: int | None) -> str:
    """As the page's script says it of a patch."""
    if selected is None:
        return HINT
    row, column = divmod(selected, grid)
    return f"Patch {row + 1}, {column + 1}: " + ", ".join(f"{w} {values[selected]:.2f}" for w, values in heat.items())


def scale_bar(top: float, above: bool = False) -> str:
    """The colour bar of heatmaps that end at `top`; `above`: some values are larger."""
    gradient = ", ".join(colour(i / 9) for i in range(10))
    return (
        f'<div class="sod-bar"><span>0</span><i style="background:linear-gradient(90deg,{gradient})"></i>'
        f"<span>{top:.2g}{' and above' if above else ''}</span></div>"
    )


def squares(
    values: Sequence[float], columns: int, rows: int, top: float, selected: int | None = None, picks: str = ""
) -> str:
    """One heatmap as an SVG of rows x columns squares.

    `picks`: what its squares are called where they can be chosen, by a click, or by the keyboard from one of them on.
    """
    cells = []
    for i, value in enumerate(values):
        share = min(max(value / top, 0.0), 1.0)
        y, x = divmod(i, columns)
        mark = ' class="on"' if i == selected else ""
        mark += f' data-kind="patch" data-pick="{i}"' if picks else ""
        mark += ' tabindex="0" role="button"' if picks and i == (selected or 0) else ""
        cells.append(
            f'<rect x="{x}" y="{y}" width="1" height="1" fill="{colour(share)}" '
            f'fill-opacity="{opacity(share):.2f}"{mark}><title>{value:.2f}</title></rect>'
        )
    means = 'role="group" ' if picks else 'role="img" '
    called = escape(f"heat of the patches, {picks}") if picks else f"heat, {min(values):.2f} to {max(values):.2f}"
    return f'<svg viewBox="0 0 {columns} {rows}" {means}aria-label="{called}">{"".join(cells)}</svg>'


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
