"""One visitor's prompt in a language model: `set_prompt` is heavy, once; texts, what fired and options are light.

The edit acts on a decoder layer's output, so what fires there depends on the tokens alone, never on the edit:
`fired` looks at a finished text as well as at one that is still growing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import edit, judge
from .edit import Clamp
from .editor import editor_of

if TYPE_CHECKING:
    from ..models.language import Editor, LanguageModel
    from ..sparse.code import Code
    from .pack import ClampPack
    from .questions import Question

MOST_TOKENS = 512
"""That `texts` generates at most."""


class Fired(NamedTuple):
    """One harmful latent on one token."""

    latent: int
    activity: float
    """Before the edit, in units of the SAE; above the clamp's threshold."""
    value: float
    """After the edit: the clamp's value, or the activity where the method leaves this latent as it is."""


class Token(NamedTuple):
    """One token of the prompt or of a generated text."""

    id: int
    text: str
    fired: tuple[Fired, ...]
    """The clamp's latents that fire here, strongest first."""
    changed: bool
    """Whether the clamp acted on this token. ("package" rewrites the others as well.)"""
    generated: bool


class Step(NamedTuple):
    """After one more token of every variant."""

    ids: tuple[int | None, ...]
    """One a variant; None for one that has ended."""
    generated: tuple[tuple[int, ...], ...]
    """[variants]: all ids so far, without the prompt's."""
    texts: tuple[str, ...]
    """[variants]: all text so far, without the prompt."""


class ClampSession:
    """One visitor's prompt, its variants side by side. Weights are only read, so any number of sessions share them.

    A variant is a Clamp, or None for the untouched model. All variants of a session use one SAE of the pack.
    """

    def __init__(self, pack: ClampPack, sae: str | None = None):
        """`sae`: its id in the pack; None is the SAE of the first preset. Loads nothing. Raises PackError."""
        self.pack = pack
        self.sae = pack.manifest.sae(sae or pack.manifest.opening_sae()).id
        self.layer = pack.manifest.sae(self.sae).layer
        self._prompt: list[int] | None = None
        self._text = ""
        self._hidden: Tensor | None = None

    @property
    def language(self) -> LanguageModel:
        """The pack's model. Raises PackError where it is not on this computer."""
        return self.pack.language()

    @property
    def code(self) -> Code:
        """The session's SAE. Raises PackError."""
        return self.pack.code(self.sae)

    @property
    def prompt(self) -> list[int]:
        """Token ids, BOS first where the tokenizer has one. Raises ValueError before `set_prompt`."""
        if self._prompt is None:
            raise ValueError("no prompt yet: call set_prompt first")
        return self._prompt

    def set_prompt(self, text: str) -> list[int]:
        """Tokenises the prompt and keeps its hidden states [1, T, D] at the SAE's layer. Returns its token ids.

        Raises ValueError for a prompt that is empty or longer than the context; the session keeps the one it has.
        """
        ids = self.language.encode(text)
        hidden = self._states(ids)
        self._prompt, self._text, self._hidden = ids, text, hidden
        return ids

    def texts(
        self,
        variants: Sequence[Clamp | None],
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Step]:
        """The prompt continued under every variant, all in one batch, a Step for each token.

        `temperature` 0 is greedy; above it tokens are drawn, by `seed`, and every variant draws with the same luck.
        `cancelled` is asked before each token; when it says yes the iterator ends. Raises ValueError for a clamp that
        does not fit the SAE, for tokens outside 1 to MOST_TOKENS and for a temperature that is negative or no number.
        """
        if not 1 <= tokens <= MOST_TOKENS:
            raise ValueError(f"{tokens} tokens were asked for: give 1 to {MOST_TOKENS}")
        grown = self.language.generate(
            self.prompt, self.layer, self._editors(variants), tokens, temperature, seed, cancelled
        )
        return self._steps(grown, len(variants))

    def _steps(self, grown: Iterator[tuple[int | None, ...]], count: int) -> Iterator[Step]:
        ids: list[list[int]] = [[] for _ in range(count)]
        for step in grown:
            for row, id in zip(ids, step):
                row += [] if id is None else [id]
            yield Step(step, tuple(map(tuple, ids)), tuple(self.language.decode(row) for row in ids))

    def fired(self, clamp: Clamp, generated: Sequence[int] = ()) -> list[Token]:
        """Every token of the prompt, then of a generated text (Step.generated), with what fired on it.

        The prompt's hidden states are kept, so that without `generated` only the SAE's few columns are computed.
        Raises ValueError for a clamp that does not fit the SAE.
        """
        clamp.check(self.code)
        ids = [*self.prompt, *generated]
        hidden = self._states(ids) if generated else self._hidden
        assert hidden is not None  # set_prompt keeps it
        special = self.language.special_ids
        alone = edit.left_alone(torch.tensor([ids], device=hidden.device), special)
        found = edit.apply(hidden, self.code, clamp, alone)
        values = clamp.values() if clamp.method in ("prime", "conditional", "both") else None
        least = 0.0 if clamp.method == "prime" else clamp.threshold
        tokens = []
        for at, (id, text) in enumerate(zip(ids, self.pieces(ids))):
            changed = bool(found.changed[0, at])
            fired = [
                Fired(latent, activity, values[i] if values is not None and changed else activity)
                for i, (latent, activity) in enumerate(zip(clamp.latents, found.activity[0, at].tolist()))
                if activity > least
            ]
            fired.sort(key=lambda one: -one.activity)
            tokens.append(Token(id, text, tuple(fired), changed, at >= len(self.prompt)))
        return tokens

    def options(self, question: Question, variants: Sequence[Clamp | None]) -> Tensor:
        """[variants, 4], float32: the probability of each option, which sum to 1, all variants in one batch.

        The question is put as the pack's `scoring` says; the prompt of the session is not concerned.
        """
        m, editors = self.pack.manifest, self._editors(variants)
        subject = m.subjects().get(question.field, question.field.replace("_", " "))
        text = judge.prompt(question, subject, m.scoring)
        four = [self.language.encode_pair(text, option) for option in judge.continuations(question, m.scoring)]
        edits = [editor for editor in editors for _ in four]
        found = self.language.log_likelihoods(four * len(editors), self.layer, edits, m.scoring == "cloze")
        return found.view(len(editors), len(four)).softmax(-1).float()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; special ones by their names, as <bos>."""
        names = self.language.tokenizer.convert_ids_to_tokens(list(ids))
        special = self.language.special_ids
        return [name if id in special else piece for id, name, piece in zip(ids, names, self.language.pieces(ids))]

    def _editors(self, variants: Sequence[Clamp | None]) -> list[Editor | None]:
        """An edit a variant; equal variants share one. Raises ValueError for a clamp that does not fit the SAE."""
        special = self.language.special_ids
        made = {clamp: None if clamp is None else editor_of(self.code, clamp, special) for clamp in variants}
        return [made[clamp] for clamp in variants]

    def _states(self, ids: list[int]) -> Tensor:
        """[1, T, D], float32: after the SAE's layer. Raises ValueError for a layer that is not there."""
        return self.language.states(self.language.batch([ids]), self.layer)
