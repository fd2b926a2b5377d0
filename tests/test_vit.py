"""The split ViT against timm's own forward pass and against transformers' ViT."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import SHAPE, random_images, random_vit, transformers_4_names

from sod_core.machine import devices
from sod_core.models import vit as vits
from sod_core.models import vit_weights
from sod_core.packs import safe

LAYERS = list(range(SHAPE.depth))


@pytest.fixture(scope="module")
def vit():
    return random_vit(3)


@pytest.fixture(scope="module")
def images():
    return random_images(7, 3)


@pytest.mark.parametrize("layer", LAYERS)
def test_head_and_tail_are_timms_forward(vit, images, layer):
    hidden = vits.head(vit, images, layer)
    assert hidden.shape == (3, 1 + SHAPE.grid**2, SHAPE.dim)
    torch.testing.assert_close(vits.tail(vit, hidden, layer), vit(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vits.logits(vit, images), vit(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_head_is_what_a_hook_on_the_block_sees(vit, images, layer):
    seen = []
    handle = vit.blocks[layer].register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    try:
        vit(images)
    finally:
        handle.remove()
    assert torch.equal(vits.head(vit, images, layer), seen[0])


@pytest.mark.parametrize("layers", [[0], [3, 1], [2, 2, 0], LAYERS])
def test_heads_is_head_several_times(vit, images, layers):
    found = vits.heads(vit, images, layers)
    assert set(found) == set(layers)
    for layer in layers:
        assert torch.equal(found[layer], vits.head(vit, images, layer))


def test_no_hook_is_left_on_the_model(vit, images):
    vits.tail(vit, vits.head(vit, images, 1), 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


@pytest.mark.parametrize("layer", [-1, 4, 100])
def test_a_layer_that_is_not_there_is_refused(vit, images, layer):
    with pytest.raises(ValueError, match=f"layer {layer} does not exist: this ViT has layers 0 to 3"):
        vits.head(vit, images, layer)
    with pytest.raises(ValueError, match="does not exist"):
        vits.tail(vit, torch.zeros(1, 17, SHAPE.dim), layer)
    with pytest.raises(ValueError, match="does not exist"):
        vits.heads(vit, images, [1, layer])


def test_every_layer_norm_has_the_hugging_face_epsilon(vit):
    norms = [module for module in vit.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * SHAPE.depth + 1 and {norm.eps for norm in norms} == {1e-12}


@pytest.mark.parametrize("name", ["", "abacus", "cuda:99", "meta"])
def test_choose_device(monkeypatch, name):
    monkeypatch.setenv("SOD_DEVICE", "cpu")
    if not name:
        assert devices.choose_device() == torch.device("cpu")
        return
    with pytest.raises(ValueError, match=re.escape(f"device {name!r} cannot be used here")):
        devices.choose_device(name)


# ---------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def theirs():
    """transformers' ViT with weights as random as ours."""
    from sod_core.machine import torchvision_guard

    torchvision_guard.install()
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=SHAPE.dim,
        num_hidden_layers=SHAPE.depth,
        num_attention_heads=SHAPE.heads,
        intermediate_size=4 * SHAPE.dim,
        image_size=SHAPE.image_size,
        patch_size=SHAPE.patch,
        num_labels=SHAPE.classes,
        layer_norm_eps=1e-12,
    )
    model = ViTForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(5)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.data = 1 + 0.1 * noise if "layernorm" in name and name.endswith("weight") else 0.2 * noise
    return model.requires_grad_(False)


def transformers_5_to_4(state: dict) -> dict:
    """transformers 5 names -> transformers 4 names, by hand."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("vit.layers.", "vit.encoder.layer.")
        for new, old in (("q", "query"), ("k", "key"), ("v", "value")):
            key = key.replace(f"attention.{new}_proj", f"attention.attention.{old}")
        key = key.replace("attention.o_proj", "attention.output.dense")
        renamed[key.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")] = value
    return renamed


def timm_names(state: dict) -> dict:
    vit = vits.new(SHAPE)
    vit_weights.load_vit(vit, state, "state")
    return vit.state_dict()


NAMINGS = {"transformers 5": dict, "transformers 4": transformers_5_to_4, "timm": timm_names}
WRAPPINGS = {
    "bare": lambda state: state,
    "model_state_dict": lambda state: {"model_state_dict": state, "epoch": 3, "accuracy": 0.98},
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "module. in state_dict": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_logits_equal_transformers(theirs, images, naming, wrapping):
    vit = vits.new(SHAPE)
    vit_weights.load_vit(vit, WRAPPINGS[wrapping](NAMINGS[naming](theirs.state_dict())), "checkpoint.pth")
    with torch.inference_mode():
        expected = theirs(images).logits
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(vits.logits(vit.eval(), images), expected, atol=1e-4, rtol=0)


def test_the_namings_differ(theirs):
    """So that the comparison above is of three things."""
    keys = [set(change(theirs.state_dict())) for change in NAMINGS.values()]
    assert not keys[0] & {key for key in keys[1] if ".layer." in key} and not keys[2] & (keys[0] | keys[1])
    assert set(transformers_5_to_4(theirs.state_dict())) == set(transformers_4_names(random_vit(0)))


def test_to_published_writes_transformers_4_names(vit):
    ours, by_hand = vit_weights.to_published(vit, torch.float32), transformers_4_names(vit)
    assert set(ours) == set(by_hand)
    for key, value in by_hand.items():
        assert torch.equal(ours[key], value), key


def test_a_published_checkpoint_comes_back_as_it_was(vit, images):
    again = vits.new(SHAPE)
    vit_weights.load_vit(again, vit_weights.to_published(vit, torch.float32), "again.pth")
    torch.testing.assert_close(vits.logits(again.eval(), images), vits.logits(vit, images), atol=1e-6, rtol=1e-6)


def test_half_precision_is_loaded_as_float32(vit, images):
    state = vit_weights.to_published(vit)
    assert {value.dtype for value in state.values()} == {torch.float16}
    again = vits.new(SHAPE)
    vit_weights.load_vit(again, state, "half.pth")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(vits.logits(again.eval(), images), vits.logits(vit, images), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("naming", ["transformers 5", "transformers 4"])
def test_a_full_size_checkpoint_tells_its_shape_and_gives_transformers_logits(tmp_path, naming):
    """ViT-B/16 at 224 px through a file of either naming, with nothing said of its shape."""
    from sod_core.machine import torchvision_guard

    torchvision_guard.import_timm()
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    theirs = ViTForImageClassification(ViTConfig(num_labels=10, layer_norm_eps=1e-12)).eval().requires_grad_(False)
    path = tmp_path / "vit_base_16_original.pth"
    torch.save({"model_state_dict": NAMINGS[naming](theirs.state_dict())}, path)
    found = safe.read_torch(path)
    shape = vit_weights.vit_shape(found, path.name)
    assert shape == vits.ViTShape(image_size=224, patch=16, dim=768, depth=12, heads=12, classes=10)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        ours = vits.logits(vit_weights.new_vit(shape, found, path.name), images)
        torch.testing.assert_close(ours, theirs(images).logits, atol=1e-4, rtol=0)
        assert ours.abs().max() > 0.05
