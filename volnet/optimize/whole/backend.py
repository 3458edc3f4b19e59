"""What Dynamo calls for each graph of a network that runs on a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from volnet.optimize.graph import value
from volnet.optimize.tracing import trace_through_jit_isinstance
from volnet.optimize.whole.executor import execute
from volnet.optimize.whole.planner import Plan, make_plan
from volnet.optimize.whole.program import Program
from volnet.optimize.whole.result import finish
from volnet.optimize.whole.storage import Destination

__all__ = ["Backend"]

PLANS = 16  # kept for a graph

torch.compiler.allow_in_graph(finish)
trace_through_jit_isinstance()


class Backend:
    """Every graph becomes a function that plans, once for each budget, and runs by the plan. ``current`` has
    the call that a graph runs in."""

    def __init__(self, current: ContextVar[Any]) -> None:
        self.current = current

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        program = Program(module)
        plans: dict[Any, tuple[Plan | None, int]] = {}

        def run(*args: Any) -> Any:
            call = self.current.get()
            destination = _destination(program, call)
            if not _computes(program):
                return module(*args)
            constant = _constant(args, call.x)
            key = (call.budget, call.storage, destination is not None, constant)
            if key not in plans:
                if len(plans) == PLANS:  # what the system has left is another budget in every call
                    plans.clear()
                plans[key] = make_plan(program, call.budget, call.storage, constant, destination is not None)
            plan, call.smallest = plans[key][0], max(call.smallest, plans[key][1])
            if plan is not None and call.runs:
                return execute(plan, args, destination, call.progress)
            call.plans.append(plan)
            call.runs = False  # the graphs that follow are planned
            return map_arg(program.output.args[0], _unwritten)

        return run


def _computes(program: Program) -> bool:
    """Whether there are volumes in it, and not just sizes."""
    return any(isinstance(value(n), Tensor) and value(n).dim() >= 3 for n in [*program.local, *program.whole])


def _destination(program: Program, call: Any) -> Destination | None:
    """Of the graph that has the network's result."""
    finished = [node for node in program.results if program.finished(node)]
    if call.out is None or not finished:
        return None
    if len(finished) > 1:
        raise ValueError(f"whole_volume: out is for one tensor, but the model returns {len(finished)}")
    shape = tuple(int(n) for n in value(finished[0]).shape)
    squeeze = call.reduce == "argmax" and len(shape) > 1
    if squeeze:
        shape = (shape[0], *shape[2:])
    if tuple(call.out.shape) != shape:
        raise ValueError(f"whole_volume: out must be {shape}, got shape {tuple(call.out.shape)}")
    return Destination(call.out, squeeze)


def _constant(args: Sequence[Any], x: Tensor) -> int:
    """Bytes of the parameters, once more as convolutions want them and folded, and of what graphs before
    this one have made."""
    sizes = {x.untyped_storage().data_ptr(): 0}
    for arg in args:
        if isinstance(arg, Tensor):
            storage = arg.untyped_storage()
            copies = 2 if isinstance(arg, torch.nn.Parameter) else 1
            sizes.setdefault(storage.data_ptr(), copies * storage.nbytes())
    return sum(sizes.values())


def _unwritten(node: Node) -> Any:
    x = value(node)
    if not isinstance(x, Tensor):
        return x
    sizes, strides = [int(n) for n in x.shape], [int(n) for n in x.stride()]
    return torch.empty_strided(sizes, strides, dtype=x.dtype)
