"""The key-value bottleneck and its masks, against brute force and plain second implementations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sod_core.mask import edit
from sod_core.packs.errors import PackError
from sod_core.sparse import bottleneck_file, key_fitting, pair_values
from sod_core.sparse.bottleneck import Bottleneck, make_projection, nearest, order
from sod_core.sparse.key_fitting import Fitting
from sod_core.sparse.pair_values import Descent

SAMPLES, CODEBOOKS, PAIRS, WIDTH, KEY, CLASSES, K = 60, 5, 12, 9, 3, 4, 2


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(SAMPLES) % CLASSES


@pytest.fixture(scope="module")
def bare() -> Bottleneck:
    draw = torch.Generator().manual_seed(2)
    keys = torch.randn(CODEBOOKS, PAIRS, KEY, generator=draw)
    keys[:, 7] = keys[:, 3]  # ties
    values = torch.randn(CODEBOOKS, PAIRS, CLASSES, generator=draw)
    everything = torch.ones(CODEBOOKS, PAIRS, dtype=torch.bool)
    projection = make_projection(CODEBOOKS, WIDTH, KEY, seed=3)
    return Bottleneck(projection, keys, values, everything, ~everything, k=K, about={"encoder": "random"})


@pytest.fixture(scope="module")
def near(bare, features) -> torch.Tensor:
    return nearest(bare, features, 4)


@pytest.fixture(scope="module")
def counted(bare, features, near, labels) -> Bottleneck:
    counts = pair_values.count(bare.select(features, near).chosen, labels, PAIRS, CLASSES)
    return replace(bare, counts=counts, values=pair_values.of_counts(counts), used=counts.sum(-1) > 0)


def plain_choice(b: Bottleneck, z: torch.Tensor, c: int) -> list[int]:
    """The pairs that codebook c chooses, worked out one distance at a time."""
    head = z @ b.projection[c]
    away = [(((head - key).double() ** 2).sum().item(), j) for j, key in enumerate(b.keys[c]) if b.allowed[c, j]]
    away = sorted((round(distance, 5), j) for distance, j in away)
    return [j for _, j in away[: b.k]] if len(away) >= b.k else []


def plain_logits(b: Bottleneck, z: torch.Tensor) -> torch.Tensor:
    chosen = [plain_choice(b, z, c) for c in range(b.codebooks)]
    votes = [sum(b.values[c, j] for j in pairs) for c, pairs in enumerate(chosen) if pairs]
    return sum(votes) / len(votes) if votes else torch.zeros(b.classes)


def random_masks(many: int, share: float):
    draw = torch.Generator().manual_seed(4)
    return [torch.rand(CODEBOOKS, PAIRS, generator=draw) < share for _ in range(many)]


# ---------------------------------------------------------------- the bottleneck


def test_columns_of_the_projection_have_unit_norm_and_depend_on_the_seed(bare):
    assert torch.allclose(bare.projection.norm(dim=1), torch.ones(CODEBOOKS, KEY), atol=1e-6)
    assert not torch.equal(bare.projection, make_projection(CODEBOOKS, WIDTH, KEY, seed=4))


def test_the_nearest_pairs_are_those_of_brute_force_and_ties_go_to_the_lowest(bare, features):
    found = nearest(bare, features, PAIRS)
    for n, c in ((0, 0), (17, 2), (59, 4)):
        assert found[n, c].tolist() == plain_choice(replace(bare, k=PAIRS), features[n], c)
    assert all(row.index(3) + 1 == row.index(7) for row in found.flatten(0, 1).tolist())


def test_a_tie_at_the_end_of_what_is_kept_goes_to_the_lowest_too():
    away = torch.ones(3, 50, dtype=torch.float64)
    away[1, 40] = 0
    assert order(away, 3).tolist() == [[0, 1, 2], [40, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_the_look_up_equals_the_full_computation_under_random_masks(bare, features, near, share):
    for mask in random_masks(25, share):
        masked = bare.with_mask(mask)
        found = masked.logits(features[:6], near[:6])
        assert torch.allclose(found, torch.stack([plain_logits(masked, z) for z in features[:6]]), atol=1e-6)


def test_a_masked_pair_is_never_chosen_and_ranks_say_how_far_the_next_one_was(bare, features, near):
    [mask] = random_masks(1, 0.5)
    index, rank = bare.with_mask(mask).select(features, near)
    chosen = index >= 0
    assert not mask.expand(SAMPLES, -1, -1).gather(2, index.clamp(min=0))[chosen].any()
    every = nearest(bare, features, PAIRS).long()
    assert torch.equal(every.gather(2, rank.clamp(min=0))[chosen], index[chosen])


def test_a_codebook_with_too_few_pairs_abstains(bare, features, near):
    mask = torch.zeros(CODEBOOKS, PAIRS, dtype=torch.bool)
    mask[1, 1:] = True  # one pair is left, k is two
    masked = bare.with_mask(mask)
    assert masked.select(features, near).abstained.sum(0).tolist() == [0, SAMPLES, 0, 0, 0]
    others = [0, 2, 3, 4]
    without = replace(
        bare, **{name: getattr(bare, name)[others] for name in ("projection", "keys", "values", "used", "masked")}
    )
    assert torch.allclose(masked.logits(features, near), without.logits(features, near[:, others]), atol=1e-6)
    assert not masked.with_mask(mask | True).logits(features, near).any()


def test_features_of_another_width_and_nan_are_refused(bare, features):
    with pytest.raises(ValueError, match="takes \\(images, 9\\)"):
        nearest(bare, features[:, 1:])
    broken = features.clone()
    broken[5, 2] = torch.nan
    with pytest.raises(ValueError, match="image 5"):
        nearest(bare, broken)


# ---------------------------------------------------------------- keys


def test_a_step_of_the_released_rule_by_hand():
    keys = torch.tensor([[0.0], [10.0], [100.0]])
    heads = torch.tensor([[1.0], [2.0], [9.0]])
    how = Fitting(pairs=3, batch=3, decay=0.5, revived_below=0.1)
    found, sizes, sums = key_fitting.reference_step(
        keys,
        torch.tensor([2.0, 1.0, 0.1]),
        torch.tensor([[4.0], [10.0], [10.0]]),
        heads,
        how,
        torch.Generator().manual_seed(0),
    )
    assert sizes.tolist() == pytest.approx([2.0, 1.0, 0.05])  # .5 * (2, 1, .1) + .5 * (2, 1, 0)
    assert sums[:, 0].tolist() == pytest.approx([3.5, 9.5, 5.0])  # .5 * (4, 10, 10) + .5 * (3, 9, 0)
    smoothed = [(n + 1e-5) / (3.05 + 3e-5) * 3.05 for n in (2.0, 1.0)]
    assert found[:2, 0].tolist() == pytest.approx([3.5 / smoothed[0], 9.5 / smoothed[1]])
    assert found[2].item() in (1.0, 2.0, 9.0)  # below a tenth of 3 / 3


def plain_library_step(keys, sizes, sums, heads, decay):
    chosen = [min(range(len(keys)), key=lambda j: (h - keys[j]).square().sum().item()) for h in heads]
    for j in range(len(keys)):
        mine = [h for h, c in zip(heads, chosen) if c == j]
        sizes[j] = decay * sizes[j] + (1 - decay) * len(mine)
        sums[j] = decay * sums[j] + (1 - decay) * (sum(mine) if mine else torch.zeros_like(keys[0]))
    total = sizes.sum()
    smoothed = (sizes + 1e-5) / (total + len(keys) * 1e-5) * total
    return sums / smoothed[:, None], sizes, sums


def test_the_library_s_keys_follow_the_moving_average(features):
    how = Fitting(pairs=6, epochs=2, batch=20, decay=0.9, revived_below=0.0, seed=5)
    projection = make_projection(2, WIDTH, KEY, seed=6)
    found = key_fitting.fit(features, projection, how)
    for c in range(2):
        draw = key_fitting._generator(5, c)
        keys = torch.randn(1, 6, KEY, generator=draw)[0]
        torch.randint(1 << 62, (), generator=draw)
        sizes, sums = torch.ones(6), keys.clone()
        for batch in key_fitting._batches(features @ projection[c], how, draw):
            keys, sizes, sums = plain_library_step(keys, sizes, sums, batch, 0.9)
        assert torch.allclose(found[c], keys, atol=1e-4)


def test_a_step_is_what_calling_the_library_does():
    """Its own way makes a table of who chose whom; both revive the same keys by the same draws."""
    from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

    torch.manual_seed(0)
    start, batches = torch.randn(1, 40, 5), torch.randn(12, 64, 5)
    books = []
    for step in (lambda book, batch: book(batch[None, None]), key_fitting._library_step):
        book = Codebook(dim=5, codebook_size=40, decay=0.9, eps=1e-5, threshold_ema_dead_code=0.4)
        book.embed.copy_(start), book.embed_avg.copy_(start)
        book.train()
        torch.manual_seed(1)
        with torch.no_grad():
            for batch in batches:
                step(book, batch)
        books.append(book)
    theirs, ours = books
    for name in ("embed", "embed_avg", "cluster_size"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-5), name
    assert not torch.allclose(theirs.embed, start, atol=0.1)


@pytest.mark.parametrize("reference", [False, True])
def test_keys_are_the_same_for_the_same_seed_and_codebooks_do_not_depend_on_one_another(features, reference):
    how, projection = Fitting(pairs=8, epochs=2, batch=16), make_projection(3, WIDTH, KEY, seed=6)
    state = torch.get_rng_state()
    found = key_fitting.fit(features, projection, how, reference)
    assert torch.equal(state, torch.get_rng_state())
    assert found.shape == (3, 8, KEY) and found.isfinite().all()
    assert torch.equal(found[:2], key_fitting.fit(features, projection[:2], how, reference))
    assert not torch.equal(found, key_fitting.fit(features, projection, replace(how, seed=1), reference))


# ---------------------------------------------------------------- values


def test_counts_add_up_and_values_are_worked_out_by_hand(counted, bare, features, near, labels):
    assert counted.counts.sum() == CODEBOOKS * K * SAMPLES
    plain = torch.zeros(CODEBOOKS, PAIRS, CLASSES)
    for z, y in zip(features, labels):
        for c in range(CODEBOOKS):
            for j in plain_choice(bare, z, c):
                plain[c, j, y] += 1
    assert torch.equal(counted.counts.float(), plain)
    assert torch.allclose(counted.values, plain - plain.sum(-1, keepdim=True) / CLASSES)


def test_descent_is_that_of_autograd(bare, features, near, labels):
    index, how = bare.select(features, near).chosen, Descent(epochs=3, batch=25, lr=0.7, largest_norm=0.05, seed=8)
    found = pair_values.descend(index, labels, PAIRS, CLASSES, how)
    values = torch.zeros(CODEBOOKS, PAIRS, CLASSES, requires_grad=True)
    optimiser = torch.optim.SGD([values], lr=0.7)
    for epoch in range(3):
        draw = torch.Generator().manual_seed(8 * 1_000_003 + epoch)
        for batch in torch.randperm(SAMPLES, generator=draw).split(25):
            votes = torch.stack([values[c][index[batch, c]].sum(1) for c in range(CODEBOOKS)]).mean(0)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(votes, labels[batch], label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_([values], 0.05)
            optimiser.step()
    assert torch.allclose(found, values.detach(), atol=1e-6)


def test_slow_descent_is_proportional_to_counting(bare, features, near, labels):
    index = bare.select(features, near).chosen
    one = pair_values.descend(index, labels, PAIRS, CLASSES, Descent(epochs=1, batch=SAMPLES, smoothing=0.0))
    counts = pair_values.of_counts(pair_values.count(index, labels, PAIRS, CLASSES))
    assert torch.allclose(one / one.norm(), counts / counts.norm(), atol=1e-5)


# ---------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def forget(counted, features, near, labels) -> torch.Tensor:
    """What the images of class 1 chose, as the session counts it: under no mask."""
    return replace(counted, used=counted.used | True).select(features, near).chosen[labels == 1]


def test_by_activations_masks_the_most_frequent_and_masks_nest(forget):
    counts = edit.touched(forget, PAIRS)
    assert counts.sum() == CODEBOOKS * K * (SAMPLES // CLASSES)
    ranked = sorted((-counts[c, j].item(), c, j) for c in range(CODEBOOKS) for j in range(PAIRS) if counts[c, j])
    before = torch.zeros(CODEBOOKS, PAIRS, dtype=torch.bool)
    for number in range(len(ranked) + 1):
        mask = edit.by_activations(counts, number)
        assert {tuple(pair) for pair in mask.nonzero().tolist()} == {(c, j) for _, c, j in ranked[:number]}
        assert (before & ~mask).sum() == 0
        before = mask
    assert torch.equal(before, edit.by_examples(forget, PAIRS))
    with pytest.raises(ValueError, match=f"touches {len(ranked)} in all"):
        edit.by_activations(counts, len(ranked) + 1)


def test_by_activations_of_each_codebook(forget):
    counts = edit.touched(forget, PAIRS)
    mask = edit.by_activations(counts, 2, per_codebook=True)
    assert mask.sum(1).tolist() == [2] * CODEBOOKS
    for c in range(CODEBOOKS):
        best = sorted(range(PAIRS), key=lambda j: (-counts[c, j].item(), j))[:2]
        assert mask[c].nonzero()[:, 0].tolist() == sorted(best)


def test_by_enrichment_ranks_by_the_share_of_forget_samples():
    counts = torch.tensor([[1, 2, 0, 9], [5, 0, 3, 1]])
    everything = torch.tensor([[1, 2, 8, 10], [10, 7, 30, 4]])
    # shares 1 (once), 1 (twice), 0, .9 | .5, 0, .1, .25
    assert edit.by_enrichment(counts, everything, 1).nonzero().tolist() == [[0, 1]]
    assert edit.by_enrichment(counts, everything, 4).nonzero().tolist() == [[0, 0], [0, 1], [0, 3], [1, 0]]


@pytest.mark.parametrize("share, number", [(0.0, 0), (0.01, 1), (0.5, 3), (1.0, 6)])
def test_a_share_is_of_the_pairs_that_are_touched(share, number):
    assert edit.number_of(share, torch.tensor([[1, 2, 0, 9], [5, 0, 3, 1]])) == number


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="from 0 to 1"):
        edit.number_of(share, torch.ones(1, 2))


def test_a_random_mask_has_the_same_size_and_is_drawn_from_the_pairs_in_use(counted, forget):
    like = edit.by_examples(forget, PAIRS)
    drawn = edit.random_mask(like, counted.used, seed=0)
    assert drawn.sum() == like.sum() and not (drawn & ~counted.used).any()
    assert torch.equal(drawn, edit.random_mask(like, counted.used, seed=0))
    assert not torch.equal(drawn, edit.random_mask(like, counted.used, seed=1))


# ---------------------------------------------------------------- states


def test_unmasking_gives_the_same_logits_bit_for_bit(counted, features, near, forget):
    before = counted.logits(features, near)
    masked = edit.forbid(counted, edit.by_activations(edit.touched(forget, PAIRS), 9))
    assert not torch.equal(masked.logits(features, near), before)
    assert torch.equal(masked.with_mask(counted.masked).logits(features, near), before)


def test_a_mask_that_covers_everything_is_refused(counted):
    with pytest.raises(ValueError, match="every pair"):
        edit.forbid(counted, counted.used)
    with pytest.raises(ValueError, match="every pair"):
        edit.compact(counted.with_mask(counted.used))


def test_an_empty_forget_set_is_refused(forget):
    with pytest.raises(ValueError, match="empty"):
        edit.by_examples(forget[:0], PAIRS)


def test_compacting_changes_no_logit_and_leaves_no_trace(counted, features, near, forget):
    masked = edit.forbid(counted, edit.by_activations(edit.touched(forget, PAIRS), 12))
    small = edit.compact(masked)
    assert small.pairs < counted.pairs and not small.masked.any()
    kept, there = (torch.cat([b.keys, b.values], dim=2) for b in (small, counted))  # two pairs share a key
    gone = there[masked.masked & counted.used]
    assert not (kept.flatten(0, 1)[:, None] == gone[None]).all(-1).any()
    assert torch.equal(small.logits(features, nearest(small, features)), masked.logits(features, near))


def test_erased_values_vote_for_nothing_and_stay_to_be_chosen(counted, features, near, forget):
    mask = edit.by_activations(edit.touched(forget, PAIRS), 12)
    erased = edit.erase_values(counted, mask)
    assert torch.equal(erased.select(features, near).chosen, counted.select(features, near).chosen)
    assert not erased.values[mask].any() and torch.equal(erased.values[~mask], counted.values[~mask])


def test_removal_equals_training_without_and_adding_takes_it_back(counted, bare, features, near, labels):
    index = bare.select(features, near).chosen
    gone = labels == 1
    removed = edit.remove_samples(counted, index[gone], labels[gone])
    counts = pair_values.count(index[~gone], labels[~gone], PAIRS, CLASSES)
    assert torch.equal(removed.counts, counts) and torch.equal(removed.values, pair_values.of_counts(counts))
    assert torch.equal(removed.used, counts.sum(-1) > 0)
    back = edit.add_samples(removed, index[gone], labels[gone])
    assert torch.equal(back.counts, counted.counts) and torch.equal(back.values, counted.values)
    with pytest.raises(ValueError, match="not counted"):
        edit.remove_samples(removed, index[gone], labels[gone])
    with pytest.raises(ValueError, match="not made by counting"):
        edit.remove_samples(bare, index, labels)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("state", ["masked", "erased", "compacted", "removed"])
def test_each_state_is_a_file_that_can_be_loaded_again(tmp_path, counted, bare, features, near, forget, labels, state):
    mask = edit.by_activations(edit.touched(forget, PAIRS), 9)
    made = {
        "masked": lambda: edit.forbid(counted, mask),
        "erased": lambda: edit.erase_values(counted, mask),
        "compacted": lambda: edit.compact(edit.forbid(counted, mask)),
        "removed": lambda: edit.remove_samples(
            counted, bare.select(features, near).chosen[labels == 1], labels[labels == 1]
        ),
    }[state]()
    bottleneck_file.save(made, tmp_path / "a.safetensors")
    found = bottleneck_file.read(tmp_path / "a.safetensors")
    again = nearest(made, features)
    assert torch.equal(found.logits(features, again), made.logits(features, again))
    assert (found.k, found.about) == (K, {"encoder": "random"}) and torch.equal(found.counts, made.counts)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"keys": None}, "lacks 'keys'"),
        ({"lora": torch.ones(1)}, "also holds 'lora'"),
        ({"values": torch.zeros(CODEBOOKS, PAIRS + 1, CLASSES)}, "expected"),
        ({"keys": torch.full((CODEBOOKS, PAIRS, KEY), torch.nan)}, "finite"),
        ({"used": torch.ones(CODEBOOKS, PAIRS)}, "true or false"),
        ({"counts": -torch.ones(CODEBOOKS, PAIRS, CLASSES, dtype=torch.int32)}, "whole numbers"),
    ],
)
def test_a_file_is_understood_whole_or_refused(tmp_path, counted, change, sentence):
    path = tmp_path / "a.safetensors"
    bottleneck_file.save(counted, path)
    tensors = {name: tensor for name, tensor in {**load_file(path), **change}.items() if tensor is not None}
    about = {"form": bottleneck_file.FORM, "k": "2", "about": "{}"}
    save_file(tensors, path, metadata=about)
    with pytest.raises(PackError, match=sentence):
        bottleneck_file.read(path)
    save_file(load_file(path), path)
    with pytest.raises(PackError, match="no file of a bottleneck"):
        bottleneck_file.read(path)


@pytest.mark.parametrize("k", ["0", "x", "99"])
def test_a_file_with_an_impossible_k_is_refused(tmp_path, counted, k):
    path = tmp_path / "a.safetensors"
    bottleneck_file.save(counted, path)
    save_file(load_file(path), path, metadata={"form": bottleneck_file.FORM, "k": k})
    with pytest.raises(PackError, match="says k"):
        bottleneck_file.read(path)
