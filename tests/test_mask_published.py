"""Packs on a published encoder: CLIP's files and a data set's tables from a hub, features computed once and kept."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from fake_hub import FakeHub
from PIL import Image
from pyarrow import parquet

from sod_core.machine import torchvision_guard
from sod_core.mask import features, published
from sod_core.mask.pack import open_mask_pack
from sod_core.models import clip
from sod_core.packs import hub as hubs
from sod_core.packs.errors import PackError
from sod_core.packs.find import ASSETS

torchvision_guard.import_timm()
from transformers import CLIPConfig, CLIPModel  # noqa: E402

CLIP, DATA = "maker/clip", "maker/colours"
NAMES = ["red", "green", "blue"]
SIDE, WIDTH = 32, 16
PREPROCESSING = {  # as openai/clip-vit-base-patch32 has it, at 32 pixels
    "crop_size": SIDE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": SIDE,
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole() -> CLIPModel:
    """A tiny CLIP of both halves."""
    torch.manual_seed(0)
    layers = {"intermediate_size": 64, "num_attention_heads": 2, "hidden_size": 32}
    vision = layers | {"num_hidden_layers": 2, "image_size": SIDE, "patch_size": 16}
    text = layers | {"num_hidden_layers": 1, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=WIDTH)).eval()


def weights(whole: CLIPModel) -> dict[str, torch.Tensor]:
    """With the numbers of places that files of that time hold."""
    places = {f"{half}_model.embeddings.position_ids": torch.arange(5)[None] for half in ("text", "vision")}
    return {**whole.state_dict(), **places}


def picture(number: int) -> Image.Image:
    """Mostly one colour, by the number, not square."""
    pixels = np.random.default_rng(number).integers(0, 120, (40, 36, 3), dtype=np.uint8)
    pixels[..., number % 3] += 130
    return Image.fromarray(pixels)


def table(numbers: range, names: list[str] = NAMES) -> bytes:
    """As `datasets` stores images and a ClassLabel."""
    rows = []
    for number in numbers:
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    told = {"info": {"features": {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}}}
    labels = [names.index(NAMES[number % 3]) if NAMES[number % 3] in names else 0 for number in numbers]
    made = pyarrow.table({"img": rows, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(told)})
    out = io.BytesIO()
    parquet.write_table(made, out)
    return out.getvalue()


def written(state: dict[str, torch.Tensor]) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


@pytest.fixture
def hub(whole, tmp_path, monkeypatch) -> Iterator[FakeHub]:
    files = {
        "config.json": json.dumps(whole.config.to_dict()).encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSING).encode(),
        "pytorch_model.bin": written(weights(whole)),
    }
    tables = {"a/train.parquet": table(range(25)), "a/test.parquet": table(range(100, 109))}
    monkeypatch.setattr(published, "PART", 10)
    monkeypatch.setattr(published, "BATCH", 4)
    with FakeHub({CLIP: files, f"datasets/{DATA}": tables}) as found:
        found.use(monkeypatch, tmp_path / "home")
        yield found


@pytest.fixture
def folder(tmp_path, hub) -> Path:
    """A pack of the embedded ones' form."""
    data = json.loads((ASSETS / "clip-cifar10" / "pack.json").read_text())
    data |= {"name": "colours", "title": "Colours", "classes": NAMES}
    (encoder,) = data["encoders"]
    encoder["encoder"] = {
        "clip": {"repo_id": CLIP, "revision": hub.commit},
        "data": {"repo_id": DATA, "revision": hub.commit, "train": "a/train.parquet", "test": "a/test.parquet"},
    }
    encoder["encoder"]["data"] |= {"image": "img", "label": "label"}
    for bottleneck in data["bottlenecks"]:
        bottleneck["plan"] |= {"codebooks": 4, "pairs": 8, "key_width": 3, "key_epochs": 2}
        if "epochs" in bottleneck["plan"]:
            bottleneck["plan"]["epochs"] = 3
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "pack.json").write_text(json.dumps(data))
    return folder


def test_the_features_are_what_clip_gives(folder, run, whole):
    """transformers' own model and, as plain code, CLIP's own preprocessing: bicubic, the centre, mean and deviation."""
    assert run("mask", "features", "--pack", folder).code == 0
    found = open_mask_pack(str(folder)).features("clip-vit-b32")
    assert (len(found.train.labels), len(found.test.labels), found.width) == (25, 9, WIDTH)
    assert found.train.labels.tolist() == [n % 3 for n in range(25)]
    mean, std = (torch.tensor(PREPROCESSING[name])[:, None, None] for name in ("image_mean", "image_std"))
    for images, numbers in ((found.train, range(25)), (found.test, range(100, 109))):
        for row, number in enumerate(numbers):
            small = picture(number).resize((SIDE, SIDE * 40 // 36), Image.Resampling.BICUBIC)
            top = (small.height - SIDE) // 2
            pixels = torch.tensor(np.asarray(small)[top : top + SIDE]).permute(2, 0, 1) / 255
            with torch.inference_mode():
                said = whole.get_image_features(((pixels - mean) / std)[None])
            wanted = getattr(said, "pooler_output", said)[0]
            torch.testing.assert_close(images.features[row], wanted, atol=2e-3, rtol=2e-3)


def test_what_is_computed_is_kept_and_a_killed_run_goes_on(folder, hub, run, monkeypatch):
    pack = open_mask_pack(str(folder))
    (entry,) = pack.manifest.encoders
    seen, encode = [], clip.encode

    def counted(encoder, pictures, device):
        if len(seen) == 6:  # the third part's first batch, after two parts of 4, 4 and 2
            raise KeyboardInterrupt
        seen.append(len(pictures))
        return encode(encoder, pictures, device)

    monkeypatch.setattr(clip, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        published.compute(pack.manifest, entry, CPU)
    assert seen == [4, 4, 2, 4, 4, 2] and pack.manifest.here(entry.features) is None
    seen.clear()
    hub.down = True  # everything is here by now
    target = published.compute(pack.manifest, entry, CPU)
    assert seen == [4, 1, 4, 4, 1] and target.is_relative_to(hubs.own_folder())
    assert not target.with_name(f"{target.name}.parts").exists()
    monkeypatch.setattr(clip, "encode", encode)
    mine = features.read(target)
    target.unlink()
    assert torch.equal(features.read(published.compute(pack.manifest, entry, CPU)).train.features, mine.train.features)
    seen.clear()
    published.compute(pack.manifest, entry, CPU)
    assert seen == []


def test_the_whole_way_by_command(folder, run):
    said = run("mask", "fit", "--pack", folder, "--bottleneck", "counts")
    assert said.code == 2 and "mask features --pack colours` makes it" in said.err
    before = run("packs", "get", folder)
    assert before.code == 0 and "still to do: features/clip-vit-b32.safetensors of pack colours" in before.out
    assert run("mask", "features", "--pack", folder).code == 0
    for id in ("counts", "sgd"):
        made = run("mask", "fit", "--pack", folder, "--bottleneck", id)
        assert made.code == 0 and f"bottlenecks/{id}.safetensors: accuracy" in made.out, made.err
    assert run("packs", "check", folder).code == 0
    found = run("mask", "evaluate", "--pack", folder, "--forget", "red", "--share", "1", "--json", "-")
    assert found.code == 0 and json.loads(found.out)["encoder_saw"] == {"red": True}
    assert open_mask_pack(str(folder)).bottleneck("counts").keys.shape == (4, 8, 3)
    assert "all is here" in run("packs", "get", folder).out


def test_another_revision_is_not_taken_for_this_one(folder, run):
    assert run("mask", "features", "--pack", folder).code == 0
    data = json.loads((folder / "pack.json").read_text())
    data["encoders"][0]["encoder"]["data"]["revision"] = "main"
    (folder / "pack.json").write_text(json.dumps(data))
    said = run("mask", "fit", "--pack", folder, "--bottleneck", "counts")
    assert said.code == 2 and "is of another encoder or data set" in said.err
    assert run("mask", "features", "--pack", folder).code == 0
    assert run("mask", "fit", "--pack", folder, "--bottleneck", "counts").code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state | {"vision_model.lora_A": torch.zeros(2)}, "also hold 'vision_model.lora_A'"),
        (lambda state: {k: v for k, v in state.items() if "post_layernorm" not in k}, "lack 'vision_model.post_layer"),
        (lambda state: state | {"visual_projection.weight": torch.full((WIDTH, 32), torch.nan)}, "not all finite"),
        (lambda state: state | {"visual_projection.weight": torch.zeros(3, 32)}, r"is [3, 32] and must be [16, 32]"),
        (lambda state: state | {"visual_projection.weight": torch.zeros(WIDTH, 32).char()}, "not all finite decimal"),
    ],
)
def test_weights_are_understood_whole_or_refused(folder, hub, run, whole, change, says):
    hub.files[CLIP]["pytorch_model.bin"] = written(change(weights(whole)))
    said = run("mask", "features", "--pack", folder)
    assert said.code == 2 and says in said.err and len(said.err.strip().splitlines()[-1]) < 400


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", b'{"model_type": "siglip"}', "describes 'siglip', and no CLIP"),
        ("config.json", b'{"model_type": "clip"}', "cannot be understood"),
        ("config.json", b"[]", "no JSON object"),
        ("preprocessor_config.json", json.dumps(PREPROCESSING | {"crop_size": 48}).encode(), "prepared at 48 pixels"),
    ],
)
def test_so_is_the_configuration(folder, hub, run, file, content, says):
    hub.files[CLIP][file] = content
    said = run("mask", "features", "--pack", folder)
    assert said.code == 2 and says in said.err


def test_labels_go_by_their_names_and_a_stranger_is_refused(folder, hub, run):
    hub.files[f"datasets/{DATA}"]["a/train.parquet"] = table(range(25), ["blue", "red", "green"])
    assert run("mask", "features", "--pack", folder).code == 0
    assert open_mask_pack(str(folder)).features("clip-vit-b32").train.labels.tolist() == [n % 3 for n in range(25)]


def test_a_label_of_no_class_is_refused(folder, hub, run):
    hub.files[f"datasets/{DATA}"]["a/train.parquet"] = table(range(25), ["mauve", "red", "green"])
    said = run("mask", "features", "--pack", folder)
    assert said.code == 2 and "'mauve'" in said.err


def test_a_hub_that_is_away_is_a_sentence(folder, hub, run):
    hub.down = True
    said = run("mask", "features", "--pack", folder)
    assert said.code == 2 and "cannot be reached" in said.err


def test_numbers_beyond_half_precision_are_refused(folder, hub, run, whole):
    huge = weights(whole) | {"visual_projection.weight": 1e6 * torch.ones(WIDTH, 32).tril()}
    hub.files[CLIP]["pytorch_model.bin"] = written(huge)
    said = run("mask", "features", "--pack", folder)
    assert said.code == 2 and "gives no finite numbers on images 0 to 3" in said.err


def test_what_a_pack_plans_is_known(folder, run):
    data = json.loads((folder / "pack.json").read_text())
    data["bottlenecks"][0]["plan"]["codebook"] = 3
    (folder / "pack.json").write_text(json.dumps(data))
    with pytest.raises(PackError, match=r"the plan of counts says \['codebook'\]"):
        open_mask_pack(str(folder))
    said = run("mask", "fit", "--bottleneck", "original-all")
    assert said.code == 2 and "comes with pack canvas-mask" in said.err
    said = run("mask", "fit", "--bottleneck", "original-all", "--without", "cat")
    assert said.code == 2 and "leave --features, --encoder and --without out" in said.err


@pytest.mark.parametrize(("name", "classes"), [("clip-cifar10", 10), ("clip-cifar100", 100)])
def test_the_published_packs_say_their_sizes(name, classes):
    """Of the paper: 256 codebooks of 4,096 pairs, keys 14 wide, on CLIP ViT-B/32."""
    m = open_mask_pack(name).manifest
    assert len(m.classes) == classes and [entry.values for entry in m.bottlenecks] == ["counts", "sgd"]
    for entry in m.bottlenecks:
        assert (entry.plan["codebooks"], entry.plan["pairs"], entry.plan["key_width"]) == (256, 4096, 14)
    (encoder,) = m.encoders
    assert encoder.published.repo_id == "openai/clip-vit-base-patch32" and len(encoder.published.revision) == 40
