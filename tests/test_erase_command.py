"""`python -m sod_core erase`: images, the benchmark with what it writes and resumes, statistics, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sod_core.erase import concepts, drawings, edit
from sod_core.erase.pack import ConceptSetting, ErasePack, read_statistics
from sod_core.erase.unlearncanvas import Asked
from sod_core.models import diffusion


@pytest.fixture
def folder(erase_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(erase_folder, tmp_path / "doodles")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_one_image_before_and_after(run, folder, tmp_path) -> None:
    call = ["erase", "image", "--pack", folder, "--prompt", "An image of dog.", "--concept", "dog", "--seed", 3]
    found = run(*call, "--out", tmp_path / "a")
    assert found.code == 0 and found.out.startswith("object: ") and "before" in found.out
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["settings"]["factor"], result["settings"]["fidelity"]) == (-20.0, "exact")
    assert len(result["latent_by_step"]) == result["steps"] == 4 and set(result["judged"]) == {"object", "style"}
    assert np.abs(pixels(tmp_path / "a" / "before.png") - pixels(tmp_path / "a" / "after.png")).max() > 5
    run(*call, "--factor", 1, "--out", tmp_path / "b")  # a factor of one changes nothing, whatever the seed
    assert np.abs(pixels(tmp_path / "b" / "before.png") - pixels(tmp_path / "b" / "after.png")).max() <= 1
    assert np.array_equal(pixels(tmp_path / "a" / "before.png"), pixels(tmp_path / "b" / "before.png"))


def test_reference_fidelity_takes_the_multiplier_that_has_the_factor_on_average(run, folder, tmp_path) -> None:
    call = ["erase", "image", "--pack", folder, "--prompt", "x", "--concept", "cat", "--fidelity", "reference"]
    assert run(*call, "--out", tmp_path / "a").code == 0
    found = json.loads((tmp_path / "a" / "result.json").read_text())["settings"]
    statistics = read_statistics(folder / "sae" / "statistics.safetensors")
    assert found["factor"] is None
    assert edit.factor_for(statistics, "cat", found["multiplier"], 95) == pytest.approx(-21, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "factor"),
    [([], [-20.0, -21.0]), (["--factor", -3, -4.5], [-3.0, -4.5]), (["--factor", -3], -3.0)],
)
def test_each_of_several_concepts_has_its_own_factor(run, folder, tmp_path, options, factor) -> None:
    call = ["erase", "image", "--pack", folder, "--prompt", "x", "--concept", "dog", "cat", "--out", tmp_path / "a"]
    assert run(*call, *options).code == 0
    found = json.loads((tmp_path / "a" / "result.json").read_text())["settings"]
    assert (found["concepts"], found["factor"], found["multiplier"]) == (["dog", "cat"], factor, None)


def test_in_reference_fidelity_each_factor_becomes_its_own_concept_s_multiplier(folder) -> None:
    pack, statistics = ErasePack(folder), read_statistics(folder / "sae" / "statistics.safetensors")
    chosen = [ConceptSetting(95, factor=-3.0), ConceptSetting(90, multiplier=2.0)]
    for how in (
        drawings.settings(pack, "random", ("dog", "cat"), "reference", chosen),
        drawings.settings(pack, "random", ("dog", "cat"), "exact", chosen),  # one has a multiplier
        drawings.settings(pack, "random", ("dog", "cat"), "exact", chosen, beta=True),
    ):
        assert how.factor is None and how.percentile == (95, 90) and how.each("multiplier")[1] == 2.0
        assert edit.factor_for(statistics, "dog", how.each("multiplier")[0], 95) == pytest.approx(-3)


def test_the_benchmark_writes_the_authors_names_counts_and_goes_on(run, folder, tmp_path) -> None:
    out = tmp_path / "out"
    call = ["erase", "benchmark", "--pack", folder, "--concepts", "dog", "cat", "--styles", "ink", "--seeds", 188]
    first = run(*call, "--out", out, "--json", tmp_path / "r.json")
    assert first.code == 0 and "| **mean** |" in first.out
    names = {f"{style}{name}_seed188.jpg" for name in ("dog", "cat", "sun") for style in ("ink_", "")}
    for concept in ("dog", "cat"):
        assert {path.name for path in (out / concept).iterdir()} == {*names, "settings.json"}
    found = json.loads((tmp_path / "r.json").read_text())
    for row in found["concepts"]:
        assert all(0 <= row[share] <= 1 for share in ("ua", "ira", "cra"))
        assert (row["unlearned"]["judged"], row["in_domain"]["judged"], row["cross_domain"]["judged"]) == (2, 4, 3)
    kept, lost = out / "dog" / "ink_sun_seed188.jpg", out / "cat" / "sun_seed188.jpg"
    Image.new("RGB", (32, 32)).save(kept)  # not drawn again
    before = lost.read_bytes()
    lost.unlink()
    black = kept.read_bytes()
    assert run(*call, "--out", out).code == 0
    assert (kept.read_bytes(), lost.read_bytes()) == (black, before)  # an image does not depend on its batch


def test_images_drawn_otherwise_are_not_taken_for_these(run, folder, tmp_path) -> None:
    call = ["erase", "benchmark", "--pack", folder, "--concepts", "dog", "--objects", "dog", "--out", tmp_path]
    call += ["--styles", "ink", "--seeds", 3]
    assert run(*call, "--factor", -3).code == 0
    images = {path: path.read_bytes() for path in (tmp_path / "dog").iterdir()}
    for other in (["--factor", -4], ["--factor", -3, "--fidelity", "reference"], ["--factor", -3, "--steps", 3]):
        found = run(*call, *other)
        assert found.code != 0 and "drawn with other settings" in found.err and "Traceback" not in found.err
    assert {path: path.read_bytes() for path in (tmp_path / "dog").iterdir()} == images


def test_one_concept_without_images_does_not_hide_the_others(run, folder, tmp_path) -> None:
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "dog" / "dog_seed5.jpg")
    call = ["erase", "judge", "--pack", folder, "--objects", "dog", "--seeds", 5, "--styles", "--json", "-"]
    found = run(*call, "--concepts", "dog", "cat", "--out", tmp_path)
    dog, cat = json.loads(found.out)["concepts"]
    assert dog["unlearned"]["judged"] == 1 and cat["ira"] is None and cat["missing"] == ["dog_seed5.jpg"]
    nothing = run(*call, "--concepts", "cat", "--out", tmp_path)
    assert nothing.code != 0 and "holds none of the images" in nothing.err


def test_images_that_are_there_can_be_judged_again_and_what_is_missing_is_named(run, folder, tmp_path) -> None:
    out = tmp_path / "out" / "dog"
    out.mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(out / "dog_seed5.jpg")
    call = ["erase", "judge", "--pack", folder, "--concepts", "dog", "--objects", "dog", "--seeds", 5]
    found = run(*call, "--styles", "ink", "--out", tmp_path / "out", "--json", "-")
    assert found.code == 0 and found.err.strip() == "missing: dog/ink_dog_seed5.jpg"
    (row,) = json.loads(found.out)["concepts"]
    assert row["unlearned"]["judged"] == 1 and row["ira"] is None and row["cra"] is None


def test_statistics_are_the_means_of_what_the_pipeline_does(run, folder) -> None:
    found = run("erase", "statistics", "--pack", folder, "--seeds", 2, "--guidance", 4)
    assert found.code == 0 and "3 concepts, 4 steps, 6 images each" in found.out
    got = read_statistics(folder / "sae" / "statistics.safetensors")
    pack = ErasePack(folder)
    prompts = drawings.statistics_prompts(pack, 2)
    assert len({seed for pairs in prompts.values() for _, seed in pairs}) == 18
    raw = []  # the same from single images, by a plain hook on the conditional half
    for text, seed in prompts["cat"]:
        seen = []
        block = pack.pipeline().unet.up_blocks[0].attentions[1]
        handle = block.register_forward_hook(lambda m, i, output, seen=seen: seen.append(output[0][-1]))
        import torch

        pack.pipeline()(text, num_inference_steps=4, guidance_scale=4, generator=torch.Generator().manual_seed(seed))
        handle.remove()
        raw.append(torch.stack([pack.sae("random").encode(x.flatten(1).T).mean(0) for x in seen]))
    torch.testing.assert_close(got.means[got.place("cat")], torch.stack(raw).mean(0), atol=2e-3, rtol=0)


def test_several_saes_share_one_drawing(folder) -> None:
    pack = ErasePack(folder)
    prompts = {"dog": [("An image of dog.", 1)], "cat": [("An image of cat.", 2)]}
    two = concepts.gather(
        pack.pipeline(), pack.manifest.hook_point, [pack.sae("random")] * 2, prompts, steps=2, guidance=1
    )
    assert two[0].means.equal(two[1].means) and two[0].names == ("dog", "cat") and two[0].means.abs().sum() > 0


def test_every_image_has_noise_of_its_own(erase_folder) -> None:
    pack = ErasePack(erase_folder)
    m = pack.manifest
    asked = [Asked(name, style, seed) for name in m.concepts for style in (None, *m.styles) for seed in range(4)]
    assert len({drawings.noise_seed(pack, item) for item in asked}) == len(asked)


def test_batches_that_memory_does_not_hold_are_halved(erase_folder, monkeypatch) -> None:
    pack, draw, sizes = ErasePack(erase_folder), diffusion.draw, []
    wanted = [Asked(name, None, seed) for name in pack.manifest.concepts for seed in (0, 1)]
    whole = drawings.draw(pack, wanted, 2, 2.0)

    def short_of_memory(pipeline, order, *rest, **named):
        sizes.append(len(order.seeds))
        if len(order.seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(pipeline, order, *rest, **named)

    monkeypatch.setattr(diffusion, "draw", short_of_memory)
    halved = drawings.draw(pack, wanted, 2, 2.0)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1] and len(halved) == 6
    for one, other in zip(whole, halved):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concept", "bird"], "known: dog, cat, sun"),
        (["--concept", "dog", "--factor", "0", "--multiplier", "1"], "not both"),
        (["--concept", "dog", "--steps", "0"], "1 to 1000"),
        (["--concept", "dog", "cat", "sun", "--factor", "0", "-1"], "2 factors for 3 concepts: give one for all"),
        (["--concept", "dog", "--sae", "none"], "known: random"),
        (["--concept", "dog", "--beta"], "needs a multiplier|give it a multiplier"),
    ],
)
def test_mistakes_are_one_line(run, erase_folder, tmp_path, options, said) -> None:
    found = run("erase", "image", "--pack", erase_folder, "--prompt", "x", "--out", tmp_path, *options)
    assert found.code == 2 and found.err.count("\n") == 1
    import re

    assert re.search(said, found.err)


def test_statistics_that_cannot_be_written_are_not_drawn(run, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(concepts, "gather", None)
    found = run("erase", "statistics", "--pack", folder, "--out", tmp_path)
    assert found.code == 2 and found.err.count("\n") == 1 and "is a folder" in found.err
    (tmp_path / "file").touch()
    found = run("erase", "statistics", "--pack", folder, "--out", tmp_path / "file" / "one.safetensors")
    assert found.code == 2 and found.err.count("\n") == 1 and str(tmp_path / "file") in found.err


def test_a_pack_without_statistics_says_how_to_make_them(run, folder, tmp_path) -> None:
    (folder / "sae" / "statistics.safetensors").unlink()
    call = ["erase", "image", "--pack", folder, "--prompt", "x", "--concept", "dog"]
    found = run(*call, "--out", tmp_path / "o")
    assert found.code == 2 and "erase statistics --pack doodles --sae random" in found.err


# ---------------------------------------------------------------- nothing without a word


def image_call(folder: Path, out: Path, *options: object) -> list:
    call = ["erase", "image", "--pack", folder, "--prompt", "a dog.", "--concept", "dog", "--out", out]
    return [*call, *options]


def test_what_is_not_read_of_a_long_prompt_is_told(run, erase_folder, tmp_path) -> None:
    found = run(*image_call(erase_folder, tmp_path / "a", "--prompt", " ".join(["x"] * 22 + ["y", "z"])))
    assert found.code == 0 and found.err.count("\n") == 1 and "'y z'" in found.err
    assert json.loads((tmp_path / "a" / "result.json").read_text())["left_out"] == "y z"
    found = run(*image_call(erase_folder, tmp_path / "b"))
    assert found.code == 0 and found.err == ""
    assert json.loads((tmp_path / "b" / "result.json").read_text())["left_out"] == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--factor", "1e30"], "beyond all finite numbers"),
        (["--multiplier=-1e38"], "beyond all finite numbers"),
        (["--factor", "1e30", "--fidelity", "reference"], "beyond all finite numbers"),
        (["--factor", "nan"], "finite number"),
        (["--factor", "inf"], "finite number"),
        (["--factor", "1e39"], "finite number"),
        (["--multiplier", "1e300"], "finite number"),
        (["--prompt", "a \udcff"], "no text"),
        (["--multiplier", "nan"], "finite number"),
        (["--percentile", "nan"], "percentile must be from 0 to 100"),
        (["--percentile", "101"], "percentile must be from 0 to 100"),
        (["--percentile", "100"], "nothing would be edited"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--guidance", "-1"], "--guidance -1"),
        (["--guidance", "1e38"], "beyond all finite numbers"),
        (["--start-step", "4"], "behind the last of 4 steps"),
        (["--start-step", "-1"], "must be 0 or later"),
        (["--seed", "-1"], "seed must be"),
        (["--seed", str(2**63)], "seed must be"),
    ],
)
def test_an_image_that_cannot_be_is_one_sentence_and_no_file(run, erase_folder, tmp_path, options, said) -> None:
    found = run(*image_call(erase_folder, tmp_path / "out", *options))
    assert found.code == 2 and found.err.count("\n") == 1 and said in found.err, found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--start-step", 4], "behind the last of 4 steps"),
        (["--percentile", 100], "nothing would be edited"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--seeds", -1], "--seeds -1"),
        (["--seeds", 2**62], "--seeds"),
        (["--factor", "1e30"], "beyond all finite numbers"),
    ],
)
def test_a_benchmark_that_would_erase_nothing_is_refused(run, erase_folder, tmp_path, options, said) -> None:
    call = ["erase", "benchmark", "--pack", erase_folder, "--concepts", "dog", "--objects", "dog", "--out", tmp_path]
    found = run(*call, "--styles", "ink", *options)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err and found.out == ""
    assert not list(tmp_path.rglob("*.jpg"))


def test_one_concept_that_cannot_be_drawn_is_not_judged_and_hides_no_other(run, folder, tmp_path, caplog) -> None:
    settings = {"dog": {"percentile": 95, "factor": 1e30}, "cat": {"percentile": 95, "factor": -2.0}}
    (folder / "sae" / "settings.json").write_text(json.dumps(settings))
    call = ["erase", "benchmark", "--pack", folder, "--concepts", "dog", "cat", "--objects", "dog", "--styles", "ink"]
    found = run(*call, "--out", tmp_path / "out", "--json", "-")
    dog, cat = json.loads(found.out)["concepts"]
    assert found.code == 0 and "dog is not drawn: " in caplog.text
    assert dog["ua"] is None and len(dog["missing"]) == 2 and cat["missing"] == [] and cat["ira"] is not None


def test_what_is_named_twice_counts_once(run, erase_folder, tmp_path) -> None:
    call = ["erase", "benchmark", "--pack", erase_folder, "--concepts", "dog", "DOG", "--objects", "dog", "dog"]
    found = run(*call, "--styles", "ink", "ink", "--seeds", 1, 1, "--out", tmp_path, "--json", "-")
    (row,) = json.loads(found.out)["concepts"]
    assert row["unlearned"]["judged"] == 2
    found = run(*image_call(erase_folder, tmp_path / "a", "--concept", "dog", "Dog"))
    assert json.loads((tmp_path / "a" / "result.json").read_text())["concepts"] == ["dog"]


def test_no_statistics_of_no_images(run, folder) -> None:
    found = run("erase", "statistics", "--pack", folder, "--seeds", 0)
    assert found.code == 2 and "--seeds 0" in found.err and found.err.count("\n") == 1
