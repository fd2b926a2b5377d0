"""The score R, the verdict and the table, on numbers small enough to check by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, LAYERS, SHAPE, UNLEARNED, WIDTH, K, random_vit, transformers_4_names, write_manifest
from torch import Tensor

from sod_core import evaluate, features
from sod_core import vit as vits
from sod_core.evaluate import ALPHAS, CONTROLS, Row
from sod_core.packs.errors import PackError
from sod_core.packs.pack import Pack
from sod_core.worlds import canvas

EXPERT_IDS = [2, 3]


class ScriptedSession:
    """Answers as if of 10 images of the target class (0) so many were right, and of 10 others so many."""

    def __init__(self, right: dict[str, list[int]]):
        self.right = right

    def set_image(self, images: Tensor) -> None:
        self.label = int(images[0, 0, 0, 0])
        assert len(images) == 10 and (images == self.label).all()

    def logits(self, which: str) -> Tensor:
        return self._with(self.right[which][self.label])

    def restore(self, alphas, layer, mode, chosen, tokens="all") -> Tensor:
        assert layer == 1
        if mode == "cls_copy":
            name = "cls_copy"
        elif tokens == "patches":
            name = "patches"
        elif list(chosen) == EXPERT_IDS:
            name = "experts" if self.label == 0 else "retain"
        else:
            name = "all" if len(chosen) == WIDTH else f"{len(chosen)} others"
        return torch.stack([self._with(self.right[name][ALPHAS.index(alpha)]) for alpha in alphas])

    def _with(self, right: int) -> Tensor:
        """[10, 2] logits of which the first `right` are of the label."""
        predicted = torch.tensor([self.label] * right + [1 - self.label] * (10 - right))
        return torch.nn.functional.one_hot(predicted, 2).float()


def scripted_pack(right: dict[str, list[int]], experts=EXPERT_IDS):
    entry = SimpleNamespace(id="x-first", target_class=0)
    return SimpleNamespace(
        manifest=SimpleNamespace(entry=lambda id: entry, classes=("first", "second"), world=None, name="scripted"),
        session=lambda id, precision: ScriptedSession(right),
        expert_ids=lambda layer, target: list(experts),
        activity=lambda layer: torch.linspace(0, 1, WIDTH),
        example_inputs=lambda: torch.tensor([0.0] * 10 + [1.0] * 10)[:, None, None, None].expand(20, 3, 2, 2),
        examples=lambda: [SimpleNamespace(label=0)] * 10 + [SimpleNamespace(label=1)] * 10,
    )


def constant(value: int) -> list[int]:
    return [value] * len(ALPHAS)


def script(experts: int, others: int, original: int = 9, unlearned: int = 1) -> dict[str, list[int]]:
    rise = [min(unlearned + i, experts) for i in range(len(ALPHAS))]
    return {
        "original": [original, 10],
        "unlearned": [unlearned, 8],
        "experts": rise,
        "retain": [8 - i // 2 for i in range(len(ALPHAS))],
        "2 others": [unlearned] * 5 + [others] + [unlearned] * (len(ALPHAS) - 6),  # best at one alpha alone
        "cls_copy": constant(5),
        "patches": constant(0),
        "all": constant(9),
    }


def test_a_row_by_hand():
    (row,) = evaluate.run(scripted_pack(script(experts=7, others=2)), ["x-first"], 1, "inject", 20)
    assert (row.id, row.target) == ("x-first", "first")
    assert (row.original, row.unlearned, row.restored) == pytest.approx((0.9, 0.1, 0.7))
    # 1 right at alpha 0, one more a step: 7 right first at the seventh alpha
    assert row.alpha == ALPHAS[6]
    assert (row.retain_unlearned, row.retain_restored) == pytest.approx((0.8, 0.5))
    assert row.scores == pytest.approx(
        {"experts": 6 / 8, "random": 1 / 8, "matched": 1 / 8, "cls_copy": 4 / 8, "patches": -1 / 8, "all": 1.0}
    )
    assert tuple(row.scores) == ("experts", *CONTROLS)
    assert row.overshoot == row.scores["experts"]
    assert row.verdict == "suppressed"


def test_what_only_overshooting_restores_is_no_score():
    right = script(experts=1, others=1)
    right["experts"] = [1] * (len(ALPHAS) - 1) + [9]
    (row,) = evaluate.run(scripted_pack(right), ["x-first"], 1, "inject", 20)
    assert (row.alpha, row.scores["experts"], row.overshoot, row.verdict) == (0, 0, 1, "deleted")
    (row,) = evaluate.run(scripted_pack(right), ["x-first"], 1, "inject", 20, max_alpha=10)
    assert (row.alpha, row.scores["experts"]) == (10, 1)


@pytest.mark.parametrize(("experts", "verdict"), [(1, "deleted"), (4, "partly"), (9, "suppressed")])
def test_the_verdict_of_a_row(experts, verdict):
    (row,) = evaluate.run(scripted_pack(script(experts, others=1)), ["x-first"], 1, "inject", 20)
    assert row.verdict == verdict


def test_r_is_not_defined_where_nothing_was_forgotten():
    (row,) = evaluate.run(scripted_pack(script(9, 9, original=9, unlearned=9)), ["x-first"], 1, "inject", 20)
    assert set(row.scores.values()) == {None} and row.verdict == "not forgotten"
    assert "–" in evaluate.table([row])


@pytest.mark.parametrize(
    ("experts", "random", "matched", "verdict"),
    [
        (0.9, 0.1, 0.2, "suppressed"),
        (0.75, 0.25, 0.0, "suppressed"),  # a margin of just a half
        (0.7, 0.25, 0.0, "partly"),
        (0.7, 0.0, 0.25, "partly"),  # the better control counts, whichever it is
        (0.9, 0.85, 0.1, "deleted"),  # random features do as well
        (0.05, 0.0, 0.0, "deleted"),
        (0.0, 0.0, 0.0, "deleted"),
        (0.3, 0.1, 0.0, "partly"),
        (None, None, None, "not forgotten"),
    ],
)
def test_verdict(experts, random, matched, verdict):
    """What copying CLS restores has no say: it uses no features."""
    scores = {"experts": experts, "random": random, "matched": matched, "cls_copy": 1.0, "patches": 0.0, "all": 1.0}
    assert evaluate.verdict(scores) == verdict


def test_random_controls_are_the_mean_over_seeds(monkeypatch):
    """Each seed at its own best alpha."""
    right = script(experts=9, others=1)
    drawn = iter([[10, 11, 12], [13], [14], [15], [16]] * 2)
    monkeypatch.setattr(
        features, "choose", lambda kind, *_: next(drawn) if kind in ("random", "matched") else list(range(WIDTH))
    )
    right["3 others"] = constant(6)
    right["1 others"] = constant(1)
    (row,) = evaluate.run(scripted_pack(right), ["x-first"], 1, "inject", 20)
    assert row.scores["random"] == pytest.approx(((6 - 1) / 8) / 5)


# ---------------------------------------------------------------- on the tiny pack


def test_the_tiny_pack_in_a_table(pack):
    rows = evaluate.run(pack, list(UNLEARNED), LAYERS[0], "inject", 1000)
    assert [row.id for row in rows] == list(UNLEARNED) and [row.target for row in rows] == ["apple", "pear"]
    for row in rows:
        assert all(0 <= share <= 1 for share in (row.original, row.unlearned, row.restored))
    assert json.loads(json.dumps([row.as_dict() for row in rows], allow_nan=False))[0]["id"] == rows[0].id


def test_accuracies_are_the_sessions_own(pack):
    (row,) = evaluate.run(pack, ["retrain-pear"], LAYERS[0], "inject", 1000)
    images = pack.example_inputs()
    right_before = (
        pack.unlearned("retrain-pear")(images).argmax(1) == torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ).float()
    assert row.unlearned == pytest.approx(right_before[3:6].mean().item())
    assert row.retain_unlearned == pytest.approx(right_before[[0, 1, 2, 6, 7, 8]].mean().item())
    assert row.original == pytest.approx((pack.original()(images[3:6]).argmax(1) == 1).float().mean().item())


def test_unknown_choices_are_refused(pack):
    with pytest.raises(PackError, match="unknown unlearned model 'x'"):
        evaluate.run(pack, ["retrain-pear", "x"], LAYERS[0], "inject", 10)
    with pytest.raises(ValueError, match="unknown mode"):
        evaluate.run(pack, ["retrain-pear"], LAYERS[0], "wish", 10)
    with pytest.raises(ValueError, match="layer 0"):
        evaluate.run(pack, ["retrain-pear"], 0, "inject", 10)


def test_a_class_without_images_or_experts_is_refused(spoilt_pack):
    for path in (spoilt_pack / "examples" / "pear").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="of 6 test images 0 show pear"):
        evaluate.run(Pack(spoilt_pack), ["retrain-pear"], LAYERS[0], "inject", 10)
    torch.save({0: [], 1: [3]}, spoilt_pack / f"expert_features_layer1_k{K}.pt")
    with pytest.raises(ValueError, match="no experts of apple at layer 1"):
        evaluate.run(Pack(spoilt_pack), ["random_labels-apple"], 1, "inject", 10)


def test_the_test_set_of_a_pack_without_a_world_is_its_examples(pack):
    found = evaluate.test_set(pack, 1000)
    assert found.inputs.shape == (9, 3, 32, 32) and found.masks is None
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert evaluate.pointing_game(pack, LAYERS[0], 1000) is None
    assert "no masks" in evaluate.pointing_line(None)


# ---------------------------------------------------------------- a pack with the canvas world


@pytest.fixture
def canvas_pack(spoilt_pack) -> Pack:
    """The tiny pack, its three classes made the canvas world's ten."""
    write_manifest(
        spoilt_pack,
        classes=list(canvas.OBJECTS),
        world="canvas",
        image={"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    shape = vits.ViTShape(**{**SHAPE.__dict__, "classes": len(canvas.OBJECTS)})
    torch.save(transformers_4_names(random_vit(0, shape)), spoilt_pack / "vit_fruit_original.pth")
    experts = {c: [6 * c + i for i in range(6)] for c in range(10)}
    for layer in LAYERS:
        torch.save(experts, spoilt_pack / f"expert_features_layer{layer}_k{K}.pt")
    for name, other in zip(CLASSES, canvas.OBJECTS):
        (spoilt_pack / "examples" / name).rename(spoilt_pack / "examples" / other)
    return Pack(spoilt_pack)


def test_the_test_set_of_the_canvas_world(canvas_pack):
    found = evaluate.test_set(canvas_pack, 13)
    assert found.inputs.shape == (13, 3, 32, 32) and found.masks.shape == (13, 4, 4)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert 0 <= found.masks.min() and found.masks.max() <= 1 and (found.masks.max((1, 2)) > 0.3).all()
    again = evaluate.test_set(canvas_pack, 12)
    assert torch.equal(again.inputs, found.inputs[:12])
    # image 11: a tree in the second style, its mask averaged over each patch
    image, mask = canvas.render("tree", canvas.STYLES[1], np.random.default_rng((evaluate.TEST_SEED, 11)), 32)
    torch.testing.assert_close(found.inputs[11], canvas_pack.preprocess(image))
    assert found.masks[11][1, 2] == pytest.approx(np.asarray(mask)[8:16, 16:24].mean() / 255)


@pytest.mark.parametrize("count", [0, -1])
def test_no_test_images_are_refused(canvas_pack, count):
    with pytest.raises(ValueError, match="test images"):
        evaluate.test_set(canvas_pack, count)


def test_a_world_of_other_classes_is_refused(spoilt_pack):
    write_manifest(spoilt_pack, world="canvas")
    with pytest.raises(ValueError, match="classes of pack fruit"):
        evaluate.test_set(Pack(spoilt_pack), 10)


def test_the_pointing_game_by_hand(canvas_pack):
    found = evaluate.pointing_game(canvas_pack, 1, 20)
    data = evaluate.test_set(canvas_pack, 20)
    hits = 0
    for i in range(20):
        with torch.inference_mode():
            latents = canvas_pack.sae(1).encode(vits.head(canvas_pack.original(), data.inputs[i : i + 1], 1))[0, 1:]
        c = int(data.labels[i])
        heat = [sum(latents[p, j].item() for j in range(6 * c, 6 * c + 6)) for p in range(16)]
        hottest = heat.index(max(heat))
        hits += max(heat) > 0 and data.masks[i][hottest // 4, hottest % 4] >= 0.1
    assert found == (hits, 20) and 0 < hits < 20
    assert evaluate.pointing_line(found) == f"Pointing game: {hits / 20:.1%} of 20 images."


# ---------------------------------------------------------------- the table


def row(**changes) -> Row:
    figures = dict(id="salun-boat", target="boat", original=0.975, unlearned=0.02, restored=0.9, alpha=1.5)
    figures |= dict(retain_unlearned=0.95, retain_restored=0.8, overshoot=1.0, verdict="suppressed")
    figures["scores"] = {"experts": 0.921, "random": -0.01, "matched": 0.05, "cls_copy": 1.0, "patches": 0.0, "all": 1}
    return Row(**(figures | changes))


def test_the_table_is_markdown():
    lines = evaluate.table([row(), row(id="retrain-cat", scores=dict.fromkeys(row().scores))]).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) == {"|", "-"}
    heads, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], lines[2]))
    found = dict(zip(heads, cells, strict=True))
    assert found["model"] == "salun-boat" and found["forget: original"] == "97.5%" and found["at alpha"] == "1.5"
    assert found["unlearned"] == "2.0%" and found["restored"] == "90.0%" and found["verdict"] == "suppressed"
    assert found["retain: unlearned"] == "95.0%" and found["edited too"] == "80.0%"
    assert [found[f"R {name}"] for name in ("experts", *CONTROLS)] == ["0.92", "-0.01", "0.05", "1.00", "0.00", "1.00"]
    assert lines[3].count("–") == 6 and found["R overshoot"] == "1.00"


def test_the_command_prints_the_table(pack_folder, capsys, tmp_path):
    from sod_core.__main__ import main

    line = ["evaluate", "--pack", str(pack_folder), "--layer", "1"]
    assert main([*line, "--json", str(tmp_path / "rows.json")]) == 0
    printed, err = capsys.readouterr()
    assert "| random_labels-apple |" in printed and "no masks" in printed and "Traceback" not in err
    assert [row["id"] for row in json.loads((tmp_path / "rows.json").read_text())] == list(UNLEARNED)
    assert main([*line, "--json", "-", "--unlearned", "retrain-pear"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["retrain-pear"]
    for more in (["--mode", "wish"], ["--unlearned", "nobody"], ["--layer", "0"]):
        assert main([*line, *more]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_settings_are_what_the_documentation_says():
    assert ALPHAS[0] == 0 and ALPHAS[-1] == 10 and list(ALPHAS) == sorted(ALPHAS)
    assert evaluate.SUPPRESSED == 0.5 and evaluate.DELETED == 0.1
