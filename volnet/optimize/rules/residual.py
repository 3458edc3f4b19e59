"""The sum with a residual becomes part of the convolution or norm before it."""

from __future__ import annotations

import operator

import torch
from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import argument, is_volume, only_user, replace, runs, same_shape

HOSTS = (ops.conv3d, ops.conv_transpose3d, ops.batch_norm, ops.instance_norm, ops.group_norm)


def fuse_residual(graph: Graph) -> int:
    """``norm(x) + r`` and ``conv(x) + r``, the one that is computed last being the host."""
    count = 0
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not (runs(node, operator.add, torch.add) or (node.op == "call_method" and node.target == "add")):
            continue
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, Node) for a in node.args):
            continue
        terms = sorted(node.args, key=lambda term: order.get(term, -1))
        hosts = [term for term in reversed(terms) if _can_host(term)]
        if not hosts or terms[0] is terms[1] or not is_volume(node) or not same_shape(*terms):
            continue
        host = hosts[0]
        assert isinstance(host, Node)
        residual = terms[0] if host is terms[1] else terms[1]
        # At the place of the sum, where the residual is known.
        new = replace(node, host.target, **host.kwargs, residual=residual)
        order[new] = order[node]
        graph.erase_node(host)
        count += 1
    return count


def _can_host(node: object) -> bool:
    return (
        runs(node, *HOSTS)
        and only_user(node) is not None
        and argument(node, "activation") is None
        and argument(node, "residual") is None
    )
