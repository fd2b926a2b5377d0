"""The clamp against the authors' hooks written again densely, its identity bit for bit, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sod_core.clamp.edit import FEW, FIDELITIES, METHODS, Clamp, apply, left_alone
from sod_core.clamp.steering import read_steering_table
from sod_core.packs.errors import PackError
from sod_core.sparse.gated import GatedSAE
from sod_core.sparse.jumprelu import JumpReLUSAE
from sod_core.sparse.normalised import NormalisedCode
from sod_core.sparse.topk import TopKSAE

D, F, ROWS, TOKENS = 16, 48, 3, 40
H, R = (31, 4, 17, 40), 9
BASE = Clamp(H, value=-30.0, threshold=0.6, refusal=R, refusal_value=-50.0)
BOS, EOS, PAD = 2, 1, 0


def filled(code: Any, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in code.requires_grad_(False).named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        if name == "threshold":
            parameter.abs_()
        elif name == "b_enc" or name == "b_gate":
            parameter.sub_(2.0)  # so that a latent fires on some tokens only
    return code


CODES = {
    "JumpReLU": lambda: filled(JumpReLUSAE(D, F)),
    "JumpReLU less b_dec": lambda: filled(JumpReLUSAE(D, F, subtract_b_dec=True)),
    "gated": lambda: filled(GatedSAE(D, F)),
    "TopK": lambda: filled(TopKSAE(D, F, 10)),
    "layer norm": lambda: NormalisedCode(filled(JumpReLUSAE(D, F)), "layer_norm"),
    "constant norm": lambda: NormalisedCode(filled(TopKSAE(D, F, 10)), "constant_norm_rescale"),
}


@pytest.fixture(scope="module")
def hidden() -> Tensor:
    return torch.randn(ROWS, TOKENS, D, generator=torch.Generator().manual_seed(1))


NOTHING = torch.zeros(ROWS, TOKENS, dtype=torch.bool)


def hooks(x: Tensor, code: Any, clamp: Clamp, alone: Tensor) -> tuple[Tensor, Tensor]:
    """What the authors' hooks do, one latent after the other on the dense code, and where one of them acted.

    SAELens adds the error of the untouched code (`use_error_term`), the package does not.
    """
    a = code.encode(x)
    error = x - code.decode(a, x)
    coefficients = clamp.value if isinstance(clamp.value, tuple) else [clamp.value] * len(clamp.latents)
    threshold = 0.0 if clamp.method == "prime" else clamp.threshold
    edited, acted = a.clone(), torch.zeros(x.shape[:-1], dtype=torch.bool)
    for latent, coefficient in zip(clamp.latents, coefficients):
        mask = a[..., latent] > threshold
        acted |= mask
        if clamp.method in ("prime", "conditional", "both"):
            edited[..., latent][mask] = coefficient
        if clamp.method in ("refusal", "both"):
            edited[..., clamp.refusal][mask] = clamp.refusal_value
    if clamp.fidelity == "package":
        return code.decode(edited, x), acted
    found = code.decode(edited, x) + error
    if clamp.fidelity == "exact":
        acted &= ~alone
        found = torch.where(acted[..., None], found, x)
    return found, acted


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("kind", CODES)
def test_the_edit_is_what_the_hooks_do(hidden, kind, method, fidelity):
    code, alone = CODES[kind](), torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(2)) < 0.3
    for value in (-30.0, (-30.0, -7.5, 12.0, 0.0)):
        clamp = replace(BASE, method=method, value=value, fidelity=fidelity)
        clamp.check(code)
        expected, acted = hooks(hidden, code, clamp, alone)
        found = apply(hidden, code, clamp, alone)
        assert 0.1 < acted.float().mean() < 0.95, "the case tells nothing"
        assert torch.equal(found.changed, acted)
        torch.testing.assert_close(found.hidden, expected, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(found.activity, code.encode(hidden)[..., list(H)], atol=1e-5, rtol=1e-5)


def test_one_token_by_hand():
    """Two latents on the axes; the refusal latent on the third; b_dec 10 never shows."""
    code = JumpReLUSAE(3, 3).requires_grad_(False)
    code.W_enc.copy_(torch.eye(3))
    code.W_dec.copy_(2 * torch.eye(3))
    code.b_dec.fill_(10.0)
    code.threshold.copy_(torch.tensor([1.0, 1.0, 0.0]))
    x = torch.tensor([[[3.0, 0.5, 0.25], [0.5, 0.5, 4.0]]])
    none = torch.zeros(1, 2, dtype=torch.bool)

    def edited(**changes: Any) -> list:
        return apply(
            x, code, replace(Clamp((0, 1), value=-5.0, refusal=2, refusal_value=-9.0), **changes), none
        ).hidden.tolist()

    second = [0.5, 0.5, 4.0]
    assert edited() == [[[3.0 + 2 * (-5 - 3), 0.5, 0.25], second]]
    assert edited(method="conditional", threshold=3.0) == x.tolist()  # strictly above
    assert edited(method="conditional", threshold=2.9) == [[[-13.0, 0.5, 0.25], second]]
    assert edited(method="refusal") == [[[3.0, 0.5, 0.25 + 2 * (-9 - 0.25)], second]]  # an overwrite, not an addition
    assert edited(method="both") == [[[-13.0, 0.5, -18.25], second]]
    assert edited(method="none") == x.tolist()
    assert edited(value=3.0) == x.tolist()
    assert edited(fidelity="package") == [[[2 * -5 + 10, 10.0, 10.5], [10.0, 10.0, 18.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CODES)
def test_a_token_on_which_nothing_fires_comes_back_bit_for_bit(hidden, kind, dtype):
    code, x = CODES[kind](), hidden.to(dtype, copy=True)
    x[0, 0, :4] = torch.tensor([-0.0, 0.0, 1e-30, -1e-30])
    for method in METHODS:
        for fidelity in ("exact", "reference"):
            found = apply(x, code, replace(BASE, method=method, fidelity=fidelity), NOTHING)
            assert found.hidden.dtype == dtype and found.activity.dtype == torch.float32
            same = (bits(found.hidden) == bits(x)).all(dim=-1)
            assert same[~found.changed].all()
            assert (method == "none") == (not found.changed.any())
            assert not same[found.changed].any()


def bits(x: Tensor) -> Tensor:
    """The numbers as they lie in memory: -0.0 is not 0.0 there."""
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def test_low_precision_is_left_once(hidden):
    """As if the hidden state had been float32, then cast: at 300 bfloat16 knows every second integer only."""
    code, low = CODES["JumpReLU"](), hidden.bfloat16()
    for clamp in (replace(BASE, value=-300.0), replace(BASE, method="both", fidelity="package")):
        expected = apply(low.float(), code, clamp, NOTHING).hidden.bfloat16()
        assert torch.equal(apply(low, code, clamp, NOTHING).hidden, expected)


def test_exact_leaves_tokens_alone_by_their_id(hidden):
    code, ids = CODES["JumpReLU"](), torch.full((ROWS, TOKENS), 7)
    ids[0, :3] = torch.tensor([PAD, PAD, BOS])  # padded on the left
    ids[1, 0], ids[2, -1] = BOS, EOS
    alone = left_alone(ids, {BOS, EOS, PAD})
    assert alone.sum() == 5
    clamp = replace(BASE, method="refusal", threshold=0.0)
    everywhere = apply(hidden, code, replace(clamp, fidelity="reference"), alone)
    found = apply(hidden, code, clamp, alone)
    assert everywhere.changed[alone].any() and not found.changed[alone].any()
    assert torch.equal(found.hidden[alone], hidden[alone])
    assert torch.equal(found.hidden[~alone], everywhere.hidden[~alone])
    assert not left_alone(ids, frozenset()).any()


@pytest.mark.parametrize("method", ["prime", "refusal"])
def test_few_tokens_are_edited_as_many_are(hidden, method):
    """A short prompt or a cached pass goes another way than a long one, and leaves the same tokens alone."""
    code, clamp = CODES["JumpReLU"](), replace(BASE, method=method)
    alone = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = apply(hidden, code, clamp, alone)
    assert whole.changed.any() and (apply(hidden, code, clamp, NOTHING).changed & alone).any()
    for row in range(ROWS):
        few = slice(row, row + 1), slice(0, FEW)
        part = apply(hidden[few], code, clamp, alone[few])
        torch.testing.assert_close(part.hidden, whole.hidden[few], rtol=1e-5, atol=1e-4)
        untouched = ~part.changed
        assert torch.equal(part.changed, whole.changed[few])
        assert torch.equal(part.hidden[untouched], hidden[few][untouched])


def test_one_token_a_pass_is_edited_as_in_the_whole_sequence(hidden):
    """As with a cache."""
    for kind in CODES:
        code, clamp = CODES[kind](), replace(BASE, method="both")
        whole = apply(hidden, code, clamp, NOTHING)
        for place in (0, 5, TOKENS - 1):
            one = apply(hidden[:, place : place + 1], code, clamp, NOTHING[:, :1])
            torch.testing.assert_close(one.hidden, whole.hidden[:, place : place + 1], atol=1e-4, rtol=1e-4)
            assert torch.equal(one.changed, whole.changed[:, place : place + 1])


def test_nothing_but_the_columns_needed_is_looked_at(hidden):
    """All other columns and rows may hold nonsense."""
    for kind in (JumpReLUSAE, GatedSAE):
        code = filled(kind(D, F))
        expected = apply(hidden, code, replace(BASE, method="both"), NOTHING).hidden
        others = [latent for latent in range(F) if latent not in (*H, R)]
        code.W_enc[:, others] = torch.nan
        code.W_dec[others] = torch.nan
        assert torch.equal(apply(hidden, code, replace(BASE, method="both"), NOTHING).hidden, expected)


def test_an_edit_keeps_its_input_and_what_it_is_shaped_like(hidden):
    code, before = CODES["JumpReLU"](), hidden.clone()
    found = apply(hidden, code, BASE, NOTHING)
    assert torch.equal(hidden, before) and found.hidden.data_ptr() != hidden.data_ptr()
    flat = apply(hidden.view(-1, D), code, BASE, NOTHING.view(-1))
    assert torch.equal(flat.hidden.view_as(hidden), found.hidden)
    empty = apply(hidden[:, :0], code, replace(BASE, method="both"), NOTHING[:, :0])
    assert empty.hidden.shape == (ROWS, 0, D) and empty.activity.shape == (ROWS, 0, len(H))


def test_the_largest_coefficient_leaves_numbers(hidden):
    code = CODES["JumpReLU"]()
    clamp = replace(BASE, method="both", value=-1e30, refusal_value=1e30)
    clamp.check(code)
    assert apply(hidden, code, clamp, NOTHING).hidden.isfinite().all()


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "erase"}, "method 'erase' is unknown: take one of none, prime"),
        ({"fidelity": "exactly"}, "fidelity 'exactly' is unknown"),
        ({"latents": ()}, "no latents"),
        ({"latents": (3, F)}, f"latent {F} does not exist: the code has {F}"),
        ({"latents": (-1,)}, "latent -1 does not exist"),
        ({"latents": (3, 4, 3)}, "latent 3 is listed twice"),
        ({"method": "refusal", "refusal": None}, "needs a refusal latent"),
        ({"method": "both", "refusal": H[2]}, f"refusal latent {H[2]} is one of the harmful ones"),
        ({"method": "refusal", "refusal": F + 7}, f"latent {F + 7} does not exist"),
        ({"value": float("nan")}, "a coefficient is nan"),
        ({"value": -1e39}, "a coefficient is -1e+39: give a number between"),
        ({"value": float("-inf")}, "a coefficient is -inf"),
        ({"value": (1.0, 2.0)}, "2 coefficients for 4 latents"),
        ({"value": (1.0, 2.0, 3.0, float("nan"))}, "a coefficient is nan"),
        ({"method": "refusal", "refusal_value": float("inf")}, "the refusal coefficient is inf"),
        ({"threshold": float("nan")}, "the threshold is nan"),
        ({"threshold": -0.1}, "the threshold is -0.1: give a number from 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(changes, says):
    with pytest.raises(ValueError) as caught:
        replace(BASE, **changes).check(CODES["TopK"]())
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_used_is_not_asked_for():
    code = CODES["TopK"]()
    Clamp((), method="none").check(code)
    Clamp(H).check(code)
    replace(BASE, method="prime", refusal=H[0]).check(code)


# ---------------------------------------------------------------- the authors' tables

SAE = "gemma-scope-2b-pt-res-canonical,layer_7/width_16k/canonical"
COLUMNS = "latent_idx,hook_action,refuse_id,clamp_value,steering_coefficient,sae_release,sae_id,description\n"


def table(path: Path, text: str) -> Path:
    (path / "steer.csv").write_text(text, encoding="utf-8")
    return path / "steer.csv"


def test_clamp_prime_as_the_authors_write_it(tmp_path):
    """The form of models/dog_steer_clamp_with_action.csv, with its space before a number."""
    text = "hook_action,latent_idx,steering_coefficient,sae_release,sae_id,description\n"
    text += f'clamp,12082, 240.0,{SAE.replace("layer_7", "layer_20")},"dogs, and obedience"\n'
    [found] = read_steering_table(table(tmp_path, text))
    assert found.clamp == Clamp((12082,), "prime", 240.0, fidelity="reference")
    assert found[1:] == (*SAE.replace("layer_7", "layer_20").split(","), 20, ("dogs, and obedience",))


def test_a_sweeps_row_each_with_its_own_coefficient(tmp_path):
    lines = [f"{latent},clamp,,,{-100 - latent / 8},{SAE},\n" for latent in (11766, 9723, 4788)]
    [found] = read_steering_table(table(tmp_path, COLUMNS + "".join(lines)))
    assert found.clamp.latents == (11766, 9723, 4788) and found.descriptions == ()
    assert found.clamp.value == (-100 - 11766 / 8, -100 - 9723 / 8, -100 - 4788 / 8)


def test_refusal_clamp_as_pandas_writes_it(tmp_path):
    lines = [f"{latent},clamp_refusal,15864.0,0.05,-500.0,{SAE},potions\n" for latent in (11766, 9723)]
    [found] = read_steering_table(table(tmp_path, COLUMNS + "".join(lines)))
    expected = Clamp(
        (11766, 9723), "refusal", threshold=0.05, refusal=15864, refusal_value=-500.0, fidelity="reference"
    )
    assert found.clamp == expected and found.layer == 7
    conditional = "".join(lines).replace("clamp_refusal,15864.0", "clamp_cond,")
    [found] = read_steering_table(table(tmp_path, "\ufeff" + COLUMNS + conditional))
    assert found.clamp == Clamp((11766, 9723), "conditional", -500.0, 0.05, fidelity="reference")


def test_a_table_of_two_saes_is_two_clamps(tmp_path):
    other = SAE.replace("layer_7", "layer_3")
    text = COLUMNS + f"5,clamp,,,-1,{SAE},\n6,clamp,,,-2,{other},\n7,clamp,,,-1,{SAE},\n"
    first, second = read_steering_table(table(tmp_path, text))
    assert first.clamp.latents == (5, 7) and first.clamp.value == -1.0
    assert (second.clamp.latents, second.clamp.value, second.layer) == ((6,), -2.0, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "latent_idx,steering_coefficient,sae_id,description\n7037,-270.1,layer_3/width_16k/canonical,a\n",
            "added and not",
        ),
        ("a,b\n1,2\n", "no steering table"),
        ("", "no steering table"),
        (COLUMNS, "holds no latent"),
        (COLUMNS.replace("description", "weight"), "a column 'weight' that is not understood"),
        (COLUMNS + f"1,add,,,2,{SAE},\n", "line 2: hook_action is 'add'"),
        (COLUMNS + f"1,clamp,,,2,{SAE}\n", "line 2: it has more or fewer cells"),
        (COLUMNS + f"1,clamp,,,2,{SAE},,,\n", "line 2: it has more or fewer cells"),
        (COLUMNS + f"1.5,clamp,,,2,{SAE},\n", "line 2: latent_idx is '1.5'"),
        (COLUMNS + f"-1,clamp,,,2,{SAE},\n", "line 2: latent_idx is '-1'"),
        (COLUMNS + f"1,clamp,,,much,{SAE},\n", "line 2: steering_coefficient is 'much'"),
        (COLUMNS + f"1,clamp,,,inf,{SAE},\n", "line 2: steering_coefficient is 'inf'"),
        (COLUMNS + f"1,clamp,,,,{SAE},\n", "steering_coefficient is empty"),
        (COLUMNS + f"1,clamp_cond,,,2,{SAE},\n", "clamp_cond needs a clamp_value"),
        (COLUMNS + f"1,clamp_refusal,,0,2,{SAE},\n", "clamp_refusal needs a refuse_id"),
        (COLUMNS + "1,clamp,,,2,,layer_3,\n", "sae_release or sae_id is empty"),
        (
            COLUMNS + f"1,clamp,,,2,{SAE},\n2,clamp_cond,,0,2,{SAE},\n",
            "hook_action is clamp in line 2 and clamp_cond in line 3",
        ),
        (
            COLUMNS + f"1,clamp_refusal,9,0,2,{SAE},\n2,clamp_refusal,9,0,3,{SAE},\n",
            "steering_coefficient is 2.0 in line 2",
        ),
        (COLUMNS + f"1,clamp_cond,,0,2,{SAE},\n2,clamp_cond,,1,2,{SAE},\n", "clamp_value is 0.0 in line 2 and 1.0"),
    ],
)
def test_tables_that_are_not_understood(tmp_path, text, says):
    with pytest.raises(PackError) as caught:
        read_steering_table(table(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "steer.csv").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    for path in (tmp_path / "steer.csv", tmp_path / "gone.csv", tmp_path):
        with pytest.raises(PackError, match="cannot be read as a table"):
            read_steering_table(path)
