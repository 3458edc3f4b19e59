"""Dropout that does nothing is taken out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from volnet.optimize.graph import runs

DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)


def drop_dropout(graph: Graph) -> int:
    """``dropout(x, p, training=False)`` is ``x``, and so is that with ``p=0``."""
    count = 0
    for node in list(graph.nodes):
        if not runs(node, *DROPOUTS) or not node.args or not isinstance(node.args[0], Node):
            continue
        probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        if training is False or probability == 0:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            count += 1
    return count
