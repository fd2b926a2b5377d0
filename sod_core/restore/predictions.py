"""What every model names every image, under every edit: the passes, and what a killed run leaves to go on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..machine import files, gpu
from ..models import vit as vits
from ..packs.errors import PackError
from ..sparse import forms
from . import edit as restore
from . import working
from .judged import ALPHAS, Edit, Settings, Subject, edits
from .pack import Pack
from .testset import Batch, TestSet, stamp

NOT_ASKED, NO_NUMBER = -1, -2
"""Stand where no class is named: nobody asked, or what came out is not finite."""


class Predictions:
    """What every model named every image, under every edit and alpha: small whole numbers, below 0 for none."""

    def __init__(self, pack: Pack, judged: Sequence[Subject], data: TestSet, settings: Settings, batch: int):
        """`batch`: how many images `add` is given at a time."""
        self.pack, self.judged, self.data, self.settings, self.batch = pack, judged, data, settings, batch
        self.edits = {subject.id: edits(pack, subject, settings) for subject in judged}
        self.refused: dict[str, str] = {}
        """{id: why} of the models that cannot be loaded."""
        n, layers = len(data), len(pack.manifest.layers)
        self.named: dict[str, np.ndarray] = {"original": np.full(n, NOT_ASKED, np.int16)}
        """[n] of "original", of a model's id and of its readout; [A, n] of a model's id and the number of an edit."""
        self.cls: dict[str, np.ndarray] = {"original": np.zeros((layers, n, pack.shape.dim), np.float32)}
        for subject in judged:
            self.named[subject.id] = np.full(n, NOT_ASKED, np.int16)
            self.named[f"{subject.id} readout"] = np.full(n, NOT_ASKED, np.int16)
            self.cls[subject.id] = np.zeros((layers, n, pack.shape.dim), np.float32)
            for number in range(len(self.edits[subject.id])):
                self.named[f"{subject.id} {number}"] = np.full((len(ALPHAS), n), NOT_ASKED, np.int16)

    @torch.inference_mode()
    def add(self, batch: Batch) -> None:
        """One batch through every model, once, and every edit from there.

        A model that cannot be loaded is left out from then on, one whose outputs are not numbers is not edited. Raises
        PackError where that is so of the original, or where no model can be loaded.
        """
        rows = slice(batch.start, batch.start + len(batch.labels))
        original = self._hidden("original", self.pack.original(), batch, rows)
        if (self.named["original"][rows] == NO_NUMBER).any():
            raise PackError(working.not_numbers("the original model"))
        for subject in self.judged:
            model = self._loaded(subject)
            if model is None:
                continue
            unlearned = self._hidden(subject.id, model, batch, rows)
            if (self.named[subject.id] == NO_NUMBER).any():
                continue
            self.named[f"{subject.id} readout"][rows] = self._read_by_the_original(unlearned)
            members = batch.labels == subject.target
            for number, edit in enumerate(self.edits[subject.id]):
                wanted = torch.ones_like(members) if edit.everybody else members
                if wanted.any():
                    named = self._edited(model, unlearned[wanted], original[wanted], edit)
                    self.named[f"{subject.id} {number}"][:, np.flatnonzero(wanted) + batch.start] = named
        if len(self.refused) == len(self.judged):
            raise PackError(next(iter(self.refused.values())))

    def problem(self, subject: Subject) -> str | None:
        """Why a model cannot be scored; None where it can."""
        if subject.id in self.refused:
            return self.refused[subject.id]
        bad = int((self.named[subject.id] == NO_NUMBER).sum())
        if not bad:
            return None
        where = "" if bad == len(self.data) else f" on {bad} of {len(self.data)} images"
        return f"its outputs are not numbers{where}"

    def of(self, subject: Subject, name: str) -> list[np.ndarray]:
        """[A, n] for each edit of that name: several seeds of a random one."""
        numbers = [number for number, edit in enumerate(self.edits[subject.id]) if edit.name == name]
        return [self.named[f"{subject.id} {number}"] for number in numbers]

    def _loaded(self, subject: Subject) -> nn.Module | None:
        if subject.id not in self.refused:
            try:
                return subject.model()
            except ValueError as error:  # PackError is one
                self.refused[subject.id] = " ".join(str(error).split())
        return None

    def _hidden(self, key: str, model: nn.Module, batch: Batch, rows: slice) -> Tensor:
        """The hidden state at the edited layer; what the model names, and CLS at every layer, are kept."""
        layers = list(self.pack.manifest.layers)
        device = next(model.parameters()).device
        with gpu.turn(device):
            found = vits.heads(model, batch.inputs.to(device), layers)
            logits = vits.tail(model, found[max(layers)], max(layers))
        self.named[key][rows] = _named(logits).cpu().numpy()
        for number, layer in enumerate(layers):
            self.cls[key][number, rows] = found[layer][:, 0].float().cpu().numpy()
        return found[self.settings.layer]

    def _read_by_the_original(self, u: Tensor) -> np.ndarray:
        """[B]: the class that the original's tail names in the hidden state of an unlearned model."""
        with gpu.turn(u.device):
            return _named(vits.tail(self.pack.original(), u, self.settings.layer)).cpu().numpy()

    def _edited(self, model: nn.Module, u: Tensor, o: Tensor, edit: Edit) -> np.ndarray:
        """[A, B]: the class that the edited model names, for each of ALPHAS."""
        layer = self.settings.layer
        latents = torch.tensor(edit.latents, dtype=torch.long, device=u.device)
        line = restore.line(edit.mode, u, o, self.pack.sae(layer), latents, edit.tokens)
        with gpu.turn(u.device):
            named = [_named(vits.tail(model, line.at([alpha])[0], layer)) for alpha in ALPHAS]
        return torch.stack(named).cpu().numpy()

    # ------------------------------------------------------------ kept between runs, and between processes

    def fingerprint(self) -> str:
        """Whatever the predictions depend on."""
        found = {id: [edit._asdict() for edit in of_model] for id, of_model in self.edits.items()}
        labels = self.data.labels.tolist()
        models: list[Any] = [[subject.id, subject.target, subject.file] for subject in self.judged]
        pack, layer = self.pack, self.settings.layer
        paths = [pack.manifest.folder / "pack.json", pack.file(pack.manifest.files["original"])]
        paths += [*forms.files(pack.layer_file("sae", layer)), pack.layer_file("stats", layer)]
        models += [[stamp(path) for path in paths], pack.sae(layer).normalised]
        data = [self.data.name, self.data.stamp]
        what: dict[str, Any] = {"pack": str(pack.manifest.folder), "data": data, "labels": labels, "edits": found}
        what |= {"models": models, "layer": layer, "alphas": ALPHAS, "batch": self.batch, "marks": NO_NUMBER}
        return json.dumps(what)

    def resume(self, file: Path | None) -> int:
        """Takes what an earlier run of the same settings left; returns how many batches it had done."""
        if file is None or not file.exists():
            return 0
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["fingerprint"]) != self.fingerprint():
                return 0
            for kind in ("named", "cls"):
                arrays = getattr(self, kind)
                arrays |= {key: kept[f"{kind} {key}"] for key in arrays}
            self.refused = json.loads(str(kept["refused"]))
            return int(kept["done"])

    def save(self, file: Path | None, done: int) -> None:
        """Leaves what is there so far."""
        if file is None:
            return
        arrays = {f"{kind} {key}": a for kind in ("named", "cls") for key, a in getattr(self, kind).items()}
        with files.whole(file) as part:
            np.savez(part, fingerprint=self.fingerprint(), done=done, refused=json.dumps(self.refused), **arrays)

    def gather(self) -> None:
        """Puts the processes' shares together: everybody is given everything."""
        from accelerate.utils import gather_object

        for named, cls, refused in gather_object([(self.named, self.cls, self.refused)]):
            self.refused |= refused
            for key, array in named.items():
                self.named[key] = np.where(array == NOT_ASKED, self.named[key], array)
            for key, array in cls.items():
                self.cls[key] = np.where(self.cls[key] == 0, array, self.cls[key])


def _named(logits: Tensor) -> Tensor:
    """[..., classes] -> [...]: the largest's number, or NO_NUMBER where one is not finite."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), NO_NUMBER)
