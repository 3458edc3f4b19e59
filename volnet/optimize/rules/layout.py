"""Volumes run through the network in channels_last_3d, and come out as they would have."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

import volnet.ops._layout  # noqa: F401 - gradient of _to_layout
from volnet import ops
from volnet.optimize.graph import is_volume, run, runs, value

CONVOLUTIONS = (ops.conv3d, ops.conv3d_with_statistics, ops.conv_transpose3d)


def channels_last(x: Tensor) -> Tensor:
    """``x`` in channels_last_3d; one channel is both layouts at once, and costs nothing."""
    if x.stride(1) == 1:
        return x
    _, c, d, h, w = x.shape
    if c == 1 and x.is_contiguous():
        return x.as_strided(x.shape, (d * h * w, 1, h * w, w, 1))
    return torch.ops.volnet._to_layout(x, True)


def with_strides_of(x: Tensor, plain: bool) -> Tensor:
    """A result of the graph in the layout that the caller would have had."""
    _, c, d, h, w = x.shape
    if plain and c == 1 and x.is_contiguous():
        return x.as_strided(x.shape, (d * h * w, d * h * w, h * w, w, 1))
    if x.is_contiguous() if plain else x.stride(1) == 1:
        return x
    return torch.ops.volnet._to_layout(x, not plain)


def reshape_views(graph: Graph) -> int:
    """``view`` needs the layout that the network was written for; ``reshape`` takes any."""
    count = 0
    for node in graph.nodes:
        is_view = node.op == "call_method" and node.target == "view" and isinstance(value(node), Tensor)
        if is_view and not isinstance(node.args[-1], torch.dtype):  # as another dtype it has its own meaning
            node.target = "reshape"
            count += 1
    return count


def use_channels_last(graph: Graph) -> int:
    """What comes from outside goes to channels_last where a convolution first reads it, and a result goes
    back to the layout that the graph promises."""
    count = 0
    changed: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if not runs(node, *CONVOLUTIONS):
            continue
        for name in ("input", "skip"):
            source = node.kwargs.get(name)
            if not isinstance(source, Node) or runs(source, channels_last):
                continue
            if source not in changed:
                with graph.inserting_after(source):
                    changed[source] = run(graph, channels_last, source, x=source)
                count += 1
            node.kwargs = {**node.kwargs, name: changed[source]}
    return count + _restore_results(graph)


def _restore_results(graph: Graph) -> int:
    (output,) = graph.find_nodes(op="output")
    restored: dict[Node, Node] = {}
    for node in output.all_input_nodes:
        x = value(node)
        if not is_volume(node) or node.op == "placeholder":
            continue
        plain, last = x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last_3d)
        if plain or last:
            with graph.inserting_before(output):
                restored[node] = run(graph, with_strides_of, node, x=node, plain=plain)
    for node, new in restored.items():
        output.replace_input_with(node, new)
    return len(restored)
