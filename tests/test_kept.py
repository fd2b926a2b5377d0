"""The cache that all threads share, and the memory that unlearned models may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, UNLEARNED, random_images, random_vit

from sod_core.models import vit as vits
from sod_core.packs.errors import PackError
from sod_core.packs.kept import Kept
from sod_core.restore import pack as packs
from sod_core.restore.pack import Pack

SOON = 10
"""Seconds that nothing here takes unless it is stuck."""


class Maker:
    """Makes things, and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, kept: Kept, key: str, size: float = 1) -> object:
        def make() -> list[str]:
            self.made.append(key)
            return [key]

        return kept.get(key, make, lambda thing: size)


def test_twenty_threads_make_a_thing_once():
    kept, together, made = Kept(), threading.Barrier(20), []

    def make() -> object:
        made.append(threading.get_ident())
        threading.Event().wait(0.05)  # long enough for all the others to ask
        return object()

    def ask(_: int) -> object:
        together.wait(SOON)
        return kept.get("weights", make)

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, range(20)))
    assert len(made) == 1 and all(thing is found[0] for thing in found)


def test_a_slow_thing_does_not_hold_up_another():
    kept, started, go_on = Kept(), threading.Event(), threading.Event()

    def slow() -> str:
        started.set()
        assert go_on.wait(SOON)
        return "slow"

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(kept.get, "slow", slow)
        try:
            assert started.wait(SOON)
            assert pool.submit(kept.get, "quick", lambda: "quick").result(SOON) == "quick"
            assert "quick" in kept and "slow" not in kept and not waiting.done()
        finally:
            go_on.set()
        assert waiting.result(SOON) == "slow" and "slow" in kept


def test_a_thing_may_be_made_of_another():
    kept = Kept()
    assert kept.get("sum", lambda: kept.get("part", lambda: 2) + 1) == 3
    assert "part" in kept and "sum" in kept


def test_nothing_is_a_thing_too():
    kept = Kept()
    assert kept.get("none", lambda: None) is None
    assert kept.get("none", lambda: "made again") is None


def test_errors_are_not_remembered():
    kept = Kept()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.get("share", lambda: 1 / 0)
        assert "share" not in kept and kept.size() == 0
    assert kept.get("share", lambda: 0.5) == 0.5


def test_an_error_is_for_the_one_who_asked_and_the_next_tries_again():
    """Ten threads ask at once, and the first three attempts fail."""
    kept, together, attempts = Kept(), threading.Barrier(10), []

    def make() -> int:
        attempts.append(None)
        if len(attempts) <= 3:
            raise OSError("not yet")
        return len(attempts)

    def ask(_: int) -> int | None:
        together.wait(SOON)
        try:
            return kept.get("file", make)
        except OSError:
            return None

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, range(10)))
    assert found.count(None) == 3 and found.count(4) == 7 and len(attempts) == 4


def test_the_least_recently_used_goes_when_the_budget_is_passed():
    kept, ask = Kept(3), Maker()
    for key in ("a", "b", "c"):
        ask(kept, key)
    assert kept.size() == 3
    ask(kept, "a")  # now b was asked for longest ago
    ask(kept, "d")
    assert [key in kept for key in "abcd"] == [True, False, True, True] and kept.size() == 3
    ask(kept, "b")
    assert ask.made == ["a", "b", "c", "d", "b"] and "c" not in kept


def test_as_many_go_as_it_takes():
    kept, ask = Kept(10), Maker()
    for key in ("a", "b", "c", "d"):
        ask(kept, key, 2.5)
    ask(kept, "large", 7)
    assert [key in kept for key in ("a", "b", "c", "d", "large")] == [False, False, False, True, True]
    assert kept.size() == 9.5


def test_the_newest_stays_however_large():
    kept, ask = Kept(3), Maker()
    ask(kept, "a")
    assert ask(kept, "huge", 100) is ask(kept, "huge", 100)
    assert "a" not in kept and kept.size() == 100
    ask(kept, "b")
    assert "huge" not in kept and kept.size() == 1


def test_without_a_budget_everything_stays():
    kept, ask = Kept(), Maker()
    for number in range(100):
        ask(kept, str(number), 1e12)
    assert all(str(number) in kept for number in range(100)) and kept.size() == 1e14


# ---------------------------------------------------------------- SOD_MEMORY_GB

FIRST, SECOND = UNLEARNED


def gigabytes(models: float) -> float:
    """Of so many of the tiny pack's models."""
    return models * sum(weight.nbytes for weight in random_vit(0).parameters()) / 1e9


@pytest.fixture
def budget(monkeypatch) -> Iterator:
    """Sets SOD_MEMORY_GB, with no model in memory."""

    def set_to(value: object) -> None:
        monkeypatch.setenv("SOD_MEMORY_GB", str(value))
        packs._unlearned_models.cache_clear()

    yield set_to
    packs._unlearned_models.cache_clear()


def test_models_within_the_budget_stay(budget, pack_folder):
    budget(gigabytes(2.1))
    pack = Pack(pack_folder)
    first, second = pack.unlearned(FIRST), pack.unlearned(SECOND)
    assert pack.unlearned(FIRST) is first and pack.unlearned(SECOND) is second


def test_a_dropped_model_comes_back_the_same(budget, pack_folder):
    budget(gigabytes(1.5))
    pack, images = Pack(pack_folder), random_images(0, 2)
    first = pack.unlearned(FIRST)
    before = vits.logits(first, images)
    second = pack.unlearned(SECOND)
    assert pack.unlearned(SECOND) is second
    again = pack.unlearned(FIRST)
    assert again is not first and pack.unlearned(SECOND) is not second
    assert torch.equal(vits.logits(again, images), before)
    assert torch.equal(before, vits.logits(random_vit(1), images))


def test_the_original_is_never_dropped(budget, pack_folder):
    budget(gigabytes(0.5))
    pack = Pack(pack_folder)
    original = pack.original()
    for id in UNLEARNED:
        assert pack.unlearned(id) is pack.unlearned(id)  # a model larger than the budget, too, is there to work with
    assert pack.original() is original


def test_the_budget_is_for_all_packs_together(budget, pack_folder, spoilt_pack):
    budget(gigabytes(1.5))
    here, there = Pack(pack_folder), Pack(spoilt_pack)
    first = here.unlearned(FIRST)
    other = there.unlearned(FIRST)
    assert other is not first and there.unlearned(FIRST) is other
    assert here.unlearned(FIRST) is not first


def test_a_visitors_own_model_counts_too(budget, pack_folder, tmp_path):
    budget(gigabytes(1.5))
    own = tmp_path / "own.pth"
    torch.save(random_vit(9).state_dict(), own)
    pack = Pack(pack_folder)
    first = pack.unlearned(FIRST)
    assert pack.model_at(own) is pack.model_at(own)
    assert pack.unlearned(FIRST) is not first


def test_a_session_goes_on_with_a_model_that_was_dropped(budget, pack_folder):
    budget(gigabytes(0.5))
    pack = Pack(pack_folder)
    session = pack.session(FIRST)
    session.set_image(random_images(0, 1))
    before = session.restore([1.0], 1, "inject", [3, 17], "all")
    pack.unlearned(SECOND)
    assert torch.equal(session.restore([1.0], 1, "inject", [3, 17], "all"), before)
    assert before.shape == (1, 1, len(CLASSES))


@pytest.mark.parametrize("value", ["much", "", "0", "-1", "nan", "4 GB"])
def test_a_budget_that_is_no_number_is_refused(budget, pack_folder: Path, value):
    budget(value)
    for _ in range(2):  # not remembered either
        with pytest.raises(PackError, match="above 0") as caught:
            Pack(pack_folder).unlearned(FIRST)
        message = str(caught.value)
        assert f"SOD_MEMORY_GB={value!r}" in message and "\n" not in message
    budget(1)
    assert Pack(pack_folder).unlearned(FIRST) is not None
