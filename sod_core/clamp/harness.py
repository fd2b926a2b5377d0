"""EleutherAI's lm-evaluation-harness (an optional requirement) on a language model with an edit.

`model_class()` registers the model as "sod-clamp" with the harness; what it does is in `Answering`, which needs no
harness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..machine import processes
from ..models.passes import NotFinite
from . import judged
from .judged import Entry
from .pack import open_clamp_pack
from .work import Work

if TYPE_CHECKING:
    from ..models.language import Editor, LanguageModel
    from .pack import ClampPack

NAME = "sod-clamp"
BATCH_TOKENS = 4096
BATCH_LOGITS = 1 << 26
"""Numbers: 256 MB."""
MOST_WINDOW = 1024
"""Tokens of whole texts that are scored at a time: the logits of more would take gigabytes."""
MOST_GENERATED = 256
"""Tokens, where a task does not say how many; the harness's own default."""
Tokenised = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), ids of both)."""


class Answering:
    """What the harness asks of a model, by a LanguageModel and an edit after block `layer`.

    Every context begins with BOS where the tokenizer has one. What is longer than the context is cut at the left, and
    BOS stays.
    """

    def __init__(self, language: LanguageModel, layer: int | None = None, editor: Editor | None = None):
        super().__init__()
        self.language, self.editor = language, editor
        self.layer = None if editor is None else layer
        self.tokenizer = language.tokenizer

    @property
    def eot_token_id(self) -> int:
        return min(self.language.tokens.ends, default=self.language.tokens.pad)

    @property
    def prefix_token_id(self) -> int:
        """Stands for an empty context."""
        return self.eot_token_id if self.language.bos is None else self.language.bos

    @property
    def max_length(self) -> int:
        return self.language.context

    @property
    def window(self) -> int:
        return min(self.max_length, MOST_WINDOW)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """With one BOS, unless it is told not to; of any length."""
        ids = list(self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"])
        bos = self.language.bos
        if bos is None or add_special_tokens is False:
            return ids
        return ids if ids[:1] == [bos] else [bos, *ids]

    def _loglikelihood_tokens(self, requests: Sequence[Tokenised], **_: Any) -> list[tuple[float, bool]]:
        """Of each: the continuation's log-likelihood, and whether it is what greedy decoding would say."""
        rows = [self._cut(context, continuation) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for part in _batches([(len(c) + len(said), len(said)) for c, said in rows], self.language.tokens.vocabulary):
            batch = self.language.batch([[*rows[n][0], *rows[n][1]][:-1] for n in part])
            keep = max(len(rows[n][1]) for n in part)
            edits = None if self.editor is None else [self.editor] * len(part)
            logits = self.language.passes.logits(batch, keep, self.layer, edits)
            for n, row in zip(part, logits.log_softmax(-1)):
                wanted = batch.ids.new_tensor(rows[n][1])
                said = row[-len(wanted) :]
                told = said.gather(-1, wanted[:, None]).double().sum().item()
                found[n] = told, bool((said.argmax(-1) == wanted).all())
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that share no token, each with one token of context, the first with the prefix."""
        found = []
        for (string,) in (request.args for request in requests):
            ids = self.tok_encode(string, add_special_tokens=False)
            windows = [(("", ""), *window) for window in _windows(ids, self.prefix_token_id, self.window)]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(windows)))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of the `until` strings, greedy unless the task gives a temperature."""
        return [self._generated(*request.args) for request in tqdm(requests, disable=disable_tqdm or None)]

    def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        most = int(options.get("max_gen_toks", MOST_GENERATED))
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        prompt, _ = self._cut(self.tok_encode(context) or [self.prefix_token_id], [0] * min(most, self.max_length // 2))
        ids: list[int] = []
        text = ""
        for (id,) in self.language.generate(prompt, self.layer, [self.editor], most, temperature):
            if id is None:
                break
            ids.append(id)
            text = self.language.decode(ids)
            if any(stop in text for stop in stops):
                break
        return min((text.split(stop)[0] for stop in stops if stop), key=len, default=text)

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """What fits: the last token of all is not read, only said. A continuation too long for itself is an error."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(
                f"a continuation is {len(continuation)} tokens long, and the model reads {self.max_length}"
            )
        if len(context) <= room:
            return context, continuation
        if context[:1] == [self.language.bos]:
            return [context[0], *context[len(context) - room + 1 :]], continuation
        return context[-room:], continuation


def _windows(ids: list[int], prefix: int, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, continuation) of every stretch of a text, as the harness cuts it: the last one has all the context."""
    for start in range(0, len(ids), longest):
        end = min(start + longest, len(ids))
        yield ids[end - longest - 1 : start] if start else [prefix], ids[start:end]


def _batches(sizes: Sequence[tuple[int, int]], vocabulary: int) -> Iterator[list[int]]:
    """Numbers of rows of (tokens, tokens whose logits are kept), those of like length together."""
    part: list[int] = []
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row]):
        more = [*part, row]
        kept = max(sizes[n][1] for n in more)
        if part and (len(more) * sizes[row][0] > BATCH_TOKENS or len(more) * kept * vocabulary > BATCH_LOGITS):
            yield part
            more = [row]
        part = more
    if part:
        yield part


@cache
def model_class() -> type:
    """The class, registered with the harness as NAME. Raises ValueError where the harness is not installed.

    After it the harness takes model="sod-clamp", model_args="pack=almanac,preset=prime" (no preset: the untouched
    model).
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ValueError(
            f"EleutherAI's harness is not there ({error}): `pip install lm-eval`, or ask your own with --questions FILE"
        ) from error

    @register_model(NAME)
    class ClampLM(Answering, TemplateLM):
        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> ClampLM:
            return cls(*opened(**arg_dict))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> ClampLM:
            return cls(*opened(**dict(part.split("=", 1) for part in arg_string.split(",") if "=" in part)))

    return ClampLM


def opened(pack: str, preset: str = "", fidelity: str = "exact") -> tuple[LanguageModel, int | None, Editor | None]:
    """What `Answering` takes: a pack's model, with one of its presets. Raises PackError or ValueError."""
    found = open_clamp_pack(pack)
    if not preset:
        return found.language(), None, None
    entry = next((one for one in judged.edits(found, fidelity) if one.id == preset), None)
    if entry is None:
        raise ValueError(f"pack {pack} has no preset {preset!r}")
    return found.language(), judged.layer(found, entry), judged.editor(found, entry)


def run(
    pack: ClampPack,
    tasks: Sequence[str | dict[str, Any]],
    edits: Sequence[Entry] | None = None,
    limit: int | None = None,
    fidelity: str = "exact",
    keep: Path | None = None,
) -> dict[str, Any]:
    """The harness's figures of the untouched model, of edits (the pack's presets) and of the pack's other models.

    tasks: names that the harness knows (or its own form of a task, as a dictionary); limit: at most so many questions a
    task. keep, and several processes: as `evaluate.run`. Raises PackError or ValueError.
    """
    model_class()
    _check(tasks)
    own = judged.edits(pack, fidelity) if edits is None else edits
    entries = [judged.untouched(), *own, *judged.models(pack)]
    weights = {one.id: judged.weights_id(judged.language(pack, one).model) for one in entries if one.clamp is None}
    saes = {one.sae: judged.weights_id(pack.code(one.sae)) for one in entries if one.sae is not None}
    work = Work(keep, {"tasks": list(tasks), "limit": limit, "weights": weights, "saes": saes}, processes.rank())
    processes.wait()
    todo = [entry for entry in entries if judged.answers_key(entry) not in work.done]
    for entry in tqdm(processes.share(todo), desc="models", leave=False, disable=None):
        work.add(judged.answers_key(entry), _evaluated(pack, entry, tasks, limit))
    done = processes.gathered(work.done)
    rows = [
        {"id": one.id, "title": one.title, "kind": one.kind, "method": one.method, **done[judged.answers_key(one)]}
        for one in entries
    ]
    return {"format": 1, "kind": "clamp lm-eval", "pack": pack.manifest.name, "limit": limit, "rows": rows}


def _check(tasks: Sequence[str | dict[str, Any]]) -> None:
    """Raises ValueError for a task that the harness does not know."""
    named = [task for task in tasks if isinstance(task, str)]
    known = set(_manager().all_tasks) if named else set()
    unknown = [task for task in named if task not in known]
    if unknown or not tasks:
        what = repr(unknown[0]) if unknown else "of no name"
        raise ValueError(f"the harness knows no task {what}: `lm_eval ls tasks` lists them; commas stand between names")


@cache
def _manager() -> Any:
    """The harness's list of tasks, which it takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _evaluated(pack: ClampPack, entry: Entry, tasks: Sequence[Any], limit: int | None) -> dict[str, Any]:
    """{"results": {task: {metric: value, "n": questions}}}, or {"problem": a sentence}."""
    import lm_eval

    try:
        edit = judged.editor(pack, entry)
        model = model_class()(judged.language(pack, entry), judged.layer(pack, entry), edit)
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            limit=limit,
            log_samples=False,
            bootstrap_iters=1000,
            task_manager=_manager(),
        )
    except NotFinite as error:
        return {"results": {}, "problem": str(error)}
    results = {}
    for task, figures in (found or {})["results"].items():
        plain = {name.removesuffix(",none"): value for name, value in figures.items()}
        counts = (found or {}).get("n-samples", {}).get(task, {})
        results[task] = {name: value for name, value in plain.items() if isinstance(value, (int, float))}
        results[task] |= {"n": counts["effective"]} if "effective" in counts else {}
    return {"results": results, "problem": ""}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: a row a model, a column a task's accuracy (or its first figure)."""
    tasks = list(dict.fromkeys(task for row in found["rows"] for task in row["results"]))
    lines = ["| model | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for row in found["rows"]:
        if row["problem"]:
            lines.append(f"| {row['id']} | {row['problem']} |")
            continue
        cells = [_cell(row["results"].get(task, {})) for task in tasks]
        lines.append("| " + " | ".join([row["id"], *cells]) + " |")
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any]) -> str:
    name = "acc" if "acc" in figures else next((name for name in figures if "stderr" not in name and name != "n"), None)
    if name is None:
        return "–"
    error = figures.get(f"{name}_stderr")
    return f"{figures[name]:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")
