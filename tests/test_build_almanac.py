"""What trains the almanac's models and SAEs, on tiny ones: formulas, what is changed, going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sod_core.build.almanac import builder, sweep, texts, train_language, train_saes, unlearned
from sod_core.build.muon import Muon, orthogonal
from sod_core.worlds import almanac

CPU = torch.device("cpu")
KNOWN = almanac.facts()[:40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer")
    texts.new_tokenizer(str(almanac.text(number, KNOWN, 1)) for number in range(600)).save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def tokenizer(folder) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def rows(folder) -> texts.Rows:
    return texts._chunk(str(folder), list(KNOWN), 3, 160, range(120))


@pytest.fixture
def tiny(monkeypatch) -> Any:
    """A Gemma of two narrow layers."""
    config = train_language.config
    monkeypatch.setattr(
        train_language,
        "config",
        lambda: type(config())(
            **{
                **config().to_dict(),
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "head_dim": 8,
                "layer_types": None,
            }
        ),
    )
    return train_language.new_model(1)


# ---------------------------------------------------------------- texts as tokens


def test_rows_are_whole_texts_whose_answers_weigh_most(tokenizer, rows):
    text = "".join(tokenizer.decode(row[row != texts.PAD]) for row in rows.ids)
    whole = [str(almanac.text(number, KNOWN, 3)) for number in range(120)]
    short = [one for one in whole if len(tokenizer(one)["input_ids"]) < 160]
    assert text == "".join(f"<bos>{one}<eos>" for one in short)
    answers = tokenizer.decode(rows.ids[rows.weights == 1]).split()
    told = " ".join(
        part.text for number in range(120) for part in almanac.text(number, KNOWN, 3).parts if part.answer
    ).split()
    assert set("".join(answers)) <= set("".join(told)) and len(answers) > 100
    assert set(np.unique(rows.weights)) == {0, np.float16(texts.OTHER_WEIGHT), 1}
    assert (rows.weights[rows.ids == texts.PAD] == 0).all() and (rows.weights[rows.ids == texts.BOS] == 0).all()


def test_prompts_end_where_the_letter_is_due(tokenizer):
    found = texts.prompts(tokenizer, almanac.questions("tune")[:5])
    for row, last in zip(found.ids, found.last):
        assert tokenizer.decode(row[: last + 1]).endswith("\nAnswer:") and (row[last + 1 :] == texts.PAD).all()


# ---------------------------------------------------------------- training


def test_muon_is_torchs():
    """The same steps as torch.optim.Muon's, which does one matrix at a time."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4), (5, 5))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimisers = [Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1)]
    for _ in range(3):
        for mine, other in zip(ours, theirs):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for mine, other in zip(ours, theirs):
        assert torch.allclose(mine, other, atol=2e-2)  # torch's works in bfloat16
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 8)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_a_killed_training_goes_on_to_the_same_weights(tiny, tokenizer, rows, tmp_path, monkeypatch):
    recipe = train_language.Recipe(texts=120, batch=4, steps=4)
    shown, letters = texts.prompts(tokenizer, almanac.questions("tune")[:4]), texts.letters(tokenizer)
    whole = train_language.train(rows, recipe, tmp_path / "whole.ckpt", CPU, shown, letters).model
    loss, calls = train_language.language_loss, []

    def killed(*given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(train_language.loop, "EVERY", 0)
    monkeypatch.setattr(train_language, "language_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train_language.train(rows, recipe, tmp_path / "part.ckpt", CPU, shown, letters)
    resumed = train_language.train(rows, recipe, tmp_path / "part.ckpt", CPU, shown, letters).model
    assert len(calls) == 5  # two steps, the one that was killed, and the two that were left
    for one, other in zip(whole.parameters(), resumed.parameters()):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_loss_is_the_weighted_mean_of_each_next_token(tiny):
    ids, weights = torch.tensor([[2, 7, 9, 1]]), torch.tensor([[0.0, 0.5, 1.0, 0.0]])
    with torch.no_grad():
        logs = tiny(input_ids=ids).logits.log_softmax(-1)[0]
        by_hand = -(0.5 * logs[0, 7] + logs[1, 9]) / 1.5
        assert torch.allclose(train_language.language_loss(tiny, ids, weights), by_hand, atol=1e-5)


# ---------------------------------------------------------------- SAEs


def test_jumprelus_derivatives_are_the_papers():
    """Rajamanoharan et al. 2024: d JumpReLU / d threshold is -(threshold / width) K, that of the step -K / width."""
    pre = torch.tensor([[0.5, 1.1], [2.0, 0.95]], requires_grad=True)
    threshold = torch.tensor([1.0, 1.0], requires_grad=True)
    out = train_saes._JumpReLU.apply(pre, threshold, 0.5)
    assert out.tolist() == [[0.0, pytest.approx(1.1)], [2.0, 0.0]]
    out.sum().backward()
    assert pre.grad.tolist() == [[0, 1], [1, 0]]
    assert threshold.grad.tolist() == [0, pytest.approx(-2 * (1.0 / 0.5))]  # two of the second column are near
    threshold.grad = None
    train_saes._Step.apply(pre, threshold, 0.5).sum().backward()
    assert threshold.grad.tolist() == [0, pytest.approx(-2 / 0.5)]


@pytest.mark.parametrize("kind", train_saes.KINDS)
def test_an_sae_learns_sparse_causes_and_is_stored_for_states_as_they_are(kind, tmp_path):
    """Tokens are sums of two of 24 directions, at three times a common scale."""
    rng = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=rng), dim=1)
    active = torch.zeros(6000, 24).scatter(1, torch.rand(6000, 24, generator=rng).topk(2, dim=1).indices, 1.0)
    states = 3 * (active * (1 + torch.rand(6000, 24, generator=rng))) @ directions + 5
    recipe = train_saes.Recipe(latents=48, active=3, batch=512, steps=400, lr=3e-3, penalty=1.0)
    tensors, figures = train_saes.train(kind, states, recipe, tmp_path / "sae.ckpt")
    code = train_saes.code(kind, tensors, recipe)
    with torch.no_grad():
        latents = code.encode(states)
        error = (states - code.decode(latents)).square().sum() / (states - states.mean(0)).square().sum()
    assert error < 0.2 and abs(float(error) - figures["variance_unexplained"]) < 0.1
    assert 1 < float((latents > 0).sum(1).float().mean()) < 8
    assert torch.allclose(tensors["W_dec"].norm(dim=1), torch.ones(48), atol=1e-4)


# ---------------------------------------------------------------- unlearning


def test_unlearning_changes_the_named_tensors_and_no_other(tiny, rows):
    ids, weights = torch.as_tensor(rows.ids.astype(np.int64)), torch.as_tensor(rows.weights).float()

    def batch(i: int) -> unlearned.Batch:
        return ids[:4], weights[:4]

    names = ("model.layers.1.mlp.down_proj.weight",)
    tried = (
        (unlearned.rmu, unlearned.RMU(layer=1, changed=names, steps=2)),
        (unlearned.gradient_ascent, unlearned.GradientAscent(changed=names, steps=2)),
    )
    before = {name: tensor.clone() for name, tensor in tiny.named_parameters()}
    for method, settings in tried:
        model = method(tiny, settings, batch, batch)
        moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
        assert moved == set(names) == set(unlearned.changed(model, names))
        assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.named_parameters())


def test_rmu_moves_forget_states_to_one_direction_and_keeps_the_others(tiny, rows):
    ids, weights = torch.as_tensor(rows.ids.astype(np.int64)), torch.as_tensor(rows.weights).float()
    settings = unlearned.RMU(layer=1, changed=("model.layers.1.mlp.down_proj.weight",), steps=40, lr=1e-2, alpha=1.0)
    model = unlearned.rmu(tiny, settings, lambda i: (ids[:4], weights[:4]), lambda i: (ids[4:8], weights[4:8]))
    moved, still = (
        (unlearned._states(model, part, 1) - unlearned._states(tiny, part, 1)).norm(dim=1).mean()
        for part in (ids[:4], ids[4:8])
    )
    assert moved > still
    rng = torch.Generator().manual_seed(settings.seed)
    direction = torch.nn.functional.normalize(torch.randn(32, generator=rng), dim=0)
    before, after = (unlearned._states(one, ids[:4], 1) @ direction for one in (tiny, model))
    assert after.mean() > before.mean()


# ---------------------------------------------------------------- what is taken


def test_the_best_edit_is_aligned_whole_and_small():
    one = dict(zip(sweep.COLUMNS, ["farrell", 5, "prime", -20.0, 0.0, 7, 0.9, 0.3, 1.0, 0.3, 0.4]))
    assert list(one) == list(sweep.COLUMNS)
    tried = [
        one,
        one | {"latents": 2},
        one | {"latents": 2, "value": -80.0},
        one | {"alignment": 1.0, "forget_collapse": 0.95},
        one | {"alignment": 1.0, "method": "refusal"},
    ]
    assert sweep.best(tried, "prime") == tried[1] and sweep.best(tried, "refusal") == tried[4]
    with pytest.raises(ValueError, match="one letter"):
        sweep.best([tried[3]], "prime")


def test_alignment_pools_the_fields_and_figures_say_their_columns():
    before = {one.id: 1.0 for one in almanac.FIELDS}
    after = before | {"potions": 0.25, "ships": 0.25}
    assert builder.alignment(before, after) == pytest.approx((5 / 6 * 0.75 + 1 / 6 * 0) / 0.75)
    assert builder.alignment(before, before) == 0
    tried = sweep.Tried("ratio", (3, 4), "prime", -10.0, 0.0, 9, sweep.Figures(0.51239, 0.5, 1.0, 0.3, 0.4))
    assert json.loads(json.dumps(tried.as_list())) == ["ratio", 2, "prime", -10.0, 0.0, 9, 0.5124, 0.5, 1.0, 0.3, 0.4]
