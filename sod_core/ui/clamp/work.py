"""What the Clamp tab computes: answers side by side, judged questions, and what the latents fire on. No screen here."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...clamp.pack import ClampPack
from .asking import Asking
from .figures import Point
from .scatter import Firing, Word
from .shown import PRIME, REFUSAL, TITLES, UNTOUCHED, Answered, Column

if TYPE_CHECKING:
    from ...clamp import judge
    from ...clamp.edit import Clamp
    from ...clamp.questions import Question
    from ...clamp.session import ClampSession, Token

MODEL = "model:"
"""Begins the choice of another model of the pack; any other choice of a fourth column is a method."""
LOOKS = 0.2
"""The share of the time that goes into looking at what fires while texts grow."""
CHUNK = 16
"""Judged questions between two looks at Cancel."""
KEPT = 64
"""Answers that are kept: a model that draws nothing by lot says the same again."""

Tell = Callable[[Answered], None]
Cancelled = Callable[[], bool]


# ------------------------------------------------------------ what is edited


def preset(pack: ClampPack, sae: str, method: str):
    """The pack's first preset of a method for an SAE; None where it has none."""
    return next((one for one in pack.manifest.presets if one.sae == sae and one.method == method), None)


def clamps(pack: ClampPack, asking: Asking) -> dict[str, Clamp]:
    """{column: its clamp}: Clamp Prime, Refusal Clamp where a refusal latent is known, and the method beside them.

    Where the latents are the pack's own, Refusal Clamp has its own preset's, which may be more. Raises ValueError.
    """
    from ...clamp.edit import Clamp

    if not asking.latents:
        raise ValueError("no latent is chosen: take a rule, or write a list")
    of_refusal = preset(pack, asking.sae, REFUSAL) if asking.rule == "preset" else None
    prime = Clamp(asking.latents, PRIME, asking.value, fidelity=asking.fidelity)
    found = {PRIME: prime}
    wide = replace(prime, threshold=asking.threshold, refusal=asking.refusal, refusal_value=asking.refusal_value)
    if asking.refusal is not None:
        found[REFUSAL] = replace(wide, method=REFUSAL, latents=of_refusal.latents if of_refusal else asking.latents)
    if asking.beside and not asking.beside.startswith(MODEL):
        if asking.beside == "both" and asking.refusal is None:
            raise ValueError("both clamps together need a refusal latent: give one under Advanced")
        found[asking.beside] = replace(wide, method=asking.beside)
    for clamp in found.values():
        clamp.check(pack.code(asking.sae))
    return found


def rule_latents(pack: ClampPack, sae: str, rule: str, top: int, seed: int) -> list[int]:
    """The latents that a rule of RULES finds. Raises ValueError."""
    from ...clamp import settings

    if rule == "preset":
        found = preset(pack, sae, PRIME) or preset(pack, sae, REFUSAL)
        if found is None:
            raise ValueError(f"the pack has no setting of its own for {sae}; take a rule")
        return list(found.latents)
    asked = settings.Asked(method=PRIME, sae=sae, features=rule, top=top, seed=seed)
    chosen = settings.choose(pack, asked)
    return [] if chosen.clamp is None else list(chosen.clamp.latents)


# ------------------------------------------------------------ answers


_answers: OrderedDict[tuple, Answered] = OrderedDict()
_answering = threading.Lock()


def known(pack: ClampPack, asking: Asking) -> Answered | None:
    """The answer that somebody was given before to the same question with the same controls."""
    with _answering:
        return _answers.get((pack.manifest.folder, asking))


def answer(pack: ClampPack, asking: Asking, tell: Tell, cancelled: Cancelled) -> Answered:
    """Every column's text, told as it grows; where it was cancelled, as far as it came. Raises ValueError."""
    from ...clamp.session import ClampSession

    edits = clamps(pack, asking)
    session = ClampSession(pack, asking.sae)
    session.set_prompt(asking.prompt)
    question = judged_question(pack, asking)
    growing = _Growing(session, edits, asking.beside)
    if question is not None:
        growing.ask(question)
    tell(growing.shown())
    look, spent = 0.0, 0.0
    for step in session.texts(growing.variants, asking.tokens, seed=asking.seed, cancelled=cancelled):
        growing.take(step.generated, step.ids)
        if time.monotonic() >= look:
            begun = time.monotonic()
            tell(growing.shown())
            spent = time.monotonic() - begun
            look = time.monotonic() + max(spent / LOOKS, 0.1)
    if growing.other is not None and not cancelled():
        tell(growing.shown())
        for ids in growing.other_text(asking, cancelled):
            growing.other_ids = ids
            if time.monotonic() >= look:
                tell(growing.shown())
                look = time.monotonic() + 0.3
    found = growing.shown(finished=True)
    if not cancelled():
        with _answering:
            _answers[pack.manifest.folder, asking] = found
            while len(_answers) > KEPT:
                _answers.popitem(last=False)
    return found


def judged_question(pack: ClampPack, asking: Asking) -> Question | None:
    """The multiple-choice question that is asked; None once its words were changed."""
    if not asking.judged:
        return None
    found = next((one for one in pack.questions("judge") if one.id == asking.judged), None)
    return found if found is not None and found.question.strip() == asking.prompt.strip() else None


class _Growing:
    """The columns of one question while their texts grow."""

    def __init__(self, session: ClampSession, edits: dict[str, Clamp], beside: str):
        self.session, self.edits = session, edits
        self.keys = [UNTOUCHED, *edits]
        self.variants = [None, *edits.values()]
        self.watched = self._watched()
        self.generated: tuple[tuple[int, ...], ...] = ((),) * len(self.keys)
        self.ended = [False] * len(self.keys)
        special = session.language.special_ids
        self.prompt = tuple(token for token in session.fired(self.watched) if token.id not in special)
        self.scores: list[tuple[float, ...]] = [()] * len(self.keys)
        self.options: tuple[str, ...] = ()
        self.right: int | None = None
        self.other = beside.removeprefix(MODEL) if beside.startswith(MODEL) else None
        self.other_ids: tuple[int, ...] = ()
        self.other_scores: tuple[float, ...] = ()

    def _watched(self) -> Clamp:
        """A clamp that edits nothing: the latents of all columns, for the texts that no edit touches."""
        every = dict.fromkeys(latent for clamp in self.edits.values() for latent in clamp.latents)
        return replace(self.edits[PRIME], latents=tuple(every), method="none", threshold=0.0)

    def ask(self, question: Question) -> None:
        """Scores the options of a multiple-choice question in every column."""
        from ...clamp import judge

        self.options, self.right = question.options, question.answer
        self.scores = [tuple(row) for row in self.session.options(question, self.variants).tolist()]
        if self.other is not None:
            m = self.session.pack.manifest
            found = judge.answers(self.session.pack.other(self.other), [question], m.subjects(), m.scoring)
            self.other_scores = tuple(found.scores[0].softmax(-1).tolist())

    def take(self, generated: tuple[tuple[int, ...], ...], ids: tuple[int | None, ...]) -> None:
        self.generated, self.ended = generated, [id is None for id in ids]

    def other_text(self, asking: Asking, cancelled: Cancelled) -> Iterator[tuple[int, ...]]:
        """The other model's text, a token longer each time."""
        ids: list[int] = []
        model = self.session.pack.other(self.other or "")
        for (id,) in model.generate(self.session.prompt, None, [None], asking.tokens, 0.0, asking.seed, cancelled):
            ids += [] if id is None else [id]
            yield tuple(ids)

    def shown(self, finished: bool = False) -> Answered:
        columns = [
            Column(key, TITLES[key], clamp, self._tokens(clamp, ids), finished or ended, scores)
            for key, clamp, ids, ended, scores in zip(self.keys, self.variants, self.generated, self.ended, self.scores)
        ]
        if self.other is not None:
            title = self.session.pack.manifest.other(self.other).title
            columns.append(Column("other", title, None, self._plain(self.other_ids), finished, self.other_scores))
        return Answered(self.prompt, tuple(columns), self.options, self.right)

    def _tokens(self, clamp: Clamp | None, ids: tuple[int, ...]) -> tuple[Token, ...]:
        if not ids:
            return ()
        found = self.session.fired(clamp or self.watched, ids)
        special = self.session.language.special_ids
        return tuple(token for token in found if token.generated and token.id not in special)

    def _plain(self, ids: tuple[int, ...]) -> tuple[Token, ...]:
        from ...clamp.session import Token

        pieces = self.session.language.pieces(ids)
        return tuple(Token(id, piece, (), False, True) for id, piece in zip(ids, pieces))


# ------------------------------------------------------------ judged questions


@dataclass(frozen=True)
class Measured:
    """What "Measure here" found."""

    rows: dict[str, Point]
    """untouched, prime, refusal, random, matched."""
    forget_questions: int
    retain_questions: int


def some_questions(pack: ClampPack, per_field: int) -> list[Question]:
    """So many judged questions of every field, drawn by lot but always the same."""
    found = []
    for field in pack.manifest.fields:
        every = [question for question in pack.questions("judge") if question.field == field.id]
        found += random.Random(field.id).sample(every, min(per_field, len(every)))
    return found


def measure(
    pack: ClampPack, asking: Asking, per_field: int, tell: Callable[[float, str], None], cancelled: Cancelled
) -> Measured | None:
    """Judges both clamps and both controls as the page is set. None where it was cancelled. Raises ValueError."""
    import torch

    from ...clamp import judge
    from ...clamp.editor import editor_of

    m, language, code = pack.manifest, pack.language(), pack.code(asking.sae)
    questions, forget = some_questions(pack, per_field), m.forget()
    edits = clamps(pack, asking)
    every: dict[str, Clamp | None] = {UNTOUCHED: None} | {key: edits[key] for key in (PRIME, REFUSAL) if key in edits}
    every |= _controls(pack, asking, edits[PRIME])
    answers: dict[str, judge.Answers] = {}
    total, done = len(every) * len(questions), 0
    for key, clamp in every.items():
        editor = None if clamp is None else editor_of(code, clamp, language.special_ids)
        parts = []
        for at in range(0, len(questions), CHUNK):
            if cancelled():
                return None
            some = questions[at : at + CHUNK]
            parts.append(judge.answers(language, some, m.subjects(), m.scoring, m.sae(asking.sae).layer, editor))
            done += len(some)
            tell(done / total, TITLES.get(key, key))
        answers[key] = judge.Answers(tuple(questions), torch.cat([part.scores for part in parts]))
    kept = tuple(field.id for field in m.fields if not field.forget)
    return _measured(asking, answers, forget, kept)


def _measured(
    asking: Asking, answers: dict[str, judge.Answers], forget: Sequence[str], retain: Sequence[str]
) -> Measured:
    from ...clamp import judge

    shares = {key: [judge.accuracy(found, fields) for fields in (forget, retain)] for key, found in answers.items()}
    lost, kept = shares[UNTOUCHED]
    rows = {}
    for key, (f, r) in shares.items():
        value = asking.refusal_value if key == REFUSAL else asking.value
        aligned = judge.alignment(r.value, kept.value, f.value, lost.value)
        rows[key] = Point(value, f.value, r.value, aligned, judge.collapse(answers[key]))
    return Measured(rows, lost.n, kept.n)


def _controls(pack: ClampPack, asking: Asking, prime: Clamp) -> dict[str, Clamp]:
    """As many random latents, and as many that fire as often; none where nothing was surveyed."""
    from ...clamp import select, settings

    survey = pack.survey(asking.sae)
    if survey is None:
        return {}
    found = {
        kind: settings.control(kind, survey, prime.latents, asking.refusal, asking.seed) for kind in select.CONTROLS
    }
    return {kind: replace(prime, latents=tuple(latents)) for kind, latents in found.items()}


# ------------------------------------------------------------ latents


def firing(pack: ClampPack, sae: str) -> list[Firing]:
    """How often every latent fires on the pack's texts; empty where nothing was surveyed."""
    survey = pack.survey(sae)
    if survey is None:
        return []
    both = zip(survey.forget_frequency.tolist(), survey.retain_frequency.tolist())
    return [Firing(latent, forget, retain) for latent, (forget, retain) in enumerate(both)]


def words(pack: ClampPack, sae: str, latent: int) -> list[Word]:
    """Where a latent fires most on the pack's texts. Raises ValueError for a latent that there is not."""
    survey = pack.survey(sae)
    if survey is None:
        raise ValueError(
            "the pack has no survey of this sparse autoencoder, so that nobody knows what its latents fire on"
        )
    passages = survey.passages(latent, pack.language(), pack.corpus("forget"), pack.corpus("retain"))
    return [Word(*passage, hit.value) for passage, hit in zip(passages, survey.strongest(latent))]
