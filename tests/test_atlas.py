"""The atlas: figures by hand and by a second implementation, the stored file, and the command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EXPERTS, LAYERS, ROOT, SHAPE, UNLEARNED, WIDTH, random_vit
from torch import Tensor

from sod_core.__main__ import main
from sod_core.models import vit as vits
from sod_core.models import vit_weights
from sod_core.packs.errors import PackError
from sod_core.restore import atlas, atlas_actions, atlas_file, atlas_layers, fates
from sod_core.restore.atlas import ORIGINAL, STRONGEST, Firing, Portrait
from sod_core.restore.atlas_layers import Atlas
from sod_core.restore.fates import Among
from sod_core.restore.pack import Pack
from sod_core.restore.testset import open_set

APPLE, PEAR = UNLEARNED
IMAGES, PATCHES, LATENTS = 23, 6, 11


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """[23, 1 + 6, 11]: sparse; latent 0 never fires, latent 1 on CLS only, latent 2 on one patch."""
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(IMAGES, 1 + PATCHES, LATENTS, generator=generator)
    found = torch.where(torch.rand(found.shape, generator=generator) < 0.3, found, 0)
    found[..., 0] = 0
    found[:, 1:, 1], found[:, 0, 1] = 0, 1
    found[..., 2] = 0
    found[4, 3, 2] = 0.5
    return found


def portrait(latents: Tensor, batch: int, masks: Tensor | None = None) -> Portrait:
    """Of latents that come in batches."""
    found = Portrait(latents.shape[2], latents.shape[1] - 1)
    for start in range(0, len(latents), batch):
        rows = slice(start, start + batch)
        found.add(latents[rows], None if masks is None else masks[rows])
    return found


# ---------------------------------------------------------------- counting


def test_firing_by_hand():
    found = Firing.none(2, 2)
    one = torch.tensor([[9.0, 9.0], [0.0, 1.0], [0.0, 3.0]])  # CLS, which does not count, and two patches
    other = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.5, 0.0]])
    found.add(torch.stack([one, other]), torch.tensor([1, 1]))
    found.add(one[None], torch.tensor([0]))
    assert found.fires.tolist() == [[0, 1], [1, 1]]
    assert found.total.tolist() == [[0.0, 3.0], [2.0, 3.0]]
    assert found.strength(torch.tensor([1, 2])).tolist() == [[0.0, 3.0], [1.0, 1.5]]
    assert found.strength(torch.tensor([0, 2]))[0].tolist() == [0.0, 3.0]  # no division by nothing


@pytest.mark.parametrize("batch", [1, 4, 23])
def test_a_portrait_against_plain_loops(latents, batch):
    masks = torch.rand(IMAGES, PATCHES, generator=torch.Generator().manual_seed(1))
    found = portrait(latents, batch, masks)
    values = latents[:, 1:].double().numpy()
    ids, overlaps = found.together()
    for j in range(LATENTS):
        places = {(i, n) for i in range(IMAGES) for n in range(PATCHES) if values[i, n, j] > 0}
        assert found.patches[j].item() == pytest.approx(len(places) / (IMAGES * PATCHES))
        assert found.cls[j].item() == sum(latents[i, 0, j].item() > 0 for i in range(IMAGES))
        total = sum(values[i, n, j] for i, n in places)
        on = sum(values[i, n, j] * masks[i, n].item() for i, n in places)
        assert found.on_object[j].item() == pytest.approx(on / total) if places else found.on_object[j].isnan()
        peaks = sorted((-max(values[i, :, j]), i) for i in range(IMAGES) if max(values[i, :, j]) > 0)[:STRONGEST]
        numbers = [i for _, i in peaks]
        assert found.strongest[j].tolist() == numbers + [-1] * (STRONGEST - len(numbers))
        for rank, i in enumerate(numbers):
            assert torch.equal(found.heat[j, rank], latents[i, 1:, j])
        assert not found.heat[j, len(numbers) :].any() and torch.equal(found.peaks[j], found.heat[j].amax(1))
        others = []
        for other in range(LATENTS):
            theirs = {(i, n) for i in range(IMAGES) for n in range(PATCHES) if values[i, n, other] > 0}
            if other != j and places & theirs:
                others.append((-len(places & theirs) / len(places | theirs), other))
        best = sorted(others)[: atlas.TOGETHER]
        assert [i for i in ids[j].tolist() if i >= 0] == [other for _, other in best]
        assert overlaps[j, : len(best)].tolist() == pytest.approx([-share for share, _ in best])


def test_equals_come_in_the_order_of_the_images():
    same = torch.ones(40, 1 + 2, 1)
    for batch in (7, 16, 40):
        assert portrait(same, batch).strongest[0].tolist() == list(range(STRONGEST))


def test_without_masks_nobody_says_where_the_object_is(latents):
    assert portrait(latents, 5).on_object.isnan().all()


# ---------------------------------------------------------------- what became of them


def test_label_entropy_by_hand():
    strength = torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 4.0, 0.0, 0.0]])
    found = fates.entropy(strength).tolist()
    assert found[:3] == pytest.approx([2.0, 1.5, 0.0]) and math.isnan(found[3])


def test_fates_by_hand():
    often = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.04, 0.04, 0.5])
    strength = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 1.0])
    after = Among(
        torch.tensor([0.1, 0.3, 0.5, 0.5, 0.06, 0.0, 0.5]), torch.tensor([0.2, 0.5, 1.2, 1.5, 3.0, 0.0, 0.75])
    )
    found = fates.fates(Among(often, strength), after)
    assert found == ["silenced", "weakened", "left", "stronger", "new", "no part", "left"]
    assert fates.kept(Among(often, strength), after)[:3].tolist() == pytest.approx([0.2, 0.5, 1.2])
    assert fates.kept(Among(often[:1], torch.zeros(1)), Among(often[:1], strength[:1])).isnan().all()


def test_among_all_images_each_image_counts_the_same():
    layer = SimpleNamespace(
        class_fires=torch.tensor([[[2], [1]]]), class_strength=torch.tensor([[[4.0], [1.0]]])
    )  # one model, two classes, one latent
    sizes = torch.tensor([2, 6])
    everybody, one = (fates.among(layer, 0, sizes, group) for group in (None, 1))
    assert (everybody.often.item(), everybody.strength.item()) == pytest.approx((3 / 8, (2 * 4 + 6 * 1) / 8))
    assert (one.often.item(), one.strength.item()) == pytest.approx((1 / 6, 1.0))


# ---------------------------------------------------------------- a pack's atlas


@pytest.fixture(scope="module")
def made(pack: Pack) -> Atlas:
    found, refused = atlas_actions.computed(pack, list(UNLEARNED), atlas_actions.images(pack))
    assert not refused
    return found


def test_the_survey_against_one_image_at_a_time(pack, made):
    data = open_set(pack, None, None)
    assert len(made.labels) == len(data) == 9 and made.data == "examples" and made.styles == ()
    models = {ORIGINAL: pack.original(), APPLE: pack.unlearned(APPLE), PEAR: pack.unlearned(PEAR)}
    assert [model.id for model in made.models] == list(models)
    for layer in LAYERS:
        found = made.layers[layer]
        for place, model in enumerate(models.values()):
            fires, total = torch.zeros(3, WIDTH), torch.zeros(3, WIDTH)
            for i, label in enumerate(data.labels.tolist()):
                image = data.batch(i, 1).inputs
                peaks = pack.sae(layer).encode(vits.head(model, image, layer))[0, 1:].max(0).values
                fires[label] += peaks > 0
                total[label] += peaks
            assert torch.equal(found.class_fires[place].float(), fires)
            torch.testing.assert_close(found.class_strength[place], total / 3, atol=1e-3, rtol=1e-3)
        peaks = pack.example_peaks(layer)
        torch.testing.assert_close(found.heat.amax(2)[:, 0], peaks.amax(0), atol=1e-4, rtol=1e-4)


def test_the_drawn_world_has_styles_and_masks():
    canvas = Pack(ROOT / "assets" / "canvas")
    data = open_set(canvas, None, 60)
    assert data.style_names == ["plain", "sketch", "neon", "mosaic", "watercolour", "blueprint"]
    assert data.styles.tolist() == [style for style in range(6) for _ in range(10)]
    found = atlas.survey(canvas, {ORIGINAL: canvas.original}, data)[9]
    assert torch.equal(found.by_style[ORIGINAL].fires.sum(0), found.by_class[ORIGINAL].fires.sum(0))
    known = found.portrait.on_object[~found.portrait.on_object.isnan()]
    assert len(known) and 0 <= known.min() <= known.max() <= 1
    assert data.picture(7).size == (64, 64)


def test_a_model_whose_states_are_not_numbers_is_left_out(spoilt_pack):
    broken = random_vit(1)
    broken.blocks[0].attn.proj.weight.data *= 1e38  # overflows
    torch.save(vit_weights.to_published(broken, torch.float32), spoilt_pack / "unlearned" / f"{APPLE}.pth")
    pack = Pack(spoilt_pack)
    found, refused = atlas_actions.computed(pack, list(UNLEARNED), atlas_actions.images(pack))
    assert [model.id for model in found.models] == [ORIGINAL, PEAR]
    assert len(refused) == 1 and APPLE in refused[0] and "not numbers" in refused[0]


# ---------------------------------------------------------------- the stored file


@pytest.fixture
def stored(spoilt_pack: Path, made: Atlas) -> Pack:
    atlas_file.write(made, spoilt_pack / atlas_file.FILE)
    return Pack(spoilt_pack)


def test_what_is_written_is_read(stored, made):
    found = atlas_file.read(stored)
    assert (found.pack, found.classes, found.models, found.sums) == ("fruit", made.classes, made.models, made.sums)
    assert torch.equal(found.labels, made.labels)
    for number, layer in made.layers.items():
        again = found.layers[number]
        for name in ("class_fires", "class_strength", "style_fires", "strongest", "together", "patches", "cls"):
            assert torch.equal(getattr(again, name), getattr(layer, name)), name
        for name in ("overlap", "peaks"):
            torch.testing.assert_close(getattr(again, name), getattr(layer, name), atol=1e-3, rtol=1e-3)
        top = layer.peaks[:, :1, None]
        assert ((again.heat - layer.heat).abs() <= top / 255 + top / 1000).all()  # a step, and half precision
        assert torch.equal(again.heat > 0, layer.heat > 0)  # what fires a little is not lost


def test_a_large_atlas_has_coarser_heat_until_it_fits(stored, made):
    path, sizes = stored.manifest.folder / atlas_file.FILE, []
    for levels, images in atlas_file.DETAIL:
        atlas_file._write(made, path, levels, images)
        sizes.append(path.stat().st_size)
    assert sorted(sizes, reverse=True) == sizes
    for (levels, images), most in zip(atlas_file.DETAIL, sizes):
        atlas_file.write(made, path, most)
        found = atlas_file.read(stored)
        assert path.stat().st_size <= most
        for number, layer in made.layers.items():
            heat, top = found.layers[number].heat, layer.peaks[:, :1, None]
            assert heat.shape[1] == images and torch.equal(heat > 0, layer.heat[:, :images] > 0)
            assert ((heat - layer.heat[:, :images]).abs() <= top / levels + top / 1000).all()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="even without heat"):
        atlas_file.write(made, path, sizes[-1] - 1)
    assert path.read_bytes() == before  # what was there stays


def test_the_check_of_a_pack_reads_its_atlas(stored, capsys):
    assert main(["packs", "check", str(stored.manifest.folder)]) == 0
    assert "atlas" in capsys.readouterr().out
    rewritten(stored, format=2)
    assert main(["packs", "check", str(stored.manifest.folder)]) == 2
    assert "reads format 1" in "".join(capsys.readouterr())


def test_a_pack_without_an_atlas(pack):
    assert atlas_file.read(pack) is None


def rewritten(pack: Pack, **changes) -> None:
    path = pack.manifest.folder / atlas_file.FILE
    with np.load(path) as archive:
        arrays = dict(archive)
    about = json.loads(arrays["about"].tobytes())
    for name, change in changes.items():
        if name in about:
            about[name] = change
        else:
            name = name.replace("__", "/")
            arrays[name] = change(arrays[name])
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": 7}, "is damaged"),
        ({"2__heat": lambda found: found.repeat(2, 1)}, "is damaged"),
        ({"format": 2}, "format 2, this version reads format 1"),
        ({"classes": ["apple", "plum", "pear"]}, "not those of pack fruit"),
        ({"sums": {"1": ["", ""]}}, "has the layers 1, pack fruit has 1, 2"),
        ({"models": []}, "is damaged"),
        ({"models": [{"id": ORIGINAL, "target": None, "sum": ""}] * 2}, "is damaged"),
        ({"labels": lambda found: found + 1}, "is damaged"),
        ({"labels": lambda found: found[:-1]}, "is damaged"),
        ({"1__strongest": lambda found: found + 5}, "is damaged"),
        ({"1__together": lambda found: found - 2}, "is damaged"),
        ({"1__class_strength": lambda found: found * np.nan}, "is damaged"),
        ({"1__class_fires": lambda found: found[:, :, :-1]}, "is damaged"),
        ({"2__heat": lambda found: found.astype(float)}, "is damaged"),
        ({"2__heat": lambda found: found[:, :, :9]}, "has 9 patches an image, the models of pack fruit have 16"),
    ],
)
def test_what_does_not_fit_is_refused(stored, changes, said):
    rewritten(stored, **changes)
    with pytest.raises(PackError, match=f"atlas.npz.*({said})"):
        atlas_file.read(stored)


def test_a_file_cut_short_is_refused(stored):
    path = stored.manifest.folder / atlas_file.FILE
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(PackError, match=r"atlas.npz cannot be read"):
        atlas_file.read(stored)


def test_another_sae_or_model_makes_it_stale(stored, spoilt_pack):
    found = atlas_file.read(stored)
    assert not any(atlas_layers.stale(found, stored, layer, id) for layer in LAYERS for id in (ORIGINAL, *UNLEARNED))
    shutil.copy(spoilt_pack / "sae_layer2_k4.pt", spoilt_pack / "sae_layer1_k4.pt")
    assert "another file of the SAE of layer 1" in atlas_layers.stale(found, stored, 1)
    assert atlas_layers.stale(found, stored, 2) == ""
    shutil.copy(spoilt_pack / f"unlearned/{APPLE}.pth", spoilt_pack / f"unlearned/{PEAR}.pth")
    assert f"another file of the model {PEAR}" in atlas_layers.stale(found, stored, 2, PEAR)
    assert atlas_layers.stale(found, stored, 2, APPLE) == ""
    (spoilt_pack / f"unlearned/{PEAR}.pth").unlink()  # nothing can be said of what is not here
    assert atlas_layers.stale(found, stored, 2, PEAR) == ""


@pytest.mark.parametrize("name", ["canvas", "digits"])
def test_the_embedded_atlases_are_those_of_their_packs(name):
    pack = Pack(ROOT / "assets" / name)
    found = atlas_file.read(pack)
    assert [model.id for model in found.models] == [ORIGINAL, *(entry.id for entry in pack.manifest.unlearned)]
    assert (pack.manifest.folder / atlas_file.FILE).stat().st_size < 2e6
    for layer in found.layers:
        for model in found.models:
            assert atlas_layers.stale(found, pack, layer, model.id) == ""
    data = open_set(pack, None, len(found.labels))
    assert data.name == found.data and torch.equal(data.labels, found.labels)
    assert len(found.labels) >= 1500
    layer, experts = pack.manifest.layers[1], pack.expert_ids(pack.manifest.layers[1], 3)
    part = data.batch(int(found.layers[layer].strongest[experts[0], 0]), 1)
    with torch.inference_mode():
        peak = pack.sae(layer).encode(vits.head(pack.original(), part.inputs, layer))[0, 1:, experts[0]].max()
    assert peak.item() == pytest.approx(found.layers[layer].peaks[experts[0], 0].item(), rel=1e-3)


# ---------------------------------------------------------------- one latent, and the command


def test_a_latents_page_in_plain_values(made):
    latent = int(made.layers[2].patches.argmax())
    found = fates.told(made, 2, latent, APPLE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    layer = made.layers[2]
    assert found["forgot"] == "apple" and found["style_entropy"] is None and found["on_object"] is None
    assert found["classes"]["pear"][APPLE]["often"] == pytest.approx(layer.class_fires[1, 1, latent].item() / 3)
    assert found["fires"]["apple"][ORIGINAL]["strength"] == pytest.approx(layer.class_strength[0, 0, latent].item())
    assert [image["image"] for image in found["strongest"]] == [i for i in layer.strongest[latent].tolist() if i >= 0]
    assert found["strongest"][0]["class"] in made.classes and found["strongest"][0]["style"] is None
    assert found["fate"] in fates.FATES
    assert fates.told(made, 2, latent)["fate"] is None


@pytest.mark.parametrize(
    ("asked", "said"), [((2, WIDTH), "latents 0 to 63"), ((7, 0), "no layer 7; known: 1, 2"), ((1, 0, "x"), "no model")]
)
def test_what_an_atlas_does_not_have(made, asked, said):
    with pytest.raises(ValueError, match=said):
        fates.told(made, *asked)


def test_a_summary_counts_every_latent_once(made):
    found = fates.summary(made, 1, APPLE, EXPERTS[0])
    assert sum(found.all.values()) == WIDTH and sum(found.experts.values()) == len(EXPERTS[0])
    before, after = (fates.among(made.layers[1], model, made.class_sizes, 0) for model in (0, 1))
    each = fates.fates(before, after)
    assert found.experts["silenced"] == sum(each[j] == "silenced" for j in EXPERTS[0])
    lines = fates.table([found]).splitlines()
    assert len(lines) == 3 and lines[2].startswith(f"| {APPLE} | apple | 1 | ")


def test_the_command(spoilt_pack, capsys):
    assert main(["atlas", "--pack", str(spoilt_pack), "--json", str(spoilt_pack / "rows.json")]) == 0
    said = capsys.readouterr()
    rows = json.loads((spoilt_pack / "rows.json").read_text())
    assert [(row["id"], row["layer"]) for row in rows] == [(id, layer) for id in UNLEARNED for layer in LAYERS]
    assert said.out.count("\n") == 2 + len(rows) and "9 images (examples)" in said.err
    found = atlas_file.read(Pack(spoilt_pack))
    assert [model.id for model in found.models] == [ORIGINAL, *UNLEARNED] and found.layers[1].heat.shape[
        2
    ] == SHAPE.grid**2


def test_the_command_elsewhere_and_on_fewer_images(spoilt_pack, tmp_path):
    out = tmp_path / "small.npz"
    assert main(["atlas", "--pack", str(spoilt_pack), "--unlearned", PEAR, "--images", "3", "--out", str(out)]) == 0
    assert out.is_file() and not (spoilt_pack / atlas_file.FILE).exists()
    shutil.move(out, spoilt_pack / atlas_file.FILE)
    found = atlas_file.read(Pack(spoilt_pack))
    assert len(found.labels) == 3 and [model.id for model in found.models] == [ORIGINAL, PEAR]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unlearned", "x"], "unknown unlearned model 'x'"),
        (["--images", "0"], "0 test images are none"),
        (["--out", "/dev/null/atlas.npz"], "cannot write"),
    ],
)
def test_what_the_command_refuses(spoilt_pack, options, said, capsys):
    assert main(["atlas", "--pack", str(spoilt_pack), *options]) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_page_says_what_is_stored():
    pack = Pack(ROOT / "assets" / "canvas")
    found = atlas_file.read(pack)
    page = (ROOT / "docs" / "atlas.md").read_text()
    rows = [fates.summary(found, 9, m.id, pack.expert_ids(9, m.target)) for m in found.models[1:]]
    assert fates.table(rows).splitlines()[2:] == [line for line in page.splitlines() if line.count("|") == 13][2:]
