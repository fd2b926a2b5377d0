"""What the command line says of packs: the list, the check of every file, and the card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from .. import images
from . import hub
from .erase_pack import ErasePack
from .errors import PackError
from .find import folders, open_erase_pack, open_pack
from .manifest import UnlearnedEntry
from .pack import Pack


def listing() -> Iterator[str]:
    """A line a pack: name, title, where it is, how many unlearned models."""
    for name in folders():
        try:
            pack = open_pack(name)
            models, where = pack.manifest.unlearned, whereabouts(pack)
            away = sum(bool(pack.lacking(entry.id)) for entry in models)
        except PackError as error:
            yield f"{name}: cannot be used: {error}"
            continue
        counted = f"{len(models)} unlearned models" + (f", {away} of them not on this computer" if away else "")
        yield f"{name}: {pack.manifest.title}; {where}; {counted}"
    for name in folders("erase"):
        try:
            pack = open_erase_pack(name)
            where = "not whole on this computer" if pack.missing() else "here"
            yield f"{name}: {pack.manifest.title}; {where}; {len(pack.manifest.concepts)} concepts to erase"
        except PackError as error:
            yield f"{name}: cannot be used: {error}"


def whereabouts(pack: Pack) -> str:
    """ "here", or what has to be downloaded: "not on this computer, about 430 MB"."""
    if not pack.lacking():
        return "here"
    source = pack.manifest.source
    size = f", about {source.megabytes} MB" if source and source.megabytes else ""
    return f"not on this computer{size}"


def check(pack: Pack) -> Iterator[tuple[str, str | None]]:
    """Loads everything that is on this computer, one (what, problem or None) at a time.

    Raises PackError where the pack itself is not there.
    """
    m = pack.manifest
    if pack.lacking():
        raise PackError(f"pack {m.name} is {whereabouts(pack)}; `{pack.get_command()}` fetches it")
    steps: list[tuple[str, Callable]] = [("original model", pack.original)]
    steps += [(f"SAE of layer {layer}", lambda layer=layer: pack.sae(layer)) for layer in m.layers]
    steps += [(f"experts of layer {layer}", lambda layer=layer: pack.expert_ids(layer, 0)) for layer in m.layers]
    try:
        steps += [(f"example image {e.path.name}", lambda e=e: images.read(e.path)) for e in pack.examples()]
    except PackError:
        steps.append(("example images", pack.examples))
    here = [entry.id for entry in m.unlearned if not pack.lacking(entry.id)]
    steps += [(f"unlearned model {id}", lambda id=id: pack.unlearned(id)) for id in here]
    for what, load in steps:
        try:
            load()
            yield what, None
        except ValueError as error:  # PackError, ImageError
            yield what, str(error)


def check_erase(pack: ErasePack) -> Iterator[tuple[str, str | None]]:
    """Loads every part of a diffusion pack, one (what, problem or None) at a time."""
    steps: list[tuple[str, Callable]] = [("pipeline", pack.pipeline)]
    for entry in pack.manifest.saes:
        steps.append((f"SAE {entry.id}", partial(pack.sae, entry.id)))
        steps.append((f"statistics of {entry.id}", partial(pack.statistics, entry.id)))
        steps.append((f"settings of {entry.id}", partial(pack.settings, entry.id)))
    steps += [(f"judge of the {what}", partial(pack.judge, what)) for what in pack.manifest.judges]
    for what, load in steps:
        try:
            yield what, None if load() is not None else "it is not on this computer"
        except ValueError as error:
            yield what, str(error)


def card(pack: Pack) -> str:
    """Markdown: what the pack is, how well its SAEs fit, and what its models do on its example images.

    Files that are not on this computer are named as such. Raises PackError for damaged ones.
    """
    m = pack.manifest
    parts = [f"# {m.title}\n", f"{len(m.classes)} classes: {', '.join(m.classes)}.\n"]
    if m.source is not None:
        file = m.hub_file(m.files["original"])
        at = hub.commit(file) or f"revision {m.source.revision}"
        parts.append(f"From `{m.source.repo_id}`, {at}.\n")
    if pack.lacking():
        return "\n".join([*parts, f"The pack is {whereabouts(pack)}: `{pack.get_command()}`.\n"])
    s = pack.shape
    size, patch = f"{s.image_size} px", f"patches of {s.patch} px"
    parts.append(f"ViT: {s.depth} blocks, width {s.dim}, {s.heads} heads; images of {size}, {patch}.\n")
    parts.append(f"{len(pack.examples())} example images.\n" if pack.examples() else "No example images.\n")
    return "\n".join([*parts, _sae_table(pack), "", _model_table(pack)])


def _sae_table(pack: Pack) -> str:
    lines = [
        "Fraction of variance unexplained (FVU) on the example images, with normalised and with raw input; the lower "
        "one decides how the SAE is used.\n",
        "| layer | latents | k | FVU normalised | FVU raw | used | saw CLS | experts a class |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layer in pack.manifest.layers:
        sae, fit = pack.sae(layer), pack.sae_fit(layer)
        counts = {len(pack.expert_ids(layer, c)) for c in range(len(pack.manifest.classes))}
        experts = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        shown = ["not measured" if share is None else f"{share:.3f}" for share in (fit.normalised, fit.raw)]
        used, saw_cls = "normalised" if sae.normalised else "raw", "yes" if fit.saw_cls else "no"
        lines.append(f"| {layer} | {sae.latents} | {sae.k} | {' | '.join(shown)} | {used} | {saw_cls} | {experts} |")
    return "\n".join(lines)


def _model_table(pack: Pack) -> str:
    m = pack.manifest
    if not m.unlearned:
        return "No unlearned models: bring your own.\n"
    lines = ["| unlearned model | method | forgot | on the examples: forget | retain |", "|---|---|---|---|---|"]
    for entry in m.unlearned:
        measured = _measured(pack, entry)
        lines.append(f"| {entry.id} | {entry.method} | {m.classes[entry.target_class]} | {' | '.join(measured)} |")
    return "\n".join(lines) + "\n"


def _measured(pack: Pack, entry: UnlearnedEntry) -> tuple[str, str]:
    if pack.lacking(entry.id):
        return "not on this computer", ""
    if not pack.examples():
        return "no examples", ""
    forget, retain = pack.accuracy_on_examples(pack.unlearned(entry.id), entry.target_class)
    return tuple("no examples" if share is None else f"{share:.1%}" for share in (forget, retain))
