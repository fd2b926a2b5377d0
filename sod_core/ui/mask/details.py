"""What stands below the figure: what the mask names, one image's votes, pairs that classes share, the evidence."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

from PIL import Image
from plotly.colors import qualitative

from ...mask.evidence import Named
from ...mask.sweep import Vote

COLOURS = qualitative.Safe  # told apart by colour-blind eyes, too
"""Of the classes, in the votes."""
NOTHING_MASKED = "Nothing is masked: move the dose."


def named(classes: Sequence[str], mine: Sequence[int], scores: Mapping[int, float] | None, found: Named | None) -> str:
    """Classes by what the masked pairs point at. `scores`: of each class's mean with the direction."""
    title = '<div class="sod-title">What the mask says of the class, all by itself</div>'
    if scores is None or found is None:
        return f'{title}<p class="sod-quiet">{NOTHING_MASKED}</p>'
    low, high = min(scores.values()), max(scores.values())
    rows = []
    for c, score in sorted(scores.items(), key=lambda item: -item[1]):
        share = (score - low) / ((high - low) or 1)
        kind = ' class="mine"' if c in mine else ""
        rows.append(
            f'<tr{kind}><th scope="row">{escape(classes[c])}</th><td><i style="width:{100 * share:.0f}%"></i></td></tr>'
        )
    rank = "the class comes first" if found.rank == 1 else f"the class comes in place {found.rank}"
    return (
        f'{title}<table class="sod-called"><tbody>{"".join(rows)}</tbody></table><p class="sod-quiet">From the keys of '
        "the masked pairs and the fixed projection alone, without any image or value: a direction in the encoder's "
        f"output. Of {len(scores)} classes, {rank}; cosine with the class's own mean {found.cosine:.2f}; it tells the "
        f"class's images from others with an area under the curve of {found.auc:.3f} (chance 0.5).</p>"
    )


def picker(pictures: Sequence[Image.Image], names: Sequence[str], chosen: int | None) -> str:
    """Thumbnails to click."""
    buttons = "".join(
        f'<button type="button" data-kind="example" data-pick="{place}" title="{escape(name)}" '
        f'aria-label="{escape(name)}"{" class=on" if place == chosen else ""}><img src="{_uri(picture)}" alt="">'
        "</button>"
        for place, (picture, name) in enumerate(zip(pictures, names))
    )
    return f'<div class="sod-picker sod-examples">{buttons}</div>'


def votes(
    classes: Sequence[str],
    title: str,
    before: tuple[Sequence[Vote], Sequence[float]],
    after: tuple[Sequence[Vote], Sequence[float]],
    picture: Image.Image | None,
) -> str:
    """An image's votes, a square a codebook, without and with the mask; and the classes' shares."""
    image = "" if picture is None else f'<img class="sod-own" src="{_uri(picture)}" alt="{escape(title)}">'
    fallen = [vote.rank for vote in after[0] if vote.rank > 0]
    silent = sum(vote.pair < 0 for vote in after[0])
    told = f"{len(fallen)} of {len(after[0])} codebooks fell back to another pair"
    if fallen:
        told += f", on average to number {sum(fallen) / len(fallen) + 1:.1f} by distance"
    if silent:
        told += f"; {silent} abstain"
    strips = "".join(
        f'<div class="sod-quiet">{name}</div><div class="sod-votes">{_strip(classes, one)}</div>'
        for name, one in (("without the mask", before[0]), ("with it", after[0]))
    )
    return (
        f'<div class="sod-title">One image: {escape(title)}</div><div class="sod-image">{image}<div>{strips}'
        f'<p class="sod-quiet">{told}. A square is a codebook, its colour the class that its pair votes for most; '
        f"framed ones fell back.</p></div></div>{_shares(classes, before[1], after[1])}"
    )


def overlap(classes: Sequence[str], found: Mapping[str, Any]) -> str:
    """Which share of their pairs classes have in common; purity and pairs of their own."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes)
    rows = []
    for row, name in enumerate(classes):
        cells = "".join(
            f'<td style="--share:{70 * value:.0f}%">{"·" if row == column else f"{100 * value:.1f}"}</td>'
            for column, value in enumerate(found["shared"][row])
        )
        own = f"<td>{100 * found['purity'][row]:.0f}</td><td>{100 * found['exclusive'][row]:.0f}</td>"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}{own}</tr>')
    return (
        '<table class="sod-cells sod-overlap"><caption>Pairs that classes share, in percent of their choices</caption>'
        f'<thead><tr><th></th>{head}<th scope="col">purity</th><th scope="col">own pairs</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="sod-quiet">Purity: of all images that choose a class\'s pairs, the share that is of the class. Own '
        "pairs: of those that the class touches, the share that no other class touches.</p>"
    )


def learned(found: Mapping[str, Mapping[str, Any]], images: int, title: str) -> str:
    """Accuracy on the class after so many images were counted again, of each state."""
    rows = "".join(
        f'<tr><th scope="row">{escape(one["title"])}</th><td><i style="width:{100 * one["forget"]:.0f}%"></i></td>'
        f"<td>{one['forget']:.1%}, others {one['retain']:.1%}</td></tr>"
        for one in found.values()
    )
    return (
        f'<table class="sod-called sod-wide"><caption>{escape(title)} right after {images} of its images were counted '
        f"again</caption><tbody>{rows}</tbody></table>"
    )


def evidence(case: Mapping[str, Any] | None, ways: Sequence[str]) -> str:
    """The stored table of states and ways back, with verdicts."""
    title = '<div class="sod-title">Suppressed or deleted?</div>'
    if case is None:
        return (
            f'{title}<p class="sod-quiet">Nothing is stored for this choice. <code>python -m sod_core mask evaluate '
            "--forget CLASS</code> measures it; stored are one class at a time, by activations.</p>"
        )
    states = case["states"]
    head = "".join(f'<th scope="col">{escape(state["title"])}</th>' for state in states.values())
    rows = [_row("others right", [_percent(state["retain"]) for state in states.values()])]
    rows += [_row(way, [_percent(state["ways"][way]["value"]) for state in states.values()]) for way in ways]
    said = [state["verdict"] for state in states.values()]
    rows.append(_row("verdict", ["–" if one is None else f"<b>{one['verdict']}</b>" for one in said]))
    lifted = ["–" if one is None or not one["lifted"] else f"<b>{one['lifted']}</b>" for one in said]
    rows.append(_row("verdict, the mask lifted", lifted))
    seen = "has seen" if case["encoder_saw"] else "never saw"
    share = case["share"]
    dose = "" if share is None else f" {100 * share['mean']:.0f} % of the pairs that the class touches are masked."
    reasons = "".join(
        f"<li>{escape(state['title'])}: {escape(state['verdict']['reason'])}</li>"
        for state in states.values()
        if state["verdict"]
    )
    return (
        f'{title}<table class="sod-ways"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="sod-quiet">Accuracies on the class; "read off" and "named" are areas under the curve, chance 50 %. '
        f"Mean and range over {case['seeds']} seeds of projections and keys.{dose} The encoder {seen} the class. What "
        "the bottleneck retrained on the same keys gives, too, is no sign of suppression; from half of what the "
        "untouched one gives a state counts as suppressed, below a tenth as deleted, or out of reach while a mask can "
        f'be lifted.</p><ul class="sod-quiet">{reasons}</ul>{_rivals(case["rivals"])}'
    )


def _rivals(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, one in found.items():
        sides = ["–" if one[side] is None else f"{one[side]:.1%}" for side in ("forget", "retain")]
        rows.append(_row(name, [*sides, str(one["epochs"]), f"{one['multiply_adds'] / 1e6:.1f}"]))
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("the class", "others", "epochs", "million multiply-adds")
    )
    return (
        f'<table class="sod-ways"><thead><tr><th scope="col">rivals, on a linear head</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _percent(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return "–"
    mean, low, high = (f"{100 * spread[name]:.1f}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} <small>[{low}, {high}]</small>"


def _strip(classes: Sequence[str], found: Sequence[Vote]) -> str:
    squares = []
    for codebook, vote in enumerate(found):
        if vote.pair < 0:
            squares.append(f'<i class="silent" title="codebook {codebook}: abstains"></i>')
            continue
        voted = "nothing" if vote.called < 0 else f"{classes[vote.called]} ({vote.share:.0%})"
        back = f", number {vote.rank + 1} by distance" if vote.rank > 0 else ""
        colour = "transparent" if vote.called < 0 else COLOURS[vote.called % len(COLOURS)]
        frame = ' class="back"' if vote.rank > 0 else ""
        told = escape(f"codebook {codebook}: pair {vote.pair}, votes for {voted}{back}")
        squares.append(f'<i{frame} style="background:{colour}" title="{told}"></i>')
    return "".join(squares)


def _shares(classes: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><i class="dot" style="background:{COLOURS[c % len(COLOURS)]}"></i>{escape(name)}</th>'
        f'<td><i class="was" style="width:{100 * before[c]:.0f}%"></i><i style="width:{100 * after[c]:.0f}%"></i></td>'
        f"<td>{before[c]:.0%} → {after[c]:.0%}</td></tr>"
        for c, name in enumerate(classes)
    )
    return (
        f'<table class="sod-called sod-wide"><tbody>{rows}</tbody></table><p class="sod-quiet">Softmax of four times '
        "the votes over the largest one without the mask: counted votes have no scale of their own.</p>"
    )


def _uri(image: Image.Image) -> str:
    with BytesIO() as out:
        image.save(out, "PNG")
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
