"""A pack in, one table out: every edit, its controls and the pack's other models on the judged questions, and the ways
back.

Every row is a job, and jobs are independent: several processes (`accelerate launch`) divide them, and a killed run goes
on with those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from ..machine import processes
from . import judge, judged, report, ways_back
from .judged import UNTOUCHED, Board, Entry, Settings, answers_key, way_key
from .questions import LETTERS, Question
from .ways_back import Paper
from .work import Work

if TYPE_CHECKING:
    from .pack import ClampPack
    from .survey import Survey

__all__ = ["Board", "Settings", "run"]


class Job(NamedTuple):
    key: str
    run: Callable[[], dict[str, Any]]


def run(
    pack: ClampPack,
    settings: Settings,
    questions: Sequence[Question] | None = None,
    forget: Collection[str] | None = None,
    fidelity: str = "exact",
    keep: Path | None = None,
    edits: Sequence[Entry] | None = None,
    surveys: Mapping[str, Survey] | None = None,
) -> dict[str, Any]:
    """Everything that `report.results` describes. Raises PackError or ValueError.

    questions, forget, edits, surveys: in place of the pack's own questions, fields to forget, presets and, {SAE: it},
    surveys. keep: a folder for the rows so far; a run with the same settings goes on from there, rows of others are
    refused. An edit whose model gives
    no numbers is a row that says so. Under `accelerate launch` every process takes its share of the jobs, and all of
    them return the table.
    """
    board = Board(pack, settings, questions, forget, fidelity, edits, surveys)
    work = Work(keep, board.fingerprint(), processes.rank())
    processes.wait()  # until all have read what is done
    if settings.every_order:
        board.questions = _sure(board, work)
    todo = [job for job in jobs(board) if job.key not in work.done]
    for job in tqdm(processes.share(todo), desc="rows", leave=False, disable=None):
        work.add(job.key, job.run())
    done = processes.gathered(work.done)
    return report.results(board, done)


def _sure(board: Board, work: Work) -> list[Question]:
    """The questions that the untouched model answers rightly under every order.

    Raises ValueError where none is left.
    """
    key = "right in every order"
    if key not in work.done:
        kept = processes.by_main(
            lambda: judge.right_in_every_order(
                board.pack.language(), board.questions, board.subjects, board.pack.manifest.scoring
            )
        )
        work.add(key, {"ids": [question.id for question in kept]})
    ids = set(work.done[key]["ids"])
    found = [question for question in board.questions if question.id in ids]
    if not any(question.field in board.forget for question in found):
        raise ValueError("the untouched model answers no question to forget rightly in every order of its options")
    return found


# ---------------------------------------------------------------- jobs


def jobs(board: Board) -> Iterator[Job]:
    """All that has to be measured; what is the same edit is measured once."""
    seen = set()
    points = [entry for line in board.curves().values() for _, entry in line]
    for entry in (*board.entries, *points):
        if answers_key(entry) not in seen:
            seen.add(answers_key(entry))
            yield Job(answers_key(entry), partial(_answers, board, entry))
    paper = paper_of(board)
    for entry in board.tried():
        for way in board.ways():
            yield Job(way_key(way, entry), partial(_way, board, entry, way, paper))


def _answers(board: Board, entry: Entry) -> dict[str, Any]:
    """{"chosen": a letter a question}, or {"problem": a sentence}. Raises where the untouched model gives none."""
    try:
        edit = judged.editor(board.pack, entry)
        found = judge.answers(
            judged.language(board.pack, entry),
            board.questions,
            board.subjects,
            board.pack.manifest.scoring,
            None if edit is None else judged.layer(board.pack, entry),
            edit,
        )
    except ValueError as error:
        if entry.kind == UNTOUCHED:
            raise
        return {"problem": " ".join(str(error).split())}
    return {"chosen": "".join(LETTERS[n] for n in found.chosen.tolist())}


def paper_of(board: Board) -> Paper:
    """The questions to forget, and those of other fields to solve before them."""
    asked = tuple(question for question in board.questions if question.field in board.forget)
    others = tuple(question for question in board.questions if question.field not in board.forget)
    return Paper(asked, others, board.subjects, board.pack.manifest.scoring, board.settings.seed)


def _way(board: Board, entry: Entry, way: str, paper: Paper) -> dict[str, Any]:
    try:
        found = ways_back.measure(way, board.subject(entry), paper)
    except ValueError as error:  # a model that cannot be loaded
        found = ways_back.Figure(None, {}, " ".join(str(error).split()))
    return found._asdict() | {"share": None if found.share is None else found.share._asdict()}
