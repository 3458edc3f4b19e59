"""Operators that change their argument become ones that do not, where nobody can tell the difference."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node

from volnet.optimize.graph import runs, value

ACTIVATIONS = (F.relu, F.leaky_relu, F.elu, F.silu)
# Functions with a result of their own: none is a view of an argument.
FRESH = (
    *(torch.conv3d, torch.conv_transpose3d, torch.cat, torch.add, torch.mul, torch.sub),
    *(operator.add, operator.mul, operator.sub, F.interpolate, F.relu, F.leaky_relu, F.elu, F.silu, F.gelu),
    *(F.instance_norm, F.batch_norm, F.group_norm, F.layer_norm, F.prelu, torch.prelu, torch.relu),
    *(F.max_pool3d, F.avg_pool3d, F.linear, torch.sigmoid, torch.tanh),
)
CHANGING = (
    *(operator.setitem, operator.delitem, operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(operator.ifloordiv, operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor),
    *(operator.ilshift, operator.irshift, operator.imatmul),
)
NEW = (torch.zeros, torch.ones, torch.empty, torch.full)
IN_PLACE = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    torch.relu_: torch.relu,
    "relu_": torch.relu,
    "add_": torch.add,
    "mul_": torch.mul,
    "sigmoid_": torch.sigmoid,
}


def make_functional(graph: Graph) -> int:
    """``relu(x, inplace=True)``, ``x += y`` and the like. ``x`` must be a result of the graph itself, and who
    reads it afterwards reads the new value."""
    count = 0
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        function = _out_of_place(node)
        if function is None or not node.args or not _own(node.args[0], node, order):
            continue
        x = node.args[0]
        with graph.inserting_before(node):
            keywords = {k: v for k, v in node.kwargs.items() if k != "inplace"}
            args = tuple(a for i, a in enumerate(node.args) if i != _inplace_position(node.target))
            new = graph.call_function(function, args, keywords)
        new.meta.update(node.meta)
        order[new] = order[node]
        for user in [user for user in x.users if user is not new and order[user] > order[node]]:
            user.replace_input_with(x, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        count += 1
    return count


def changes_in_place(graph: Graph) -> bool:
    """Whether a tensor is still changed that others may hold a view of: then no layout may be another
    than the network was written for. Buffers of a network, which batch norm counts in, are nobody's view, and
    nothing has read a new tensor that is being filled, such as the mask of SwinUNETR's windows."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    return any(_changes_a_volume(node) and not _fills(node, order) for node in graph.nodes)


def _fills(node: Node, order: dict[Node, int]) -> bool:
    """Whether it sets a part of a new tensor, before which others may have been set, but nothing was read."""
    if not runs(node, operator.setitem) or not runs(node.args[0], *NEW):
        return False
    new = node.args[0]
    assert isinstance(new, Node)
    earlier = [user for user in new.users if order[user] <= order[node]]
    return all(runs(user, operator.setitem) and new not in user.args[1:] for user in earlier)


def _changes_a_volume(node: Node) -> bool:
    in_place = (
        node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__")
    )
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = (
            node.kwargs.get("inplace") is True
            or node.kwargs.get("out") is not None
            or _out_of_place(node) is not None
            or node.target in CHANGING
            or _is_in_place(name)
        )
    target = node.args[0] if node.args else None
    if not in_place or not isinstance(value(target), Tensor):
        return False
    assert isinstance(target, Node)
    return target.op != "placeholder" or value(target).dim() >= 3


def _is_in_place(name: str) -> bool:
    """By torch's convention."""
    return name.endswith("_") and not name.endswith("__")


def _inplace_position(function: Any) -> int | None:
    return {F.relu: 1, F.silu: 1, F.leaky_relu: 2, F.elu: 2}.get(function)


def _out_of_place(node: Node) -> Any:
    """The function that gives the same and changes nothing; None where ``node`` changes nothing itself."""
    if node.op == "call_method" or (node.op == "call_function" and node.target in IN_PLACE):
        return IN_PLACE.get(node.target)
    if not runs(node, *ACTIVATIONS):
        return None
    position = _inplace_position(node.target)
    assert position is not None
    in_place = node.args[position] if len(node.args) > position else node.kwargs.get("inplace", False)
    return node.target if in_place else None


def _own(x: Any, node: Node, order: dict[Node, int]) -> bool:
    """Whether ``x`` is a tensor with memory of its own, which nobody before ``node`` holds a view of."""
    if not isinstance(value(x), Tensor) or not runs(x, *FRESH) or _out_of_place(x) is not None:
        return False
    return all(runs(user, *FRESH) for user in x.users if order[user] < order[node])
