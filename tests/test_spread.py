"""Figures over classes and seeds: medians and quartiles by hand, what is stored understood or refused, and the tab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sod_core.restore import report, spread
from sod_core.restore.pack import Pack
from sod_core.ui.restore import figures, scoreboard


def run(method: str, target: str, r: float | None, verdict: str) -> dict:
    scores = {name: {"value": value} for name, value in (("experts", r), ("random", 0.0), ("matched", 0.1))}
    scores["cls_copy"] = {"value": None}
    figures = {"unlearned": 0.02, "retain_unlearned": 0.9, "readout": 0.3, "probe": None, "overshoot": r}
    return {"method": method, "target": target, "scores": scores, "verdict": verdict} | figures


def results() -> dict:
    first = [run("retrain", "pear", 0.0, "deleted"), run("salun", "pear", 0.8, "suppressed")]
    second = [run("retrain", "plum", 0.2, "undecided, 40 images"), run("salun", "plum", 0.4, "suppressed")]
    third = [run("retrain", "pear", None, "undecided, 30 images"), run("salun", "pear", 0.9, "partly")]
    units = [(0, "pear", first), (0, "plum", second), (1, "pear", third)]
    return {
        "verdicts": report.FORMAT,
        "units": [{"seed": seed, "class": name, "rows": rows} for seed, name, rows in units],
    }


def test_medians_and_quartiles_by_hand():
    retrained, salun = spread.spreads(results())
    assert (retrained.method, retrained.runs, salun.runs) == ("retrain", 3, 3)
    assert salun.figures["R experts"] == pytest.approx((0.8, 0.6, 0.85))
    assert retrained.figures["R experts"] == pytest.approx((0.1, 0.05, 0.15))  # of the two that have it
    assert salun.figures["R copied CLS"] is None and salun.figures["forget"] == pytest.approx((0.02, 0.02, 0.02))
    assert retrained.verdicts == {"undecided": 2, "deleted": 1} and salun.verdicts == {"suppressed": 2, "partly": 1}


def test_the_table_says_them():
    lines = spread.table(results()).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "| SalUn | 3 | 0.02 [0.02, 0.02] | 0.90 [0.90, 0.90] | 0.80 [0.60, 0.85] |" in lines[3]
    assert lines[3].endswith("| suppressed 2; partly 1 |") and " – |" in lines[3]
    assert spread.told(results()).startswith("6 models: 3 times every method and retraining, on pear, plum; seeds 0, 1")


def test_every_run_is_a_dot():
    boxes = {trace.name: trace for trace in figures.spread(spread.rows(results())).data}
    assert sorted(boxes["R experts"].y) == [0.0, 0.2, 0.4, 0.8, 0.9] and boxes["R experts"].boxpoints == "all"
    assert len(boxes["R matched"].y) == 6 and "plum, seed 0: suppressed" in boxes["R experts"].text


def test_another_pack_stands_beside_them(tmp_path: Path):
    """Its own methods only where both have them, and nothing of a pack whose file is another version's."""
    board = {"format": report.FORMAT, "settings": {}, "images": 40, "data": "examples"}
    rows = [run("salun", "boat", 0.98, "suppressed"), run("salun", "cat", None, "undecided, 9 images")]
    stored = {
        "fruit": board | {"rows": [run("salun", "pear", 0.1, "deleted")]},
        "canvas": board | {"rows": [*rows, run("eu_k", "boat", 0.0, "suppressed after this layer")]},
        "older": board | {"rows": rows, "format": report.FORMAT - 1},
    }
    for name, content in stored.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scoreboard.json").write_text(json.dumps(content))
    others = spread.beside(tmp_path / "fruit")
    assert list(others) == ["canvas"] and len(others["canvas"]) == 3
    head, _, *lines = spread.compared(results(), "canvas", others["canvas"]).splitlines()
    assert "R experts, canvas" in head and len(lines) == 1
    assert lines[0].startswith("| SalUn | 0.80 [0.60, 0.85] | suppressed 2; partly 1 | boat 0.98; cat – |")
    assert lines[0].endswith("| boat suppressed; cat undecided |")
    diamonds = figures.spread(spread.rows(results()), others).data[-1]
    assert diamonds.name == "R experts, canvas" and list(diamonds.y) == [0.98] and list(diamonds.x) == ["SalUn"]


def test_results_by_other_rules_are_refused(spoilt_pack: Path):
    (spoilt_pack / "results.json").write_text(json.dumps(results() | {"verdicts": report.FORMAT - 1}))
    with pytest.raises(ValueError, match="another version's verdicts"):
        spread.read(Pack(spoilt_pack))


@pytest.mark.parametrize("text", ["{", "[]", '{"units": 5}', '{"units": [{"seed": 1}]}', "null"])
def test_what_is_damaged_is_a_sentence(spoilt_pack: Path, text: str):
    (spoilt_pack / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results.json of pack fruit cannot be read"):
        spread.read(Pack(spoilt_pack))
    shown, plot = scoreboard._spread(Pack(spoilt_pack))
    assert shown.visible and not plot.visible


def test_the_tab_shows_them_where_there_are_any(spoilt_pack: Path):
    assert not any(one.visible for one in scoreboard._spread(Pack(spoilt_pack)))
    (spoilt_pack / "results.json").write_text(json.dumps(results()))
    shown, plot = scoreboard._spread(Pack(spoilt_pack))
    assert shown.visible and plot.visible and spread.table(results()) in shown.value
