"""The engine of Erase, against a second, dense implementation written out here from the formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sod_core import erase
from sod_core.erase import Eraser, Settings
from sod_core.sae import TopKSAE

D, F, K, T = 12, 40, 5, 4
NAMES = ("cat", "dog", "sun")


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    torch.manual_seed(0)
    found = TopKSAE(D, F, K)
    for parameter in (found.pre_bias, found.latent_bias):
        parameter.data = torch.randn_like(parameter) * 0.1
    return found.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def gathered() -> dict[str, Tensor]:
    """What the released code gathers: concept -> [samples, steps, F], sparse and not negative; unequal counts."""
    rng = torch.Generator().manual_seed(1)
    return {name: (torch.randn(count, T, F, generator=rng) - 0.5).relu() for name, count in zip(NAMES, (7, 4, 5))}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(4, 9, D, generator=torch.Generator().manual_seed(2))


def dense(sae: TopKSAE, gathered: dict, how: Settings, step: int, x: Tensor, given: Tensor | None = None) -> Tensor:
    """The edit with whole matrices, from the raw latents of every sample; loops over concepts and latents."""
    inside = x - given if how.residual else x
    pre = ((inside - sae.pre_bias) @ sae.encoder.weight.T + sae.latent_bias).relu()
    top = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values)
    edited = latents.clone()
    for concept in how.concepts if step >= how.start_step else ():
        mean = gathered[concept][:, step].mean(0)
        others = torch.cat([v[:, step] for name, v in gathered.items() if name != concept]).mean(0)
        score = mean / (mean.sum() + 1e-8) - others / (others.sum() + 1e-8)
        least = torch.quantile(score, how.percentile / 100)
        for j in range(F):
            if score[j] <= least:
                continue
            threshold = torch.stack([v[:, step, j].mean() for v in gathered.values()]).mean()
            if how.beta:
                scale = how.multiplier * latents.norm(dim=-1) / (sae.decoder.weight[:, j].norm() + 1e-8)
            else:
                scale = how.factor if how.factor is not None else mean[j] * how.multiplier
            edited[..., j] = torch.where(latents[..., j] > threshold, latents[..., j] * scale, latents[..., j])
    decode = lambda f: f @ sae.decoder.weight.T + sae.pre_bias  # noqa: E731
    if how.fidelity == "exact":
        return x + (edited - latents) @ sae.decoder.weight.T
    out = decode(edited) + (decode(latents) - inside)
    return given + out if how.residual else out


CASES = {
    "factor": Settings(("cat",), 80, factor=-1.5),
    "multiplier": Settings(("dog",), 70, multiplier=-3.0),
    "two concepts": Settings(("cat", "sun"), 60, multiplier=-2.0),
    "two, the other way round": Settings(("sun", "cat"), 60, multiplier=-2.0),
    "not yet": Settings(("cat",), 80, factor=-1.5, start_step=2),
    "begun": Settings(("cat",), 80, factor=-1.5, start_step=1),
    "beta": Settings(("cat",), 80, multiplier=-0.4, beta=True),
    "residual": Settings(("cat",), 80, factor=0.0, residual=True),
}


@pytest.mark.parametrize("fidelity", erase.FIDELITIES)
@pytest.mark.parametrize("case", CASES)
def test_every_option_equals_the_dense_form(sae, gathered, x, case: str, fidelity: str) -> None:
    how, step, given = replace(CASES[case], fidelity=fidelity), 1, x.flip(0) * 0.3
    found = erase.statistics(gathered)
    got = Eraser(sae).erase_step(x, erase.plan(found, how, T)[step], how, given).tokens
    expected = dense(sae, gathered, how, step, x, given)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    changed = (got - dense(sae, gathered, replace(how, concepts=()), step, x, given)).abs().max()
    assert changed > 0.01 or case == "not yet"  # the edit that is compared is one


def test_two_concepts_share_latents_and_the_last_one_scales_them(gathered) -> None:
    found = erase.statistics(gathered)
    ids = [set(erase.selected(found, name, 1, 60).tolist()) for name in ("cat", "sun")]
    shared = ids[0] & ids[1]
    assert shared
    plan = erase.plan(found, CASES["two concepts"], T)[1]
    assert plan.features.tolist() == sorted(ids[0] | ids[1])
    for j in shared:
        at = plan.features.tolist().index(j)
        assert plan.scales[at] == pytest.approx(-2.0 * gathered["sun"][:, 1, j].mean().item(), rel=1e-5)


def test_a_case_by_hand() -> None:
    """Two latents along two axes; the token (3, 0.5); the concept owns the first latent, mean 2, others 0."""
    sae = TopKSAE(2, 2, 2).requires_grad_(False)
    sae.encoder.weight.data, sae.decoder.weight.data = torch.eye(2), torch.eye(2)
    found = erase.statistics({"a": torch.tensor([[[2.0, 1.0]]]), "b": torch.tensor([[[0.0, 1.0]]])})
    assert erase.scores(found, "a", 0).tolist() == pytest.approx([2 / 3, 1 / 3 - 1])
    how = Settings(("a",), 50, multiplier=-0.5)
    plan = erase.plan(found, how, 1)[0]
    assert (plan.features.tolist(), plan.thresholds.tolist(), plan.scales.tolist()) == ([0], [1.0], [-1.0])
    token = torch.tensor([[[3.0, 0.5]]])
    assert Eraser(sae).erase_step(token, plan, how).tokens.tolist() == [[[-3.0, 0.5]]]
    below = torch.tensor([[[0.9, 0.5]]])  # under its threshold: left alone
    assert torch.equal(Eraser(sae).erase_step(below, plan, how).tokens, below)


@pytest.mark.parametrize("heat", [False, True])
def test_an_edit_of_nothing_is_exactly_nothing(sae, gathered, x, heat: bool) -> None:
    found = erase.statistics(gathered)
    for how in (Settings(), Settings(("cat",), 80, factor=1.0), Settings(("cat",), 80, factor=-1.0, start_step=T)):
        plan = erase.plan(found, how, T)[0]
        assert torch.equal(Eraser(sae).erase_step(x, plan, how, heat=heat).tokens, x)
    in_reference = replace(how, fidelity="reference")  # there the error's sign is reversed, so it is not
    assert not torch.allclose(Eraser(sae).erase_step(x, plan, in_reference).tokens, x, atol=0.01)


def test_heat_is_the_selected_latents_after_the_top_k(sae, gathered, x) -> None:
    found, how = erase.statistics(gathered), CASES["factor"]
    plan = erase.plan(found, how, T)[1]
    expected = sae.encode(x)[..., plan.features]
    for fidelity in erase.FIDELITIES:
        got = Eraser(sae).erase_step(x, plan, replace(how, fidelity=fidelity), heat=True)
        torch.testing.assert_close(got.latents, expected, atol=1e-5, rtol=0)
        assert torch.equal(got.tokens, Eraser(sae).erase_step(x, plan, replace(how, fidelity=fidelity)).tokens)


def test_half_precision_comes_back_in_half_precision(sae, gathered, x) -> None:
    found, how = erase.statistics(gathered), CASES["factor"]
    plan = erase.plan(found, how, T)[1]
    got = Eraser(sae).erase_step(x.half(), plan, how).tokens
    assert got.dtype == torch.float16
    torch.testing.assert_close(got.float(), dense(sae, gathered, how, 1, x), atol=0.05, rtol=0)


def test_statistics_of_other_numbers_of_steps_are_read_by_share(gathered) -> None:
    found = erase.statistics(gathered)
    assert [found.at(step, T) for step in range(T)] == [0, 1, 2, 3]
    assert [found.at(step, 7) for step in range(7)] == [0, 0, 1, 2, 2, 2, 3]
    assert [found.at(step, 2) for step in range(2)] == [0, 3]
    assert found.at(0, 1) == 0


def test_factor_and_multiplier_convert_both_ways(gathered) -> None:
    found = erase.statistics(gathered)
    multiplier = erase.multiplier_for(found, "cat", -1.0, 80)
    assert erase.factor_for(found, "cat", multiplier, 80) == pytest.approx(-1.0)
    plans = erase.plan(found, Settings(("cat",), 80, multiplier=multiplier), T)
    assert torch.cat([plan.scales for plan in plans]).mean().item() == pytest.approx(-1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Settings(("bird",), factor=0.0), "known: cat, dog, sun"),
        (Settings(("cat",)), "a factor or a multiplier"),
        (Settings(("cat",), factor=0.0, multiplier=1.0), "not both"),
        (Settings(("cat",), factor=0.0, beta=True), "needs a multiplier"),
        (Settings(("cat",), percentile=101, factor=0.0), "between 0 and 100"),
        (Settings(("cat",), factor=0.0, fidelity="near"), "unknown fidelity"),
    ],
)
def test_settings_that_mean_nothing_are_refused(gathered, how: Settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        erase.plan(erase.statistics(gathered), how, T)
