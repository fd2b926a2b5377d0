"""What the command `packs` says of Restore's packs: a line, the files wanted, the check of every file, and the card."""

from __future__ import annotations

from collections.abc import Callable

from ..data import images
from ..packs import hub
from ..packs.errors import PackError
from ..packs.kinds import Caution, Checked, Kind, Wanted
from . import atlas_file
from .manifest import UnlearnedEntry
from .pack import Pack, open_pack


def kind() -> Kind:
    """For `packs`, which takes names."""
    return Kind(line, wanted, lambda name, device: check(open_pack(name, device)), lambda *at: card(open_pack(*at)))


def line(name: str) -> str:
    """Title, where it is, how many unlearned models. Raises PackError."""
    pack = open_pack(name)
    models = pack.manifest.unlearned
    away = sum(bool(pack.lacking(entry.id)) for entry in models)
    counted = f"{len(models)} unlearned models" + (f", {away} of them not on this computer" if away else "")
    return f"{pack.manifest.title}; {whereabouts(pack)}; {counted}"


def wanted(name: str, unlearned: list[str]) -> Wanted:
    """The pack's files and those of the unlearned models asked for: ids, "all", or the first. Raises PackError."""
    pack = open_pack(name)
    known = [entry.id for entry in pack.manifest.unlearned]
    ids = known if "all" in unlearned else unlearned or known[:1]
    files = [*pack.lacking(), *(file for id in ids for file in pack.lacking(id)), *pack.lacking_examples()]
    return Wanted(pack.manifest.name, list(dict.fromkeys(files)), list)


def whereabouts(pack: Pack) -> str:
    """ "here", or what has to be downloaded: "not on this computer, about 430 MB"."""
    if not pack.lacking():
        return "here"
    source = pack.manifest.source
    size = f", about {source.megabytes} MB" if source and source.megabytes else ""
    return f"not on this computer{size}"


def check(pack: Pack) -> Checked:
    """Loads everything that is on this computer, one (what, problem or None) at a time.

    Raises PackError where the pack itself is not there.
    """
    m = pack.manifest
    if pack.lacking():
        raise PackError(f"pack {m.name} is {whereabouts(pack)}; `{pack.get_command()}` fetches it")
    steps: list[tuple[str, Callable]] = [("original model", pack.original)]
    steps += [(f"SAE of layer {layer}", lambda layer=layer: _caution(pack, layer)) for layer in m.layers]
    steps += [(f"experts of layer {layer}", lambda layer=layer: pack.expert_ids(layer, 0)) for layer in m.layers]
    try:
        steps += [(f"example image {e.path.name}", lambda e=e: images.read(e.path)) for e in pack.find_examples()]
    except PackError:
        steps.append(("example images", pack.find_examples))
    if (m.folder / atlas_file.FILE).is_file():
        steps.append(("atlas", lambda: atlas_file.read(pack)))
    here = [entry.id for entry in m.unlearned if not pack.lacking(entry.id)]
    steps += [(f"unlearned model {id}", lambda id=id: pack.unlearned(id)) for id in here]
    for what, load in steps:
        try:
            found = load()
        except ValueError as error:  # PackError, ImageError
            yield what, str(error)
            continue
        yield what, None
        if isinstance(found, Caution):
            yield f"fit of the {what}", found


def _caution(pack: Pack, layer: int) -> Caution | None:
    """Loads the layer's SAE. Raises PackError."""
    caution = pack.sae_fit(layer).caution
    return None if caution is None else Caution(caution)


def card(pack: Pack) -> str:
    """Markdown: what the pack is, how well its SAEs fit, and what its models do on its example images.

    Files that are not on this computer are named as such, and so are unlearned models that are damaged. Raises
    PackError for other damaged files.
    """
    m = pack.manifest
    parts = [f"# {m.title}\n", f"{len(m.classes)} classes: {', '.join(m.classes)}.\n"]
    if m.source is not None:
        file = m.hub_file(m.files["original"])
        at = file and hub.commit(file) or f"revision {m.source.revision}"
        parts.append(f"From `{m.source.repo_id}`, {at}.\n")
    parts += _published(pack)
    if pack.lacking():
        return "\n".join([*parts, f"The pack is {whereabouts(pack)}: `{pack.get_command()}`.\n"])
    s = pack.shape
    size, patch = f"{s.image_size} px", f"patches of {s.patch} px"
    parts.append(f"ViT: {s.depth} blocks, width {s.dim}, {s.heads} heads; images of {size}, {patch}.\n")
    parts.append(f"{len(pack.examples())} example images.\n" if pack.examples() else "No example images.\n")
    return "\n".join([*parts, _sae_table(pack), "", _model_table(pack)])


def _published(pack: Pack) -> list[str]:
    """What the models' publisher says of them, and what their pretraining means for the yardstick."""
    m, parts = pack.manifest, []
    told = [(entry.id, entry.published_retain_accuracy) for entry in m.unlearned]
    figures = ", ".join(f"{id} {share:.2%}" for id, share in told if share is not None)
    if figures:
        parts.append(f"Retain accuracy as their publisher's card has it, not measured here: {figures}.\n")
    if m.published_original is not None:
        of = m.published_original
        parts.append(f"Accuracy of the original that the same card names, `{of.file}`: {of.accuracy:.2%}.\n")
    if m.retraining_caution:
        parts.append(f"{m.retraining_caution}\n")
    return parts


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
    cautions = [(layer, pack.sae_fit(layer).caution) for layer in pack.manifest.layers]
    return "\n".join([*lines, *(f"\nCaution, layer {layer}: {text}." for layer, text in cautions if text)])


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
    try:
        forget, retain = pack.accuracy_on_examples(pack.unlearned(entry.id), entry.target_class)
    except PackError as error:
        return f"cannot be measured: {error}", ""
    shown = ["no examples" if share is None else f"{share:.1%}" for share in (forget, retain)]
    return shown[0], shown[1]
