"""Reading and changing the torch.fx graphs that Dynamo captures.

A node that runs an operator of volnet has its arguments by name, so that a rule finds them; those that have
their default are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["argument", "follows", "is_volume", "only_user", "replace", "run", "runs", "same_shape", "value"]

DTYPES = (torch.float32, torch.bfloat16)


def value(node: Any) -> Any:
    """What the node stood for while Dynamo traced it: a fake tensor, a (symbolic) number, or None."""
    return node.meta.get("example_value") if isinstance(node, Node) else node


def is_volume(node: Any) -> bool:
    """Whether it is [N, C, D, H, W] of a dtype that volnet is fast for, on the CPU."""
    x = value(node)
    return isinstance(x, Tensor) and x.dim() == 5 and x.dtype in DTYPES and x.device.type == "cpu"


def same_shape(a: Any, b: Any) -> bool:
    """Known for sure, without a new condition on symbolic sizes; of one dtype as well."""
    x, y = value(a), value(b)
    return (
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.dtype == y.dtype
        and x.dim() == y.dim()
        and all(statically_known_true(m == n) for m, n in zip(x.shape, y.shape, strict=True))
    )


def runs(node: Any, *functions: Callable[..., Any]) -> TypeGuard[Node]:
    return isinstance(node, Node) and node.op == "call_function" and node.target in functions


@cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def argument(node: Node, name: str) -> Any:
    """An argument of a node of volnet's, its default where it was left out."""
    return node.kwargs[name] if name in node.kwargs else _defaults(node.target).get(name)


def run(graph: Graph, function: Callable[..., Any], like: Node | None, **arguments: Any) -> Node:
    """A new node at the place of insertion; its result is what ``like`` stood for."""
    defaults = _defaults(function)
    given = {
        k: v for k, v in arguments.items() if k not in defaults or isinstance(v, Node) or v != defaults[k]
    }
    node = graph.create_node("call_function", function, (), given)
    if like is not None:
        node.meta.update(like.meta)
    return node


def replace(node: Node, function: Any, **arguments: Any) -> Node:
    """Puts a new node in the place of ``node``."""
    with node.graph.inserting_before(node):
        new = run(node.graph, function, node, **arguments)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def follows(node: Node, other: Node) -> bool:
    """Whether ``node`` stands behind ``other`` in the order of the graph."""
    return other < node
