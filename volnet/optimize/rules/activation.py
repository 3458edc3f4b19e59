"""An activation becomes part of the convolution or norm before it."""

from __future__ import annotations

from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import argument, only_user, replace, runs, value

CONVOLUTIONS = (ops.conv3d, ops.conv_transpose3d)
NORMS = (ops.batch_norm, ops.instance_norm, ops.group_norm)
ACTIVATIONS = (ops.relu, ops.leaky_relu, ops.silu, ops.gelu, ops.prelu)


def fuse_activation(graph: Graph) -> int:
    count = 0
    for node in list(graph.nodes):
        if not runs(node, *ACTIVATIONS):
            continue
        host = argument(node, "input")
        if not runs(host, *CONVOLUTIONS, *NORMS) or only_user(host) is not node:
            continue
        fused = _fused(node, host)
        if fused is None or argument(host, "activation") is not None:
            continue
        replace(node, host.target, **{**host.kwargs, **fused})
        graph.erase_node(host)
        count += 1
    return count


def _fused(node: Node, host: Node) -> dict[str, object] | None:
    """Arguments of the host that stand for the activation."""
    if runs(node, ops.relu):
        return {"activation": "relu"}
    if runs(node, ops.silu):
        return {"activation": "silu"}
    if runs(node, ops.gelu):
        return {"activation": "gelu" if argument(node, "approximate") == "none" else "gelu_tanh"}
    if runs(node, ops.leaky_relu):
        return {"activation": "leaky_relu", "negative_slope": argument(node, "negative_slope")}
    if runs(host, *CONVOLUTIONS) and value(argument(node, "weight")).dtype == value(host).dtype:
        return {"activation": "prelu", "prelu_weight": argument(node, "weight")}
    return None
