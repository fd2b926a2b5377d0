"""Which latents an edit touches."""

from __future__ import annotations

import pytest
import torch

from sod_core.restore import features


def table(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def test_rank_experts_by_hand():
    # images (rows) of class 0, 0, 0, 0, 1, 1; latents (columns) 0 to 3
    active = table([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]])
    found = features.rank_experts(active, torch.tensor([0, 0, 0, 0, 1, 1]), classes=2, keep=3)
    # class 0: latent 0 P(c|j) 3/3, P(j|c) 3/4; latent 1 3/4 and 3/4; latent 3 1/3 and 1/4; latent 2 never fires
    assert [expert.feature_id for expert in found[0]] == [0, 1, 3]
    first, second, third = found[0]
    assert first[1:] == pytest.approx((1.0, 0.75, 2 * 0.75 / 1.75))
    assert second[1:] == pytest.approx((0.75, 0.75, 0.75))
    assert third[1:] == pytest.approx((1 / 3, 0.25, 2 * (1 / 12) / (7 / 12)))
    # class 1: latent 3 2/3 and 1; latent 1 1/4 and 1/2; latent 0 never with it
    assert [expert.feature_id for expert in found[1]] == [3, 1]
    assert found[1][0][1:] == pytest.approx((2 / 3, 1.0, 0.8))


def test_rank_experts_keeps_the_best():
    active = table([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = features.rank_experts(active, torch.tensor([0, 0, 0, 1]), classes=2, keep=2)
    assert [expert.feature_id for expert in found[0]] == [0, 1]
    assert found[1] == []


def everywhere_table(classes_active: int, images_active: int) -> torch.Tensor:
    """9 classes of 4 images; latent 0 fires on `images_active` of them in the first `classes_active` classes, latent 1
    on one image of class 0."""
    active = torch.zeros(9, 4, 2, dtype=torch.bool)
    active[:classes_active, :images_active, 0] = True
    active[0, 0, 1] = True
    return active.flatten(0, 1)


@pytest.mark.parametrize(
    ("classes_active", "images_active", "kept"),
    [(6, 4, True), (7, 4, False), (9, 4, False), (7, 2, False), (9, 1, True)],
)
def test_latents_that_fire_everywhere_are_no_experts(classes_active, images_active, kept):
    """Active in 7 or more classes; in a class, on at least half of its images."""
    labels = torch.arange(9).repeat_interleave(4)
    found = features.rank_experts(everywhere_table(classes_active, images_active), labels, classes=9, keep=5)
    assert (0 in [expert.feature_id for expert in found[0]]) == kept
    assert 1 in [expert.feature_id for expert in found[0]]


@pytest.mark.parametrize(("k", "kept"), [(16, 20), (32, 40), (4, 5)])
def test_experts_kept(k, kept):
    assert features.experts_kept(k) == kept


# ---------------------------------------------------------------- controls

EXPERTS = [90, 3, 41, 60, 77]


def activity(total: int = 200) -> torch.Tensor:
    """Half of the latents hardly fire; the experts fire often."""
    shares = torch.rand(total, generator=torch.Generator().manual_seed(0))
    shares[: total // 2] *= 0.02
    shares[EXPERTS] = torch.tensor([0.55, 0.6, 0.7, 0.8, 0.9])
    return shares


@pytest.mark.parametrize("kind", ["random", "matched"])
def test_controls_are_seeded_disjoint_and_as_many(kind):
    for seed in range(20):
        found = features.choose(kind, EXPERTS, activity(), seed)
        assert found == features.choose(kind, EXPERTS, activity(), seed)
        assert len(found) == len(set(found)) == len(EXPERTS)
        assert not set(found) & set(EXPERTS) and all(0 <= j < 200 for j in found)
    draws = {tuple(features.choose(kind, EXPERTS, activity(), seed)) for seed in range(20)}
    assert len(draws) > 10


def test_drawing_a_control_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    features.choose("random", EXPERTS, activity(), 1)
    features.choose("matched", EXPERTS, activity(), 1)
    assert torch.equal(torch.rand(1), expected)


def test_matched_features_fire_as_often_as_the_experts():
    shares = activity()
    wanted = shares[EXPERTS].sort().values

    def distance(kind: str) -> float:
        drawn = [shares[features.choose(kind, EXPERTS, shares, seed)].sort().values for seed in range(20)]
        return torch.stack([(values - wanted).abs().mean() for values in drawn]).mean().item()

    assert distance("matched") < 0.1 < distance("random")


@pytest.mark.parametrize("kind", ["random", "matched"])
def test_controls_take_what_there_is_when_latents_run_short(kind):
    found = features.choose(kind, [0, 1, 2, 3], torch.full((6,), 0.5), 0)
    assert found == [4, 5]


def test_experts_and_all():
    assert features.choose("experts", EXPERTS, activity()) == EXPERTS
    assert features.choose("all", EXPERTS, activity()) == list(range(200))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown features 'best'.*experts, random, matched, all"):
        features.choose("best", EXPERTS, activity())


# ---------------------------------------------------------------- a user's own list


@pytest.mark.parametrize(
    ("text", "ids"),
    [("1,5,9", [1, 5, 9]), (" 9 ; 1,\n5,, ", [1, 5, 9]), ("7", [7]), ("3,3,3", [3]), ("063", [63])],
)
def test_parse(text, ids):
    assert features.parse(text, 64) == ids


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no latent ids"),
        (" , ;", "no latent ids"),
        ("1,two", "'two' is not a latent id"),
        ("1.5", "'1.5' is not a latent id"),
        ("-1", "'-1' is not a latent id"),
        ("1 2", "'1 2' is not a latent id"),
        ("1²", "'1²' is not a latent id"),
        ("64", "latent 64 does not exist.*0 to 63"),
        ("9" * 5000, "is not a latent id|does not exist"),
    ],
)
def test_parse_says_what_is_wrong(text, says):
    with pytest.raises(ValueError, match=says):
        features.parse(text, 64)
