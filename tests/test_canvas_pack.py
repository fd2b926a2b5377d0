"""The embedded pack as it is committed: its size, its files, and that its figures hold on images of another seed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sod_core.build.canvas.builder import FORGOTTEN
from sod_core.build.vit import card
from sod_core.models import vit as vits
from sod_core.packs import safe
from sod_core.packs.find import ASSETS, folders
from sod_core.restore import features, pointing
from sod_core.restore.manifest import UnlearnedEntry
from sod_core.restore.pack import Pack
from sod_core.restore.testset import open_set
from sod_core.worlds import canvas, drawn
from sod_core.worlds.drawn import ImageSet

FOLDER = ASSETS / "canvas"
MODELS = [f"{how}-{name}" for name, methods in FORGOTTEN.items() for how in methods]
LAYER = 9


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack(FOLDER)


@pytest.fixture(scope="module")
def fresh() -> ImageSet:
    """300 images that nothing was trained, measured or ranked on."""
    return drawn.draw(300, seed=2026)


def right(vit: torch.nn.Module, data: ImageSet) -> np.ndarray:
    """[n], bool: which images are named rightly."""
    with torch.inference_mode():
        return vits.logits(vit, drawn.normalise(data.pixels)).argmax(1).numpy() == data.labels


# ---------------------------------------------------------------- files


def test_sizes():
    """A Space refuses larger files outside of LFS, and a clone should stay quick."""
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 10e6, max(sizes, key=sizes.get)
    assert sum(sizes.values()) < 120e6


def test_the_pack_holds_what_was_asked_for(pack):
    found = pack.manifest
    assert (found.name, found.classes, found.layers, found.k) == ("canvas", canvas.OBJECTS, (8, 9, 10), 16)
    assert found.vit.depth == 12 and found.vit.image_size == 64 and 96 <= found.vit.dim <= 128
    assert sorted(entry.id for entry in found.unlearned) == sorted(MODELS)
    for entry in found.unlearned:
        assert entry.id == f"{entry.method}-{found.classes[entry.target_class]}"
        assert None not in (entry.forget_accuracy, entry.retain_accuracy)


def test_no_file_is_left_over(pack):
    named = {pack.manifest.path(pack.manifest.files["original"])}
    named |= {pack.manifest.path(entry.file) for entry in pack.manifest.unlearned}
    layers = pack.manifest.layers
    named |= {pack.layer_file(kind, layer) for kind in ("sae", "stats", "experts") for layer in layers}
    assert {path for path in FOLDER.rglob("*") if path.suffix in (".pth", ".pt", ".npy", ".ckpt", ".part")} == named


def test_weights_are_stored_in_half_precision_which_hardly_moves_logits(pack):
    paths = [pack.manifest.path(entry.file) for entry in pack.manifest.unlearned]
    paths += [pack.manifest.path(pack.manifest.files["original"])]
    paths += [pack.layer_file("sae", layer) for layer in pack.manifest.layers]
    for path in paths:
        tensors = [value for value in safe.read_torch(path).values() if isinstance(value, Tensor)]
        assert {tensor.dtype for tensor in tensors} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors)
    original = json.loads((FOLDER / "figures" / "original.json").read_text())
    assert 0 < original["half_precision_moves_logits"] < 1e-2
    assert f"{original['half_precision_moves_logits']:.1e}" in (FOLDER / "README.md").read_text()


def test_saes_and_experts(pack):
    for layer in pack.manifest.layers:
        sae, fit = pack.sae(layer), pack.sae_fit(layer)
        assert (sae.dim, sae.latents) == (pack.shape.dim, 4 * pack.shape.dim)
        assert sae.normalised and fit.normalised < 0.2 and fit.normalised < fit.raw
        for target in range(len(canvas.OBJECTS)):
            experts = pack.experts(layer, target)
            assert 0 < len(experts) <= features.experts_kept(pack.manifest.k) == 20
            assert [expert.f1 for expert in experts] == sorted((expert.f1 for expert in experts), reverse=True)


def test_examples_look_good_on_a_projector(pack):
    examples = pack.examples()
    for label, name in enumerate(canvas.OBJECTS):
        paths = [example.path for example in examples if example.label == label]
        assert {path.stem.split("_")[1] for path in paths} == set(canvas.STYLES), name
    for example in examples:
        with Image.open(example.path) as image:
            assert image.size == (512, 512)
    with torch.inference_mode():
        predicted = vits.logits(pack.original(), pack.example_inputs()).argmax(1)
    assert (predicted == torch.tensor([example.label for example in examples])).float().mean() >= 0.95


def test_the_card_is_of_these_models(pack):
    text = (FOLDER / "README.md").read_text()
    for entry in pack.manifest.unlearned:
        record = json.loads((FOLDER / "figures" / f"{entry.id}.json").read_text())
        assert (record["forget_accuracy"], record["retain_accuracy"]) == (entry.forget_accuracy, entry.retain_accuracy)
        line = next(line for line in text.splitlines() if line.startswith(f"| {entry.id} |"))
        assert f"{entry.forget_accuracy * 100:.1f} %" in line and f"{entry.retain_accuracy * 100:.1f} %" in line
        met = entry.forget_accuracy <= card.FORGET_GOAL
        met &= entry.retain_accuracy >= record["original_retain_accuracy"] - card.RETAIN_GOAL
        assert ("missed" in line) != met


# ---------------------------------------------------------------- models, on fresh images


def test_the_original_knows_its_classes(pack, fresh):
    found = right(pack.original(), fresh)
    assert found.mean() >= 0.97
    for label in range(len(canvas.OBJECTS)):
        assert found[fresh.labels == label].mean() >= 0.9
    for style in range(len(canvas.STYLES)):
        assert found[fresh.styles == style].mean() >= 0.9


@pytest.mark.parametrize("id", MODELS)
def test_an_unlearned_model_is_what_its_figures_say(pack, fresh, id):
    """30 images of the class and 90 others; the recorded figures are of 2,000."""
    entry: UnlearnedEntry = pack.manifest.entry(id)
    forgotten = np.flatnonzero(fresh.labels == entry.target_class)
    others = np.flatnonzero(fresh.labels != entry.target_class)[:90]
    found = right(pack.unlearned(id), fresh.where(np.concatenate([forgotten, others])))
    forget, retain = found[: len(forgotten)].mean(), found[len(forgotten) :].mean()
    assert forget <= entry.forget_accuracy + 0.1 and retain >= entry.retain_accuracy - 0.05


def returned(pack: Pack, data: ImageSet, id: str, chosen: list[int]) -> list[float]:
    """Share of the forgotten class's images that come back, for alphas 0, 1, 2, 5 and 10."""
    target = pack.manifest.entry(id).target_class
    session = pack.session(id)
    session.set_image(drawn.normalise(data.where(data.labels == target).pixels))
    logits = session.restore([0.0, 1.0, 2.0, 5.0, 10.0], LAYER, "inject", chosen)
    return (logits.argmax(-1) == target).float().mean(1).tolist()


@pytest.mark.parametrize("id", ["salun-boat", "salun-cat"])
def test_experts_bring_back_what_salun_suppressed(pack, fresh, id):
    """And as many random features do not, nor random ones that fire equally often."""
    experts = [expert.feature_id for expert in pack.experts(LAYER, pack.manifest.entry(id).target_class)]
    activity = pack.activity(LAYER)
    found = returned(pack, fresh, id, experts)
    assert found[0] <= 0.1 and max(found) >= 0.7
    for control in ("random", "matched"):
        best = [max(returned(pack, fresh, id, features.choose(control, experts, activity, s))) for s in range(2)]
        assert np.mean(best) <= max(found) - 0.5


def test_the_pointing_game(pack):
    """The hottest patch of the class's experts lies on the object."""
    found = pointing.pointing_game(pack, LAYER, open_set(pack, "canvas", 300))
    assert found.images == 300 and found.hits / found.images >= 0.9


def test_the_pack_is_found_by_its_name():
    assert folders()["canvas"] == FOLDER
