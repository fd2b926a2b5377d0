"""The trainings behind the diffusion pack, on a few images: resumable, deterministic, and their formulas."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sod_core.build import loop
from sod_core.build.canvas_diffusion import prompts, train_judges, train_unet, train_vae
from sod_core.build.canvas_diffusion.builder import EARLIER, Builder
from sod_core.build.erase_saes import activations, erase_sae, train_erase_sae
from sod_core.build.erase_saes.activations import Activations, Gathering, Prompted
from sod_core.build.erase_saes.erase_sae import Maker, Plan, Search
from sod_core.build.erase_saes.train_erase_sae import Recipe, Supervision
from sod_core.erase import edit
from sod_core.erase.judges import JudgeSpec
from sod_core.erase.pack import ErasePack
from sod_core.packs.find import ASSETS
from sod_core.worlds import canvas
from sod_core.worlds import drawn as images


@pytest.fixture(scope="module")
def world() -> images.ImageSet:
    drawn = [images._draw_one(7, i) for i in range(60)]
    pixels, coverage = (np.stack(arrays) for arrays in zip(*drawn))
    index = np.arange(60)
    return images.ImageSet(pixels, coverage, index % 10, index // 10 % 6)


@pytest.fixture(scope="module")
def tokenizer():
    return train_unet.new_tokenizer(prompts.all_forms(canvas.OBJECTS, canvas.STYLES))


# ---------------------------------------------------------------- prompts and tokens


def test_the_tokenizer_has_the_worlds_words_whole_and_spells_others(tokenizer, tmp_path) -> None:
    for word in (*canvas.OBJECTS, *canvas.STYLES, "an", "a", "image", "of", "in", "style", "."):
        assert len(tokenizer(word).input_ids) == 3, word  # between start and end
    again = train_unet.new_tokenizer(prompts.all_forms(canvas.OBJECTS, canvas.STYLES))
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "An image of a Zebra, plainly, in watercolour style."
    assert tokenizer(text).input_ids == again(text).input_ids == loaded(text).input_ids
    assert tokenizer.decode(tokenizer("zebra").input_ids, skip_special_tokens=True).strip() == "zebra"


def test_training_prompts_name_what_is_on_the_image_or_nothing() -> None:
    rng = np.random.default_rng(0)
    drawn = [prompts.draw("cat", "neon", rng) for _ in range(2000)]
    assert 0.06 < drawn.count("") / 2000 < 0.14
    assert all("cat" in text and "neon" in text for text in drawn if text)
    plain = [prompts.draw("cat", "plain", rng) for _ in range(500)]
    assert "An image of cat." in plain and "An image of cat in plain style." in plain
    assert set(drawn) | set(plain) <= set(prompts.all_forms(("cat",), ("neon", "plain")))


def test_the_text_encoders_labels() -> None:
    found = [train_unet._named(text, canvas.OBJECTS) for text in ("An image of star.", "a car", "neon cat", "")]
    assert [([*canvas.OBJECTS, None])[place] for place in found] == ["star", "car", "cat", None]


# ---------------------------------------------------------------- loops


def test_a_resumed_training_is_the_unbroken_one(world, tmp_path) -> None:
    recipe = train_vae.Recipe(steps=4, batch=4, channels=8)
    whole = train_vae.train(world, recipe, tmp_path / "whole.ckpt").vae

    def killed(step, *arguments, **named):
        def until(i: int) -> dict:
            if i == 2:
                loop._save(tmp_path / "part.ckpt", arguments[2], arguments[3], i, 1.0)
                raise KeyboardInterrupt
            return step(i)

        return train(until, *arguments, **named)

    train = loop.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train", killed)
        train_vae.train(world, recipe, tmp_path / "part.ckpt")
    resumed = train_vae.train(world, recipe, tmp_path / "part.ckpt").vae
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    other = train_vae.train(world, replace(recipe, lr=1e-5), tmp_path / "part.ckpt")  # another recipe starts anew
    assert other.seconds < 60 and not torch.equal(next(other.vae.parameters()), next(resumed.parameters()))


def test_the_unet_and_its_text_encoder_learn_together(world, tokenizer, tmp_path) -> None:
    torch.manual_seed(0)
    data = train_unet.Latents(
        torch.randn(60, 4, 16, 16).half(), world.labels, world.styles, world.coverage, canvas.OBJECTS, canvas.STYLES
    )
    recipe = train_unet.Recipe(steps=2, cooling=1, warmup=1, batch=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_unet, "TAUGHT_STEPS", 2)
        found = train_unet.train(data, tokenizer, recipe, tmp_path / "u.ckpt", compiled=False)
    torch.manual_seed(recipe.seed)
    fresh = train_unet.new_unet()
    moved = [(a != b).any() for a, b in zip(found.unet.parameters(), fresh.parameters()) if a.ndim > 1]
    assert sum(moved) > 0.9 * len(moved)
    again = train_unet.train(data, tokenizer, recipe, tmp_path / "u.ckpt", compiled=False)  # from its checkpoint
    assert all(torch.equal(a, b) for a, b in zip(found.unet.parameters(), again.unet.parameters()))


def test_the_schedule_ends_in_pure_noise() -> None:
    scheduler = train_unet.new_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(25)
    assert scheduler.timesteps[0] == 999 and scheduler.config.prediction_type == "v_prediction"


def test_a_judge_learns_what_it_is_shown(world, tmp_path) -> None:
    spec = JudgeSpec(train_judges.ARCHITECTURE, canvas.STYLES, 64)
    recipe = train_judges.Recipe(steps=60, batch=32)
    seen = train_judges.Seen(world, np.array(world.pixels[:30]))
    model = train_judges.train(seen, np.array(world.styles), spec, recipe, tmp_path / "j.ckpt").model
    right = model(images.normalise(world.pixels)).argmax(1).numpy() == world.styles
    assert right.mean() > 0.8


# ---------------------------------------------------------------- the SAE


def planted(count: int = 40) -> Activations:
    """Tokens of noise and, on half of an image's tokens, its concept's direction."""
    rng = np.random.default_rng(0)
    directions = np.eye(3, 16) * 6
    concepts = np.arange(count) % 3
    tokens = rng.standard_normal((count, 4, 8, 16)) * 0.5
    tokens[:, :, ::2] += directions[concepts][:, None, None]
    return Activations(tokens.astype(np.float16), concepts, tokens[:6].astype(np.float16) * 0.1)


def test_supervision_binds_a_latent_to_each_concept(tmp_path) -> None:
    data, recipe = planted(), Recipe(latents=32, k=3, steps=150, images=16)
    plain = train_erase_sae.train(data, recipe, tmp_path / "u.ckpt")
    names = ("a", "b", "c")

    def statistics(sae):
        means = torch.stack([sae.encode(torch.from_numpy(image).float()).mean(1) for image in data.tokens])
        return edit.statistics({name: means[data.concepts == i] for i, name in enumerate(names)})

    bound = train_erase_sae.bind(statistics(plain))
    assert len(set(bound.tolist())) == 3
    taught = train_erase_sae.supervise(
        plain, data, bound, recipe, Supervision(steps=150, weight=0.3), tmp_path / "s.ckpt"
    )
    report = train_erase_sae.report(taught, data, bound)
    assert report.concept_read > 0.95 and report.variance_unexplained < 0.5
    found = statistics(taught)
    for i, name in enumerate(names):  # the bound latent is its concept's best, at every step
        assert all(int(found.scores(name, t).argmax()) == bound[i] for t in range(4))
    assert torch.equal(plain.encoder.weight, train_erase_sae.train(data, recipe, tmp_path / "u.ckpt").encoder.weight)


def test_no_latent_is_bound_twice() -> None:
    """Both concepts score highest on latent 0; the one that stands out more has it."""
    means = torch.tensor([[[8.0, 1.0, 1.0]], [[4.0, 3.0, 1.0]], [[0.0, 1.0, 9.0]]])
    found = train_erase_sae.bind(edit.ConceptStatistics(("a", "b", "c"), means, torch.ones(3)))
    assert found.tolist() == [0, 1, 2]


def test_batch_topk_by_hand() -> None:
    pre = torch.tensor([[[5.0, 4.0, 3.0], [1.0, -2.0, 0.5]]])  # one image, two tokens, k = 1: the two largest of six
    assert train_erase_sae._batch_topk(pre, 1).tolist() == [[[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]]


def test_gathered_activations_are_the_prompted_half_and_a_killed_run_goes_on(erase_folder, tmp_path) -> None:
    pack = ErasePack(erase_folder)
    pipeline, hook = pack.pipeline(), pack.manifest.hook_point
    wanted = [Prompted(f"An image of {name}.", i, i) for i, name in enumerate(pack.manifest.concepts)]
    how = Gathering(steps=4, kept_steps=2, unprompted=2, batch=1)
    whole = activations.gather(pipeline, hook, wanted, how, tmp_path / "a")
    assert whole.tokens.shape == (3, 2, 16, 32) and whole.unprompted.shape == (2, 2, 16, 32)
    seen = []
    block = pipeline.unet.up_blocks[0].attentions[1]
    handle = block.register_forward_hook(lambda m, i, output: seen.append(output[0][-1].flatten(1).T))
    generator = torch.Generator().manual_seed(1)
    pipeline(wanted[1].text, num_inference_steps=4, guidance_scale=how.guidance, generator=generator)
    handle.remove()
    kept = np.sort(np.random.default_rng(1).permutation(4)[:2])
    found = torch.from_numpy(np.array(whole.tokens[1])).float()
    torch.testing.assert_close(found, torch.stack(seen)[kept], atol=5e-3, rtol=5e-3)

    activations.gather(pipeline, hook, wanted[:2], how, tmp_path / "b")
    record = json.loads((tmp_path / "a" / "record.json").read_text()) | {"done": 2}
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    np.load(tmp_path / "c" / "tokens.npy", mmap_mode="r+")[2] = 0
    (tmp_path / "c" / "record.json").write_text(json.dumps(record))
    resumed = activations.gather(pipeline, hook, wanted, how, tmp_path / "c")
    assert np.array_equal(resumed.tokens, whole.tokens)


def test_the_whole_chain_on_a_pack(erase_folder: Path, tmp_path) -> None:
    """Gathers, trains, binds, supervises, measures and searches; the pack then loads what was written."""
    folder = shutil.copytree(erase_folder, tmp_path / "doodles")
    manifest = json.loads((folder / "pack.json").read_text())
    files = ("statistics.safetensors", "settings.json")
    manifest["saes"] = [
        {"id": id, "folder": f"sae/{id}", "statistics": f"sae/{id}/{files[0]}", "settings": f"sae/{id}/{files[1]}"}
        for id in (erase_sae.SUPERVISED, erase_sae.UNSUPERVISED)
    ]
    (folder / "pack.json").write_text(json.dumps(manifest))
    search = Search(factors=(0.0, -2.0), seeds=(1,), steps=2)
    plan = Plan(
        Gathering(steps=2, kept_steps=2),
        Recipe(latents=40, k=4, steps=5, images=8),
        Supervision(steps=5),
        {erase_sae.SUPERVISED: search, erase_sae.UNSUPERVISED: search},
        train_seeds=1,
        statistics_seeds=1,
    )
    figures = Maker(ErasePack(folder), tmp_path / "work", plan).run()
    pack = ErasePack(folder)
    for id in (erase_sae.SUPERVISED, erase_sae.UNSUPERVISED):
        assert pack.statistics(id).means.shape == (3, 2, pack.sae(id).latents) == (3, 2, 40)
        best = pack.settings(id)["dog"]
        tried = figures[id]["tried"]["dog"]
        assert max(tried, key=erase_sae.worth)["factor"] == best.factor and len(tried) == 2
    assert not pack.missing()


def test_another_hook_point_of_the_same_pipeline(tmp_path) -> None:
    """What is gathered there is what that block of the embedded UNet puts out, and not the pack's own block."""
    builder = Builder(ASSETS / "canvas-diffusion", tmp_path / "work", torch.device("cpu"))
    pack = builder._at(EARLIER[0], tmp_path / "pack")
    assert pack.manifest.hook_point == EARLIER[0] != ErasePack(builder.out).manifest.hook_point
    pipeline, wanted = pack.pipeline(), [Prompted("An image of boat.", 3, 7)]
    seen = []
    block = pipeline.unet.up_blocks[0].attentions[0]
    handle = block.register_forward_hook(lambda m, i, output: seen.append(output[0][-1].flatten(1).T))
    how = Gathering(steps=2, kept_steps=2, batch=1)
    found = activations.gather(pipeline, pack.manifest.hook_point, wanted, how, tmp_path / "tokens")
    handle.remove()
    torch.testing.assert_close(torch.from_numpy(np.array(found.tokens[0])), torch.stack(seen).half())
