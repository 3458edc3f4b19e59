"""What a model runs: operators, layers, kernels, times, and how far they are from what the machine can do."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volnet import isa
from volnet._extension import _C

__all__ = ["Explanation", "Observer", "Row", "explain", "observing"]


@dataclass(frozen=True)
class Row:
    """One operator that ran."""

    layer: str  # qualified name of the innermost module that called it, "" where none did
    operator: str  # "volnet.conv3d", "aten.relu"
    shapes: tuple[tuple[int, ...], ...]  # of the tensors it was given
    dtype: str  # of the first of them
    kernels: tuple[str, ...]  # volnet's, by plan: "conv3d_f32_wino444_avx512"
    milliseconds: float
    gflop: float  # of the direct algorithm of a convolution, else 0
    bytes: int  # of its tensors, in and out
    floor: float  # milliseconds: the larger of gflop at the peak and bytes at the bandwidth

    @property
    def gflops(self) -> float:
        """GFLOP/s of the direct algorithm."""
        return self.gflop / self.milliseconds * 1e3 if self.milliseconds else 0.0

    @property
    def share(self) -> float:
        """Of the floor: 1 is as fast as the direct algorithm can be; less arithmetic makes it more."""
        return self.floor / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True)
class Explanation:
    """The operators that ran, in order, and the machine's speed at the time; printing it gives a table."""

    rows: list[Row]
    peak: dict[str, float]  # GFLOP/s of a matrix product, for each dtype that occurred
    bandwidth: float  # GB/s of a copy, read and written
    result: Any  # what the call returned
    rules: dict[str, int]  # of an optimized model: how often each rule changed the graphs that ran
    graphs: int  # how many these were; 0 where the model is not optimized

    @property
    def milliseconds(self) -> float:
        """Of all operators."""
        return sum(row.milliseconds for row in self.rows)

    def __str__(self) -> str:
        shown = [row for row in self.rows if _ours(row) or row.milliseconds >= 0.01 * self.milliseconds]
        others = self.milliseconds - sum(row.milliseconds for row in shown)
        head = ("layer", "operator", "shapes", "kernel", "ms", "GFLOP/s", "of floor")
        lines = [
            (
                row.layer,
                row.operator,
                " ".join("x".join(map(str, shape)) for shape in row.shapes) + f" {row.dtype}",
                ", ".join(row.kernels) if _ours(row) else "torch",
                f"{row.milliseconds:.2f}",
                f"{row.gflops:.0f}" if row.gflop else "",
                f"{100 * row.share:.0f} %",
            )
            for row in shown
        ]
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        table = [
            "  ".join(
                text.rjust(width) if i > 3 else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [head, *lines]
        ]
        ours = sum(row.milliseconds for row in self.rows if _ours(row))
        left = sum(row.operator.startswith("aten.convolution") for row in self.rows)
        peaks = ", ".join(f"{gflops:.0f} GFLOP/s {dtype}" for dtype, gflops in self.peak.items())
        return "\n".join(
            [
                *table,
                f"{self.milliseconds:.2f} ms in all: volnet's operators {ours:.2f}, "
                f"torch's that are not shown {others:.2f}",
                f"convolutions left to torch: {left}",
                *self._optimized(),
                f"floor: {peaks or 'no arithmetic'}; {self.bandwidth:.0f} GB/s; "
                f"{torch.get_num_threads()} threads, {isa.active()}",
            ]
        )

    def _optimized(self) -> list[str]:
        if self.graphs == 0:
            return []
        changes = ", ".join(f"{name} {count}" for name, count in self.rules.items() if count) or "nothing"
        return [f"optimized, captured as {self.graphs} graph{'s' * (self.graphs > 1)}: {changes}"]


def explain(function: Callable[..., Any], *inputs: Any, **keywords: Any) -> Explanation:
    """Runs ``function(*inputs, **keywords)`` and says which operators ran, how long, and by which kernels.

    It is called three times: twice to warm up (the second time, packed weights are kept), then under
    observation. Gradients are recorded or not as around the call.

    Args:
        function: a :class:`torch.nn.Module`, whose layers are then named, or any function.
        inputs, keywords: what to call it with.

    Returns:
        The report: ``print`` it, or read its ``rows``.

    >>> model = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.ReLU())
    >>> report = explain(model, torch.zeros(1, 1, 8, 8, 8))
    >>> [(row.layer, row.operator) for row in report.rows]
    [('0', 'aten.convolution'), ('1', 'aten.relu')]
    >>> from volnet import ops
    >>> report = explain(ops.conv3d, torch.zeros(1, 8, 8, 8, 8), torch.zeros(8, 8, 3, 3, 3))
    >>> report.rows[0].operator, report.rows[0].kernels[0].split("_")[:2]
    ('volnet.conv3d', ['conv3d', 'f32'])
    """
    for _ in range(2):
        function(*inputs, **keywords)
    observer = Observer()
    with _traced_plans():
        if _is_compiled(function):
            token = observing.set(observer)
            try:
                result = function(*inputs, **keywords)
            finally:
                observing.reset(token)
        else:
            modules = dict(function.named_modules()) if isinstance(function, torch.nn.Module) else {}
            names = {id(module): name for name, module in modules.items()}
            with _layers(names, observer.layers), observer:
                result = function(*inputs, **keywords)
    dtypes = {o.dtype for o in observer.observations if o.gflop}
    peak = {dtype: _peak(getattr(torch, dtype)) for dtype in sorted(dtypes)}
    bandwidth = _bandwidth()
    rows = [
        Row(
            layer=o.layer,
            operator=o.operator,
            shapes=o.shapes,
            dtype=o.dtype,
            kernels=o.kernels,
            milliseconds=o.milliseconds,
            gflop=o.gflop,
            bytes=o.bytes,
            floor=max(o.gflop / peak[o.dtype] * 1e3 if o.gflop else 0.0, o.bytes / bandwidth * 1e-6),
        )
        for o in observer.observations
    ]
    return Explanation(rows, peak, bandwidth, result, dict(observer.rules), observer.graphs)


def _is_compiled(function: Any) -> bool:
    """Whether Dynamo runs it: under a dispatch mode it would not, so each graph is observed by itself."""
    by_itself = getattr(function, "_compiled_call_impl", None) is not None
    return by_itself or hasattr(function, "_torchdynamo_orig_callable")


def _ours(row: Row) -> bool:
    return row.operator.startswith("volnet.")


@dataclass(frozen=True)
class _Observation:
    layer: str
    operator: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    kernels: tuple[str, ...]
    milliseconds: float
    gflop: float
    bytes: int


class Observer(TorchDispatchMode):
    """Times every operator that computes; views and the like are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[str] = []  # whose operators run, innermost last
        self.observations: list[_Observation] = []
        self.rules: Counter[str] = Counter()
        self.graphs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = _calls()
        _C.plans_take_trace()
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        milliseconds = 1e3 * (time.perf_counter() - start)
        given, made = _tensors((args, kwargs)), _tensors(result)
        name = str(func.name()).replace("::", ".").split(".")
        operator = f"{name[0]}.{name[1]}"
        if given and made and not _is_view(given, made):
            self.observations.append(
                _Observation(
                    layer=self.layers[-1] if self.layers else "",
                    operator=operator,
                    shapes=tuple(tuple(t.shape) for t in given),
                    dtype=str(given[0].dtype).removeprefix("torch."),
                    kernels=_kernels(before) if name[0] == "volnet" else (),
                    milliseconds=milliseconds,
                    gflop=_flop(operator, args, made) * 1e-9,
                    bytes=sum(t.numel() * t.element_size() for t in (*given, *made)),
                )
            )
        return result


# Who watches the graphs of optimized models that this context runs.
observing: ContextVar[Observer | None] = ContextVar("observing", default=None)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(given: Iterable[Tensor], made: Iterable[Tensor]) -> bool:
    """Whether nothing was computed: in-place operators return their very argument, views another tensor over
    its memory."""
    storages = {t.untyped_storage().data_ptr(): t for t in given}
    return all(
        t.untyped_storage().data_ptr() in storages and all(t is not g for g in storages.values())
        for t in made
    )


def _calls() -> dict[str, int]:
    return {name: calls for name, _, calls in _C.kernels()}


def _kernels(before: dict[str, int]) -> tuple[str, ...]:
    """The plans that ran, and kernels without a plan; a convolution's table kernels are the plans'."""
    plans = tuple(dict.fromkeys(_C.plans_take_trace()))
    ran = (name for name, calls in _calls().items() if calls > before[name])
    others = (name for name in ran if not name.startswith("digest_"))
    return (*plans, *(name for name in others if not plans or not name.startswith("conv3d_")))


def _flop(operator: str, args: tuple[Any, ...], made: list[Tensor]) -> float:
    """Of the direct algorithm of a convolution."""
    if operator in ("volnet.conv3d", "volnet.conv3d_fused"):
        return 2.0 * made[0].numel() * args[1][0].numel()
    if operator == "volnet.conv_transpose3d":
        return 2.0 * args[0].numel() * args[1][0].numel()
    if operator == "volnet._conv3d_backward_input":
        return 2.0 * args[0].numel() * args[1][0].numel()
    if operator == "volnet._conv3d_backward_weight":
        return 2.0 * args[0].numel() * math.prod(args[2][1:])
    if operator == "aten.convolution":
        return 2.0 * (args[0] if args[6] else made[0]).numel() * args[1][0].numel()
    if operator == "aten.convolution_backward":
        volume = args[1] if args[7] else args[0]
        return 2.0 * volume.numel() * args[2][0].numel() * sum(args[10][:2])
    return 0.0


@contextmanager
def _layers(names: dict[int, str], stack: list[str]) -> Iterator[None]:
    """Keeps the names of the modules whose forward is running in ``stack``."""

    def enter(module: torch.nn.Module, inputs: Any) -> None:
        stack.append(names.get(id(module), type(module).__name__))

    def leave(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    hooks = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _traced_plans() -> Iterator[None]:
    _C.plans_trace(True)
    try:
        yield
    finally:
        _C.plans_trace(False)


def _fastest(run: Callable[[], object]) -> float:
    """Seconds, the best of three after a warm-up."""
    run()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product."""
    size = 1024
    a = torch.ones(size, size, dtype=dtype)
    return 2 * size**3 / _fastest(lambda: torch.mm(a, a)) * 1e-9


def _bandwidth() -> float:
    """GB/s of a copy of memory that is mapped already, larger than most caches."""
    source, target = (torch.ones(1 << 27, dtype=torch.uint8) for _ in range(2))
    return 2 * source.numel() / _fastest(lambda: target.copy_(source)) * 1e-9
