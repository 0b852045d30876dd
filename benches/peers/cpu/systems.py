"""The in-process peers.

A system is built with `(case, dtype, threads, data)`, `data` being q, k, v from
`make_data`. Calling it computes attention once and returns its own kind of output;
`rows(output)` turns that into a float32 array [query_length, query_heads, head_dim] of
batch 0. Only the call is timed: each system gets its inputs in the layout and dtype it
likes best. What a system cannot do raises `Unsupported`.
"""

import ml_dtypes
import numpy as np

from problem import Case

Data = tuple[np.ndarray, np.ndarray, np.ndarray]

# Systems that hold the whole score matrix get no case with more elements than this.
MOST_SCORES = 1.1e9
MOST_SCORES_NUMPY = 3e8


class Unsupported(Exception):
    """The system has no path for this case, or none worth timing."""


def heads_first(x: np.ndarray) -> np.ndarray:
    """[batch, length, heads, head_dim] as a contiguous [batch, heads, length, head_dim]."""
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3))


def groups_as_rows(case: Case, data: Data) -> tuple[Case, Data]:
    """A decode case with the query heads of each group folded into query rows."""
    q, k, v = data
    q = q.reshape(case.batch, case.kv_heads, case.group_size, case.head_dim)
    q = np.ascontiguousarray(q.transpose(0, 2, 1, 3))
    folded = Case(
        case.batch,
        case.kv_heads,
        case.kv_heads,
        case.group_size,
        case.kv_length,
        case.head_dim,
        causal=False,
    )
    return folded, (q, k, v)


def is_grouped_decode(case: Case) -> bool:
    """One query row per sequence and more query heads than key heads."""
    return case.query_length == 1 and case.group_size > 1


class Torch:
    """torch's scaled_dot_product_attention on contiguous BHSD tensors, its best case."""

    backend = "FLASH_ATTENTION"

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        self.torch, self.case, self.threads = torch, case, threads
        self.context, self.sdp_backend = sdpa_kernel, getattr(SDPBackend, self.backend)
        torch_dtype = {
            "f32": torch.float32,
            "bf16": torch.bfloat16,
            "f16": torch.float16,
        }[dtype]
        self.q, self.k, self.v = (
            torch.from_numpy(heads_first(x)).to(torch_dtype) for x in data
        )

    def __call__(self):
        self.torch.set_num_threads(self.threads)
        with self.torch.no_grad(), self.context([self.sdp_backend]):
            return self.torch.nn.functional.scaled_dot_product_attention(
                self.q,
                self.k,
                self.v,
                is_causal=self.case.causal,
                enable_gqa=self.case.group_size > 1,
            )

    def rows(self, out) -> np.ndarray:
        return out[0].transpose(0, 1).float().numpy()


class TorchMath(Torch):
    """torch's unfused path."""

    backend = "MATH"

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        if case.scores > MOST_SCORES:
            raise Unsupported("the score matrix is too big")
        super().__init__(case, dtype, threads, data)


class TorchPacked(Torch):
    """torch with query heads folded into rows by hand: in decode 2-8x faster than enable_gqa."""

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        if not is_grouped_decode(case):
            raise Unsupported("grouped decode only")
        self.query_heads = case.query_heads
        folded, data = groups_as_rows(case, data)
        super().__init__(folded, dtype, threads, data)

    def rows(self, out) -> np.ndarray:
        return out[0].float().numpy().reshape(1, self.query_heads, -1)


class Numpy:
    """matmul, softmax, matmul."""

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        from threadpoolctl import ThreadpoolController

        if dtype != "f32":
            raise Unsupported("f32 only")
        if case.scores > MOST_SCORES_NUMPY:
            raise Unsupported("the score matrix is too big")
        self.case, self.threads = case, threads
        self.pools = ThreadpoolController()
        self.q, self.k, self.v = (heads_first(x) for x in data)

    def __call__(self) -> np.ndarray:
        case = self.case
        with self.pools.limit(limits=self.threads):
            rows = case.group_size * case.query_length
            q = self.q.reshape(case.batch, case.kv_heads, rows, case.head_dim)
            scores = q @ self.k.swapaxes(-1, -2) * np.float32(case.softmax_scale)
            if case.causal:
                offset = case.kv_length - case.query_length
                visible = np.tril(
                    np.ones((case.query_length, case.kv_length), bool), offset
                )
                scores = np.where(
                    np.tile(visible, (case.group_size, 1)), scores, -np.inf
                )
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            out = scores @ self.v
            return out.reshape(
                case.batch, case.query_heads, case.query_length, case.head_dim
            )

    def rows(self, out: np.ndarray) -> np.ndarray:
        return out[0].transpose(1, 0, 2)


class OnnxRuntime:
    """One attention node on onnxruntime's CPU provider, its inputs and outputs bound in place."""

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        import onnx
        import onnxruntime

        self.case, self.onnx = case, onnx
        if dtype == "bf16":
            raise Unsupported("no bf16 on the CPU provider")
        self.check(dtype)
        self.element = (
            onnx.TensorProto.FLOAT if dtype == "f32" else onnx.TensorProto.FLOAT16
        )
        numpy_dtype = np.float32 if dtype == "f32" else np.float16
        node, inputs, outputs, feed = self.graph(*(x.astype(numpy_dtype) for x in data))

        helper = onnx.helper
        model = helper.make_model(
            helper.make_graph([node], "attention", inputs, outputs),
            opset_imports=[
                helper.make_opsetid("", 23),
                helper.make_opsetid("com.microsoft", 1),
            ],
        )
        model.ir_version = 10
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.binding = self.session.io_binding()
        self.values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(x)
            for name, x in feed.items()
        }
        for name, value in self.values.items():
            self.binding.bind_ortvalue_input(name, value)
        self.out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            self.out_shape(), numpy_dtype, "cpu"
        )
        self.binding.bind_ortvalue_output("o", self.out)

    def check(self, dtype: str) -> None:
        """Raise `Unsupported` where the operator cannot do the case."""

    def graph(self, q: np.ndarray, k: np.ndarray, v: np.ndarray):
        """The node, its declared inputs and outputs, and the arrays to feed."""
        raise NotImplementedError

    def declare(self, name: str, shape: list[int] | None, element: int | None = None):
        """A typed graph input or output."""
        return self.onnx.helper.make_tensor_value_info(
            name, element or self.element, shape
        )

    def packed_shape(self, length: int, heads: int) -> list[int]:
        """[batch, length, heads * head_dim]."""
        return [self.case.batch, length, heads * self.case.head_dim]

    def out_shape(self) -> list[int]:
        """Shape of the bound output."""
        return self.packed_shape(self.case.query_length, self.case.query_heads)

    def __call__(self):
        self.session.run_with_iobinding(self.binding)
        return self.out

    def rows(self, out) -> np.ndarray:
        shape = (self.case.query_length, self.case.query_heads, self.case.head_dim)
        return out.numpy()[0].astype(np.float32).reshape(shape)


class OrtMultiHead(OnnxRuntime):
    """com.microsoft.MultiHeadAttention."""

    def check(self, dtype: str) -> None:
        if dtype != "f32" or self.case.group_size > 1:
            raise Unsupported("f32 and as many key heads as query heads only")

    def graph(self, q: np.ndarray, k: np.ndarray, v: np.ndarray):
        case = self.case
        node = self.onnx.helper.make_node(
            "MultiHeadAttention",
            ["q", "k", "v"],
            ["o"],
            domain="com.microsoft",
            num_heads=case.query_heads,
            unidirectional=int(case.causal),
        )
        feed = {
            name: x.reshape(case.batch, x.shape[1], -1)
            for name, x in (("q", q), ("k", k), ("v", v))
        }
        inputs = [self.declare(name, list(x.shape)) for name, x in feed.items()]
        return node, inputs, [self.declare("o", None)], feed


class OrtAttention(OnnxRuntime):
    """The standard's own Attention operator (opset 23)."""

    def check(self, dtype: str) -> None:
        if self.case.scores > MOST_SCORES:
            raise Unsupported("the score matrix is too big")

    def graph(self, q: np.ndarray, k: np.ndarray, v: np.ndarray):
        node = self.onnx.helper.make_node(
            "Attention", ["q", "k", "v"], ["o"], is_causal=int(self.case.causal)
        )
        feed = {name: heads_first(x) for name, x in (("q", q), ("k", k), ("v", v))}
        inputs = [self.declare(name, list(x.shape)) for name, x in feed.items()]
        return node, inputs, [self.declare("o", None)], feed

    def out_shape(self) -> list[int]:
        case = self.case
        return [case.batch, case.query_heads, case.query_length, case.head_dim]

    def rows(self, out) -> np.ndarray:
        return out.numpy()[0].transpose(1, 0, 2).astype(np.float32)


class OrtGroupQuery(OnnxRuntime):
    """com.microsoft.GroupQueryAttention.

    Past and present share one buffer: else the operator copies the whole cache.
    """

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        super().__init__(case, dtype, threads, data)
        self.binding.bind_ortvalue_output("present_k", self.values["past_k"])
        self.binding.bind_ortvalue_output("present_v", self.values["past_v"])

    def check(self, dtype: str) -> None:
        if self.case.query_length > 1 and not self.case.causal:
            raise Unsupported("the operator is causal only")

    def graph(self, q: np.ndarray, k: np.ndarray, v: np.ndarray):
        case, integer = self.case, self.onnx.TensorProto.INT32
        node = self.onnx.helper.make_node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_k", "past_v", "last_key", "total_length"],
            ["o", "present_k", "present_v"],
            domain="com.microsoft",
            num_heads=case.query_heads,
            kv_num_heads=case.kv_heads,
        )
        past = case.kv_length - case.query_length
        new_shape = (case.batch, case.query_length, -1)
        feed = {
            "q": q.reshape(new_shape),
            "k": np.ascontiguousarray(k[:, past:]).reshape(new_shape),
            "v": np.ascontiguousarray(v[:, past:]).reshape(new_shape),
            "past_k": heads_first(k),
            "past_v": heads_first(v),
        }
        inputs = [self.declare(name, list(x.shape)) for name, x in feed.items()]
        feed["last_key"] = np.full(case.batch, case.kv_length - 1, np.int32)
        feed["total_length"] = np.array([case.kv_length], np.int32)
        inputs += [
            self.declare("last_key", [case.batch], integer),
            self.declare("total_length", [1], integer),
        ]
        cache_shape = [case.batch, case.kv_heads, case.kv_length, case.head_dim]
        outputs = [
            self.declare("o", self.out_shape()),
            self.declare("present_k", cache_shape),
            self.declare("present_v", cache_shape),
        ]
        return node, inputs, outputs, feed


class OpenVino:
    """OpenVINO's CPU plugin.

    Grouped decode is folded by hand, which is 10 times faster than its repeat_kv.
    """

    def __init__(self, case: Case, dtype: str, threads: int, data: Data) -> None:
        import openvino
        import openvino.opset13 as ops

        self.dtype = dtype
        self.folded_heads = case.query_heads if is_grouped_decode(case) else None
        if self.folded_heads:
            case, data = groups_as_rows(case, data)
        element = {
            "f32": openvino.Type.f32,
            "bf16": openvino.Type.bf16,
            "f16": openvino.Type.f16,
        }[dtype]
        query_shape = [case.batch, case.query_heads, case.query_length, case.head_dim]
        kv_shape = [case.batch, case.kv_heads, case.kv_length, case.head_dim]
        q, k, v = inputs = [
            ops.parameter(shape, element) for shape in (query_shape, kv_shape, kv_shape)
        ]
        if case.group_size > 1:
            k, v = (self.repeat_heads(ops, case, x) for x in (k, v))
        out = ops.result(ops.scaled_dot_product_attention(q, k, v, causal=case.causal))
        properties = {
            "INFERENCE_PRECISION_HINT": dtype,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        model = openvino.Core().compile_model(
            openvino.Model([out], inputs, "attention"), "CPU", properties
        )
        self.request = model.create_infer_request()
        for i, x in enumerate(data):
            self.request.set_input_tensor(
                i, self.tensor(openvino, heads_first(x), dtype)
            )

    @staticmethod
    def repeat_heads(ops, case: Case, x):
        """The repeat_kv pattern that the plugin knows how to fuse."""
        grouped = [
            case.batch,
            case.kv_heads,
            case.group_size,
            case.kv_length,
            case.head_dim,
        ]
        flat = [case.batch, case.query_heads, case.kv_length, case.head_dim]
        x = ops.unsqueeze(x, ops.constant(np.int64(2)))
        x = ops.broadcast(
            x, ops.constant(np.array(grouped, np.int64)), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(x, ops.constant(np.array(flat, np.int64)), False)

    @staticmethod
    def tensor(openvino, x: np.ndarray, dtype: str):
        """`x` as an OpenVINO tensor; numpy has no bf16, so its bits are copied in."""
        if dtype != "bf16":
            return openvino.Tensor(
                x.astype(np.float16 if dtype == "f16" else np.float32)
            )
        tensor = openvino.Tensor(openvino.Type.bf16, openvino.Shape(x.shape))
        tensor.data.view(np.uint16)[...] = x.astype(ml_dtypes.bfloat16).view(np.uint16)
        return tensor

    def __call__(self):
        self.request.infer()
        return self.request.get_output_tensor(0)

    def rows(self, out) -> np.ndarray:
        values = out.data
        # The plugin hands out bf16 results as an array of another 16-bit type.
        if self.dtype == "bf16" and values.dtype != np.float32:
            values = values.view(np.uint16).view(ml_dtypes.bfloat16)
        values = values[0].astype(np.float32)
        if self.folded_heads:
            return values.reshape(1, self.folded_heads, -1)
        return values.transpose(1, 0, 2)


SYSTEMS = {
    "torch": Torch,
    "torch_pack": TorchPacked,
    "torch_math": TorchMath,
    "ort_mha": OrtMultiHead,
    "ort_gqa": OrtGroupQuery,
    "ort_attn23": OrtAttention,
    "openvino": OpenVino,
    "numpy": Numpy,
}

# What each imports beside numpy.
MODULES = {
    "torch": ["torch"],
    "torch_pack": ["torch"],
    "torch_math": ["torch"],
    "ort_mha": ["onnxruntime", "onnx"],
    "ort_gqa": ["onnxruntime", "onnx"],
    "ort_attn23": ["onnxruntime", "onnx"],
    "openvino": ["openvino"],
    "numpy": ["numpy"],
}
