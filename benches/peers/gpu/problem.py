"""The benchmark cases, their data, and a reference to check every system against."""

import re
from dataclasses import dataclass

import torch

DEVICE = "cuda"

# A system is timed only if its largest error on the sample stays below this fraction of the
# largest reference value.
TOLERANCES = {"bf16": 3e-2, "f16": 1e-2, "f32": 1e-2}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One attention problem: sizes, and whether it is causal (bottom-right aligned)."""

    batch: int
    query_heads: int
    kv_heads: int
    query_length: int
    kv_length: int
    head_dim: int
    causal: bool

    @property
    def name(self) -> str:
        """The name that all systems give the case."""
        heads = f"H{self.query_heads}_{self.kv_heads}_D{self.head_dim}"
        if self.is_decode:
            return f"dec_B{self.batch}_{heads}_KV{self.kv_length}"
        mask = "causal" if self.causal else "full"
        return f"B{self.batch}_S{self.query_length}_{heads}_{mask}"

    @property
    def is_decode(self) -> bool:
        """One query row a sequence: memory is the limit."""
        return self.query_length == 1

    @property
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.query_heads // self.kv_heads

    @property
    def softmax_scale(self) -> float:
        """1 / sqrt(head_dim), for every case."""
        return self.head_dim**-0.5

    @property
    def flops(self) -> float:
        """Two matrix products of two operations per multiply-add; half of that where causal."""
        scores = self.batch * self.query_heads * self.query_length * self.kv_length
        return 4.0 * scores * self.head_dim / (2 if self.causal else 1)

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of all keys and values, read once."""
        elements = 2 * self.batch * self.kv_heads * self.kv_length * self.head_dim
        return elements * DTYPES[dtype].itemsize


def cases(quick: bool) -> list[Case]:
    """The grid of `omniflash bench prefill decode` on a GPU; all of its names are the same."""
    shapes = [
        (16384 // length, length, heads, heads, dim)
        for dim, heads in ((64, 32), (128, 16), (256, 8))
        for length in (512, 1024, 2048, 4096, 8192, 16384)
    ]
    shapes += [(4, 4096, 32, 8, 128), (1, 8192, 64, 8, 128)]
    shapes += [(4, 4096, 16, 16, dim) for dim in (96, 192, 80)]
    decode = [
        (1, 4096, 32, 8, 128),
        (1, 32768, 32, 8, 128),
        (1, 131072, 32, 8, 128),
        (16, 8192, 32, 8, 128),
        (64, 4096, 32, 8, 128),
        (128, 1024, 32, 8, 128),
        (16, 4096, 32, 32, 128),
        (16, 8192, 64, 8, 64),
        (8, 8192, 16, 1, 256),
    ]
    if quick:
        shapes = [
            (8, 2048, 32, 32, 64),
            (8, 2048, 16, 16, 128),
            (1, 16384, 16, 16, 128),
            (4, 4096, 32, 8, 128),
        ]
        decode = decode[:2]
    prefill = [
        Case(batch, heads, kv_heads, length, length, dim, causal)
        for batch, length, heads, kv_heads, dim in shapes
        for causal in (False, True)
    ]
    return prefill + [
        Case(batch, heads, kv_heads, 1, length, dim, causal=False)
        for batch, length, heads, kv_heads, dim in decode
    ]


def selected(all_cases: list[Case], pattern: str) -> list[Case]:
    """The cases whose name a regular expression is found in."""
    return [case for case in all_cases if re.search(pattern, case.name)]


def fill(count: int, seed: int) -> torch.Tensor:
    """Deterministic float32 values in [-1, 1): a hash of each element's index and `seed`.

    The same numbers as in `benches/peers/cpu`, so that an external command can make them.
    """
    mask = 0xFFFFFFFF
    x = torch.arange(count, dtype=torch.int64, device=DEVICE)
    x = (x * 2654435761 + seed * 0x9E3779B9) & mask
    x ^= x >> 15
    # The product of two 32-bit numbers may leave 63 bits: multiply by halves.
    low, high = 0x85EBCA6B & 0xFFFF, 0x85EBCA6B >> 16
    x = (x * low + ((x * high & 0xFFFF) << 16)) & mask
    x ^= x >> 13
    return ((x >> 8).float() / (1 << 24) - 0.5) * 2


def make_data(case: Case, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v on the GPU, [batch, length, heads, head_dim]."""
    query = (case.batch, case.query_length, case.query_heads, case.head_dim)
    keys = (case.batch, case.kv_length, case.kv_heads, case.head_dim)
    return tuple(
        fill(torch.Size(shape).numel(), seed).to(DTYPES[dtype]).reshape(shape)
        for shape, seed in ((query, 1), (keys, 2), (keys, 3))
    )


class Reference:
    """Float64 attention on up to 8 query rows, first to last, and 4 heads of batch 0."""

    def __init__(self, case: Case, data: tuple, dtype: str) -> None:
        q, k, v = (x[0] for x in data)
        count = min(case.query_length, 8)
        self.rows = torch.linspace(0, case.query_length - 1, count).long().tolist()
        self.heads = min(case.query_heads, 4)
        values = []
        for row in self.rows:
            visible = case.kv_length
            if case.causal:
                visible += row + 1 - case.query_length
            for head in range(self.heads):
                keys = k[:visible, head // case.group_size].double()
                scores = case.softmax_scale * (keys @ q[row, head].double())
                weights = torch.softmax(scores, 0)
                values.append(weights @ v[:visible, head // case.group_size].double())
        self.values = torch.stack(values).reshape(count, self.heads, case.head_dim)
        self.tolerance = TOLERANCES[dtype] * float(self.values.abs().max())

    def error(self, out: torch.Tensor) -> float:
        """Largest error of `out`, [batch, query_length, query_heads, head_dim], on the sample."""
        sample = out[0][self.rows][:, : self.heads].double()
        return float((sample - self.values).abs().max())

    def head_error(self, head: list[float]) -> float:
        """Largest error of the first outputs of query row 0, head 0."""
        found = torch.tensor(head, dtype=torch.float64, device=DEVICE)
        return float((found - self.values[0, 0, : len(head)]).abs().max())
