"""The embedded pack digits as it is committed: small, whole, and its figures hold on the test images beside it."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT

from sod_core.build.digits.plan import SHOWN, TEST_FILE
from sod_core.models import vit as vits
from sod_core.packs.find import ASSETS
from sod_core.restore import report, scores, spread
from sod_core.restore.pack import Pack
from sod_core.restore.testset import open_set
from sod_core.unlearn import TITLES
from sod_core.worlds import digits

FOLDER = ASSETS / "digits"


@pytest.fixture(scope="module")
def pack() -> Pack:
    return Pack(FOLDER)


def test_it_is_small_and_says_whose_images_these_are():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 20_000_000 and sizes[FOLDER / TEST_FILE] <= 1_000_000
    assert "CC BY-SA 3.0" in (FOLDER / "README.md").read_text()


def test_the_original_names_the_test_images(pack):
    data = open_set(pack, None, None)
    assert len(data) == digits.TEST and len(pack.examples()) == 60
    batch = data.batch(0, len(data))
    with torch.inference_mode():
        named = torch.cat([vits.logits(pack.original(), part).argmax(1) for part in batch.inputs.split(250)])
        id = pack.manifest.unlearned[0].id
        forgot = torch.cat([vits.logits(pack.unlearned(id), part).argmax(1) for part in batch.inputs.split(250)])
    record = json.loads((FOLDER / "figures" / "original.json").read_text())
    assert (named == batch.labels).float().mean().item() == pytest.approx(record["accuracy"], abs=2e-3)
    assert record["accuracy"] >= 0.975
    entry, mine = pack.manifest.unlearned[0], batch.labels == pack.manifest.unlearned[0].target_class
    assert (forgot == batch.labels)[mine].float().mean().item() == pytest.approx(entry.forget_accuracy, abs=0.02)
    assert (forgot == batch.labels)[~mine].float().mean().item() == pytest.approx(entry.retain_accuracy, abs=5e-3)


def test_it_holds_what_the_plan_shows(pack):
    wanted = {f"{how}-{name}" for name, methods in SHOWN.items() for how in methods}
    assert {entry.id for entry in pack.manifest.unlearned} == wanted
    for layer in pack.manifest.layers:
        assert all(pack.expert_ids(layer, label) for label in range(10))
    board = json.loads((FOLDER / "scoreboard.json").read_text())
    assert {row["id"] for row in board["rows"]} == wanted and board["images"] == digits.TEST


def test_the_results_are_of_every_method_and_no_retrained_model_keeps_a_part(pack):
    found = spread.read(pack)
    assert found["verdicts"] == report.FORMAT and found["units"]
    for unit in found["units"]:
        assert [row["method"] for row in unit["rows"]] == list(TITLES)
        assert {row["target"] for row in unit["rows"]} == {unit["class"]}
        retrained = next(row for row in unit["rows"] if row["method"] == "retrain")
        assert spread.kind(retrained["verdict"]) in ("deleted", scores.UNDECIDED, scores.CANNOT_TELL)


def test_settings_were_chosen_on_two_classes():
    tuned = json.loads((ROOT / "assets/digits/figures/tuning.json").read_text())
    assert tuned["classes"] == ["three", "eight"] and set(tuned["methods"]) == set(TITLES) - {"retrain"}
