"""What the command line's verb `erase` does once its options are parsed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ..machine import files, processes
from . import benchmark as erase_benchmark
from . import concepts, drawings, edit, unlearncanvas
from . import image as one_image
from . import pack as erase_pack
from .pack import ErasePack, open_erase_pack

T = TypeVar("T")
_told = partial(tqdm, mininterval=2, file=sys.stderr)


def image(options: argparse.Namespace) -> None:
    """`erase image`: one prompt with and without the concepts; writes the images and what was measured."""
    pack = open_erase_pack(options.pack, processes.start(options.device))
    id = one_image.sae(pack, options.sae)
    names = _different(pack.manifest.concept(name) for name in options.concept)
    steps, guidance = _sampling(pack, options)
    how = _settings(pack, id, names, options, steps)
    result, drawn = one_image.draw(pack, id, options.prompt, how, steps, guidance, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn.before[0].save(options.out / "before.png")
    drawn.after[0].save(options.out / "after.png")
    files.write_json(result, options.out / "result.json")
    if result["left_out"]:
        print(f"the text encoder does not read the end of the prompt: {result['left_out']!r}", file=sys.stderr)
    for what, (before, after) in result["judged"].items():
        seen = [max(row, key=row.get) for row in (before, after)]
        print(f"{what}: {seen[0]} ({before[seen[0]]:.0%}) before, {seen[1]} ({after[seen[1]]:.0%}) after")


def benchmark(options: argparse.Namespace) -> None:
    """`erase benchmark`: draws what is not there yet, then judges. Several processes divide the drawing."""
    pack = open_erase_pack(options.pack, processes.start(options.device))
    names, wanted = _asked(pack, options)
    id = one_image.sae(pack, options.sae)
    steps, guidance = _sampling(pack, options)
    if not all(0 <= drawings.noise_seed(pack, item) < 2**63 for item in wanted):
        raise ValueError(
            f"--seeds {' '.join(map(str, options.seeds))}: a seed must be a whole number from 0 on, not so large"
        )
    how = {name: _settings(pack, id, (name,), options, steps) for name in names}
    erase_benchmark.draw_all(pack, id, how.__getitem__, names, wanted, steps, guidance, options.out, _told)
    if processes.is_main():
        _judge(pack, names, wanted, options, {"sae": id, "settings": {name: asdict(how[name]) for name in names}})


def judge(options: argparse.Namespace) -> None:
    """`erase judge`: counts UA, IRA and CRA over images that are there."""
    pack = open_erase_pack(options.pack, processes.start(options.device))
    names, wanted = _asked(pack, options)
    _judge(pack, names, wanted, options, {})


def statistics(options: argparse.Namespace) -> None:
    """`erase statistics`: draws every concept and writes the mean latents of an SAE."""
    pack = open_erase_pack(options.pack, processes.start(options.device))
    id = one_image.sae(pack, options.sae)
    entry = pack.manifest.sae(id)
    if options.seeds < 1:
        raise ValueError(f"--seeds {options.seeds}: at least one image of every prompt is needed")
    out = options.out
    if out is None:
        if entry.statistics is None:
            raise ValueError(f"pack {pack.manifest.name} names no statistics for {id}; give --out FILE")
        out = pack.manifest.path(entry.statistics).with_suffix(".safetensors")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: give the name of a file in it")
    out.parent.mkdir(parents=True, exist_ok=True)  # before the drawing, which takes long
    steps, guidance = _sampling(pack, options)
    prompts = drawings.statistics_prompts(pack, options.seeds)
    (found,) = concepts.gather(
        pack.pipeline(), pack.manifest.hook_point, [pack.sae(id)], prompts, steps, guidance, entry.residual, _told
    )
    with files.whole(out) as part:
        erase_pack.write_statistics(found, part)
    print(f"{out}: {len(found.names)} concepts, {steps} steps, {int(found.counts[0])} images each")


def _judge(pack: ErasePack, names: tuple[str, ...], wanted: list, options: argparse.Namespace, more: dict) -> None:
    results = erase_benchmark.judge_all(pack, names, wanted, options.out)
    if options.json != "-":
        print("\n".join(unlearncanvas.table(results)))
        print(unlearncanvas.caution(results), end="")
    for r in results:
        for kind, lost in (("missing", r.missing), ("broken", r.broken)):
            for file in lost:
                print(f"{kind}: {r.concept}/{file}", file=sys.stderr)
    if options.json:
        found = more | {"mean": unlearncanvas.mean(results), "mean_intervals": unlearncanvas.mean_intervals(results)}
        found["concepts"] = [_row(r) for r in results]
        data = json.dumps(found, indent=1)
        print(data) if options.json == "-" else Path(options.json).write_text(data + "\n")


def _row(r: unlearncanvas.ConceptResult) -> dict[str, Any]:
    counts = {name: getattr(r, name)._asdict() for name in ("unlearned", "in_domain", "cross_domain")}
    return (
        {"concept": r.concept, "ua": r.ua, "ira": r.ira, "cra": r.cra, "intervals": r.intervals}
        | counts
        | {
            "missing": list(r.missing),
            "broken": list(r.broken),
        }
    )


def _asked(pack: ErasePack, options: argparse.Namespace) -> tuple[tuple[str, ...], list[unlearncanvas.Asked]]:
    """(concepts to erase, images to draw for each)."""
    m = pack.manifest
    names = _different(m.concept(name) for name in options.concepts) or m.concepts
    objects = _different(m.concept(name) for name in options.objects or ()) or m.concepts
    unknown = [style for style in options.styles or () if style not in m.styles]
    if unknown:
        raise ValueError(f"unknown style {unknown[0]!r} in pack {m.name}; known: {', '.join(m.styles)}")
    styles = m.styles if options.styles is None else _different(options.styles)
    return names, unlearncanvas.asked(objects, styles, _different(options.seeds))


def _different(values: Iterable[T]) -> tuple[T, ...]:
    """Each value once, in the order given: what is named twice is not drawn or counted twice."""
    return tuple(dict.fromkeys(values))


def _sampling(pack: ErasePack, options: argparse.Namespace) -> tuple[int, float]:
    try:
        return one_image.sampling(pack, options.steps, options.guidance)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def _settings(
    pack: ErasePack, id: str, names: tuple[str, ...], options: argparse.Namespace, steps: int
) -> edit.Settings:
    """The pack's, or --params', for each concept, with what else the options say."""
    known = erase_pack.read_settings(options.params) if options.params else None
    factor, multiplier = (None if given is None else tuple(given) for given in (options.factor, options.multiplier))
    scale = one_image.Scale(factor, multiplier, options.percentile, options.fidelity, options.start_step, options.beta)
    return one_image.settings(pack, id, names, scale, steps, known)
