"""torch's operators on volumes become volnet's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import is_volume, replace

# Everything here takes torch's arguments by torch's names.
OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.conv3d: ops.conv3d,
    torch.conv_transpose3d: ops.conv_transpose3d,
    F.instance_norm: ops.instance_norm,
    F.batch_norm: ops.batch_norm,
    torch.batch_norm: ops.batch_norm,
    F.group_norm: ops.group_norm,
    F.max_pool3d: ops.max_pool3d,
    torch.max_pool3d: ops.max_pool3d,
    F.avg_pool3d: ops.avg_pool3d,
    F.adaptive_avg_pool3d: ops.adaptive_avg_pool3d,
    F.adaptive_max_pool3d: ops.adaptive_max_pool3d,
    F.interpolate: ops.interpolate,
    F.pad: ops.pad,
    torch._C._nn.pad: ops.pad,
    F.relu: ops.relu,
    torch.relu: ops.relu,
    "relu": ops.relu,
    F.leaky_relu: ops.leaky_relu,
    F.prelu: ops.prelu,
    torch.prelu: ops.prelu,
    F.silu: ops.silu,
    F.gelu: ops.gelu,
    F.elu: ops.elu,
    F.sigmoid: ops.sigmoid,
    torch.sigmoid: ops.sigmoid,
    "sigmoid": ops.sigmoid,
    F.softmax: ops.softmax,
    torch.softmax: ops.softmax,
    torch.cat: ops.cat,
    torch.concat: ops.cat,
    torch.concatenate: ops.cat,
}


def use_operators(graph: Graph) -> int:
    """Where all the volumes that go in and come out are of a dtype and a rank that volnet is fast for. What
    volnet does not take is left to torch."""
    count = 0
    for node in list(graph.nodes):
        ours = OPERATORS.get(node.target) if node.op in ("call_function", "call_method") else None
        if ours is None or not is_volume(node):
            continue
        arguments = _by_name(ours, node)
        if arguments is None or not is_volume(_first(arguments)):
            continue
        replace(node, ours, **arguments)
        count += 1
    return count


def _first(arguments: dict[str, Any]) -> Any:
    first = next(iter(arguments.values()))
    return first[0] if isinstance(first, (tuple, list)) and all(is_volume(part) for part in first) else first


def _by_name(ours: Callable[..., Any], node: Node) -> dict[str, Any] | None:
    """None where volnet's operator has not all of torch's arguments."""
    keywords = {k: v for k, v in node.kwargs.items() if not _is_default_of_torch(k, v)}
    try:
        bound = inspect.signature(ours).bind(*node.args, **keywords)
    except TypeError:
        return None
    return dict(bound.arguments)


def _is_default_of_torch(name: str, given: Any) -> bool:
    """Arguments that volnet's operators do not have, where they change nothing."""
    return name == "_stacklevel" or (name, given) in (
        ("antialias", False),
        ("recompute_scale_factor", None),
        ("return_indices", False),
        ("cudnn_enabled", True),
        ("out", None),
    )
