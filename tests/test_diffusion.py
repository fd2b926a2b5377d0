"""The erasure on a pipeline: what is generated, what is refused, and that nothing stays behind on the pipeline."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HOOK_POINT, tiny_parts
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sod_core.erase import generate as erase_generate
from sod_core.erase.edit import Eraser, Settings, plan, statistics
from sod_core.erase.generate import Erasing, Progress, generate
from sod_core.models import diffusion, schedulers
from sod_core.models.diffusion import Cancelled, Order, hooked
from sod_core.sparse.topk import TopKSAE

ORDER = Order(("a dog.", "a cat."), (3, 4), steps=4, guidance=4.0)
WIDTH = 48


@pytest.fixture(scope="module")
def erasing() -> Erasing:
    """An SAE of random weights, whose latents of "dog" are 0 and 1, and those of "cat" 2 and 3."""
    torch.manual_seed(0)
    sae = TopKSAE(32, WIDTH, 12).requires_grad_(False)
    sae.decoder.weight.data *= 8
    latents = {name: torch.zeros(2, 4, WIDTH) for name in ("dog", "cat")}
    latents["dog"][..., :2], latents["cat"][..., 2:4] = 0.05, 0.05
    settings = Settings(("dog",), 95, factor=-20.0)
    return Erasing(Eraser(sae), statistics(latents), settings, HOOK_POINT)


def with_settings(erasing: Erasing, **changes) -> Erasing:
    return erasing._replace(settings=replace(erasing.settings, **changes))


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def distance(one: list[Image.Image], other: list[Image.Image]) -> int:
    """The largest difference of a pixel, of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())


def hooks(pipeline) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipeline.unet.modules())


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("fidelity", ["exact", "reference"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_images_are_those_of_a_plain_hook_over_one_image_at_a_time(tiny_pipeline, erasing, guidance, fidelity):
    """So an image depends on its seed alone, not on its companions, and only the second copy is edited."""
    erasing, order = with_settings(erasing, fidelity=fidelity), replace(ORDER, guidance=guidance)
    found = generate(tiny_pipeline, order, erasing)
    plans, block = plan(erasing.statistics, erasing.settings, 4), tiny_pipeline.unet.up_blocks[0].attentions[1]
    for i, (prompt, seed) in enumerate(zip(order.prompts, order.seeds)):
        calls, heats = [], []

        def edit(module, args, output, calls=calls, heats=heats):
            tokens = output[0].permute(0, 2, 3, 1).reshape(len(output[0]), 16, 32)
            erased = erasing.eraser.step(tokens, plans[len(calls)], erasing.settings, heat=True)
            calls.append(len(tokens))
            heats.append(erased.latents[-1].sum(-1).reshape(4, 4))
            return (erased.tokens.reshape(-1, 4, 4, 32).permute(0, 3, 1, 2),)

        def image(prompt=prompt, seed=seed):
            generator = torch.Generator().manual_seed(seed)
            return tiny_pipeline(prompt, num_inference_steps=4, guidance_scale=guidance, generator=generator).images

        before = image()
        with block.register_forward_hook(edit):
            after = image()
        assert calls == [2 if guidance > 1 else 1] * 4
        assert distance(found.before[i : i + 1], before) <= 1 and distance(found.after[i : i + 1], after) <= 1
        assert distance(before, after) > 5
        np.testing.assert_allclose(found.heat[:, i], torch.stack(heats), atol=1e-3)
    assert found.heat.shape == (4, 2, 4, 4) and found.heat.dtype == np.float32 and found.heat.max() > 0


def test_without_concepts_both_are_the_same(tiny_pipeline, erasing):
    for nothing in (None, with_settings(erasing, concepts=())):
        found = generate(tiny_pipeline, ORDER, nothing)
        assert distance(found.before, found.after) == 0 and found.heat is None
    found = generate(tiny_pipeline, ORDER, with_settings(erasing, factor=1.0))
    assert distance(found.before, found.after) <= 1


def test_one_batch_or_two(tiny_pipeline, erasing):
    seen: list[Progress] = []
    one = generate(tiny_pipeline, ORDER, erasing)
    two = generate(tiny_pipeline, ORDER, erasing, on_step=seen.append, together=False, heat=False)
    assert distance(one.before, two.before) <= 1 and distance(one.after, two.after) <= 1 and two.heat is None
    assert [(at.step, at.steps) for at in seen] == [(i, 8) for i in range(1, 9)]
    assert all((at.after is None) == (at.step <= 4) and (at.before is None) == (at.step > 4) for at in seen)


def test_without_memory_for_both_they_run_apart(tiny_pipeline, erasing, monkeypatch):
    whole, run = generate(tiny_pipeline, ORDER, erasing), erase_generate._run

    def short_of_memory(pipeline, order, copies, *rest):
        if copies == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(pipeline, order, copies, *rest)

    monkeypatch.setattr(erase_generate, "_run", short_of_memory)
    found = generate(tiny_pipeline, ORDER, erasing)
    assert distance(found.before, whole.before) <= 1 and distance(found.after, whole.after) <= 1
    assert hooks(tiny_pipeline) == 0


def test_the_last_preview_is_the_image(tiny_pipeline, erasing):
    seen: list[Progress] = []
    found = generate(tiny_pipeline, ORDER, erasing, on_step=seen.append)
    assert [(at.step, at.steps) for at in seen] == [(i, 4) for i in range(1, 5)]
    assert distance(diffusion.decode(tiny_pipeline, seen[-1].before), found.before) <= 1
    assert distance(diffusion.decode(tiny_pipeline, seen[-1].after), found.after) <= 1


def test_concurrent_runs_give_what_each_gives_alone(tiny_pipeline, erasing):
    runs = [with_settings(erasing, concepts=concepts) for concepts in (("dog",), ("cat",), ("dog", "cat"))]
    alone = [generate(tiny_pipeline, ORDER, run) for run in runs]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda run: generate(tiny_pipeline, ORDER, run), runs))
    for one, other in zip(alone, together):
        assert distance(one.after, other.after) == 0 and np.array_equal(one.heat, other.heat)
    assert distance(alone[0].after, alone[1].after) > 5


def test_sdxl(erasing):
    parts = tiny_parts(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection

    second = CLIPTextModelWithProjection(parts["text_encoder"].config)
    pipeline = StableDiffusionXLPipeline(
        **parts, text_encoder_2=second, tokenizer_2=parts["tokenizer"], add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    found = generate(pipeline, ORDER, erasing)
    assert distance(found.before, found.after) > 5 and found.heat.shape == (4, 2, 4, 4)
    assert distance(found.before, generate(pipeline, ORDER).before) <= 1


# ---------------------------------------------------------------- the hook


@pytest.mark.parametrize("kind", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"])
def test_steps_are_right_where_the_unet_is_called_more_often(kind):
    import diffusers

    scheduler = getattr(diffusers, kind)(num_train_timesteps=100)
    scheduler.register_to_config(skip_prk_steps=True)
    scheduler.set_timesteps(4)
    found = [diffusion.step_of(scheduler, t) for t in scheduler.timesteps]
    assert len(found) > 4 and found == sorted(found) and set(found) == set(range(4))


@pytest.mark.parametrize("name", [HOOK_POINT, f"unet.{HOOK_POINT}", "up_blocks.0.resnets.1", "mid_block"])
def test_hook_points_of_every_output(tiny_pipeline, name):
    """A tuple, a tensor, and a block that is no square: the edit sees row-major tokens, and what it adds comes out."""
    seen: list[tuple[Tensor, int]] = []

    def edit(tokens: Tensor, step: int, given: Tensor | None) -> Tensor:
        seen.append((tokens, step))
        return tokens + 1

    arguments = (torch.randn(1, 4, 8, 12), 999, torch.randn(1, 5, 32))
    with torch.no_grad():
        plain = tiny_pipeline.unet(*arguments).sample
        with hooked(tiny_pipeline, name, edit) as moment:
            moved = tiny_pipeline.unet(*arguments).sample
        with hooked(tiny_pipeline, name, lambda tokens, *_: tokens):
            assert torch.equal(tiny_pipeline.unet(*arguments).sample, plain)
    ((tokens, step),) = seen
    assert tokens.shape == (1, 24, 32) and step == 0 and moment.size == (4, 6)
    assert not torch.allclose(plain, moved)


def test_an_unknown_hook_point_names_close_ones(tiny_pipeline):
    with pytest.raises(ValueError, match=HOOK_POINT):
        with hooked(tiny_pipeline, "up_blocks.0.attentions.7", lambda *_: None):
            pass
    with pytest.raises(ValueError, match="must give"), hooked(tiny_pipeline, "time_embedding", lambda *_: None):
        tiny_pipeline("a dog.", num_inference_steps=1)
    assert hooks(tiny_pipeline) == 0


class Failure(BaseException):
    """As KeyboardInterrupt, which would end pytest."""


@pytest.mark.parametrize("where", ["edit", "callback", "cancel"])
def test_nothing_is_left_after_a_failure(tiny_pipeline, erasing, monkeypatch, where):
    whole = generate(tiny_pipeline, ORDER, erasing)
    cancel = threading.Event()

    def fail(*_):
        raise Failure

    def on_step(progress: Progress) -> None:
        if progress.step == 2:
            fail() if where == "callback" else cancel.set()

    with monkeypatch.context() as patch, pytest.raises(Cancelled if where == "cancel" else Failure):
        if where == "edit":
            patch.setattr(Eraser, "step", fail)
        generate(tiny_pipeline, ORDER, erasing, on_step=on_step, cancel=cancel)
    assert hooks(tiny_pipeline) == 0
    with ThreadPoolExecutor(1) as pool:  # another thread gets the lock
        again = pool.submit(generate, tiny_pipeline, ORDER, erasing).result(timeout=60)
    assert distance(again.before, whole.before) == 0 and distance(again.after, whole.after) == 0


def test_a_run_that_waits_can_be_cancelled(tiny_pipeline):
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with diffusion.locked(tiny_pipeline):
            waiting = pool.submit(generate, tiny_pipeline, ORDER, cancel=cancel)
            cancel.set()
            with pytest.raises(Cancelled):
                waiting.result(timeout=30)


def test_a_batch_is_given_up_at_the_next_step(tiny_pipeline):
    cancel, passes = threading.Event(), []

    def edit(tokens: Tensor, step: int, given: Tensor | None) -> Tensor:
        passes.append(step)
        if step == 1:
            cancel.set()
        return tokens

    with pytest.raises(Cancelled):
        diffusion.draw(tiny_pipeline, ORDER, edit, HOOK_POINT, cancel=cancel)
    assert passes == [0, 1] and hooks(tiny_pipeline) == 0


def test_what_the_text_encoder_does_not_read(tiny_pipeline):
    limit = tiny_pipeline.tokenizer.model_max_length
    assert diffusion.left_out(tiny_pipeline, "a dog.") == ""
    fits = " ".join(["x"] * (limit - 2))
    assert diffusion.left_out(tiny_pipeline, fits) == ""
    assert diffusion.left_out(tiny_pipeline, fits + " y z") == "y z"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": (1,)},
        {"steps": 0},
        {"guidance": float("inf")},
        {"guidance": -1.0},
        {"seeds": (1, -1)},
        {"prompts": (), "seeds": ()},
    ],
)
def test_orders_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        replace(ORDER, **wrong)


def test_an_unknown_concept_is_refused_before_anything_runs(tiny_pipeline, erasing):
    with pytest.raises(ValueError, match="known: dog, cat"):
        generate(tiny_pipeline, ORDER, with_settings(erasing, concepts=("horse",)))


def test_folders_that_cannot_be_loaded(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    diffusion.load(folder)  # safetensors beside it
    weights.unlink()
    with pytest.raises(ValueError, match="pickle"):
        diffusion.load(folder)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        diffusion.load(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="FluxPipeline"):
        diffusion.load(folder)
    with pytest.raises(ValueError, match="model_index.json"):
        diffusion.load(tmp_path)


@pytest.mark.parametrize("part", (nn.Conv2d, nn.Embedding), ids=("unet", "text encoder"))
def test_what_another_thread_builds_while_a_pipeline_loads_is_whole(tiny_folder, monkeypatch, part):
    """A visitor opens a ViT while another opens a diffusion model: Accelerate would patch every module's parameters."""
    built: list[nn.Linear] = []
    register, init = nn.Module.register_parameter, part.__init__

    def with_a_neighbour(self, *arguments, **named):
        if not built:
            neighbour = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
            neighbour.start()
            neighbour.join()
        init(self, *arguments, **named)

    monkeypatch.setattr(part, "__init__", with_a_neighbour)
    pipeline = diffusion.load(tiny_folder, dtype=torch.float16)
    assert built[0].weight.device.type == "cpu" and built[0].weight.dtype == torch.float32
    assert nn.Module.register_parameter is register and torch.get_default_dtype() == torch.float32
    assert {p.dtype for model in (pipeline.unet, pipeline.text_encoder) for p in model.parameters()} == {torch.float16}


# ---------------------------------------------------------------- folders as people have them


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "pipeline")


def change(path, **changes) -> dict:
    """Rewrites a JSON file; None takes a key out."""
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return found


def rewrite(path, edit) -> None:
    """Rewrites a file of weights: edit(tensors) -> tensors."""
    save_file(edit(load_file(path)), path, {"format": "pt"})


def before(folder) -> np.ndarray:
    return pixels(diffusion.draw(diffusion.load(folder), ORDER))


BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "timestep_spacing")
BETAS += ("rescale_betas_zero_snr", "steps_offset")
OTHERS = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDPMScheduler")
OTHERS += ("UniPCMultistepScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverSDEScheduler")


@pytest.mark.parametrize("named", [True, False], ids=("in both files", "in the scheduler's file"))
@pytest.mark.parametrize("kind", OTHERS)
def test_another_samplers_file_with_the_same_betas_gives_the_same_picture(folder, kind, named):
    path = folder / "scheduler" / "scheduler_config.json"
    shipped, config = before(folder), json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in BETAS} | {"_class_name": kind, "use_karras_sigmas": True}))
    if named:
        change(folder / "model_index.json", scheduler=["diffusers", kind])
    assert np.array_equal(before(folder), shipped)


@pytest.mark.parametrize("kind", [*OTHERS, "PNDMScheduler", "DDIMScheduler", "DEISMultistepScheduler", "LCMScheduler"])
def test_what_a_scheduler_file_does_not_say_is_what_its_scheduler_does(kind):
    found = schedulers.ddim({"_class_name": kind}).config
    assert not found.clip_sample and not found.thresholding and found.steps_offset == 1
    leading = kind in ("DDPMScheduler", "PNDMScheduler", "DDIMScheduler", "LCMScheduler")
    assert found.timestep_spacing == ("leading" if leading else "linspace")
    assert found.set_alpha_to_one is (kind != "PNDMScheduler")
    warm = kind in ("HeunDiscreteScheduler", "DPMSolverSDEScheduler", "LCMScheduler")
    assert found.beta_start == (0.00085 if warm else 0.0001)


def test_what_diffusers_corrects_while_it_loads_is_corrected():
    old = {"_class_name": "DDIMScheduler", "clip_sample": True, "steps_offset": 0}
    assert (found := schedulers.ddim(old).config).steps_offset == 1 and not found.clip_sample
    kept = schedulers.ddim(old, stable_diffusion=False).config  # of SDXL it corrects nothing
    assert kept.steps_offset == 0 and kept.clip_sample
    assert not schedulers.ddim({"_class_name": "EulerDiscreteScheduler"}, stable_diffusion=False).config.clip_sample
    last = {"_class_name": "DPMSolverMultistepScheduler", "final_sigmas_type": "sigma_min"}
    assert not schedulers.ddim(last).config.set_alpha_to_one
    trained = {"_class_name": "PNDMScheduler", "trained_betas": [0.1, 0.2], "num_train_timesteps": 2}
    assert torch.allclose(schedulers.ddim(trained).betas, torch.tensor([0.1, 0.2]))
    thresholds = {"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 2.0}
    found = schedulers.ddim(thresholds).config
    assert found.thresholding and found.sample_max_value == 2
    assert schedulers.ddim({}, "PNDMScheduler").config.set_alpha_to_one is False


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, "flow matching"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "noise"}, "predicts 'noise'"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler cannot be replaced"),
        ({"_class_name": "CogVideoXDDIMScheduler"}, "cannot be replaced"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "sigmoid"),
        ({"_class_name": "DDIMScheduler", "beta_end": float("nan")}, "no noise schedule"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": "many"}, "make no scheduler"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "from 1 to"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**9}, "from 1 to"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [], "rescale_betas_zero_snr": True}, "make no scheduler"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "odd"}, "make no scheduler"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1], "num_train_timesteps": 9}, "no noise schedule"),
        ({}, "without a name"),
    ],
)
def test_schedulers_that_ddim_cannot_stand_in_for(config, said):
    with pytest.raises(ValueError, match=said) as caught:
        schedulers.ddim(config)
    assert "\n" not in str(caught.value)


def weights(folder, name: str):
    return next((folder / name).glob("*.safetensors"))


def test_half_precision_variants_are_read_where_the_plain_weights_are_not_there(folder):
    """Each part for itself; the plain ones are preferred."""
    shipped = before(folder)
    for name in ("unet", "text_encoder", "vae"):
        path = weights(folder, name)
        half = path.with_suffix(".fp16.safetensors")
        save_file({key: value.half() for key, value in load_file(path).items()}, half, {"format": "pt"})
        if name == "vae":
            rewrite(half, lambda tensors: {key: value * 0 for key, value in tensors.items()})
        else:
            path.unlink()
    assert np.abs(before(folder) - shipped).max() <= 3
    weights(folder, "unet").rename(folder / "unet" / "diffusion_pytorch_model.ema.safetensors")
    assert np.abs(before(folder) - shipped).max() <= 3
    shutil.copy(weights(folder, "unet"), folder / "unet" / "diffusion_pytorch_model.other.safetensors")
    with pytest.raises(ValueError, match="several kinds .ema, other."):
        diffusion.load(folder)


def test_parts_that_are_not_used_may_be_missing(folder):
    unused = {"feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}
    unused |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    change(folder / "model_index.json", **unused, image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    pipeline = diffusion.load(folder)
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None and pipeline.image_encoder is None


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=name):
        diffusion.load(folder)


def test_a_part_that_the_index_lacks_is_named(folder):
    change(folder / "model_index.json", vae=[None, None])
    with pytest.raises(ValueError, match="vae is missing"):
        diffusion.load(folder)


def extra(tensors):
    return tensors | {"conv_in.lora_A.weight": torch.zeros(2, 4)}


def one_less(tensors):
    return dict(list(tensors.items())[1:])


def not_finite(tensors):
    name = next(iter(tensors))
    return tensors | {name: torch.full_like(tensors[name], float("nan"))}


def integers(tensors):
    name = next(iter(tensors))
    return tensors | {name: tensors[name].to(torch.int8)}


def other_shape(tensors):
    name = next(iter(tensors))
    return tensors | {name: torch.zeros(3, 3, 3)}


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (extra, "lora_A"),
        (one_less, "lack"),
        (not_finite, "not finite"),
        (integers, "as I8"),
        (other_shape, "other shapes than its config.json"),
    ],
    ids=("left over", "missing", "not finite", "integers", "shapes"),
)
def test_weights_are_read_whole_or_refused(folder, name, edit, said):
    rewrite(weights(folder, name), edit)
    with pytest.raises(ValueError, match=said) as caught:
        diffusion.load(folder)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def shard(folder, name: str, more: dict | None = None) -> None:
    """Divides a part's weights into two files and an index, which does not name `more`."""
    path = weights(folder, name)
    tensors, named = load_file(path), {}
    for number in (1, 2):
        held = {key: tensors[key] for key in sorted(tensors)[number - 1 :: 2]}
        file = f"{path.stem}-{number:05}-of-00002.safetensors"
        save_file(held | (more or {}), path.with_name(file), {"format": "pt"})
        named |= dict.fromkeys(held, file)
        more = None
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    path.unlink()


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_shards_are_read_whole_or_refused(folder, name):
    shipped, whole = before(folder), weights(folder, name)
    kept = shutil.copy(whole, folder / "kept")
    shard(folder, name)
    assert np.array_equal(before(folder), shipped)
    shutil.copy(kept, whole)
    with pytest.raises(ValueError, match="whole and in shards"):
        diffusion.load(folder)
    shard(folder, name, {"conv_in.lora_A.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="lora_A.weight, which its index does not name"):
        diffusion.load(folder)
    whole.with_name(f"{whole.name}.index.json").unlink()
    with pytest.raises(ValueError, match="index.json is missing"):
        diffusion.load(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"", "is empty"),
        (b"<html>", "web page"),
    ],
)
def test_what_is_there_in_place_of_weights_is_named(folder, content, said):
    weights(folder, "unet").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        diffusion.load(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda place: (place / "tokenizer.json").unlink(), "has no words"),
        (lambda place: (place / "tokenizer.json").write_text("<html>"), "cannot be loaded"),
        (lambda place: (place / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
        (lambda place: change(place / "tokenizer_config.json", model_max_length=10**30), "model_max_length"),
        (lambda place: change(place / "tokenizer_config.json", model_max_length=25), "reads 24"),
    ],
    ids=("words", "damaged", "settings", "no length", "too long"),
)
def test_a_tokenizer_is_read_whole_or_refused(folder, spoil, said):
    """transformers would make up one without words, which draws another picture."""
    spoil(folder / "tokenizer")
    with pytest.raises(ValueError, match=said) as caught:
        diffusion.load(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_fewer_words_is_another_models(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    found = json.loads(path.read_text())
    words = found["model"]["vocab"]
    words["<|endoftext|>"] = words.pop("z</w>")  # so that the numbers still have no gap
    found["added_tokens"] = [word for word in found["added_tokens"] if word["content"] in words]
    for word in found["added_tokens"]:
        word["id"] = words[word["content"]]
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="tokenizer knows .* another model's"):
        diffusion.load(folder)


def test_a_part_that_is_not_read_is_refused(folder):
    change(folder / "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    with pytest.raises(ValueError, match="'controlnet'"):
        diffusion.load(folder)


def test_a_unet_that_does_not_say_its_size_is_refused(folder):
    change(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ValueError, match="sample_size"):
        diffusion.load(folder)


def test_what_a_text_encoder_never_reads_is_passed_over(folder):
    unread = {
        "text_projection.weight": torch.zeros(32, 32),
        "text_model.embeddings.position_ids": torch.arange(24)[None],
    }
    rewrite(weights(folder, "text_encoder"), lambda tensors: tensors | unread)
    diffusion.load(folder)


@pytest.mark.parametrize(
    "file",
    [
        "pytorch_lora_weights.safetensors",
        "learned_embeds.safetensors",
        "unet/pytorch_lora_weights.safetensors",
        "unet/pytorch_lora_weights.bin",
        "unet/pytorch_attn_procs.bin",
        "text_encoder/adapter_config.json",
    ],
)
def test_what_lies_beside_and_would_change_the_pipeline_is_refused(folder, file):
    if file.endswith("json"):
        (folder / file).write_text("{}")
    else:
        save_file({"a": torch.zeros(1)}, folder / file)
    with pytest.raises(ValueError, match=file.split("/")[-1]):
        diffusion.load(folder)


def test_quantised_parts_are_refused(folder):
    change(folder / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="quantised"):
        diffusion.load(folder)


@pytest.mark.parametrize(
    ("unet", "said"),
    [
        ({"in_channels": 9}, "inpainting"),
        ({"class_embed_type": "timestep"}, "class labels"),
        ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_proj"),
        ({"cross_attention_dim": 64}, "width 64"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 8}, "text_time"),
    ],
)
def test_unets_of_other_tasks_are_refused(tiny_folder, tmp_path, unet, said):
    from diffusers import UNet2DConditionModel

    shutil.copytree(tiny_folder, tmp_path / "p")
    config = dict(UNet2DConditionModel.load_config(tiny_folder / "unet"))
    if "addition_embed_type" in unet:
        unet = unet | {"projection_class_embeddings_input_dim": 80}
    made = UNet2DConditionModel.from_config({key: v for key, v in config.items() if key[0] != "_"} | unet)
    shutil.rmtree(tmp_path / "p" / "unet")
    made.save_pretrained(tmp_path / "p" / "unet")
    with pytest.raises(ValueError, match=said):
        diffusion.load(tmp_path / "p")


def test_a_snapshot_in_the_hubs_cache_is_a_folder_like_any(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "hub" / "models--user--tiny" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert np.array_equal(before("user/tiny"), before(folder))
    shutil.rmtree(snapshot / "vae")
    with pytest.raises(ValueError, match="vae is missing"):
        diffusion.load("user/tiny")
    with pytest.raises(ValueError, match="holds no diffusion pipeline") as caught:
        diffusion.load("user/other")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- drawings that are no pictures


@pytest.mark.parametrize("together", [True, False])
def test_a_drawing_that_is_not_finite_is_no_image(tiny_pipeline, erasing, together):
    with pytest.raises(diffusion.NotFinite, match="smaller factor"):
        generate(tiny_pipeline, ORDER, with_settings(erasing, factor=1e38), together=together)
    with pytest.raises(diffusion.NotFinite):
        diffusion.draw(tiny_pipeline, ORDER, lambda tokens, *_: tokens * torch.inf, HOOK_POINT)
    assert hooks(tiny_pipeline) == 0


def test_an_image_that_is_not_finite_is_none_though_its_latents_are(tiny_pipeline, monkeypatch):
    decode = tiny_pipeline.vae.decode
    monkeypatch.setattr(tiny_pipeline.vae, "decode", lambda *a, **named: (decode(*a, **named)[0] * torch.nan,))
    for draw in (diffusion.draw, generate):
        with pytest.raises(diffusion.NotFinite):
            draw(tiny_pipeline, ORDER)
    with pytest.raises(diffusion.NotFinite):
        diffusion.decode(tiny_pipeline, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("changes", "said"), [({"start_step": 4}, "behind the last of 4"), ({"percentile": 100}, "100")]
)
def test_settings_that_edit_nothing_are_refused(tiny_pipeline, erasing, changes, said):
    with pytest.raises(ValueError, match=f"nothing would be edited.*{said}"):
        generate(tiny_pipeline, ORDER, with_settings(erasing, **changes))
