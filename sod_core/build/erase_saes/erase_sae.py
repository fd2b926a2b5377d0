"""Makes a diffusion pack's SAEs: gathers activations, trains, binds latents to concepts, finds the best settings.

Works on any diffusion pack that has a pipeline and judges: the embedded one on a CPU, Stable Diffusion on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...erase import concepts, drawings, unlearncanvas
from ...erase import edit as erase
from ...erase.pack import ConceptSetting, ErasePack, write_statistics
from ...sparse.topk import TopKSAE
from . import activations, train_erase_sae
from .activations import Gathering
from .train_erase_sae import Recipe, Supervision

UNSUPERVISED, SUPERVISED = "unsupervised", "supervised"


@dataclass(frozen=True)
class Search:
    """Which settings are tried for each concept, and on how many images."""

    factors: tuple[float, ...] = (0.0, -1.0, -2.0, -4.0, -8.0)
    percentiles: tuple[float, ...] = (99.9,)
    """Of the scores: with 1,024 latents, 99.9 selects two and 99.6 five."""
    seeds: tuple[int, ...] = (9001,)
    steps: int = 15
    """Denoising steps of the search's images."""


@dataclass(frozen=True)
class Plan:
    gathering: Gathering = Gathering()
    recipe: Recipe = Recipe()
    supervision: Supervision = Supervision()
    searches: dict[str, Search] = field(
        default_factory=lambda: {
            SUPERVISED: Search(),
            UNSUPERVISED: Search(factors=(0.0, -1.0, -3.0, -8.0), percentiles=(99.9, 99.6)),
        }
    )
    """An unsupervised SAE spreads a concept over several latents, so more of them are tried."""
    train_seeds: int = 6
    """Images drawn of each prompt for training."""
    held_out_seeds: int = 1
    """Images of each prompt that the report is measured on."""
    statistics_seeds: int = 4
    """Images of each prompt that the concepts' statistics are averaged over."""


class Maker:
    """Makes the SAEs `unsupervised` and `supervised` of a pack, stage by stage; what is on disk is not made again."""

    def __init__(self, pack: ErasePack, work: Path, plan: Plan):
        self.pack, self.work, self.plan = pack, work, plan
        self.names = pack.manifest.concepts

    def run(self) -> dict:
        """Everything; returns the figures."""
        figures = self.trained()
        for id in (UNSUPERVISED, SUPERVISED):
            figures[id]["tried"] = self._search(id)
        return figures

    def trained(self) -> dict:
        """Both SAEs without a search for settings; returns the figures."""
        data = self._activations("train", self.plan.train_seeds)
        held_out = self._activations("held out", self.plan.held_out_seeds)
        plain = train_erase_sae.train(data, self.plan.recipe, self.work / "unsupervised.ckpt")
        (statistics,) = self._statistics([plain])
        bound = train_erase_sae.bind(statistics)
        taught = train_erase_sae.supervise(
            plain, data, bound, self.plan.recipe, self.plan.supervision, self.work / "supervised.ckpt"
        )
        (after,) = self._statistics([taught])
        figures: dict[str, Any] = {"recipe": asdict(self.plan.recipe), "supervision": asdict(self.plan.supervision)}
        figures |= {"gathering": asdict(self.plan.gathering), "images": len(data.concepts)}
        figures["bound"] = dict(zip(self.names, bound.tolist()))
        for id, sae, found in ((UNSUPERVISED, plain, statistics), (SUPERVISED, taught, after)):
            self._write(id, sae, found)
            figures[id] = {"report": train_erase_sae.report(sae, held_out, bound)._asdict()}
        return figures

    def _activations(self, name: str, seeds: int) -> activations.Activations:
        m = self.pack.manifest
        first = {"train": 0, "held out": 1000}[name]
        wanted = list(activations.prompts(self.names, m.styles, m.prompt, range(first, first + seeds)))
        folder = self.work / name.replace(" ", "-")
        return activations.gather(self.pack.pipeline(), m.hook_point, wanted, self.plan.gathering, folder)

    def _statistics(self, saes: list[TopKSAE]) -> list[erase.ConceptStatistics]:
        g = self.plan.gathering
        wanted = drawings.statistics_prompts(self.pack, self.plan.statistics_seeds)
        m = self.pack.manifest
        return concepts.gather(self.pack.pipeline(), m.hook_point, saes, wanted, g.steps, g.guidance, told=tqdm)

    def _write(self, id: str, sae: TopKSAE, statistics: erase.ConceptStatistics) -> None:
        """In the form of EleutherAI's sparsify, half precision."""
        from safetensors.torch import save_file

        folder = self.pack.manifest.folder / "sae" / id
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "encoder.weight": sae.encoder.weight,
            "encoder.bias": sae.latent_bias,
            "W_dec": sae.decoder.weight.T,
            "b_dec": sae.pre_bias,
        }
        save_file(
            {name: value.detach().half().contiguous() for name, value in tensors.items()}, folder / "sae.safetensors"
        )
        config = {"d_in": sae.dim, "num_latents": sae.latents, "k": sae.k, "input_unit_norm": False}
        (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
        write_statistics(statistics, folder / "statistics.safetensors")

    def _search(self, id: str) -> dict:
        """Writes settings.json; returns what every setting gave, by concept."""
        found = search(self.pack, id, self.plan.searches[id], self.plan.gathering.guidance, tqdm)
        best = {name: max(tried, key=worth) for name, tried in found.items()}
        settings = {name: {"percentile": t["percentile"], "factor": t["factor"]} for name, t in best.items()}
        path = self.pack.manifest.folder / "sae" / id / "settings.json"
        path.write_text(json.dumps(settings, indent=1) + "\n")
        return found


def worth(tried: dict) -> float:
    """What the search makes as large as it can: the mean of UA, IRA and CRA."""
    return (tried["ua"] + tried["ira"] + tried["cra"]) / 3


def search(pack: ErasePack, id: str, how: Search, guidance: float, told: Callable) -> dict[str, list[dict]]:
    """Every concept erased with every setting, exact fidelity, a few images each: [{percentile, factor, ua, ira, cra}].

    The images: the concept in every style, and every other object in two styles, for each seed.
    """
    m = pack.manifest
    found: dict[str, list[dict]] = {name: [] for name in m.concepts}
    trials = [(name, p, f) for name in m.concepts for p in how.percentiles for f in how.factors]
    for name, percentile, factor in told(trials):
        wanted = _search_images(pack, name, how.seeds)
        setting = ConceptSetting(percentile, factor=factor)
        edit = drawings.settings(pack, id, (name,), "exact", setting)
        images = drawings.draw(pack, wanted, how.steps, guidance, id, edit)
        result = unlearncanvas.count(name, wanted, images, *pack.both_judges())
        found[name].append(
            {"percentile": percentile, "factor": factor, "ua": result.ua, "ira": result.ira, "cra": result.cra}
        )
    return found


def _search_images(pack: ErasePack, concept: str, seeds: tuple[int, ...]) -> list[unlearncanvas.Asked]:
    m = pack.manifest
    wanted = []
    for turn, seed in enumerate(seeds):
        wanted += [unlearncanvas.Asked(concept, style, seed) for style in m.styles]
        others = [name for name in m.concepts if name != concept]
        for place, name in enumerate(others):
            for step in (0, len(m.styles) // 2):
                wanted.append(unlearncanvas.Asked(name, m.styles[(place + turn + step) % len(m.styles)], seed))
    return wanted
