"""The pages: links lead somewhere, commands parse, tables hold what was measured, and the README stays short."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from sod_core.__main__ import _parser
from sod_core.build.canvas_mask import card as mask_card
from sod_core.clamp import manifest as clamp_manifest
from sod_core.restore import manifest, spread

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/*/*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[ /])(?:python -m sod_core|sod-core|-m sod_core) (.*)")
README_LINES = 150


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", INDENTED.sub("", FENCED.sub("", text(name))))


def blocks(name: str) -> list[str]:
    """Every line of a page's code blocks; lines that end in a backslash are joined with the next."""
    page = text(name)
    code = [body for _, body in FENCED.findall(page)] + INDENTED.findall(FENCED.sub("", page))
    return [line.strip() for block in code for line in re.sub(r"\\\n\s*", "", block).splitlines()]


def anchors(name: str) -> set[str]:
    """What GitHub calls a page's headings."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", text(name)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(name: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        place = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        if not (place.is_file() and place.is_relative_to(ROOT)):
            found.append(link)
        elif anchor and anchor not in anchors(place.relative_to(ROOT).as_posix()):
            found.append(link)
    return found


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a verb, those of its actions among them."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(options, action.choices.values()))
    return found


# ---------------------------------------------------------------- the README


def test_the_readme_is_read_in_five_minutes():
    page = text("README.md")
    assert len(page.splitlines()) <= README_LINES
    assert "make run" in page and "make test" in page


def test_the_readme_leads_to_every_page():
    links = re.findall(r"\]\(([^)#\s]+)", prose("README.md"))
    assert {name for name in NAMES if name.startswith("docs/")} <= set(links)
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= set(links)


# ---------------------------------------------------------------- links and commands


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    assert broken(name) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text(
        "# Two words\n[x](b.md) [y](#two-words) [z](#three) [w](https://x.org) `[v](c.md)`\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert broken("a.md") == ["b.md", "#three"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_code_blocks_parse(name, monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda self, status=0, message=None: pytest.fail(message))
    for line in blocks(name):
        if found := COMMAND.search(line):
            _parser().parse_args(shlex.split(found[1], comments=True))


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_name_verbs_and_options_that_exist(name):
    verbs = next(a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", text(name))):
        found = COMMAND.search(" ".join(code.split()))
        if found and found[1] not in ("VERB --help",):
            verb, *rest = shlex.split(found[1])
            assert {word for word in rest if word.startswith("--")} <= options(verbs[verb]), code


def test_there_are_commands_to_check():
    assert sum(COMMAND.search(line) is not None for name in NAMES for line in blocks(name)) >= 20


# ---------------------------------------------------------------- what the pages say


def measured() -> dict[str, dict[str, str]]:
    """Model -> column -> what a table has to say there, of the stored evaluation."""
    found = {}
    for row in json.loads(text("assets/canvas/scoreboard.json"))["rows"]:
        scores = {name: score["value"] for name, score in row["scores"].items()}
        r = {f"R {name}": "–" if value is None else f"{value:.2f}" for name, value in scores.items()}
        if scores["experts"] is not None:
            r["R experts"] += " [{low:.2f}, {high:.2f}]".format(**row["scores"]["experts"])
        for kind in ("margin", "readout_margin"):
            known = row[kind]["value"] is not None
            r[kind.replace("_", " ")] = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row[kind]) if known else "–"
        r["R overshoot"] = "–" if row["overshoot"] is None else f"{row['overshoot']:.2f}"
        shares = {
            "forget: unlearned": row["unlearned"],
            "restored": row["restored"],
            "retain: unlearned": row["retain_unlearned"],
            "edited too": row["retain_restored"],
        }
        found[row["id"]] = r | {name: f"{share:.1%}" for name, share in shares.items()}
        found[row["id"]] |= {"model": row["id"], "at alpha": f"{row['alpha']:g}", "readout": f"{row['readout']:.2f}"}
        found[row["id"]] |= {"probe": f"{max(row['probe'].values()):.2f}", "verdict": row["verdict"]}
    return found


def table(name: str) -> list[dict[str, str]]:
    """The rows of a page's table of models."""
    lines = [line.strip("|").split("|") for line in text(name).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    start = next(i for i, line in enumerate(cells) if line[:2] == ["model", "forget: unlearned"])
    end = next((i for i, line in enumerate(cells) if i > start and len(line) != len(cells[start])), len(cells))
    return [dict(zip(cells[start], line, strict=True)) for line in cells[start + 2 : end]]


@pytest.mark.parametrize("name", ["README.md", "docs/evaluation.md"])
def test_tables_hold_what_was_measured(name):
    told = measured()
    rows = table(name)
    assert rows and all(row.items() <= told[row["model"]].items() for row in rows)


def test_the_whole_table_is_whole():
    assert [row["model"] for row in table("docs/evaluation.md")] == list(measured())


def test_the_page_on_digits_holds_what_is_stored():
    found, page = json.loads(text("assets/digits/results.json")), text("docs/digits.md")
    assert spread.table(found) in page and spread.told(found) in page
    canvas = json.loads(text("assets/canvas/scoreboard.json"))["rows"]
    assert spread.compared(found, "canvas", canvas) in page
    shares = json.loads(text("assets/digits/figures/weak.json"))["on_experts_by_weak_weight"]
    assert [f"{100 * share:.0f} %" in page for share in shares.values()] == [True, True]


def rows_after(name: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `head`, below its two lines of head."""
    lines = text(name).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 2 : end]]


def test_the_clamp_page_s_rows_hold_what_was_measured():
    found = json.loads(text("assets/almanac/results.json"))["rows"]
    groups: dict[str, list[dict]] = {}
    for row in found:
        control = row["kind"] == "control"
        groups.setdefault(f"{row['of']}, {row['features']} latents, mean of 3" if control else row["id"], []).append(
            row
        )
    told = rows_after("docs/clamp.md", "| model | forget | retain | alignment")
    assert {cells[0] for cells in told} == set(groups)
    for name, forget, retain, alignment, collapse in told:
        rows = groups[name]
        for cell, key in ((forget, "forget"), (retain, "retain")):
            assert cell == f"{sum(row[key]['value'] for row in rows) / len(rows):.1%}", name
        value = sum(row["alignment"]["value"] for row in rows) / len(rows)
        assert alignment == "–" if name == "untouched" else alignment.split()[0] == f"{value:.3f}", name
        assert collapse == f"{sum(row['collapse'] for row in rows) / len(rows):.2f}", name


def test_the_clamp_page_s_fields_of_gemma_hold_what_was_measured():
    groups: dict[str, list[dict]] = {}
    for row in json.loads(text("assets/gemma-3-270m/results.json"))["rows"]:
        name = f"{row['of']}, {row['features']} latents, mean of 3" if row["kind"] == "control" else row["id"]
        groups.setdefault(name, []).append(row)
    head = "| model | animal | artifact"
    fields = next(line for line in text("docs/clamp.md").splitlines() if line.startswith(head)).split(" | ")[1:-3]
    told = {cells[0]: cells[1:] for cells in rows_after("docs/clamp.md", head)}
    assert told.keys() == groups.keys()
    for name, rows in groups.items():
        values = [sum(row["fields"][field]["value"] for row in rows) / len(rows) for field in fields]
        values.append(sum(row["retain"]["value"] for row in rows) / len(rows))
        assert told[name][:-2] == [f"{value:.1%}" for value in values], name
        alignment = sum(row["alignment"]["value"] for row in rows) / len(rows)
        assert told[name][-2] == ("–" if name == "untouched" else f"{alignment:.3f}"), name
        assert told[name][-1] == f"{sum(row['collapse'] for row in rows) / len(rows):.2f}", name


@pytest.mark.parametrize(
    "pack, head", [("almanac", "| way | untouched | prime"), ("gemma-3-270m", "| way back | untouched | prime")]
)
def test_the_clamp_page_s_ways_back_hold_what_was_measured(pack, head):
    found = json.loads(text(f"assets/{pack}/results.json"))["ways"]
    ids = [
        cell.strip()
        for cell in next(line for line in text("docs/clamp.md").splitlines() if line.startswith(head)).split("|")
    ][2:-1]
    told = {cells[0]: cells[1:] for cells in rows_after("docs/clamp.md", head)}
    for row in found["rows"]:
        values = [row["figures"].get(id, {}).get("value") for id in ids]
        assert told.pop(row["title"]) == ["–" if value is None else f"{100 * value:.1f}" for value in values]
    for title, key in (("verdict", "verdict"), ("verdict, the edit off", "without_edit")):
        assert told.pop(title) == [found["verdicts"].get(id, {}).get(key) or "–" for id in ids]
    assert not told


def test_the_packs_page_s_manifest_opens(tmp_path):
    body, clamp = [body for kind, body in FENCED.findall(text("docs/packs.md")) if kind == "json"]
    (tmp_path / "pack.json").write_text(body)
    assert manifest.read(tmp_path).entry("scrub-apple").target_class == 0
    (tmp_path / "pack.json").write_text(clamp)
    assert clamp_manifest.read(tmp_path).opening_sae() == "layer-9"


def test_the_packs_page_has_the_published_figures():
    [line] = [line for line in text("docs/packs.md").splitlines() if line.startswith("| 97.99 %")]
    told = [f"{entry.published_retain_accuracy:.2%}" for entry in manifest.read(ROOT / "assets" / "cifar10").unlearned]
    assert [cell.strip().replace(" ", "") for cell in line.strip("|").split("|")] == told


def test_the_design_page_s_notebook_runs(tmp_path, monkeypatch):
    [body] = [body for kind, body in FENCED.findall(text("docs/design.md")) if kind == "python"]
    shutil.copy(ROOT / "assets" / "canvas" / "examples" / "boat" / "0_plain.jpg", tmp_path / "boat.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(body, names)
    assert names["logits"].argmax(-1).flatten().tolist()[1:] == [names["boat"]] * 2


def test_the_tree_of_the_design_page_is_the_house_s():
    told = set(re.findall(r"^ {6}(\w+)/", text("docs/design.md"), re.MULTILINE))
    assert told == {path.parent.name for path in Path(ROOT / "sod_core").glob("*/__init__.py")}


@pytest.mark.parametrize("head", ["| bottleneck | accuracy", "| encoder | class |"])
def test_the_mask_page_s_tables_are_those_of_the_pack_s_records(head, tmp_path):
    shutil.copytree(ROOT / "assets" / "canvas-mask" / "figures", tmp_path / "figures")
    mask_card.write(tmp_path)
    for file in ("README.md", "pack.json"):
        assert (tmp_path / file).read_text() == text(f"assets/canvas-mask/{file}")
    told = rows_after("docs/mask.md", head)
    assert len(told) >= 9 and told == rows_after("assets/canvas-mask/README.md", head)


def test_the_mask_page_s_verdicts_hold_what_was_measured():
    results = json.loads(text("assets/canvas-mask/results.json"))
    told = rows_after("docs/mask.md", "| bottleneck | class | share of its pairs")
    for about in results["bottlenecks"]:
        for case in about["cases"]:
            states = ("logit", "masked", "erased", "removed", "retrained")
            said = [case["states"][id]["verdict"]["verdict"] if id in case["states"] else "–" for id in states]
            row = [about["id"], case["forget"][0], f"{100 * case['share']['mean']:.0f} %", *said]
            assert told.pop(0) == row
    assert not told


@pytest.mark.parametrize("bottleneck", ["retrain-boat-retain", "retrain-boat-all", "original-all"])
def test_the_mask_page_s_ways_back_hold_what_was_measured(bottleneck):
    results = json.loads(text("assets/canvas-mask/results.json"))
    about = next(one for one in results["bottlenecks"] if one["id"] == bottleneck)
    states = next(case for case in about["cases"] if case["forget"] == ["boat"])["states"]
    told = {cells[0]: cells[1:] for cells in rows_after("docs/mask.md", f"| {bottleneck}, boat |")}
    for key, name in (("retain", "others right"), ("confidence", "confidence"), ("agreement", "agreement")):
        assert told.pop(name) == [f"{100 * state[key]['mean']:.1f}" for state in states.values()]
    assert told.pop("entropy") == [f"{state['entropy']['mean']:.2f}" for state in states.values()]
    for way in results["ways"]:
        values = [state["ways"][way]["value"] for state in states.values()]
        assert told.pop(way) == ["–" if value is None else f"{100 * value['mean']:.1f}" for value in values]
    assert not told


def test_the_mask_page_s_rivals_hold_what_was_measured():
    results = json.loads(text("assets/canvas-mask/results.json"))
    cases = {
        about["id"]: case for about in results["bottlenecks"] for case in about["cases"] if case["forget"] == ["boat"]
    }
    told = {cells[0]: cells[1:] for cells in rows_after("docs/mask.md", "| rival |")}
    for name in cases["original-all"]["rivals"]:
        cells = []
        for id in ("retrain-boat-all", "original-all"):
            found = cases[id]["rivals"][name]
            cells += ["–" if found[side] is None else f"{found[side]:.1%}" for side in ("forget", "retain")]
            cells.append(f"{found['multiply_adds'] / 1e6:.1f}")
        assert told.pop(name) == cells
    assert not told
