"""What builds the pack `canvas-mask`, on a few images: stage by stage, the same again, going on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sod_core.build.canvas_mask import builder
from sod_core.build.canvas_mask.plan import Made
from sod_core.mask.pack import open_mask_pack

STAGES = ["hidden-state", "features-original", "bottleneck-original-all"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Drawn images and hidden states, shared by the builds."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(builder, "SPLITS", {"train": 120, "check": 40, "test": 40})
    monkeypatch.setattr(builder, "ENCODERS", builder.ENCODERS[:1])
    monkeypatch.setattr(builder, "SEEDS", 2)
    plan = Made.plan
    monkeypatch.setattr(
        Made, "plan", lambda made, seed=0: replace(plan(made, seed), codebooks=4, pairs=12, key_epochs=1)
    )


def build(out: Path, work: Path, stages: list[str]) -> None:
    builder.Builder(out, work, CPU).run(stages)


def test_the_pack_opens_and_is_the_same_again(tmp_path, work):
    for name in ("one", "two"):
        build(tmp_path / name, work, STAGES)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))  # metadata come in any order
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one), file
    pack = open_mask_pack(str(tmp_path / "one"))
    assert pack.bottleneck("original-all").about["encoder"] == "original"
    assert len(pack.features("original").train.labels) == 120 and len(pack.features("original").test.labels) == 40
    record = json.loads((tmp_path / "one" / "figures" / "bottleneck-original-all.json").read_text())
    session = pack.session("original-all")
    assert record["accuracy"] == session.figures(torch.zeros_like(session.bottleneck.masked), []).retain
    assert "| original-all |" in (tmp_path / "one" / "README.md").read_text()


def test_a_killed_build_goes_on_where_it_stopped(tmp_path, work, capsys, monkeypatch):
    build(tmp_path, work, STAGES[:2])
    monkeypatch.setattr(builder, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, work, STAGES)
    monkeypatch.undo()
    capsys.readouterr()
    assert not (tmp_path / "figures" / "bottleneck-original-all.json").exists()
    assert [entry.id for entry in open_mask_pack(str(tmp_path)).manifest.encoders] == ["original"]


def test_the_classes_are_judged_on_every_seed(tmp_path, work, capsys):
    build(tmp_path, work, [*STAGES, "classes"])
    rows = json.loads((tmp_path / "figures" / "classes.json").read_text())["rows"]
    assert len(rows) == 20 and {row["seed"] for row in rows} == {0, 1}
    assert all(row["share"] is None or row["forget"] <= 0.02 for row in rows)
    capsys.readouterr()
    build(tmp_path, work, [*STAGES, "classes"])
    assert capsys.readouterr().out.count("done before") == 4


def test_a_stage_out_of_order_is_a_sentence(tmp_path, work):
    with pytest.raises(ValueError, match="hidden-state has to be made first"):
        build(tmp_path, work, ["features-original"])
