"""The sentences of the Restore tab."""

from __future__ import annotations

from collections.abc import Sequence

from ..packs.manifest import Manifest, UnlearnedEntry
from ..restore import FIDELITY
from ..unlearn import TITLES
from .visitor import Curve, Probabilities

MODE_TITLES = {
    "inject": "Inject (exact)",
    "amplify": "Amplify (exact, needs no original)",
    "direct_injection": "Direct injection (reference code)",
    "add": "Add (reference code)",
    "cls_copy": "Copy CLS (control)",
}
FEATURE_TITLES = {
    "experts": "experts of the class",
    "random": "random",
    "matched": "random, equally active",
    "all": "all",
    "own": "my list",
}
TOKEN_TITLES = {"all": "CLS and patches", "patches": "patches only", "cls": "CLS only"}
_MODE_NOTES = {
    "inject": "Moves the edited latents to the original's values; alpha 0 changes nothing. The SAE's error stays out.",
    "amplify": "Scales the unlearned model's own latents by alpha; alpha 1 changes nothing.",
    "direct_injection": "As the released code: patches are replaced by their reconstruction, and CLS is pulled to the "
    "original's whatever the features do. Alpha 0 is not the identity.",
    "add": "As the released code: adds alpha times the projected latents, and the SAE's bias. Alpha 0 is not the "
    "identity.",
    "cls_copy": "No features at all: CLS is pulled to the original's. What it restores, no feature can claim.",
}


def model_name(entry: UnlearnedEntry, manifest: Manifest) -> str:
    """ "SalUn, forgot boat"."""
    return f"{TITLES.get(entry.method, entry.method)}, forgot {manifest.classes[entry.target_class]}"


def model_note(entry: UnlearnedEntry, manifest: Manifest) -> str:
    """Its forget and retain accuracy."""
    if entry.forget_accuracy is None or entry.retain_accuracy is None:
        return "Accuracy not measured."
    name = manifest.classes[entry.target_class]
    forget, retain = f"{entry.forget_accuracy:.1%}", f"{entry.retain_accuracy:.1%}"
    return f"Forget accuracy ({name}) **{forget}**, retain accuracy (the others) **{retain}**."


def mode_note(mode: str) -> str:
    return f"*{FIDELITY[mode].capitalize()}.* {_MODE_NOTES[mode]}"


def verdict(curves: Sequence[Curve], target: str, label: str | None, found: Probabilities, index: int) -> str:
    """What the curves say of this image, in one or two sentences."""
    by_key = {curve.key: curve for curve in curves}
    experts, controls = by_key["experts"], [by_key[key] for key in ("random", "matched")]
    now = f"restored model: {found.restored[index].item():.0%} {target}"
    if label is not None and label != target:
        seen = "starts to be taken for" if experts.returns_at is not None else "is never taken for"
        when = f" a {target} at alpha {experts.returns_at:g}" if experts.returns_at is not None else f" a {target}"
        return f"### This {label} {seen}{when}.\nAn image of another class: the price of the edit. Now, {now}."
    return f"### {_headline(experts, controls, target)}\n{_cls_clause(by_key, target)} Now, {now}."


def _headline(experts: Curve, controls: Sequence[Curve], target: str) -> str:
    """ "boat returns at alpha 1.3; with random features it never does." """
    first = min((c for c in controls if c.returns_at is not None), key=lambda c: c.returns_at, default=None)
    kind = "random features" if first is None or first.key == "random" else "equally active random features"
    if experts.returns_at is None:
        if first is None:
            return f"{target} never returns, nor with random features."
        return f"{target} never returns; {kind} bring it back at alpha {first.returns_at:g}."
    head = f"returns at alpha {experts.returns_at:g}" if experts.returns_at else "is there at alpha 0 already"
    return f"{target} {head}; with {kind} " + ("it never does." if first is None else f"at alpha {first.returns_at:g}.")


def _cls_clause(by_key: dict[str, Curve], target: str) -> str:
    copied = by_key["cls_copy"].returns_at
    retrained = by_key.get("retrained")
    parts = [
        "Copying the original's CLS alone never brings it back"
        if copied is None
        else f"Copying the original's CLS alone brings it back at alpha {copied:g}"
    ]
    if retrained is not None:
        parts.append(
            "the model retrained without it stays blind"
            if retrained.returns_at is None
            else f"even the model retrained without it says {target} at alpha {retrained.returns_at:g}"
        )
    return "; ".join(parts) + "."
