"""A convolution reads two volumes as if they were concatenated."""

from __future__ import annotations

from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import argument, runs


def read_both_parts(graph: Graph) -> int:
    """``conv3d(cat([a, b], 1))``, after the skips of a U-Net, where nothing else reads the two together."""
    count = 0
    for node in list(graph.nodes):
        if not runs(node, ops.cat) or argument(node, "dim") not in (1, -4):
            continue
        parts = argument(node, "tensors")
        users = list(node.users)
        if not isinstance(parts, (tuple, list)) or len(parts) != 2 or not all(_reads(u, node) for u in users):
            continue
        for user in users:
            user.kwargs = {**user.kwargs, "input": parts[0], "skip": parts[1]}
        graph.erase_node(node)
        count += 1
    return count


def _reads(user: Node, node: Node) -> bool:
    return (
        runs(user, ops.conv3d, ops.conv3d_with_statistics)
        and user.kwargs["input"] is node
        and user.kwargs.get("residual") is not node
        and user.kwargs.get("input_scale") is None
        and user.kwargs.get("skip") is None
    )
