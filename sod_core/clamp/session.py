"""One visitor's prompt in a language model: `set_prompt` is heavy, once; texts, what fired and options are light.

The edit acts on a decoder layer's output, so what fires there depends on the tokens alone, never on the edit:
`fired` looks at a finished text as well as at one that is still growing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from ..models.language import LanguageModel
    from ..sparse.code import Code
    from .edit import Clamp
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
    """Whether the edit changed the hidden state of this token."""
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
        raise NotImplementedError

    def fired(self, clamp: Clamp, generated: Sequence[int] = ()) -> list[Token]:
        """Every token of the prompt, then of a generated text (Step.generated), with what fired on it.

        The prompt's hidden states are kept, so that without `generated` only the SAE's few columns are computed.
        Raises ValueError for a clamp that does not fit the SAE.
        """
        raise NotImplementedError

    def options(self, question: Question, variants: Sequence[Clamp | None]) -> Tensor:
        """[variants, 4], float32: the probability of each option, which sum to 1, all variants in one batch.

        The question is put as the pack's `scoring` says; the prompt of the session is not concerned.
        """
        raise NotImplementedError

    def _states(self, ids: list[int]) -> Tensor:
        """[1, T, D], float32: after the SAE's layer."""
        raise NotImplementedError
