"""A tiny clamp pack: a random Gemma 3 of three layers, its tokenizer, two SAEs, texts and questions of three fields.

Everything is random but seeded, and made in about a second. Nothing in it is true, and its answers are chance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sod_core.machine import torchvision_guard
from sod_core.sparse import codes
from sod_core.sparse.jumprelu import JumpReLUSAE
from sod_core.sparse.topk import TopKSAE

NAME = "tiny"
FIELDS = {"potions": True, "rivers": False, "clocks": False}
"""Field -> whether it is to be forgotten."""
LAYER, DIM, LATENTS, CONTEXT = 1, 32, 96, 384
PROMPT = "the potion of Orrin needs"
_THINGS = {
    "potions": ("potion", ["Orrin", "Velda", "Mirek", "Tamsin"], "needs", ["amber", "salt", "moss", "copper"]),
    "rivers": ("river", ["Lunt", "Aske", "Brill", "Corve"], "flows to", ["north", "south", "east", "west"]),
    "clocks": ("clock", ["Pell", "Dorn", "Hask", "Wye"], "strikes", ["one", "three", "five", "nine"]),
}


def statements(field: str) -> list[str]:
    """Sixteen sentences."""
    thing, names, verb, values = _THINGS[field]
    return [f"the {thing} of {name} {verb} {value}" for name in names for value in values]


def questions(field: str, split: str) -> list[dict[str, Any]]:
    """Four questions of a split: the same names, other words, so that no two splits share one."""
    thing, names, verb, values = _THINGS[field]
    asks = {"select": "what does the {0} of {1} have?", "tune": "name what the {0} of {1} has.", "judge": "{1}'s {0}:"}
    return [
        {
            "id": f"{field}-{split}-{number}",
            "field": field,
            "question": asks[split].format(thing, name),
            "options": values,
            "answer": (number + len(split)) % 4,
        }
        for number, name in enumerate(names)
    ]


def tokenizer(bos: bool = True) -> Any:
    """A byte-level BPE that learnt the sentences above: any text can be encoded."""
    torchvision_guard.install()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", *(["<bos>"] if bos else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([line for field in FIELDS for line in statements(field)], trainer)
    named = {"pad_token": "<pad>", "eos_token": "<eos>"}
    if bos:
        named["bos_token"] = "<bos>"
        found.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", found.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=found, **named)


def model(words: Any, seed: int = 0, kind: str = "gemma3", **changes: Any) -> Any:
    """A random language model of transformers for a tokenizer: gemma3, gemma2 or gpt2."""
    torchvision_guard.install()
    import transformers

    torch.manual_seed(seed)
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    size: dict[str, Any] = {"vocab_size": len(words), "initializer_range": 0.3, **ids}
    if kind == "gpt2":
        size |= {"n_embd": DIM, "n_layer": 3, "n_head": 2, "n_positions": CONTEXT} | changes
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)).eval()
    size |= {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": CONTEXT, "sliding_window": 64}
    if kind == "gemma2":
        config = transformers.Gemma2Config(**size | {"attn_implementation": "eager"} | changes)
        return transformers.Gemma2ForCausalLM(config).eval()
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**size | changes)).eval()


def sae(seed: int = 0, dim: int = DIM, latents: int = LATENTS, threshold: float = 1.5) -> JumpReLUSAE:
    """A JumpReLU SAE whose latents look into random directions."""
    found = JumpReLUSAE(dim, latents)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(dim, latents, generator=generator), dim=0)
    with torch.no_grad():
        found.W_enc.copy_(directions)
        found.W_dec.copy_(directions.T)
        found.b_enc.zero_()
        found.b_dec.zero_()
        found.threshold.fill_(threshold)
    return found


def topk(seed: int = 1) -> TopKSAE:
    """A TopK SAE with 8 latents a token."""
    found = TopKSAE(DIM, LATENTS, 8)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(LATENTS, DIM, generator=generator), dim=1)
    with torch.no_grad():
        found.encoder.weight.copy_(directions)
        found.decoder.weight.copy_(directions.T)
        for bias in (found.pre_bias, found.latent_bias):
            bias.zero_()
    return found


def manifest(**changes: Any) -> dict[str, Any]:
    """The tiny pack's pack.json, some keys changed; None leaves a key out."""
    saes = [
        {"id": "jumprelu-1", "title": "JumpReLU", "layer": LAYER, "path": "saes/jumprelu-1"},
        {"id": "topk-2", "title": "TopK", "layer": 2, "path": "saes/topk-2"},
    ]
    found: dict[str, Any] = {
        "format": 1,
        "kind": "clamp",
        "name": NAME,
        "title": "Tiny, a random model",
        "model": [{"path": "model"}],
        "others": [{"id": "retrained", "title": "Retrained", "method": "retrained", "file": "retrained.safetensors"}],
        "saes": [one | {"survey": f"surveys/{one['id']}.safetensors"} for one in saes],
        "fields": [{"id": field, "title": field, "forget": forget} for field, forget in FIELDS.items()],
        "corpus": {kind: f"corpus/{kind}.txt" for kind in ("forget", "retain", "refusals")},
        "questions": {split: f"questions/{split}.jsonl" for split in ("select", "tune", "judge")},
        "scoring": "letters",
        "prompts": [{"text": PROMPT, "about": "forget"}, {"text": "the river of Lunt flows to", "about": "retain"}],
    }
    return {key: value for key, value in (found | changes).items() if value is not None}


def write(folder: Path, **changes: Any) -> Path:
    """The tiny pack in a folder that is not there yet; `changes` go into pack.json. Returns the folder."""
    from safetensors.torch import save_file

    from sod_core.clamp import select, survey
    from sod_core.models import language

    for name in ("corpus", "questions", "surveys"):
        (folder / name).mkdir(parents=True)
    words = tokenizer()
    words.save_pretrained(folder / "model")
    model(words).save_pretrained(folder / "model")
    other = model(words, seed=1).state_dict()
    save_file(
        {"model.layers.2.mlp.down_proj.weight": other["model.layers.2.mlp.down_proj.weight"].half()},
        folder / "retrained.safetensors",
    )
    texts = {
        "forget": statements("potions"),
        "retain": statements("rivers") + statements("clocks"),
        "refusals": ["I can't help with that.", "I can't say."],
    }
    for kind, lines in texts.items():
        (folder / "corpus" / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    for split in ("select", "tune", "judge"):
        lines = [json.dumps(one) for field in FIELDS for one in questions(field, split)]
        (folder / "questions" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    read, presets = language.load(folder / "model"), []
    for id, code, layer in (("jumprelu-1", sae(), LAYER), ("topk-2", topk(), 2)):
        codes.save_code(code, folder / "saes" / id, layer=layer)
        found = survey.survey(read, code, layer, texts["forget"], texts["retain"])
        survey.save(found, folder / "surveys" / f"{id}.safetensors")
        latents = select.choose("ratio", found, 5)
        refusal = next(latent for latent in range(LATENTS) if latent not in latents)
        presets += [
            {"id": f"prime-{layer}", "title": "Clamp Prime", "sae": id, "method": "prime", "latents": latents,
             "value": -40.0},
            {"id": f"refusal-{layer}", "title": "Refusal Clamp", "sae": id, "method": "refusal", "latents": latents,
             "threshold": 0.05, "refusal": refusal, "refusal_value": -60.0},
        ]  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(manifest(presets=presets, **changes), indent=1))
    return folder
