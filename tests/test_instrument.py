"""Verdicts of models of which we know what they do: on the drawn world and on handwriting, by the same thresholds."""

from __future__ import annotations

import copy
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT

from sod_core.packs.find import ASSETS
from sod_core.restore import evaluate, features, testset
from sod_core.restore.judged import Row, Settings, Subject
from sod_core.restore.pack import Pack

LAYER = 9


class Known(NamedTuple):
    """A pack, the class that its models forget here, and test images: most of them show it."""

    pack: Pack
    target: int
    data: testset.TestSet
    copies_cls: bool
    """Whether copied CLS makes even the model that never saw the class name it."""

    def judge(self, model: torch.nn.Module, data: testset.TestSet | None = None) -> Row:
        subject = Subject("known", "own", self.target, lambda: model)
        return evaluate.run(self.pack, [subject], data or self.data, Settings(LAYER))[0]

    def some(self) -> testset.TestSet:
        """Half of the images."""
        return testset.TestSet("half", self.data.labels[::2].tolist(), lambda i: self.data._read(2 * i), self.pack)

    def experts(self) -> list[int]:
        return self.pack.expert_ids(LAYER, self.target)

    def without(self) -> torch.nn.Module:
        """The model retrained without the class."""
        return self.pack.unlearned(f"retrain-{self.pack.manifest.classes[self.target]}")


def of(name: str, forgotten: str, images: int | None, copies_cls: bool) -> Known:
    """The first 40 test images of the class, and of each other class five."""
    pack = Pack(ASSETS / name, torch.device("cpu"))
    target, whole = pack.manifest.class_index(forgotten), testset.open_set(pack, None, images)
    seen: Counter[int] = Counter()
    chosen = []
    for i, label in enumerate(whole.labels.tolist()):
        seen[label] += 1
        if seen[label] <= (40 if label == target else 5):
            chosen.append(i)
    data = testset.TestSet("known", whole.labels[chosen].tolist(), lambda i: whole._read(chosen[i]), pack)
    return Known(pack, target, data, copies_cls)


@pytest.fixture(scope="module", params=[("canvas", "boat", 400, True), ("digits", "three", None, False)], ids=str)
def known(request) -> Known:
    return of(*request.param)


def hiding(known: Known) -> torch.nn.Module:
    """The original, whose CLS after block 9 is mirrored in the direction from the other classes to the forgotten one.

    Nothing is lost, and no SAE has a part in it.
    """
    pack = known.pack
    cls, labels = pack.example_hidden(LAYER)[:, 0], torch.tensor([example.label for example in pack.examples()])
    others = cls[labels != known.target].mean(0)
    way = torch.nn.functional.normalize(cls[labels == known.target].mean(0) - others, dim=0)

    def mirror(block, inputs, hidden):
        hidden = hidden.clone()
        hidden[:, 0] -= 2 * ((hidden[:, 0] - others) @ way).clamp(min=0)[:, None] * way
        return hidden

    model = copy.deepcopy(pack.original())
    model.blocks[LAYER].register_forward_hook(mirror)
    return model


def kept_from_naming(model: torch.nn.Module, target: int) -> torch.nn.Module:
    """A copy whose last layer alone never names the class."""
    model = copy.deepcopy(model)
    model.head.bias[target] -= 100
    return model


def test_what_is_only_hidden_is_suppressed(known):
    row = known.judge(hiding(known), known.some())
    assert row.original == 1 and row.unlearned == 0 and row.retain_unlearned > 0.9
    assert row.scores["experts"].value > 0.9 and row.verdict == "suppressed" and row.probe[LAYER] > 0.9


def test_with_shuffled_experts_nothing_returns(known, monkeypatch):
    """The same model and as many latents, but not the class's: no better than random ones, because they are."""
    shuffled = features.random_features(known.experts(), known.pack.sae(LAYER).latents, 99)
    monkeypatch.setattr(known.pack, "expert_ids", lambda layer, target: shuffled)
    row = known.judge(hiding(known), known.some())
    assert row.unlearned == 0 and row.verdict == "deleted"
    assert row.scores["experts"].value <= row.scores["random"].value + 0.1


@pytest.mark.parametrize("images", [100, 200])
def test_retrained_models_are_never_found_to_keep_a_part(images):
    pack = Pack(ROOT / "assets" / "canvas")
    subjects = evaluate.subjects(pack, ["retrain-boat", "retrain-cat"])
    rows = evaluate.run(pack, subjects, testset.open_set(pack, None, images), Settings(LAYER))
    assert {row.verdict for row in rows} <= {"deleted", f"undecided, {images // 10} images"}


@pytest.mark.parametrize("images", [100, 200])
def test_nor_are_those_of_handwriting(images):
    """Their later blocks do not listen to the original's states at all."""
    pack = Pack(ROOT / "assets" / "digits")
    subjects = evaluate.subjects(pack, ["retrain-three", "retrain-eight"])
    for row in evaluate.run(pack, subjects, testset.open_set(pack, None, images), Settings(LAYER)):
        assert row.verdict in ("deleted", f"undecided, {row.target_images} images", "cannot tell at this layer")


def test_a_model_that_never_saw_the_class_keeps_nothing_of_it(known):
    """Copying CLS may bring the class back even here: that control does not tell hidden from deleted."""
    row = known.judge(known.without())
    cannot_tell = () if known.copies_cls else ("cannot tell at this layer",)
    assert row.original == 1 and row.unlearned == 0
    assert row.verdict in ("deleted", "undecided, 40 images", *cannot_tell)
    assert row.scores["experts"].value < 0.1 and row.scores["experts"].high < 0.5
    assert row.scores["cls_copy"].value > 0.9 if known.copies_cls else row.scores["cls_copy"].value < 0.1
    assert row.probe[LAYER] < row.probe_original[LAYER]
    assert row.readout < 0.1


def test_what_is_hidden_after_the_edited_layer_is_suppressed(known):
    """With only the classifier changed there is nothing to put back at the layer; the original's tail reads it all."""
    row = known.judge(kept_from_naming(known.pack.original(), known.target), known.some())
    assert (row.unlearned, row.readout, row.verdict) == (0, 1, "suppressed after this layer")
    assert {score.value for score in row.scores.values()} == {0} and row.probe == row.probe_original


def test_last_blocks_made_anew_do_not_delete():
    """EU-k: no edit restores anything, and the original's last blocks name every boat from its hidden state."""
    boats = of("canvas", "boat", 400, True)
    row = boats.judge(boats.pack.unlearned("eu_k-boat"), boats.some())
    assert row.unlearned == 0 and max(score.value for score in row.scores.values()) < 0.1
    assert row.readout > 0.9 and row.verdict == "suppressed after this layer"


def test_a_model_that_no_edit_and_no_readout_reaches_cannot_be_told(known):
    """As in the last two, but its hidden state from block 0 on is another network's."""
    row = known.judge(kept_from_naming(known.without(), known.target))
    assert row.unlearned == 0 and row.readout < 0.1 and row.verdict == "cannot tell at this layer"
