"""How often and how strongly each latent fires on texts to forget and on texts to keep, and on which words most."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..machine.files import whole
from ..packs import safe
from ..packs.errors import PackError

if TYPE_CHECKING:
    from ..models.language import LanguageModel
    from ..sparse.code import Code

STRONGEST = 8
"""Tokens that are kept of each latent."""
CHUNK = 2048
"""Tokens that are encoded at a time: 128 MB of latents at 16,384."""
BATCH_TOKENS = 4096
FORMAT = "1"


class Tally(NamedTuple):
    """Means over the tokens of some texts; BOS, EOS, padding and their like do not count."""

    frequency: Tensor
    """[F]: the share of tokens on which a latent exceeds the threshold."""
    square: Tensor
    """[F]: mean of a^2, whatever the threshold."""
    tokens: int


class Hit(NamedTuple):
    """A token on which a latent fires."""

    text: int
    """Its number among the texts to forget, followed by those to keep."""
    position: int
    """Among the text's tokens, special ones not counted."""
    value: float


class Passage(NamedTuple):
    """A token in its context."""

    before: str
    token: str
    after: str


@dataclass(frozen=True)
class Survey:
    """What latents do on two sets of texts."""

    forget_frequency: Tensor
    """[F]"""
    retain_frequency: Tensor
    forget_square: Tensor
    retain_square: Tensor
    forget_tokens: int
    retain_tokens: int
    threshold: float
    strongest_text: Tensor
    """[F, STRONGEST] of Hit.text, -1 where a latent fires on fewer tokens."""
    strongest_position: Tensor
    strongest_value: Tensor
    """[F, STRONGEST], the largest first."""
    texts_id: str
    """Which texts they were."""

    @property
    def latents(self) -> int:
        return len(self.forget_frequency)

    @property
    def frequency(self) -> Tensor:
        """[F]: over the tokens of both."""
        return self._pooled(self.forget_frequency, self.retain_frequency)

    @property
    def square(self) -> Tensor:
        """[F]: over the tokens of both."""
        return self._pooled(self.forget_square, self.retain_square)

    def strongest(self, latent: int) -> list[Hit]:
        """Where a latent fires most, the strongest first. Raises ValueError for a latent that there is not."""
        if not 0 <= latent < self.latents:
            raise ValueError(f"latent {latent} does not exist: this SAE has latents 0 to {self.latents - 1}")
        rows = zip(self.strongest_text[latent], self.strongest_position[latent], self.strongest_value[latent])
        return [Hit(int(text), int(position), float(value)) for text, position, value in rows if text >= 0]

    def passages(
        self, latent: int, language: LanguageModel, forget: Sequence[str], retain: Sequence[str], around: int = 8
    ) -> list[Passage]:
        """The same as words, each with so many tokens on either side. Raises ValueError where the texts are others."""
        if fingerprint(forget, retain) != self.texts_id:
            raise ValueError("the texts are not those that were surveyed: survey them again")
        texts = [*forget, *retain]
        return [passage(language, texts[hit.text], hit.position, around) for hit in self.strongest(latent)]

    def _pooled(self, forget: Tensor, retain: Tensor) -> Tensor:
        total = self.forget_tokens + self.retain_tokens
        return (forget * self.forget_tokens + retain * self.retain_tokens) / max(1, total)


def survey(
    language: LanguageModel,
    code: Code,
    layer: int,
    forget: Sequence[str],
    retain: Sequence[str],
    threshold: float = 0.0,
) -> Survey:
    """Runs the model on all texts, once. A text longer than its context is cut into pieces. Raises ValueError."""
    strongest = _Strongest(code.latents)
    for name, texts in (("forget", forget), ("retain", retain)):
        if not any(text.strip() for text in texts):
            raise ValueError(f"there is no text to {name}; the corpus is one text a line")
    of_forget = tally(language, code, layer, forget, threshold, strongest, 0)
    of_retain = tally(language, code, layer, retain, threshold, strongest, len(forget))
    return Survey(
        of_forget.frequency,
        of_retain.frequency,
        of_forget.square,
        of_retain.square,
        of_forget.tokens,
        of_retain.tokens,
        threshold,
        *strongest.found(),
        fingerprint(forget, retain),
    )


@torch.inference_mode()
def tally(
    language: LanguageModel,
    code: Code,
    layer: int,
    texts: Sequence[str],
    threshold: float = 0.0,
    strongest: _Strongest | None = None,
    first: int = 0,
) -> Tally:
    """Frequencies and squares over some texts; `strongest` is told every token, texts numbered from `first`."""
    count = torch.zeros(code.latents, dtype=torch.float64)
    square = torch.zeros(code.latents, dtype=torch.float64)
    tokens = 0
    for states, place in _tokens(language, layer, texts):
        for x, where in zip(states.split(CHUNK), place.split(CHUNK)):
            latents = code.encode(x)
            count += (latents > threshold).sum(0).double().cpu()
            square += latents.square().sum(0, dtype=torch.float64).cpu()
            tokens += len(latents)
            if strongest is not None:
                strongest.add(latents.float().cpu(), where + torch.tensor([first, 0]))
    scale = max(1, tokens)
    return Tally((count / scale).float(), (square / scale).float(), tokens)


class _Strongest:
    """The largest activities of each latent so far. Of equal ones the earlier stays."""

    def __init__(self, latents: int):
        self.value = torch.zeros(latents, STRONGEST)
        self.place = torch.full((latents, STRONGEST, 2), -1)

    def add(self, latents: Tensor, place: Tensor) -> None:
        """latents [n, F] of n tokens; place [n, 2]: text and position of each."""
        keep = min(STRONGEST, len(latents))
        value, row = latents.T.topk(keep, dim=1)
        new = torch.where((value > 0)[..., None], place[row], -1)
        values, places = torch.cat([self.value, value], 1), torch.cat([self.place, new], 1)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :STRONGEST]
        self.value = values.gather(1, order)
        self.place = places.gather(1, order[..., None].expand(-1, -1, 2))

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.place[..., 0].int(), self.place[..., 1].int(), self.value


# ---------------------------------------------------------------- texts


def pieces(language: LanguageModel, text: str) -> list[list[int]]:
    """The ids of a text, in as many pieces as the context makes necessary, cut between words.

    Raises ValueError for a word that is longer than the context.
    """
    words = text.split()
    if not words:
        return []
    try:
        return [language.encode(text)]
    except ValueError:
        if len(words) == 1:
            raise
    half = len(words) // 2
    return pieces(language, " ".join(words[:half])) + pieces(language, " ".join(words[half:]))


def passage(language: LanguageModel, text: str, position: int, around: int = 8) -> Passage:
    """The token at a position of a text, with so many tokens on either side."""
    ids = [id for piece in pieces(language, text) for id in piece if id not in language.special_ids]
    parts = ids[max(0, position - around) : position], ids[position : position + 1], ids[position + 1 :][:around]
    return Passage(*(language.tokenizer.decode(part) for part in parts))


def fingerprint(forget: Sequence[str], retain: Sequence[str]) -> str:
    """Tells the same texts in the same order."""
    return hashlib.sha256(json.dumps([list(forget), list(retain)]).encode()).hexdigest()


def _tokens(language: LanguageModel, layer: int, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """(states [n, D], place [n, 2] of text and position), without special tokens and padding."""
    for batch in _batches(language, texts):
        ids = [piece for piece, _, _ in batch]
        found = language.batch(ids)
        states = language.states(found, layer)
        rows, place = [], []
        for row, (piece, text, start) in enumerate(batch):
            own = [at for at, id in enumerate(piece) if id not in language.special_ids]
            rows.append(states[row, states.shape[1] - len(piece) :][own])  # padding is on the left
            place += [[text, start + number] for number in range(len(own))]
        yield torch.cat(rows), torch.tensor(place, dtype=torch.long).view(-1, 2)


def _batches(language: LanguageModel, texts: Sequence[str]) -> Iterator[list[tuple[list[int], int, int]]]:
    """(ids, number of the text, position of the first of them), texts of about the same length together."""
    found = []
    for number, text in enumerate(texts):
        start = 0
        for piece in pieces(language, text):
            found.append((piece, number, start))
            start += sum(id not in language.special_ids for id in piece)
    found.sort(key=lambda item: (-len(item[0]), item[1:]))
    batch: list[tuple[list[int], int, int]] = []
    for item in found:
        if batch and (len(batch) + 1) * len(batch[0][0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


# ---------------------------------------------------------------- files

_TENSORS = (
    *("forget_frequency", "retain_frequency", "forget_square", "retain_square"),
    *("strongest_text", "strongest_position", "strongest_value"),
)
_WHOLE = ("strongest_text", "strongest_position")


def save(found: Survey, path: Path) -> None:
    """As safetensors: frequencies and squares in float32, the activities of the strongest tokens in float16."""
    from safetensors.torch import save_file

    tensors = {name: getattr(found, name).contiguous() for name in _TENSORS}
    tensors["strongest_value"] = tensors["strongest_value"].clamp(max=torch.finfo(torch.float16).max).half()
    notes = {"format": FORMAT, "threshold": repr(found.threshold), "texts_id": found.texts_id}
    notes |= {"forget_tokens": str(found.forget_tokens), "retain_tokens": str(found.retain_tokens)}
    with whole(path) as part:
        save_file(tensors, part, notes)


def load(path: Path, latents: int) -> Survey:
    """A saved survey of an SAE with so many latents. Raises PackError for a file that is none, or another SAE's."""
    tensors = safe.read_torch(path)
    name = path.name
    if not isinstance(tensors, dict) or set(tensors) != set(_TENSORS):
        raise PackError(f"{name} is no survey of latents: it should hold {', '.join(_TENSORS)} and nothing else")
    for key, tensor in tensors.items():
        shape = (latents, STRONGEST) if key.startswith("strongest") else (latents,)
        if tuple(tensor.shape) != shape:
            raise PackError(f"{name} is of another SAE: {key} has the shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.is_floating_point() == (key in _WHOLE) or not tensor.float().isfinite().all():
            raise PackError(f"{name} was refused: {key} holds what is no number of its kind")
    notes = _notes(path)
    try:
        sizes = int(notes["forget_tokens"]), int(notes["retain_tokens"])
        told = float(notes["threshold"]), notes["texts_id"]
    except (KeyError, ValueError) as error:
        raise PackError(f"{name} does not say what was surveyed: survey the texts again") from error
    plain = {key: tensors[key] if key in _WHOLE else tensors[key].float() for key in _TENSORS}
    return Survey(forget_tokens=sizes[0], retain_tokens=sizes[1], threshold=told[0], texts_id=told[1], **plain)


def _notes(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header, which has been read whole before."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except Exception as error:
        raise PackError(f"{path.name} cannot be read as safetensors ({type(error).__name__})") from error
