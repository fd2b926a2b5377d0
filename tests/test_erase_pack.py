"""Diffusion packs: manifests, and the files of the published forms, hostile ones among them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sod_core.erase import edit, judges, manifest
from sod_core.erase import pack as erase_pack
from sod_core.erase.judges import JudgeSpec
from sod_core.erase.pack import ConceptSetting, ErasePack
from sod_core.packs import find
from sod_core.packs.errors import PackError
from sod_core.packs.find import ASSETS

D, F, K, T = 6, 20, 3, 4
MANIFEST = {
    "format": 1,
    "kind": "erase",
    "name": "sketches",
    "title": "Sketches",
    "concepts": ["cat", "dog"],
    "styles": ["ink", "Van_Gogh"],
    "prompts": {"object": "An image of {object}.", "styled": "An image of {object} in {style} style."},
    "pipeline": "pipeline",
    "hook_point": "up_blocks.0.attentions.1",
    "saes": [{"id": "one", "folder": "sae", "statistics": "stats.safetensors", "settings": "settings.json"}],
}


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.json").write_text(json.dumps(MANIFEST | changes))
    return folder


def latents() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {"cat": torch.rand(3, T, F, generator=rng), "dog": torch.rand(2, T, F, generator=rng)}


def sparsify(folder: Path) -> torch.Tensor:
    """An SAE as EleutherAI's sparsify saves it; gives its encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = torch.randn(F, D)
    tensors = {"encoder.weight": encoder, "encoder.bias": torch.zeros(F), "W_dec": torch.randn(F, D)}
    save_file(tensors | {"b_dec": torch.zeros(D)}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": K, "expansion_factor": 3}))
    return encoder


def test_prompts_are_the_authors(tmp_path: Path) -> None:
    m = manifest.read(write(tmp_path / "p"))
    assert m.prompt("cat") == "An image of cat."
    assert m.prompt("cat", "Van_Gogh") == "An image of cat in Van Gogh style."
    assert m.concept(" DOG ") == "dog"
    with pytest.raises(PackError, match="known: cat, dog"):
        m.concept("bird")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"concepts": ["cat", "cat"]}, "different names"),
        ({"saes": []}, "different ids, at least one"),
        ({"prompts": {"object": "An image.", "styled": "{object} {style}"}}, "must name {object}"),
        ({"prompts": {"object": "{object}", "styled": "{object.__class__} {style}"}}, "must name"),
        ({"prompts": {"object": "{object}", "styled": "{object} {style} {0}"}}, "must name"),
        ({"sampling": {"steps": 0}}, "steps above 0"),
        ({"hook_point": None, "format": 2}, "format 1"),
        ({"pipeline": "../elsewhere"}, "outside"),
        ({"saes": [{"id": "a", "folder": "/etc"}]}, "outside"),
        ({"judges": {"mood": {}}}, "mood"),
        ({"opening": {"object": "bird"}}, "opens on bird"),
    ],
)
def test_wrong_manifests_say_what_is_wrong(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(PackError, match=said):
        manifest.read(write(tmp_path / "p", **changes))


def test_packs_are_found_by_their_kind(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "sketches")
    monkeypatch.setenv("SOD_PACKS", str(tmp_path))
    assert "sketches" in find.folders("erase") and "sketches" not in find.folders("restore")
    assert "canvas" in find.folders("restore") and "canvas" not in find.folders("erase")
    assert erase_pack.open_erase_pack("sketches").manifest.title == "Sketches"
    with pytest.raises(PackError, match="unknown pack 'canvas'"):
        erase_pack.open_erase_pack("canvas")


def test_one_whole_sae_is_enough_to_erase(erase_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(erase_folder, tmp_path / "copy")
    data = json.loads((folder / "pack.json").read_text())
    data["saes"].append(data["saes"][0] | {"id": "other", "statistics": "nowhere.safetensors"})
    (folder / "pack.json").write_text(json.dumps(data))
    pack = ErasePack(folder)
    assert pack.ready() and pack.missing(data["saes"][0]["id"]) == []
    assert pack.missing() == pack.missing("other") != []
    (folder / "pipeline" / "model_index.json").unlink()
    assert not ErasePack(folder).ready()


def test_a_pipeline_that_is_here_and_broken_says_what_is_wrong(erase_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(erase_folder, tmp_path / "copy")
    data = json.loads((folder / "pack.json").read_text()) | {"note": "Put it beside this file."}
    (folder / "pack.json").write_text(json.dumps(data))
    weights = next((folder / "pipeline" / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PackError, match="is a pickle"):
        ErasePack(folder).pipeline()
    shutil.rmtree(folder / "pipeline")
    with pytest.raises(PackError, match="Put it beside this file"):
        ErasePack(folder).pipeline()


def test_an_sae_of_either_published_form(tmp_path: Path) -> None:
    encoder = sparsify(tmp_path / "p" / "sae")
    assert torch.equal(ErasePack(write(tmp_path / "p")).sae("one").encoder.weight, encoder)
    other = tmp_path / "q" / "sae"
    other.mkdir(parents=True)
    (other / "cfg.json").write_text(json.dumps({"d_model": D, "n_dirs_local": F, "k": K}))
    state = {"pre_bias": torch.zeros(D), "latent_bias": torch.zeros(F), "encoder.weight": encoder}
    torch.save({"state_dict": state | {"decoder.weight": torch.randn(D, F)}}, other / "state_dict.pth")
    found = ErasePack(write(tmp_path / "q")).sae("one")
    assert torch.equal(found.encoder.weight, encoder) and (found.k, found.latents) == (K, F)


@pytest.mark.parametrize(
    ("config", "said"), [({"d_in": D}, "d_in and k"), ({"d_in": D, "k": K, "input_unit_norm": True}, "unit_norm")]
)
def test_an_sae_that_cannot_be_used_says_why(tmp_path: Path, config: dict, said: str) -> None:
    sparsify(tmp_path / "p" / "sae")
    (tmp_path / "p" / "sae" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(PackError, match=said):
        ErasePack(write(tmp_path / "p")).sae("one")


def test_statistics_from_our_file_and_from_the_authors_pickle(tmp_path: Path) -> None:
    raw, expected = latents(), edit.statistics(latents())
    erase_pack.write_statistics(expected, tmp_path / "ours.safetensors")
    with (tmp_path / "theirs.pkl").open("wb") as file:
        pickle.dump({name: value.half() for name, value in raw.items()}, file)
    for name in ("ours.safetensors", "theirs.pkl"):
        found = erase_pack.read_statistics(tmp_path / name)
        assert found.names == ("cat", "dog") and found.counts.tolist() == [3, 2]
        torch.testing.assert_close(found.means, expected.means, atol=1e-3, rtol=0)


def test_statistics_of_another_sae_are_refused(tmp_path: Path) -> None:
    sparsify(tmp_path / "p" / "sae")
    pack = ErasePack(write(tmp_path / "p"))
    assert pack.statistics("one") is None and "statistics" in pack.missing()[-1]
    small = edit.statistics({name: value[..., :5] for name, value in latents().items()})
    erase_pack.write_statistics(small, tmp_path / "p" / "stats.safetensors")
    with pytest.raises(PackError, match="5 latents"):
        pack.statistics("one")


class Hostile:
    def __reduce__(self):
        return (__import__("os").system, ("touch /tmp/sod-was-here",))


def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "latents.pkl"
    path.write_bytes(pickle.dumps({"cat": Hostile()}))
    with pytest.raises(PackError, match=r"latents\.pkl was refused.*posix\.system"):
        erase_pack.read_statistics(path)
    torch.save({"cat": Hostile()}, tmp_path / "class_params.pth")
    with pytest.raises(PackError, match=r"class_params\.pth was refused"):
        erase_pack.read_settings(tmp_path / "class_params.pth")
    assert not Path("/tmp/sod-was-here").exists()


@pytest.mark.parametrize("found", [{}, {"cat": [1.0]}, {"cat": torch.zeros(2, 3)}, [torch.zeros(1, 2, 3)]])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, found) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(found))
    with pytest.raises(PackError, match="holds no latents"):
        erase_pack.read_statistics(tmp_path / "x.pkl")


def test_settings_from_our_file_and_from_class_params(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"cat": {"percentile": 99.9, "factor": -2}}))
    torch.save({"cat": {"percentile": 99.99, "multiplier": -10.0}}, tmp_path / "class_params.pth")
    assert erase_pack.read_settings(tmp_path / "s.json") == {"cat": ConceptSetting(99.9, factor=-2.0)}
    assert erase_pack.read_settings(tmp_path / "class_params.pth") == {"cat": ConceptSetting(99.99, multiplier=-10.0)}
    (tmp_path / "s.json").write_text(json.dumps({"cat": {"percentile": 99.9, "factor": -2, "multiplier": 1}}))
    with pytest.raises(PackError, match="either a factor or a multiplier"):
        erase_pack.read_settings(tmp_path / "s.json")


def test_judges_are_timm_models_bare_or_wrapped(tmp_path: Path) -> None:
    from PIL import Image

    spec = JudgeSpec("test_vit", ("a", "b"), 160)
    torch.manual_seed(0)
    model = judges.new(spec).eval()
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "j.pth")
    judge = judges.load(tmp_path / "j.pth", spec)
    images = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue", "red")]
    found = judge.probabilities(images)
    assert found.shape == (3, 2) and torch.allclose(found.sum(1), torch.ones(3)) and torch.equal(found[0], found[2])
    with pytest.raises(PackError, match="no test_vit with 3 classes"):
        judges.load(tmp_path / "j.pth", JudgeSpec("test_vit", ("a", "b", "c"), 160))
    with pytest.raises(PackError, match="not one of timm's"):
        judges.new(JudgeSpec("vit_of_nobody", ("a",), 8))


def test_every_manifest_that_ships_can_be_read() -> None:
    for folder in find.folders("erase").values():
        assert manifest.read(folder).saes
    assert ASSETS.is_dir()


# ---------------------------------------------------------------- no numbers


def test_statistics_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    raw = latents()
    raw["dog"][1, 2, 3] = torch.nan
    with (tmp_path / "theirs.pkl").open("wb") as file:
        pickle.dump(raw, file)
    erase_pack.write_statistics(edit.statistics(raw), tmp_path / "ours.safetensors")
    for name in ("ours.safetensors", "theirs.pkl"):
        with pytest.raises(PackError, match=f"{name} is broken: the latents of dog"):
            erase_pack.read_statistics(tmp_path / name)


@pytest.mark.parametrize(
    ("means", "counts", "names"),
    [
        (torch.zeros(2, T, F), torch.tensor([0, 1]), '["cat", "dog"]'),
        (torch.zeros(2, T, F), torch.tensor([1]), '["cat", "dog"]'),
        (torch.zeros(2, T, F), torch.tensor([1, 1]), '["cat", "cat"]'),
        (torch.zeros(2, T, F), torch.tensor([1, 1]), "cat, dog"),
        (torch.zeros(2, T, F, dtype=torch.int64), torch.tensor([1, 1]), '["cat", "dog"]'),
        (torch.zeros(2, T, F), None, '["cat", "dog"]'),
    ],
)
def test_statistics_that_do_not_fit_together_are_refused(tmp_path: Path, means, counts, names) -> None:
    tensors = {"means": means} | ({} if counts is None else {"counts": counts})
    save_file(tensors, tmp_path / "s.safetensors", {"concepts": names})
    with pytest.raises(PackError, match="holds no statistics"):
        erase_pack.read_statistics(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    "setting",
    [
        {"percentile": float("nan"), "factor": -2},
        {"percentile": 101, "factor": -2},
        {"percentile": 99, "factor": float("nan")},
        {"percentile": 99, "multiplier": float("inf")},
    ],
)
def test_settings_that_are_no_numbers_are_refused(tmp_path: Path, setting: dict) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"cat": setting}))
    torch.save({"cat": setting}, tmp_path / "s.pth")
    for name in ("s.json", "s.pth"):
        with pytest.raises(PackError, match="holds no settings of concepts"):
            erase_pack.read_settings(tmp_path / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"guidance": float("nan")}},
        {"sampling": {"guidance": float("inf")}},
        {"judges": {"object": {"architecture": "test_vit", "size": 0, "file": "o"}}},
        {"judges": {"object": {"architecture": "test_vit", "size": 8, "file": "o", "std": 0}}},
        {"judges": {"object": {"architecture": "test_vit", "size": 8, "file": "o", "mean": float("nan")}}},
    ],
)
def test_manifests_with_settings_that_are_no_numbers_are_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(PackError, match="sampling needs|judges need"):
        manifest.read(write(tmp_path / "p", **changes))


def test_a_judge_that_gives_no_numbers_judges_nothing(tmp_path: Path) -> None:
    from PIL import Image

    spec = JudgeSpec("test_vit", ("a", "b"), 160)
    state = judges.new(spec).state_dict()
    for name, broken in (
        ("no finite numbers", state | {"head.bias": torch.tensor([0.0, torch.nan])}),
        ("looks quantised", state | {"head.weight": state["head.weight"].to(torch.int8)}),
    ):
        torch.save(broken, tmp_path / "j.pth")
        with pytest.raises(PackError, match=name):
            judges.load(tmp_path / "j.pth", spec)
    torch.save(state | {"head.bias": torch.tensor([0.0, 3e38])}, tmp_path / "j.pth")
    judge = judges.load(tmp_path / "j.pth", spec)
    judge.model.head.bias.data.fill_(torch.nan)  # as where half precision overflows
    with pytest.raises(PackError, match="gives no numbers"):
        judge.probabilities([Image.new("RGB", (8, 8))])
