"""The evaluation against a second, plain one; R, intervals and probes by hand; what it must say of models we know."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import CLASSES, LAYERS, ROOT, SHAPE, UNLEARNED, K, random_vit, transformers_4_names, write_manifest
from PIL import Image

from sod_core.__main__ import main
from sod_core.data import images
from sod_core.models import vit as vits
from sod_core.packs import hub
from sod_core.packs.errors import PackError
from sod_core.restore import actions, evaluate, features, pointing, report, scores, testset
from sod_core.restore.judged import ALPHAS, CONTROLS, RANDOM_SEEDS, Row, Settings
from sod_core.restore.pack import Pack
from sod_core.restore.scores import Margin, Score
from sod_core.restore.testset import TestSet, open_set, stamp
from sod_core.worlds import canvas

LAYER = LAYERS[0]
SETTINGS = Settings(LAYER)
RIGHT, WRONG = 34, 6
"""Images a class in `fruit_images` that the original names rightly, and that it does not."""
TestSet.__test__ = False


@pytest.fixture(scope="module")
def fruit_images(pack, tmp_path_factory) -> Path:
    """A folder of images for each class of the tiny pack, most of them where the original model puts them."""
    folder = tmp_path_factory.mktemp("data") / "fruit"
    rng = np.random.default_rng(1)
    drawn = [
        Image.fromarray((rng.integers(0, 200, (1, 1, 3)) + rng.integers(0, 56, (32, 32, 3))).astype(np.uint8))
        for _ in range(600)
    ]
    with torch.inference_mode():
        said = vits.logits(pack.original(), torch.stack([pack.preprocess(image) for image in drawn])).argmax(1)
    free = {c: [i for i in range(600) if said[i] == c] for c in range(3)}
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        chosen = [free[c].pop() for _ in range(RIGHT)] + [free[0 if c else 2].pop() for _ in range(WRONG)]
        for i in chosen:
            drawn[i].save(folder / name / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def few(pack, fruit_images) -> TestSet:
    return open_set(pack, str(fruit_images), 42)


# ---------------------------------------------------------------- against a second implementation


def plain_edits(pack: Pack, target: int, mode: str) -> dict[str, list[tuple[str, list[int], str]]]:
    """{edit: [(mode, latents, tokens) for each seed]}."""
    experts, activity = pack.expert_ids(LAYER, target), pack.activity(LAYER)
    return {
        "experts": [(mode, experts, "all")],
        "random": [(mode, features.random_features(experts, len(activity), seed), "all") for seed in range(5)],
        "matched": [(mode, features.matched_features(experts, activity, seed), "all") for seed in range(5)],
        "cls_copy": [("cls_copy", [], "all")],
        "state_copy": [("state_copy", [], "all")],
        "patches": [(mode, experts, "patches")],
        "all": [(mode, list(range(len(activity))), "all")],
    }


def plain_row(pack: Pack, id: str, data: TestSet, mode: str) -> dict:
    """What `evaluate.run` measures, every image by itself in a session of its own."""
    target = pack.manifest.entry(id).target_class
    edits = plain_edits(pack, target, mode)
    before, after = [], {name: [[[] for _ in ALPHAS] for _ in kinds] for name, kinds in edits.items()}
    retained, read, original = [[] for _ in ALPHAS], [], []
    for i, label in enumerate(data.labels.tolist()):
        session = pack.session(id)
        session.set_image(data.batch(i, 1).inputs)
        original.append((label, session.logits("original").argmax().item()))
        before.append((label, session.logits("unlearned").argmax().item()))
        for name, kinds in edits.items():
            for seed, (its_mode, latents, tokens) in enumerate(kinds):
                if label != target and name != "experts":
                    continue
                for a, said in enumerate(
                    session.restore(ALPHAS, LAYER, its_mode, latents, tokens).argmax(-1).flatten().tolist()
                ):
                    if label == target:
                        after[name][seed][a].append(said)
                    else:
                        retained[a].append(said == label)
        with torch.inference_mode():
            said = vits.tail(pack.original(), session.hidden("unlearned", LAYER), LAYER).argmax().item()
        read.append((label == target, said == target))

    def share(named: list[tuple[int, int]], of_target: bool) -> float:
        hits = [label == said for label, said in named if (label == target) == of_target]
        return sum(hits) / len(hits)

    o, u = share(original, True), share(before, True)
    curves = {
        name: [[sum(said == target for said in at) / len(at) for at in seed] for seed in kinds]
        for name, kinds in after.items()
    }
    scored = [a for a, alpha in enumerate(ALPHAS) if alpha <= 2]
    r = {  # mean over seeds of the best over alphas
        name: (sum(max(seed[a] for a in scored) for seed in kinds) / len(kinds) - u) / (o - u)
        for name, kinds in curves.items()
    }
    at = max(scored, key=lambda a: (curves["experts"][0][a], -a))
    named = [said for label, said in before if label == target]
    return {
        "original": o,
        "unlearned": u,
        "restored": curves["experts"][0][at],
        "alpha": ALPHAS[at],
        "retain_original": share(original, False),
        "retain_unlearned": share(before, False),
        "retain_restored": sum(retained[at]) / len(retained[at]),
        "overshoot": (max(curves["experts"][0]) - u) / (o - u),
        "readout": sum(hit for of, hit in read if of) / 14 - sum(hit for of, hit in read if not of) / 28,
        "R": r,
        "curves": {name: np.mean(kinds, axis=0).tolist() for name, kinds in curves.items()}
        | {"retain": [sum(hits) / len(hits) for hits in retained]},
        "confusion_before": [named.count(c) / len(named) for c in range(3)],
        "confusion_after": [after["experts"][0][at].count(c) / len(named) for c in range(3)],
    }


@pytest.mark.parametrize("mode", ["inject", "direct_injection"])
def test_a_second_implementation_finds_the_same(pack, few, monkeypatch, mode):
    monkeypatch.setattr(evaluate, "BATCH", 5)
    rows = evaluate.run(pack, evaluate.subjects(pack, list(UNLEARNED)), few, Settings(LAYER, mode))
    assert [row.id for row in rows] == list(UNLEARNED) and [row.target for row in rows] == ["apple", "pear"]
    for row in rows:
        wanted = plain_row(pack, row.id, few, mode)
        assert wanted["original"] - wanted["unlearned"] > 0.05  # R is defined
        found = asdict(row)
        assert {name: score.value for name, score in row.scores.items()} == pytest.approx(wanted.pop("R"))
        curves = wanted.pop("curves")
        assert row.curves.keys() == curves.keys()
        for name, curve in curves.items():
            assert row.curves[name] == pytest.approx(curve), name
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value), key
        assert (row.images, row.target_images) == (42, 14)
        r = {name: score.value for name, score in row.scores.items()}
        assert row.margin.value == pytest.approx(r["experts"] - max(r["random"], r["matched"]))
        assert row.margin.yardstick is None  # nobody else was retrained without that class
        assert row.verdict == (
            scores.verdict(row.scores, row.margin, row.readout_margin, 14)
            if row.retain_unlearned >= row.retain_original / 2
            else "no verdict: the model does not work"
        )
    assert len({str(row.curves) for row in rows}) == 2 and any(len(set(row.curves["experts"])) > 2 for row in rows)


def test_probes_read_the_right_models_at_the_right_layers(pack, few, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 42)
    (row,) = evaluate.run(pack, evaluate.subjects(pack, ["retrain-pear"]), few, SETTINGS)
    inputs = few.batch(0, 42).inputs
    for model, found in ((pack.unlearned("retrain-pear"), row.probe), (pack.original(), row.probe_original)):
        with torch.inference_mode():
            wanted = {layer: scores.probe(vits.head(model, inputs, layer)[:, 0], few.labels, 1) for layer in LAYERS}
        assert found == pytest.approx(wanted)
    assert row.probe != row.probe_original


def test_a_larger_maximum_is_scored_too(pack, few):
    subjects = evaluate.subjects(pack, ["retrain-pear"])
    (row,), (wide,) = (evaluate.run(pack, subjects, few, replace(SETTINGS, max_alpha=top)) for top in (0, 10))
    assert row.alpha == 0 and row.scores["experts"].value == 0 and row.restored == row.unlearned
    assert wide.scores["experts"].value == wide.overshoot == row.overshoot


# ---------------------------------------------------------------- R and its interval, by hand


def hits(*shares: int, of: int = 10) -> np.ndarray:
    """[len(shares), of] bool: the first so many of each row are right."""
    return np.array([[i < share for i in range(of)] for share in shares])


def test_r_by_hand():
    """9 of 10 right at first, 1 after unlearning; 1, 3, 7, 7 after edits: (7 - 1) / (9 - 1), first at alpha 2."""
    found = scores.score(hits(9)[0], hits(1)[0], hits(1, 3, 7, 7)[None], [0, 1, 2, 3], 0)
    assert found.value == pytest.approx(6 / 8) and found.alpha == 2
    assert found.low < found.value < found.high <= 1


def test_seeds_are_averaged_each_at_its_own_best_alpha():
    """5 and 3 right at best, though never at the same alpha: (4 - 1) / 8; their mean curve peaks at 3."""
    restored = np.stack([hits(1, 5, 1), hits(1, 0, 3)])
    found = scores.score(hits(9)[0], hits(1)[0], restored, [0, 1, 2], 0)
    assert found.value == pytest.approx(3 / 8) and found.alpha == 1


def test_no_variance_no_interval():
    for share, value in ((0, 0.0), (10, 1.0)):
        found = scores.score(hits(10)[0], hits(0)[0], hits(0, share)[None], [0, 1], 0)
        assert (found.value, found.low, found.high) == (value, value, value)


def test_the_interval_is_the_bootstraps():
    """200 images, half of them restored: a share's standard error is 0.035."""
    found = scores.score(hits(200, of=200)[0], hits(0, of=200)[0], hits(0, 100, of=200)[None], [0, 1], 0)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.015)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.0354, abs=0.015)


def test_a_resample_takes_all_three_from_the_same_images():
    """What is restored is just what was lost, whichever images are drawn: R is 1 with no doubt."""
    original, unlearned = hits(160, of=200)[0], hits(80, of=200)[0]
    found = scores.score(original, unlearned, original[None, None], [1], 0)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_the_interval_is_decided_by_its_seed():
    arrays = hits(9)[0], hits(1)[0], hits(1, 3, 6, of=10)[None], [0, 1, 2]
    rng_free = [scores.score(*arrays, seed) for seed in (0, 0, 1, 2, 3)]
    assert rng_free[0] == rng_free[1] and len({found.value for found in rng_free}) == 1


def test_r_is_not_defined_where_nothing_was_forgotten():
    assert scores.score(hits(9)[0], hits(9)[0], hits(9, 9)[None], [0, 1], 0) == Score(None, None, None, None)
    assert scores.restoration(0.9, 0.86, 0.9) is None and scores.restoration(0.9, 0.95, 0.9) is None
    assert scores.restoration(0.9, 0.8, 0.85) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("experts", "random", "matched", "verdict"),  # where copying the original's state restores all
    [
        (0.9, 0.1, 0.2, "suppressed"),
        (0.75, 0.25, 0.0, "suppressed"),  # a margin of just a half
        (0.7, 0.25, 0.0, "partly"),
        (0.7, 0.0, 0.25, "partly"),  # the better control counts, whichever it is
        (0.9, 0.85, 0.1, "cannot tell at this layer"),  # random features do as well
        (0.9, 0.1, 0.9, "cannot tell at this layer"),
        (0.1, 0.1, 0.0, "cannot tell at this layer"),
        (0.09, 0.5, 0.0, "deleted"),
        (0.05, 0.0, 0.0, "deleted"),
        (0.0, 0.0, 0.0, "deleted"),
        (0.3, 0.1, 0.0, "partly"),
        (None, None, None, "not forgotten"),
    ],
)
def test_verdict(experts, random, matched, verdict):
    r = {"experts": experts, "random": random, "matched": matched, "state_copy": 1.0}
    assert scores.verdict(sure_scores(r), sure(r), NOTHING_READ, 40) == verdict


NOTHING_READ = Margin(0.0, 0.0, 0.0, None)


def sure_scores(r: dict[str, float | None]) -> dict[str, Score]:
    """What every resample agrees on."""
    return {name: Score(value, value, value, None if value is None else 1.0) for name, value in r.items()}


def sure(r: dict[str, float | None]) -> Margin:
    """A margin that every resample agrees on, beside no retrained model."""
    if r["experts"] is None:
        return Margin(None, None, None, None)
    value = r["experts"] - max(r["random"], r["matched"])
    return Margin(value, value, value, None)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.5, 0.9, "suppressed"),
        (0.49, 0.9, "undecided, 40 images"),
        (0.1, 0.49, "partly"),
        (0.1, 0.5, "undecided, 40 images"),
        (0.09, 0.3, "undecided, 40 images"),
        (0.0, 0.1, "undecided, 40 images"),
        (-0.1, 0.09, "deleted"),
        (None, 0.09, "deleted"),  # nothing can lie above
        (None, 0.9, "undecided, 40 images"),
        (0.6, None, "suppressed"),
        (0.2, None, "undecided, 40 images"),
    ],
)
def test_a_verdict_holds_only_where_its_whole_interval_does(low, high, verdict):
    r = {"experts": 0.6, "random": 0.0, "matched": 0.0, "state_copy": 1.0}
    assert scores.verdict(sure_scores(r), Margin(0.3, low, high, 0.3), NOTHING_READ, 40) == verdict


def plain_margin(models: list[tuple], seed: int, images: int) -> tuple[float, float, float]:
    """Of the first model beside the retrained others: (value, low, high), image by image.

    A model is (original, unlearned, experts [A, n], random [S, A, n], matched [S, A, n]), rows of 0 and 1.
    """

    def r(original, unlearned, restored, chosen) -> float | None:
        share = lambda row: sum(row[i] for i in chosen) / len(chosen)  # noqa: E731
        drop = share(original) - share(unlearned)
        if drop < 0.05:
            return None
        best = [max(share(row) for row in each) for each in restored]
        return (sum(best) / len(best) - share(unlearned)) / drop

    def one(model, chosen) -> float | None:
        original, unlearned, experts, random, matched = model
        found = [r(original, unlearned, edits, chosen) for edits in ([experts], random, matched)]
        return None if None in found else found[0] - max(found[1:])

    def beside(chosen) -> float | None:
        mine, others = one(models[0], chosen), [one(model, chosen) or 0.0 for model in models[1:]]
        return None if mine is None else mine - max([0.0, *others])

    rows = np.random.default_rng(seed).integers(0, images, (scores.RESAMPLES, images)).tolist()
    found = [beside(row) for row in rows]
    lows = sorted(-np.inf if value is None else value for value in found)
    highs = sorted(np.inf if value is None else value for value in found)
    last = scores.RESAMPLES - 1
    return beside(range(images)), lows[math.floor(0.025 * last)], highs[math.ceil(0.975 * last)]


@pytest.mark.parametrize("forgot", [0.0, 0.85])  # all of it, or just more than R needs
def test_the_margin_by_a_second_implementation(forgot):
    rng, n = np.random.default_rng(3), 40
    models = []
    for reach in (0.7, 0.2, 0.05):
        original, unlearned = rng.random(n) < 0.97, rng.random(n) < (forgot if reach == 0.7 else 0.0)
        edits = [rng.random((1, 3, n)) < reach, *(rng.random((2, 3, n)) < 0.1 for _ in range(2))]
        models.append((original, unlearned, edits))
    drawn = [
        {name: scores.draw(o, u, edit, 5) for name, edit in zip(("experts", "random", "matched"), edits)}
        for o, u, edits in models
    ]
    found = scores.margin(drawn[0], [scores.margined(one) for one in drawn[1:]])
    plain = [(o.tolist(), u.tolist(), e[0].tolist(), r.tolist(), m.tolist()) for o, u, (e, r, m) in models]
    value, low, high = plain_margin(plain, 5, n)
    assert found.value == pytest.approx(value)
    for end, wanted in ((found.low, low), (found.high, high)):
        assert end is None if math.isinf(wanted) else end == pytest.approx(wanted)
    assert (found.low is None) == (forgot > 0) and found.yardstick == pytest.approx(
        max(0.0, *(scores.margined(one).value for one in drawn[1:]))
    )


@pytest.mark.parametrize(
    ("experts", "state_copy", "readout", "yardstick", "verdict"),
    [
        (0.0, 0.0, 1.0, 0.0, "suppressed after this layer"),
        (0.3, 0.9, 0.5, -0.2, "suppressed after this layer"),  # a yardstick below chance counts as chance
        (0.6, 0.9, 1.0, 0.0, "suppressed"),
        (0.0, 0.0, 0.9, 0.5, "cannot tell at this layer"),  # the class is read in a retrained model nearly as well
        (0.0, 0.09, 0.49, 0.0, "cannot tell at this layer"),
        (0.0, 0.1, 0.49, 0.0, "deleted"),  # later blocks do listen, and hear nothing of the class
        (0.3, 0.3, 0.49, 0.0, "partly"),
    ],
)
def test_verdict_where_no_edit_can_tell(experts, state_copy, readout, yardstick, verdict):
    r = {"experts": experts, "random": 0.0, "matched": 0.0, "state_copy": state_copy}
    alone = scores.Margined(readout, np.full(scores.RESAMPLES, readout))
    over = scores.readout_margin(alone, [scores.Margined(yardstick, np.full(scores.RESAMPLES, yardstick))])
    assert over.value == pytest.approx(readout - max(0, yardstick))
    assert scores.verdict(sure_scores(r), sure(r), over, 40) == verdict


@pytest.mark.parametrize(
    ("low", "high", "restored", "verdict"),
    [
        (0.5, 0.9, 0.3, "suppressed after this layer"),
        (0.49, 0.9, 0.3, "undecided, 40 images"),  # neither that nor partly
        (0.1, 0.5, 0.0, "undecided, 40 images"),
        (0.1, 0.49, 0.3, "partly"),
        (0.49, 0.9, 0.6, "suppressed"),  # whatever is read
    ],
)
def test_a_readout_counts_only_where_its_whole_interval_does(low, high, restored, verdict):
    r = {"experts": restored, "random": 0.0, "matched": 0.0, "state_copy": 1.0}
    assert scores.verdict(sure_scores(r), sure(r), Margin(0.6, low, high, 0.0), 40) == verdict


def test_later_blocks_listen_or_not_only_where_an_interval_says_so():
    r = dict.fromkeys(("experts", "random", "matched"), 0.0)
    told = {(0.1, 0.3): "deleted", (0.09, 0.3): "undecided, 40 images", (0.0, 0.09): "cannot tell at this layer"}
    for (low, high), verdict in told.items():
        edits = sure_scores(r) | {"state_copy": Score(0.09, low, high, 1.0)}
        assert scores.verdict(edits, sure(r), NOTHING_READ, 40) == verdict


def test_the_readouts_interval_by_a_second_implementation():
    """Less the better of two retrained models', at least 0; the class's images and the others are drawn apart."""
    rng = np.random.default_rng(8)
    labels = np.array([1] * 12 + [0] * 20)
    models = [rng.choice([0, 1], 32, p=[1 - share, share]) for share in (0.8, 0.3, 0.4)]
    drawn = [scores.draw_readout(named, labels, 1, 5) for named in models]
    found = scores.readout_margin(drawn[0], drawn[1:])
    generator = np.random.default_rng(5)
    members = generator.integers(0, 12, (scores.RESAMPLES, 12)).tolist()
    others = generator.integers(0, 20, (scores.RESAMPLES, 20)).tolist()

    def one(named, mine, rest) -> float:
        says = named.tolist()
        return sum(says[i] == 1 for i in mine) / 12 - sum(says[12 + i] == 1 for i in rest) / 20

    def beside(mine, rest) -> float:
        first, *retrained = [one(named, mine, rest) for named in models]
        return first - max(0.0, *retrained)

    ordered = sorted(beside(mine, rest) for mine, rest in zip(members, others))
    assert found.value == pytest.approx(beside(range(12), range(20)))
    assert found.low == pytest.approx(ordered[math.floor(0.025 * 999)])
    assert found.high == pytest.approx(ordered[math.ceil(0.975 * 999)])
    assert found.yardstick == pytest.approx(max(0.0, *(one(named, range(12), range(20)) for named in models[1:])))


def test_the_readout_by_hand():
    """Two of three of the class are read, and one of four others."""
    assert scores.readout(np.array([1, 1, 0, 1, 0, 2, 0]), np.array([1, 1, 1, 0, 0, 2, 2]), 1) == pytest.approx(5 / 12)


def test_the_settings_are_what_the_documentation_says():
    assert ALPHAS[0] == 0 and ALPHAS[-1] == 10 and list(ALPHAS) == sorted(ALPHAS)
    assert (scores.SUPPRESSED, scores.DELETED, scores.SMALLEST_DROP, len(RANDOM_SEEDS)) == (0.5, 0.1, 0.05, 5)


# ---------------------------------------------------------------- the probe


def tokens(members: int, others: int, apart: float, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian tokens, class 1 shifted by `apart` in every direction, and their labels; in mixed order."""
    generator = torch.Generator().manual_seed(members + others)
    labels = (torch.randperm(members + others, generator=generator) < members).long()
    return torch.randn(len(labels), dim, generator=generator) + apart * labels[:, None], labels


def test_a_probe_reads_what_is_separable():
    assert scores.probe(*tokens(40, 60, 5), 1) == 1


@pytest.mark.parametrize(("members", "others"), [(500, 500), (200, 800), (800, 200)])
def test_a_probe_of_noise_is_at_chance(members, others):
    assert scores.probe(*tokens(members, others, 0), 1) == pytest.approx(0.5, abs=0.07)


def test_a_probe_does_not_care_which_side_is_larger():
    """Always answering with the larger side would be 0.5; the truth for this distance is about 0.8."""
    even, few, many = (scores.probe(*tokens(*sizes, 0.6), 1) for sizes in ((600, 600), (120, 1080), (1080, 120)))
    assert 0.72 < even < 0.88
    assert few == pytest.approx(even, abs=0.06) and many == pytest.approx(even, abs=0.06)


def test_a_probe_is_tested_on_other_images_than_it_saw():
    """With more dimensions than images anything can be learnt by heart."""
    assert scores.probe(*tokens(20, 20, 0, dim=200), 1) < 0.8


def test_a_probe_does_not_train_on_one_style_and_test_on_another():
    """The class's images show two styles in turn, as an ordered test set has them."""
    cls, labels = tokens(60, 60, 0, dim=4)
    members = (labels == 1).nonzero().flatten()
    cls[members[0::2], 0] += 8
    cls[members[1::2], 1] += 8
    assert scores.probe(cls, labels, 1) > 0.95


@pytest.mark.parametrize(("members", "others"), [(0, 10), (1, 10), (3, 10), (10, 3), (10, 1), (10, 0)])
def test_a_probe_of_too_few_is_none(members, others):
    assert scores.probe(*tokens(members, others, 5), 1) is None


# ---------------------------------------------------------------- killed runs


def counted(data: TestSet, breaks_at: int | None = None) -> tuple[TestSet, list[int]]:
    """The same set, and the numbers of the images that were read; it breaks at one of them."""
    seen: list[int] = []

    def read(i: int):
        if i == breaks_at:
            raise KeyboardInterrupt
        seen.append(i)
        return data._read(i)

    found = TestSet(data.name, data.labels.tolist(), read, data._pack)
    found.stamp = data.stamp
    return found, seen


@pytest.fixture(scope="module")
def fewer(pack, fruit_images) -> TestSet:
    return open_set(pack, str(fruit_images), 21)


@pytest.fixture
def killed(pack, fewer, tmp_path, monkeypatch) -> Path:
    """What a run leaves that was killed in its fourth batch of five images."""
    monkeypatch.setattr(evaluate, "BATCH", 5)
    monkeypatch.setattr(evaluate, "SAVE_SECONDS", 0)
    data, seen = counted(fewer, breaks_at=17)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(pack, evaluate.subjects(pack, ["retrain-pear"]), data, SETTINGS, tmp_path / "kept")
    assert max(seen) == 16
    return tmp_path / "kept"


def test_a_killed_run_goes_on(pack, fewer, killed):
    subjects = evaluate.subjects(pack, ["retrain-pear"])
    data, seen = counted(fewer)
    rows = evaluate.run(pack, subjects, data, SETTINGS, killed)
    assert seen == list(range(15, 21))
    assert rows == evaluate.run(pack, subjects, fewer, SETTINGS)
    again, seen = counted(fewer)
    assert evaluate.run(pack, subjects, again, replace(SETTINGS, max_alpha=1, seed=3), killed)[0].alpha <= 1
    assert seen == []  # scores are made anew, predictions are not


@pytest.mark.parametrize(
    "change", ["layer", "mode", "model", "file", "written", "sae", "stats", "images", "name", "labels", "batch", "pack"]
)
def test_a_run_of_something_else_starts_afresh(pack, fewer, killed, spoilt_pack, monkeypatch, change):
    monkeypatch.setattr(evaluate, "_row", lambda *_: None)  # which images are read is all that matters
    (subject,) = evaluate.subjects(pack, ["retrain-pear"])
    settings, data = SETTINGS, fewer
    if change == "layer":
        settings = Settings(LAYERS[1])
    elif change == "mode":
        settings = Settings(LAYER, "amplify")
    elif change == "model":
        (subject,) = evaluate.subjects(pack, ["random_labels-apple"])
    elif change == "file":
        subject = subject._replace(file="retrained again")
    elif change == "written":  # the same bytes, written again
        os.utime(pack.file(pack.manifest.entry("retrain-pear").file))
        (subject,) = evaluate.subjects(pack, ["retrain-pear"])
    elif change in ("sae", "stats"):
        os.utime(pack.layer_file(change, SETTINGS.layer))
    elif change == "images":
        data = TestSet(fewer.name, fewer.labels.tolist(), fewer._read, pack, [pack.manifest.folder / "pack.json"])
    elif change == "name":
        data = TestSet("others", fewer.labels.tolist(), fewer._read, pack)
    elif change == "labels":
        data = TestSet(fewer.name, fewer.labels.flip(0).tolist(), fewer._read, pack)
    elif change == "batch":
        monkeypatch.setattr(evaluate, "BATCH", 6)
    else:
        pack = Pack(spoilt_pack)
    data, seen = counted(data)
    evaluate.run(pack, [subject], data, settings, killed)
    assert seen == list(range(21))


def test_the_yardsticks_are_the_other_retrained_models():
    def model(id: str, method: str, target: int) -> evaluate.Subject:
        return evaluate.Subject(id, method, target, lambda: None)

    models = [model("a", "retrain", 0), model("b", "retrain", 0), model("c", "retrain", 1), model("d", "salun", 0)]
    found = [[other.id for other in evaluate._yardsticks(subject, models)] for subject in models]
    assert found == [["b"], ["a"], [], ["a", "b"]]


# ---------------------------------------------------------------- what is refused


def test_images_that_a_model_was_unlearned_on_are_named(tmp_path):
    (tmp_path / "photos").mkdir()
    checkpoint = tmp_path / "mine.pth"
    checkpoint.write_bytes(b"")
    subject = evaluate.Subject("mine", "own", 0, lambda: None, stamp(checkpoint), checkpoint)

    def told(source: str, data: str) -> str:
        checkpoint.with_suffix(".json").write_text(json.dumps({"data": {"source": {"data": source}}}))
        return actions._trained_on([subject], data)

    photos, remote = str(tmp_path / "photos"), "hub:someone/images/train.parquet"
    assert "mine was unlearned on images" in told(photos, f"{photos}/") and "mine" in told(remote, remote)
    assert told(photos, str(tmp_path)) == told(remote, photos) == ""
    assert told("canvas", "canvas") == ""  # drawn from another seed
    checkpoint.with_suffix(".json").unlink()
    assert actions._trained_on([subject], photos) == ""


def test_matched_features_need_examples(spoilt_pack, few):
    shutil.rmtree(spoilt_pack / "examples")
    pack = Pack(spoilt_pack)
    with pytest.raises(ValueError, match="'matched'.*none here"):
        evaluate.run(pack, evaluate.subjects(pack, ["retrain-pear"]), few, SETTINGS)


def test_unknown_choices_are_refused(pack, few):
    with pytest.raises(PackError, match="unknown unlearned model 'x'"):
        evaluate.subjects(pack, ["retrain-pear", "x"])
    subjects = evaluate.subjects(pack, ["retrain-pear"])
    for settings, says in (
        (Settings(LAYER, "wish"), "unknown mode"),
        (Settings(LAYER, "cls_copy"), "unknown mode"),  # a control is not judged by itself
        (Settings(0), "layer 0"),
        (Settings(LAYER, max_alpha=-1), "largest alpha"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate.run(pack, subjects, few, settings)
    with pytest.raises(ValueError, match="two models are called retrain-pear"):
        evaluate.run(pack, subjects * 2, few, SETTINGS)


def test_a_class_without_images_or_experts_is_refused(spoilt_pack):
    for path in (spoilt_pack / "examples" / "pear").iterdir():
        path.unlink()
    pack = Pack(spoilt_pack)
    data = open_set(pack, "examples", None)
    with pytest.raises(ValueError, match="of 6 test images 0 show pear"):
        evaluate.run(pack, evaluate.subjects(pack, ["retrain-pear"]), data, SETTINGS)
    torch.save({0: [], 1: [3]}, spoilt_pack / f"expert_features_layer1_k{K}.pt")
    pack = Pack(spoilt_pack)
    with pytest.raises(ValueError, match="no experts of apple at layer 1"):
        evaluate.run(pack, evaluate.subjects(pack, ["random_labels-apple"]), data, SETTINGS)


# ---------------------------------------------------------------- test sets


def test_the_examples_are_the_test_set_of_a_pack_without_a_world(pack):
    found = open_set(pack, None, None)
    batch = found.batch(0, 100)
    assert found.name == "examples" and found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(batch.inputs, pack.example_inputs()) and batch.masks is None
    assert [(b.start, len(b.labels), len(b.inputs)) for b in found.batches(4)] == [(0, 4, 4), (4, 4, 4), (8, 1, 1)]
    assert pointing.pointing_game(pack, LAYER, found) is None
    assert "no masks" in report.pointing_line(None)


def test_a_folder(pack, fruit_images):
    found = open_set(pack, str(fruit_images), None)
    assert found.labels.tolist() == [0] * 40 + [1] * 40 + [2] * 40
    path = sorted((fruit_images / "pear").glob("*.png"))[2]
    assert torch.equal(found.batch(42, 1).inputs[0], pack.preprocess(images.read(path)))


def test_a_count_is_spread_over_the_classes(pack, fruit_images, tmp_path):
    found = open_set(pack, str(fruit_images), 8)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    whole = open_set(pack, str(fruit_images), None)
    assert torch.equal(found.batch(3, 3).inputs, whole.batch(40, 3).inputs)
    for name, number in (("apple", 1), ("plum", 5)):  # the smallest gives all it has
        (tmp_path / name).mkdir()
        for i in range(number):
            Image.new("RGB", (32, 32)).save(tmp_path / name / f"{i}.png")
    assert open_set(pack, str(tmp_path), 4).labels.tolist() == [0, 2, 2, 2]
    assert open_set(pack, str(tmp_path), 100).labels.tolist() == [0] + [2] * 5


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level, 0, 255 - level)).save(file, "png")
    return file.getvalue()


def write_parquet(path: Path, contents: list, labels: list, names: tuple[str, str] = ("image", "label")) -> Path:
    cells = [{"bytes": content, "path": None} if isinstance(content, bytes) else content for content in contents]
    table = pyarrow.table({names[0]: cells, names[1]: labels})
    pyarrow.parquet.write_table(table, path, row_group_size=3)
    return path


@pytest.fixture
def fetched(tmp_path, monkeypatch) -> Path:
    """The file that the hub gives, whatever is asked for; the data sets' part of it alone is asked."""
    path = tmp_path / "file.parquet"

    def fetch(file, *_):
        assert (file.repo_id, file.path, file.repo_type) == ("user/fruit", "file.parquet", "dataset")
        return path

    monkeypatch.setattr(hub, "fetch", fetch)
    return path


SOURCE = "hub:user/fruit/file.parquet"


def test_a_parquet_file_of_the_hub(pack, fetched):
    labels = [2, 0, 1, 7, 1, None, 0, 2]
    write_parquet(fetched, [png(30 * i) for i in range(8)], labels, ("img", "fine"))
    found = open_set(pack, SOURCE, None, ("img", "fine"))
    assert found.labels.tolist() == [2, 0, 1, 1, 0, 2]  # rows 3 and 5 are of no class of the pack
    for position, row in enumerate((0, 1, 2, 4, 6, 7)):
        wanted = pack.preprocess(Image.open(io.BytesIO(png(30 * row))))
        assert torch.equal(found.batch(position, 1).inputs[0], wanted)
    assert torch.equal(found.batch(0, 1).inputs, found.batch(0, 6).inputs[:1])  # and back to the first rows


def test_a_packs_own_data_set_has_its_own_columns(spoilt_pack, fetched, monkeypatch):
    source = {"repo_id": "user/fruit", "revision": "main", "file": "file.parquet", "image": "img", "label": "fine"}
    write_manifest(spoilt_pack, examples=None, examples_source=source)
    monkeypatch.setattr(hub, "cached", lambda file: fetched)
    write_parquet(fetched, [png(i) for i in range(3)], [0, 1, 2], ("img", "fine"))
    found = open_set(Pack(spoilt_pack), None, None)
    assert found.labels.tolist() == [0, 1, 2] and found.name == SOURCE + "@main"


@pytest.mark.parametrize("damage", ["cut", "no label", "no image", "missing", "no classes", "empty"])
def test_unusable_test_sets_are_a_sentence(pack, fetched, tmp_path, damage):
    write_parquet(fetched, [png(i) for i in range(4)], ["0", "1", "2", "0"] if damage == "no classes" else [0, 1, 2, 0])
    source, columns = SOURCE, ("image", "label")
    if damage == "cut":
        fetched.write_bytes(fetched.read_bytes()[:300])
    elif damage == "no label":
        columns = ("image", "kind")
    elif damage == "no image":
        columns = ("picture", "label")
    elif damage == "missing":
        source = str(tmp_path / "nowhere")
    elif damage == "empty":
        (tmp_path / "none" / "apple").mkdir(parents=True)
        source = str(tmp_path / "none")
    with pytest.raises(ValueError) as caught:
        open_set(pack, source, None, columns)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


@pytest.mark.parametrize("content", [b"words", png(0)[:40], None, 5])
def test_a_damaged_image_is_named(pack, fetched, content):
    if content == 5:
        write_parquet(fetched, [5, 5], [0, 1])
    else:
        write_parquet(fetched, [png(0) if content else None, content], [0, 1])
    data = open_set(pack, SOURCE, None)
    with pytest.raises(images.ImageError, match="^file.parquet, row [01]: [^\n]*$"):
        data.batch(0, 2)


@pytest.mark.parametrize("count", [0, -1])
def test_no_test_images_are_refused(pack, canvas_pack, count):
    for its_pack in (pack, canvas_pack):
        with pytest.raises(ValueError, match="test images"):
            open_set(its_pack, None, count)


# ---------------------------------------------------------------- a pack with the canvas world


@pytest.fixture
def canvas_pack(spoilt_pack) -> Pack:
    """The tiny pack, its three classes made the canvas world's ten."""
    image = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    write_manifest(spoilt_pack, classes=list(canvas.OBJECTS), world="canvas", image=image)
    shape = vits.ViTShape(**{**SHAPE.__dict__, "classes": len(canvas.OBJECTS)})
    torch.save(transformers_4_names(random_vit(0, shape)), spoilt_pack / "vit_fruit_original.pth")
    experts = {c: [6 * c + i for i in range(6)] for c in range(10)}
    for layer in LAYERS:
        torch.save(experts, spoilt_pack / f"expert_features_layer{layer}_k{K}.pt")
    for name, other in zip(CLASSES, canvas.OBJECTS):
        (spoilt_pack / "examples" / name).rename(spoilt_pack / "examples" / other)
    return Pack(spoilt_pack)


def test_the_test_set_of_the_canvas_world(canvas_pack):
    found = open_set(canvas_pack, None, 13)
    batch = found.batch(0, 100)
    assert batch.inputs.shape == (13, 3, 32, 32) and batch.masks.shape == (13, 4, 4)
    assert found.labels.tolist() == batch.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert 0 <= batch.masks.min() and batch.masks.max() <= 1 and (batch.masks.max((1, 2)) > 0.3).all()
    # image 11: a tree in the second style, its mask averaged over each patch
    image, mask = canvas.render("tree", canvas.STYLES[1], np.random.default_rng((testset.WORLD_SEED, 11)), 32)
    torch.testing.assert_close(batch.inputs[11], canvas_pack.preprocess(image))
    assert batch.masks[11][1, 2] == pytest.approx(np.asarray(mask)[8:16, 16:24].mean() / 255)


def test_a_world_of_other_classes_is_refused(spoilt_pack):
    write_manifest(spoilt_pack, world="canvas")
    with pytest.raises(ValueError, match="classes of pack fruit"):
        open_set(Pack(spoilt_pack), None, 10)


def test_the_pointing_game_by_hand(canvas_pack, monkeypatch):
    monkeypatch.setattr(pointing, "BATCH", 7)
    data = open_set(canvas_pack, None, 20)
    found = pointing.pointing_game(canvas_pack, 1, data)
    hits, whole = 0, data.batch(0, 20)
    for i, c in enumerate(data.labels.tolist()):
        with torch.inference_mode():
            latents = canvas_pack.sae(1).encode(vits.head(canvas_pack.original(), whole.inputs[i : i + 1], 1))[0, 1:]
        heat = [sum(latents[p, j].item() for j in range(6 * c, 6 * c + 6)) for p in range(16)]
        hottest = heat.index(max(heat))
        hits += max(heat) > 0 and whole.masks[i][hottest // 4, hottest % 4] >= 0.1
    assert found == (hits, 20) and 0 < hits < 20
    assert report.pointing_line(found) == f"Pointing game: {hits / 20:.1%} of 20 images."


# ---------------------------------------------------------------- files and the table


@pytest.fixture(scope="module")
def rows(pack, few) -> list[Row]:
    return evaluate.run(pack, evaluate.subjects(pack, list(UNLEARNED)), few, SETTINGS)


def test_the_files(pack, few, rows, tmp_path):
    out = tmp_path / "a" / "b"
    report.write(out, pack, few, SETTINGS, rows)
    board = json.loads((out / "scoreboard.json").read_text())
    assert board == json.loads(json.dumps(report.scoreboard(pack, few, SETTINGS, rows)))
    assert board["settings"] == {"layer": LAYER, "mode": "inject", "max_alpha": 2.0, "seed": 0}
    assert board["images"] == 42 and board["alphas"] == list(ALPHAS)
    assert [row["id"] for row in board["rows"]] == list(UNLEARNED)
    assert board["rows"][0]["scores"]["experts"] == rows[0].scores["experts"]._asdict()
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    results = {
        f"{id}/restoration_class{c}{end}" for id, (_, c) in UNLEARNED.items() for end in (".png", "_results.json")
    }
    assert names == {"scoreboard.json", "scores.csv"} | results
    with Image.open(out / "retrain-pear" / "restoration_class1.png") as plot:
        assert plot.format == "PNG" and plot.width > 500 and len(plot.convert("RGB").getcolors(10**6)) > 10


def test_the_csv_round_trips(rows):
    stored = json.loads(json.dumps([row.as_dict() for row in rows]))
    text = report.as_csv(stored)
    assert text == report.as_csv([row.as_dict() for row in rows])
    for found, row in zip(csv.DictReader(io.StringIO(text)), rows, strict=True):
        assert None not in found and None not in found.values()
        assert (found["id"], found["target"], found["verdict"]) == (row.id, row.target, row.verdict)
        for name in ("original", "unlearned", "restored", "alpha", "retain_original", "retain_unlearned"):
            assert float(found[name]) == pytest.approx(getattr(row, name), abs=1e-4), name
        assert float(found["retain_gate_none"]) == pytest.approx(row.retain_restored, abs=1e-4)
        assert float(found["retain_gate_label"]) == pytest.approx(row.retain_unlearned, abs=1e-4)
        assert float(found["R_overshoot"]) == pytest.approx(row.overshoot, abs=1e-4)
        assert float(found["readout"]) == pytest.approx(row.readout, abs=1e-4)
        for end, column in (("value", ""), ("low", "_low"), ("high", "_high")):
            value = getattr(row.readout_margin, end)
            assert float(found[f"readout_margin{column}"]) == pytest.approx(value, abs=1e-4), end
        for name in ("experts", *CONTROLS):
            read = [float(found[f"R_{name}{end}"]) for end in ("", "_low", "_high", "_alpha")]
            assert read == pytest.approx(list(row.scores[name]), abs=1e-4)
        for layer in LAYERS:
            assert float(found[f"probe_layer{layer}"]) == pytest.approx(row.probe[layer], abs=1e-4)


def test_the_csv_leaves_out_what_is_not_defined(rows):
    nothing = Score(None, None, None, None)
    row = replace(rows[0], scores=dict.fromkeys(rows[0].scores, nothing), overshoot=None, probe={1: None, 2: 0.0})
    (found,) = csv.DictReader(io.StringIO(report.as_csv([row.as_dict()])))
    assert found["R_experts"] == found["R_overshoot"] == found["probe_layer1"] == "" and found["probe_layer2"] == "0.0"


def test_the_released_codes_results(pack, few, rows):
    found = report.released(pack, SETTINGS, rows[1])
    assert list(found) == [
        *("dataset", "sae_config", "target_class", "class_name", "num_expert_features"),
        *("alpha_values", "unlearned_performance", "restoration_results"),
    ]
    assert found["sae_config"] == {"k": K, "layer": LAYER}
    assert (found["target_class"], found["class_name"], found["num_expert_features"]) == (1, "pear", 5)
    assert list(found["unlearned_performance"]) == ["overall", "target", "retain_avg"]
    assert list(found["restoration_results"]) == [str(alpha) for alpha in ALPHAS]
    with torch.inference_mode():
        right = vits.logits(pack.unlearned("retrain-pear"), few.batch(0, 42).inputs).argmax(1) == few.labels
    wanted = {"overall": right, "target": right[few.labels == 1], "retain_avg": right[few.labels != 1]}
    means = {name: hits.float().mean().item() for name, hits in wanted.items()}
    assert found["unlearned_performance"] == pytest.approx(means)
    for alpha, result in zip(ALPHAS, found["restoration_results"].values()):
        target = rows[1].curves["experts"][ALPHAS.index(alpha)]
        assert result["target_acc"] == pytest.approx(target)
        assert result["retain_acc"] == pytest.approx(means["retain_avg"])  # its gate leaves other images alone
        assert result["overall_acc"] == pytest.approx((14 * target + 28 * means["retain_avg"]) / 42)


def test_the_table_is_markdown(rows):
    r = {"experts": 0.921, "random": -0.01, "matched": 0.05, "cls_copy": 1.0}
    r |= {"state_copy": 0.99, "patches": 0.0, "all": 1.0}
    known = replace(
        rows[0],
        **dict(id="salun-boat", original=0.975, unlearned=0.02, restored=0.9, alpha=1.5, verdict="suppressed"),
        **dict(retain_unlearned=0.95, retain_restored=0.8, overshoot=1.0, readout=-0.25, probe={1: 0.7, 2: 0.9}),
        scores={name: Score(value, value - 0.1, value + 0.05, 1.5) for name, value in r.items()},
    )
    nothing = replace(known, scores=dict.fromkeys(r, Score(None, None, None, None)), probe={1: None}, overshoot=None)
    lines = report.table([known, nothing]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1 and set(lines[1]) == {"|", "-"}
    heads, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[2]))
    found = dict(zip(heads, cells, strict=True))
    assert found["model"] == "salun-boat" and found["forget: original"] == "97.5%" and found["at alpha"] == "1.5"
    assert found["unlearned"] == "2.0%" and found["restored"] == "90.0%" and found["verdict"] == "suppressed"
    assert found["retain: unlearned"] == "95.0%" and found["edited too"] == "80.0%"
    assert found["R experts"] == "0.92 [0.82, 0.97]" and found["R overshoot"] == "1.00"
    assert (found["readout"], found["probe"]) == ("-0.25", "0.90")
    assert [found[f"R {name}"] for name in CONTROLS] == ["-0.01", "0.05", "1.00", "0.99", "0.00", "1.00"]
    assert lines[3].count("–") == 9


# ---------------------------------------------------------------- the command line


def test_the_command(spoilt_pack, fruit_images, capsys, tmp_path):
    line = ["evaluate", "--pack", str(spoilt_pack), "--layer", "1", "--data", str(fruit_images), "--images", "30"]
    assert main([*line, "--json", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out"), "--store"]) == 0
    printed, err = capsys.readouterr()
    assert "| random_labels-apple |" in printed and "no masks" in printed and "Traceback" not in err
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["id"] for row in found] == list(UNLEARNED)
    stored = json.loads((spoilt_pack / "scoreboard.json").read_text())
    assert stored["rows"] == found and stored["images"] == 30
    assert json.loads((tmp_path / "out" / "scoreboard.json").read_text()) == stored
    assert (tmp_path / "out" / "retrain-pear" / "restoration_class1_results.json").is_file()
    own = tmp_path / "mine.pth"
    own.write_bytes((spoilt_pack / "unlearned" / "retrain-pear.pth").read_bytes())
    assert main([*line, "--json", "-", "--unlearned", "retrain-pear", f"pear={own}"]) == 0
    pear, mine = json.loads(capsys.readouterr().out)
    assert (mine["id"], mine["method"], mine["target"]) == ("mine", "own", "pear")
    assert pear["curves"] == mine["curves"] and pear == found[1]


@pytest.mark.parametrize(
    "more",
    [
        ["--mode", "wish"],
        ["--unlearned", "nobody"],
        ["--unlearned", "pear=nowhere.pth"],
        ["--unlearned", "kiwi={pack}/unlearned/retrain-pear.pth"],
        ["--unlearned", "pear={pack}/unlearned/retrain-pear.pth", "apple={pack}/unlearned/retrain-pear.pth"],
        ["--unlearned", "pear={pack}/pack.json"],
        ["--layer", "0"],
        ["--max-alpha", "-1"],
        ["--max-alpha", "nan"],
        ["--images", "0"],
        ["--images", "x"],
        ["--data", "nowhere"],
        ["--data", "canvas"],
        ["--data", "hub:user"],
        ["--out", "{pack}/pack.json"],
    ],
)
def test_mistakes_are_one_line(pack_folder, capsys, more):
    line = ["evaluate", "--pack", str(pack_folder), "--layer", "1", *(text.format(pack=pack_folder) for text in more)]
    try:
        assert main(line) == 2
    except SystemExit as exit:  # argparse
        assert exit.code == 2
    printed, err = capsys.readouterr()
    assert printed == "" and err.count("\n") == 1 and "evaluate" in err


def test_two_processes_find_what_one_does(pack_folder, fruit_images, tmp_path, capsys):
    """By accelerate's launcher, on CPUs: 120 images are two batches, and each process takes one."""
    line = ["evaluate", "--pack", str(pack_folder), "--layer", "1", "--data", str(fruit_images)]
    line += ["--unlearned", "retrain-pear"]
    assert main([*line, "--json", str(tmp_path / "one.json")]) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0"]  # a free one; the rest of the line is the README's
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    many = [*launch, "-m", "sod_core", *line, "--device", "cpu"]
    many += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "two.json")]
    done = subprocess.run(many, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
    assert {path.name for path in (tmp_path / "out").glob("predictions*")} == {
        f"predictions-{rank}-of-2.npz" for rank in (0, 1)
    }
    assert done.stdout.count("| retrain-pear |") == 1  # the first one speaks
