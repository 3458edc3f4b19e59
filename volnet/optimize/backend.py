"""From a graph that Dynamo has captured to a function that runs it on volnet's operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from volnet.explain import Observer, observing
from volnet.optimize.graph import value
from volnet.optimize.rules import left_to_torch, rewrite
from volnet.optimize.saving import Plan, Saving, plan_saving
from volnet.optimize.tracing import trace_through_jit_isinstance
from volnet.precision import check_precision, of_thread

__all__ = ["Backend", "compile_graph"]


class Backend:
    """A backend for :func:`torch.compile` that remembers what it did.

    Args:
        precision: of the convolutions in what it compiles; None: as :func:`volnet.set_precision` says.
        saved_dtype: that volumes of float32 are kept in for backward; None: as they are.

    ``graphs`` has, for every graph that was captured, how often each rule changed it.
    """

    def __init__(self, precision: str | None = None, saved_dtype: torch.dtype | None = None) -> None:
        self.precision, self.saved_dtype = precision, saved_dtype
        self._level = None if precision is None else check_precision(precision)
        self.graphs: list[dict[str, int]] = []
        self._captured: list[tuple[Graph, Plan]] | None = None

    @contextmanager
    def capturing(self) -> Iterator[list[tuple[Graph, Plan]]]:
        """Graphs are captured, with what they save for backward, but do not run: their results are memory
        that nothing was written to. One that is left to torch raises."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        changes = rewrite(module.graph)
        self.graphs.append(changes)
        module.graph.lint()
        module.recompile()
        trains = torch.is_grad_enabled() and not left_to_torch(changes)
        plan = plan_saving(module.graph) if trains else None

        def run(*args: Any) -> Any:
            if self._captured is not None:
                if plan is None:
                    raise RuntimeError(
                        "a graph of the network changes volumes in place where somebody could tell, and is "
                        "left to torch: what it keeps for backward cannot be planned"
                    )
                self._captured.append((module.graph, plan))
                return _empty_results(module.graph)
            observer = observing.get()
            with nullcontext() if self._level is None else of_thread(self._level):
                if observer is not None:
                    return _observed(module, changes, observer, args)
                if plan is None or not torch.is_grad_enabled():
                    return module(*args)
                return Saving(module, plan, self.saved_dtype).saving_run(*args)

        return run


def _empty_results(graph: Graph) -> Any:
    (output,) = graph.find_nodes(op="output")
    return tree_map(_empty_like, output.args[0])


def _empty_like(node: Any) -> Any:
    x = value(node)
    if not isinstance(x, torch.Tensor):
        return x
    size, stride = [int(n) for n in x.shape], [int(n) for n in x.stride()]
    return torch.empty_strided(size, stride, dtype=x.dtype).requires_grad_(x.requires_grad)


def compile_graph(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """``torch.compile(model, backend="volnet")``."""
    return Backend()(module, inputs)


trace_through_jit_isinstance()


def _observed(module: GraphModule, changes: dict[str, int], observer: Observer, args: Sequence[Any]) -> Any:
    observer.graphs += 1
    observer.rules.update(changes)
    with observer:
        return _Named(module, observer.layers).run(*args)


class _Named(Interpreter):
    """Runs a graph node by node, and says which layer each belongs to."""

    def __init__(self, module: GraphModule, layers: list[str]) -> None:
        super().__init__(module)
        self.layers = layers

    def run_node(self, node: Node) -> Any:
        stack = node.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""  # "L['self'].encoder.conv1"
        self.layers.append(path.partition("].")[2])
        try:
            return super().run_node(node)
        finally:
            self.layers.pop()
