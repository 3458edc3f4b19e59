"""Training within a budget of memory: what a step needs, recomputation until it fits, and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from volnet import ops
from volnet._errors import OutOfMemoryError
from volnet.optimize.footprint import Step, drop, size_of, step_peak, work_of
from volnet.optimize.graph import runs
from volnet.optimize.optimize import Optimized, optimize

__all__ = ["MemoryPlan", "accumulate", "fit_memory", "micro_batches", "parse_bytes", "plan_memory"]

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class MemoryPlan:
    """What a training step needs; printing it shows the plan.

    Attributes:
        peak: bytes at the worst moment of forward and backward: volumes, gradients of volumes and of
            parameters, packed weights; without the parameters, the optimizer's state and the input.
        unlimited: the same where nothing but cheap passes is computed twice.
        budget: bytes that were allowed, or None.
        recomputed: layer and bytes of every volume that is dropped and computed again by its operator.
        extra_work: arithmetic of that, as a part of one forward pass's.
    """

    peak: int
    unlimited: int
    budget: int | None
    recomputed: tuple[tuple[str, int], ...]
    extra_work: float

    def __str__(self) -> str:
        lines = [
            f"peak of a training step: {_text(self.peak)}"
            + (f" of {_text(self.budget)}" if self.budget is not None else "")
        ]
        if self.recomputed:
            lines[0] += f", {_text(self.unlimited)} without recomputation"
            lines.append(
                f"computed twice: {len(self.recomputed)} volumes, {100 * self.extra_work:.0f} % of a forward "
                "pass's arithmetic"
            )
            lines += [f"  {name or '(the network)'}  {_text(size)}" for name, size in self.recomputed]
        return "\n".join(lines)


def plan_memory(
    model: nn.Module,
    example: Any,
    budget: int | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    saved_dtype: torch.dtype | None = None,
) -> MemoryPlan:
    """What :func:`fit_memory` would do; where not even that is enough, the plan with the least peak.

    >>> model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU())
    >>> print(plan_memory(model, torch.zeros(1, 1, 32, 32, 32)))
    peak of a training step: ... MiB
    """
    return _fitted(model, example, budget, dtype, saved_dtype)[1]


def fit_memory(
    model: nn.Module,
    example: Any,
    budget: int | str,
    *,
    dtype: torch.dtype | None = None,
    saved_dtype: torch.dtype | None = None,
) -> nn.Module:
    """:func:`volnet.optimize`, with so many volumes computed again in backward that a training step on
    volumes like ``example`` stays within ``budget``.

    Nothing is computed for the plan: it is made from the captured graphs, in seconds. The network trains as
    ``model`` does: results and gradients are the same to the bit as without a budget, dropout's masks are
    kept. Volumes of other sizes run without a plan.

    Args:
        model: to be trained; put it into ``train()`` before.
        example: a tensor, or a tuple of arguments, of the shapes and dtypes of a training step.
        budget: bytes, or text such as ``"8GiB"``, for forward and backward beside what is there before:
            parameters, the optimizer's state, the input.
        dtype, saved_dtype: as for :func:`volnet.optimize`; with ``dtype`` it is a copy that trains.

    Returns:
        The optimized network; its ``memory_plan`` is the :class:`MemoryPlan`.

    Raises:
        ValueError: ``budget`` is no number of bytes.
        OutOfMemoryError: no plan fits; the error names the smallest budget that does.
        RuntimeError: a part of the network is left to torch, which keeps what it likes.

    >>> model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU())
    >>> fitted = fit_memory(model, torch.zeros(1, 1, 32, 32, 32), "64MiB")
    >>> fitted.memory_plan.peak < 64 * 2**20
    True
    """
    limit = parse_bytes(budget)
    fitted, plan = _fitted(model, example, limit, dtype, saved_dtype)
    if plan.peak > limit:
        raise OutOfMemoryError(
            f"fit_memory: a training step on {_shapes(example)} does not fit a budget of {_text(limit)}; the "
            f"smallest that works is {_text(plan.peak)} ({plan.peak} bytes)"
            + ("" if saved_dtype is not None else "; saved_dtype=torch.bfloat16 needs less")
        )
    fitted.__dict__["memory_plan"] = plan
    return fitted


def _fitted(
    model: nn.Module,
    example: Any,
    budget: int | str | None,
    dtype: torch.dtype | None,
    saved_dtype: torch.dtype | None,
) -> tuple[nn.Module, MemoryPlan]:
    limit = None if budget is None else parse_bytes(budget)
    original = model._original() if isinstance(model, Optimized) else model
    fitted = optimize(original, dtype=dtype, saved_dtype=saved_dtype)
    backend = fitted.__dict__["_volnet_backend"]
    with torch.enable_grad(), backend.capturing() as graphs:
        fitted(*(example if isinstance(example, (tuple, list)) else (example,)))
    weights = sum(p.numel() * p.element_size() for p in fitted.parameters() if p.requires_grad)
    # Their gradients; packed for forward and for the gradient of the data.
    step = Step(graphs, saved_dtype, 3 * weights)
    unlimited = peak = step_peak(step)
    if limit is not None:
        peak = drop(step, limit)
    dropped = [node for graph, plan in graphs for node in graph.nodes if node in plan.dropped]
    everything = sum(work_of(node) for graph, _ in graphs for node in graph.nodes if _is_work(node))
    plan = MemoryPlan(
        peak,
        unlimited,
        limit,
        tuple((_layer(node), size_of(node)) for node in dropped),
        sum(work_of(node) for node in dropped) / max(everything, 1),
    )
    return fitted, plan


def _is_work(node: torch.fx.Node) -> bool:
    return runs(node, ops.conv3d, ops.conv_transpose3d)


def _layer(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    path: str = next(reversed(stack.values()))[0] if stack else ""
    return path.partition("].")[2]


def _shapes(example: Any) -> str:
    return ", ".join(str(list(x.shape)) for x in tree_leaves(example) if isinstance(x, Tensor))


def parse_bytes(budget: int | str) -> int:
    """Bytes, from a number or from text such as ``"1.5GiB"``.

    >>> parse_bytes("2MiB")
    2097152
    """
    if isinstance(budget, str):
        text = budget.strip()
        unit = next((u for u in sorted(UNITS, key=len, reverse=True) if text.endswith(u)), "")
        try:
            count = float(text.removesuffix(unit)) * UNITS.get(unit, 1)
        except ValueError:
            raise ValueError(f"budget must be bytes or text such as '8GiB', got {budget!r}") from None
    else:
        count = float(budget)
    if not 0 < count < 2**63:
        raise ValueError(f"budget must be positive, got {budget!r}")
    return int(count)


def _text(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def micro_batches(batch: Any, size: int) -> Iterator[tuple[Any, float]]:
    """Splits a batch, and says what part of it each piece is.

    Args:
        batch: a tensor [N, ...], or tuples, lists and dictionaries of such of one N; other things in it go
            with every piece.
        size: samples of a piece; the last may have fewer.

    Yields:
        The piece, and its part of the samples: the weight of its loss.

    Raises:
        ValueError: ``size`` is not positive, or the tensors differ in N.

    >>> [(tuple(x.shape), part) for x, part in micro_batches(torch.zeros(4, 1, 2, 2, 2), 2)]
    [((2, 1, 2, 2, 2), 0.5), ((2, 1, 2, 2, 2), 0.5)]
    """
    if size < 1:
        raise ValueError(f"micro_batches: size must be positive, got {size}")
    leaves, structure = tree_flatten(batch)
    counts = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor)}
    if len(counts) != 1:
        raise ValueError(f"micro_batches: tensors must have one number of samples, got {sorted(counts)}")
    (samples,) = counts
    for first in range(0, samples, size):
        end = min(first + size, samples)
        piece = [leaf[first:end] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        yield tree_unflatten(piece, structure), (end - first) / samples


def accumulate(model: nn.Module, batch: Any, size: int, loss: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    """The loss of a batch and its gradients, a few samples at a time: the same sums as for the whole batch,
    in the memory of one piece.

    Args:
        model: whose parameters' ``grad`` the gradients are added to.
        batch, size: as for :func:`micro_batches`.
        loss: called with ``model`` and each piece; a mean over its samples. One that divides by another count
            (of the positive anchors, say) is that of the pieces, not that of the batch.

    Returns:
        The loss of the batch, a scalar without gradient.

    Raises:
        ValueError: a batch norm is being trained, whose statistics are those of the samples it sees at once.

    >>> model = nn.Conv3d(1, 1, 1)
    >>> x = torch.ones(4, 1, 2, 2, 2)
    >>> accumulate(model, x, 1, lambda m, x: m(x).mean()).ndim, model.bias.grad.tolist()
    (0, [1.0])
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            if any(leaf.shape[0] <= size for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)):
                continue
            raise ValueError(
                f"accumulate: {name or 'model'} is a {type(module).__name__} in training, which takes its "
                f"statistics from the samples it sees at once: {size} at a time would give other gradients "
                "than the whole batch. Use instance or group norm, or put it into eval()"
            )
    total: Tensor | None = None
    for piece, part in micro_batches(batch, size):
        value = loss(model, piece) * part
        value.backward()
        total = value.detach() if total is None else total + value.detach()
    if total is None:
        raise ValueError("accumulate: the batch has no samples")
    return total
