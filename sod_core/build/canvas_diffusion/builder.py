"""The embedded diffusion pack `canvas-diffusion`, stage by stage; a stage whose figures are on disk is not made again.

Stages: vae, judges, unet (and with it the pipeline and pack.json), drawn (how well it draws what it is asked), saes,
erased (UA, IRA and CRA of every SAE in both fidelities), earlier (SAEs at hook points before the one at which token
labels taught the UNet to keep objects apart, and what they erase: figures only), opening (the pair that a page opens
with).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...erase import benchmark, drawings, image, judges, stored, unlearncanvas
from ...erase.edit import FIDELITIES, Fidelity, Settings
from ...erase.manifest import KIND
from ...erase.pack import ErasePack
from ...machine import files
from ...worlds import canvas
from ...worlds import drawn as images
from ..canvas.builder import TEST, TRAIN
from ..erase_saes import erase_sae
from . import prompts, train_judges, train_unet, train_vae

STAGES = ("vae", "judges", "unet", "drawn", "saes", "erased", "earlier", "opening")
STEPS, GUIDANCE = 25, 4.0
RECONS = 12_000
"""Images that the judges also see after the autoencoder."""
DRAWN_SEEDS = tuple(range(10))
"""Ten images of each of the 60 prompts judge the pipeline."""
ERASED_SEEDS = (0,)
"""Images of every prompt, for every erased concept."""

EARLIER = ("up_blocks.0.attentions.0",)
"""Hook points that no token label taught: the one before the pack's own."""
TRIED = erase_sae.Search(factors=(0.0, -8.0), percentiles=(99.9,), steps=STEPS)
"""How concepts are erased there by either SAE, 24 images each: its two best latents set to zero, or turned round."""


def stages() -> tuple[str, ...]:
    """All stages in the order they need each other."""
    return STAGES


class Builder:
    """Where things are, and the images that the stages share."""

    def __init__(self, out: Path, work: Path, device: torch.device):
        self.out, self.work, self.device = out, work, device
        (out / "figures").mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    def run(self, only: list[str]) -> None:
        """Makes what is missing of the stages in `only` (all of them if empty)."""
        for stage in only or STAGES:
            path = self.out / "figures" / f"{stage}.json"
            if path.exists():
                print(f"{stage}: done before")
                continue
            print(f"{stage}: starting", flush=True)
            started = time.monotonic()
            figures = getattr(self, f"_{stage}")()
            figures.setdefault("seconds", time.monotonic() - started)
            files.write_json(figures, path)
            for file in self.out.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors makes files that only their owner may read

    # ------------------------------------------------------------ stages

    def _vae(self) -> dict:
        recipe = train_vae.Recipe()
        trained = train_vae.train(self._images("train", TRAIN), recipe, self.work / "vae.ckpt")
        trained.vae.half().save_pretrained(self.out / "pipeline" / "vae")
        error = train_vae.error(self._stored_vae(), self._images("test", TEST))
        return {"recipe": asdict(recipe), "mean_absolute_error": error, "seconds": trained.seconds}

    def _judges(self) -> dict:
        from safetensors.torch import save_file

        seen = train_judges.Seen(self._images("train", TRAIN), self._recons())
        test, recipe = self._images("test", TEST), train_judges.Recipe()
        redrawn = self._redrawn(test)
        figures: dict[str, Any] = {"recipe": asdict(recipe)}
        for what, spec in self._judge_specs().items():
            field = {"object": "labels", "style": "styles"}[what]
            labels = np.array(getattr(seen.images, field))
            trained = train_judges.train(seen, labels, spec, recipe, self.work / f"judge-{what}.ckpt")
            (self.out / "judges").mkdir(exist_ok=True)
            state = {name: _stored(value) for name, value in trained.model.state_dict().items()}
            save_file(state, self.out / "judges" / f"{what}.safetensors")
            judge = judges.load(self.out / "judges" / f"{what}.safetensors", spec)
            truth = np.array(getattr(test, field))
            figures[what] = {
                "accuracy": _accuracy(judge, test.pixels, truth),
                "accuracy_after_vae": _accuracy(judge, redrawn, truth),
                "seconds": trained.seconds,
            }
        return figures

    def _unet(self) -> dict:
        recipe, vae = train_unet.Recipe(), self._stored_vae()
        tokenizer = train_unet.new_tokenizer(prompts.all_forms(canvas.OBJECTS, canvas.STYLES))
        trained = train_unet.train(self._latents(vae), tokenizer, recipe, self.work / "unet.ckpt")
        self._save_pipeline(trained.unet, trained.text_encoder, tokenizer)
        parameters = sum(p.numel() for p in trained.unet.parameters())
        return {"recipe": asdict(recipe), "parameters": parameters, "seconds": trained.seconds}

    def _save_pipeline(self, unet: nn.Module, text_encoder: nn.Module, tokenizer) -> None:
        """The pipeline in half precision, as diffusers lays it out, and pack.json."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self._stored_vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=train_unet.new_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(torch.float16).save_pretrained(self.out / "pipeline", safe_serialization=True)
        self._write_manifest()

    def _drawn(self) -> dict:
        pack = ErasePack(self.out, self.device)
        wanted = unlearncanvas.asked(canvas.OBJECTS, canvas.STYLES, DRAWN_SEEDS, bare=False)
        started = time.monotonic()
        found = drawings.draw(pack, wanted, STEPS, GUIDANCE)
        seconds = (time.monotonic() - started) / len(wanted)
        started = time.monotonic()
        drawings.draw(pack, wanted[:1], STEPS, GUIDANCE)
        alone = time.monotonic() - started
        both = zip(("object", "style"), pack.both_judges())
        named = {what: judge.probabilities(found).argmax(1) for what, judge in both}
        right = {
            "object": [canvas.OBJECTS[n] == item.object for n, item in zip(named["object"], wanted)],
            "style": [canvas.STYLES[n] == item.style for n, item in zip(named["style"], wanted)],
        }
        figures: dict[str, Any] = {
            "images": len(wanted),
            "steps": STEPS,
            "guidance": GUIDANCE,
            "seconds_an_image_in_batches": seconds,
            "seconds_of_one_image": alone,
        }
        for what, names in (("object", canvas.OBJECTS), ("style", canvas.STYLES)):
            by_name = {
                name: float(np.mean([r for r, item in zip(right[what], wanted) if getattr(item, what) == name]))
                for name in names
            }
            figures[what] = {"found": float(np.mean(right[what])), "by_name": by_name}
        return figures

    def _saes(self) -> dict:
        plan = erase_sae.Plan()
        return erase_sae.Maker(ErasePack(self.out, self.device), self.work / "saes", plan).run()

    def _erased(self) -> dict:
        pack = ErasePack(self.out, self.device)
        wanted = unlearncanvas.asked(canvas.OBJECTS, canvas.STYLES, ERASED_SEEDS)
        figures: dict[str, Any] = {"images_a_concept": len(wanted), "steps": STEPS, "guidance": GUIDANCE, "rows": []}
        for id in (erase_sae.SUPERVISED, erase_sae.UNSUPERVISED):
            for fidelity in FIDELITIES:
                results = self._benchmark(pack, id, fidelity, wanted)
                row: dict[str, Any] = {"sae": id, "fidelity": fidelity} | unlearncanvas.mean(results)
                row["intervals"] = unlearncanvas.mean_intervals(results)
                by_concept = {r.concept: {"ua": r.ua, "ira": r.ira, "cra": r.cra} for r in results}
                figures["rows"].append(row | {"by_concept": by_concept})
        print("\n".join(table(figures)))
        return figures

    def _earlier(self) -> dict:
        """By hook point: each SAE's report, and UA, IRA and CRA of every factor of TRIED, means over the concepts."""
        found: dict[str, Any] = {}
        for hook_point in EARLIER:
            work = self.work / "earlier" / hook_point
            pack = self._at(hook_point, work / "pack")
            made = erase_sae.Maker(pack, work / "saes", erase_sae.Plan(statistics_seeds=1)).trained()
            for id in (erase_sae.SUPERVISED, erase_sae.UNSUPERVISED):
                tried = erase_sae.search(pack, id, TRIED, GUIDANCE, tqdm)
                rows = [_means(list(each)) for each in zip(*tried.values(), strict=True)]
                found[f"{hook_point}, {id}"] = made[id]["report"] | {"tried": rows}
                print(hook_point, id, found[f"{hook_point}, {id}"], flush=True)
        return {"setting": asdict(TRIED), "found": found}

    def _opening(self) -> dict:
        """What the page's controls say at first, drawn."""
        pack = ErasePack(self.out, self.device)
        m, id = pack.manifest, pack.manifest.saes[0].id
        object, style = m.opening
        how = image.settings(pack, id, (object,), image.Scale(), m.steps)
        result, drawn = image.draw(pack, id, m.prompt(object, style), how, m.steps, m.guidance, seed=0)
        stored.write(stored.Pair(result, drawn), self.out)
        return result

    def _at(self, hook_point: str, folder: Path) -> ErasePack:
        """The same pipeline and judges as a pack with another hook point, in `folder`."""
        for part in ("pipeline", "judges"):
            shutil.copytree(self.out / part, folder / part, dirs_exist_ok=True)
        manifest = json.loads((self.out / "pack.json").read_text(encoding="utf-8"))
        files.write_json(manifest | {"hook_point": hook_point}, folder / "pack.json")
        return ErasePack(folder, self.device)

    def _benchmark(
        self, pack: ErasePack, id: str, fidelity: Fidelity, wanted: list
    ) -> list[unlearncanvas.ConceptResult]:
        folder = self.work / "erased" / f"{id}-{fidelity}"

        def how(concept: str) -> Settings:
            return drawings.settings(pack, id, (concept,), fidelity)

        benchmark.draw_all(pack, id, how, canvas.OBJECTS, wanted, STEPS, GUIDANCE, folder, tqdm)
        return benchmark.judge_all(pack, canvas.OBJECTS, wanted, folder)

    # ------------------------------------------------------------ what they share

    def _images(self, name: str, drawn: tuple[int, int]) -> images.ImageSet:
        return images.load(self.work, name, *drawn)

    def _stored_vae(self) -> Any:
        """The autoencoder as the pack stores it."""
        from diffusers import AutoencoderTiny

        return AutoencoderTiny.from_pretrained(self.out / "pipeline" / "vae").float().requires_grad_(False).eval()

    def _encoded(self, vae: Any) -> Tensor:
        """[n, 4, 16, 16] half precision: the training images' latents, scaled."""
        path = self.work / "latents.pt"
        if not path.exists():
            data = self._images("train", TRAIN)
            starts = range(0, len(data.labels), 500)
            torch.save(torch.cat([train_vae.encode(vae, data, slice(i, i + 500)).half() for i in starts]), path)
        return torch.load(path, weights_only=True) * vae.config.scaling_factor

    def _latents(self, vae: Any) -> train_unet.Latents:
        data = self._images("train", TRAIN)
        labels, styles, coverage = (np.array(array) for array in (data.labels, data.styles, data.coverage))
        return train_unet.Latents(self._encoded(vae), labels, styles, coverage, canvas.OBJECTS, canvas.STYLES)

    def _recons(self) -> np.ndarray:
        path = self.work / "recons.npy"
        if not path.exists():
            data = self._images("train", TRAIN)
            np.save(path, self._redrawn(images.ImageSet(*(array[:RECONS] for array in data))))
        return np.load(path)

    @torch.inference_mode()
    def _redrawn(self, data: images.ImageSet) -> np.ndarray:
        """[n, 64, 64, 3] uint8: images after the autoencoder."""
        vae, found = self._stored_vae(), []
        for start in range(0, len(data.labels), 250):
            pixels = vae.decoder(train_vae.encode(vae, data, slice(start, start + 250))).clamp(-1, 1)
            found.append(((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
        return np.concatenate(found)

    def _judge_specs(self) -> dict[str, judges.JudgeSpec]:
        names = {"object": canvas.OBJECTS, "style": canvas.STYLES}
        return {what: judges.JudgeSpec(train_judges.ARCHITECTURE, n, images.SIZE) for what, n in names.items()}

    def _write_manifest(self) -> None:
        specs = self._judge_specs()
        manifest = {
            "format": 1,
            "kind": KIND,
            "name": "canvas-diffusion",
            "title": "Canvas world, small Stable Diffusion",
            "concepts": list(canvas.OBJECTS),
            "styles": list(canvas.STYLES),
            "prompts": {"object": prompts.OBJECT, "styled": prompts.STYLED},
            "pipeline": "pipeline",
            "hook_point": train_unet.HOOK_POINT,
            "sampling": {"steps": STEPS, "guidance": GUIDANCE},
            "opening": {"object": "boat", "style": "watercolour"},
            "saes": [
                {
                    "id": id,
                    "title": title,
                    "folder": f"sae/{id}",
                    "statistics": f"sae/{id}/statistics.safetensors",
                    "settings": f"sae/{id}/settings.json",
                }
                for id, title in (
                    (erase_sae.SUPERVISED, "SAEmnesia: one latent bound to each concept"),
                    (erase_sae.UNSUPERVISED, "SAeUron: the same SAE without supervision"),
                )
            ],
            "judges": {
                what: {"architecture": spec.architecture, "size": spec.size, "file": f"judges/{what}.safetensors"}
                for what, spec in specs.items()
            },
        }
        (self.out / "pack.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _means(tried: list[dict[str, Any]]) -> dict[str, float]:
    """Of one setting over the concepts."""
    return {"factor": tried[0]["factor"]} | {
        name: float(np.mean([one[name] for one in tried])) for name in ("ua", "ira", "cra")
    }


def _accuracy(judge: judges.Judge, pixels: np.ndarray, labels: np.ndarray) -> float:
    from PIL import Image

    found = judge.probabilities([Image.fromarray(np.array(p)) for p in pixels])
    return float((found.argmax(1).numpy() == labels).mean())


def _stored(value: Tensor) -> Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


def table(figures: dict) -> list[str]:
    """Markdown of figures/erased.json, in percent: a row for every SAE and fidelity."""
    lines = ["| SAE | fidelity | UA | IRA | CRA |", "|---|---|---|---|---|"]
    for row in figures["rows"]:
        shares = [
            f"{100 * row[name]:.1f} [{', '.join(f'{100 * end:.1f}' for end in row['intervals'][name])}]"
            for name in ("ua", "ira", "cra")
        ]
        lines.append(f"| {row['sae']} | {row['fidelity']} | {' | '.join(shares)} |")
    return lines


def earlier_table(figures: dict) -> list[str]:
    """Markdown of figures/earlier.json, in percent: a row for every hook point, SAE and factor."""
    lines = ["| hook point, SAE | variance unexplained | concept read | factor | UA | IRA | CRA |", "|---" * 7 + "|"]
    for what, row in figures["found"].items():
        for tried in row["tried"]:
            shares = (row["variance_unexplained"], row["concept_read"])
            told = [*(f"{100 * share:.1f}" for share in shares), f"{tried['factor']:g}"]
            told += [f"{100 * tried[name]:.1f}" for name in ("ua", "ira", "cra")]
            lines.append(f"| {what} | " + " | ".join(told) + " |")
    return lines
