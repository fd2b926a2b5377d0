"""The sentences of the Restore tab."""

from __future__ import annotations

from collections.abc import Sequence

from ...restore.edit import FIDELITY
from ...restore.evaluate import YARDSTICK
from ...restore.manifest import Manifest, UnlearnedEntry
from ...unlearn import TITLES
from .own_models import Doubt
from .visitor import ORIGINAL, Controls, Curve, Probabilities

ALPHA = "alpha: how far to pull (0 nothing, 1 to the original's value)"
MODE_TITLES = {
    "inject": "Inject (exact)",
    "amplify": "Amplify (exact, needs no original)",
    "direct_injection": "Direct injection (reference code)",
    "add": "Add (reference code)",
    "cls_copy": "Copy CLS (control)",
    "state_copy": "Copy the whole state (control)",
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
    "state_copy": "No features at all: every edited token is pulled to the original's. Where even this restores "
    "nothing, later blocks do not listen to this layer.",
}


def model_name(entry: UnlearnedEntry, manifest: Manifest) -> str:
    """ "SalUn, forgot boat"."""
    if entry.method == ORIGINAL:
        return "The original itself: bring your own unlearned model"
    return f"{TITLES.get(entry.method, entry.method)}, forgot {manifest.classes[entry.target_class]}"


def model_note(entry: UnlearnedEntry, manifest: Manifest, doubt: Doubt | None = None) -> str:
    """Its forget and retain accuracy, why it has no verdict, and what a retrained model may know from pretraining."""
    caution = f" {manifest.retraining_caution}" if entry.method == YARDSTICK and manifest.retraining_caution else ""
    return _accuracies(entry, manifest, doubt) + caution


def _accuracies(entry: UnlearnedEntry, manifest: Manifest, doubt: Doubt | None) -> str:
    if entry.forget_accuracy is None or entry.retain_accuracy is None:
        if entry.published_retain_accuracy is None:
            return "Forget and retain accuracy were not measured."
        of = manifest.published_original
        before = "" if of is None else f" (original: {of.accuracy:.2%})"
        return (
            f"Its publisher's card says: retain accuracy **{entry.published_retain_accuracy:.2%}**{before}. Nothing "
            "was measured here."
        )
    name = manifest.classes[entry.target_class]
    forget, retain = f"{entry.forget_accuracy:.1%}", f"{entry.retain_accuracy:.1%}"
    note = f"Forget accuracy ({name}) **{forget}**, retain accuracy (the others) **{retain}**, on {entry.measured_on}."
    return note if doubt is None else f"{note} **{doubt.verdict.capitalize()}.**"


def mode_note(mode: str) -> str:
    return f"*{FIDELITY[mode].capitalize()}.* {_MODE_NOTES[mode]}"


NO_IMAGE = "### Upload an image of your own.\nThe example images of this pack are not on this computer."


def no_verdict(doubt: Doubt) -> str:
    """Stands where the verdict would be."""
    return f"### {doubt.verdict.capitalize()}.\n{doubt.line}"


def measuring(found: Probabilities, index: int, target: str) -> str:
    """Stands where the verdict will be while the curves are computed."""
    return f"### Measuring the experts and their controls ...\nNow: {found.restored[index].item():.0%} {target}."


def verdict(
    curves: Sequence[Curve], controls: Controls, target: str, label: str | None, found: Probabilities, index: int
) -> str:
    """What the curves say of this image, in one or two sentences.

    `label` is the class of an example, None for the visitor's own image; `index` is the forgotten class's.
    """
    by_key = {curve.key: curve for curve in curves}
    now = f"Now: {found.restored[index].item():.0%} {target}."
    if FIDELITY[controls.mode] == "control":
        copied = "CLS" if controls.mode == "cls_copy" else "the hidden state"
        return f"### Copying {copied}, no features: {_returns(by_key['experts'], target)}.\n{now}"
    if label != target:
        whose = "Your image" if label is None else f"This {label}"
        at = by_key["experts"].returns_at
        taken = f"is never taken for {target}" if at is None else f"is taken for {target} from alpha {at:g}"
        note = "" if label is None else "An image of another class: the price of the edit. "
        return f"### {whose} {taken}.\n{note}{now}"
    with_experts = "" if controls.features == "experts" and not controls.expert_class else "With its experts, "
    return f"### {with_experts}{_headline(by_key, target)}\n{_beside(by_key, target)} {now}"


def _returns(curve: Curve, target: str) -> str:
    if curve.returns_at is None:
        return f"{target} never returns"
    return f"{target} returns at alpha {curve.returns_at:g}" if curve.returns_at else f"{target} is there at alpha 0"


def _headline(by_key: dict[str, Curve], target: str) -> str:
    """ "boat returns at alpha 1.3; with random features it never does." """
    experts, random = by_key["experts"], [by_key[key] for key in ("random", "matched")]
    returned = [(c.returns_at, c.key) for c in random if c.returns_at is not None]
    at, key = min(returned, key=lambda found: found[0], default=(None, "random"))
    kind = "random features" if key == "random" else "equally active random features"
    if experts.returns_at is None:
        tail = "random features do not bring it back either" if at is None else f"{kind} do at {at:g}"
    else:
        tail = f"with {kind} it never does" if at is None else f"with {kind} at {at:g}"
    return f"{_returns(experts, target)}; {tail}."


def _beside(by_key: dict[str, Curve], target: str) -> str:
    """What the controls without random features say."""
    copied, retrained = by_key["cls_copy"].returns_at, by_key.get("retrained")
    parts = [
        "Copying the original's summary token (CLS) alone "
        + ("never brings it back" if copied is None else f"brings it back at alpha {copied:g}")
    ]
    if retrained is not None:
        at = retrained.returns_at
        parts.append(
            f"a model retrained without it never says {target}"
            if at is None
            else f"even a model retrained without it says {target} from alpha {at:g}"
        )
    return "; ".join(parts) + "."
