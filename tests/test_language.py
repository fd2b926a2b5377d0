"""Language models: found layers, batches, edits a row, generation, and what is refused, against a plain second way."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import language_families as tiny
import pytest
import torch
from language_families import BOS, CONTEXT, DEPTH, EOS, PAD, WIDTH, WORDS, plain_generate, plain_logits
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sod_core.models import decoder_layers, generation, language, passes
from sod_core.models.language import LanguageModel, NotFinite

TEXTS = ("hello, world", "a", "a longer text than the window")
LAYER = 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("languages")
    for family in tiny.FAMILIES:
        tiny.saved(root / family, family)
    return root


@pytest.fixture(scope="module")
def models(folders: Path) -> dict[str, LanguageModel]:
    return {family: language.load(folders / family) for family in tiny.FAMILIES}


@pytest.fixture(params=tiny.FAMILIES)
def of_family(request, models) -> LanguageModel:
    return models[request.param]


@pytest.fixture
def gemma(models) -> LanguageModel:
    return models["gemma3"]


def push(strength: float, seed: int = 0) -> Any:
    """An editor that adds a direction to the tokens of odd ids."""
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * strength

    def edit(hidden: Tensor, ids: Tensor) -> Tensor:
        return torch.where((ids % 2 == 1)[..., None], hidden + direction, hidden)

    return edit


def rows_of(found: Iterator[tuple[int | None, ...]]) -> list[list[int]]:
    """The ids of each row."""
    return [[id for id in row if id is not None] for row in zip(*found)]


def hooks(model: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


# ---------------------------------------------------------------- layers and states


def test_the_layers_are_found(of_family):
    assert of_family.layers == list(tiny.layers_of(of_family.model)) and hooks(of_family) == 0
    assert (of_family.depth, of_family.width, of_family.context) == (DEPTH, WIDTH, CONTEXT)


class Nested(nn.Module):
    """Layers that give tuples, in a list without a telling name; lists of the same length lie beside and before it."""

    def __init__(self, tail: int = 0):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.before = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.stack = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.beside = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(DEPTH))
        self.tail = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(tail))

    def forward(self, ids: Tensor, use_cache: bool = False) -> Tensor:
        x = self.embed(ids) + sum(layer(self.embed(ids)) for layer in self.before)
        for layer, norm in zip(self.stack, self.beside):
            x = layer(x)
            norm(x)
        for layer in self.tail:
            x = layer(x)
        return x


def test_of_several_lists_the_one_that_carries_the_stream_is_taken():
    model = Nested()
    assert decoder_layers.find(model, DEPTH) == list(model.stack)
    for ambiguous, depth in ((Nested(tail=DEPTH), DEPTH), (model, DEPTH + 1)):
        with pytest.raises(ValueError, match="list"):
            decoder_layers.find(ambiguous, depth)


def test_a_model_whose_passes_differ_is_refused():
    import transformers as t

    bloom = t.BloomForCausalLM(t.BloomConfig(vocab_size=WORDS, hidden_size=WIDTH, n_layer=DEPTH, n_head=2))
    with pytest.raises(ValueError, match="a BloomForCausalLM cannot be used: its passes take no position_ids"):
        LanguageModel(bloom, tiny.tokenizer())


def test_a_layer_may_give_a_tuple():
    class Old(nn.Module):
        def forward(self, x: Tensor) -> tuple:
            return x, "attention"

    with decoder_layers.edited(layer := Old(), lambda hidden: hidden + 1):
        found = layer(torch.zeros(2, 1, 3))
    assert found[1] == "attention" and torch.equal(found[0], torch.ones(2, 1, 3))
    assert torch.equal(decoder_layers.until(layer, lambda: layer(torch.ones(2, 1, 3))), torch.ones(2, 1, 3))
    assert not layer._forward_hooks


def test_states_are_the_layers_outputs_and_no_later_layer_runs(of_family):
    rows = [of_family.encode(text) for text in TEXTS]
    batch = of_family.batch(rows)
    ran = []
    handles = [m.register_forward_hook(lambda m, *_, i=i: ran.append(i)) for i, m in enumerate(of_family.layers)]
    found = of_family.states(batch, LAYER)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1] and found.dtype == torch.float32
    assert bool((found[~batch.mask] == 0).all())
    for row, states in zip(rows, found):
        kept: list[Tensor] = []
        plain_logits(of_family.model, row, LAYER, lambda hidden, ids, kept=kept: kept.append(hidden[0]) or hidden)
        torch.testing.assert_close(states[-len(row) :], kept[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="layers are 0 to 2"):
        of_family.states(batch, DEPTH)
    with pytest.raises(ValueError, match="layers are 0 to 2"):
        of_family.states(batch, -1)


# ---------------------------------------------------------------- batches


def test_a_batch_gives_what_each_row_gives_alone(of_family):
    rows = [of_family.encode(text) for text in TEXTS]
    edits = [push(3.0), None, push(-2.0, 1)]
    for layer, each in ((None, None), (LAYER, edits)):
        found = of_family.next_logits(of_family.batch(rows), layer, each)
        for i, row in enumerate(rows):
            plain = plain_logits(of_family.model, row, layer, each and each[i])[-1]
            torch.testing.assert_close(found[i], plain, atol=1e-4, rtol=0)
            assert found[i].argmax() == plain.argmax()
    assert (found[0] - plain_logits(of_family.model, rows[0])[-1]).abs().max() > 0.01


def test_an_edit_that_changes_nothing_leaves_every_bit(of_family):
    batch = of_family.batch([of_family.encode(text) for text in TEXTS])
    for nothing in ([lambda hidden, ids: hidden] * 3, [None] * 3, [lambda hidden, ids: hidden + 0.0, None, None]):
        assert torch.equal(of_family.next_logits(batch, LAYER, nothing), of_family.next_logits(batch))


def test_what_an_edit_does_at_padding_is_undone(gemma):
    """On a batch with padding the edit of a row is the one of the row alone, even where pad ids are edited."""
    batch = gemma.batch([gemma.encode(text) for text in TEXTS])
    assert bool((batch.ids[~batch.mask] == PAD).all())
    at_pad = gemma.next_logits(batch, LAYER, [lambda hidden, ids: hidden + (ids == PAD)[..., None] * 1e3] * 3)
    assert torch.equal(at_pad, gemma.next_logits(batch))
    hidden = torch.randn(3, batch.ids.shape[1], 4)
    found = passes._edit(hidden, batch.ids, [(slice(0, 3), lambda hidden, ids: hidden + 1)], ~batch.mask[..., None])
    assert torch.equal(found, torch.where(batch.mask[..., None], hidden + 1, hidden))


def test_an_edit_is_in_float32_and_cast_once(folders):
    half = language.load(folders / "llama", dtype=torch.bfloat16)
    kinds = []

    def edit(hidden: Tensor, ids: Tensor) -> Tensor:
        kinds.append(hidden.dtype)
        return hidden + 0.001 - 0.001 + 1e-4  # lost where each sum is rounded to 8 bits

    got = []
    handle = half.layers[LAYER + 1].register_forward_pre_hook(lambda m, args: got.append(args[0]))
    batch = half.batch([half.encode("hello")])
    half.next_logits(batch, LAYER, [edit])
    half.next_logits(batch)
    handle.remove()
    assert kinds == [torch.float32] and got[0].dtype == torch.bfloat16
    assert torch.equal(got[0], (got[1].float() + 0.001 - 0.001 + 1e-4).bfloat16())


def test_half_precision_is_that_of_transformers(folders):
    import transformers

    for family in ("gemma3", "llama"):
        found = language.load(folders / family, dtype=torch.bfloat16)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folders / family, dtype=torch.bfloat16)
        row = list(range(5, 50))
        with torch.inference_mode():
            wanted = theirs(torch.tensor([row])).logits[0, -1]
        assert found.model.dtype == torch.bfloat16
        assert torch.equal(found.next_logits(found.batch([row]))[0], wanted.float())


def test_log_likelihoods(of_family, monkeypatch):
    context = of_family.encode("the answer is")
    other = of_family.encode("b")
    pairs = [(context, [70]), (context, [71]), (other, [72, 73, 74]), (context, [75, 76]), (other, [72, 73, 75])]
    edits = [push(3.0), push(3.0), None, None, None]
    edits[1] = edits[0]

    def plain(n: int, edit: Any) -> Tensor:
        before, after = pairs[n]
        logs = plain_logits(of_family.model, before + after, LAYER, edit).double().log_softmax(-1)
        return torch.stack([logs[len(before) - 1 + i, id] for i, id in enumerate(after)])

    for given, each in ((None, [None] * 5), (edits[0], [edits[0]] * 5), (edits, edits)):
        for normalised in (False, True):
            found = of_family.log_likelihoods(pairs, LAYER, given, normalised)
            wanted = torch.stack(
                [plain(n, each[n]).mean() if normalised else plain(n, each[n]).sum() for n in range(5)]
            )
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    rows = []
    whole = of_family.passes.logits
    monkeypatch.setattr(
        of_family.passes, "logits", lambda batch, *rest: rows.append(len(batch.ids)) or whole(batch, *rest)
    )
    monkeypatch.setattr(language, "TOKENS_AT_ONCE", 8)
    again = of_family.log_likelihoods(pairs, LAYER, edits)  # float32, in batches of other sizes
    torch.testing.assert_close(again, found * torch.tensor([1, 1, 3, 2, 3]), atol=1e-5, rtol=1e-5)
    assert sum(rows) == 3 and len(rows) > 1  # continuations that differ in the last token are one row
    for wrong in ([(context, [])], [([], [70])]):
        with pytest.raises(ValueError, match="continuation"):
            of_family.log_likelihoods(wrong)


# ---------------------------------------------------------------- generation


def test_generation_gives_the_tokens_of_a_plain_one_without_cache(of_family):
    """Beyond the sliding window of Gemma, too: the prompt is longer than it, and so is what follows."""
    prompt = of_family.encode("a longer prompt")
    edits = [None, push(2.0), push(2.0), push(-3.0, 1)]
    for settings in ({}, {"temperature": 1.5, "seed": 3}):
        found = rows_of(of_family.generate(prompt, LAYER, edits, 30, **settings))
        wanted = [plain_generate(of_family.model, prompt, LAYER, edit, 30, *settings.values()) for edit in edits]
        assert found == wanted
    assert len({tuple(row) for row in found}) > 1


def test_a_row_depends_on_its_edit_and_seed_alone(gemma):
    prompt, edit = gemma.encode("ab"), push(2.0)
    settings = {"temperature": 2.0, "seed": 5}
    (alone,) = rows_of(gemma.generate(prompt, LAYER, [edit], 20, **settings))
    others = rows_of(gemma.generate(prompt, LAYER, [push(-5.0, 2), None, edit], 20, **settings))
    assert others[2] == alone and others[1] == rows_of(gemma.generate(prompt, None, [None], 20, **settings))[0]
    assert alone != rows_of(gemma.generate(prompt, LAYER, [edit], 20, temperature=2.0, seed=6))[0]


def test_a_row_that_has_ended_gives_none_and_is_edited_no_more(gemma, monkeypatch):
    prompt, seen = gemma.encode("ab"), []
    true = gemma.passes.logits

    def logits(batch, keep, layer, edits, cache):
        seen.append((batch.ids[:, -1].tolist(), [edit is not None for edit in edits]))
        found = true(batch, keep, layer, edits, cache).clone()
        found[..., EOS] = -1e9
        if len(seen) == 3:
            found[0, :, EOS] = 1e9
        return found

    monkeypatch.setattr(gemma.passes, "logits", logits)
    found = list(gemma.generate(prompt, LAYER, [push(1.0), push(2.0)], 6))
    assert [row[0] is None for row in found] == [False, False, True, True, True, True]
    assert all(row[1] is not None and row[1] != EOS for row in found)
    assert [edited for _, edited in seen] == [[True, True]] * 3 + [[False, True]] * 3
    assert [ids[0] for ids, _ in seen[3:]] == [PAD] * 3


def test_a_generation_ends_with_all_rows_and_with_the_context(gemma, monkeypatch):
    prompt = gemma.encode("x" * (CONTEXT - 5))
    monkeypatch.setattr(gemma.tokens, "ends", frozenset())
    assert len(list(gemma.generate(prompt, None, [None], 64))) == CONTEXT - len(prompt) + 1
    monkeypatch.setattr(gemma.tokens, "ends", frozenset(range(WORDS)))
    assert list(gemma.generate(prompt, None, [None, None], 64)) == []


def test_a_temperature_near_0_is_greedy():
    logits = torch.tensor([[-3.0, 2.0, 1.9], [50.0, -1e4, 49.0]])
    draws = [torch.Generator().manual_seed(0) for _ in logits]
    for temperature in (0.0, 1e-3, 1e-320):
        assert generation.choose(logits, temperature, draws) == [1, 0]


def test_settings_that_cannot_be(gemma):
    prompt = gemma.encode("a")
    for wrong, said in (
        ({"prompt": []}, "a prompt has 1 to"),
        ({"prompt": [5] * (CONTEXT + 1)}, "a prompt has 1 to"),
        ({"edits": []}, "at least one row"),
        ({"tokens": 0}, "at least one row and one token"),
        ({"layer": None}, "an edit needs its layer"),
        ({"layer": 9}, "layers are 0 to 2"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=said):
            gemma.generate(**{"prompt": prompt, "layer": LAYER, "edits": [push(1.0)], **wrong})
    with pytest.raises(ValueError, match="one entry for each of the 1 rows"):
        gemma.next_logits(gemma.batch([prompt]), LAYER, [push(1.0)] * 2)


def test_huge_coefficients_are_told_in_a_sentence(gemma):
    prompt = gemma.encode("abc")
    for huge in (float("inf"), float("nan")):
        with pytest.raises(NotFinite, match="closer to 0"):
            list(gemma.generate(prompt, LAYER, [push(huge)], 3))
    assert hooks(gemma) == 0 and gemma.next_logits(gemma.batch([prompt])).isfinite().all()
    broken = language.with_weights(gemma, {NORM: torch.full([WIDTH], 3e38)})
    with pytest.raises(NotFinite, match="float32"):
        broken.next_logits(broken.batch([prompt]))


# ---------------------------------------------------------------- hooks and visitors


def test_the_hook_is_gone_after_an_error_a_cancel_and_a_visitor_who_left(gemma):
    prompt = gemma.encode("abc")
    before = rows_of(gemma.generate(prompt, None, [None], 5))

    def broken(hidden: Tensor, ids: Tensor) -> Tensor:
        raise KeyError("broken")

    with pytest.raises(KeyError):
        list(gemma.generate(prompt, LAYER, [broken], 5))
    asked = []
    cancelled = list(gemma.generate(prompt, LAYER, [push(9.0)], 9, cancelled=lambda: asked.append(1) or len(asked) > 3))
    assert len(cancelled) == 3 and hooks(gemma) == 0
    left = gemma.generate(prompt, LAYER, [push(9.0)], 5)
    next(left)
    assert hooks(gemma) == 0  # between tokens there is none
    left.close()
    assert hooks(gemma) == 0 and rows_of(gemma.generate(prompt, None, [None], 5)) == before


def test_visitors_at_the_same_time_get_what_each_gets_alone(gemma):
    prompts = [gemma.encode(text) for text in ("hello", "good bye", "a", "what")]
    edits = [[push(2.0)], [None, push(-4.0, 1)], [push(6.0, 2), None, push(1.0, 3)], [None]]
    alone = [rows_of(gemma.generate(p, LAYER, e, 25)) for p, e in zip(prompts, edits)]
    start = threading.Barrier(4)

    def visit(n: int) -> list[list[int]]:
        start.wait()
        return rows_of(gemma.generate(prompts[n], LAYER, edits[n], 25))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(visit, range(4))) == alone
    assert hooks(gemma) == 0


def test_a_pass_holds_the_devices_turn_and_a_generation_does_not(gemma, monkeypatch):
    held: list[str] = []

    @contextmanager
    def turn(device: torch.device) -> Iterator[None]:
        held.append(device.type)
        yield
        held.pop()

    monkeypatch.setattr(passes.gpu, "turn", turn)
    inside: list[list[str]] = []

    def watch(hidden: Tensor, ids: Tensor) -> Tensor:
        inside.append(list(held))
        return hidden

    for _ in gemma.generate(gemma.encode("abc"), LAYER, [watch], 3):
        assert held == []
    assert inside == [["cpu"]] * 3


def test_visitors_take_turns(gemma):
    """A generation does not wait for the end of another that has begun."""
    order: list[str] = []
    start = threading.Barrier(2)

    def visit(name: str) -> None:
        start.wait()
        for _ in gemma.generate(gemma.encode("abc"), LAYER, [push(1.0)], 40):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(visit, "ab"))
    first = min("ab", key=lambda name: max(i for i, turn in enumerate(order) if turn == name))
    other = "b" if first == "a" else "a"
    at_its_end = order[: max(i for i, turn in enumerate(order) if turn == first)]
    assert at_its_end.count(other) > 10, "".join(order)


# ---------------------------------------------------------------- tokens


def test_there_is_exactly_one_bos(models):
    for family, model in models.items():
        ids = model.encode("hello")
        if family in tiny.WITH_BOS:
            assert model.bos == BOS and ids[0] == BOS and ids.count(BOS) == 1
            assert model.encode("<bos>hello") == model.encode("<bos><bos>hello") == ids  # as chat templates give it
            assert model.special_ids == {PAD, EOS, BOS}
        else:
            assert model.bos is None and BOS not in ids and model.special_ids == {PAD, EOS}
        assert model.decode(ids) == "hello" and "".join(model.pieces(ids)) == "hello"


def test_a_bos_that_is_also_the_end_is_one_where_the_tokenizer_puts_it(folders, tmp_path):
    """GPT-2 has `<|endoftext|>` as both and puts none before a text; OPT does."""
    from tokenizers.processors import TemplateProcessing

    for puts in (False, True):
        words = tiny.tokenizer(bos=False)
        words.bos_token = "<eos>"
        if puts:
            words.backend_tokenizer.post_processor = TemplateProcessing(
                single="<eos> $A", special_tokens=[("<eos>", EOS)]
            )
        model = LanguageModel(tiny.model("gpt2"), words)
        assert model.bos == (EOS if puts else None) and model.encode("ab")[:1] == ([EOS] if puts else model.encode("a"))


def test_texts_that_cannot_be_prompts(gemma):
    for wrong, said in (
        ("", "empty"),
        ("  \n", "empty"),
        ("<bos>", "empty"),
        ("x" * CONTEXT, f"{CONTEXT + 1} tokens long, and the model reads {CONTEXT}"),
        ("a\ud800", "no text"),
    ):
        with pytest.raises(ValueError, match=said):
            gemma.encode(wrong)
    assert len(gemma.encode("x" * (CONTEXT - 1))) == CONTEXT
    with pytest.raises(ValueError, match="a row is"):
        gemma.batch([[5] * (CONTEXT + 1)])
    with pytest.raises(ValueError, match="every row a token"):
        gemma.batch([[5], []])


def test_a_word_without_embedding_is_named():
    words = tiny.tokenizer()
    words.add_tokens([f"<extra{i}>" for i in range(WORDS - len(words) + 1)])
    model = LanguageModel(tiny.model("gemma3"), words)
    with pytest.raises(ValueError, match=rf"<extra{WORDS - 260}>, which the model has no embedding"):
        model.encode(f"a <extra{WORDS - 260}>")


def test_pieces_are_the_text(gemma):
    text = "wörld, 你好 !"
    ids = gemma.encode(text)
    pieces = gemma.pieces(ids)
    assert "".join(pieces) == gemma.decode(ids) == text and len(pieces) == len(ids) and pieces[0] == ""
    assert "\ufffd" not in "".join(pieces) and "ö" in pieces


def test_a_pair_is_split_where_the_harness_splits_it(gemma):
    context, continuation = gemma.encode_pair("Answer:  ", "B")
    assert context == gemma.encode("Answer:") and context + continuation == gemma.encode("Answer:  B")
    assert gemma.decode(continuation) == "  B"


# ---------------------------------------------------------------- other weights


def test_other_weights_in_the_same_architecture(gemma, folders):
    other = tiny.model("gemma3", seed=1)
    tensors = dict(other.named_parameters())
    found = language.with_weights(gemma, {name: tensor.half() for name, tensor in tensors.items()})
    row = gemma.encode("hello")
    torch.testing.assert_close(
        found.next_logits(found.batch([row]))[0], plain_logits(other.half().float(), row)[-1], atol=1e-4, rtol=0
    )
    assert found.tokens is gemma.tokens and found.layers[0] is not gemma.layers[0]
    name = "model.layers.1.mlp.up_proj.weight"
    some = language.with_weights(gemma, {name: tensors[name]})
    mine, theirs = dict(some.model.named_parameters()), dict(gemma.model.named_parameters())
    assert {key for key in mine if mine[key] is not theirs[key]} == {name}  # the rest is shared
    assert not torch.equal(some.next_logits(some.batch([row])), gemma.next_logits(gemma.batch([row])))


def test_weights_that_do_not_fit(gemma):
    name, tied = "model.norm.weight", "model.embed_tokens.weight"
    good = dict(gemma.model.named_parameters())
    for wrong, said in (
        ({"model.norm.wait": good[name]}, "'model.norm.wait', which a Gemma3ForCausalLM does not have"),
        ({name: torch.ones(WIDTH + 1)}, r"shape \[33\], and the model's has \[32\]"),
        ({name: torch.full([WIDTH], float("nan"))}, "no finite numbers"),
        ({name: torch.ones(WIDTH, dtype=torch.int8)}, "is int8: quantised"),
        ({tied: good[tied], "lm_head.weight": good[tied] + 1}, "are one tensor in this model"),
    ):
        with pytest.raises(ValueError, match=said):
            language.with_weights(gemma, wrong)
    language.with_weights(gemma, {tied: good[tied] + 1, "lm_head.weight": good[tied] + 1})


# ---------------------------------------------------------------- files


def test_a_folder_gives_the_model_that_was_saved(models):
    for family, model in models.items():
        row = model.encode("hello")
        torch.testing.assert_close(
            model.next_logits(model.batch([row]))[0], plain_logits(tiny.model(family), row)[-1], atol=1e-5, rtol=0
        )
        eager = model.model.config._attn_implementation == "eager"
        assert eager == (family == "gemma2")


def edit_json(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | changes))


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NORM = "model.norm.weight"
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "config cut": (lambda f: (f / "config.json").write_text('{"model_type":'), "cannot be read"),
    "no such kind": (lambda f: edit_json(f / "config.json", model_type="nothing"), "cannot be loaded"),
    "no language model": (lambda f: edit_json(f / "config.json", model_type="vit"), "is no causal language model"),
    "odd config": (lambda f: edit_json(f / "config.json", hidden_size="wide"), "cannot be loaded"),
    "another width": (lambda f: edit_json(f / "config.json", intermediate_size=47), "other shapes"),
    "more layers": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=4, layer_types=None),
        "lack model.layers.3",
    ),
    "fewer layers": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=2, layer_types=None),
        "hold model.layers.2",
    ),
    "quantised": (lambda f: edit_json(f / "config.json", quantization_config={"bits": 4}), "quantised"),
    "own code": (
        lambda f: edit_json(f / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "cannot be loaded",
    ),
    "pictures": (lambda f: edit_json(f / "config.json", model_type="llava"), "reads more than texts"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is a pickle"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "lora": (lambda f: (f / "lora.safetensors").write_bytes(b""), "would change the model"),
    "another file": (lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"), "none of the weights"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]), "cut short"),
    "a tensor lacks": (lambda f: edit_weights(f, lambda t: t.pop(NORM)), "lack model.norm.weight"),
    "a tensor more": (lambda f: edit_weights(f, lambda t: t.update(lora_A=torch.ones(2))), "hold lora_A"),
    "NaN": (lambda f: edit_weights(f, lambda t: t[NORM].fill_(float("nan"))), "norm.weight holds values that are not"),
    "bytes": (lambda f: edit_weights(f, lambda t: t.update({NORM: t[NORM].to(torch.int8)})), "as I8"),
    "no words": (lambda f: (f / "tokenizer.json").unlink(), "has no words"),
    "words cut": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
    "no context": (lambda f: edit_json(f / "config.json", max_position_embeddings=0), "max_position_embeddings"),
    "ends": (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'), "names no token ids"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_refused_in_a_sentence(folders, tmp_path, what):
    damage, said = DAMAGE[what]
    folder = tmp_path / "model"
    shutil.copytree(folders / "gemma3", folder)
    damage(folder)
    with pytest.raises(ValueError, match=said) as caught:
        language.load(folder)
    assert "\n" not in str(caught.value)


def test_a_place_without_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "wrong.gguf").write_bytes(b"\0GG" * 50)
    for place, said in (("nowhere", "no language model at"), ("notes.txt", "give a folder"), ("wrong.gguf", "no GGUF")):
        with pytest.raises(ValueError, match=said):
            language.load(tmp_path / place)


def test_code_and_pickles_beside_the_weights_are_never_read(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "gemma3", folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass")
    (folder / ".metadata").write_bytes(b"\x80\x04cos\nsystem\n.")  # of a distributed checkpoint: a pickle
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Config"})
    row = (found := language.load(folder)).encode("a")
    assert found.next_logits(found.batch([row])).shape == (1, WORDS) and not (tmp_path / "ran").exists()


def test_other_forms_of_the_same_weights(folders, tmp_path):
    """In shards, in half precision, and GPT-2's own, whose names lack their first word and which holds its masks."""
    row = [5, 6, 7]
    for form in ("shards", "half", "gpt2"):
        family = "gpt2" if form == "gpt2" else "gemma3"
        model, folder = tiny.model(family), tmp_path / form
        shutil.copytree(folders / family, folder)
        if form == "gpt2":
            edit_weights(folder, lambda t: [t.update({k.removeprefix("transformer."): t.pop(k)}) for k in list(t)])
            edit_weights(folder, lambda t: t.update({"h.0.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT)}))
        else:
            (folder / "model.safetensors").unlink()
            for parameter in model.parameters():
                parameter.data = parameter.half().float() if form == "half" else parameter
            saved = tiny.model("gemma3").half() if form == "half" else model
            saved.save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")
        assert form != "shards" or len(list(folder.glob("*.safetensors"))) > 1
        found = language.load(folder)
        wanted = plain_logits(model, row)[-1]
        torch.testing.assert_close(found.next_logits(found.batch([row]))[0], wanted, atol=1e-5, rtol=0)


def test_end_tokens_of_every_file_count(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "gemma3", folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 106]}')
    found = language.load(folder)
    assert found.tokens.ends == {1, 106} and found.special_ids == {PAD, EOS, BOS, 106}


def test_the_text_part_of_a_model_of_texts_and_pictures(tmp_path, gemma):
    import transformers as t

    text = gemma.model.config.to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = t.Gemma3Config(
        text_config=text, vision_config=vision | {"image_size": 8, "patch_size": 4}, mm_tokens_per_image=4
    )
    both = t.Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)
    for folder, rename in (("saved", lambda key: key), ("newer", lambda key: newer(key))):
        both.save_pretrained(tmp_path / folder)
        tiny.tokenizer().save_pretrained(tmp_path / folder)
        edit_weights(tmp_path / folder, lambda t, r=rename: [t.update({r(k): t.pop(k)}) for k in list(t)])
        found = language.load(tmp_path / folder)
        row = found.encode("hello")
        with torch.inference_mode():
            wanted = both(torch.tensor([row])).logits[0, -1]
        torch.testing.assert_close(found.next_logits(found.batch([row]))[0], wanted, atol=1e-4, rtol=0)
        assert found.depth == DEPTH


def newer(key: str) -> str:
    """A name as the hub's files have it, as transformers 5 has it in memory."""
    for old, new in (("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def test_other_threads_may_build_modules_while_one_loads(folders):
    """transformers switches parts of torch while it loads; a thread beside it must not notice."""
    done, odd = threading.Event(), []

    def build() -> None:
        while not done.is_set():
            layer = nn.Linear(4, 4)
            if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
                odd.append((layer.weight.device, layer.weight.dtype))

    beside = threading.Thread(target=build)
    beside.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda family: language.load(folders / family, dtype=torch.bfloat16), ("gemma2", "llama")))
    finally:
        done.set()
        beside.join()
    assert odd == []


# ---------------------------------------------------------------- GGUF


def write_gguf(path: Path, model: nn.Module, **more: Any) -> Path:
    """A Gemma 3 as llama.cpp's converter writes it, by gguf's own writer. `more`: further tensors or keys."""
    import gguf

    config, words = model.config, tiny.tokenizer().get_vocab()
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(DEPTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base(1e6)
    tokens = sorted(words, key=words.get) + [f"<unused{i}>" for i in range(WORDS - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([3] * 4 + [1] * (WORDS - 4))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(3)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, DEPTH)
    for name, tensor in model.named_parameters():
        stem = name.removesuffix(".weight")
        shifted = tensor + 1 if "norm" in stem else tensor
        writer.add_tensor(f"{names.get_name(stem)}.weight", shifted.numpy())
    for name, value in more.items():
        if isinstance(value, Tensor):
            writer.add_tensor(name, value.numpy())
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def as_gguf() -> nn.Module:
    return tiny.model("gemma3", layer_types=["sliding_attention"] * DEPTH)


def test_a_gguf_gives_the_model_that_was_written(tmp_path, as_gguf):
    place = write_gguf(tmp_path / "tiny.gguf", as_gguf)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere"}')  # is none of its
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    found = language.load(place)
    row = found.encode("<bos>hello")
    assert found.bos == BOS and row[0] == BOS and row.count(BOS) == 1 and found.special_ids == {PAD, EOS, BOS}
    assert found.context == CONTEXT and found.decode(row) == "hello"
    logits = plain_logits(as_gguf, row)
    torch.testing.assert_close(found.next_logits(found.batch([row]))[0], logits[-1], atol=1e-4, rtol=0)
    assert rows_of(found.generate(row, LAYER, [push(2.0)], 12))[0] == plain_generate(as_gguf, row, LAYER, push(2.0), 12)


def test_a_gguf_that_would_be_read_in_part_is_refused(tmp_path, as_gguf, monkeypatch):
    place = write_gguf(tmp_path / "more.gguf", as_gguf, **{"rope_freqs.weight": torch.ones(8)})
    with pytest.raises(ValueError, match="would not be read, such as rope_freqs.weight"):
        language.load(place)
    place = write_gguf(tmp_path / "scaled.gguf", as_gguf, **{"gemma3.rope.scaling.type": "linear"})
    with pytest.raises(ValueError, match="scales its positions"):
        language.load(place)
    cut = write_gguf(tmp_path / "cut.gguf", as_gguf)
    cut.write_bytes(cut.read_bytes()[:20_000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        language.load(cut)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="without the package gguf"):
        language.load(place)
