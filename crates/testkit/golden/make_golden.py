#!/usr/bin/env python3
"""Writes the golden cases beside this file: inputs in omniflash's case-file format and their answers in float64.

Plain formulas with loops over rows, nothing shared with the Rust code. Needs numpy only:

    python3 make_golden.py
"""

import json
import math
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = {"f8": "F64", "f4": "F32", "f2": "F16", "i4": "I32", "i8": "I64", "u4": "U32", "b1": "BOOL"}


class BF16:
    """A float32 array that is stored as bfloat16."""

    def __init__(self, values):
        values = np.asarray(values, np.float32)
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        self.bits = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)

    @property
    def values(self):
        return (self.bits.astype(np.uint32) << 16).view(np.float32)


def write(path, tensors):
    """A safetensors file."""
    header, data = {}, b""
    for name, tensor in sorted(tensors.items(), key=lambda item: -alignment(item[1])):
        if isinstance(tensor, BF16):
            dtype, raw = "BF16", tensor.bits
        else:
            raw = np.ascontiguousarray(tensor)
            dtype = NAMES[raw.dtype.str[1:]]
        chunk = raw.tobytes()
        header[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": [len(data), len(data) + len(chunk)]}
        data += chunk
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def alignment(tensor):
    return 2 if isinstance(tensor, BF16) else tensor.dtype.itemsize


def stored(dtype, values):
    return BF16(values) if dtype == "bf16" else np.asarray(values, {"f32": np.float32, "f16": np.float16}[dtype])


def real(tensor):
    return (tensor.values if isinstance(tensor, BF16) else np.asarray(tensor)).astype(np.float64)


def visible(mask, tensors, b, qpos, j):
    """Whether the key at j is seen from qpos, by the table of masks."""
    if isinstance(mask, dict):
        (kind, value), = mask.items()
        if kind == "sliding_window":
            return qpos - value["left"] <= j <= qpos + value["right"]
        if kind == "chunked":
            return qpos // value["size"] == j // value["size"]
        if kind == "chunked_causal":
            return j <= qpos and qpos // value["size"] == j // value["size"]
        if kind == "and":
            return all(visible(part, tensors, b, qpos, j) for part in value)
        if kind == "or":
            return any(visible(part, tensors, b, qpos, j) for part in value)
        if kind == "not":
            return not visible(value, tensors, b, qpos, j)
    if mask == "none":
        return True
    if mask == "causal":
        return j <= qpos
    if mask == "prefix_lm":
        return j < tensors["prefix_len"][b] or j <= qpos
    if mask == "document":
        ids = tensors["document_ids"][b]
        return 0 <= qpos < len(ids) and ids[qpos] == ids[j]
    raise ValueError(mask)


def default_slopes(heads):
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-8.0 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
    return np.asarray(slopes, np.float32).astype(np.float64)


def broadcast(tensor, b, h, i, j):
    index = [b, h, i, j] if tensor.ndim == 4 else [b, i, j]
    last = tensor.ndim - 1
    return tensor[tuple(0 if extent == 1 and axis < last else at
                        for axis, (extent, at) in enumerate(zip(tensor.shape, index)))]


def attention(tensors, options):
    """out and lse in float64; rows that are not written are 0."""
    q, k, v = (real(tensors[name]) for name in "qkv")
    heads, dim = q.shape[-2:]
    kv_heads, value_dim = k.shape[-2], v.shape[-1]
    scale = float(np.float32(options.get("softmax_scale", np.float32(1) / np.sqrt(np.float32(dim)))))
    ragged_q = "cu_seqlens_q" in tensors
    batch = len(tensors["cu_seqlens_q"]) - 1 if ragged_q else q.shape[0]
    out = np.zeros(q.shape[:-1] + (value_dim,))
    lse = np.zeros((heads, q.shape[0]) if ragged_q else (batch, heads, q.shape[1]))
    slopes = None
    if "alibi_slopes" in tensors:
        slopes = real(tensors["alibi_slopes"])
    elif options.get("alibi"):
        slopes = default_slopes(heads)

    for b in range(batch):
        if ragged_q:
            q_begin, q_end = (int(x) for x in tensors["cu_seqlens_q"][b:b + 2])
        else:
            q_begin, q_end = 0, int(tensors["q_lengths"][b]) if "q_lengths" in tensors else q.shape[1]
        k_begin = 0
        if "cu_seqlens_k" in tensors:
            k_begin = int(tensors["cu_seqlens_k"][b])
            kv_len = int(tensors["cu_seqlens_k"][b + 1]) - k_begin
        else:
            kv_len = int(tensors["kv_lengths"][b]) if "kv_lengths" in tensors else k.shape[1]
        start = int(tensors["query_start"][b]) if "query_start" in tensors else kv_len - (q_end - q_begin)

        def key(j):
            if "cu_seqlens_k" in tensors:
                return (k_begin + j,)
            if "page_table" in tensors:
                return int(tensors["page_table"][b, j // k.shape[1]]), j % k.shape[1]
            if "lookup_table" in tensors:
                return int(tensors["lookup_table"][b]), j
            return b, j

        for i in range(q_end - q_begin):
            for h in range(heads):
                row = (q_begin + i, h) if ragged_q else (b, i, h)
                kv_head = h // (heads // kv_heads)
                scores, values = [], []
                for j in range(kv_len):
                    if not visible(options.get("mask", "none"), tensors, b, start + i, j):
                        continue
                    s = scale * float(q[row] @ k[key(j) + (kv_head,)])
                    if "softcap" in options:
                        s = options["softcap"] * math.tanh(s / options["softcap"])
                    if slopes is not None:
                        s += slopes[h] * (j - (start + i))
                    if "bias" in tensors:
                        s += float(broadcast(real(tensors["bias"]), b, h, i, j))
                    if "mask" in tensors:
                        entry = broadcast(tensors["mask"], b, h, i, j)
                        if tensors["mask"].dtype == bool:
                            if not entry:
                                continue
                        elif entry == -np.inf:
                            continue
                        else:
                            s += float(entry)
                    scores.append(s)
                    values.append(v[key(j) + (kv_head,)])
                logits = scores + ([float(real(tensors["sinks"])[h])] if "sinks" in tensors else [])
                total = -np.inf
                if logits:
                    most = max(logits)
                    total = most + math.log(math.fsum(math.exp(s - most) for s in logits))
                for s, value in zip(scores, values):
                    out[row] += math.exp(s - total) * value
                lse[(h, q_begin + i) if ragged_q else (b, h, i)] = total
    return out, lse


def case(name, tensors, options):
    out, lse = attention(tensors, options)
    write(HERE / f"{name}.safetensors", tensors)
    (HERE / f"{name}.json").write_text(json.dumps(options) + "\n")
    write(HERE / f"{name}.expected.safetensors", {"out": out, "lse": lse})


def main():
    random = np.random.default_rng(20240229)

    def normal(dtype, *shape):
        return stored(dtype, random.standard_normal(shape))

    def ints(dtype, *values):
        return np.asarray(values, dtype)

    case("dense_causal_f32", {
        "q": normal("f32", 2, 5, 4, 8), "k": normal("f32", 2, 7, 2, 8), "v": normal("f32", 2, 7, 2, 8),
    }, {"mask": "causal", "lse": True})

    case("window_sinks_bf16", {
        "q": normal("bf16", 1, 9, 6, 16), "k": normal("bf16", 1, 12, 3, 16), "v": normal("bf16", 1, 12, 3, 16),
        "sinks": stored("f32", [0.5, -1.0, 3.0, 0.0, 6.0, -20.0]),
    }, {"mask": {"sliding_window": {"left": 3, "right": 1}}, "softmax_scale": 0.25, "lse": True})

    padded = {
        "q": normal("f16", 3, 6, 2, 24), "k": normal("f16", 3, 10, 1, 24), "v": normal("f16", 3, 10, 1, 40),
        "q_lengths": ints("i8", 6, 0, 2), "kv_lengths": ints("i8", 10, 4, 1),
    }
    padded["k"][1, 4:] = np.nan
    padded["v"][2, 1:] = np.nan
    padded["q"][2, 2:] = np.nan
    case("padded_chunked_f16", padded, {"mask": {"chunked_causal": {"size": 3}}, "lse": True})

    pages_k, pages_v = random.standard_normal((7, 4, 2, 8)), random.standard_normal((7, 4, 2, 8))
    pages_k[5], pages_v[5] = np.nan, np.nan
    case("ragged_paged_softcap_bf16", {
        "q": normal("bf16", 9, 4, 8), "k": stored("bf16", pages_k), "v": stored("bf16", pages_v),
        "cu_seqlens_q": ints("i4", 0, 3, 3, 8), "kv_lengths": ints("u4", 9, 0, 11),
        "page_table": np.asarray([[3, 0, 6], [2**32 - 1] * 3, [1, 6, 2]], "u4"),
    }, {"mask": "causal", "softcap": 2.5, "num_partitions": 1, "lse": True})

    case("continuous_alibi_f32", {
        "q": normal("f32", 2, 4, 6, 16), "k": normal("f32", 3, 8, 2, 16), "v": normal("f32", 3, 8, 2, 16),
        "lookup_table": ints("i4", 2, 0), "kv_lengths": ints("i4", 8, 5), "query_start": ints("i4", 2, -2),
    }, {"mask": "causal", "alibi": True, "lse": True})

    case("bool_mask_bias_f32", {
        "q": normal("f32", 2, 5, 4, 8), "k": normal("f32", 2, 6, 4, 8), "v": normal("f32", 2, 6, 4, 16),
        "mask": random.random((2, 1, 5, 6)) < 0.6, "bias": normal("f32", 1, 4, 5, 6),
        "alibi_slopes": stored("f32", [0.5, 0.25, 0.125, 0.0625]),
    }, {"softcap": 4.0, "mask": {"not": {"sliding_window": {"left": 0, "right": 0}}}, "lse": True})

    float_mask = np.where(random.random((2, 6, 9)) < 0.3, -np.inf, random.standard_normal((2, 6, 9)))
    float_mask[0, 2], float_mask[1, 5] = -np.inf, -np.inf
    case("float_mask_hidden_rows_f16", {
        "q": normal("f16", 2, 6, 2, 32), "k": normal("f16", 2, 9, 2, 32), "v": normal("f16", 2, 9, 2, 32),
        "mask": float_mask.astype(np.float32),
    }, {"lse": True})

    case("ragged_prefix_or_document_f32", {
        "q": normal("f32", 12, 2, 8), "k": normal("f32", 17, 2, 8), "v": normal("f32", 17, 2, 8),
        "cu_seqlens_q": ints("i8", 0, 5, 12), "cu_seqlens_k": ints("i8", 0, 7, 17),
        "prefix_len": ints("i4", 2, 0), "document_ids": np.asarray(
            [[0, 0, 1, 1, 1, 2, 2] + [9] * 10, [4, 4, 4, 4, 7, 7, 7, 8, 8, 8] + [9] * 7], "i4"),
    }, {"mask": {"or": [{"and": ["document", "causal"]}, {"and": ["prefix_lm", {"chunked": {"size": 4}}]}]},
        "lse": True})


if __name__ == "__main__":
    main()
