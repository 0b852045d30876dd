"""The in-process peers.

A system is built with `(case, q, k, v)`, tensors [batch, length, heads, head_dim] on the GPU, and
is called to compute attention once; `rows(output)` gives the output in q's shape. Only the call is
timed. What a system cannot do raises `Unsupported`, or an error of its own.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from problem import DEVICE, Case

WORKSPACE_BYTES = 256 << 20
PAGE_SIZE = 64


class Unsupported(Exception):
    """The system has no path for this case."""


class System:
    """What systems share: the output has q's shape, and a call can be captured in a graph."""

    modules: tuple[str, ...] = ()
    is_capturable = True

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        """The output in q's shape."""
        return out


class Torch(System):
    """One backend of torch's scaled_dot_product_attention, on BSHD storage seen as BHSD."""

    backend: SDPBackend

    def __init__(self, case: Case, q, k, v) -> None:
        self.inputs = [x.transpose(1, 2) for x in (q, k, v)]
        self.causal, self.grouped = case.causal, case.group_size > 1

    def __call__(self):
        with sdpa_kernel(self.backend):
            return scaled_dot_product_attention(
                *self.inputs, is_causal=self.causal, enable_gqa=self.grouped
            )

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.transpose(1, 2)


class TorchCudnn(Torch):
    """cuDNN's kernels."""

    backend = SDPBackend.CUDNN_ATTENTION


class TorchFlash(Torch):
    """FlashAttention-2, as torch builds it."""

    backend = SDPBackend.FLASH_ATTENTION


class FlashAttention3(System):
    """The wheel fa3-fwd: forward only, for Hopper. Where keys are long, it chooses how to split them."""

    modules = ("fa3_fwd_interface",)

    def __init__(self, case: Case, q, k, v) -> None:
        import fa3_fwd_config
        import fa3_fwd_interface

        # The wheel imports its own configuration by a name that it does not have.
        sys.modules.setdefault("flash_attn_config", fa3_fwd_config)
        self.function = fa3_fwd_interface.flash_attn_func
        self.inputs = (q, k, v)
        self.options = {"causal": case.causal, "num_splits": 0 if case.is_decode else 1}

    def __call__(self):
        return self.function(*self.inputs, **self.options)

    def rows(self, out) -> torch.Tensor:
        return out[0] if isinstance(out, tuple) else out


class FlashAttention4(FlashAttention3):
    """flash-attn-4, in CuTe's Python."""

    modules = ("flash_attn.cute",)

    def __init__(self, case: Case, q, k, v) -> None:
        from flash_attn.cute import flash_attn_func

        self.function = flash_attn_func
        self.inputs, self.options = (q, k, v), {"causal": case.causal}


class FlashInferPrefill(System):
    """FlashInfer's ragged prefill; the first call of a kind compiles for minutes."""

    modules = ("flashinfer",)

    def __init__(self, case: Case, q, k, v) -> None:
        import flashinfer

        if case.is_decode:
            raise Unsupported("its decode is timed by itself")
        memory = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
        self.wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(memory, "NHD")
        offsets = torch.arange(case.batch + 1, dtype=torch.int32, device=DEVICE)
        self.wrapper.plan(
            offsets * case.query_length,
            offsets * case.kv_length,
            case.query_heads,
            case.kv_heads,
            case.head_dim,
            causal=case.causal,
            q_data_type=q.dtype,
        )
        self.shape = q.shape
        self.inputs = [x.flatten(0, 1) for x in (q, k, v)]

    def __call__(self):
        return self.wrapper.run(*self.inputs)

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.reshape(self.shape)


class FlashInferDecode(System):
    """FlashInfer's decode over pages of 64, with tensor cores."""

    modules = ("flashinfer",)

    def __init__(self, case: Case, q, k, v) -> None:
        import flashinfer

        if not case.is_decode:
            raise Unsupported("decode only")
        pages = case.kv_length // PAGE_SIZE
        shape = (case.batch * pages, PAGE_SIZE, case.kv_heads, case.head_dim)
        self.cache = torch.stack([k.reshape(shape), v.reshape(shape)], 1)
        memory = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            memory, "NHD", use_tensor_cores=True
        )
        integers = {"dtype": torch.int32, "device": DEVICE}
        self.wrapper.plan(
            torch.arange(case.batch + 1, **integers) * pages,
            torch.arange(case.batch * pages, **integers),
            torch.full((case.batch,), PAGE_SIZE, **integers),
            case.query_heads,
            case.kv_heads,
            case.head_dim,
            PAGE_SIZE,
            q_data_type=q.dtype,
            kv_data_type=k.dtype,
        )
        self.query = q[:, 0].contiguous()

    def __call__(self):
        return self.wrapper.run(self.query, self.cache)

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out[:, None]


class Mojo(System):
    """Modular's flash_attention through a MAX graph, the function that omniflash grew from.

    MAX runs on a stream of its own: calls are timed by the host's clock, with the graph's overhead.
    """

    modules = ("max.engine", "max.nn.kernels")
    is_capturable = False

    def __init__(self, case: Case, q, k, v) -> None:
        from max import driver, engine
        from max.dtype import DType
        from max.graph import DeviceRef, Graph, TensorType
        from max.nn.kernels import MHAMaskVariant, flash_attention_gpu

        names = {
            torch.bfloat16: DType.bfloat16,
            torch.float16: DType.float16,
            torch.float32: DType.float32,
        }
        types = [TensorType(names[x.dtype], x.shape, DeviceRef.GPU()) for x in (q, k, v)]
        mask = MHAMaskVariant.CAUSAL_MASK if case.causal else MHAMaskVariant.NULL_MASK
        with Graph("attention", input_types=types) as graph:
            tensors = [x.tensor for x in graph.inputs]
            graph.output(
                flash_attention_gpu(*tensors, mask_variant=mask, scale=case.softmax_scale)
            )
        self.device = driver.Accelerator()
        self.model = engine.InferenceSession(devices=[self.device]).load(graph)
        self.inputs = [driver.Tensor.from_dlpack(x) for x in (q, k, v)]

    def __call__(self):
        (out,) = self.model.execute(*self.inputs)
        self.device.synchronize()
        return out

    def rows(self, out) -> torch.Tensor:
        return torch.from_dlpack(out)


SYSTEMS: dict[str, type[System]] = {
    "torch-cudnn": TorchCudnn,
    "torch-flash2": TorchFlash,
    "fa3": FlashAttention3,
    "fa4-cute": FlashAttention4,
    "flashinfer": FlashInferPrefill,
    "flashinfer-paged64": FlashInferDecode,
    "mojo": Mojo,
}
