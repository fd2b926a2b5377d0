"""Surveys counted again by hand, the three rules on latents whose figures are given, and the controls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_language import ReluCode, tiny_language

from sod_core.clamp import select, survey
from sod_core.packs.errors import PackError

FORGET = ["the red root boils", "red", "", "salt and root and red salt " * 40]
RETAIN = ["the river is long", "a river and a hill"]
LAYER, LATENTS = 1, 12


@pytest.fixture(scope="module")
def language():
    return tiny_language(" ".join([*FORGET, *RETAIN]).split())


@pytest.fixture(scope="module")
def code():
    return ReluCode(LATENTS)


@pytest.fixture(scope="module")
def found(language, code):
    return survey.survey(language, code, LAYER, FORGET, RETAIN, threshold=0.1)


def by_hand(language, code, texts):
    """[n, F] latents and what they are of: each text alone, its words one after the other, BOS left out."""
    rows, places = [], []
    for number, text in enumerate(texts):
        at = 0
        for piece in survey.pieces(language, text):
            states = language.states(language.batch([piece]), LAYER)[0]
            for place, id in enumerate(piece):
                if id > 2:  # BOS, EOS, padding
                    rows.append(code.encode(states[place]))
                    places.append((number, at, id))
                    at += 1
    return torch.stack(rows), places


def test_frequencies_and_squares_are_means_over_words(language, code, found):
    for texts, frequency, square, tokens in (
        (FORGET, found.forget_frequency, found.forget_square, found.forget_tokens),
        (RETAIN, found.retain_frequency, found.retain_square, found.retain_tokens),
    ):
        latents, _ = by_hand(language, code, texts)
        assert tokens == sum(len(text.split()) for text in texts) == len(latents)
        torch.testing.assert_close(frequency, (latents > 0.1).float().mean(0))
        torch.testing.assert_close(square, latents.square().mean(0), rtol=1e-4, atol=1e-5)
    every = torch.cat([by_hand(language, code, texts)[0] for texts in (FORGET, RETAIN)])
    torch.testing.assert_close(found.frequency, (every > 0.1).float().mean(0))
    torch.testing.assert_close(found.square, every.square().mean(0), rtol=1e-4, atol=1e-5)


def test_the_strongest_words_are_those_of_a_full_sort(language, code, found):
    latents, places = by_hand(language, code, [*FORGET, *RETAIN])
    words = [text.split() for text in [*FORGET, *RETAIN]]
    for latent in range(LATENTS):
        hits = found.strongest(latent)
        expected = latents[:, latent].sort(descending=True).values[: survey.STRONGEST]
        assert [hit.value for hit in hits] == pytest.approx([v for v in expected.tolist() if v > 0], abs=1e-4)
        for hit in hits:
            row = places.index(next(p for p in places if p[:2] == (hit.text, hit.position)))
            assert latents[row, latent].item() == pytest.approx(hit.value, abs=1e-4)
        for hit, passage in zip(hits, found.passages(latent, language, FORGET, RETAIN, around=2)):
            line = words[hit.text]
            assert passage.token == line[hit.position]
            assert passage.before.split() == line[max(0, hit.position - 2) : hit.position]
            assert passage.after.split() == line[hit.position + 1 :][:2]


def test_a_long_text_is_read_to_its_end_and_cut_between_words(language):
    cut = survey.pieces(language, FORGET[3])
    assert len(cut) > 1 and all(len(piece) <= language.context for piece in cut)
    assert sum(len(piece) - 1 for piece in cut) == 240 and all(piece[0] == language.bos for piece in cut)
    assert survey.pieces(language, "  ") == []


def test_what_cannot_be_surveyed_is_said(language, code, found):
    with pytest.raises(ValueError, match="no text to retain"):
        survey.survey(language, code, LAYER, FORGET, ["", " "])
    with pytest.raises(ValueError, match="survey them again"):
        found.passages(0, language, FORGET[:1], RETAIN)
    with pytest.raises(ValueError, match="latent 12 does not exist"):
        found.strongest(12)


def test_a_survey_is_saved_and_loaded(found, tmp_path):
    path = tmp_path / "survey.safetensors"
    survey.save(found, path)
    back = survey.load(path, LATENTS)
    for name in ("forget_frequency", "retain_frequency", "forget_square", "retain_square", "strongest_text"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    assert back.strongest_value.dtype == torch.float32
    torch.testing.assert_close(back.strongest_value, found.strongest_value, rtol=1e-3, atol=1e-3)
    assert (back.threshold, back.texts_id, back.forget_tokens) == (0.1, found.texts_id, found.forget_tokens)


def test_a_survey_that_is_none_is_refused(found, tmp_path):
    path = tmp_path / "survey.safetensors"
    survey.save(found, path)
    tensors = load_file(path)
    with pytest.raises(PackError, match="of another SAE"):
        survey.load(path, LATENTS + 1)
    save_file(tensors, path)
    with pytest.raises(PackError, match="does not say what was surveyed"):
        survey.load(path, LATENTS)
    save_file(tensors | {"more": torch.zeros(1)}, path)
    with pytest.raises(PackError, match="no survey of latents"):
        survey.load(path, LATENTS)
    save_file(tensors | {"forget_square": tensors["forget_square"] * torch.nan}, path)
    with pytest.raises(PackError, match="forget_square holds"):
        survey.load(path, LATENTS)
    save_file(tensors | {"strongest_text": tensors["strongest_text"].float()}, path)
    with pytest.raises(PackError, match="strongest_text holds"):
        survey.load(path, LATENTS)


# ---------------------------------------------------------------- rules


def given(found, forget, retain, forget_square=None, retain_square=None):
    """A survey of 100,000 tokens each with these figures."""
    size = len(forget)
    return replace(
        found,
        forget_frequency=torch.tensor(forget),
        retain_frequency=torch.tensor(retain),
        forget_square=torch.tensor(forget_square or forget),
        retain_square=torch.tensor(retain_square or retain),
        forget_tokens=100_000,
        retain_tokens=100_000,
        strongest_text=torch.full((size, 8), -1),
        strongest_position=torch.full((size, 8), -1),
        strongest_value=torch.zeros(size, 8),
    )


def test_the_three_rules(found):
    #                      0     1     2     3     4     5
    this = given(found, [0.30, 0.20, 0.20, 0.10, 0.00, 0.01], [0.50, 1e-4, 1e-4, 2e-4, 0.00, 0.01])
    assert select.choose("paper", this, 9) == [1, 2, 5][:2]  # 0, 3, 5 fire too often elsewhere; 4 never on the texts
    assert select.choose("paper", this, 1) == [1]  # of equals the lower number
    assert select.choose("farrell", this, 9) == [1, 2, 3]  # not 5: .01 itself is dropped
    assert select.choose("paper", this, 9, retain_limit=0.01) == [1, 2, 3, 5]
    assert select.choose("ratio", this, 3) == [1, 2, 3]  # 2000, 2000, 500
    assert select.choose("ratio", this, 9) == [1, 2, 3, 5, 0]


def test_the_ratio_does_not_take_what_fires_once(found):
    """Latent 0 fires on one token of the forget texts, and never elsewhere; latent 1 on a tenth, and elsewhere
    twice."""
    this = given(found, [1e-5, 0.1], [0.0, 2e-5], [9e-5, 0.1], [0.0, 2e-5])
    assert select.choose("ratio", this, 1) == [1]
    torch.testing.assert_close(select.ratio(this), torch.tensor([1.0, 5000.0]))


def test_no_latent_and_no_rule(found):
    this = given(found, [0.3, 0.0], [0.5, 0.0])
    with pytest.raises(ValueError, match="paper leaves no latent"):
        select.choose("paper", this, 2)
    with pytest.raises(ValueError, match="unknown rule 'best'"):
        select.choose("best", this, 2)
    with pytest.raises(ValueError, match="has to be 1 or more"):
        select.choose("paper", this, 0)


def test_controls_are_as_many_others_that_fire(found):
    frequency = [0.1] * 4 + [0.2 + 0.001 * n for n in range(40)] + [0.0] * 4
    this = given(found, frequency, [f / 10 for f in frequency])
    for kind in select.CONTROLS:
        drawn = {tuple(select.control(kind, this, [0, 1, 2], seed)) for seed in range(6)}
        assert len(drawn) > 1 and all(len(set(ids)) == 3 for ids in drawn)
        assert all(3 <= latent < 44 for ids in drawn for latent in ids)
        assert select.control(kind, this, [0, 1, 2], 5) == select.control(kind, this, [0, 1, 2], 5)
    with pytest.raises(ValueError, match="unknown control"):
        select.control("none", this, [0], 0)
    with pytest.raises(ValueError, match="out of range"):
        select.control("random", this, [0], -1)


def test_matched_latents_fire_as_often_and_as_strongly(found):
    """Two crowds fire equally often, one of them a hundred times as strongly: the nearest are of the chosen one's
    crowd."""
    often = [0.01] * 20 + [0.3] * 20
    squares = [0.01 * (1 + n % 3) for n in range(10)] + [100.0 + n % 3 for n in range(10)] + [30.0] * 20
    this = given(found, often, often, squares, squares)
    for seed in range(5):
        assert all(10 <= latent < 20 for latent in select.matched(this, [10, 11], seed))
        assert all(latent < 10 for latent in select.matched(this, [0], seed))
    assert select.matched(given(found, [0.1, 0.2], [0.1, 0.2]), [0, 1], 0) == []  # nobody else is there


def test_the_refusal_latent_stands_out(found):
    this = given(found, [0.1, 0.1, 0.1], [0.9, 0.0, 0.1])
    refusals = torch.tensor([0.95, 0.5, 0.55])
    assert select.refusal_latent(refusals, this) == 1  # 0 fires on everything
    assert select.refusal_latent(refusals, this, harmful=[1]) == 2
    with pytest.raises(ValueError, match="no latent fires on the refusing sentences"):
        select.refusal_latent(torch.zeros(3), this)
