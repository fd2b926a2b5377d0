"""The build: drawing, training from scratch with a kill in between, stages, and the card."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sod_core.build.canvas import builder as build
from sod_core.build.vit import builder as vit_builder
from sod_core.build.vit import card, train_sae, train_vit
from sod_core.models import vit as vits
from sod_core.restore import manifest
from sod_core.restore.pack import Pack
from sod_core.sparse.topk import TokenStats
from sod_core.unlearn import TITLES, method
from sod_core.unlearn.task import Stop
from sod_core.worlds import canvas
from sod_core.worlds import drawn as images
from sod_core.worlds.drawn import ImageSet

SHAPE = vits.ViTShape(images.SIZE, images.PATCH, dim=16, depth=2, heads=2, classes=len(canvas.OBJECTS))
PLAN = dataclasses.replace(build.plan(), shape=SHAPE)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn() -> ImageSet:
    return images.draw(120, seed=7)


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("workers", [1, 3])
def test_drawing_does_not_depend_on_the_number_of_workers(monkeypatch, drawn, workers):
    monkeypatch.setattr(images.os, "cpu_count", lambda: workers)
    for one, other in zip(images.draw(120, seed=7), drawn):
        assert np.array_equal(one, other)


def test_an_image_depends_on_seed_and_place_alone(drawn):
    few, other = images.draw(20, seed=7), images.draw(20, seed=8)
    assert np.array_equal(few.pixels, drawn.pixels[:20]) and np.array_equal(few.coverage, drawn.coverage[:20])
    assert not any(np.array_equal(one, two) for one, two in zip(few.pixels, other.pixels))


def test_every_object_comes_in_every_style(drawn):
    pairs = set(zip(drawn.labels.tolist(), drawn.styles.tolist()))
    assert len(pairs) == len(canvas.OBJECTS) * len(canvas.STYLES)
    assert drawn.pixels.shape == (120, 64, 64, 3) and drawn.pixels.dtype == np.uint8
    assert drawn.coverage.shape == (120, 64) and drawn.coverage.dtype == np.uint8


def test_coverage_is_the_masks(drawn):
    for i in (0, 13, 57, 119):
        name, style = canvas.OBJECTS[drawn.labels[i]], canvas.STYLES[drawn.styles[i]]
        image, mask = canvas.render(name, style, np.random.default_rng((7, i)), 64)
        assert np.array_equal(np.asarray(image), drawn.pixels[i])
        inside = np.asarray(mask) > 0
        for patch, value in enumerate(drawn.coverage[i].tolist()):
            y, x = divmod(patch, 8)
            share = inside[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean()
            assert value == int(share * 255)


def test_normalise():
    pixels = np.zeros((1, 2, 2, 3), np.uint8)
    pixels[0, 0, 1] = (255, 0, 51)
    found = images.normalise(pixels)
    assert found.shape == (1, 3, 2, 2)
    assert found[0, :, 0, 1].tolist() == pytest.approx([1, -1, -0.6]) and (found[0, :, 1] == -1).all()


def test_images_are_drawn_once(monkeypatch, tmp_path):
    first = images.load(tmp_path / "work", "few", 12, 3)
    monkeypatch.setattr(images, "draw", lambda count, seed: pytest.fail("drawn again"))
    for one, two in zip(first, images.load(tmp_path / "work", "few", 12, 3)):
        assert isinstance(two, np.memmap) and np.array_equal(one, two)
    assert not list((tmp_path / "work").glob("*part*"))


def test_images_cut_off_by_a_kill_are_drawn_again(tmp_path):
    first = images.load(tmp_path, "few", 12, 3)
    next(tmp_path.glob("few_12_3_styles.npy")).unlink()
    for one, two in zip(first, images.load(tmp_path, "few", 12, 3)):
        assert np.array_equal(one, two)


# ---------------------------------------------------------------- training a ViT


def testtoken_targets_by_hand():
    """No object: background. More than 30 %: the class. Between: ignored."""
    coverage = torch.tensor([[0, 1, 77, 78, 255], [255, 0, 0, 0, 40]], dtype=torch.uint8)
    found = train_vit.token_targets(coverage, torch.tensor([3, 0]), background=10)
    assert found.tolist() == [[10, -1, -1, 3, 3], [0, 10, 10, 10, -1]]


def test_one_cycle_by_hand():
    shares = [0, 0.025, 0.05, 0.525, 1]
    assert [train_vit._one_cycle(share, warmup=0.05) for share in shares] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_half_of_the_patches_with_their_targets():
    hidden = torch.arange(9.0).expand(4, 9)[:, :, None].repeat(1, 1, 5)  # every token holds its place
    targets = torch.arange(1, 9).expand(4, 8)
    kept, kept_targets = train_vit._drop_half(hidden, targets, np.random.default_rng(0))
    assert kept.shape == (4, 5, 5) and (kept[:, 0] == 0).all()
    assert torch.equal(kept[:, 1:, 0].long(), kept_targets)
    for row in kept_targets.tolist():
        assert len(set(row)) == 4 and set(row) <= set(range(1, 9))
    assert len({tuple(row) for row in kept_targets.tolist()}) > 1


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock of the trainings that goes on by `tick` seconds whenever it is read."""
    clock = SimpleNamespace(now=0.0, tick=61.0)

    def monotonic() -> float:
        clock.now += clock.tick
        return clock.now

    for module in (train_vit, train_sae):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    return clock


RECIPE = train_vit.Recipe(steps=6, batch=8)


class Killed(Exception):
    pass


def killed_at(monkeypatch, module, name: str, call: int) -> list[int]:
    """Lets a function of a module fail at its call number `call` (from 0), once. Returns a list of its calls."""
    calls: list[int] = []
    genuine = getattr(module, name)

    def run(*arguments, **named):
        calls.append(len(calls))
        if len(calls) == call + 1:
            raise Killed
        return genuine(*arguments, **named)

    monkeypatch.setattr(module, name, run)
    return calls


@pytest.mark.parametrize("without", [None, 3])
@pytest.mark.parametrize("call", [2, 5])
def test_a_killed_vit_training_goes_on(monkeypatch, tmp_path, drawn, clock, call, without):
    """Weights bit for bit as unbroken; of the steps before the last checkpoint none is taken again."""
    train = partial(train_vit.train, SHAPE, drawn, RECIPE, device=CPU, without=without)
    expected = train(tmp_path / "unbroken.ckpt")
    calls = killed_at(monkeypatch, train_vit, "_step", call)
    checkpoint = tmp_path / "killed.ckpt"
    with pytest.raises(Killed):
        train(checkpoint)
    assert checkpoint.exists() and len(calls) == call + 1
    found = train(checkpoint)
    assert same(weights(found.vit), weights(expected.vit)) and len(calls) == RECIPE.steps + 1
    assert found.seconds > call * 61
    done = train(checkpoint)  # and a finished one is only read
    assert same(weights(done.vit), weights(expected.vit)) and len(calls) == RECIPE.steps + 1
    assert done.seconds == found.seconds


def test_a_checkpoint_of_another_recipe_is_not_used(tmp_path, drawn):
    """Nor one from before recipes were kept in it."""
    train = partial(train_vit.train, SHAPE, drawn, device=CPU)
    checkpoint, other = tmp_path / "run.ckpt", dataclasses.replace(RECIPE, seed=4)
    train(RECIPE, checkpoint)
    expected = weights(train(other, tmp_path / "fresh.ckpt").vit)
    assert same(weights(train(other, checkpoint).vit), expected)
    state = torch.load(checkpoint, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "recipe"} | {"step": 0}, checkpoint)
    assert same(weights(train(other, checkpoint).vit), expected)


def test_no_checkpoint_before_a_minute(monkeypatch, tmp_path, drawn, clock):
    clock.tick = 1.0
    killed_at(monkeypatch, train_vit, "_step", 4)
    with pytest.raises(Killed):
        train_vit.train(SHAPE, drawn, RECIPE, tmp_path / "run.ckpt", CPU)
    assert not list(tmp_path.iterdir())


def test_training_learns_and_depends_on_the_seed(tmp_path, drawn):
    """Twelve images are learned by heart."""
    few = drawn.where(np.arange(12))
    recipe = train_vit.Recipe(steps=120, batch=24)
    found = train_vit.train(SHAPE, few, recipe, tmp_path / "run.ckpt", CPU).vit
    right = vits.logits(found, images.normalise(few.pixels)).argmax(1).numpy() == few.labels
    assert right.mean() > 0.7 and not found.training
    short = [train_vit.Recipe(steps=2, batch=4, seed=seed) for seed in (0, 1)]
    one, two = (train_vit.train(SHAPE, few, recipe, tmp_path / f"{recipe.seed}.ckpt", CPU) for recipe in short)
    assert not same(weights(one.vit), weights(two.vit))


# ---------------------------------------------------------------- training an SAE

SAE_RECIPE = train_sae.SAERecipe(k=4, steps=6, batch=128, images=120, dead_after=2)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    return vits.new(SHAPE).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def tokens(vit, drawn) -> train_sae.Tokens:
    return train_sae.collect(vit, drawn, 1, SAE_RECIPE, CPU)


def test_collected_tokens_are_the_vits(vit, drawn, tokens):
    hidden = vits.head(vit, images.normalise(drawn.pixels[: SAE_RECIPE.images]), 1)
    assert torch.allclose(tokens.cls, hidden[:, 0], atol=1e-5)
    drawn_patches = tokens.patches.view(SAE_RECIPE.images, SAE_RECIPE.patches_an_image, -1)
    for i in (0, 119):
        distance = torch.cdist(drawn_patches[i], hidden[i, 1:])
        assert distance.min(1).values.max() < 1e-3  # each is one of the image's patches,
        assert len(set(distance.argmin(1).tolist())) == SAE_RECIPE.patches_an_image  # and none comes twice
    stats = tokens.stats
    for found, expected in zip(stats, (tokens.patches.mean(0), tokens.patches.std(0), hidden[:, 0].mean(0))):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("call", [3, 5])
def test_a_killed_sae_training_goes_on(monkeypatch, tmp_path, tokens, clock, call):
    clock.tick = 31.0
    recipe = dataclasses.replace(SAE_RECIPE, batch=8)  # so few tokens that latents go idle, and AuxK has work
    expected = train_sae.train(tokens, recipe, tmp_path / "unbroken.ckpt")
    calls = killed_at(monkeypatch, train_sae, "_draw", 2 * call)  # two draws a step
    with pytest.raises(Killed):
        train_sae.train(tokens, recipe, tmp_path / "killed.ckpt")
    found = train_sae.train(tokens, recipe, tmp_path / "killed.ckpt")
    assert same(weights(found), weights(expected)) and len(calls) == 2 * recipe.steps + 1


def test_a_checkpoint_of_another_recipe_or_of_other_tokens_is_not_used(tmp_path, tokens, clock):
    other = dataclasses.replace(SAE_RECIPE, weak_weight=0.1)
    expected = weights(train_sae.train(tokens, other, tmp_path / "fresh.ckpt"))
    train_sae.train(tokens, SAE_RECIPE, tmp_path / "run.ckpt")
    assert same(weights(train_sae.train(tokens, other, tmp_path / "run.ckpt")), expected)
    moved = tokens._replace(stats=tokens.stats._replace(cls_mean=tokens.stats.cls_mean + 1))
    train_sae.train(moved, other, tmp_path / "run.ckpt")
    assert same(weights(train_sae.train(tokens, other, tmp_path / "run.ckpt")), expected)


def test_an_sae_learns_and_keeps_its_columns_at_unit_length(tmp_path, tokens):
    recipe = dataclasses.replace(SAE_RECIPE, steps=60)
    sae = train_sae.train(tokens, recipe, tmp_path / "run.ckpt")
    assert sae.decoder.weight.norm(dim=0).tolist() == pytest.approx([1.0] * sae.latents, abs=1e-4)
    normalised = (tokens.patches - tokens.stats.patch_mean) / tokens.stats.patch_std
    recons = sae.decoder(sae.activate(sae.pre_activations(normalised))) + sae.pre_bias
    assert (normalised - recons).square().mean() < 0.5 * normalised.square().mean()
    assert not sae.training and not any(p.requires_grad for p in sae.parameters())
    assert isinstance(tokens.stats, TokenStats) and torch.equal(sae.mean[1], tokens.stats.patch_mean)


# ---------------------------------------------------------------- stages


def test_a_stage_with_figures_on_disk_is_not_made_again(monkeypatch, tmp_path):
    made = []
    builder = build.Builder(tmp_path / "out", tmp_path / "work", CPU)
    monkeypatch.setattr(vit_builder.PackBuilder, "_stage", lambda self, stage: made.append(stage) or {"stage": stage})
    monkeypatch.setattr(card, "write", lambda *arguments: made.append("card"))
    builder.run([])
    assert made == [*build.stages(), "card"] and len(set(made)) == len(made)
    made.clear()
    builder.run([])
    assert made == ["card"]
    (tmp_path / "out" / "figures" / "salun-boat.json").unlink()
    made.clear()
    builder.run(["salun-boat", "salun-cat"])
    assert made == ["salun-boat", "card"]
    record = json.loads((tmp_path / "out" / "figures" / "salun-boat.json").read_text())
    assert record["stage"] == "salun-boat" and record["seconds"] >= 0


def test_a_stage_that_fails_leaves_no_figures(monkeypatch, tmp_path):
    builder = build.Builder(tmp_path / "out", tmp_path / "work", CPU)

    def stage(self, stage: str) -> dict:
        raise Killed

    monkeypatch.setattr(vit_builder.PackBuilder, "_stage", stage)
    with pytest.raises(Killed):
        builder.run(["original"])
    assert not list((tmp_path / "out" / "figures").iterdir())


def test_there_is_a_stage_for_every_part_of_the_pack():
    stages = build.stages()
    assert stages[:2] == ["original", "examples"]
    assert {f"sae-{layer}" for layer in (8, 9, 10)} < set(stages)
    assert {f"{how}-boat" for how in TITLES} < set(stages)
    strongest = ("retrain", "neggrad_plus", "random_labels", "cf_k", "salun")
    assert {stage for stage in stages if stage.endswith("-cat")} == {f"{how}-cat" for how in strongest}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A whole pack, built by the same stages on a ViT of two blocks, with a few steps each."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SHAPE", SHAPE)
        patch.setattr(build, "LAYERS", [0, 1])
        patch.setattr(build, "FORGOTTEN", {"boat": tuple(TITLES)})
        patch.setattr(build, "TRAIN", (240, 1))
        patch.setattr(build, "TEST", (60, 2))
        patch.setattr(build, "CHECK", (60, 3))
        patch.setattr(build, "EXAMPLE_SIZE", 96)
        patch.setattr(train_vit, "Recipe", partial(train_vit.Recipe, steps=3, batch=8))
        patch.setattr(train_sae, "SAERecipe", lambda: SAE_RECIPE)
        brief = Stop(steps=2)
        for how in TITLES:
            module = method(how)
            changes = {"recipe": RECIPE} if how == "retrain" else {"stop": brief, "batch": 4}
            changes = {"batches": 2, "batch": 4} if how == "ssd" else changes
            changes |= {"k": 1} if how in ("cf_k", "eu_k") else {}
            patch.setattr(module, "Settings", partial(module.Settings, **changes))
        build.Builder(folder / "canvas", folder / "work", CPU).run([])
    return folder / "canvas"


def test_a_built_pack_opens(built):
    found = manifest.read(built)
    assert (found.classes, found.layers, found.k, found.vit) == (canvas.OBJECTS, (0, 1), SAE_RECIPE.k, SHAPE)
    assert {entry.id for entry in found.unlearned} == {f"{how}-boat" for how in TITLES}
    pack = Pack(built)
    assert len(pack.examples()) == len(canvas.OBJECTS) * len(canvas.STYLES)
    for entry in found.unlearned:
        assert pack.manifest.classes[entry.target_class] == "boat"
        session = pack.session(entry.id)
        session.set_image(pack.example_inputs()[:2])
        for layer in found.layers:
            experts = [expert.feature_id for expert in pack.experts(layer, entry.target_class)]
            assert session.restore([0.0, 1.0], layer, "inject", experts).isfinite().all()


def test_a_built_pack_holds_half_precision(built):
    for path in [built / "vit_canvas_original.pth", *(built / "unlearned").iterdir(), *built.glob("sae_layer*.pt")]:
        values = torch.load(path, weights_only=True)
        assert {value.dtype for value in values.values() if isinstance(value, Tensor)} == {torch.float16}


def test_figures_are_of_the_saved_models(built):
    """Forget and retain accuracy as found again with the files."""
    pack = Pack(built)
    test = images.draw(60, seed=2)
    for entry in pack.manifest.unlearned:
        predicted = vits.logits(pack.unlearned(entry.id), images.normalise(test.pixels)).argmax(1).numpy()
        right, forgotten = predicted == test.labels, test.labels == entry.target_class
        assert entry.forget_accuracy == pytest.approx(right[forgotten].mean())
        assert entry.retain_accuracy == pytest.approx(right[~forgotten].mean())


def test_examples_are_drawn_by_the_world(built):
    pack = Pack(built)
    paths = [example.path for example in pack.examples()]
    assert {path.parent.name for path in paths} == set(canvas.OBJECTS)
    assert {path.stem.split("_")[1] for path in paths} == set(canvas.STYLES)


# ---------------------------------------------------------------- the card


def spoil(built: Path, folder: Path, id: str, **changes: float) -> str:
    """The card's line on a model whose figures are changed."""
    (folder / "figures").mkdir(parents=True)
    for path in (built / "figures").iterdir():
        record = json.loads(path.read_text())
        if path.stem == id:
            record |= changes
        (folder / "figures" / path.name).write_text(json.dumps(record))
    card.write(folder, PLAN)
    manifest.read(folder)
    lines = (folder / "README.md").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"| {id} |"))


@pytest.mark.parametrize(
    ("forget", "retain", "says"),
    [
        (0.05, 0.95, "| met |"),
        (0.0, 1.0, "| met |"),
        (0.051, 0.99, "| missed: still names the class"),
        (0.0, 0.949, "| missed: the retain set suffers |"),
        (0.5, 0.5, "the retain set suffers |"),
    ],
)
def test_the_card_says_which_model_misses_the_aim(built, tmp_path, forget, retain, says):
    line = spoil(
        built,
        tmp_path,
        "salun-boat",
        forget_accuracy=forget,
        retain_accuracy=retain,
        original_retain_accuracy=0.99,
        original_forget_accuracy=1.0,
    )
    assert says in line and ("missed" in line) == ("missed" in says or forget > 0.05)
    assert f"| 100.0 % | {forget * 100:.1f} % | 99.0 % | {retain * 100:.1f} % |" in line


def test_the_card_says_every_figure(built):
    text = (built / "README.md").read_text()
    original = json.loads((built / "figures" / "original.json").read_text())
    assert f"**{original['accuracy'] * 100:.1f} %**" in text and "half precision" in text
    for name in (*canvas.OBJECTS, *canvas.STYLES):
        assert name in text
    for layer in (0, 1):
        report = json.loads((built / "figures" / f"sae-{layer}.json").read_text())["report"]
        assert f"| {layer} | {report['variance_unexplained']:.3f} | {report['variance_unexplained_cls']:.3f} |" in text
        assert f"{report['dead_latents']} of {report['latents']}" in text


def test_no_card_without_an_original(tmp_path):
    (tmp_path / "figures").mkdir()
    card.write(tmp_path, PLAN)
    assert not (tmp_path / "pack.json").exists()
