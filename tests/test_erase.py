"""Erase against a second implementation that encodes and decodes densely, as the released hook does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sod_core.erase.edit import (
    PERCENTILE,
    ConceptStatistics,
    Eraser,
    Settings,
    StepPlan,
    factor_for,
    multiplier_for,
    plan,
    statistics,
)
from sod_core.sparse.topk import TokenStats, TopKSAE

DIM, WIDTH, K, STEPS = 16, 64, 6, 5
NAMES = ("dog", "cat", "tower")
LATENTS = {
    name: torch.rand(3 + i, STEPS, WIDTH, generator=torch.Generator().manual_seed(i)) ** 4
    for i, name in enumerate(NAMES)
}
STATISTICS = statistics(LATENTS)
OPTIONS = [
    Settings(("dog",), 95, factor=-1.0),
    Settings(("dog",), 50, multiplier=-3.0),
    Settings(("cat", "tower"), 70, multiplier=2.0),
    Settings(("dog", "cat"), 90, multiplier=-1.0, start_step=2),
    Settings(("tower",), 80, multiplier=0.5, beta=True),
    Settings(("tower", "dog"), 60, multiplier=-0.7, beta=True, start_step=3, residual=True),
    Settings(("cat",), 60, factor=0.0, residual=True),
    Settings(("cat", "tower", "dog"), (70, 90, 60), factor=(-2.0, 0.5, -4.0)),
    Settings(("tower", "dog"), 80, multiplier=(-3.0, 1.5)),
    Settings(("dog", "cat"), (60, 85), multiplier=(-0.5, 0.7), beta=True, start_step=1),
    Settings(("cat",), 100, factor=0.0),
]


def random_tokens(seed: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 12, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    sae = TopKSAE(DIM, WIDTH, K)
    generator = torch.Generator().manual_seed(0)
    for value in sae.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    return sae.requires_grad_(False)


# ---------------------------------------------------------------- the second implementation


def scores(latents: dict[str, Tensor], concept: str, t: int) -> Tensor:
    """From the raw tensors [samples, T, F]."""
    own = latents[concept][:, t].mean(0)
    others = torch.cat([latents[name][:, t] for name in latents if name != concept]).mean(0)
    return own / (own.sum() + 1e-8) - others / (others.sum() + 1e-8)


def top(latents: dict[str, Tensor], concept: str, t: int, percentile: float) -> Tensor:
    found = scores(latents, concept, t)
    return torch.where(found > torch.quantile(found, percentile / 100))[0]


def dense_hook(sae: TopKSAE, x: Tensor, given: Tensor, settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """The edited tokens, and all latents [B, N, F]: one concept and one latent at a time, on whole tensors."""
    y = x - given if settings.residual else x
    pre = torch.relu((y - sae.pre_bias) @ sae.encoder.weight.T + sae.latent_bias)
    values, indices = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter_(-1, indices, values)
    edited = latents.clone()
    for n, concept in enumerate(settings.concepts if step >= settings.start_step else ()):
        all = (settings.percentile, settings.factor, settings.multiplier)
        percentile, factor, multiplier = (one[n] if isinstance(one, tuple) else one for one in all)
        for j in top(LATENTS, concept, step, percentile).tolist():
            threshold = torch.stack([LATENTS[name][:, step, j].mean() for name in LATENTS]).mean()
            if factor is not None:
                scale = torch.full(x.shape[:2], factor)
            elif settings.beta:
                scale = latents.norm(dim=-1) / (sae.decoder.weight[:, j].norm() + 1e-8) * multiplier
            else:
                scale = LATENTS[concept][:, step, j].mean() * multiplier
            edited[..., j] = torch.where(latents[..., j] > threshold, latents[..., j] * scale, latents[..., j])
    recons, erased = (z @ sae.decoder.weight.T + sae.pre_bias for z in (latents, edited))
    out = y + (erased - recons) if settings.fidelity == "exact" else erased + (recons - y)
    return (given + out if settings.residual else out), latents


# ---------------------------------------------------------------- the same, twice


@pytest.mark.parametrize("fidelity", ["exact", "reference"])
@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_every_option_is_the_dense_hook(sae, settings, fidelity):
    settings = replace(settings, fidelity=fidelity)
    x, given = random_tokens(1), random_tokens(2)
    eraser, moved = Eraser(sae), False
    for step, at in enumerate(plan(STATISTICS, settings, STEPS)):
        expected, latents = dense_hook(sae, x, given, settings, step)
        found = eraser.step(x, at, settings, given, heat=True)
        torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.latents, latents[..., at.features], atol=1e-5, rtol=1e-5)
        plain = eraser.step(x, at, settings, given)
        assert plain.latents is None
        torch.testing.assert_close(plain.tokens, expected, atol=1e-5, rtol=1e-5)
        moved |= not torch.allclose(expected, x, atol=1e-2)
        if fidelity == "exact" and step < settings.start_step:
            assert found.tokens is x
    assert moved or (settings.percentile == 100 and fidelity == "exact")


def test_by_hand():
    sae = TopKSAE(2, 3, 1).requires_grad_(False)
    sae.encoder.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    sae.decoder.weight.data = sae.encoder.weight.data.T.clone()
    x = torch.tensor([[[2.0, 1.0], [0.25, 0.0], [1.0, 3.0]]])
    at = StepPlan(torch.tensor([0]), torch.tensor([0.5]), torch.tensor([-1.0]), True)
    exact = Settings(("a",), factor=-1.0)
    # token 0: latents (2, 0) -> (-2, 0); token 1 is below the threshold; in token 2 the other latent is the top one
    found = Eraser(sae).step(x, at, exact, heat=True)
    assert found.tokens.tolist() == [[[-2.0, 1.0], [0.25, 0.0], [1.0, 3.0]]]
    assert found.latents.tolist() == [[[2.0], [0.25], [0.0]]]
    # (-2, 0) + ((2, 0) - (2, 1)) and, where nothing is edited, 2 recons - x
    found = Eraser(sae).step(x, at, replace(exact, fidelity="reference"))
    assert found.tokens.tolist() == [[[-2.0, -1.0], [0.25, 0.0], [-1.0, 3.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_identities(sae, dtype):
    x = random_tokens(3).to(dtype)
    for settings in (Settings(()), Settings(("dog", "cat"), 50, factor=1.0)):
        for at in plan(STATISTICS, settings, STEPS):
            for heat in (False, True):
                assert torch.equal(Eraser(sae).step(x, at, settings, heat=heat).tokens, x)


def test_tokens_below_the_threshold_stay_bit_for_bit(sae):
    x, settings = random_tokens(4), Settings(("dog",), 95, factor=-5.0)
    at = plan(STATISTICS, settings, STEPS)[0]
    found = Eraser(sae).step(x, at, settings, heat=True)
    passes = (found.latents > at.thresholds).any(-1)
    assert passes.any() and torch.equal(found.tokens[~passes], x[~passes])
    assert (found.tokens[passes] != x[passes]).any(-1).all()


@pytest.mark.parametrize("fidelity", ["exact", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_half_precision_out(sae, fidelity, dtype):
    settings = Settings(("dog",), 70, factor=-1.0, fidelity=fidelity)
    x = random_tokens(5).to(dtype)
    at = plan(STATISTICS, settings, STEPS)[1]
    found, exactly = Eraser(sae).step(x, at, settings).tokens, Eraser(sae).step(x.float(), at, settings).tokens
    assert found.dtype == dtype and torch.equal(found, exactly.to(dtype))


def test_tokens_of_a_hook_are_not_contiguous(sae):
    settings = Settings(("dog",), 70, factor=-1.0)
    image = torch.randn(2, DIM, 3, 4)
    tokens, at = image.flatten(2).mT, plan(STATISTICS, settings, STEPS)[0]
    expected = Eraser(sae).step(tokens.contiguous(), at, settings).tokens
    assert torch.equal(Eraser(sae).step(tokens, at, settings).tokens, expected)


# ---------------------------------------------------------------- statistics and plans


def test_statistics_are_those_of_the_raw_latents():
    for concept in NAMES:
        for t in range(STEPS):
            torch.testing.assert_close(STATISTICS.scores(concept, t), scores(LATENTS, concept, t))
            assert torch.equal(STATISTICS.selected(concept, t, 90), top(LATENTS, concept, t, 90))


def test_with_one_concept_the_score_is_its_mean():
    alone = statistics({"dog": LATENTS["dog"]})
    torch.testing.assert_close(alone.scores("dog", 2), LATENTS["dog"][:, 2].mean(0))


def test_steps_are_matched_by_their_share_of_the_run():
    found = ConceptStatistics(("a",), torch.zeros(1, 25, 4), torch.ones(1))
    assert [found.at(step, 25) for step in range(25)] == list(range(25))
    matched = [found.at(step, 20) for step in range(20)]
    assert (matched[0], matched[-1]) == (0, 24) and matched == sorted(matched)
    assert found.at(0, 1) == 0


def test_the_later_of_two_concepts_scales_a_shared_latent():
    means = torch.tensor([[[4.0, 0.0, 0.0]], [[5.0, 0.0, 0.0]], [[0.0, 1.0, 2.0]]])
    found = ConceptStatistics(("a", "b", "c"), means, torch.tensor([2, 2, 2]))
    for concepts, scale in ((("a", "b"), 10.0), (("b", "a"), 8.0)):
        (at,) = plan(found, Settings(concepts, 60, multiplier=2.0), 1)
        assert (at.features.tolist(), at.scales.tolist(), at.thresholds.tolist()) == ([0], [scale], [3.0])


@pytest.mark.parametrize("width", [1024, 20480])
def test_the_default_percentile_selects_one_latent(width):
    found = statistics({name: torch.rand(2, 1, width) for name in NAMES})
    assert len(found.selected("dog", 0, PERCENTILE)) == 1


def test_multiplier_and_factor_are_each_others_inverse():
    multiplier = multiplier_for(STATISTICS, "dog", -1.5, 90)
    scales = [at.scales for at in plan(STATISTICS, Settings(("dog",), 90, multiplier=multiplier), STEPS)]
    assert torch.cat(scales).mean().item() == pytest.approx(-1.5, rel=1e-5)
    assert factor_for(STATISTICS, "dog", multiplier, 90) == pytest.approx(-1.5)
    with pytest.raises(ValueError, match="lower the percentile"):
        multiplier_for(STATISTICS, "dog", -1.5, 100)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({}, "factor or a multiplier"),
        ({"factor": 1.0, "multiplier": 1.0}, "one of the two"),
        ({"factor": float("nan")}, "finite"),
        ({"factor": (1.0, 2.0)}, "one factor for all concepts, or one for each: 2 and 1 do not match"),
        ({"multiplier": (float("inf"),)}, "finite"),
        ({"factor": 1.0, "percentile": (-1.0,)}, "from 0 to 100, not -1.0"),
        ({"factor": 1.0, "percentile": 101}, "from 0 to 100"),
        ({"factor": 1.0, "start_step": -1}, "start step"),
        ({"factor": 1.0, "beta": True}, "multiplier"),
        ({"factor": 1.0, "fidelity": "excat"}, "known: exact, reference"),
    ],
)
def test_settings_that_cannot_be(wrong, says):
    with pytest.raises(ValueError, match=says):
        Settings(("dog",), **wrong)


def test_what_cannot_be_erased(sae):
    with pytest.raises(ValueError, match="known: dog, cat, tower"):
        plan(STATISTICS, Settings(("horse",), factor=0.0), STEPS)
    settings = Settings(("dog",), 90, factor=0.0, residual=True)
    at = plan(STATISTICS, settings, STEPS)[0]
    with pytest.raises(ValueError, match="input was not given"):
        Eraser(sae).step(random_tokens(0), at, settings)
    with pytest.raises(ValueError, match="width 16, and this block's have 8"):
        Eraser(sae).step(torch.zeros(1, 4, 8), at, settings)
    stats = TokenStats(torch.zeros(DIM), torch.ones(DIM))
    with pytest.raises(ValueError, match="raw tokens"):
        Eraser(TopKSAE(DIM, WIDTH, K, stats))


@pytest.mark.parametrize(
    "wrong", [{}, {"a": torch.zeros(0, 2, 3)}, {"a": torch.ones(1, 2, 3), "b": torch.ones(1, 3, 3)}]
)
def test_latents_that_make_no_statistics(wrong):
    with pytest.raises(ValueError, match="concept"):
        statistics(wrong)
