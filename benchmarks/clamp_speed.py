"""What a clamp costs, beside the released code's way of doing it, in one run.

    python benchmarks/clamp_speed.py [--part edit|generation] [--device cuda] [--threads 2]

The edit: both clamps together, 10 harmful latents and the refusal latent, on 256 tokens of width 2,304, with a random
JumpReLU SAE of 16,384 latents, as Gemma Scope has for gemma-2-2b. "Plain" is what the released hooks do (SAELens with
its error term: a dense encode, a dense decode of what was found for the error, a dense decode of what was edited). The
difference is relative: on each token that is changed, the norm of the two outputs' difference over the norm of what the
edit adds; the largest is shown. Times are medians of turns of this run on this machine: read the ratios. One thread
is the default, so that neither way waits for a core that another program has; with many the dense way gains more.

Generation: the same edit with a KV cache, after layer 9 of a random Gemma 3 of the 270M's shape and a random SAE of as
many latents on whose every token something fires, beside no edit and the released hooks. The three texts grow in turns,
a token each. With --threads 1 the time is the processor's own, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sod_core.clamp.edit import Clamp, apply
from sod_core.clamp.editor import editor_of
from sod_core.machine import devices, torchvision_guard
from sod_core.models.language import Editor, LanguageModel
from sod_core.sparse.jumprelu import JumpReLUSAE

DIM, LATENTS, TOKENS = 2304, 16384, 256
CLAMP = Clamp(tuple(range(100, 110)), "both", value=-300.0, threshold=0.05, refusal=15864, fidelity="reference")
FIRING = (0.01, 0.1, 1.0)
"""Shares of the tokens on which a harmful latent fires."""
PARTS = ("edit", "generation")
GEMMA = {
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
}
"""As google/gemma-3-270m has them."""
LAYER, PROMPT = 9, 32
"""After which the edit acts; tokens before those that are timed."""


def main() -> None:
    """Prints a Markdown table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=15, help="of an edit")
    parser.add_argument("--tokens", type=int, default=100, help="of each text")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = devices.choose_device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{where}, torch {torch.__version__}\n")
    with torch.inference_mode():
        if "edit" in options.part:
            edits(device, options.repeats)
        if "generation" in options.part:
            generations(device, options.tokens)


# ---------------------------------------------------------------- the edit


def edits(device: torch.device, repeats: int) -> None:
    """A row for each share of tokens that fire."""
    sae = random_sae(device, DIM, threshold=2.5)
    CLAMP.check(sae)
    print("| tokens on which it fires | plain, ms | this project, ms | ratio | largest difference |")
    print("|---|---|---|---|---|")
    for share in FIRING:
        compare(sae, tokens_with(sae, share, device), repeats)


def compare(sae: JumpReLUSAE, x: Tensor, repeats: int) -> None:
    """Prints a row; both ways take turns, so that whatever else the machine does hits both."""
    nothing = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)

    def plain() -> Tensor:
        return released_hooks(sae, x)

    def ours() -> Tensor:
        return apply(x, sae, CLAMP, nothing).hidden

    expected, found = plain(), apply(x, sae, CLAMP, nothing)  # also warms both up
    added = (expected - x).norm(dim=-1)[found.changed]
    difference = ((expected - found.hidden).norm(dim=-1)[found.changed] / added).max().item()
    times: dict[Callable[[], Tensor], list[float]] = {plain: [], ours: []}
    for _ in range(repeats):
        for way, taken in times.items():
            taken.append(seconds(way))
    a, b = (statistics.median(taken) * 1e3 for taken in times.values())
    firing = found.changed.float().mean().item()
    print(f"| {firing:.0%} | {a:.1f} | {b:.2f} | {a / b:.0f} | {difference:.1e} |", flush=True)


def random_sae(device: torch.device, dim: int, threshold: float) -> JumpReLUSAE:
    """Decoder rows of length 1, the encoder their transpose. A random token seldom passes a threshold of 2.5."""
    generator = torch.Generator().manual_seed(0)
    sae = JumpReLUSAE(dim, LATENTS).requires_grad_(False)
    sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(LATENTS, dim, generator=generator)))
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_dec.copy_(torch.randn(dim, generator=generator))
    sae.threshold.fill_(threshold)
    return sae.to(device)


def tokens_with(sae: JumpReLUSAE, share: float, device: torch.device) -> Tensor:
    """[1, TOKENS, DIM]: random tokens; a share of them hold the first harmful latent's direction, the others none."""
    x = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1)).to(device)
    directions = sae.W_dec[list(CLAMP.latents)]
    x -= x @ torch.linalg.pinv(directions) @ directions
    x[: max(1, round(share * TOKENS))] += 8 * directions[0]
    return x[None]


def released_hooks(sae: JumpReLUSAE, x: Tensor) -> Tensor:
    """A hook a latent on SAELens's latents, then its decode and its error term."""
    latents = sae.encode(x)
    error = x - sae.decode(latents)
    edited = latents.clone()
    for latent in CLAMP.latents:
        mask = latents[..., latent] > CLAMP.threshold
        edited[..., latent][mask] = CLAMP.values()[0]
        edited[..., CLAMP.refusal][mask] = CLAMP.refusal_value
    return sae.decode(edited) + error


# ---------------------------------------------------------------- generation


def generations(device: torch.device, tokens: int) -> None:
    """A row for each way."""
    language, sae = random_gemma(device), random_sae(device, GEMMA["hidden_size"], threshold=0.0)
    fires: list[Tensor] = []
    clamp = replace(CLAMP, fidelity="exact")
    watched = editor_of(sae, clamp, language.special_ids, record=lambda ids, edited: fires.append(edited.changed))
    ways: dict[str, Editor | None] = {
        "no edit": None,
        "this project": editor_of(sae, clamp, language.special_ids),
        "plain": lambda hidden, ids: released_hooks(sae, hidden),
    }
    prompt = torch.randint(100, 1000, (PROMPT,), generator=torch.Generator().manual_seed(2)).tolist()
    texts = {name: language.generate(prompt, LAYER, [edit], tokens + 1) for name, edit in ways.items()}
    for text in (*texts.values(), language.generate(prompt, LAYER, [watched], 10)):
        next(text)  # the prompt, which is not timed
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(texts)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for turn in range(tokens):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(lambda text=texts[name]: next(text), clock))
    median = {name: statistics.median(taken) for name, taken in times.items()}
    share = torch.cat([found.flatten() for found in fires]).float().mean().item()
    of = " of the processor's time" if alone else ""
    print(f"\nfires on {share:.0%} of the prompt's tokens; {tokens} tokens of each text, medians{of}\n")
    print("| generation | a token, ms | tokens a second | time over no edit |")
    print("|---|---|---|---|")
    for name, taken in median.items():
        print(f"| {name} | {taken * 1e3:.2f} | {1 / taken:.2f} | {taken / median['no edit'] - 1:+.1%} |")


def random_gemma(device: torch.device) -> LanguageModel:
    """With no token that ends a text."""
    torchvision_guard.install()
    from tokenizers import Tokenizer, models
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words)), **special)
    language = LanguageModel(Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)).to(device), tokenizer)
    language.tokens.ends = frozenset()
    return language


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one run, the device's queue included."""
    started = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
