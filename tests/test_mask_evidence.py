"""What still comes out of a bottleneck that forgot, each way against plain code; verdicts, rivals, and the command."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_mask_pack import CLASSES, NAMES, SMALL, changed, drawn, made  # noqa: F401  the tiny pack

from sod_core.__main__ import main
from sod_core.mask import board, evidence, judged, rivals, states, verdicts
from sod_core.mask.fit import fit
from sod_core.mask.pack import open_mask_pack
from sod_core.mask.session import Dose, MaskSession
from sod_core.mask.verdicts import Spread
from sod_core.sparse import bottleneck_file, pair_values
from sod_core.sparse.bottleneck import Bottleneck, make_projection

BLUE = 2


@pytest.fixture(scope="module")
def session() -> MaskSession:
    train = drawn(240, 1)
    return MaskSession(fit(train, CLASSES, SMALL), train, drawn(120, 2))


@pytest.fixture(scope="module")
def seen(session) -> dict[str, states.View]:
    return states.views(session, [BLUE], session.forget([BLUE], Dose(share=0.6)))


def mine(images) -> torch.Tensor:
    return images.labels == BLUE


# ---------------------------------------------------------------- states


def test_states_are_what_they_say(session, seen):
    base = session.bottleneck
    assert list(seen) == ["untouched", "logit", "masked", "erased", "removed", "retrained"]
    assert torch.equal(seen["untouched"].test_logits, base.logits(session.test.features, session.test_nearest))
    assert (seen["logit"].test_logits.argmax(1) != BLUE).all()
    others = [0, 1]
    assert torch.equal(seen["logit"].test_logits[:, others], seen["untouched"].test_logits[:, others])
    mask = seen["masked"].bottleneck.masked
    assert mask.any() and torch.equal(seen["erased"].test_chosen, seen["untouched"].test_chosen)
    assert not seen["erased"].bottleneck.values[mask].any()


def test_counts_removed_are_those_of_a_bottleneck_counted_without_the_class(session, seen):
    kept = ~mine(session.train)
    counts = pair_values.count(seen["untouched"].train_chosen[kept], session.train.labels[kept], 24, CLASSES)
    for id in ("removed", "retrained"):
        assert torch.equal(seen[id].bottleneck.counts, counts)
        assert not seen[id].bottleneck.counts[..., BLUE].any()
    assert torch.equal(seen["removed"].test_logits, seen["retrained"].test_logits)


def test_values_by_descent_are_retrained_by_descent(session):
    trained = fit(session.train, CLASSES, replace(SMALL, values="sgd", epochs=2))
    seen = states.views(session.with_bottleneck(trained), [BLUE], torch.zeros_like(trained.masked))
    assert "removed" not in seen and states.epochs(trained) == 2
    assert not torch.equal(seen["retrained"].bottleneck.values, trained.values)
    unit = evidence.unit_of(seen["untouched"], session.train.labels)
    counted = pair_values.of_counts(
        pair_values.count(seen["untouched"].train_chosen, session.train.labels, 24, CLASSES)
    )
    best = min((0.5 * unit, unit, 2 * unit), key=lambda factor: (trained.values - factor * counted).norm())
    assert best == unit > 0


# ---------------------------------------------------------------- ways back


def test_the_area_under_the_curve_counts_pairs():
    scores = torch.tensor([0.1, 0.5, 0.5, 0.9, 0.3, 0.5])
    positive = torch.tensor([False, True, False, True, False, True])
    pairs = list(itertools.product(scores[positive].tolist(), scores[~positive].tolist()))
    assert evidence.auc(scores, positive) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
    with pytest.raises(ValueError, match="both kinds"):
        evidence.auc(scores, torch.ones(6, dtype=torch.bool))


def test_the_selection_probe_is_plain_naive_bayes(session, seen):
    view = seen["masked"]
    train, test = mine(session.train), mine(session.test)
    scores = []
    for row in view.test_chosen[..., 0].tolist():
        parts = []
        for c, pair in enumerate(row):
            if pair < 0:
                continue
            logs = []
            for rows in (train, ~train):
                chosen = view.train_chosen[rows, c, 0]
                there = int((chosen == pair).sum()) + 1
                logs.append(math.log(there / (int((chosen >= 0).sum()) + 24)))
            parts.append(logs[0] - logs[1])
        scores.append(sum(parts) / max(1, len(parts)))
    plain = evidence.auc(torch.tensor(scores), test)
    assert evidence.selection_leak(view, 24, train, test) == pytest.approx(plain, abs=1e-3)


def test_logits_give_the_class_away_unless_there_is_nothing_in_them(session, seen):
    train, test = mine(session.train), mine(session.test)
    assert evidence.output_leak(seen["untouched"], train, test) > 0.95
    draw = torch.Generator().manual_seed(0)
    noise = seen["untouched"]._replace(
        train_logits=torch.randn(240, CLASSES, generator=draw), test_logits=torch.randn(120, CLASSES, generator=draw)
    )
    assert abs(evidence.output_leak(noise, train, test) - 0.5) < 0.15
    told = seen["logit"]
    assert math.isfinite(evidence.output_leak(told, train, test, told.silenced))


def test_pairs_around_a_direction_give_that_direction_back():
    """Keys that lie at the projections of one vector, and as many around zero that do not count."""
    projection = make_projection(16, 10, 3, seed=0)
    direction = torch.arange(10.0) - 4
    draw = torch.Generator().manual_seed(1)
    keys = torch.stack([torch.stack([direction @ p, -(direction @ p)]) for p in projection])
    keys = torch.cat([keys, 0.01 * torch.randn(16, 2, 3, generator=draw)], 1)
    everything = torch.ones(16, 4, dtype=torch.bool)
    made_up = Bottleneck(projection, keys, torch.zeros(16, 4, 2), everything, ~everything)
    pairs = torch.zeros(16, 4, dtype=torch.bool)
    pairs[:, 0] = True
    found = evidence.prototype(made_up, pairs)
    assert torch.nn.functional.cosine_similarity(found, direction, dim=0) > 0.999
    assert evidence.prototype(made_up, ~everything) is None and evidence.prototype(made_up, everything) is None
    opposite = evidence.prototype(made_up, pairs.roll(1, 1))
    assert torch.nn.functional.cosine_similarity(opposite, direction, dim=0) < -0.999


def test_a_mask_names_its_class_and_a_random_one_does_not(session, seen):
    named = evidence.names_class(seen["masked"], session.test, [BLUE])
    assert named.auc > 0.9 and named.cosine > 0.7 and named.rank == 1
    draw = torch.Generator().manual_seed(3)
    chance = [replace(session.bottleneck, masked=torch.rand(8, 24, generator=draw) < 0.3) for _ in range(8)]
    found = [evidence.names_class(seen["masked"]._replace(bottleneck=one), session.test, [BLUE]).auc for one in chance]
    assert abs(sum(found) / len(found) - 0.5) < 0.25 < named.auc - 0.5
    assert evidence.names_class(seen["untouched"], session.test, [BLUE]) is None or not session.bottleneck.used.all()


def test_relearning_adds_the_drawn_images_to_the_values(session, seen):
    view = seen["masked"]
    found = evidence.relearned(session, view, [BLUE], 5, seed=4)
    rows = (session.train.labels == BLUE).nonzero()[:, 0]
    drawn_rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(4))[:5]]
    values, used, masked = view.bottleneck.values.clone(), view.bottleneck.used.clone(), view.bottleneck.masked
    for row in drawn_rows.tolist():
        for c in range(8):
            away = (session.train.features[row] @ session.bottleneck.projection[c] - session.bottleneck.keys[c]).norm(
                dim=1
            )
            pair = int(away.masked_fill(masked[c], torch.inf).argmin())
            values[c, pair] += torch.nn.functional.one_hot(torch.tensor(BLUE), CLASSES) - 1 / CLASSES
            used[c, pair] = True
    plain = session.figures_of(replace(view.bottleneck, values=values, used=used), [BLUE])
    assert found == pytest.approx((plain.forget, plain.retain))
    assert evidence.relearned(session, view, [BLUE], 80, seed=0)[0] > 0.8
    with pytest.raises(ValueError, match="81 images of a class with 80"):
        evidence.relearned(session, view, [BLUE], 81, seed=0)


def test_overlap_by_hand():
    """Codebook of 3 pairs: class 0 chooses pair 0 twice and 1 once, class 1 chooses 1 twice and 2 once."""
    chosen = torch.tensor([0, 0, 1, 1, 1, 2])[:, None, None]
    found = evidence.overlap(chosen, torch.tensor([0, 0, 0, 1, 1, 1]), 3, 2)
    assert torch.allclose(found.shared, torch.tensor([[1, 1 / 3], [1 / 3, 1]], dtype=torch.float64))
    assert found.purity.tolist() == pytest.approx([2 / 3 * 1 + 1 / 3 * 1 / 3, 2 / 3 * 2 / 3 + 1 / 3 * 1])
    assert found.exclusive.tolist() == [0.5, 0.5]


def test_the_scale_is_the_one_that_fits_best():
    logits, labels = torch.tensor([[3.0, 0.0], [0.0, 3.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
    scale = evidence.scale_of(logits, labels)

    def loss(factor: float) -> float:
        return torch.nn.functional.cross_entropy(factor * logits, labels).item()

    assert loss(scale) <= min(loss(0.9 * scale), loss(1.1 * scale))
    flat = evidence.certainty(torch.zeros(2, 4), 1.0)
    assert (flat.confidence, flat.entropy) == pytest.approx((0.25, math.log(4)))
    assert evidence.agreement(logits, logits[:, [1, 0]]) == 0


# ---------------------------------------------------------------- verdicts


def test_what_comes_back_is_counted_from_chance_or_the_retrained_one():
    assert verdicts.recovered(0.75, 0.5, 1.0, 0.5) == 0.5
    assert verdicts.recovered(0.75, 0.7, 1.0, 0.5) == pytest.approx(0.1)
    assert verdicts.recovered(0.4, 0.5, 1.0, 0.5) == 0 == verdicts.recovered(1.0, 0.0, 0.5, 0.5)
    found = verdicts.interval([0.0, 0.1, 0.2])
    assert found == pytest.approx((0.1, 0.1 - 4.303 * 0.1 / 3**0.5, 0.1 + 4.303 * 0.1 / 3**0.5))
    assert verdicts.interval([0.3]) == (0.3, 0.3, 0.3) and verdicts.spread([1, 2, 6]) == (3, 1, 6)


@pytest.mark.parametrize(
    "shares, untouched, kept, images, lifts, verdict",
    [
        ({"a": (0.6, 0.5, 0.7), "b": (0.0, 0.0, 0.0)}, 1.0, 1.0, 100, False, "suppressed"),
        ({"a": (0.3, 0.1, 0.49)}, 1.0, 1.0, 100, False, "partly"),
        ({"a": (0.05, 0.0, 0.09)}, 1.0, 1.0, 100, False, "deleted"),
        ({"a": (0.05, 0.0, 0.09)}, 1.0, 1.0, 100, True, "out of reach"),
        ({"a": (0.09, 0.0, 0.11)}, 1.0, 1.0, 100, False, "undecided"),
        ({"a": (0.05, 0.0, 0.09)}, 1.0, 1.0, 29, False, "no verdict"),
        ({"a": (0.6, 0.5, 0.7)}, 0.49, 1.0, 100, False, "no verdict"),
        ({"a": (0.05, 0.0, 0.09)}, 1.0, 0.49, 100, False, "no verdict"),
        ({}, 1.0, 1.0, 100, False, "no verdict"),
    ],
)
def test_verdicts(shares, untouched, kept, images, lifts, verdict):
    found = verdicts.verdict({way: Spread(*each) for way, each in shares.items()}, untouched, kept, images, lifts)
    assert found.verdict == verdict and found.lifted == ("suppressed" if lifts else None)


def test_a_class_under_every_test(session):
    other = MaskSession(fit(session.train, CLASSES, replace(SMALL, seed=1)), session.train, session.test)
    found = judged.judge(judged.Case([session, other], (BLUE,), tuple(NAMES)))
    assert found["images"] == {"forget": 40, "retain": 80} and found["seeds"] == 2
    assert set(found["states"]) == set(states.TITLES)
    for id, state in found["states"].items():
        assert list(state["ways"]) == judged.ways()
        assert sum(state["wrong_labels"].values()) == pytest.approx(1)
        assert state["wrong_labels"]["blue"] == pytest.approx(state["forget"]["mean"])
        assert (state["verdict"] is None) == (id == "untouched")
    back = found["states"]
    assert back["masked"]["forget"]["high"] <= 0.02 < back["untouched"]["forget"]["low"]
    assert back["masked"]["verdict"]["lifted"] == back["logit"]["verdict"]["lifted"] == "suppressed"
    assert back["removed"]["verdict"]["verdict"] == "deleted" and back["removed"]["verdict"]["lifted"] is None
    assert found["random"]["forget"]["mean"] > 0.5  # the control that must not forget
    assert back["logit"]["ways"][judged.relearned_way(1)]["value"] is None
    assert [len(row["forget"]) for row in found["styles"]] == [2, 2]


def test_the_retrained_one_is_held_against_other_seeds(session):
    alone = judged.judge(judged.Case([session], (BLUE,), tuple(NAMES), Dose(share=0.6)))
    assert alone["states"]["retrained"]["verdict"]["verdict"] == "no verdict"
    measured = judged.measure(session, [BLUE], session.forget([BLUE], Dose(share=0.6)), 0)
    better = {id: one for id, one in measured.items()}
    better["retrained"] = measured["retrained"]._replace(ways=measured["retrained"].ways | {judged.PLAIN: 0.9})
    assert judged._yardsticks("retrained", judged.PLAIN, [measured, better]) == [0.9, 0.0]
    assert judged._yardsticks("masked", judged.PLAIN, [measured, better]) == [0.0, 0.9]


def test_classes_in_turn_add_up(session):
    rows = judged.in_turn(session, [0, 1, 2], NAMES)
    assert [row["class"] for row in rows] == ["red", "green"]
    first = session.forget([0], judged.smallest(session, [0]))
    assert rows[0]["of_pairs_in_use"] == pytest.approx(int(first.sum()) / int(session.bottleneck.allowed.sum()))
    assert rows[0]["of_pairs_in_use"] < rows[1]["of_pairs_in_use"] <= 1


# ---------------------------------------------------------------- rivals


def test_rivals_forget_and_their_costs_are_counted(session):
    found = rivals.compare(session, [BLUE], images=7)
    assert list(found) == ["linear head", "retraining", "NegGrad+", "SCRUB", "by activations", "by examples"]
    assert found["linear head"]["forget"] > 0.9
    for name in ("retraining", "NegGrad+", "SCRUB"):
        assert found[name]["forget"] < found["linear head"]["forget"]
    width, heads, retain, forget = 7, CLASSES, 160, 80  # six features and the one that is always 1
    rows = {"retraining": retain, "NegGrad+": 2 * retain, "SCRUB": 2 * retain + forget}
    for name, each in rows.items():
        assert found[name]["multiply_adds"] == found[name]["epochs"] * 2 * each * width * heads
    selection = 8 * (6 * 4 + 24 * 4)
    assert found["by activations"]["multiply_adds"] == forget * selection
    assert found["by examples"]["multiply_adds"] == 7 * selection


def test_the_distance_of_two_heads_is_kl_at_a_temperature():
    logits, wanted = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    p, q = ([math.exp(v / 4) for v in row] for row in (wanted[0].tolist(), logits[0].tolist()))
    p, q = ([v / sum(row) for v in row] for row in (p, q))
    plain = 16 * sum(a * math.log(a / b) for a, b in zip(p, q))
    assert rivals._distance(logits, wanted).item() == pytest.approx(plain, rel=1e-4)


# ---------------------------------------------------------------- the command


def test_evaluate_gives_states_and_ways_as_json_and_csv(made, tmp_path, capsys):  # noqa: F811
    call = ["mask", "evaluate", "--pack", str(made), "--forget", "blue", "--share", "0.6", "--seeds", "2"]
    assert main([*call, "--json", str(tmp_path / "x.json"), "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    case = json.loads((tmp_path / "x.json").read_text())["evidence"]
    assert case["share"]["mean"] == 0.6 and case["seeds"] == 2 and case["encoder_saw"] is True
    for state, said in case["states"].items():
        told = {row["way"]: row for row in rows if row["state"] == state}
        for way, found in said["ways"].items():
            assert (way in told) == (found["value"] is not None)
            if found["value"] is not None:
                assert float(told[way]["value"]) == found["value"]["mean"]
    assert {row["state"] for row in rows} == {*states.TITLES, "random mask", *case["rivals"]}


def test_evaluate_all_goes_on_and_is_stored(made, tmp_path, capsys):  # noqa: F811
    own = Path(shutil.copytree(made, tmp_path / "corners"))
    changed(own, results="results.json")
    call = ["mask", "evaluate", "--pack", str(own), "--all", "--keep", str(tmp_path / "kept"), "--store"]
    assert main(call) == 0
    assert "blue" in capsys.readouterr().out
    stored = json.loads((own / "results.json").read_text())
    pack = open_mask_pack(str(own))
    assert pack.results() == stored and stored["ways"] == judged.ways()
    (about,) = stored["bottlenecks"]
    assert [case["forget"] for case in about["cases"]] == [["red"], ["green"], ["blue"]]
    assert board.rounded(board.overlap_of(pack.session("saw-all"))) == about["overlap"]
    kept = tmp_path / "kept" / "saw-all-red-1.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"marked": True}))
    assert main(call) == 0
    assert json.loads((own / "results.json").read_text())["bottlenecks"][0]["cases"][0]["marked"] is True


def test_another_seed_is_made_as_the_first_was(made):  # noqa: F811
    pack = open_mask_pack(str(made))
    entry = pack.manifest.bottlenecks[0]
    first, second = board.sessions_of(pack, entry, 2)
    plain = fit(first.train, CLASSES, replace(SMALL, seed=1))
    assert torch.equal(second.bottleneck.keys, plain.keys) and torch.equal(second.bottleneck.counts, plain.counts)
    assert not torch.equal(first.bottleneck.keys, second.bottleneck.keys)


@pytest.mark.parametrize(
    "options, why",
    [
        (["--all", "--share", "0.5"], "leave --share out"),
        (["--all", "--store"], 'names no "results"'),
        (["--forget", "blue", "--store"], "say --all"),
        (["--forget", "blue", "--seeds", "0"], "0 seeds"),
        (["--forget", "blue", "--json", "-", "--csv", "-"], "standard output"),
        (["--forget", "blue", "--csv", "/nowhere/x.csv"], "no folder /nowhere"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(made, options, why, capsys):  # noqa: F811
    assert main(["mask", "evaluate", "--pack", str(made), *options]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert why in line


def test_a_file_has_one_seed(made, tmp_path, capsys):  # noqa: F811
    file = tmp_path / "own.safetensors"
    bottleneck_file.save(open_mask_pack(str(made)).bottleneck("saw-all"), file)
    call = ["mask", "evaluate", "--pack", str(made), "--forget", "blue", "--bottleneck", str(file), "--seeds", "2"]
    assert main(call) == 2
    assert "leave --seeds out" in capsys.readouterr().err
