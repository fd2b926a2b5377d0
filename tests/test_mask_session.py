"""Masks over a whole test set: what they forbid, and what they do, against a plain count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sod_core.mask import edit
from sod_core.mask.session import Dose, Images, MaskSession
from sod_core.sparse import key_fitting, pair_values
from sod_core.sparse.bottleneck import Bottleneck, make_projection, nearest
from sod_core.sparse.key_fitting import Fitting

CLASSES, STYLES, WIDTH = 4, 3, 16


def images(seed: int, each: int) -> Images:
    """Classes and styles that a linear probe tells apart, `each` images in every cell."""
    draw = torch.Generator().manual_seed(9)
    centres, accents = 3 * torch.randn(CLASSES, WIDTH, generator=draw), torch.randn(STYLES, WIDTH, generator=draw)
    labels, styles = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(CLASSES), torch.arange(STYLES), indexing="ij")
    )
    labels, styles = labels.repeat(each), styles.repeat(each)
    noise = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(seed))
    return Images(centres[labels] + accents[styles] + 0.7 * noise, labels, styles)


@pytest.fixture(scope="module")
def session() -> MaskSession:
    train, test = images(1, 20), images(2, 10)
    projection = make_projection(12, WIDTH, 6, seed=0)
    keys = key_fitting.fit(train.features, projection, Fitting(pairs=24, epochs=4, batch=60))
    everything = torch.ones(12, 24, dtype=torch.bool)
    bare = Bottleneck(projection, keys, torch.zeros(12, 24, CLASSES), everything, ~everything)
    index = bare.select(train.features, nearest(bare, train.features)).chosen
    counts = pair_values.count(index, train.labels, 24, CLASSES)
    made = replace(bare, counts=counts, values=pair_values.of_counts(counts), used=counts.sum(-1) > 0)
    return MaskSession(made, train, test)


NOTHING = torch.zeros(12, 24, dtype=torch.bool)


def test_the_bottleneck_knows_its_classes_and_forgets_one(session):
    before = session.figures(NOTHING, [1])
    after = session.figures(session.forget([1], Dose(share=1.0)), [1])
    assert before.forget > 0.9 and before.retain > 0.9
    assert after.forget < 0.1 and after.retain > 0.8


def test_figures_are_a_plain_count(session):
    mask = session.forget([2], Dose(share=0.4))
    found = session.figures(mask, [2])
    masked = session.bottleneck.with_mask(mask)
    called = masked.logits(session.test.features, session.test_nearest).argmax(1).tolist()
    rows = list(zip(called, session.test.labels.tolist(), session.test.styles.tolist()))
    right = [called == label for called, label, _ in rows]
    assert found.forget == pytest.approx(sum(r for r, (_, y, _) in zip(right, rows) if y == 2) / 30)
    assert found.retain == pytest.approx(sum(r for r, (_, y, _) in zip(right, rows) if y != 2) / 90)
    for y in range(CLASSES):
        assert found.by_class[y] == pytest.approx(sum(r for r, row in zip(right, rows) if row[1] == y) / 30)
        for s in range(STYLES):
            assert found.by_style[y, s] == pytest.approx(
                sum(r for r, row in zip(right, rows) if row[1:] == (y, s)) / 10
            )
        for z in range(CLASSES):
            assert found.confusion[y, z] == sum(row[:2] == (z, y) for row in rows)
    assert found.abstained == 0


def test_a_random_mask_of_the_same_size_does_not_forget(session):
    mask = session.forget([1], Dose(share=1.0))
    drawn = edit.random_mask(mask, session.bottleneck.used, seed=0)
    assert session.figures(drawn, [1]).forget > 0.8


def test_masks_nest_and_examples_are_among_what_the_class_touches(session):
    half, whole = (session.forget([0], Dose(share=share)) for share in (0.5, 1.0))
    some = session.forget([0], Dose("examples", examples=5), seed=3)
    assert not (half & ~whole).any() and not (some & ~whole).any()
    assert 0 < some.sum() < whole.sum()
    assert torch.equal(session.forget([0], Dose("examples", examples=60)), whole)


def test_classes_one_after_another_choose_among_what_is_left(session):
    both = session.forget([0, 3], Dose(share=0.5))
    first = session.forget([0], Dose(share=0.5))
    assert not (first & ~both).any()
    after = replace(session.bottleneck, masked=first)
    rows = session.train.labels == 3
    index = after.select(session.train.features[rows], session.train_nearest[rows]).chosen
    counts = edit.touched(index, 24)
    assert torch.equal(both, first | edit.by_activations(counts, edit.number_of(0.5, counts)))


def test_only_one_style_s_images_are_the_forget_set(session):
    one, all_of_it = (session.forget([1], Dose(share=1.0, style=style)) for style in (0, None))
    assert not (one & ~all_of_it).any() and one.sum() < all_of_it.sum()


@pytest.mark.parametrize(
    "classes, dose, sentence",
    [
        ([1], Dose("guess", share=0.5), "unknown"),
        ([1], Dose(), "a share or pairs"),
        ([1], Dose(share=0.5, pairs=3), "a share or pairs"),
        ([1], Dose("examples", share=0.5), "takes examples"),
        ([1], Dose("examples", examples=0), "empty"),
        ([1], Dose("examples", examples=61), "61 examples of 60"),
        ([1], Dose(pairs=100_000), "touches"),
        ([1], Dose(pairs=-1), "touches"),
        ([1], Dose(share=float("nan")), "from 0 to 1"),
        ([], Dose(share=0.5), "name the classes"),
        ([4], Dose(share=0.5), "name the classes"),
        ([0, 1, 2, 3], Dose(share=0.5), "all classes"),
    ],
)
def test_what_cannot_be_forgotten_is_one_sentence(session, classes, dose, sentence):
    with pytest.raises(ValueError, match=sentence):
        session.forget(classes, dose)


def test_images_of_one_class_and_none_are_refused(session):
    train = session.train
    one = Images(train.features[train.labels == 0], train.labels[train.labels == 0])
    with pytest.raises(ValueError, match="one class"):
        MaskSession(session.bottleneck, one, session.test)
    with pytest.raises(ValueError, match="training images"):
        MaskSession(session.bottleneck, Images(train.features[:0], train.labels[:0]), session.test)
