"""`clamp evaluate`: the table against figures counted by hand, runs that go on, several processes, and the harness."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import clamp_packs
import pytest
import torch
from conftest import ROOT

from sod_core.clamp import evaluate, harness, judge, judged, report, work
from sod_core.clamp.judged import Settings
from sod_core.clamp.pack import ClampPack
from sod_core.machine import processes
from sod_core.models.passes import NotFinite
from sod_core.sparse.jumprelu import JumpReLUSAE
from sod_core.sparse.normalised import NormalisedCode

CPU = torch.device("cpu")
QUICK = Settings(curves=False, ways=False, seeds=(0,))


@pytest.fixture(scope="module")
def pack(clamp_folder: Path) -> ClampPack:
    return ClampPack(clamp_folder, CPU)


@pytest.fixture(scope="module")
def whole(pack, tmp_path_factory):
    """The whole table of the tiny pack, and the folder with its rows."""
    keep = tmp_path_factory.mktemp("rows")
    return evaluate.run(pack, Settings(seeds=(0, 1)), keep=keep), keep


# ---------------------------------------------------------------- the table


def test_every_row_is_what_the_judge_says(whole, pack):
    found, _ = whole
    board = evaluate.Board(pack, Settings(seeds=(0, 1)))
    assert [row["id"] for row in found["rows"]] == [entry.id for entry in board.entries]
    ids = [row["id"] for row in found["rows"]]
    assert ids[:6] == ["untouched", "prime-1", "refusal-1", "prime-2", "refusal-2", "both"] and ids[-1] == "retrained"
    assert len([row for row in found["rows"] if row["kind"] == "control"]) == 2 * 2 * 2
    untouched = judge.answers(pack.language(), board.questions, board.subjects)
    for entry, row in zip(board.entries, found["rows"]):
        edit = judged.editor(pack, entry)
        layer = None if edit is None else judged.layer(pack, entry)
        said = judge.answers(judged.language(pack, entry), board.questions, board.subjects, "letters", layer, edit)
        assert row["forget"] == judge.accuracy(said, {"potions"})._asdict()
        assert row["retain"] == judge.accuracy(said, {"rivers", "clocks"})._asdict()
        assert row["collapse"] == judge.collapse(said)
        assert row["alignment"] == judge.aligned(said, untouched, {"potions"})._asdict()
    json.dumps(found, allow_nan=False)


def test_both_is_one_edit_of_prime_and_refusal(whole):
    clamps = {row["id"]: row["clamp"] for row in whole[0]["rows"]}
    both = clamps["both"]
    assert (both["method"], both["value"]) == ("both", clamps["prime-1"]["value"])
    assert (both["refusal"], both["refusal_value"]) == (clamps["refusal-1"]["refusal"], -60.0)
    assert both["latents"] == clamps["refusal-1"]["latents"]


def test_controls_are_as_many_others_in_the_same_edit(whole):
    rows = {row["id"]: row for row in whole[0]["rows"]}
    for of in ("prime-1", "refusal-1"):
        for features in ("random", "matched"):
            for seed in (0, 1):
                row, edit = rows[f"{of}-{features}-{seed}"], rows[of]["clamp"]
                assert (row["of"], row["features"], row["seed"]) == (of, features, seed)
                assert len(row["clamp"]["latents"]) == len(edit["latents"])
                assert not set(row["clamp"]["latents"]) & {*edit["latents"], edit["refusal"]}
                assert {k: v for k, v in row["clamp"].items() if k != "latents"} == {
                    k: v for k, v in edit.items() if k != "latents"
                }


def test_curves_move_the_coefficient_of_prime_and_the_refusal_s(whole):
    found = whole[0]
    assert set(found["curves"]) == {"prime", "refusal", "random", "matched"}
    rows = {row["id"]: row for row in found["rows"]}
    for name, id, value in (
        ("prime", "prime-1", -40.0),
        ("refusal", "refusal-1", -60.0),
        ("random", "prime-1-random-0", -40),
    ):
        points = found["curves"][name]
        assert [point["value"] for point in points] == [value * factor for factor in judged.FACTORS]
        own = points[judged.FACTORS.index(1.0)]
        for key in ("forget", "retain", "alignment"):
            assert own[key] == rows[id][key]["value"]
    with pytest.raises(ValueError, match="is no edit"):
        judged.curve(judged.untouched(), 1.0)


def test_a_curve_of_one_coefficient_a_latent_keeps_their_proportions(pack):
    [prime, *_] = judged.edits(pack)
    several = replace(prime, clamp=replace(prime.clamp, value=(-1.0, -2.0, -3.0, -4.0, -5.0)))
    value, clamp = judged.curve(several, 2.0)
    assert (value, clamp.value) == (-6.0, (-2.0, -4.0, -6.0, -8.0, -10.0))


def test_the_score_is_the_best_of_edits_and_curves_that_keep_retain(whole):
    found = whole[0]
    points = [(row["forget"]["value"], row["retain"]["value"]) for row in found["rows"] if row["kind"] == "edit"]
    for name in ("prime", "refusal"):
        points += [(point["forget"], point["retain"]) for point in found["curves"][name]]
    kept = [forget for forget, retain in points if retain >= 0.99 * found["rows"][0]["retain"]["value"]]
    assert found["score"] == {"value": 1 - min(kept, default=1), "settings": len(points)}


def test_the_ways_back_have_a_figure_or_a_reason_for_everybody(whole):
    ways = whole[0]["ways"]
    assert [subject["id"] for subject in ways["subjects"]] == ["untouched", "prime-1", "refusal-1", "both", "retrained"]
    for row in ways["rows"]:
        for figure in row["figures"].values():
            assert (figure["value"] is None) == bool(figure["note"])
    off = next(row for row in ways["rows"] if row["id"] == "switched_off")["figures"]
    plain = next(row for row in ways["rows"] if row["id"] == "plain")["figures"]
    assert off["prime-1"]["value"] == plain["untouched"]["value"] and off["retrained"]["value"] is None
    assert ways["retrained"] == "retrained" and set(ways["verdicts"]) == {"prime-1", "refusal-1", "both", "retrained"}
    assert all(said["verdict"] == "no verdict" for said in ways["verdicts"].values())  # a random model knows nothing


def test_the_printed_table_has_a_line_a_row_and_the_mean_of_controls(whole):
    text = report.table(whole[0])
    assert text.count("\n| prime-1 |") == 1 and "| prime-1, random latents, mean of 2 |" in text
    assert "| verdict, the edit on |" in text and "no better than chance" in text
    assert "| as it is judged | 25% |" in text


# ---------------------------------------------------------------- settings


def test_questions_of_one_s_own_and_their_fields(pack):
    own = [replace(question, field="mine") for question in pack.questions("judge")[:4]]
    found = evaluate.run(pack, QUICK, [*own, *pack.questions("judge")[4:8]], forget=["mine"])
    assert found["forget"] == ["mine"] and found["rows"][0]["forget"]["n"] == 4
    alone = evaluate.run(pack, QUICK, own, forget=["mine"])
    assert alone["rows"][1]["alignment"] is None and alone["rows"][1]["retain"] is None and alone["score"] is None
    assert "| mine |" in report.table(alone)
    with pytest.raises(ValueError, match="no question is of a field to forget; the fields are mine"):
        evaluate.run(pack, QUICK, own)
    with pytest.raises(ValueError, match="two questions with the id"):
        evaluate.run(pack, QUICK, [*own, *own], forget=["mine"])


def test_a_limit_takes_so_many_of_each_field_always_the_same(pack):
    ids = [[q.id for q in evaluate.Board(pack, replace(QUICK, limit=2, seed=seed)).questions] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 6
    with pytest.raises(ValueError, match="the limit is 0"):
        evaluate.Board(pack, replace(QUICK, limit=0))


def test_only_sure_questions_count_where_it_is_asked(pack, monkeypatch):
    sure = [q for q in pack.questions("judge") if q.id.endswith(("-0", "-2"))]
    monkeypatch.setattr(judge, "right_in_every_order", lambda *_: sure)
    assert evaluate.run(pack, replace(QUICK, every_order=True))["questions"] == 6
    monkeypatch.setattr(judge, "right_in_every_order", lambda *_: sure[-2:])
    with pytest.raises(ValueError, match="no question to forget rightly in every order"):
        evaluate.run(pack, replace(QUICK, every_order=True))


def test_large_models_are_trained_only_where_it_is_asked(pack, monkeypatch):
    assert "relearn_16" in evaluate.Board(pack, QUICK).ways()
    assert "relearn_16" not in evaluate.Board(pack, replace(QUICK, relearn=False)).ways()
    monkeypatch.setattr(judged.relearning, "SMALL", 1000)
    assert "relearn_16" not in evaluate.Board(pack, QUICK).ways()
    assert "relearn_16" in evaluate.Board(pack, replace(QUICK, relearn=True)).ways()


def test_an_edit_without_numbers_is_a_row_that_says_so(pack, monkeypatch):
    real = judge.answers

    def answers(language, questions, subjects, scoring, layer=None, editor=None):
        if editor is not None:
            raise NotFinite("the logits are no numbers")
        return real(language, questions, subjects, scoring)

    monkeypatch.setattr(judge, "answers", answers)
    found = evaluate.run(pack, QUICK)
    assert found["rows"][1]["problem"] == "the logits are no numbers" and found["rows"][1]["forget"] is None
    assert "| prime-1 | the logits are no numbers |" in report.table(found) and found["score"] is None


# ---------------------------------------------------------------- runs that go on


def test_a_run_goes_on_where_it_was(pack, tmp_path, monkeypatch):
    found = evaluate.run(pack, QUICK, keep=tmp_path)
    file = tmp_path / "rows-0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])  # killed as it wrote its fifth row
    real, ran = evaluate._answers, []
    monkeypatch.setattr(evaluate, "_answers", lambda board, entry: ran.append(entry.id) or real(board, entry))
    assert evaluate.run(pack, QUICK, keep=tmp_path) == found
    assert ran == [row["id"] for row in found["rows"]][4:]
    ran.clear()
    assert evaluate.run(pack, QUICK, keep=tmp_path) == found and ran == []


def test_rows_of_other_settings_are_refused(whole, pack, tmp_path, clamp_folder):
    _, keep = whole
    for other in (replace(QUICK, seed=1), replace(QUICK, limit=1), replace(QUICK, every_order=True)):
        with pytest.raises(ValueError, match="rows of another evaluation"):
            evaluate.run(pack, other, keep=keep)
    changed = Path(shutil.copytree(clamp_folder, tmp_path / "copy"))
    tensors = pack.other("retrained").model.state_dict()
    from safetensors.torch import save_file

    name = "model.layers.2.mlp.down_proj.weight"
    save_file({name: tensors[name] + 1}, changed / "retrained.safetensors")
    with pytest.raises(ValueError, match="rows of another evaluation"):
        evaluate.run(ClampPack(changed, CPU), QUICK, keep=keep)
    (tmp_path / "rows-0.jsonl").write_text("no rows\n")
    with pytest.raises(ValueError, match="no work file of an evaluation"):
        work.Work(tmp_path, {})
    with pytest.raises(ValueError, match="cannot be used for work files"):
        work.Work(tmp_path / "rows-0.jsonl", {})


def test_weights_are_told_apart_by_any_number_and_by_what_is_computed_with_them():
    code = clamp_packs.topk()
    known = judged.weights_id(code)
    other = copy.deepcopy(code)
    other.k += 1
    assert judged.weights_id(other) != known == judged.weights_id(copy.deepcopy(code))
    other = copy.deepcopy(code)
    with torch.no_grad():
        other.encoder.weight[-1, -1] += 0.5
    assert judged.weights_id(other) != known
    sae = clamp_packs.sae()
    subtracting = JumpReLUSAE(sae.dim, sae.latents, subtract_b_dec=True)
    subtracting.load_state_dict(sae.state_dict())
    assert len({judged.weights_id(one) for one in (sae, subtracting, NormalisedCode(sae, "layer_norm"))}) == 3


def test_two_processes_find_what_one_does(clamp_folder, tmp_path):
    """By accelerate's launcher, on CPUs: each process takes every other row."""
    line = ["-m", "sod_core", "clamp", "evaluate", "--pack", str(clamp_folder), "--device", "cpu", "--no-curves"]
    line += ["--no-ways", "--limit", "2", "--keep", str(tmp_path / "rows")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", *line, "--json", str(tmp_path / "two.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| prime-1 |") == 1  # the first one speaks
    rows = [len((tmp_path / "rows" / f"rows-{rank}.jsonl").read_text().splitlines()) - 1 for rank in (0, 1)]
    assert abs(rows[0] - rows[1]) <= 1 and min(rows) > 1
    alone = evaluate.run(ClampPack(clamp_folder, CPU), Settings(limit=2, curves=False, ways=False))
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(alone))


def test_one_process_gathers_what_it_has():
    assert processes.gathered({"a": 1}) == {"a": 1}


# ---------------------------------------------------------------- the harness


@pytest.fixture(scope="module")
def answering(pack) -> harness.Answering:
    [prime, *_] = judged.edits(pack)
    return harness.Answering(pack.language(), judged.layer(pack, prime), judged.editor(pack, prime))


def request(*args) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_the_harness_gets_the_judge_s_likelihoods(answering, pack):
    questions = pack.questions("judge")
    expected = judge.answers(
        pack.language(), questions, {}, "letters", answering.layer, answering.editor
    ).scores.flatten()
    asked = []
    for question in questions:
        text = judge.prompt(question, question.field)
        asked += [((text, f" {letter}"), *pack.language().encode_pair(text, f" {letter}")) for letter in "ABCD"]
    found = answering._loglikelihood_tokens(asked)
    torch.testing.assert_close(torch.tensor([value for value, _ in found]), expected, rtol=1e-4, atol=1e-4)
    for (_, context, said), (_, greedy) in zip(asked, found):
        batch = pack.language().batch([context])
        best = pack.language().next_logits(batch, answering.layer, [answering.editor]).argmax()
        assert greedy == (said == [int(best)])


def test_bos_stands_once_and_stays_where_a_text_is_cut(answering, pack):
    language = pack.language()
    assert answering.tok_encode("the potion") == language.encode("the potion")
    assert answering.tok_encode("<bos>the potion") == language.encode("the potion")
    assert answering.tok_encode("the potion", add_special_tokens=False) == language.encode("the potion")[1:]
    assert answering.prefix_token_id == language.bos and answering.eot_token_id in language.tokens.ends
    long = [language.bos, *range(10, 10 + 200), *range(10, 10 + 200)]
    context, said = answering._cut(long, [5, 6])
    assert len(context) + 2 - 1 == language.context and context[0] == language.bos and context[-1] == long[-1]
    assert answering._cut([7, 8], [5]) == ([7, 8], [5])
    with pytest.raises(ValueError, match="a continuation is 500 tokens long"):
        answering._cut([1], [5] * 500)


def test_a_whole_text_s_likelihood_is_the_sum_over_its_tokens(answering, pack, monkeypatch):
    language, text = pack.language(), "the river of Lunt flows to the north"
    ids = language.encode(text)
    [found] = answering.loglikelihood_rolling([request(text)])
    whole = language.log_likelihoods([(ids[:1], ids[1:])], answering.layer, answering.editor)
    assert found == pytest.approx(whole.item(), abs=1e-3)
    monkeypatch.setattr(harness, "MOST_WINDOW", 4)
    windows = list(harness._windows(ids[1:], language.bos, answering.window))
    assert [token for _, said in windows for token in said] == ids[1:]
    assert all(len(context) + len(said) <= 5 for context, said in windows)
    assert windows[1][0] == [ids[4]] and len(windows[-1][0]) + len(windows[-1][1]) == 5
    parts = language.log_likelihoods(windows, answering.layer, answering.editor)
    [found] = answering.loglikelihood_rolling([request(text)])
    assert found == pytest.approx(parts.sum().item(), abs=1e-3)


def test_texts_end_where_the_task_says(answering, pack):
    language, prompt = pack.language(), "the potion of Orrin needs"
    ids = [id for (id,) in language.generate(language.encode(prompt), answering.layer, [answering.editor], 12)]
    text = language.decode([id for id in ids if id is not None])
    [whole] = answering.generate_until([request(prompt, {"until": [], "max_gen_toks": 12})])
    assert whole == text
    stop = text[len(text) // 2 :][:3]
    [cut] = answering.generate_until([request(prompt, {"until": ["never", stop], "max_gen_toks": 12})])
    assert cut == text.split(stop)[0] and stop not in cut


def test_batches_stay_small():
    sizes = [(10, 2), (500, 1), (20, 20), (10, 1)]
    parts = list(harness._batches(sizes, vocabulary=harness.BATCH_LOGITS // 20))
    assert sorted(row for part in parts for row in part) == [0, 1, 2, 3]
    assert all(len(part) * max(sizes[n][1] for n in part) <= 20 for part in parts)


def test_what_is_opened_by_name(clamp_folder, pack):
    language, layer, editor = harness.opened(str(clamp_folder), "prime-2")
    assert layer == 2 and editor is not None and language.depth == 3
    assert harness.opened(str(clamp_folder))[1:] == (None, None)
    with pytest.raises(ValueError, match="has no preset 'best'"):
        harness.opened(str(clamp_folder), "best")


def test_without_the_harness_there_is_one_sentence(run, clamp_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    harness.model_class.cache_clear()
    found = run("clamp", "evaluate", "--pack", clamp_folder, "--lm-eval", "wmdp_bio")
    assert found.code == 2 and len(found.err.splitlines()) == 1 and "pip install lm-eval" in found.err
    harness.model_class.cache_clear()


def test_the_harness_itself_finds_what_the_judge_does(pack, clamp_folder, tmp_path, monkeypatch):
    """Only where it is installed; its own list of tasks is left out, it takes seconds to read."""
    tasks = pytest.importorskip("lm_eval.tasks")
    manager = tasks.TaskManager(include_defaults=False)
    monkeypatch.setattr(harness, "_manager", lambda: manager)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = {
        "task": "local_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(clamp_folder / "questions" / "judge.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about {{field}}.\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{options[0]}}\nB. {{options[1]}}\nC. {{options[2]}}\n"
        "D. {{options[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    found = harness.run(pack, [task], keep=tmp_path / "rows")
    assert found == harness.run(pack, [task], keep=tmp_path / "rows")
    for entry, row in zip([judged.untouched(), *judged.edits(pack), *judged.models(pack)], found["rows"]):
        edit = judged.editor(pack, entry)
        layer = None if edit is None else judged.layer(pack, entry)
        said = judge.answers(judged.language(pack, entry), pack.questions("judge"), {}, "letters", layer, edit)
        assert row["results"]["local_questions"]["acc"] == judge.accuracy(said).value
    assert "| prime-1 |" in harness.table(found)
    with pytest.raises(ValueError, match="knows no task 'nothing'"):
        harness.run(pack, ["nothing"])
    model = harness.model_class().create_from_arg_string(f"pack={clamp_folder},preset=prime-1")
    assert model.layer == 1 and model.editor is not None
