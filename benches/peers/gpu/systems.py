"""The in-process peers.

A system is built with a case and its data (`problem.py`), and is called to compute attention once;
`rows(output)` gives the output in q's shape. Only the call is timed. What a system cannot do raises
`Unsupported`, or an error of its own.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from problem import DEVICE, Case, Data

WORKSPACE_BYTES = 256 << 20
PAGE_SIZE = 64


class Unsupported(Exception):
    """The system has no path for this case."""


class System:
    """What systems share: the output has q's shape, and a call can be captured in a graph."""

    modules: tuple[str, ...] = ()
    is_capturable = True
    forms: tuple[str, ...] = ("full", "causal")

    def __init__(self, case: Case, data: Data) -> None:
        """Subclasses prepare the call."""

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether the system knows a case's form, by its name without numbers."""
        return "".join(letter for letter in case.form if not letter.isdigit()) in cls.forms

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        """The output in q's shape."""
        return out


class Torch(System):
    """torch's scaled_dot_product_attention, on BSHD storage seen as BHSD, by one of its backends."""

    backend: SDPBackend

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        self.inputs = [x.transpose(1, 2) for x in (data.q, data.k, data.v)]
        self.options = {"is_causal": case.form == "causal", "enable_gqa": case.group_size > 1}

    def __call__(self):
        with sdpa_kernel(self.backend):
            return scaled_dot_product_attention(*self.inputs, **self.options)

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.transpose(1, 2)


class TorchCudnn(Torch):
    """cuDNN's kernels."""

    backend = SDPBackend.CUDNN_ATTENTION


class TorchFlash(Torch):
    """FlashAttention-2, as torch builds it."""

    backend = SDPBackend.FLASH_ATTENTION


class TorchMask(Torch):
    """A tensor as mask or bias, by whichever backend torch takes for it."""

    forms = ("densecausal", "bias")

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        self.options["attn_mask"] = data.mask

    def __call__(self):
        return scaled_dot_product_attention(*self.inputs, **self.options)


class FlashAttention3(System):
    """The wheel fa3-fwd: forward only, for Hopper. Where keys are long, it chooses how to split them."""

    modules = ("fa3_fwd_interface",)
    forms = ("full", "causal", "ragged")

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        self.inputs = (data.q, data.k, data.v)
        self.options = {"causal": case.causal, "num_splits": 0 if case.is_decode else 1}
        self.options |= self.ragged(case, data) if case.is_ragged else self.window(case)
        self.function = self.load(case)

    def load(self, case: Case):
        """The function to call."""
        import fa3_fwd_config

        # The wheel imports its own configuration by a name that it does not have.
        sys.modules.setdefault("flash_attn_config", fa3_fwd_config)
        import fa3_fwd_interface as interface

        return interface.flash_attn_varlen_func if case.is_ragged else interface.flash_attn_func

    @staticmethod
    def ragged(case: Case, data: Data) -> dict:
        """What says where sequences lie."""
        return {
            "cu_seqlens_q": data.offsets,
            "cu_seqlens_k": data.offsets,
            "max_seqlen_q": case.query_length,
            "max_seqlen_k": case.kv_length,
        }

    @staticmethod
    def window(case: Case) -> dict:
        """What says how many keys a row sees."""
        return {"window_size": (case.window - 1, 0)} if case.window else {}

    def __call__(self):
        return self.function(*self.inputs, **self.options)

    def rows(self, out) -> torch.Tensor:
        return out[0] if isinstance(out, tuple) else out


class FlashAttention4(FlashAttention3):
    """flash-attn-4, in CuTe's Python."""

    modules = ("flash_attn.cute",)
    forms = ("full", "causal", "window", "ragged")

    def load(self, case: Case):
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

        return flash_attn_varlen_func if case.is_ragged else flash_attn_func


class VllmFlashAttention3(System):
    """FlashAttention-3 as vLLM ships it: for windows and pages, which `fa3` lacks, and ragged batches."""

    modules = ("vllm_fa3",)
    forms = ("window", "ragged", "page", "page_mixed")

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        import vllm_fa3

        q, k, v = data.q, data.k, data.v
        self.shape = q.shape
        if not case.is_ragged:
            q = q.flatten(0, 1)
            if data.table is None:
                k, v = k.flatten(0, 1), v.flatten(0, 1)
        rows = torch.arange(case.batch + 1, dtype=torch.int32, device=DEVICE) * case.query_length
        self.call = vllm_fa3.prepared(
            q,
            k,
            v,
            query_offsets=data.offsets if case.is_ragged else rows,
            key_offsets=data.offsets if data.table is None else None,
            key_lengths=data.lengths if data.table is not None else None,
            page_table=data.table,
            longest=(case.query_length, case.kv_length),
            scale=case.softmax_scale,
            causal=case.causal,
            window=(case.window - 1, 0) if case.window else (-1, -1),
            splits=0 if case.is_decode else 1,
        )

    def __call__(self):
        return self.call()

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.reshape(self.shape)


class FlashInferPrefill(System):
    """FlashInfer's ragged prefill; the first call of a kind compiles for minutes."""

    modules = ("flashinfer",)
    forms = ("full", "causal", "window", "ragged")

    def __init__(self, case: Case, data: Data) -> None:
        import flashinfer

        super().__init__(case, data)
        if case.is_decode:
            raise Unsupported("its decode is timed by itself")
        memory = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
        self.wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(memory, "NHD")
        self.wrapper.plan(
            data.offsets,
            data.offsets,
            case.query_heads,
            case.kv_heads,
            case.head_dim,
            causal=case.causal,
            window_left=case.window - 1,
            q_data_type=data.q.dtype,
        )
        self.shape = data.q.shape
        tensors = (data.q, data.k, data.v)
        self.inputs = [x if case.is_ragged else x.flatten(0, 1) for x in tensors]

    def __call__(self):
        return self.wrapper.run(*self.inputs)

    def rows(self, out: torch.Tensor) -> torch.Tensor:
        return out.reshape(self.shape)


class FlashInferDecode(System):
    """FlashInfer's decode with tensor cores, over the case's pages, else over pages of 64."""

    modules = ("flashinfer",)
    forms = ("full", "page")

    def __init__(self, case: Case, data: Data) -> None:
        import flashinfer

        super().__init__(case, data)
        if not case.is_decode:
            raise Unsupported("decode only")
        page_size = case.page_size or PAGE_SIZE
        shape = (-1, page_size, case.kv_heads, case.head_dim)
        self.cache = torch.stack([data.k.reshape(shape), data.v.reshape(shape)], 1)
        memory = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=DEVICE)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            memory, "NHD", use_tensor_cores=True
        )
        integers = {"dtype": torch.int32, "device": DEVICE}
        pages = case.kv_length // page_size
        in_order = torch.arange(case.batch * pages, **integers)
        self.wrapper.plan(
            torch.arange(case.batch + 1, **integers) * pages,
            in_order if data.table is None else data.table.flatten(),
            torch.full((case.batch,), page_size, **integers),
            case.query_heads,
            case.kv_heads,
            case.head_dim,
            page_size,
            q_data_type=data.q.dtype,
            kv_data_type=data.k.dtype,
        )
        self.query = data.q[:, 0].contiguous()

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

    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        from max import driver, engine
        from max.dtype import DType
        from max.graph import DeviceRef, Graph, TensorType
        from max.nn.kernels import MHAMaskVariant, flash_attention_gpu

        names = {
            torch.bfloat16: DType.bfloat16,
            torch.float16: DType.float16,
            torch.float32: DType.float32,
        }
        tensors = (data.q, data.k, data.v)
        types = [TensorType(names[x.dtype], x.shape, DeviceRef.GPU()) for x in tensors]
        mask = MHAMaskVariant.CAUSAL_MASK if case.causal else MHAMaskVariant.NULL_MASK
        with Graph("attention", input_types=types) as graph:
            inputs = [x.tensor for x in graph.inputs]
            graph.output(
                flash_attention_gpu(*inputs, mask_variant=mask, scale=case.softmax_scale)
            )
        self.device = driver.Accelerator()
        self.model = engine.InferenceSession(devices=[self.device]).load(graph)
        self.inputs = [driver.Tensor.from_dlpack(x) for x in tensors]

    def __call__(self):
        (out,) = self.model.execute(*self.inputs)
        self.device.synchronize()
        return out

    def rows(self, out) -> torch.Tensor:
        return torch.from_dlpack(out)


SYSTEMS: dict[str, type[System]] = {
    "torch-cudnn": TorchCudnn,
    "torch-flash2": TorchFlash,
    "torch-mask": TorchMask,
    "fa3": FlashAttention3,
    "fa3-vllm": VllmFlashAttention3,
    "fa4-cute": FlashAttention4,
    "flashinfer": FlashInferPrefill,
    "flashinfer-paged": FlashInferDecode,
    "mojo": Mojo,
}
