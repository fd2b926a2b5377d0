"""What every latent of a pack is, over many images: how often it fires, where, on what, and what unlearning did to it.

Images go through the models in batches, and what is kept does not grow with their number. "Fires on an image" means
here what it means for expert features: among the k largest on at least one patch; how strongly is its largest value on
any patch of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..packs.errors import PackError
from . import working
from .pack import Pack
from .session import hidden_states
from .testset import Batch, TestSet

STRONGEST, TOGETHER = 16, 8
"""Images and companions that are kept of each latent."""
BATCH = 50
IMAGES = 3000
"""That an atlas is made of, unless the pack has fewer."""
ORIGINAL = "original"


class Firing(NamedTuple):
    """How one model's latents fire at one layer."""

    fires: Tensor
    """[G, F] int64: images of each group, a class or a style, on which a latent fires."""
    total: Tensor
    """[G, F] float64: the sum over the group's images of its largest value on any patch, 0 where it does not fire."""

    @classmethod
    def none(cls, groups: int, latents: int) -> Firing:
        """Of no image yet."""
        shape = groups, latents
        return cls(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float64))

    def add(self, latents: Tensor, groups: Tensor) -> None:
        """latents [B, 1 + N, F], token 0 is CLS; groups [B]: each image's class, or its style."""
        peaks = latents[:, 1:].amax(1).cpu()
        self.fires.index_add_(0, groups, (peaks > 0).long())
        self.total.index_add_(0, groups, peaks.double())

    def strength(self, sizes: Tensor) -> Tensor:
        """[G, F]: the mean of its largest value over all images of each group, of which there are `sizes` [G]."""
        return (self.total / sizes.clamp(min=1)[:, None]).float()


class Portrait:
    """What the original's latents look like at one layer: places, strongest images with their heat, companions."""

    def __init__(self, latents: int, patches: int):
        """F latents, N patches an image."""
        self.images = 0
        self.cls = torch.zeros(latents, dtype=torch.int64)
        """[F]: images on whose CLS token it fires."""
        self.both = torch.zeros(latents, latents)
        """[F, F]: patches on which both fire; on the diagonal those on which one does. Exact up to 2^24 patches."""
        self.strongest = torch.full((latents, STRONGEST), -1, dtype=torch.int64)
        """[F, 16]: numbers of the images with the largest values, strongest first, earlier ones before their equals; -1
        where it fires on fewer."""
        self.heat = torch.zeros(latents, STRONGEST, patches)
        """[F, 16, N]: its values on their patches."""
        self._on, self._everywhere = torch.zeros(2, latents, dtype=torch.float64)
        self._masked = False

    @property
    def peaks(self) -> Tensor:
        """[F, 16]: its largest value on each of its strongest images, 0 where there is none."""
        return self.heat.amax(2)

    @property
    def patches(self) -> Tensor:
        """[F]: share of all patches on which it fires."""
        return self.both.diagonal() / max(1, self.images * self.heat.shape[2])

    @property
    def on_object(self) -> Tensor:
        """[F]: share of all its values that lies on the objects; NaN without masks, or where it never fires."""
        return (self._on / self._everywhere).float() if self._masked else torch.full_like(self.patches, torch.nan)

    def add(self, latents: Tensor, masks: Tensor | None) -> None:
        """latents [B, 1 + N, F] of the next images; masks [B, N]: the share of each patch that the object covers."""
        heat = latents[:, 1:].cpu()
        self.cls += (latents[:, 0] > 0).sum(0).cpu()
        firing = (latents[:, 1:] > 0).flatten(0, 1).float()
        self.both += (firing.T @ firing).cpu()
        if masks is not None:
            self._masked = True
            self._on += torch.einsum("bnf,bn->f", heat, masks).double()
            self._everywhere += heat.sum((0, 1)).double()
        self._keep_strongest(heat)
        self.images += len(heat)

    def _keep_strongest(self, heat: Tensor) -> None:
        peaks, numbers = _strongest(heat.amax(1).T)  # of these images alone: [F, at most 16]
        rows = heat.permute(2, 0, 1)
        found = rows.gather(1, numbers[..., None].expand(-1, -1, rows.shape[2]))
        peaks, kept = _strongest(torch.cat([self.peaks, peaks], 1))
        numbers = torch.cat([self.strongest, numbers + self.images], 1).gather(1, kept)
        self.strongest = torch.where(peaks > 0, numbers, -1)
        self.heat = torch.cat([self.heat, found], 1).gather(1, kept[..., None].expand(-1, -1, heat.shape[1]))

    def together(self) -> tuple[Tensor, Tensor]:
        """([F, 8] ids, [F, 8] overlaps): the latents that fire on the same patches, most alike first.

        The overlap is Jaccard's: patches on which both fire over patches on which either does. Id -1 for none.
        """
        alone = self.both.diagonal()
        overlap = self.both / (alone[:, None] + alone[None] - self.both).clamp(min=1)
        overlap.fill_diagonal_(0)
        best, ids = (found[:, :TOGETHER] for found in overlap.sort(dim=1, descending=True, stable=True))
        return torch.where(best > 0, ids, -1), best


def _strongest(peaks: Tensor) -> tuple[Tensor, Tensor]:
    """The 16 largest of each row and their places; the first of equals comes first."""
    found = peaks.sort(dim=1, descending=True, stable=True)
    return found.values[:, :STRONGEST], found.indices[:, :STRONGEST]


class Surveyed(NamedTuple):
    """What a survey found at one layer."""

    by_class: dict[str, Firing]
    """By the model's name."""
    by_style: dict[str, Firing]
    portrait: Portrait | None
    """None where the original was not asked for."""


Progress = Callable[[int, int], None]
"""Told how many of how many images are through; may raise to end the work."""


def survey(
    pack: Pack, models: Mapping[str, Callable[[], nn.Module]], data: TestSet, progress: Progress | None = None
) -> dict[int, Surveyed]:
    """Every layer's latents in every model, over a whole test set: {layer: what was found}.

    The model called ORIGINAL, if it is among them, also has its portrait drawn. Models may be loaded anew for each
    batch, so their owner may drop those that nobody uses. Raises PackError for a model that cannot be loaded or whose
    hidden states are not numbers, ImageError for an image that cannot be read.
    """
    found = {layer: _empty(pack, layer, models, data) for layer in pack.manifest.layers}
    for batch in data.batches(BATCH):
        for name, model in models.items():
            for layer, latents in _encoded(pack, name, model, batch):
                _add(found[layer], name, latents, batch, data)
        if progress is not None:
            progress(batch.start + len(batch.labels), len(data))
    return found


def _empty(pack: Pack, layer: int, models: Sequence[str] | Mapping, data: TestSet) -> Surveyed:
    latents = pack.sae(layer).latents
    by_class = {name: Firing.none(len(pack.manifest.classes), latents) for name in models}
    by_style = {name: Firing.none(len(data.style_names), latents) for name in models}
    return Surveyed(by_class, by_style, Portrait(latents, pack.shape.grid**2) if ORIGINAL in models else None)


@torch.inference_mode()
def _encoded(pack: Pack, name: str, model: Callable[[], nn.Module], batch: Batch) -> Iterator[tuple[int, Tensor]]:
    """(layer, latents [B, 1 + N, F])"""
    hidden = hidden_states(model, batch.inputs.to(pack.device), list(pack.manifest.layers), None)
    for layer, states in hidden.items():
        if not states.isfinite().all():
            raise PackError(working.not_numbers(f"the model {name}"))
        yield layer, pack.sae(layer).encode(states)


def _add(found: Surveyed, name: str, latents: Tensor, batch: Batch, data: TestSet) -> None:
    rows = slice(batch.start, batch.start + len(batch.labels))
    found.by_class[name].add(latents, batch.labels)
    if data.style_names:
        found.by_style[name].add(latents, data.styles[rows])
    if name == ORIGINAL and found.portrait is not None:
        found.portrait.add(latents, None if batch.masks is None else torch.from_numpy(batch.masks).flatten(1))
