"""FlashAttention-3 as vLLM ships it, without vLLM's Python: the function of its extension library.

The library is the one that `OMNIFLASH_VLLM_FA3` names, else that of an installed vllm, which is not
imported for it.
"""

import importlib.util
import os
from pathlib import Path

import torch

LIBRARY = "vllm_flash_attn/_vllm_fa3_C.abi3.so"


def library() -> str:
    """The path of the extension library; an ImportError where there is none."""
    named = os.environ.get("OMNIFLASH_VLLM_FA3")
    if named:
        return named
    found = importlib.util.find_spec("vllm")
    for folder in found.submodule_search_locations or () if found else ():
        if (Path(folder) / LIBRARY).is_file():
            return str(Path(folder) / LIBRARY)
    raise ImportError("no vllm is installed, and OMNIFLASH_VLLM_FA3 names no library")


torch.ops.load_library(library())


def prepared(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor | None,
    key_lengths: torch.Tensor | None,
    page_table: torch.Tensor | None,
    longest: tuple[int, int],
    scale: float,
    causal: bool,
    window: tuple[int, int],
    splits: int,
):
    """A call without arguments that computes attention into a tensor like q, and returns it.

    q, k, v are ragged, [tokens, heads, head_dim]; with a page table k and v are [pages, page_size,
    heads, head_dim], and `key_lengths` stand for `key_offsets`. `splits` 0 lets it choose.
    """
    out = torch.empty_like(q)
    # The signature of vllm 0.33, by position.
    new_and_rotated = [None] * 3
    no_scales = [None] * 3
    softcap, is_interleaved, metadata, pack_gqa, margin, sinks = 0.0, True, None, None, 0, None
    arguments = [
        *(q, k, v, *new_and_rotated, out),
        *(query_offsets, key_offsets, None, None, key_lengths, *longest),
        *(page_table, None, None, None, None, None, *no_scales, scale, causal, *window),
        *(softcap, is_interleaved, metadata, splits, pack_gqa, margin, sinks, 1, 0, None),
    ]

    def call():
        torch.ops._vllm_fa3_C.fwd(*arguments)
        return out

    return call
