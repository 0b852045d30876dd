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
    """One attention problem: sizes, and the mask or the form of its batch.

    `form` is what `omniflash bench` has behind the sizes of a name: full, causal (bottom-right
    aligned), window1024, densecausal, bias; ragged for causal sequences of different lengths, end to
    end; of decode cases full, page64, page64_mixed.
    """

    batch: int
    query_heads: int
    kv_heads: int
    query_length: int
    kv_length: int
    head_dim: int
    form: str

    @property
    def name(self) -> str:
        """The name that all systems give the case."""
        heads = f"H{self.query_heads}_{self.kv_heads}_D{self.head_dim}"
        if self.is_decode:
            form = "" if self.form == "full" else f"_{self.form}"
            return f"dec_B{self.batch}_{heads}_KV{self.kv_length}{form}"
        if self.is_ragged:
            return f"var_B{self.batch}_S{self.query_length}_{heads}_causal"
        return f"B{self.batch}_S{self.query_length}_{heads}_{self.form}"

    @property
    def is_decode(self) -> bool:
        """One query row a sequence: memory is the limit."""
        return self.query_length == 1

    @property
    def is_ragged(self) -> bool:
        """Sequences of different lengths, of which `query_length` is the longest."""
        return self.form == "ragged"

    @property
    def causal(self) -> bool:
        """Whether no key after a query's position is seen."""
        return self.form in ("causal", "densecausal", "ragged") or self.window > 0

    @property
    def window(self) -> int:
        """Keys that a row sees at most; 0 for all."""
        return self._number("window")

    @property
    def page_size(self) -> int:
        """Keys of a page; 0 where there are none."""
        return self._number("page")

    def _number(self, prefix: str) -> int:
        found = re.match(prefix + r"(\d+)", self.form)
        return int(found[1]) if found else 0

    @property
    def lengths(self) -> list[int]:
        """Keys of each sequence: evenly from a share of the longest to the longest, or all alike."""
        if self.is_ragged or self.form.endswith("_mixed"):
            return [
                max(self.kv_length * i // self.batch, 1) for i in range(1, self.batch + 1)
            ]
        return [self.kv_length] * self.batch

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
        """Two products of two operations per multiply-add, of visible scores; half where causal."""
        rows = [1] * self.batch if self.is_decode else self.lengths
        if self.window:
            seen = [self.visible(row) for row in range(self.query_length)]
            scores = self.batch * sum(len(keys) for keys in seen)
        else:
            scores = sum(m * n for m, n in zip(rows, self.lengths)) / (2 if self.causal else 1)
        return 4.0 * self.query_heads * scores * self.head_dim

    def visible(self, row: int) -> range:
        """The keys that a row of the first sequence sees."""
        length = self.lengths[0]
        rows = length if self.is_ragged else self.query_length
        end = row + 1 + length - rows if self.causal else length
        return range(max(end - self.window, 0) if self.window else 0, end)

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of all keys and values, read once."""
        elements = 2 * sum(self.lengths) * self.kv_heads * self.head_dim
        return elements * DTYPES[dtype].itemsize


def groups(quick: bool) -> dict[str, list[Case]]:
    """Cases of the grid of `omniflash bench` on a GPU that peers can do, by its groups and names."""
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
    windows = [(1, 16384, 32, 32, 64), (1, 16384, 16, 16, 128), (1, 16384, 8, 8, 256)]
    ragged = [
        (8, 4096, 16, 16, 128),
        (32, 2048, 32, 8, 128),
        (64, 1024, 32, 32, 64),
        (64, 8192, 16, 16, 128),
    ]
    pages = (16, 64, 128)
    if quick:
        shapes = [
            (8, 2048, 32, 32, 64),
            (8, 2048, 16, 16, 128),
            (1, 16384, 16, 16, 128),
            (4, 4096, 32, 8, 128),
        ]
        decode, windows, ragged, pages = decode[:2], [], ragged[:1], (64,)

    def prefill(shapes, *forms):
        return [Case(b, h, hkv, s, s, d, form) for b, s, h, hkv, d in shapes for form in forms]

    def step(shapes, form):
        return [Case(b, h, hkv, 1, s, d, form) for b, s, h, hkv, d in shapes]

    paged = [case for page in pages for case in step(decode, f"page{page}")]
    masked = prefill([(1, 8192, 16, 16, 128)], "window1024", "densecausal", "bias")
    return {
        "prefill": prefill(shapes, "full", "causal"),
        "decode": step(decode, "full"),
        "paged": paged + step([(64, 4096, 32, 8, 128)], "page64_mixed"),
        "masks": masked + prefill(windows, "window1024"),
        "ragged": prefill(ragged, "ragged"),
    }


def cases(quick: bool, names: list[str] | None) -> list[Case]:
    """The cases of these groups, or of all. Groups of ours that peers have no part in have none."""
    every = groups(quick)
    return [case for name in every if names is None or name in names for case in every[name]]


def selected(all_cases: list[Case], pattern: str) -> list[Case]:
    """The cases whose name a regular expression is found in."""
    return [case for case in all_cases if re.search(pattern, case.name)]


def hashed(count: int, seed: int) -> torch.Tensor:
    """32 bits for each index, as 64-bit integers."""
    mask = 0xFFFFFFFF
    x = torch.arange(count, dtype=torch.int64, device=DEVICE)
    x = (x * 2654435761 + seed * 0x9E3779B9) & mask
    x ^= x >> 15
    # The product of two 32-bit numbers may leave 63 bits: multiply by halves.
    low, high = 0x85EBCA6B & 0xFFFF, 0x85EBCA6B >> 16
    x = (x * low + ((x * high & 0xFFFF) << 16)) & mask
    return x ^ (x >> 13)


def fill(count: int, seed: int) -> torch.Tensor:
    """Deterministic float32 values in [-1, 1): a hash of each element's index and `seed`.

    The same numbers as in `benches/peers/cpu`, so that an external command can make them.
    """
    return ((hashed(count, seed) >> 8).float() / (1 << 24) - 0.5) * 2


@dataclass(frozen=True)
class Data:
    """What a case computes on, on the GPU.

    q, k, v are [batch, length, heads, head_dim]; of ragged batches [tokens, heads, head_dim], with
    `offsets` [batch + 1]; k and v of paged caches are [pages, page_size, heads, head_dim], with
    `table` [batch, pages of a sequence] and `lengths` [batch].
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    offsets: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor | None
    # Added to the scores, [1, 1, rows, keys], or true where a key is seen.
    mask: torch.Tensor | None

    @staticmethod
    def of(case: Case, dtype: str) -> "Data":
        """The data of a case, the same for all systems."""

        def tensor(shape, seed):
            return fill(torch.Size(shape).numel(), seed).to(DTYPES[dtype]).reshape(shape)

        def integers(values):
            return torch.as_tensor(values, dtype=torch.int32, device=DEVICE)

        lengths, page_size, table, mask = case.lengths, case.page_size, None, None
        query = (case.batch, case.query_length, case.query_heads, case.head_dim)
        keys = (case.batch, case.kv_length, case.kv_heads, case.head_dim)
        if case.is_ragged:
            query, keys = ((sum(lengths), heads, case.head_dim) for heads in (query[2], keys[2]))
        if page_size:
            pages = case.batch * -(-case.kv_length // page_size)
            keys = (pages, page_size, case.kv_heads, case.head_dim)
            # In the order of their hashes.
            order = torch.sort(hashed(pages, 4), stable=True).indices
            table = integers(order).reshape(case.batch, -1)
        square = (case.query_length, case.kv_length)
        if case.form == "bias":
            mask = tensor((1, 1, *square), 4)
        if case.form == "densecausal":
            mask = torch.ones((1, 1, *square), dtype=torch.bool, device=DEVICE).tril()
        ends = [sum(lengths[:i]) for i in range(case.batch + 1)]
        q, k, v = tensor(query, 1), tensor(keys, 2), tensor(keys, 3)
        return Data(q, k, v, integers(ends), integers(lengths), table, mask)

    def first(self, case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v of the first sequence, [length, heads, head_dim]."""
        length = case.lengths[0]
        if case.is_ragged:
            return self.q[:length], self.k[:length], self.v[:length]
        if self.table is None:
            return self.q[0], self.k[0], self.v[0]
        pages = self.table[0].long()
        return self.q[0], *(x[pages].flatten(0, 1)[:length] for x in (self.k, self.v))


class Reference:
    """Float64 attention on up to 8 query rows, first to last, and 4 heads of the first sequence."""

    def __init__(self, case: Case, data: Data, dtype: str) -> None:
        q, k, v = data.first(case)
        rows = len(q)
        count = min(rows, 8)
        self.is_ragged = case.is_ragged
        self.rows = torch.linspace(0, rows - 1, count).long().tolist()
        self.heads = min(case.query_heads, 4)
        values = []
        for row in self.rows:
            seen = case.visible(row)
            seen = slice(seen.start, seen.stop)
            for head in range(self.heads):
                keys = k[seen, head // case.group_size].double()
                scores = case.softmax_scale * (keys @ q[row, head].double())
                if case.form == "bias":
                    scores += data.mask[0, 0, row].double()
                weights = torch.softmax(scores, 0)
                values.append(weights @ v[seen, head // case.group_size].double())
        self.values = torch.stack(values).reshape(count, self.heads, case.head_dim)
        self.tolerance = TOLERANCES[dtype] * float(self.values.abs().max())

    def error(self, out: torch.Tensor) -> float:
        """Largest error of `out`, which has q's shape, on the sample."""
        first = out if self.is_ragged else out[0]
        sample = first[self.rows][:, : self.heads].double()
        return float((sample - self.values).abs().max())

    def head_error(self, head: list[float]) -> float:
        """Largest error of the first outputs of query row 0, head 0."""
        found = torch.tensor(head, dtype=torch.float64, device=DEVICE)
        return float((found - self.values[0, 0, : len(head)]).abs().max())
