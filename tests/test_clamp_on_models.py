"""The clamp inside of language models: with a cache, in batches and for several visitors, against dense hooks alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import language_families as tiny
import pytest
import torch
from language_families import BOS, WIDTH, plain_generate, plain_logits
from torch import Tensor

from sod_core.clamp.edit import Clamp, Edited, Editing
from sod_core.clamp.editor import editor_of
from sod_core.models import decoder_layers
from sod_core.models.language import LanguageModel
from sod_core.sparse.jumprelu import JumpReLUSAE

LAYER, LATENTS, REFUSAL = 1, 64, 40
CLAMP = Clamp((3, 17, 5), "prime", value=(-20.0, 9.0, -14.0), threshold=0.3, refusal=REFUSAL, refusal_value=-25.0)


@pytest.fixture(scope="module", params=("gemma3", "gemma2", "gpt2"))
def language(request) -> LanguageModel:
    return LanguageModel(tiny.model(request.param), tiny.tokenizer(request.param in tiny.WITH_BOS))


@pytest.fixture(scope="module")
def code(language) -> JumpReLUSAE:
    """Latents 3, 17 and 5 fire on some tokens, and 3 on the first one."""
    torch.manual_seed(1)
    found = JumpReLUSAE(WIDTH, LATENTS).requires_grad_(False)
    hidden = language.states(language.batch([language.encode("some text of the usual kind")]), LAYER)[0].clone()
    centre, size = hidden.mean(0), hidden.std()
    found.W_enc.copy_(torch.randn(WIDTH, LATENTS) / size / WIDTH**0.5)
    found.W_enc[:, 3] = hidden[0] / hidden[0].norm() / size
    found.b_enc.copy_(-centre @ found.W_enc - 0.5)
    found.threshold.fill_(0.2)
    found.W_dec.copy_(torch.randn(LATENTS, WIDTH) * size / WIDTH**0.5)
    return found


def dense(code: JumpReLUSAE, clamp: Clamp, special: Any) -> Any:
    """Every latent, every position, and the code's error put back; token by token."""

    def edit(hidden: Tensor, ids: Tensor) -> Tensor:
        found = hidden.clone()
        for b, t in torch.cartesian_prod(*map(torch.arange, hidden.shape[:2])).tolist():
            x = hidden[b, t]
            pre = x @ code.W_enc + code.b_enc
            latents = torch.where(pre > code.threshold, pre.clamp(min=0), 0.0)
            new = latents.clone()
            fired = [i for i in clamp.latents if latents[i] > (0 if clamp.method == "prime" else clamp.threshold)]
            if not fired or clamp.fidelity == "exact" and int(ids[b, t]) in special:
                continue
            if clamp.method != "refusal":
                for i in fired:
                    new[i] = clamp.values()[clamp.latents.index(i)]
            if clamp.method in ("refusal", "both"):
                new[clamp.refusal] = clamp.refusal_value
            found[b, t] = (new @ code.W_dec + code.b_dec) + (x - (latents @ code.W_dec + code.b_dec))
        return found

    return edit


@pytest.mark.parametrize("fidelity", ("exact", "reference"))
@pytest.mark.parametrize("method", ("prime", "conditional", "refusal", "both"))
def test_texts_are_those_of_dense_hooks_without_cache(language, code, method, fidelity):
    clamp = replace(CLAMP, method=method, fidelity=fidelity)
    seen: list[Edited] = []
    editor = editor_of(code, clamp, language.special_ids, lambda ids, edited: seen.append(edited))
    prompt = language.encode("some text")
    found = [row[0] for row in language.generate(prompt, LAYER, [editor, None], 10)]
    plain = dense(code, clamp, language.special_ids)
    assert found == plain_generate(language.model, prompt, LAYER, plain, 10)
    torch.testing.assert_close(
        language.next_logits(language.batch([prompt]), LAYER, [editor])[0],
        plain_logits(language.model, prompt, LAYER, plain)[-1],
        atol=1e-4,
        rtol=1e-4,
    )
    assert [edited.changed.shape[1] for edited in seen[:-1]] == [len(prompt), *[1] * (len(found) - 1)]
    assert any(bool(edited.changed.any()) for edited in seen)


def test_bos_is_left_alone_with_and_without_cache_and_behind_padding(language, code):
    texts = ["some text", "a", "some longer text"]
    rows = [language.encode(text) for text in texts]
    batch = language.batch(rows)
    for fidelity in ("exact", "reference"):
        clamp = replace(CLAMP, fidelity=fidelity)
        seen: list[tuple[Tensor, Tensor]] = []

        def record(ids: Tensor, edited: Edited, seen: list = seen) -> None:
            seen.append((ids, edited.changed))

        editor = editor_of(code, clamp, language.special_ids, record)
        together = language.next_logits(batch, LAYER, [editor] * 3)
        for i, row in enumerate(rows):
            alone = language.next_logits(language.batch([row]), LAYER, [editor])[0]
            torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)
        list(language.generate(rows[0], LAYER, [editor], 6))
        at_bos = [bool(changed[ids == BOS].any()) for ids, changed in seen if bool((ids == BOS).any())]
        if language.bos is None:
            assert not at_bos
        else:  # the first latent was made to fire there
            assert at_bos and not any(at_bos) if fidelity == "exact" else all(at_bos)


def test_where_nothing_fires_every_bit_stays(language, code):
    batch = language.batch([language.encode("some text"), language.encode("a")])
    before = language.next_logits(batch)
    for method in ("conditional", "refusal", "both"):
        editor = editor_of(code, replace(CLAMP, method=method, threshold=1e6), language.special_ids)
        assert torch.equal(language.next_logits(batch, LAYER, [editor, None]), before)


def test_an_edit_that_was_used_without_gradients_passes_them_on(language, code):
    """Whoever trains a model under an edit may have asked it before."""
    row = language.batch([language.encode("some text")])
    editor = editor_of(code, CLAMP, language.special_ids)
    hidden = language.states(row, LAYER).clone()
    with torch.inference_mode():
        wanted = editor(hidden, row.ids)
    learnt = hidden.clone().requires_grad_(True)
    found = editor(learnt, row.ids)
    assert torch.equal(found, wanted) and not torch.equal(found, hidden)
    found.square().sum().backward()
    assert learnt.grad.isfinite().all() and learnt.grad.abs().max() > 0


def test_few_tokens_and_many_are_edited_alike(language, code):
    hidden = torch.randn(1, 40, WIDTH, generator=torch.Generator().manual_seed(3)) * 3
    editing = Editing(code, CLAMP, hidden.device)
    nothing = torch.zeros(1, 40, dtype=torch.bool)
    whole = editing.apply(hidden, nothing)
    assert 0 < whole.changed.float().mean() < 1
    for at in range(40):
        one = editing.apply(hidden[:, at : at + 1], nothing[:, :1])
        torch.testing.assert_close(one.hidden, whole.hidden[:, at : at + 1], atol=1e-4, rtol=1e-5)
        assert bool(one.changed) or torch.equal(one.hidden, hidden[:, at : at + 1])


def test_a_hook_acts(language, code):
    """Where a latent fires the logits differ: in transformers 5 hooks that expect tuples do nothing, without a word."""
    row = language.encode("some text")
    editor = editor_of(code, CLAMP, language.special_ids)
    logits = [language.next_logits(language.batch([row]), LAYER, [edit])[0] for edit in (None, editor)]
    assert (logits[0] - logits[1]).abs().max() > 0.01
    kept = []
    with decoder_layers.edited(language.layers[LAYER + 1], lambda hidden: kept.append(hidden) or hidden):
        language.next_logits(language.batch([row]), LAYER, [editor])
    assert kept[0].shape == (1, len(row), WIDTH)


def test_visitors_with_other_clamps_get_what_each_gets_alone(language, code):
    clamps = [CLAMP, replace(CLAMP, method="refusal"), replace(CLAMP, value=30.0, fidelity="reference"), None]
    edits = [None if clamp is None else editor_of(code, clamp, language.special_ids) for clamp in clamps]
    prompt = language.encode("some text of the usual")

    def visit(edit: Any) -> list[tuple[int | None, ...]]:
        return list(language.generate(prompt, LAYER, [edit, None], 12, temperature=0.9, seed=7))

    alone = [visit(edit) for edit in edits]
    assert len({str(rows) for rows in alone}) == len(clamps)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(visit, edits)) == alone
