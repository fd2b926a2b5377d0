"""Writes a built pack's pack.json and its README.md, every figure from the stages' own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...worlds import drawn
from .plan import BuildPlan

FORGET_GOAL, RETAIN_GOAL = 0.05, 0.04


def write(out: Path, plan: BuildPlan) -> None:
    """Writes both files as far as the stages' figures are there; without the original's there is nothing to say."""
    figures = {path.stem: json.loads(path.read_text()) for path in sorted((out / "figures").glob("*.json"))}
    saes = [record for record in figures.values() if "layer" in record]
    saes.sort(key=lambda record: record["layer"])
    if "original" not in figures or not saes:
        return
    unlearned = [record for record in figures.values() if "target_class" in record]
    unlearned.sort(key=lambda record: (record["target_class"], record["method"] != "salun", record["method"]))
    (out / "pack.json").write_text(json.dumps(_manifest(saes, unlearned, plan), indent=1) + "\n")
    (out / "README.md").write_text(_readme(figures["original"], saes, unlearned, plan))


def _manifest(saes: list[dict], unlearned: list[dict], plan: BuildPlan) -> dict[str, Any]:
    channels, shape = [drawn.MEAN] * 3, plan.shape
    shown = ("id", "method", "target_class", "file", "forget_accuracy", "retain_accuracy", "seconds")
    return {
        "format": 1,
        "name": plan.name,
        "title": plan.title,
        "classes": list(plan.classes),
        "image": {
            "size": shape.image_size,
            "resize": shape.image_size,
            "mean": channels,
            "std": channels,
            "interpolation": "bilinear",
        },
        "vit": {"patch": shape.patch, "dim": shape.dim, "depth": shape.depth, "heads": shape.heads},
        "layers": [record["layer"] for record in saes],
        "k": saes[0]["recipe"]["k"],
        "files": {
            "original": f"vit_{plan.name}_original.pth",
            "sae": "sae_layer{layer}_k{k}.pt",
            "stats": "activations_layer{layer}_stats.npy",
            "experts": "expert_features_layer{layer}_k{k}.pt",
        },
        "examples": "examples",
        **plan.manifest,
        "unlearned": [{key: record[key] for key in shown} for record in unlearned],
    }


def _readme(original: dict[str, Any], saes: list[dict], unlearned: list[dict], plan: BuildPlan) -> str:
    parts = [
        f"# The {plan.name} pack\n",
        f"Made by `python -m sod_core build {plan.name}`; this page is written by that command from its own records "
        "(`figures/`). Times are of one process on one core of two, other stages running beside it.\n",
        *([plan.about + "\n"] if plan.about else []),
        _original_section(original, plan),
        _sae_section(saes, plan),
        _unlearned_section(unlearned),
    ]
    return "\n".join(parts)


def _original_section(record: dict[str, Any], plan: BuildPlan) -> str:
    recipe, shape = record["recipe"], plan.shape
    styles = ", ".join(f"{name} {_percent(value)}" for name, value in record["by_style"].items())
    by_style = f"- By style: {styles}.\n" if styles else ""
    classes = ", ".join(f"{name} {_percent(value)}" for name, value in record["by_class"].items())
    return f"""## Original ViT
{shape.depth} blocks, width {shape.dim}, {shape.heads} heads, {shape.image_size} px, patch {shape.patch}. Trained from scratch on
{record["training_images"]:,} {plan.made_of}, {recipe["steps"]:,} steps of {recipe["batch"]}, in {_minutes(record["seconds"])}.

- Accuracy on {record["test_images"]:,} fresh images: **{_percent(record["accuracy"])}**.
{by_style}- By class: {classes}.
- Weights are stored in half precision; that moves no logit by more than {record["half_precision_moves_logits"]:.1e} (250 images).
"""


def _sae_section(saes: list[dict], plan: BuildPlan) -> str:
    recipe, tokens = saes[0]["recipe"], plan.shape.grid**2 + 1
    rows = []
    for record in saes:
        r = record["report"]
        rows.append(
            f"| {record['layer']} | {r['variance_unexplained']:.3f} | {r['variance_unexplained_cls']:.3f} | "
            f"{r['dead_latents']} of {r['latents']} | {r['active_latents']:.1f} | {_percent(r['accuracy'])} | "
            f"{_percent(r['accuracy_reconstructed'])} | {_minutes(record['seconds'])} |"
        )
    return f"""## Sparse autoencoders
TopK, k = {recipe["k"]}, trained on CLS and patch tokens together (CLS with its natural share, 1 in {tokens}), each normalised by its
own mean and standard deviation; {recipe["steps"]:,} steps of {recipe["batch"]:,} tokens. Beside the squared error and AuxK the loss holds
{recipe["weak_weight"]} * sum(tanh(latents / {recipe["weak_scale"]})), which clears away weak firing, so fewer than k latents are active on most tokens.
Measured on the original's test images; "reconstructed" replaces every token of the layer by its reconstruction.

| layer | variance unexplained | on CLS alone | dead latents | active on a token | ViT accuracy | reconstructed | time |
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Expert features: by F1 over 1,000 check images (apart from both); a latent counts as active on an image if it is in the
top k on at least one patch; latents active on at least half of the images of 7 or more classes are dropped.
"""


def _unlearned_section(unlearned: list[dict]) -> str:
    rows = [
        f"| {record['id']} | {_percent(record['original_forget_accuracy'])} | {_percent(record['forget_accuracy'])} | "
        f"{_percent(record['original_retain_accuracy'])} | {_percent(record['retain_accuracy'])} | "
        f"{_minutes(record['seconds'])} | {_remark(record)} |"
        for record in unlearned
    ]
    return f"""## Unlearned models
Forget: accuracy on fresh images of the forgotten class. Retain: on those of all others. The aim is at most
{FORGET_GOAL:.0%} forget accuracy, and retain accuracy within {RETAIN_GOAL * 100:.0f} points of the original's. A method that misses it on this
model is shown missing it: settings were tried on check images, a handful a method. `figures/` holds each model's
settings; `python -m sod_core unlearn --from figures/ID.json --out FILE` makes one again, where the record says all it takes.

| model | forget before | forget after | retain before | retain after | time | aim |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}
"""


def _remark(record: dict[str, Any]) -> str:
    missed = []
    if record["forget_accuracy"] > FORGET_GOAL:
        missed.append("still names the class")
    if record["retain_accuracy"] < record["original_retain_accuracy"] - RETAIN_GOAL:
        missed.append("the retain set suffers")
    return "missed: " + "; ".join(missed) if missed else "met"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
