"""Restore against a second implementation that registers hooks on the models, as the released code does."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import LAYERS, WIDTH, K, Models, random_images, random_vit
from torch import Tensor

from sod_core.restore import edit
from sod_core.restore import session as restore_session
from sod_core.restore.session import Session, returns_at
from sod_core.sparse.topk import TopKSAE

FEATURES = [3, 17, 40, 41, 8, 60, 22, 31]
ALPHAS = [0.0, 0.5, 1.0, 3.0]


@pytest.fixture
def session(models: Models) -> Session:
    session = Session(lambda: models.original, lambda: models.unlearned, models.sae_at, LAYERS)
    session.set_image(models.images)
    return session


# ---------------------------------------------------------------- the second implementation


def latents(token: Tensor, sae: TopKSAE, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """f of one token [D] -> [F]: the SAE as trained."""
    x = token if mean is None else (token - mean) / std
    pre = torch.einsum("fd,d->f", sae.encoder.weight, x - sae.pre_bias) + sae.latent_bias
    kth_largest = sorted(pre.tolist(), reverse=True)[K - 1]
    return torch.tensor([max(value, 0.0) if value >= kth_largest else 0.0 for value in pre.tolist()])


def projected(token: Tensor, sae: TopKSAE) -> Tensor:
    """z of one token [D] -> [F], as the released code has it."""
    return torch.einsum("fd,d->f", sae.encoder.weight, token - sae.pre_bias)


def decoded(change: Tensor, sae: TopKSAE) -> Tensor:
    return torch.einsum("df,f->d", sae.decoder.weight, change)


def edit_token(mode: str, u: Tensor, o: Tensor, is_cls: bool, sae: TopKSAE, alpha: float) -> Tensor:
    """DESIGN section 3, one token [D] of the unlearned and of the original model at a time."""
    in_s = torch.zeros(WIDTH)
    in_s[FEATURES] = 1
    mean = std = None
    if sae.normalised:
        mean, std = sae.mean[0 if is_cls else 1], sae.std[0 if is_cls else 1]
    if mode == "inject":
        change = alpha * (latents(o, sae, mean, std) - latents(u, sae, mean, std)) * in_s
        return u + decoded(change, sae) * (1 if std is None else std)
    if mode == "amplify":
        change = (alpha - 1) * latents(u, sae, mean, std) * in_s
        return u + decoded(change, sae) * (1 if std is None else std)
    if mode == "direct_injection":
        if is_cls:
            return u + alpha * (o - u)
        z_u, z_o = projected(u, sae), projected(o, sae)
        return decoded(z_u + alpha * (z_o - z_u) * in_s, sae) + sae.pre_bias
    if mode == "add":
        return u + decoded(alpha * projected(u, sae) * in_s, sae) + sae.pre_bias
    assert mode in ("cls_copy", "state_copy")
    return u + alpha * (o - u) if is_cls or mode == "state_copy" else u


def with_hooks(models: Models, layer: int, mode: str, tokens: str, alpha: float) -> tuple[Tensor, Tensor]:
    """(edited hidden state, logits) of the unlearned model, by hooks on its block."""
    seen = {}

    def record(block, inputs, output):
        seen["original"] = output.clone()

    def replace(block, inputs, output):
        edited = output.clone()
        for b in range(output.shape[0]):
            for t in range(output.shape[1]):
                if tokens == "all" or mode == "cls_copy" or tokens == ("cls" if t == 0 else "patches"):
                    o, sae = seen["original"][b, t], models.saes[layer]
                    edited[b, t] = edit_token(mode, output[b, t], o, t == 0, sae, alpha)
        seen["edited"] = edited
        return edited

    handles = [
        models.original.blocks[layer].register_forward_hook(record),
        models.unlearned.blocks[layer].register_forward_hook(replace),
    ]
    try:
        models.original(models.images)
        logits = models.unlearned(models.images)
    finally:
        for handle in handles:
            handle.remove()
    return seen["edited"], logits


@pytest.mark.parametrize("tokens", edit.TOKENS)
@pytest.mark.parametrize("mode", edit.MODES)
def test_every_mode_is_what_hooks_compute(models, session, mode, tokens):
    layer = LAYERS[0]
    for alpha in (0.5, 2.0):
        hidden, logits = with_hooks(models, layer, mode, tokens, alpha)
        found = session.restored_hidden([alpha], layer, mode, FEATURES, tokens)[0]
        torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            session.restore([alpha], layer, mode, FEATURES, tokens)[0], logits, atol=1e-5, rtol=1e-5
        )


def test_hooks_agree_at_the_other_layer_too(models, session):
    hidden, logits = with_hooks(models, LAYERS[1], "inject", "all", 1.0)
    found = session.restored_hidden([1.0], LAYERS[1], "inject", FEATURES)[0]
    torch.testing.assert_close(found, hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(session.restore([1.0], LAYERS[1], "inject", FEATURES)[0], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", edit.MODES)
def test_the_edit_moves_something(session, mode):
    """So that the comparisons here do not compare nothing with nothing."""
    moved = session.restore([2.0], LAYERS[0], mode, FEATURES)[0] - session.logits("unlearned")
    assert moved.abs().max() > 1e-2


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tokens", edit.TOKENS)
@pytest.mark.parametrize(("mode", "alpha"), [("inject", 0.0), ("amplify", 1.0), ("cls_copy", 0.0), ("state_copy", 0.0)])
def test_an_edit_of_nothing_is_the_identity(session, mode, alpha, tokens, layer):
    # among other alphas, so that the batch's identity row is looked at too
    hidden = session.restored_hidden([5.0, alpha], layer, mode, FEATURES, tokens)[1]
    assert torch.equal(hidden, session.hidden("unlearned", layer))
    logits = session.restore([5.0, alpha], layer, mode, FEATURES, tokens)[1]
    torch.testing.assert_close(logits, session.logits("unlearned"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["inject", "amplify"])
def test_no_features_is_the_identity_at_every_alpha(session, mode):
    hidden = session.restored_hidden(ALPHAS, LAYERS[0], mode, [])
    for row in hidden:
        assert torch.equal(row, session.hidden("unlearned", LAYERS[0]))


@pytest.mark.parametrize("mode", ["direct_injection", "add"])
def test_alpha_0_of_the_reference_modes_is_not_the_identity(session, mode):
    """Quirks of the released code that the documentation lists."""
    hidden = session.restored_hidden([0.0], LAYERS[0], mode, FEATURES)[0]
    u = session.hidden("unlearned", LAYERS[0])
    assert (hidden[:, 1:] - u[:, 1:]).abs().max() > 1e-2


def test_direct_injection_at_alpha_1_transplants_cls_whatever_the_features(session):
    hidden = session.restored_hidden([1.0], LAYERS[0], "direct_injection", [])[0]
    torch.testing.assert_close(hidden[:, 0], session.hidden("original", LAYERS[0])[:, 0])


@pytest.mark.parametrize("tokens", edit.TOKENS)
def test_cls_copy_at_alpha_1_transplants_cls_alone(session, tokens):
    hidden = session.restored_hidden([1.0], LAYERS[0], "cls_copy", FEATURES, tokens)[0]
    torch.testing.assert_close(hidden[:, 0], session.hidden("original", LAYERS[0])[:, 0])
    assert torch.equal(hidden[:, 1:], session.hidden("unlearned", LAYERS[0])[:, 1:])


def test_state_copy_at_alpha_1_runs_the_tail_on_the_originals_state(session):
    hidden = session.restored_hidden([1.0], LAYERS[0], "state_copy", [])[0]
    torch.testing.assert_close(hidden, session.hidden("original", LAYERS[0]))


@pytest.mark.parametrize("mode", ["inject", "amplify", "direct_injection", "add", "state_copy"])
def test_tokens_left_out_stay_as_they_were(session, mode):
    u = session.hidden("unlearned", LAYERS[0])
    patches = session.restored_hidden([3.0], LAYERS[0], mode, FEATURES, "patches")[0]
    cls = session.restored_hidden([3.0], LAYERS[0], mode, FEATURES, "cls")[0]
    everything = session.restored_hidden([3.0], LAYERS[0], mode, FEATURES, "all")[0]
    assert torch.equal(patches[:, 0], u[:, 0]) and torch.equal(cls[:, 1:], u[:, 1:])
    assert torch.equal(patches[:, 1:], everything[:, 1:]) and torch.equal(cls[:, 0], everything[:, 0])


@pytest.mark.parametrize("mode", edit.MODES)
def test_a_batch_of_alphas_equals_single_alphas(session, mode):
    hidden = session.restored_hidden(ALPHAS, LAYERS[0], mode, FEATURES)
    logits = session.restore(ALPHAS, LAYERS[0], mode, FEATURES)
    assert logits.shape == (len(ALPHAS), 2, 3)
    for i, alpha in enumerate(ALPHAS):
        assert torch.equal(hidden[i], session.restored_hidden([alpha], LAYERS[0], mode, FEATURES)[0])
        single = session.restore([alpha], LAYERS[0], mode, FEATURES)[0]
        torch.testing.assert_close(logits[i], single, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- the session


def test_logits_and_hidden_are_the_models_own(models, session):
    torch.testing.assert_close(session.logits("original"), models.original(models.images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(session.logits("unlearned"), models.unlearned(models.images), atol=1e-5, rtol=1e-5)
    assert not torch.equal(session.hidden("original", LAYERS[0]), session.hidden("unlearned", LAYERS[0]))


def test_set_unlearned_keeps_the_originals_pass(models, session):
    before = session.hidden("original", LAYERS[0])
    session.restore([1.0], LAYERS[0], "inject", FEATURES)
    other = random_vit(2)
    ran = []
    handle = models.original.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    try:
        session.set_unlearned(lambda: other)
    finally:
        handle.remove()
    assert not ran and session.hidden("original", LAYERS[0]) is before
    torch.testing.assert_close(session.logits("unlearned"), other(models.images), atol=1e-5, rtol=1e-5)
    fresh = Session(lambda: models.original, lambda: other, models.sae_at, LAYERS)
    fresh.set_image(models.images)
    again = session.restore([1.0], LAYERS[0], "inject", FEATURES)
    assert torch.equal(again, fresh.restore([1.0], LAYERS[0], "inject", FEATURES))


def test_a_new_image_forgets_the_edits_of_the_last(models, session):
    session.restore([1.0], LAYERS[0], "inject", FEATURES)
    session.set_image(models.images.flip(0))
    found = session.restore([1.0], LAYERS[0], "inject", FEATURES)
    fresh = Session(lambda: models.original, lambda: models.unlearned, models.sae_at, LAYERS)
    fresh.set_image(models.images.flip(0))
    assert torch.equal(found, fresh.restore([1.0], LAYERS[0], "inject", FEATURES))


def test_moving_alpha_runs_only_the_unlearned_tail(models, session):
    session.restore([1.0], LAYERS[1], "inject", FEATURES)
    ran = []
    blocks = [("original", b) for b in models.original.blocks] + list(enumerate(models.unlearned.blocks))
    handles = [block.mlp.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, block in blocks]
    try:
        session.restore(ALPHAS, LAYERS[1], "inject", FEATURES)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [LAYERS[1] + 1]  # one batch for all alphas, through the blocks after the layer


def test_kept_edits_are_bounded_and_right(session):
    wanted = session.restore([1.0], LAYERS[0], "inject", [0])
    for j in range(restore_session.LINES_KEPT + 5):
        session.restore([1.0], LAYERS[0], "inject", [j])
    assert len(session._lines) <= restore_session.LINES_KEPT
    assert torch.equal(session.restore([1.0], LAYERS[0], "inject", [0]), wanted)


def test_two_visitors_at_once_do_not_see_each_other(models):
    def visit(visitor: int) -> Tensor:
        session = Session(lambda: models.original, lambda: models.unlearned, models.sae_at, LAYERS)
        session.set_image(random_images(visitor, 2))
        return torch.cat([session.restore(ALPHAS, layer, "inject", FEATURES[visitor:]) for layer in LAYERS])

    alone = [visit(visitor) for visitor in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(visit, range(6)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together))


def test_restored_latents_reads_the_edited_hidden_state(models, session):
    found = session.restored_latents(2.0, LAYERS[0], "inject", FEATURES, "all")
    hidden = session.restored_hidden([2.0], LAYERS[0], "inject", FEATURES, "all")[0]
    assert torch.equal(found, models.saes[LAYERS[0]].encode(hidden))
    assert found.shape == (2, 17, WIDTH)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_an_alpha_that_is_no_number_is_refused(session, alpha):
    with pytest.raises(ValueError, match="alpha"):
        session.restore([1.0, alpha], LAYERS[0], "inject", FEATURES)


@pytest.mark.parametrize(
    ("layer", "mode", "features", "tokens", "says"),
    [
        (1, "inkject", [1], "all", "unknown mode 'inkject'"),
        (1, "inject", [1], "some", "unknown tokens 'some'"),
        (1, "cls_copy", [1], "some", "unknown tokens 'some'"),
        (0, "inject", [1], "all", "layer 0"),
        (7, "inject", [1], "all", "layer 7"),
        (1, "inject", [WIDTH], "all", "latents 0 to 63"),
        (1, "inject", [-1], "all", "latents 0 to 63"),
    ],
)
def test_unknown_choices_are_refused(session, layer, mode, features, tokens, says):
    with pytest.raises(ValueError, match=says):
        session.restore([1.0], layer, mode, features, tokens)


def test_a_session_without_image_says_so(models):
    session = Session(lambda: models.original, lambda: models.unlearned, models.sae_at, LAYERS)
    with pytest.raises(ValueError, match="set_image"):
        session.restore([1.0], LAYERS[0], "inject", FEATURES)


def test_every_mode_has_a_fidelity():
    assert set(edit.FIDELITY) == set(edit.MODES)


def test_returns_at():
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.9, 0.0], [1.0, 3.0, 0.0], [5.0, 1.0, 0.0]])
    alphas = [0.0, 1.0, 2.0, 5.0]
    assert returns_at(alphas, logits, 1) == 2.0
    assert returns_at(alphas, logits, 0) == 0.0
    assert returns_at(alphas, logits, 2) is None
