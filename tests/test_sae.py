"""The sparse code on cases that fit on paper."""

from __future__ import annotations

import pytest
import torch
from conftest import random_images, random_sae, random_stats

from sod_core.sparse.topk import TokenStats, TopKSAE, variance_unexplained


def by_hand(k: int, stats: TokenStats | None = None) -> TopKSAE:
    """Two latents: the first reads x0 + x1 and writes (1, 0), the second reads x0 - x1 and writes (2, 3)."""
    sae = TopKSAE(dim=2, latents=2, k=k, stats=stats)
    sae.encoder.weight.data = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    sae.decoder.weight.data = torch.tensor([[1.0, 2.0], [0.0, 3.0]])  # a column a latent
    sae.pre_bias.data = torch.tensor([1.0, 0.0])
    sae.latent_bias.data = torch.tensor([0.5, 0.0])
    return sae.requires_grad_(False)


STATS = TokenStats(
    patch_mean=torch.tensor([0.0, 1.0]),
    patch_std=torch.tensor([2.0, 1.0]),
    cls_mean=torch.tensor([10.0, 0.0]),
    cls_std=torch.tensor([5.0, 2.0]),
)


@pytest.mark.parametrize("k", [1, 2])
def test_encode_and_decode_by_hand(k):
    # CLS (4, 1): minus pre_bias (3, 1) -> (4 + 0.5, 2); a patch (0, 2): (-1, 2) -> (1.5, -3), ReLU cuts the second
    latents = by_hand(k).encode(torch.tensor([[4.0, 1.0], [0.0, 2.0]]))
    second = 2.0 if k == 2 else 0.0
    assert torch.equal(latents, torch.tensor([[4.5, second], [1.5, 0.0]]))
    # 4.5 (1, 0) + second (2, 3) + pre_bias
    recons = by_hand(k).decode(latents)
    assert torch.equal(recons, torch.tensor([[4.5 + 2 * second + 1, 3 * second], [2.5, 0.0]]))


def test_cls_and_patches_each_have_their_own_statistics():
    sae = by_hand(2, STATS)
    hidden = torch.tensor([[20.0, 2.0], [8.0, 2.0]])
    # CLS ((20 - 10) / 5, 2 / 2) = (2, 1), the patch (8 / 2, (2 - 1) / 1) = (4, 1)
    assert torch.equal(sae.normalise(hidden), torch.tensor([[2.0, 1.0], [4.0, 1.0]]))
    latents = sae.encode(hidden)
    assert torch.equal(latents, torch.tensor([[2.5, 0.0], [4.5, 2.0]]))
    # reconstructions (3.5, 0) and (9.5, 6) in normalised units
    assert torch.equal(sae.decode(latents), torch.tensor([[3.5 * 5 + 10, 0.0], [9.5 * 2, 6.0 * 1 + 1]]))


def test_decode_difference_by_hand():
    change = torch.tensor([[2.0], [-1.0]])  # of latent 1, which writes (2, 3)
    raw = by_hand(2).decode_difference(change, torch.tensor([1]))
    assert torch.equal(raw, torch.tensor([[4.0, 6.0], [-2.0, -3.0]]))
    normalised = by_hand(2, STATS).decode_difference(change, torch.tensor([1]))
    assert torch.equal(normalised, torch.tensor([[4.0 * 5, 6.0 * 2], [-2.0 * 2, -3.0 * 1]]))


@pytest.mark.parametrize("stats", [None, random_stats(3)], ids=["raw", "normalised"])
def test_decode_difference_is_the_difference_of_two_decodings(stats):
    sae = random_sae(4, stats)
    before = sae.encode(torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0)))
    features = torch.tensor([5, 9, 60])
    after = before.clone()
    after[..., features] += torch.tensor([1.0, -2.0, 0.5])
    moved = sae.decode_difference((after - before)[..., features], features)
    torch.testing.assert_close(moved, sae.decode(after) - sae.decode(before), atol=1e-5, rtol=1e-5)


def test_without_cls_statistics_cls_takes_the_patches():
    patch_only = TokenStats(STATS.patch_mean, STATS.patch_std)
    found = by_hand(2, patch_only).normalise(torch.tensor([[8.0, 2.0], [8.0, 2.0]]))
    assert torch.equal(found, torch.tensor([[4.0, 1.0], [4.0, 1.0]]))


def test_set_stats_turns_normalisation_on_and_off():
    sae = by_hand(2)
    assert not sae.normalised
    sae.set_stats(STATS)
    assert sae.normalised
    sae.set_stats(None)
    hidden = torch.tensor([[20.0, 2.0], [8.0, 2.0]])
    assert not sae.normalised and torch.equal(sae.normalise(hidden), hidden)


def test_the_statistics_are_no_part_of_the_saved_state():
    assert set(by_hand(2, STATS).state_dict()) == {"pre_bias", "latent_bias", "encoder.weight", "decoder.weight"}


def test_ties_at_the_kth_value_all_stay():
    sae = TopKSAE(dim=2, latents=6, k=2)
    kept = sae.activate(torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, -1.0]))
    assert kept.tolist() == [3.0, 2.0, 2.0, 2.0, 0.0, 0.0]
    assert sae.activate(torch.full((6,), 2.0)).tolist() == [2.0] * 6
    # no tie: exactly k; and a k-th largest below zero is cut by the ReLU
    assert sae.activate(torch.tensor([3.0, 2.5, 2.0, 1.0, 0.0, -1.0])).tolist() == [3.0, 2.5, 0.0, 0.0, 0.0, 0.0]
    assert sae.activate(torch.tensor([3.0, -2.0, -2.0, -3.0, -4.0, -5.0])).tolist() == [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_k_above_the_width_keeps_everything_positive():
    assert TopKSAE(dim=2, latents=3, k=10).activate(torch.tensor([1.0, -1.0, 2.0])).tolist() == [1.0, 0.0, 2.0]


def test_each_token_has_its_own_top_k():
    sae = random_sae(5)
    latents = sae.encode(torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1)))
    assert latents.shape == (2, 17, 64)
    assert ((latents > 0).sum(-1) <= sae.k).all() and (latents >= 0).all() and (latents > 0).any(-1).all()


def test_projection_has_no_latent_bias_relu_topk_or_normalisation():
    sae = by_hand(1, STATS)
    assert torch.equal(sae.projection(torch.tensor([[4.0, 1.0], [0.0, 2.0]])), torch.tensor([[4.0, 2.0], [1.0, -3.0]]))


def test_variance_unexplained_by_hand():
    """One latent that copies x0 and drops x1: CLS and patches each about their own mean."""
    sae = TopKSAE(dim=2, latents=1, k=1)
    sae.encoder.weight.data = torch.tensor([[1.0, 0.0]])
    sae.decoder.weight.data = torch.tensor([[1.0], [0.0]])
    hidden = torch.tensor([[[10.0, 0.0], [1.0, 1.0], [3.0, 1.0]], [[14.0, 2.0], [5.0, 3.0], [7.0, 3.0]]])
    # errors: x1 squared = 0 + 4 (CLS), 1 + 1 + 9 + 9 (patches) = 24
    # CLS mean (12, 1): 4 + 1 + 4 + 1 = 10; patch mean (4, 2): x0 9 + 1 + 1 + 9, x1 four times 1 = 24
    assert variance_unexplained(sae, hidden) == pytest.approx(24 / 34)


def test_variance_unexplained_is_measured_in_the_trained_space():
    sae = TopKSAE(dim=2, latents=1, k=1, stats=STATS)
    sae.encoder.weight.data = torch.tensor([[1.0, 0.0]])
    sae.decoder.weight.data = torch.tensor([[1.0], [0.0]])
    hidden = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(2)) + 3
    raw = TopKSAE(dim=2, latents=1, k=1)
    raw.load_state_dict(sae.state_dict())
    assert variance_unexplained(sae, hidden) == pytest.approx(variance_unexplained(raw, sae.normalise(hidden)))


def test_a_perfect_code_explains_everything():
    sae = TopKSAE(dim=3, latents=6, k=3)
    sae.encoder.weight.data = torch.cat([torch.eye(3), -torch.eye(3)])
    sae.decoder.weight.data = torch.cat([torch.eye(3), -torch.eye(3)], dim=1)
    hidden = random_images(0, 1).flatten()[: 4 * 5 * 3].reshape(4, 5, 3)
    torch.testing.assert_close(sae.decode(sae.encode(hidden)), hidden)
    assert variance_unexplained(sae, hidden) == pytest.approx(0, abs=1e-9)
