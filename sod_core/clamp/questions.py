"""The one reader of questions with four options: a file of one's own, or of a data set on the hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..machine.files import whole
from ..packs import hub, own
from ..packs.pickles import LARGEST, printable

LETTERS = "ABCD"
SUFFIXES = (".jsonl", ".csv", ".parquet")
WHAT = "--questions is a file (.jsonl, .csv or .parquet) or hub:user/dataset/file.parquet"


@dataclass(frozen=True)
class Question:
    """A question with four options, one of them right."""

    id: str
    field: str
    """What it is about: "potions", "high_school_us_history"."""
    question: str
    options: tuple[str, ...]
    """Four."""
    answer: int
    """The number of the right option, from 0."""
    reworded: tuple[str, ...] = ()
    """The same question in other words, where somebody has written some."""
    fact: str = ""
    """What it asks for: questions of one fact are never on both sides of a test that learns. "" stands for the id."""

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]

    @property
    def about(self) -> str:
        """The fact, or the id where none is said."""
        return self.fact or self.id


def find(text: str) -> Path:
    """The file that `--questions` names, fetched if it is on the hub. Raises PackError or ValueError."""
    if text.startswith(own.PREFIX):
        return hub.fetch(own.parse_hub(text)._replace(repo_type="dataset"))
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"there is no file {text}; {WHAT}")
    return path


def read_questions(path: Path, field: str | None = None, only: Collection[str] = ()) -> list[Question]:
    """The questions of a file, by its suffix. Raises ValueError with one sentence for a file that is not understood.

    `.jsonl`: an object a line with "question", "options", "answer", and perhaps "id", "field", "reworded", "fact".
    `.csv`: the columns question, A, B, C, D, answer, and perhaps id, field. `.parquet`: as `cais/wmdp` and `cais/mmlu`
    are: question, choices, answer, and perhaps subject. An answer is a number from 0 or a letter. Where a row has no
    field, it is `field`, else the name of the file, or of its folder where the file is called as the hub calls parts of
    data sets ("test-00000-of-00001").
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    read = readers.get(path.suffix.lower())
    name = printable(path.name)
    if read is None:
        raise ValueError(f"{name} is no file of questions; {WHAT}")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{name} was refused: it is larger than {LARGEST >> 20} MiB")
        rows = list(read(path))
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} cannot be read: it is not in UTF-8") from error
    other = field or _called(path)
    found = [
        _question(row, f"{name}, question {number}", other, number)
        for number, row in enumerate(rows, 1)
        if not only or (row.get("field") or row.get("subject") or other) in only
    ]
    if not found:
        raise ValueError(f"{name} holds no question")
    check_ids(found, name)
    return found


def check_ids(questions: Sequence[Question], name: str) -> None:
    """Raises ValueError where two questions have one id."""
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ValueError(f"{name} has two questions with the id {printable(question.id)!r}: give each its own")
        seen.add(question.id)


def write_questions(questions: Sequence[Question], path: Path) -> None:
    """As JSONL, which `read_questions` gives back; keys that say nothing are left out."""
    lines = []
    for question in questions:
        lines.append(json.dumps({key: value for key, value in asdict(question).items() if value not in ("", ())}))
    with whole(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- one question


def _question(row: dict[str, Any], where: str, field: str, number: int) -> Question:
    """Raises ValueError that names what is missing or wrong."""
    text, options = _text(row, "question", where), row.get("options", row.get("choices"))
    if not isinstance(options, (list, tuple)) or len(options) != len(LETTERS):
        count = len(options) if isinstance(options, (list, tuple)) else "no"
        raise ValueError(f"{where}: it has {count} options, and {len(LETTERS)} are needed")
    for letter, option in zip(LETTERS, options):
        if not isinstance(option, str) or not option.strip():
            raise ValueError(f"{where}: option {letter} is missing or no text")
    reworded = row.get("reworded") or ()
    if not isinstance(reworded, (list, tuple)) or not all(isinstance(r, str) and r.strip() for r in reworded):
        raise ValueError(f'{where}: "reworded" has to be a list of texts')
    named = row.get("field") or row.get("subject") or field
    return Question(
        id=f"{named}-{number}" if row.get("id") in (None, "") else str(row["id"]),
        field=str(named),
        question=text,
        options=tuple(option.strip() for option in options),
        answer=_answer(row.get("answer"), where),
        reworded=tuple(reworded),
        fact=str(row.get("fact") or ""),
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: the {key} is missing or no text")
    return value


def _answer(value: Any, where: str) -> int:
    """0 to 3, "0" to "3" or "A" to "D"."""
    text = value.strip().upper() if isinstance(value, str) else value
    if isinstance(text, str) and len(text) == 1:
        found = LETTERS.find(text) if text in LETTERS else int(text) if text.isdecimal() else -1
    else:
        found = text if isinstance(text, int) and not isinstance(text, bool) else -1
    if not 0 <= found < len(LETTERS):
        raise ValueError(f"{where}: the answer is {str(value)[:40]!r}; write 0 to 3 or A to D")
    return found


def _called(path: Path) -> str:
    """ "mine" of mine.jsonl, "wmdp-bio" of wmdp-bio/test-00000-of-00001.parquet."""
    return path.parent.name if "-of-" in path.stem and path.parent.name else path.stem


# ---------------------------------------------------------------- rows of a file


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{printable(path.name)}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{printable(path.name)}, line {number} is no object in braces")
        yield row


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restkey="")
    columns = table.fieldnames or []
    lacking = [name for name in ("question", *LETTERS, "answer") if name not in columns]
    if lacking:
        raise ValueError(
            f"{printable(path.name)} has no column {lacking[0]!r} in its first line; "
            "needed are question, A, B, C, D, answer"
        )
    try:
        for row in table:
            if "" in row:
                raise ValueError(f"{printable(path.name)}, line {table.line_num} has more cells than there are columns")
            yield row | {"options": [row[letter] for letter in LETTERS]}
    except csv.Error as error:
        raise ValueError(f"{printable(path.name)}, line {table.line_num} cannot be read: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        there = file.schema_arrow.names
        lacking = [name for name in ("question", "choices", "answer") if name not in there]
        if lacking:
            raise ValueError(f"{printable(path.name)} has no column {lacking[0]!r}; it has {', '.join(there)}")
        columns = [name for name in ("question", "choices", "answer", "subject", "field", "id") if name in there]
        yield from file.read(columns=columns).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{printable(path.name)} cannot be read as Parquet ({type(error).__name__})") from error
