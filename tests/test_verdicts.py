"""No verdict on a model that does not work, another order of the outputs offered, NaN in results and in training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, LAYERS, UNLEARNED
from PIL import Image
from torch import Tensor

from sod_core.build import loop
from sod_core.machine.divergence import Diverged
from sod_core.models import head_rows
from sod_core.models import vit as vits
from sod_core.packs.errors import PackError
from sod_core.restore import report, scores, working
from sod_core.ui.restore import shown
from sod_core.ui.restore.visitor import Controls, Visitor

A_CLASS = 12
"""Test images of each class; the original names all of them rightly."""
ROTATED = (1, 2, 0)
"""What the outputs of the rotated checkpoints stand for."""
BROKEN = "no verdict: the model does not work"
NOT_NUMBERS = "cannot be scored: its outputs are not numbers"


@pytest.fixture(scope="module")
def photos(pack, tmp_path_factory) -> Path:
    """A folder of images that the original model of the tiny pack names rightly."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(1)
    drawn = [
        Image.fromarray((rng.integers(0, 200, (1, 1, 3)) + rng.integers(0, 56, (32, 32, 3))).astype(np.uint8))
        for _ in range(300)
    ]
    with torch.inference_mode():
        said = vits.logits(pack.original(), torch.stack([pack.preprocess(image) for image in drawn])).argmax(1)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in (said == label).nonzero().flatten()[:A_CLASS].tolist():
            drawn[i].save(folder / name / f"{i:03}.png")
    return folder


def head(state: dict[str, Tensor], change) -> dict[str, Tensor]:
    """The original's weights with another classifier."""
    return state | {name: change(state[name]) for name in ("classifier.weight", "classifier.bias")}


@pytest.fixture(scope="module")
def checkpoints(pack_folder, tmp_path_factory) -> Path:
    """Checkpoints of the tiny pack's ViT: sound, rotated, constant, overflowing, and one cut short."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = {
        name: value.float()
        for name, value in torch.load(pack_folder / "vit_fruit_original.pth", weights_only=True).items()
    }
    torch.save(state, folder / "sound.pth")
    torch.save(head(state, lambda weight: weight[list(ROTATED)]), folder / "rotated.pth")
    torch.save(head(state, lambda weight: weight * 0), folder / "constant.pth")
    torch.save(head(state, lambda weight: torch.full_like(weight, 3e38)), folder / "overflowing.pth")
    (folder / "cut.pth").write_bytes((folder / "sound.pth").read_bytes()[:5000])
    return folder


def judged(run, pack_folder, photos, *arguments: object):
    return run("evaluate", "--pack", pack_folder, "--data", photos, "--layer", LAYERS[0], *arguments)


def strict(path: Path) -> list[dict]:
    def refuse(word: str):
        raise AssertionError(f"JSON has no word {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


# ---------------------------------------------------------------- what is right up to renaming


def confused(*shares: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(named, labels): of each class so many images under each output."""
    pairs = [(output, label) for label, named in enumerate(shares) for output, n in named.items() for _ in range(n)]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


@pytest.mark.parametrize(
    ("shares", "target", "order"),
    [
        ([{0: 10}, {1: 9, 2: 1}, {2: 10}], 0, None),  # healthy
        ([{1: 5, 2: 5}, {1: 10}, {2: 10}], 0, None),  # it forgot class 0
        ([{1: 5, 2: 5}, {1: 10}, {2: 10}], 1, None),  # the same, asked for the wrong class
        ([{1: 10}, {1: 10}, {2: 10}], 1, None),
        ([{1: 10}, {2: 10}, {0: 10}], None, [2, 0, 1]),
        ([{0: 3, 2: 7}, {2: 10}, {0: 10}], 0, [2, 0, 1]),  # class 0 is forgotten; the output that is left is its own
        ([{2: 10}, {0: 10}, {2: 10}], 0, [1, 0, 2]),  # swapped with the forgotten one: most of the others look fine
        ([{1: 10}, {2: 7, 0: 3}, {0: 7, 2: 3}], None, [2, 0, 1]),  # right on 80 %
        ([{1: 10}, {2: 6, 0: 4}, {0: 7, 2: 3}], None, None),  # on 77 %
        ([{1: 2}, {2: 2}, {0: 2}], None, None),  # too few images to tell
        ([{1: 10}, {2: 10}, {0: 10}, {}, {}], None, None),  # nobody can tell what outputs 3 and 4 stand for
        ([{0: 5, 1: 5}, {1: 5, 0: 5}, {2: 40}], None, None),  # no better than the order at hand
        ([{-2: 10}, {-2: 10}, {-2: 10}], None, None),
    ],
)
def test_another_order_is_found_only_where_it_explains_the_model(shares, target, order):
    found = working.renamed(*confused(*shares), target, len(shares))
    assert (found and found.order) == order


def test_the_best_order_is_the_best_of_all_together():
    """Classes 0 and 1 both have output 0 most often; giving it to class 1 and output 1 to class 0 is best."""
    shares = [{0: 6, 1: 5}, {0: 11}, {3: 50}, {2: 50}]
    found = working.renamed(*confused(*shares), None, 4)
    assert found.order == [1, 0, 3, 2] and found.accuracy == pytest.approx(116 / 122)


@pytest.mark.parametrize(("original", "unlearned", "works"), [(0.9, 0.45, True), (0.9, 0.44, False), (None, 0.1, True)])
def test_a_model_works_from_half_of_the_originals_accuracy_on(original, unlearned, works):
    assert working.works(original, unlearned) == works and working.LEAST_RETAINED == 0.5


def test_a_label_order_is_read_as_it_is_written():
    classes = ["tench, Tinca tinca", "boat", 'a "quoted" one']
    assert head_rows.parse(head_rows.text(classes[::-1]), classes) == [2, 1, 0]
    assert head_rows.parse('boat, "tench, Tinca tinca","a ""quoted"" one"', classes) == [1, 0, 2]


def test_a_reordered_head_is_a_copy_that_shares_the_rest(pack):
    vit, images = pack.original(), torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    found = head_rows.reordered_head(vit, ROTATED)
    with torch.inference_mode():
        named, wanted = vits.logits(found, images), vits.logits(vit, images)
    for row, label in enumerate(ROTATED):
        torch.testing.assert_close(named[:, label], wanted[:, row])
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert found.blocks[0].attn.qkv.weight is vit.blocks[0].attn.qkv.weight and not found.training


# ---------------------------------------------------------------- the evaluation


@pytest.fixture(scope="module")
def many(pack_folder, photos, checkpoints, tmp_path_factory) -> tuple[list, Path]:
    """The arguments of an evaluation of all checkpoints, and its folder."""
    names = ("sound", "rotated", "constant", "overflowing", "cut")
    out = tmp_path_factory.mktemp("results")
    return ["--unlearned", *(f"apple={checkpoints / name}.pth" for name in names), "--out", out], out


def test_every_model_has_its_row_whatever_the_others_are(run, pack_folder, photos, many):
    arguments, out = many
    first = judged(run, pack_folder, photos, *arguments, "--json", out / "rows.json")
    rows = {row["id"]: row for row in strict(out / "rows.json")}
    verdicts = {id: row["verdict"] for id, row in rows.items()}
    assert verdicts.pop("cut").startswith("cannot be scored: cut.pth")
    assert verdicts == {
        **{"sound": "not forgotten", "rotated": BROKEN, "constant": BROKEN, "overflowing": NOT_NUMBERS},
    }
    assert rows["sound"]["retain_unlearned"] == 1 and rows["overflowing"]["retain_unlearned"] is None
    assert (
        rows["rotated"]["label_order"] == [CLASSES[c] for c in ROTATED] and rows["rotated"]["label_order_retain"] == 1
    )
    assert [row["label_order"] for id, row in rows.items() if id != "rotated"] == [None] * 4
    assert first.code == 2 and len(first.err.strip().splitlines()[-1].split("; ")) >= 2
    assert "sod_core evaluate: 2 of 5 models have no figures. overflowing: cannot be scored" in first.err
    assert f"No verdict on constant: it names {rows['constant']['retain_unlearned']:.1%} of 24 images" in first.out
    order = "pear,plum,apple"
    assert f"in the order {order}: in that order it is right on 100.0%" in first.out
    assert f"`--label-order {order}`" in first.out
    assert f"| {NOT_NUMBERS} |" in first.out and "nan" not in first.out.lower()
    with (out / "scores.csv").open(newline="") as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    assert table["overflowing"]["verdict"] == NOT_NUMBERS and table["overflowing"]["R_experts"] == ""
    assert table["sound"]["original"] == "1.0" and table.keys() == rows.keys()
    assert (out / "sound").is_dir() and not (out / "overflowing").exists()
    board = strict(out / "scoreboard.json")
    assert board["format"] == report.FORMAT and [row["id"] for row in board["rows"]] == list(rows)
    again = judged(run, pack_folder, photos, *arguments)  # goes on from what is kept
    assert (again.code, again.out) == (2, first.out)


def test_the_order_that_is_offered_mends_it(run, pack_folder, photos, checkpoints):
    order = "pear,plum,apple"
    told = judged(run, pack_folder, photos, "--unlearned", f"apple={checkpoints}/rotated.pth", "--label-order", order)
    plain = judged(run, pack_folder, photos, "--unlearned", f"apple={checkpoints}/sound.pth")
    assert told.code == plain.code == 0 and told.out == plain.out.replace("sound", "rotated")


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ("apple,pear", "lacks plum"),
        ("apple,pear,pear", "names pear more than once"),
        ("apple,pear,prune", "names 'prune'"),
        ("", "lacks apple, pear, plum"),
    ],
)
def test_a_label_order_that_is_none_is_one_line(run, pack_folder, photos, checkpoints, order, says):
    names = ["--unlearned", f"apple={checkpoints}/rotated.pth", "--label-order", order]
    found = judged(run, pack_folder, photos, *names)
    assert found.code == 2 and says in found.err and len(found.err.splitlines()) == 1


def test_a_label_order_is_for_own_checkpoints(run, pack_folder, photos):
    found = judged(run, pack_folder, photos, "--unlearned", next(iter(UNLEARNED)), "--label-order", ",".join(CLASSES))
    assert found.code == 2 and "checkpoints of your own" in found.err


def test_where_no_model_can_be_loaded_that_is_the_error(run, pack_folder, photos, checkpoints):
    found = judged(run, pack_folder, photos, "--unlearned", f"apple={checkpoints}/cut.pth")
    assert found.code == 2 and "cut.pth" in found.err and found.out == "" and len(found.err.splitlines()) == 1


def test_scores_that_cannot_be():
    nothing = scores.Score(None, None, None, None)
    one_of_many = np.arange(20) > 0  # a twentieth is lost, and no resample drawn here has it
    assert scores.score(np.ones(20, bool), one_of_many, np.ones((1, 1, 20), bool), [0.0], 0).value == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 0)
        assert scores.score(np.ones(20, bool), one_of_many, np.ones((1, 1, 20), bool), [0.0], 0) == nothing
    labels = torch.arange(40) % 2
    for value in (torch.nan, torch.inf):
        cls = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        cls[3] = value
        assert scores.probe(cls, labels, 1) is None


# ---------------------------------------------------------------- one image, and the app


def test_restore_says_whose_outputs_are_not_numbers(run, pack_folder, photos, checkpoints):
    image = next((photos / "apple").iterdir())
    call = ["restore", "--pack", pack_folder, "--image", image, "--target-class", "apple", "--layer", LAYERS[0]]
    found = run(*call, "--unlearned", checkpoints / "overflowing.pth")
    assert found.code == 2 and "the outputs of the unlearned model are not numbers" in found.err
    assert "alpha" not in found.err
    found = run(*call, "--unlearned", checkpoints / "sound.pth", "--mode", "amplify", "--alpha", "1e38")
    assert found.code == 2 and "alpha is too large" in found.err
    order = "pear,plum,apple"
    told, plain = (
        json.loads(run(*call, "--unlearned", checkpoints / name, *more).out)
        for name, more in (("rotated.pth", ["--label-order", order]), ("sound.pth", []))
    )
    assert told == plain


@pytest.fixture
def visitor(pack_folder, pack, checkpoints, monkeypatch) -> Visitor:
    """Of the tiny pack, whose original names every example rightly."""
    monkeypatch.setattr("sod_core.ui.restore.visitor.shared_pack", lambda name: pack)
    labels = torch.tensor([example.label for example in pack.examples()])
    names = {id(pack.original()): labels}

    def named(model) -> Tensor:
        if not vits.logits(model, torch.zeros(1, 3, 32, 32)).isfinite().all():
            raise PackError(working.not_numbers("this model"))
        rows = model.head.weight @ pack.original().head.weight.T  # which of its rows is which of the original's
        return rows.argmax(0)[labels] if rows.any() else torch.zeros_like(labels)

    monkeypatch.setattr(pack, "example_predictions", named)
    monkeypatch.setattr(pack, "original_on_examples", lambda: names[id(pack.original())])
    return Visitor("fruit")


@pytest.mark.parametrize("target", [0, None])
def test_the_app_offers_the_order_and_takes_it(visitor, checkpoints, target):
    controls = Controls(LAYERS[0], "inject", 1.0)
    visitor.choose_model(visitor.add_model(checkpoints / "rotated.pth", "mine", target))
    visitor.measure(controls, visitor.version)
    page = shown.everything(visitor, controls)
    assert page[0].startswith(f"### {BROKEN.capitalize()}.\n") and "in the order pear,plum,apple" in page[0]
    *_, own_order, _link = page
    assert own_order.visible and f"**{BROKEN.capitalize()}.**" in page[shown.MOVING]
    if target is None:
        with pytest.raises(PackError, match="still names every example"):  # nothing was forgotten: it is the original
            visitor.take_order()
        return
    visitor.choose_model(visitor.take_order())
    visitor.measure(controls, visitor.version)
    page = shown.everything(visitor, controls)
    assert visitor.entry.retain_accuracy == 1 and visitor.doubt is None
    assert "verdict" not in page[0].lower() and not page[-2].visible


def test_the_app_says_what_does_not_work(visitor, checkpoints):
    before = visitor.entry
    visitor.choose_model(visitor.add_model(checkpoints / "constant.pth", "constant", 0))
    assert visitor.doubt.verdict == BROKEN and "the original 100.0%" in visitor.doubt.line
    with pytest.raises(PackError, match="no other order"):
        visitor.take_order()
    shown_last = visitor.entry
    with pytest.raises(PackError, match="not numbers"):
        visitor.add_model(checkpoints / "overflowing.pth", "overflowing", 0)
    assert visitor.entry is shown_last is not before


def test_no_verdict_waits_for_no_curves(visitor, checkpoints):
    controls = Controls(LAYERS[0], "inject", 1.0)
    visitor.choose_model(visitor.add_model(checkpoints / "constant.pth", "constant", 0))
    assert shown.moving(visitor, controls)[0].startswith(f"### {BROKEN.capitalize()}.\nIt names ")
    visitor.choose_model(next(iter(UNLEARNED)))
    assert visitor.doubt is None and "Measuring" in shown.moving(visitor, controls)[0]


@pytest.mark.parametrize(
    ("target", "images"), [(0, "0.0% of 6 examples of the other classes"), (None, "of 9 examples")]
)
def test_the_offer_names_the_images_that_it_was_found_on(visitor, checkpoints, target, images):
    visitor.choose_model(visitor.add_model(checkpoints / "rotated.pth", "mine", target))
    line = visitor.doubt.line
    assert images in line and "in that order it is right on 100.0% of them" in line and "Usual causes" not in line


def test_controls_that_are_refused_leave_the_last_that_were_shown(visitor):
    sound = Controls(LAYERS[0], "inject", 1.0)
    shown.moving(visitor, sound)
    with pytest.raises(ValueError, match="seed -1"):
        shown.moving(visitor, Controls(LAYERS[0], "inject", 1.0, features="random", seed=-1))
    assert visitor.controls is sound


def test_a_listed_model_without_numbers_leaves_the_page_as_it_was(visitor, checkpoints, monkeypatch):
    before, controls = visitor.entry, Controls(LAYERS[0], "inject", 1.0)
    figures = visitor.probabilities(controls)
    other = next(entry.id for entry in visitor.entries if entry.id != before.id)
    model = visitor.pack.model_at(checkpoints / "overflowing.pth")
    monkeypatch.setattr(visitor.pack, "unlearned", lambda id: model)
    with pytest.raises(PackError, match="outputs of the unlearned model are not numbers"):
        visitor.choose_model(other)
    assert visitor.entry is before and torch.equal(visitor.probabilities(controls).unlearned, figures.unlearned)
    with pytest.raises(ValueError, match="alpha is too large"):
        visitor.probabilities(Controls(LAYERS[0], "amplify", 1e38))


# ---------------------------------------------------------------- a builder's training


def test_a_builders_training_that_diverges_keeps_its_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", -1)  # after each step
    layer = torch.nn.Linear(2, 2)

    def step(i: int) -> dict[str, str]:
        with torch.no_grad():
            layer.weight += torch.inf if i == 3 else 1
        return {}

    with pytest.raises(Diverged, match="diverged at step 4: its weights are no finite number"):
        loop.train(step, 6, tmp_path / "run.ckpt", {"layer": layer}, {})
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert kept["step"] == 3 and kept["parts"]["layer"]["weight"].isfinite().all()
