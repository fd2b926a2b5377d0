"""The endpoints /erase and /erase_scoreboard, and what the API page says of choices, by gradio_client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from conftest import endpoints
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from sod_core.clamp.edit import METHODS
from sod_core.erase import image
from sod_core.erase.pack import ERASED, ErasePack, shared_erase_pack
from sod_core.restore.edit import MODES, TOKENS
from sod_core.ui import api as every
from sod_core.ui.erase import api

PROMPT = "An image of dog in ink style."


@pytest.fixture(scope="module")
def client(erase_folder: Path, tmp_path_factory) -> Iterator[Client]:
    packs = tmp_path_factory.mktemp("served")
    shutil.copytree(erase_folder, packs / "doodles")
    with endpoints(api.build, packs) as found:
        yield found


@pytest.fixture
def pack(client) -> ErasePack:
    return shared_erase_pack("doodles")


def same(path: str, picture: Image.Image) -> bool:
    with Image.open(path) as found:
        return np.array_equal(np.asarray(found.convert("RGB")), np.asarray(picture))


def test_erase_gives_what_the_command_line_gives(client, pack):
    before, after, found = client.predict(pack="doodles", prompt=PROMPT, concepts="dog", seed=3, api_name="/erase")
    how = image.settings(pack, "random", ("dog",), image.Scale(), 4)
    result, drawn = image.draw(pack, "random", PROMPT, how, 4, 4.0, 3)
    assert found == json.loads(json.dumps(result)) and found["settings"]["factor"] == -20.0
    assert same(before, drawn.before[0]) and same(after, drawn.after[0]) and not same(after, drawn.before[0])


def test_everything_that_can_be_said_is_heard(client):
    asked = {"concepts": "cat, dog,cat", "sae": "random", "fidelity": "reference", "multiplier": "-3", "beta": True}
    asked |= {"percentile": "90", "start_step": 1, "steps": 3, "guidance": "2.5"}
    *_, found = client.predict(pack="doodles", prompt=f" {PROMPT} ", **asked, api_name="/erase")
    said = found["settings"]
    assert found["concepts"] == ["cat", "dog"] and (found["steps"], found["guidance"]) == (3, 2.5)
    assert (said["multiplier"], said["percentile"], said["start_step"]) == (-3.0, 90.0, 1)
    assert (said["fidelity"], said["beta"], said["factor"]) == ("reference", True, None)
    assert found["prompt"] == PROMPT and len(found["latent_by_step"]) == 3


def test_each_concept_has_its_own_factor(client):
    asked = {"pack": "doodles", "prompt": PROMPT, "concepts": "cat,dog"}
    *_, found = client.predict(**asked, factor="-3, 0.5", api_name="/erase")
    assert found["settings"]["factor"] == [-3.0, 0.5]
    *_, found = client.predict(**asked, api_name="/erase")
    assert found["settings"]["factor"] == [-21.0, -20.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pack": "../doodles"}, "unknown pack"),
        ({"prompt": "  "}, "has 0 characters"),
        ({"prompt": "dog " * 600}, "1 to 2000"),
        ({"concepts": ""}, "name a concept to erase; known: dog, cat, sun"),
        ({"concepts": "horse"}, "horse"),
        ({"sae": "none"}, "none"),
        ({"fidelity": "much"}, "'much'"),
        ({"factor": "much"}, "the factor 'much' is no number"),
        ({"factor": "nan"}, "must be a finite number"),
        ({"factor": "-1,-2"}, "2 factors for 1 concepts: give one for all, or one for each"),
        ({"factor": "-1,"}, "have an empty place"),
        ({"factor": "1", "multiplier": "1"}, "not both"),
        ({"percentile": "101"}, "from 0 to 100"),
        ({"percentile": "100"}, "nothing would be edited"),
        ({"start_step": 4}, "behind the last"),
        ({"steps": 101}, "steps 101: give 1 to 100"),
        ({"steps": -1}, "steps -1: give 1 to 100"),
        ({"guidance": "-1"}, "guidance -1.0"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"beta": True}, "beta"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(client, changes, said):
    with pytest.raises(AppError) as caught:
        client.predict(**{"pack": "doodles", "prompt": PROMPT, "concepts": "dog"} | changes, api_name="/erase")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_stored_figures(client, pack):
    with pytest.raises(AppError, match="stores no figures; `python -m sod_core erase benchmark --pack doodles`"):
        client.predict(pack="doodles", api_name="/erase_scoreboard")
    found = client.predict(pack="canvas-diffusion", api_name="/erase_scoreboard")
    stored = json.loads((shared_erase_pack("canvas-diffusion").manifest.folder / ERASED).read_text())
    assert found == stored and {row["fidelity"] for row in found["rows"]} == {"exact", "reference"}
    with pytest.raises(AppError, match="unknown pack"):
        client.predict(pack="/etc", api_name="/erase_scoreboard")


@pytest.mark.parametrize("content", ["[]", "{", '{"rows": 5}'])
def test_figures_that_are_damaged_are_a_sentence(erase_folder, tmp_path, content):
    folder = shutil.copytree(erase_folder, tmp_path / "doodles")
    (folder / "figures").mkdir()
    (folder / ERASED).write_text(content)
    with pytest.raises(ValueError, match=r"erased.json"):
        ErasePack(folder).erased()


def test_choices_are_literals_on_the_api_page():
    with gr.Blocks(analytics_enabled=False) as app:
        every.build("canvas")
    told = {
        name: {one["parameter_name"]: one["type"] for one in endpoint["parameters"]}
        for name, endpoint in app.get_api_info()["named_endpoints"].items()
    }
    assert {"/restore", "/packs", "/patch_latents", "/clamp", "/clamp_features", "/mask", "/erase"} < set(told)
    assert told["/restore"]["mode"]["enum"] == list(MODES) and told["/restore"]["tokens"]["enum"] == list(TOKENS)
    assert told["/clamp"]["method"]["enum"] == ["", *METHODS] and "almanac" in told["/clamp"]["pack"]["enum"]
    assert told["/clamp_features"]["rule"]["enum"] == ["paper", "farrell", "ratio"]
    assert told["/mask"]["method"]["enum"] == ["activations", "examples", "enrichment"]
    assert told["/erase"]["fidelity"]["enum"] == ["exact", "reference"]
    assert told["/erase_scoreboard"]["pack"]["enum"][0] == "canvas-diffusion"
