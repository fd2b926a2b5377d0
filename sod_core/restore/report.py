"""What an evaluation writes: a table, CSV, the scoreboard that a pack stores, and the released code's own files."""

from __future__ import annotations

import csv
import io
import json
import platform
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..machine.files import write_json
from ..models import head_rows
from . import scores, working
from .judged import ALPHAS, CONTROLS, RANDOM_SEEDS, Row, Settings
from .pack import Pack
from .pointing import Pointing
from .testset import TestSet

SCOREBOARD = "scoreboard.json"
FORMAT = 5
"""Of that file: 1 had no state_copy, no readout and other verdicts; 2 no yardstick, and another probe; 3 no margin; 4
no interval of the readout."""
DEFINITION = (
    "R = (restored - unlearned) / (original - unlearned), accuracies on the test images of the forgotten class; "
    f"every edit at its own best alpha up to max_alpha; random and matched: mean over {len(RANDOM_SEEDS)} seeds; "
    f"intervals: {scores.CONFIDENCE:.0%} bootstrap over the class's images, {scores.RESAMPLES} resamples; "
    f"not defined where unlearning cost the class less than {scores.SMALLEST_DROP:.0%}. Margin: the experts' R less "
    "the better of random's and matched's, less the same of the models retrained without the class (if they are judged "
    "too, and at least 0); its interval by the same resamples, one in which R is not defined counting against either "
    "end. "
    f"Verdict, where whole intervals agree: margin from {scores.SUPPRESSED} suppressed, below {scores.DELETED} "
    f"deleted, between partly, else {scores.UNDECIDED!r}; but {scores.SUPPRESSED_AFTER!r} where it is not suppressed "
    f"and the readout exceeds the retrained model's (if it is judged too) by {scores.SUPPRESSED}, and "
    f"{scores.CANNOT_TELL!r} where no "
    f"edit, state_copy included, has an R of {scores.DELETED}, or where random or matched features restore as much as "
    f"the experts; {working.NO_ORIGINAL!r} where the original's accuracy on the class or on the others is below "
    f"{working.LEAST_KNOWN}, {working.NO_VERDICT!r} where its retain accuracy is below {working.LEAST_RETAINED} of the "
    f"original's or it names one class on {working.ONE_CLASS} of the other classes' images, {working.OTHER_ORDER!r} "
    f"where another order is right on {working.RENAMED} of the other classes' images and better by {working.CLEARLY}, "
    f"and {working.CANNOT_SCORE!r} where it could not be loaded or its outputs "
    "are not numbers. "
    "Readout: the original's later blocks on the unlearned "
    "model's hidden state; share of the class's images that they name rightly, less that of the others that they take "
    "for it; its interval by resamples of both. Gate none: every image is edited; gate label: only images of the "
    "class are. Retain: share of the other classes' images named rightly. Probe: balanced accuracy of a linear "
    "classifier of the class on CLS, two random halves."
)


def scoreboard(pack: Pack, data: TestSet, settings: Settings, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that was measured, and what it was measured on."""
    packages = ("torch", "timm", "numpy")
    return {
        "format": FORMAT,
        "pack": pack.manifest.name,
        "data": data.name,
        "images": len(data),
        "settings": asdict(settings),
        "alphas": list(ALPHAS),
        "definition": DEFINITION,
        "packages": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "rows": [row.as_dict() for row in rows],
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The evaluation that the pack in `folder` stores (`evaluate --store`); None where it has none.

    Raises ValueError for one that is damaged, or that another version stored: its verdicts follow other rules.
    """
    path = folder / SCOREBOARD
    if not path.is_file():
        return None
    try:
        board = json.loads(path.read_text(encoding="utf-8"))
        stored = board.get("format")
        complete = {"rows", "settings", "images", "data"} <= board.keys()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"What is stored in {path.name} cannot be read") from error
    if stored != FORMAT:
        raise ValueError("What is stored was measured by another version, whose verdicts follow other rules")
    if not complete:
        raise ValueError(f"What is stored in {path.name} lacks a part")
    return board


def write(out: Path, pack: Pack, data: TestSet, settings: Settings, rows: Sequence[Row]) -> None:
    """Writes scoreboard.json, scores.csv, and for each model the released code's JSON and plot. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    board = scoreboard(pack, data, settings, rows)
    write_json(board, out / SCOREBOARD)
    (out / "scores.csv").write_text(as_csv(board["rows"]), encoding="utf-8")
    for row in rows:
        if row.original is None:  # nothing was measured
            continue
        folder = out / row.id
        folder.mkdir(exist_ok=True)
        target = pack.manifest.class_index(row.target)
        found = released(pack, settings, row)
        write_json(found, folder / f"restoration_class{target}_results.json")
        plot(found, folder / f"restoration_class{target}.png")


COLUMNS = (
    *("id", "method", "target", "target_images", "original", "unlearned", "restored", "alpha"),
    *("retain_original", "retain_unlearned", "retain_gate_none", "retain_gate_label"),
    *(f"R_{name}{end}" for name in ("experts", *CONTROLS) for end in ("", "_low", "_high", "_alpha")),
    *("margin", "margin_low", "margin_high", "margin_yardstick", "R_overshoot"),
    *("readout", "readout_margin", "readout_margin_low", "readout_margin_high", "yardstick", "verdict"),
)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as `Row.as_dict` gives them, one a line; probes of every layer at the end."""
    layers = sorted({str(layer) for row in rows for layer in row["probe"]}, key=int)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*COLUMNS, *(f"probe_layer{layer}" for layer in layers)])
    for row in rows:
        cells = row | {"retain_gate_none": row["retain_restored"], "retain_gate_label": row["retain_unlearned"]}
        cells["R_overshoot"] = row["overshoot"]
        for name, score in row["scores"].items():
            ends = ("", "_low", "_high", "_alpha")
            cells |= {f"R_{name}{end}": value for end, value in zip(ends, score.values())}
        cells |= {f"margin_{end}": row["margin"][end] for end in ("low", "high", "yardstick")}
        cells |= {f"readout_margin_{end}": row["readout_margin"][end] for end in ("low", "high")}
        cells |= {name: row[name]["value"] for name in ("margin", "readout_margin")}
        probe = {str(layer): value for layer, value in row["probe"].items()}
        table.writerow([*(_plain(cells[name]) for name in COLUMNS), *(_plain(probe[layer]) for layer in layers)])
    return text.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None else round(value, 4) if isinstance(value, float) else value


def released(pack: Pack, settings: Settings, row: Row) -> dict[str, Any]:
    """The keys of the released code's restoration_class{X}_results.json (recovery_test.py), gate "label" as there.

    Its `retain_avg` is the mean of the other classes' accuracies; ours is their images' accuracy, the same where
    classes have as many images each. `overall` is the share of all images.
    """
    share, retained = row.target_images / row.images, row.retain_unlearned
    if retained is None or row.unlearned is None:
        raise ValueError(f"{row.id} has no figures: {row.verdict}")

    def overall(target: float) -> float:
        return share * target + (1 - share) * retained

    return {
        "dataset": pack.manifest.name,
        "sae_config": {"k": pack.manifest.k, "layer": settings.layer},
        "target_class": pack.manifest.class_index(row.target),
        "class_name": row.target,
        "num_expert_features": len(pack.expert_ids(settings.layer, pack.manifest.class_index(row.target))),
        "alpha_values": list(ALPHAS),
        "unlearned_performance": {
            "overall": overall(row.unlearned),
            "target": row.unlearned,
            "retain_avg": row.retain_unlearned,
        },
        "restoration_results": {
            str(alpha): {"target_acc": target, "retain_acc": row.retain_unlearned, "overall_acc": overall(target)}
            for alpha, target in zip(ALPHAS, row.curves["experts"])
        },
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Accuracy against alpha, as the released code plots it: the class, and the other classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    alphas, results = found["alpha_values"], list(found["restoration_results"].values())
    axes.plot(alphas, [r["target_acc"] for r in results], "o-", color="tab:red", label=f"Target: {found['class_name']}")
    axes.plot(alphas, [r["retain_acc"] for r in results], "s-", color="tab:gray", label="Retain classes")
    axes.set(xlabel="alpha", ylabel="accuracy", ylim=(0, 1.02), title=f"Restoration of {found['class_name']}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def table(rows: Sequence[Row]) -> str:
    """Markdown, one row a model."""
    head = "| model | forget: original | unlearned | restored | at alpha | retain: unlearned | edited too | R experts |"
    lines = [
        head
        + "".join(f" R {control} |" for control in CONTROLS)
        + " margin | R overshoot | readout | readout margin | probe | verdict |"
    ]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for row in rows:
        shares = (row.original, row.unlearned, row.restored)
        cells = [row.id, *map(_percent, shares), "–" if row.alpha is None else f"{row.alpha:g}"]
        cells += [_percent(row.retain_unlearned), _percent(row.retain_restored), interval(row)]
        others = [row.scores[name].value for name in CONTROLS]
        probe = max((value for value in row.probe.values() if value is not None), default=None)
        cells += ["–" if value is None else f"{value:.2f}" for value in others]
        cells.append(margin(row.margin._asdict()))
        cells += ["–" if value is None else f"{value:.2f}" for value in (row.overshoot, row.readout)]
        cells += [margin(row.readout_margin._asdict()), "–" if probe is None else f"{probe:.2f}"]
        lines.append("| " + " | ".join([*cells, row.verdict.replace("|", "\\|")]) + " |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def interval(row: Row) -> str:
    """ "0.92 [0.88, 0.96]"."""
    found = row.scores["experts"]
    return "–" if found.value is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def margin(found: dict[str, float | None]) -> str:
    """ "0.90 [0.83, 0.96]"; an end that is not known is a question mark."""
    if found["value"] is None:
        return "–"
    low, high = ("?" if found[end] is None else f"{found[end]:.2f}" for end in ("low", "high"))
    return f"{found['value']:.2f} [{low}, {high}]"


def caution(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each model that does not work or has its outputs in another order, for each class that too few images
    show for a verdict, and for each model that lost too few of them.

    "" for none; rows as `Row.as_dict` gives them.
    """
    lines = [line for row in rows for line in _doubts(row)]
    for target in dict.fromkeys(row["target"] for row in rows):
        of_class = [row for row in rows if row["target"] == target]
        n, defined = of_class[0]["target_images"], [r for r in of_class if r["scores"]["experts"]["value"] is not None]
        widths = [row["scores"]["experts"]["high"] - row["scores"]["experts"]["low"] for row in defined]
        for row in defined if n >= scores.FEW else ():
            lost = round((row["original"] - row["unlearned"]) * n)
            if lost < scores.FEW:
                lines.append(
                    f"Caution: {row['id']} lost only {lost} of the {n} images that show {target}, and R counts how "
                    "many of them return: take its R and verdict as hints.\n"
                )
        if n < scores.FEW and widths:
            lines.append(
                f"Caution: only {n} of the test images show {target}, fewer than {scores.FEW}. The intervals of R are "
                f"up to {max(widths):.2f} wide, and where all {n} agree, up to {min(1, 3 / n):.0%} of other images "
                "still may not: take these verdicts as hints.\n"
            )
    return "".join(lines)


def _doubts(row: dict[str, Any]) -> Iterator[str]:
    """Whether a model works, and whether its outputs are in another order."""
    original, unlearned = row["retain_original"], row["retain_unlearned"]
    if row["verdict"] == working.NO_ORIGINAL:
        yield f"No verdict on {row['id']}: {working.unknown_line(row['original'], original)}\n"
        return
    only = row.get("only_names")
    if not working.works(original, unlearned) or only is not None:
        images = f"{row['images'] - row['target_images']} images"
        yield f"No verdict on {row['id']}: {working.broken_line(original, unlearned, images, only)}\n"
    order = row.get("label_order")  # not in what was stored before
    if order is not None:
        again = f"--label-order {shlex.quote(head_rows.text(order))}"
        yield (
            f"Caution: {row['id']}: {working.order_line(order, row['label_order_retain'])}, in the pack's on "
            f"{unlearned:.1%}. Evaluate it again with `{again}`, or put a config.json with id2label beside it.\n"
        )


def pointing_line(found: Pointing | None) -> str:
    """The pointing game in a sentence."""
    if found is None:
        return "Pointing game: these images have no masks."
    return f"Pointing game: {found.hits / found.images:.1%} of {found.images} images."
