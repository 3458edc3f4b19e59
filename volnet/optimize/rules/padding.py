"""A padding of nothing is taken out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.fx import Graph

from volnet.optimize.graph import runs


def drop_padding(graph: Graph) -> int:
    """``pad(x, [0, 0, ...])``, as networks have it for the odd sizes that the volume does not have."""
    count = 0
    for node in list(graph.nodes):
        if not runs(node, F.pad, torch._C._nn.pad) or len(node.args) < 2:
            continue
        x, pads = node.args[:2]
        if isinstance(pads, (tuple, list)) and all(isinstance(p, int) and p == 0 for p in pads):
            node.replace_all_uses_with(x)  # type: ignore[arg-type]
            graph.erase_node(node)
            count += 1
    return count
