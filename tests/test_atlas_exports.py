"""Export on the Atlas tab: the files say what the tab shows, and the command line computes it again."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from test_atlas_tab import APPLE, State, made, state, stored  # noqa: F401  fixtures

from sod_core.restore import atlas_file
from sod_core.ui.atlas import exports, table, work
from sod_core.ui.atlas.scatter import OFTEN, STRONGLY
from sod_core.ui.atlas.visitor import ALL, EVERY, EXPERTS, FORGOTTEN, Controls

ORANGE = np.array([232, 89, 12])


@pytest.mark.parametrize("images, show", [(FORGOTTEN, EVERY), (ALL, EXPERTS)])
def test_the_table_is_the_tab_s(state, stored, images, show):  # noqa: F811
    controls = Controls(APPLE, 2, images, OFTEN, show)
    name, content = exports.make("csv", "inferno", state, *controls)
    atlas = work.stored(stored)
    wanted = table.cells(atlas, stored, controls, table.chosen(atlas, stored, controls))
    head, *rows = csv.reader(io.StringIO(content.decode()))
    assert name.startswith(f"atlas-fruit-{APPLE}-layer2") and head == table.HEADERS
    assert rows == [["" if cell is None else str(cell) for cell in row] for row in wanted] and rows


@pytest.mark.parametrize("measure", [OFTEN, STRONGLY])
def test_the_picture_shows_the_experts(state, measure):  # noqa: F811
    name, content = exports.make("png", "inferno", state, *Controls(APPLE, 2, FORGOTTEN, measure, EVERY))
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert name.endswith(".png") and picture.shape == (900, 900, 3)
    orange = np.abs(picture[200:850] - ORANGE).max(2) < 80  # points are a little transparent
    assert orange.sum() > 20
    bare = exports.make("png", "inferno", state, *Controls(APPLE, 2, FORGOTTEN, measure, "silenced"))[1]
    assert bare != content


def stored_bytes(folder):
    path = folder / atlas_file.FILE
    return path.stat().st_mtime_ns, path.read_bytes()


def test_the_json_is_computed_again_by_the_command_line(state, made, run, tmp_path):  # noqa: F811
    name, content = exports.make("json", "inferno", state, *Controls(APPLE, 2, FORGOTTEN, OFTEN, EVERY))
    held = json.loads(content)
    held["options"]["pack"] = str(made)
    (tmp_path / name).write_text(json.dumps(held))
    own = stored_bytes(made)
    outcome = run("atlas", "--from", tmp_path / name, "--json", "-")
    assert outcome.code == 0, outcome.err
    assert "wrote" not in outcome.err and stored_bytes(made) == own  # the pack's own atlas is of every model
    assert held["figures"]["summary"] in json.loads(outcome.out) and held["figures"]["rows"]


@pytest.mark.parametrize("kind", ["png", "csv"])
def test_the_json_is_drawn_again(state, run, tmp_path, kind):  # noqa: F811
    controls = Controls(APPLE, 2, ALL, STRONGLY, EXPERTS)
    said, wanted = (exports.make(one, "inferno", state, *controls)[1] for one in ("json", kind))
    (tmp_path / "x.json").write_bytes(said)
    outcome = run("draw", tmp_path / "x.json", "--out", tmp_path / f"x.{kind}")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / f"x.{kind}").read_bytes() == wanted


def test_what_is_stale_is_not_exported(state, monkeypatch):  # noqa: F811
    monkeypatch.setattr(exports, "stale", lambda *_: "it was made of another file")
    with pytest.raises(ValueError, match="no figure of this model yet"):
        exports.make("csv", "inferno", state, *Controls(APPLE, 2, FORGOTTEN, OFTEN, EVERY))
