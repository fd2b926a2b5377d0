"""A real server, driven by gradio_client: the named endpoints, their mistakes, and several clients at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import CLASSES, EXPERTS, LAYERS, UNLEARNED, Server
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from test_images import encoded, png_header

from sod_core.data import images
from sod_core.packs.find import ASSETS
from sod_core.restore import actions
from sod_core.worlds import canvas

WORKING = {
    "pack": "fruit",
    "unlearned": "random_labels-apple",
    "target_class": "apple",
    "layer": 1,
    "alphas": "0, 1, 2.5",
    "mode": "inject",
    "tokens": "all",
    "chosen": "experts",
    "seed": 0,
}


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


@pytest.fixture
def apple(pack_folder: Path) -> Path:
    return pack_folder / "examples" / "apple" / "0.png"


def restore(client: Client, image: Path, **changes: Any) -> dict[str, Any]:
    return client.predict(handle_file(image), **WORKING | changes, api_name="/restore")


def refusal(client: Client, image: Path, **changes: Any) -> str:
    """The message of a call that fails: one sentence, and the server still answers after it."""
    with pytest.raises(AppError) as caught:
        restore(client, image, **changes)
    assert client.predict(api_name="/packs")
    return one_sentence(str(caught.value))


def one_sentence(message: str) -> str:
    assert message and "\n" not in message and len(message) < 300
    assert "Traceback" not in message and "NoneType" not in message
    return message


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, logits to 1e-5."""
    models = ("original", "unlearned", "restored")
    assert {k: v for k, v in found.items() if k not in models} == {k: v for k, v in expected.items() if k not in models}
    for which in ("original", "unlearned"):
        assert found[which]["logits"] == pytest.approx(expected[which]["logits"], abs=1e-5)
    assert [row["alpha"] for row in found["restored"]] == [row["alpha"] for row in expected["restored"]]
    for one, other in zip(found["restored"], expected["restored"], strict=True):
        assert one["logits"] == pytest.approx(other["logits"], abs=1e-5)


# ---------------------------------------------------------------- what is offered


def types(endpoint: dict[str, Any]) -> dict[str, str]:
    return {p["parameter_name"]: p["python_type"]["type"] for p in endpoint["parameters"]}


def test_the_endpoints_have_names_and_types(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    erase = {"/erase", "/erase_scoreboard"}
    assert (
        set(endpoints)
        == {"/restore", "/packs", "/patch_latents", "/atlas", "/clamp", "/clamp_features", "/mask"} | erase
    )
    restore = types(endpoints["/restore"])
    packs = restore.pop("pack")
    assert packs.startswith("Literal['canvas', ") and "'fruit'" in packs
    assert restore == {
        "image": "filepath",
        "unlearned": "str",
        "target_class": "str",
        "layer": "int",
        "alphas": "str",
        "mode": "Literal['inject', 'amplify', 'direct_injection', 'add', 'cls_copy', 'state_copy']",
        "tokens": "Literal['all', 'patches', 'cls']",
        "chosen": "str",
        "seed": "int",
    }
    assert types(endpoints["/packs"]) == {}
    assert types(endpoints["/patch_latents"]) == {"image": "filepath", "pack": packs, "layer": "int", "patch": "int"}
    for name, endpoint in endpoints.items():
        assert endpoint["description"] and all(p["label"] for p in endpoint["parameters"])
        returned = ["before", "after", "result"] if name == "/erase" else ["result"]
        assert [value["label"] for value in endpoint["returns"]] == returned


def test_packs_lists_what_works_and_what_does_not(client):
    found = {entry["name"]: entry for entry in client.predict(api_name="/packs")}
    assert {"canvas", "fruit", "cut", "broken"} <= set(found)
    fruit = found["fruit"]
    assert fruit["title"] == "Fruit, a tiny ViT" and "error" not in fruit
    assert (fruit["classes"], fruit["layers"]) == (list(CLASSES), LAYERS)
    assert {entry["id"]: (entry["method"], entry["target_class"]) for entry in fruit["unlearned"]} == {
        id: (method, CLASSES[target]) for id, (method, target) in UNLEARNED.items()
    }
    assert set(found["broken"]) == {"name", "error"}
    assert "pack.json cannot be read" in one_sentence(found["broken"]["error"])


# ---------------------------------------------------------------- /restore


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer": 2, "alphas": "[0.5]", "target_class": "1", "unlearned": "retrain-pear"},
        {"mode": "amplify", "tokens": "patches"},
        {"mode": "direct_injection", "tokens": "cls"},
        {"mode": "add", "chosen": "matched", "seed": 3},
        {"mode": "cls_copy", "chosen": "random"},
        {"chosen": "5, 1, 9", "alphas": "-1,10"},
        {"chosen": "all"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "defaults",
)
def test_restore_is_the_command_lines(client, pack, apple, changes):
    found = restore(client, apple, **changes)
    settings = WORKING | changes
    alphas = json.loads(f"[{settings.pop('alphas').strip('[]')}]")
    settings.pop("pack")
    image = images.read(apple)
    assert_same(found, actions.restore_image(pack, settings.pop("unlearned"), image, alphas=alphas, **settings))


@pytest.mark.parametrize(("mode", "alpha"), [("inject", 0), ("amplify", 1), ("cls_copy", 0)])
@pytest.mark.parametrize("tokens", ["all", "patches", "cls"])
def test_an_edit_of_nothing_is_the_unlearned_model(client, apple, mode, alpha, tokens):
    found = restore(client, apple, mode=mode, tokens=tokens, alphas=f"{alpha}, 5", chosen="all")
    nothing, something = (row["logits"] for row in found["restored"])
    assert nothing == pytest.approx(found["unlearned"]["logits"], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(something, nothing)) > 1e-3


def test_101_alphas_are_taken(client, apple):
    found = restore(client, apple, alphas=", ".join(str(i / 10) for i in range(101)))
    assert [row["alpha"] for row in found["restored"]] == [i / 10 for i in range(101)]


def test_other_image_formats(client, apple, tmp_path):
    expected = restore(client, apple)
    Image.open(apple).save(tmp_path / "apple.webp", lossless=True)
    assert_same(restore(client, tmp_path / "apple.webp"), expected)
    Image.open(apple).convert("RGBA").save(tmp_path / "apple.png")
    assert_same(restore(client, tmp_path / "apple.png"), expected)
    Image.open(apple).save(tmp_path / "apple.jpg")
    assert restore(client, tmp_path / "apple.jpg")["restored"][0]["alpha"] == 0
    Image.open(apple).save(tmp_path / "apple.avif", quality=100, subsampling="4:4:4")
    found = restore(client, tmp_path / "apple.avif")
    assert found["original"]["logits"] == pytest.approx(expected["original"]["logits"], abs=0.5)


# ---------------------------------------------------------------- /patch_latents


def test_patch_latents(client, pack, apple):
    session = pack.session("retrain-pear")
    session.set_image(pack.preprocess(images.read(apple))[None])
    for patch in (0, 15):
        values = session.latents("original", 1)[0, 1 + patch]
        found = client.predict(handle_file(apple), pack="fruit", layer=1, patch=patch, api_name="/patch_latents")
        assert {row["latent"] for row in found} == set((values > 0).nonzero().flatten().tolist())
        assert [row["value"] for row in found] == sorted((row["value"] for row in found), reverse=True)
        for row in found:
            assert row["value"] == pytest.approx(values[row["latent"]].item(), abs=1e-5)
            assert row["expert_for"] == [CLASSES[c] for c in EXPERTS if row["latent"] in EXPERTS[c]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"patch": 16}, "0 to 15"), ({"patch": -1}, "0 to 15"), ({"layer": 9}, "layer 9"), ({"pack": "moss"}, "'moss'")],
)
def test_patch_latents_refuses(client, apple, changes, says):
    settings = {"pack": "fruit", "layer": 1, "patch": 0} | changes
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(apple), **settings, api_name="/patch_latents")
    assert says in one_sentence(str(caught.value))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pack": "vegetables"}, "unknown pack 'vegetables'"),
        ({"pack": ""}, "unknown pack ''"),
        ({"unlearned": "salun-fig"}, "unknown unlearned model 'salun-fig'"),
        ({"target_class": "fig"}, "unknown class 'fig'"),
        ({"target_class": "3"}, "unknown class '3'"),
        ({"layer": 9}, "layer 9"),
        ({"layer": -1}, "layer -1"),
        ({"mode": "ablate"}, "unknown mode 'ablate'"),
        ({"tokens": "some"}, "unknown tokens 'some'"),
        ({"chosen": "best"}, "unknown features 'best'"),
        ({"chosen": "1, 64"}, "latent 64"),
        ({"alphas": "much"}, "alphas 'much'"),
        ({"alphas": "1; 2"}, "alphas '1; 2'"),
        ({"alphas": "1, [2"}, "alphas"),
        ({"alphas": ""}, "0 alphas"),
        ({"alphas": "NaN"}, "alpha must be a finite number"),
        ({"alphas": "1, Infinity"}, "alpha must be a finite number"),
        ({"alphas": "1e39"}, "alpha is too large"),
        ({"alphas": "1" + "0" * 400}, "are no list of numbers"),
        ({"alphas": "1," + "[" * 100_000}, "are no list of numbers"),
        ({"alphas": ",".join(["1"] * 102)}, "102 alphas"),
    ],
    ids=lambda value: "-".join(f"{k} {v}"[:20] for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_sentence(client, apple, changes, says):
    assert says in refusal(client, apple, **changes)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"plain words, no image", "not an image"),
        (b"", "not an image"),
        (png_header(30_000, 30_000), "50 million pixels"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:1000], "damaged or cut short"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1"),
    ],
    ids=["text", "empty", "huge", "truncated", "one pixel"],
)
def test_a_file_that_cannot_be_used_is_one_sentence(client, apple, tmp_path, data, says):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    assert says in refusal(client, path)
    assert restore(client, apple)["target_class"] == 0


@pytest.mark.parametrize("missing", ["image", *WORKING])
def test_what_is_not_sent_is_named(client, apple, missing):
    settings = {"image": handle_file(apple), **WORKING, missing: None}
    with pytest.raises(AppError, match=f"no {missing} was sent"):
        client.predict(*settings.values(), api_name="/restore")


def test_a_folder_of_the_server_is_no_pack(client, server, apple, tmp_path):
    for pack in (str(server.packs / "fruit"), f"{server.packs}/./fruit", "../fruit", "assets/canvas"):
        assert "unknown pack" in refusal(client, apple, pack=pack)


def called(server: Server, endpoint: str, data: list[Any]) -> str:
    """The server's answer to a call made by hand, as event text."""
    with httpx.Client(base_url=f"{server.url}/gradio_api/call", timeout=60) as http:
        answer = http.post(f"/{endpoint}", json={"data": data})
        return http.get(f"/{endpoint}/{answer.json()['event_id']}").text


def test_a_file_of_the_server_is_no_image(server, pack_folder):
    """Only what the client has sent itself is opened, and no address is fetched for it."""
    settings = list(WORKING.values())
    inside = server.packs / "fruit" / "examples" / "apple" / "0.png"
    for path in (str(inside), "/etc/hostname", f"file://{inside}", f"{server.url}/gradio_api/info"):
        found = called(server, "restore", [{"path": path, "meta": {"_type": "gradio.FileData"}}, *settings])
        assert found.startswith("event: error") and "logits" not in found


# ---------------------------------------------------------------- damaged packs beside a good one


def test_a_broken_pack_says_so_and_the_good_one_works(client, pack, apple):
    assert "pack.json cannot be read" in refusal(client, apple, pack="broken")
    assert "sae_layer1_k4.pt" in refusal(client, apple, pack="cut")
    assert_same(restore(client, apple, pack="cut", layer=2), restore(client, apple, layer=2))
    image = images.read(apple)
    expected = actions.restore_image(
        pack, "random_labels-apple", image, target_class=0, layer=1, alphas=[0, 1, 2.5], mode="inject"
    )
    assert_same(restore(client, apple), expected)


def test_the_embedded_pack_restores(client):
    """SalUn's boat comes back with its experts, and not with as many random features."""
    [image] = (ASSETS / "canvas" / "examples" / "boat").glob("*plain*")
    settings = {"pack": "canvas", "unlearned": "salun-boat", "target_class": "boat", "layer": 9, "alphas": "0, 5"}
    boat = canvas.OBJECTS.index("boat")

    def named_boat(**changes: Any) -> list[bool]:
        found = restore(client, image, **settings, **changes)
        return [int(np.argmax(one["logits"])) == boat for one in (found["original"], *found["restored"])]

    assert named_boat() == [True, False, True]
    assert named_boat(chosen="random") == named_boat(chosen="matched") == [True, False, False]


# ---------------------------------------------------------------- several clients


def test_clients_at_once_get_what_they_get_alone(server, pack_folder):
    jobs = [
        (pack_folder / "examples" / "apple" / "0.png", {}),
        (
            pack_folder / "examples" / "plum" / "2.png",
            {"unlearned": "retrain-pear", "target_class": "pear", "layer": 2},
        ),
        (pack_folder / "examples" / "pear" / "1.png", {"mode": "amplify", "alphas": "1, 3"}),
    ]
    clients = [Client(server.url, verbose=False) for _ in jobs]
    alone = [restore(client, image, **changes) for client, (image, changes) in zip(clients, jobs)]
    assert len({str(found["restored"]) for found in alone}) == len(jobs)

    def repeat(number: int) -> list[dict[str, Any]]:
        image, changes = jobs[number]
        return [restore(clients[number], image, **changes) for _ in range(5)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(repeat, range(len(jobs))))
    for expected, found in zip(alone, together):
        for one in found:
            assert_same(one, expected)
