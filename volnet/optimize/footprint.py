"""The memory of a training step, from its graphs alone; and which volumes to drop so that it fits.

The step is gone through as it will run: forward, node by node, then backward in the reverse order, with the
volumes that are kept, the gradients that wait, and those that are computed again. Nothing is computed.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import argument, runs, value
from volnet.optimize.rules.layout import channels_last
from volnet.optimize.rules.norm_in_training import normalize
from volnet.optimize.saving import Plan, last_uses, wanted_volumes

__all__ = ["Step", "drop", "step_peak"]

# Deterministic, and worth a second run: what they give is large for what they cost.
REPEATABLE = (
    ops.conv3d,
    ops.conv_transpose3d,
    ops.max_pool3d,
    ops.avg_pool3d,
    ops.interpolate,
    ops.cat,
    ops.pad,
)
# Views of what they are given, in a graph that runs in channels_last.
ALIASES = (channels_last, operator.getitem)
ALIAS_METHODS = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten", "permute", "transpose")


@dataclass
class Step:
    """The graphs of one training step, in the order they run, with their plans."""

    graphs: list[tuple[Graph, Plan]]
    saved_dtype: torch.dtype | None = None
    constant: int = 0  # bytes that are there all the time


@dataclass
class _Memory:
    now: int = 0
    peak: int = 0
    held: dict[Any, int] = field(default_factory=dict)

    def take(self, what: Any, size: int) -> None:
        if what not in self.held:
            self.held[what] = size
            self.now += size
            self.peak = max(self.peak, self.now)

    def give(self, what: Any) -> None:
        self.now -= self.held.pop(what, 0)


def step_peak(step: Step) -> int:
    """Bytes at the worst moment of forward and backward."""
    memory = _Memory(step.constant, step.constant)
    for graph, plan in step.graphs:
        _forward(memory, graph, plan, step.saved_dtype)
    for graph, plan in reversed(step.graphs):
        _backward(memory, graph, plan)
    return memory.peak


def size_of(node: Node) -> int:
    x = value(node)
    return int(x.numel()) * x.element_size() if isinstance(x, Tensor) else 0


def _base(node: Node) -> Node:
    """The node whose memory ``node`` is a view of."""
    while True:
        parent = _parent(node)
        if parent is None:
            return node
        node = parent


def _parent(node: Node) -> Node | None:
    if runs(node, channels_last):
        x = argument(node, "x")
        # What comes from outside is copied where it is plain and has several channels.
        return x if x.op != "placeholder" or value(x).shape[1] == 1 else None
    if runs(node, operator.getitem):
        return None if runs(node.args[0], normalize) else _node(node.args[0])
    if node.op == "call_method" and node.target in ALIAS_METHODS:
        return _node(node.args[0])
    return None


def _node(x: Any) -> Node | None:
    return x if isinstance(x, Node) and isinstance(value(x), Tensor) else None


def _forward(memory: _Memory, graph: Graph, plan: Plan, dtype: torch.dtype | None) -> None:
    wanted = {_base(n) for n in _needed(graph, plan)}
    remaining: dict[Node, int] = {}
    for node in graph.nodes:
        for source in {_base(n) for n in node.all_input_nodes}:
            remaining[source] = remaining.get(source, 0) + 1
    for node in graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr") and _base(node) is node:
            memory.take(("value", node), size_of(node))
        for extra, size in _extras(node):
            memory.take((extra, node), size)
        for source in {_base(n) for n in node.all_input_nodes}:
            remaining[source] -= 1
            if remaining[source] == 0 and node.op != "output":
                _leave(memory, source, wanted, plan, dtype)
        if node.op == "output":
            results = {_base(n) for n in node.all_input_nodes}
            for source in list(remaining):
                if source not in results:
                    _leave(memory, source, wanted, plan, dtype)


def _leave(memory: _Memory, source: Node, wanted: set[Node], plan: Plan, dtype: torch.dtype | None) -> None:
    """Forward has read it for the last time."""
    if source not in wanted or source.op == "placeholder":
        memory.give(("value", source))
    elif dtype is not None and source in plan.kept and value(source).dtype == torch.float32:
        memory.give(("value", source))
        memory.take(("value", source), size_of(source) // 2)


def _needed(graph: Graph, plan: Plan) -> set[Node]:
    """The kept volumes that backward reaches."""
    found: set[Node] = set()
    stack = list(wanted_volumes(graph))
    while stack:
        node = stack.pop()
        if node in plan.again:
            stack += plan.inputs(node)
        elif node not in found:
            found.add(node)
    return found


def _extras(node: Node) -> list[tuple[str, int]]:
    """What an operator keeps beside its arguments."""
    if runs(node, ops.max_pool3d):
        return [("places", int(value(node).numel()) * 4)]
    return []


def _backward(memory: _Memory, graph: Graph, plan: Plan) -> None:
    (output,) = graph.find_nodes(op="output")
    for node in output.all_input_nodes:
        memory.take(("gradient", _base(node)), size_of(node))
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "output") or _base(node) is not node:
            continue
        if ("gradient", node) not in memory.held:
            memory.give(("value", node))
            continue
        sources = [n for n in _sources(node) if _differentiable(n)]
        temporary = [_take_again(memory, n, plan) for n in _read_by_backward(node)]
        first = runs(node, ops.conv3d) and len(temporary) == 1  # the weights' gradient, before that of x
        for key in temporary if first else ():
            memory.give(key)
        for source in sources:
            if ("gradient", source) in memory.held:  # a sum of two
                memory.take(("term", source), size_of(source))
                memory.give(("term", source))
            memory.take(("gradient", source), size_of(source))
        for key in temporary:
            memory.give(key)
        for extra, _ in _extras(node):
            memory.give((extra, node))
        memory.give(("gradient", node))
        memory.give(("value", node))


def _sources(node: Node) -> list[Node]:
    """The volumes whose gradients the operator computes."""
    if runs(node, operator.getitem) and runs(node.args[0], normalize):
        inner = node.args[0]
        assert isinstance(inner, Node)
        nodes = [argument(inner, "x"), argument(inner, "residual")]
    else:
        nodes = list(node.all_input_nodes)
    return list(dict.fromkeys(_base(n) for n in nodes if isinstance(n, Node) and _node(n) is not None))


def _differentiable(node: Node) -> bool:
    x = value(node)
    return node.op != "placeholder" and isinstance(x, Tensor) and x.is_floating_point()


def _read_by_backward(node: Node) -> list[Node]:
    if runs(node, ops.conv3d, ops.conv_transpose3d):
        return [n for n in (argument(node, "input"), node.kwargs.get("skip")) if isinstance(n, Node)]
    if runs(node, operator.getitem) and runs(node.args[0], normalize):
        inner = node.args[0]
        assert isinstance(inner, Node)
        residual = argument(inner, "residual") if argument(inner, "activation") is not None else None
        return [n for n in (argument(inner, "x"), residual) if isinstance(n, Node)]
    return []


def _take_again(memory: _Memory, node: Node, plan: Plan) -> Any:
    """The volume, computed again where it is not there; what to give back afterwards."""
    if _base(node) in plan.again:
        node = _base(node)
    if node not in plan.again:
        return None
    if _parent(node) is not None:
        return _take_again(memory, _node(node.all_input_nodes[0]) or node, plan)
    key = ("value", node) if node in plan.dropped else ("again", node)
    if key in memory.held:
        return None
    temporary = [_take_again(memory, n, plan) for n in plan.inputs(node) if _node(n) is not None]
    memory.take(key, size_of(node))
    for one in temporary:
        memory.give(one)
    return None if node in plan.dropped else key


def drop(step: Step, budget: int) -> int:
    """Drops kept volumes, those first that free most memory for the least arithmetic, until the step fits
    ``budget`` or nothing helps; returns its peak."""
    peak = step_peak(step)
    while peak > budget:
        best: tuple[float, Plan, Graph, Node, int] | None = None
        for graph, plan in step.graphs:
            for node in [n for n in plan.kept if _can_drop(n, plan)]:
                plan.dropping(node)
                found = step_peak(step)
                plan.keeping(node)
                gain = (peak - found) / (1 + work_of(node))
                if found < peak and (best is None or gain > best[0]):
                    best = (gain, plan, graph, node, found)
        if best is None:
            break
        _, plan, _, node, peak = best
        plan.dropping(node)
    for graph, plan in step.graphs:
        plan.last_uses = last_uses(graph, plan)
    return peak


def _can_drop(node: Node, plan: Plan) -> bool:
    return runs(node, *REPEATABLE) and all(
        n in plan.kept or n in plan.again for n in node.all_input_nodes if isinstance(value(n), Tensor)
    )


def work_of(node: Node) -> float:
    """Arithmetic of computing it again, in multiplications of the direct algorithm."""
    size = float(value(node).numel())
    if runs(node, ops.conv3d, ops.conv_transpose3d):
        return size * math.prod(value(argument(node, "weight")).shape[1:])
    return size
