"""Everything that runs a network, each with the settings that make it fastest."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .networks import answers

__all__ = ["IPEX", "PEERS", "VOLNET", "Peer", "missing"]

Run = Callable[[], Any]
VOLNET, IPEX = "volnet", "IPEX"
LAST = torch.channels_last_3d


@dataclass(frozen=True)
class Peer:
    """One way of running a network.

    Attributes:
        precision: its class: what it computes with, ``"float32"`` or ``"bfloat16"``.
        prepare: from the network in ``eval()`` mode, its volume and the number of threads to what runs it.
        needs: the package that it comes from.
        retaining: whether it has a malloc that keeps its memory.
    """

    name: str
    precision: str
    prepare: Callable[[nn.Module, Tensor, int], Run]
    needs: str = "torch"
    retaining: bool = True


class _Flat(nn.Module):
    """Its tensors alone, for exporters that take no dictionaries."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(answers(self.model(x)))


def _volnet(model: nn.Module, x: Tensor, threads: int, **options: Any) -> Run:
    import volnet

    return partial(volnet.optimize(model, **options), x)


def _eager(
    model: nn.Module,
    x: Tensor,
    threads: int,
    layout: torch.memory_format = torch.contiguous_format,
    autocast: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Run:
    model = model.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
    x = x.to(device, dtype, memory_format=layout)

    def run() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            result = model(x)
        if device != "cpu":
            torch.cuda.synchronize()
        return result

    return run


def _cuda(model: nn.Module, x: Tensor, threads: int, **options: Any) -> Run:
    torch.backends.cudnn.benchmark = True
    return _eager(model, x, threads, device="cuda", **options)


def _inductor(model: nn.Module, x: Tensor, threads: int, **options: Any) -> Run:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return _eager(torch.compile(model, dynamic=False), x, threads, **options)  # type: ignore[arg-type]


def _onnx(model: nn.Module, x: Tensor, folder: str) -> str:
    """The file that the network is exported to."""
    file = str(Path(folder) / "network.onnx")
    torch.onnx.export(_Flat(model), (x,), file, dynamo=False)
    return file


def _onnx_runtime(model: nn.Module, x: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file = _onnx(model, x, folder)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return partial(session.run, None, given)


def _openvino(model: nn.Module, x: Tensor, threads: int, precision: str) -> Run:
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        compiled = core.compile_model(core.read_model(_onnx(model, x, folder)), "CPU", hints)
    request, given = compiled.create_infer_request(), {0: x.numpy()}

    def run() -> list[Any]:
        results = request.infer(given, share_inputs=True, share_outputs=True)
        return [results[output] for output in compiled.outputs]

    return run


def _ipex(model: nn.Module, x: Tensor, threads: int, dtype: torch.dtype) -> Run:
    import intel_extension_for_pytorch as ipex

    x, autocast = x.to(memory_format=LAST), dtype == torch.bfloat16
    model = ipex.optimize(model.to(memory_format=LAST), dtype=dtype)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        traced = torch.jit.freeze(torch.jit.trace(_Flat(model), x, strict=False, check_trace=False))

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return traced(x)

    return run


F32, BF16 = "float32", "bfloat16"
PEERS = {
    peer.name: peer
    for peer in (
        Peer(VOLNET, F32, _volnet),
        Peer("volnet, medium", BF16, partial(_volnet, precision="medium")),
        Peer("volnet, bfloat16", BF16, partial(_volnet, dtype=torch.bfloat16)),
        Peer("torch, default malloc", F32, _eager, retaining=False),
        Peer("torch, channels_last, default malloc", F32, partial(_eager, layout=LAST), retaining=False),
        Peer("torch", F32, _eager),
        Peer("torch, channels_last", F32, partial(_eager, layout=LAST)),
        Peer("torch, channels_last, autocast", BF16, partial(_eager, layout=LAST, autocast=True)),
        Peer("torch, channels_last, bfloat16", BF16, partial(_eager, layout=LAST, dtype=torch.bfloat16)),
        Peer("Inductor", F32, _inductor),
        Peer("Inductor, channels_last", F32, partial(_inductor, layout=LAST)),
        Peer("Inductor, channels_last, autocast", BF16, partial(_inductor, layout=LAST, autocast=True)),
        Peer("ONNX Runtime", F32, _onnx_runtime, "onnxruntime"),
        Peer("OpenVINO", F32, partial(_openvino, precision="f32"), "openvino"),
        Peer("OpenVINO, bfloat16", BF16, partial(_openvino, precision="bf16"), "openvino"),
        Peer(IPEX, F32, partial(_ipex, dtype=torch.float32), "intel_extension_for_pytorch"),
        Peer(f"{IPEX}, bfloat16", BF16, partial(_ipex, dtype=torch.bfloat16), "intel_extension_for_pytorch"),
        Peer("torch, CUDA", F32, _cuda, "CUDA"),
        Peer("torch, CUDA, channels_last", F32, partial(_cuda, layout=LAST), "CUDA"),
        Peer("torch, CUDA, autocast", BF16, partial(_cuda, layout=LAST, autocast=True), "CUDA"),
    )
}


def missing(peer: Peer) -> str | None:
    """What this environment lacks for it."""
    if peer.needs == "CUDA":
        return None if torch.cuda.is_available() else "no CUDA device"
    packages = ("onnx", peer.needs) if peer.needs in ("onnxruntime", "openvino") else (peer.needs,)
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else None
