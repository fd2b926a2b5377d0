"""The endpoints /clamp and /clamp_features, by gradio_client: what the command line gives, and its mistakes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import clamp_packs
import pytest
from clamp_packs import PROMPT
from conftest import endpoints
from gradio_client import Client
from gradio_client.exceptions import AppError

from sod_core.clamp import results, settings
from sod_core.clamp.pack import ClampPack, shared_pack
from sod_core.ui.clamp import api


@pytest.fixture(scope="module")
def client(clamp_folder: Path, tmp_path_factory) -> Iterator[Client]:
    packs = tmp_path_factory.mktemp("served")
    shutil.copytree(clamp_folder, packs / clamp_packs.NAME)
    with endpoints(api.build, packs) as found:
        yield found


@pytest.fixture
def pack(client) -> ClampPack:
    return shared_pack(clamp_packs.NAME)


def test_clamp_gives_what_the_command_line_gives(client, pack):
    found = client.predict(pack=clamp_packs.NAME, prompt=PROMPT, tokens=5, api_name="/clamp")
    same = results.text(pack, PROMPT, [settings.choose(pack, settings.Asked())], 5)
    assert found == json.loads(json.dumps(same))
    edit = {"method": "both", "features": "3, 7", "value": "-20", "threshold": "0.1", "refusal": "9"}
    found = client.predict(
        pack=clamp_packs.NAME, prompt=PROMPT, tokens=2, **edit, refusal_value="-30", sae="topk-2", api_name="/clamp"
    )
    said = found["variants"][1]["settings"]
    assert (said["latents"], said["value"], said["threshold"], said["refusal_value"]) == ([3, 7], -20.0, 0.1, -30.0)
    assert (said["refusal"], said["sae"], said["fidelity"]) == (9, "topk-2", "exact")


def test_features_of_the_pack_s_texts_and_of_those_that_are_sent(client, pack):
    found = client.predict(pack=clamp_packs.NAME, rule="ratio", top=3, api_name="/clamp_features")
    texts = pack.corpus("forget"), pack.corpus("retain")
    assert found == results.features(pack, "jumprelu-1", "ratio", 3, *texts)
    sent = {"forget": "\n".join(texts[1]), "retain": "\n".join(texts[0])}
    other = client.predict(pack=clamp_packs.NAME, rule="ratio", top=3, **sent, api_name="/clamp_features")
    assert other["latents"] != found["latents"] and other["tokens"]["forget"] == found["tokens"]["retain"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pack": "../tiny"}, "unknown pack"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "moss " * 600}, "shorten it"),
        ({"tokens": 100_000}, "100000 tokens"),
        ({"value": "nan"}, "coefficient is nan"),
        ({"value": "much"}, "is no number"),
        ({"refusal": "x"}, "no whole number"),
        ({"features": "1,96"}, "latent 96 does not exist"),
        ({"method": "pray"}, "'pray' is unknown"),
        ({"fidelity": "much"}, "'much' is unknown"),
        ({"seed": -1, "features": "random"}, "seed"),
        ({"pack": "gemma-2-2b", "features": "1", "value": "1"}, "not on this computer"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(client, changes, said):
    with pytest.raises(AppError) as caught:
        client.predict(**{"pack": clamp_packs.NAME, "prompt": PROMPT, "tokens": 2} | changes, api_name="/clamp")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"forget": "a potion"}, "send both"),
        ({"forget": "a" * 60_000, "retain": "b"}, "60000 characters"),
        ({"rule": "luck"}, "unknown rule"),
        ({"top": 0}, "0 latents"),
        ({"sae": "no"}, "unknown SAE"),
        ({"pack": "gemma-2-2b"}, "has no forget texts"),
    ],
)
def test_features_that_cannot_be_are_told_in_a_sentence(client, changes, said):
    with pytest.raises(AppError, match=said):
        client.predict(**{"pack": clamp_packs.NAME, "rule": "ratio"} | changes, api_name="/clamp_features")
