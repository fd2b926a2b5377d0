"""A tiny pack in the published layout, and the models in it. Everything here is random but seeded."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are fastest on one thread
os.environ["SOD_DEVICE"] = "cpu"  # so that figures do not depend on the machine
os.environ.pop("SOD_PACKS", None)
# No test speaks TLS, but every HTTP client first reads the certificates: one, in place of all the world's.
os.environ["SSL_CERT_FILE"] = os.path.join(os.path.dirname(__file__), "certificate.pem")

import asyncio  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import socket  # noqa: E402
import string  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import urllib.request  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager, suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, NamedTuple  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from browser import WANTED, find_browser  # noqa: E402
from forks import Fork, Forks  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from sod_core.__main__ import main  # noqa: E402
from sod_core.machine import torchvision_guard  # noqa: E402
from sod_core.models import (
    diffusion,  # noqa: E402
    vit_weights,  # noqa: E402
)
from sod_core.models import vit as vits  # noqa: E402
from sod_core.restore.pack import Pack  # noqa: E402
from sod_core.sparse.topk import TokenStats, TopKSAE  # noqa: E402

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from playwright.sync_api import Browser, BrowserContext, Error, Page

ROOT = Path(__file__).parents[1]
TRIES = 2
"""How often a test in the browser is tried again: its clock is also that of whatever else the machine does."""
SHAPE = vits.ViTShape(image_size=32, patch=8, dim=32, depth=4, heads=2, classes=3)
CLASSES = ("apple", "pear", "plum")
LAYERS = [1, 2]
K, WIDTH = 4, 64
EXPERTS = {0: [3, 17, 40, 41, 8], 1: [5, 6, 60, 12, 9], 2: [1, 2, 33, 50, 63]}
UNLEARNED = {"random_labels-apple": ("Random labels", 0), "retrain-pear": ("Retrained", 1)}


def random_vit(seed: int, shape: vits.ViTShape = SHAPE) -> nn.Module:
    """A ViT whose every weight is random and large enough that logits differ clearly from image to image."""
    vit = vits.new(shape)
    generator = torch.Generator().manual_seed(seed)
    for name, value in vit.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        is_scale = "norm" in name and name.endswith("weight")
        value.data = 1 + 0.1 * noise if is_scale else 0.2 * noise
    return vit.requires_grad_(False).eval()


def random_stats(seed: int, dim: int = SHAPE.dim) -> TokenStats:
    """CLS and patches by clearly different means and deviations."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, dim, generator=generator)
    stds = 0.5 + torch.rand(2, dim, generator=generator)
    return TokenStats(patch_mean=means[0], patch_std=stds[0], cls_mean=means[1], cls_std=2 * stds[1])


def random_sae(seed: int, stats: TokenStats | None = None) -> TopKSAE:
    """An SAE whose every weight and bias is random."""
    sae = TopKSAE(SHAPE.dim, WIDTH, K, stats)
    generator = torch.Generator().manual_seed(seed)
    for value in sae.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return sae.requires_grad_(False).eval()


def random_images(seed: int, count: int) -> Tensor:
    """[count, 3, 32, 32], as the ViT takes them."""
    return torch.randn(count, 3, SHAPE.image_size, SHAPE.image_size, generator=torch.Generator().manual_seed(seed))


def transformers_4_names(vit: nn.Module) -> dict[str, Tensor]:
    """A timm ViT's weights as transformers 4 names them, written out by hand."""
    ours = vit.state_dict()
    theirs = {
        "vit.embeddings.cls_token": ours["cls_token"],
        "vit.embeddings.position_embeddings": ours["pos_embed"],
        "vit.embeddings.patch_embeddings.projection.weight": ours["patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": ours["patch_embed.proj.bias"],
        "vit.layernorm.weight": ours["norm.weight"],
        "vit.layernorm.bias": ours["norm.bias"],
        "classifier.weight": ours["head.weight"],
        "classifier.bias": ours["head.bias"],
    }
    dim = ours["cls_token"].shape[-1]
    for i in range(len(vit.blocks)):
        for kind in ("weight", "bias"):
            there, here = f"vit.encoder.layer.{i}", f"blocks.{i}"
            qkv = ours[f"{here}.attn.qkv.{kind}"]
            theirs[f"{there}.attention.attention.query.{kind}"] = qkv[:dim]
            theirs[f"{there}.attention.attention.key.{kind}"] = qkv[dim : 2 * dim]
            theirs[f"{there}.attention.attention.value.{kind}"] = qkv[2 * dim :]
            theirs[f"{there}.attention.output.dense.{kind}"] = ours[f"{here}.attn.proj.{kind}"]
            theirs[f"{there}.intermediate.dense.{kind}"] = ours[f"{here}.mlp.fc1.{kind}"]
            theirs[f"{there}.output.dense.{kind}"] = ours[f"{here}.mlp.fc2.{kind}"]
            theirs[f"{there}.layernorm_before.{kind}"] = ours[f"{here}.norm1.{kind}"]
            theirs[f"{there}.layernorm_after.{kind}"] = ours[f"{here}.norm2.{kind}"]
    return theirs


def manifest() -> dict[str, Any]:
    """The tiny pack's pack.json."""
    return {
        "format": 1,
        "name": "fruit",
        "title": "Fruit, a tiny ViT",
        "classes": list(CLASSES),
        "image": {"size": 32, "resize": 36, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
        "vit": {"patch": SHAPE.patch, "dim": SHAPE.dim, "depth": SHAPE.depth, "heads": SHAPE.heads},
        "layers": LAYERS,
        "k": K,
        "files": {
            "original": "vit_fruit_original.pth",
            "sae": "sae_layer{layer}_k{k}.pt",
            "stats": "activations_layer{layer}_stats.npy",
            "experts": "expert_features_layer{layer}_k{k}.pt",
        },
        "examples": "examples",
        "unlearned": [
            {"id": id, "method": method, "target_class": target, "file": f"unlearned/{id}.pth", "forget_accuracy": 0.02}
            for id, (method, target) in UNLEARNED.items()
        ],
    }


def write_manifest(folder: Path, **changes: Any) -> None:
    """pack.json with some keys changed; None removes a key."""
    data = {key: value for key, value in (manifest() | changes).items() if value is not None}
    (folder / "pack.json").write_text(json.dumps(data), encoding="utf-8")


def sae_state(sae: TopKSAE) -> dict[str, Tensor]:
    """An SAE's four tensors under the published names."""
    return {
        "pre_bias": sae.pre_bias.data,
        "latent_bias": sae.latent_bias.data,
        "encoder.weight": sae.encoder.weight.data,
        "decoder.weight": sae.decoder.weight.data,
    }


def _write_pack(folder: Path) -> None:
    write_manifest(folder)
    (folder / "unlearned").mkdir()
    torch.save(vit_weights.to_published(random_vit(0), torch.float32), folder / "vit_fruit_original.pth")
    for seed, id in enumerate(UNLEARNED, start=1):
        torch.save(transformers_4_names(random_vit(seed)), folder / "unlearned" / f"{id}.pth")
    _write_examples(folder)
    for layer in LAYERS:
        hidden = Pack(folder).example_hidden(layer)
        parts = {"patch": hidden[:, 1:].flatten(0, 1), "cls": hidden[:, 0]}
        stats = {f"{kind}_mean": part.mean(0).numpy() for kind, part in parts.items()}
        stats |= {f"{kind}_std": part.std(0).numpy() for kind, part in parts.items()}
        np.save(folder / f"activations_layer{layer}_stats.npy", stats, allow_pickle=True)
        torch.save(sae_state(random_sae(10 + layer)) | {"k": K}, folder / f"sae_layer{layer}_k{K}.pt")
        details = {
            c: [{"feature_id": j, "precision": 0.5, "recall": 0.5, "f1": 0.5} for j in EXPERTS[c]] for c in EXPERTS
        }
        torch.save({"class_experts_details": details}, folder / f"expert_features_layer{layer}_k{K}.pt")


def _write_examples(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "examples" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            pixels[..., label] = 255
            Image.fromarray(pixels).save(folder / "examples" / name / f"{number}.png")


@pytest.fixture(scope="session")
def pack_folder(tmp_path_factory) -> Path:
    """The tiny pack's folder, shared: tests that change a file take `spoilt_pack`."""
    folder = tmp_path_factory.mktemp("packs") / "fruit"
    folder.mkdir()
    _write_pack(folder)
    return folder


@pytest.fixture(scope="session")
def pack(pack_folder: Path) -> Pack:
    return Pack(pack_folder)


@pytest.fixture
def spoilt_pack(pack_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pack that a test may damage."""
    return Path(shutil.copytree(pack_folder, tmp_path / "fruit"))


class Models(NamedTuple):
    original: nn.Module
    unlearned: nn.Module
    saes: dict[int, TopKSAE]
    images: Tensor
    """[2, 3, 32, 32]"""

    @property
    def sae_at(self) -> Callable[[int], TopKSAE]:
        return self.saes.__getitem__


@pytest.fixture(scope="session", params=["normalised", "raw"])
def models(request) -> Models:
    """Two ViTs with SAEs at LAYERS, once with normalised input and once without."""
    normalised = request.param == "normalised"
    saes = {layer: random_sae(10 + layer, random_stats(layer) if normalised else None) for layer in LAYERS}
    return Models(random_vit(0), random_vit(1), saes, random_images(0, 2))


HOOK_POINT = "up_blocks.0.attentions.1"
"""Of the tiny pipelines: tokens [B, 4 * 4, 32]."""


def tiny_parts(**unet: Any) -> dict[str, Any]:
    """The parts of a tiny Stable Diffusion pipeline with random weights: 32 px images from 8x8 latents."""
    torchvision_guard.install()
    from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = string.ascii_lowercase + ".,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=32,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return {
        "tokenizer": CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=24),
        "text_encoder": CLIPTextModel(text),
        "unet": UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": 32,
                "attention_head_dim": 8,
                **unet,
            }
        ),
        "vae": AutoencoderTiny(
            encoder_block_out_channels=(16, 16, 16),
            decoder_block_out_channels=(16, 16, 16),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        ),
        "scheduler": DDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
        ),
    }


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion pipeline as a folder, as published ones are."""
    parts = tiny_parts()
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("diffusion") / "tiny"
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **none).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Path) -> StableDiffusionPipeline:
    return diffusion.load(tiny_folder)


@pytest.fixture(scope="session")
def erase_folder(tiny_folder: Path, tmp_path_factory) -> Path:
    """A diffusion pack of three objects and two styles around the tiny pipeline; SAE and judges have random weights."""
    from safetensors.torch import save_file

    from sod_core.erase import edit, judges
    from sod_core.erase import pack as erase_pack

    folder = tmp_path_factory.mktemp("erase-packs") / "doodles"
    shutil.copytree(tiny_folder, folder / "pipeline")
    concepts, styles = ["dog", "cat", "sun"], ["ink", "Van_Gogh"]
    torch.manual_seed(0)
    sae = {"encoder.weight": torch.randn(48, 32) * 0.3, "encoder.bias": torch.zeros(48), "b_dec": torch.zeros(32)}
    (folder / "sae").mkdir()
    save_file(sae | {"W_dec": torch.randn(48, 32) * 2}, folder / "sae" / "sae.safetensors")
    (folder / "sae" / "cfg.json").write_text(json.dumps({"d_in": 32, "k": 12, "num_latents": 48}))
    latents = {name: torch.zeros(2, 4, 48) for name in concepts}
    for place, name in enumerate(concepts):
        latents[name][..., 2 * place : 2 * place + 2] = 0.05
    erase_pack.write_statistics(edit.statistics(latents), folder / "sae" / "statistics.safetensors")
    settings = {name: {"percentile": 95, "factor": -20.0 - place} for place, name in enumerate(concepts)}
    (folder / "sae" / "settings.json").write_text(json.dumps(settings))
    described = {}
    for what, names in (("object", concepts), ("style", styles)):
        spec = judges.JudgeSpec("test_resnet", tuple(names), 32)
        save_file(judges.new(spec).state_dict(), folder / f"{what}.safetensors")
        described[what] = {"architecture": spec.architecture, "size": spec.size, "file": f"{what}.safetensors"}
    pack = {"format": 1, "kind": "erase", "name": "doodles", "title": "Doodles", "concepts": concepts, "styles": styles}
    pack |= {"prompts": {"object": "An image of {object}.", "styled": "An image of {object} in {style} style."}}
    pack |= {"pipeline": "pipeline", "hook_point": HOOK_POINT, "sampling": {"steps": 4, "guidance": 4.0}}
    files = {"statistics": "sae/statistics.safetensors", "settings": "sae/settings.json"}
    pack |= {"saes": [{"id": "random", "title": "Random weights", "folder": "sae", **files}], "judges": described}
    (folder / "pack.json").write_text(json.dumps(pack))
    return folder


@pytest.fixture(scope="session")
def clamp_folder(tmp_path_factory) -> Path:
    """The tiny clamp pack's folder, shared: tests that change a file copy it."""
    import clamp_packs

    return clamp_packs.write(tmp_path_factory.mktemp("clamp-packs") / clamp_packs.NAME)


class Outcome(NamedTuple):
    """Of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys) -> Callable[..., Outcome]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Outcome:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse
            code = exit.code
        return Outcome(code, *capsys.readouterr())

    return run


class Server(NamedTuple):
    url: str
    packs: Path
    """The folder of its packs: `fruit`, which it opens on; `broken`, whose pack.json is cut; `cut`, with a cut SAE."""
    log: Path
    """What it wrote to standard output and standard error."""


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts servers quickly, see `serving`."""
    found = Forks()
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(pack_folder: Path, forks: Forks, tmp_path_factory) -> Iterator[Server]:
    """app.py as a process of its own."""
    folder = tmp_path_factory.mktemp("server")
    packs = folder / "packs"
    shutil.copytree(pack_folder, packs / "fruit")
    shutil.copytree(pack_folder, packs / "cut")
    cut_short(packs / "cut" / f"sae_layer1_k{K}.pt")
    write_manifest(packs / "cut", title="Cut")
    (packs / "broken").mkdir()
    (packs / "broken" / "pack.json").write_text('{"format": 1,')
    with serving(packs, folder, forks=forks) as found:
        yield found


def free_port() -> int:
    """The last one again if it is free: what a browser has read from there need not be read anew.

    Below those that systems lend to connections, so that none takes it before the server has started."""
    for port in [*_ports, *random.SystemRandom().sample(range(20_000, 32_000), 100)]:
        with socket.socket() as free, suppress(OSError):
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
            free.bind(("127.0.0.1", port))
            _ports[:] = [port]
            return port
    pytest.fail("no port is free")


@contextmanager
def serving(
    packs: Path, folder: Path, *command: str, forks: Forks | None = None, **environment: str
) -> Iterator[Server]:
    """app.py (or another command of Python's) as a process of its own that opens on the pack `fruit` of `packs`.

    Its log and uploads lie in `folder`. With `forks` it starts six seconds sooner, if it needs no imports of its own.
    """
    port = free_port()
    variables = os.environ | {
        "SOD_PACKS": str(packs),
        "SOD_DEFAULT_PACK": "fruit",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        **environment,
    }
    found = Server(f"http://127.0.0.1:{port}", packs, folder / "log.txt")
    line = list(command or ["app.py"])
    with found.log.open("w") as log:
        if forks is None:
            process = subprocess.Popen([sys.executable, *line], cwd=ROOT, env=variables, stdout=log, stderr=log)
        else:
            process = forks.start(line, variables, found.log, found.log)
    _running.append(found)
    try:
        _wait_until_it_answers(found, process)
        yield found
    finally:
        _running.remove(found)
        process.kill()
        process.wait()


@contextmanager
def endpoints(build: Callable[[], None], packs: Path) -> Iterator[Any]:
    """A gradio_client's Client of the endpoints that `build` adds, on the packs of a folder."""
    import gradio as gr
    from gradio_client import Client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOD_PACKS", str(packs))
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        with gr.Blocks(analytics_enabled=False) as app:
            build()
        _, url, _ = app.queue().launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        try:
            yield Client(url, verbose=False)
        finally:
            app.close(verbose=False)


_running: list[Server] = []
_ports: list[int] = []
BROWSING = (
    ("test_page.py", "test_visitors.py", "test_scoreboard.py", "test_everybody.py"),
    ("test_clamp_tab.py", "test_erase_tab.py", "test_mask_tab.py", "test_atlas_tab.py"),
)
"""The files with a browser, for two processes: what the browser of one has read for a file it need not read again."""
LONGEST = (*(file for pair in zip(*BROWSING) for file in pair), "test_evaluate.py")
BLANK = "about:blank"
SIZE = {"width": 1400, "height": 1000}
"""Of a page, in pixels, if a test wants no other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes end at the same time; a browser may be late, and
    gradio's client drops what it waits for when the stream of its answers breaks off."""
    for item in items:
        what = {} if "window" in getattr(item, "fixturenames", ()) else {"only_rerun": "CancelledError"}
        item.add_marker(pytest.mark.flaky(reruns=TRIES, **what))
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Millions of objects are imported by now; the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As --dist loadfile, but that the files of each part of BROWSING are one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            name = file.rpartition("/")[2]
            return next((f"BROWSING {number}" for number, part in enumerate(BROWSING) if name in part), file)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A failed test tells what the servers wrote to their logs: a page shows one sentence of an error at most."""
    report = yield
    if report.failed:
        for server in _running:
            report.sections.append((f"end of {server.log}", server.log.read_text()[-3000:]))
    return report


class _Browsing(NamedTuple):
    browser: Browser
    window: BrowserContext
    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="session")
def browsing() -> Iterator[_Browsing]:
    """A browser for `browser` and `window`."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        pytest.fail(WANTED)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        loop = asyncio.get_running_loop()
        found = _Browsing(browser, browser.new_context(viewport=SIZE), loop)
        asyncio._set_running_loop(None)
        yield found
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture(scope="module")
def browser(browsing: _Browsing) -> Iterator[Browser]:
    """Chrome or one of its kin, without a window.

    One for all modules; but only while a module has it does this thread have Playwright's event loop, beside which
    asyncio runs no other.
    """
    asyncio._set_running_loop(browsing.loop)
    yield browsing.browser
    asyncio._set_running_loop(None)


@pytest.fixture(scope="module")
def window(browser: Browser, browsing: _Browsing) -> BrowserContext:
    """What most tests have their page in, see `tab`."""
    return browsing.window


@contextmanager
def tab(window: BrowserContext, patience: float, wrong: list[str]) -> Iterator[Page]:
    """A tab of the window that shows nothing yet. `patience` in milliseconds; errors of its scripts go to `wrong`.

    A tab that another test is done with, if there is one: the scripts it has read are there already, which makes a
    page three times as quick. Whatever is loaded in it is a visitor of its own all the same.
    """
    page = next((page for page in window.pages if page.url == BLANK), None) or window.new_page()
    page.set_default_timeout(patience)

    def note(error: Error) -> None:
        wrong.append(f"page: {error}")

    page.on("pageerror", note)
    try:
        yield page
    finally:
        page.remove_listener("pageerror", note)
        page.goto(BLANK)
        page.set_viewport_size(SIZE)


def _wait_until_it_answers(server: Server, process: subprocess.Popen | Fork) -> None:
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(server.url, timeout=10).read()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"app.py did not start (exit status {process.poll()}):\n{server.log.read_text()}")


def cut_short(path: Path) -> None:
    """Leaves the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def enter(field: Any, value: str, key: str = "Enter") -> None:
    """Types a value into a field that may still be being set: Gradio fills what it shows for the first time late."""
    for _ in range(20):
        field.fill(value)
        field.press(key)
        for _ in range(5):
            field.page.wait_for_timeout(100)
            if field.input_value() != value:
                break
        else:
            return
    raise AssertionError(f"the field does not keep {value!r}")
