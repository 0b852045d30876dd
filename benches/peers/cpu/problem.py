"""The benchmark cases, their data, and a float64 reference to check every system against."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}

# A system is timed only if its largest error stays below this fraction of the largest reference
# value. f16 has bf16's bound because some systems compute "f16" in bf16.
TOLERANCES = {"f32": 1e-4, "bf16": 3e-2, "f16": 3e-2}


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
    def group_size(self) -> int:
        """Query heads that share one key and value head."""
        return self.query_heads // self.kv_heads

    @property
    def softmax_scale(self) -> float:
        """1 / sqrt(head_dim), for every case."""
        return self.head_dim**-0.5

    @property
    def scores(self) -> int:
        """Elements of the full score matrix."""
        return self.batch * self.query_heads * self.query_length * self.kv_length

    @property
    def flops(self) -> float:
        """Two matrix products of two operations per multiply-add; half of that where causal."""
        return 4.0 * self.scores * self.head_dim / (2 if self.causal else 1)

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of all keys and values, read once."""
        elements = 2 * self.batch * self.kv_heads * self.kv_length * self.head_dim
        return elements * np.dtype(DTYPES[dtype]).itemsize


CASES = {
    "p512_d64": Case(1, 8, 8, 512, 512, 64, causal=False),
    "p512_d64_c": Case(1, 8, 8, 512, 512, 64, causal=True),
    "p2048_d64": Case(1, 8, 8, 2048, 2048, 64, causal=False),
    "p2048_d64_c": Case(1, 8, 8, 2048, 2048, 64, causal=True),
    "p2048_d128": Case(1, 16, 16, 2048, 2048, 128, causal=False),
    "p2048_d128_c": Case(1, 16, 16, 2048, 2048, 128, causal=True),
    "p4096_d128": Case(1, 32, 32, 4096, 4096, 128, causal=False),
    "p4096_d128_c": Case(1, 32, 32, 4096, 4096, 128, causal=True),
    "gqa2048_d128_c": Case(1, 32, 8, 2048, 2048, 128, causal=True),
    "dec4k": Case(1, 32, 8, 1, 4096, 128, causal=False),
    "dec32k": Case(1, 32, 8, 1, 32768, 128, causal=False),
}


def fill(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Deterministic float32 values in [-1, 1): a hash of each element's index and `seed`."""
    mask = np.uint64(0xFFFFFFFF)
    index = np.arange(int(np.prod(shape)), dtype=np.uint64)
    x = (index * np.uint64(2654435761) + np.uint64(seed) * np.uint64(0x9E3779B9)) & mask
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x85EBCA6B)) & mask
    x ^= x >> np.uint64(13)
    unit = (x >> np.uint64(8)).astype(np.float32) / np.float32(1 << 24)
    return ((unit - np.float32(0.5)) * np.float32(2)).reshape(shape)


def make_data(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k, v in float32, [batch, length, heads, head_dim], with values that `dtype` holds."""
    query_shape = (case.batch, case.query_length, case.query_heads, case.head_dim)
    kv_shape = (case.batch, case.kv_length, case.kv_heads, case.head_dim)
    q, k, v = fill(query_shape, 1), fill(kv_shape, 2), fill(kv_shape, 3)
    if dtype == "f32":
        return q, k, v
    q, k, v = (x.astype(DTYPES[dtype]).astype(np.float32) for x in (q, k, v))
    return q, k, v


class Reference:
    """Float64 attention on up to 8 query rows, first to last, and 4 heads of batch 0."""

    def __init__(
        self, case: Case, data: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        q, k, v = (x[0] for x in data)
        count = min(case.query_length, 8)
        self.rows = np.linspace(0, case.query_length - 1, count).astype(int)
        self.heads = min(case.query_heads, 4)
        self.values = np.empty((count, self.heads, case.head_dim))
        for i, row in enumerate(self.rows):
            visible = case.kv_length
            if case.causal:
                visible += row + 1 - case.query_length
            for head in range(self.heads):
                keys = k[:visible, head // case.group_size].astype(np.float64)
                values = v[:visible, head // case.group_size].astype(np.float64)
                scores = case.softmax_scale * (keys @ q[row, head].astype(np.float64))
                weights = np.exp(scores - scores.max())
                self.values[i, head] = (weights / weights.sum()) @ values
        self.largest = float(np.abs(self.values).max())

    def error(self, out: np.ndarray) -> float:
        """Largest error of `out`, [query_length, query_heads, head_dim], on the sample."""
        return float(np.abs(out[self.rows, : self.heads] - self.values).max())

    def head_error(self, head: list[float]) -> float:
        """Largest error of the first outputs of query row 0, head 0."""
        return float(np.abs(np.array(head) - self.values[0, 0, : len(head)]).max())

    def accepts(self, error: float, dtype: str) -> bool:
        """Whether an error is small enough for `dtype`; a NaN is not."""
        return error <= self.tolerance(dtype)

    def tolerance(self, dtype: str) -> float:
        """The largest error that is small enough for `dtype`."""
        return TOLERANCES[dtype] * self.largest
