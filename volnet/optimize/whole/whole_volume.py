"""``volnet.whole_volume`` and ``volnet.plan_whole_volume``."""

from __future__ import annotations

import contextlib
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from volnet._errors import OutOfMemoryError, names_shortage
from volnet._extension import _C
from volnet.optimize.optimize import Optimized
from volnet.optimize.whole.result import REDUCTIONS, finish
from volnet.optimize.whole.storage import gib
from volnet.precision import check_precision, of_thread

__all__ = ["WholeVolumePlan", "plan_whole_volume", "whole_volume"]

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", 1)
}
_STORAGES = (None, torch.bfloat16)


@names_shortage
def whole_volume(
    model: nn.Module,
    x: Tensor,
    *,
    memory_budget: int | str | None = None,
    progress: bool | Callable[[float], None] = False,
    storage: torch.dtype | None = None,
    reduce: str | None = None,
    out: Any = None,
) -> Any:
    """What ``model.eval()`` gives for a whole volume, within a memory budget: no windows, no seams.

    The network runs in slabs along D with the planes around them that its layers need. Norms, pooling of
    everything and the like, which have to know the whole volume, gather their statistics in passes of their
    own, so that the answer is that of the whole volume, up to rounding. Volumes in between are stored or
    computed again, whichever fits; :func:`plan_whole_volume` shows what would be done. Where all fits,
    nothing is cut and nothing computed twice.

    Layers that volnet cannot cut (attention, for example) run on the whole volume, and the plan counts what
    they need. Nothing records gradients. The first call captures the network with Dynamo, which takes some
    seconds, and so does one with a volume of another size.

    Args:
        model: any module that takes one volume, optimized or not; its layers of float32 or bfloat16 volumes
            can be cut. It runs as in ``eval()``, whatever its mode, and stays in that mode.
        x: [N, C, D, H, W].
        memory_budget: bytes, or a string as ``"8GiB"``, for everything that the call takes beyond ``model``
            and ``x``, its result included unless ``out`` is given; ``None`` for nine tenths of what the
            system has left.
        progress: ``True`` writes it to the standard error; a function is called with the part that is done,
            from 0 to 1.
        storage: ``torch.bfloat16`` stores volumes in between in half the memory, rounded.
        reduce: ``"argmax"`` for the labels [N, D, H, W], uint8, or ``"softmax"`` for the probabilities, of
            every tensor that ``model`` returns. Made as the slabs are, so that the scores are never there as
            a whole.
        out: where the result is written to as it is computed: a tensor, a NumPy array or memmap, a zarr
            array, or anything else with a ``shape`` that takes slices. ``model`` must return one tensor then.

    Returns:
        What ``model(x)`` returns, its tensors reduced; or ``out``.

    Raises:
        OutOfMemoryError: the budget does not suffice. The message names the smallest found that does.
        TypeError: an argument is of the wrong type.
        ValueError: ``memory_budget``, ``storage``, ``reduce`` or the shape of ``x`` or ``out`` does not fit.

    >>> model = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4))
    >>> x = torch.randn(1, 1, 32, 16, 16)
    >>> y = whole_volume(model, x, memory_budget="256KiB", reduce="argmax")
    >>> y.shape, y.dtype
    (torch.Size([1, 32, 16, 16]), torch.uint8)
    """
    call = _Call(x, _bytes(memory_budget), storage, reduce, out, _progress(progress))
    _check(model, call)
    result = _run(model, call)
    if progress is True:
        sys.stderr.write("\n")
    return result if out is None else out


def plan_whole_volume(
    model: nn.Module,
    x: Tensor,
    *,
    memory_budget: int | str | None = None,
    storage: torch.dtype | None = None,
    reduce: str | None = None,
    out: Any = None,
) -> WholeVolumePlan:
    """What :func:`whole_volume` would do with these arguments; ``print`` it. Nothing is computed.

    Where Dynamo captures several graphs, what the code between them sees is not initialized.

    >>> model = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.InstanceNorm3d(4))
    >>> plan = plan_whole_volume(model, torch.randn(1, 1, 64, 32, 32), memory_budget="1500KiB")
    >>> plan.peak <= 1500 * 2**10
    True
    """
    call = _Call(x, _bytes(memory_budget), storage, reduce, out, _no_progress, runs=False)
    _check(model, call)
    _run(model, call)
    return WholeVolumePlan(call.plans)


@dataclass(frozen=True)
class WholeVolumePlan:
    """One plan for each graph that Dynamo captured of the network."""

    graphs: list[Any]

    @property
    def peak(self) -> int:
        """Bytes, as predicted."""
        return max((plan.peak for plan in self.graphs), default=0)

    def __str__(self) -> str:
        return "\n".join(map(str, self.graphs))


@dataclass
class _Call:
    """The arguments of a call, for the graphs that run in it."""

    x: Tensor
    budget: int
    storage: torch.dtype | None
    reduce: str | None
    out: Any
    progress: Callable[[float], None]
    runs: bool = True  # else it is only planned, as is what follows where the budget did not suffice
    plans: list[Any] = field(default_factory=list)
    smallest: int = 0  # budget that suffices for the graphs so far


_current: ContextVar[_Call] = ContextVar("whole_volume")
# One function a network: Dynamo keeps what it captured with the code object, and counts.
_functions: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def _run(model: nn.Module, call: _Call) -> Any:
    precision = None
    if isinstance(model, Optimized):
        precision = model.__dict__["_volnet_backend"].precision
        model = model._original()
    if model not in _functions:
        _functions[model] = _capturing()
    token = _current.set(call)
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            _evaluating(model),
            torch._dynamo.config.patch(
                skip_nnmodule_hook_guards=False, recompile_limit=256, fail_on_recompile_limit_hit=True
            ),
            of_thread(None if precision is None else check_precision(precision)),
        ):
            result = _functions[model](model, call.x, call.reduce)
    except Exception:
        if None not in call.plans:  # else whatever became of values that were not computed
            raise
    finally:
        _current.reset(token)
    if None in call.plans:
        raise OutOfMemoryError(
            f"whole_volume: a memory_budget of {gib(call.budget)} does not suffice for this network on a "
            f"volume of shape {tuple(call.x.shape)}; the smallest that does is {call.smallest} bytes"
        )
    if call.reduce != "argmax":
        return result
    return tree_map(lambda y: y.squeeze(1) if isinstance(y, Tensor) and y.dim() > 1 else y, result)


def _capturing() -> Callable[..., Any]:
    from volnet.optimize.whole.backend import Backend  # with Dynamo, which takes a second to import

    own = types.FunctionType(_forward.__code__.replace(), _forward.__globals__, _forward.__name__)
    return torch.compile(own, backend=Backend(_current), dynamic=False)


def _forward(model: nn.Module, x: Tensor, reduce: str | None) -> Any:
    return tree_map(lambda y: finish(y, reduce) if isinstance(y, Tensor) else y, model(x))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in ``eval()``, and afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(model: nn.Module, call: _Call) -> None:
    op, x = "whole_volume", call.x
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}")
    if x.dim() != 5:
        raise ValueError(f"{op}: x must be [N, C, D, H, W], got shape {tuple(x.shape)}")
    if call.storage not in _STORAGES:
        raise ValueError(f"{op}: storage must be torch.bfloat16 or None, got {call.storage}")
    if call.reduce not in REDUCTIONS:
        raise ValueError(f"{op}: reduce must be 'argmax', 'softmax' or None, got {call.reduce!r}")
    if call.out is not None and not hasattr(call.out, "shape"):
        raise TypeError(f"{op}: out must be a tensor or an array, got {type(call.out).__name__}")


def _bytes(budget: int | str | None) -> int:
    if budget is None:
        return _C.memory_available() // 10 * 9
    if isinstance(budget, bool) or not isinstance(budget, (int, str)):
        raise TypeError(f"whole_volume: memory_budget must be bytes or a string, got {budget!r}")
    count: float = budget if isinstance(budget, int) else 0
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", budget)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"whole_volume: memory_budget must be like '8GiB' or '500MB', got {budget!r}")
        count = float(match[1]) * _UNITS[match[2]]
    if count <= 0:
        raise ValueError(f"whole_volume: memory_budget must be positive, got {budget!r}")
    return int(count)


def _no_progress(done: float) -> None:
    pass


def _progress(progress: bool | Callable[[float], None]) -> Callable[[float], None]:
    if callable(progress):
        return progress
    if not isinstance(progress, bool):
        raise TypeError(f"whole_volume: progress must be a bool or a function, got {progress!r}")
    return _write_progress if progress else _no_progress


def _write_progress(done: float) -> None:
    sys.stderr.write(f"\rwhole volume: {100 * done:3.0f} %")
    sys.stderr.flush()
