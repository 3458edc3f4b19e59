"""A captured graph as a planner sees it: what is computed plane by plane, what is gathered over all planes,
and what is computed as a whole."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from volnet import ops
from volnet.optimize.graph import argument, replace, run, runs, value
from volnet.optimize.norm_coefficients import apply_norm
from volnet.optimize.rules import rewrite
from volnet.optimize.rules.batch_norm import folded
from volnet.optimize.rules.functional import changes_in_place
from volnet.optimize.rules.layout import with_strides_of
from volnet.optimize.whole.local import Local, local
from volnet.optimize.whole.result import finish
from volnet.optimize.whole.statistics import Gathered, channel_statistics, gathered_by

__all__ = ["Program"]


class Program:
    """``module`` with its nodes sorted into

    - ``local``: volumes computed plane by plane,
    - ``gathered``: what is known when all planes of a volume have been seen,
    - ``whole``: everything else that is called, computed from whole values,
    - ``given``: parameters, buffers and arguments.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        graph = module.graph
        self.rules = rewrite(graph)
        self.local: dict[Node, Local] = {}
        self.gathered: dict[Node, tuple[Node, type[Gathered]]] = {}
        self.whole: list[Node] = []
        self.given: list[Node] = []
        opaque = changes_in_place(graph) or _enters_autocast(graph)
        if not opaque:
            _part_statistics(graph)
        _name_folded_weights(graph)
        graph.lint()
        module.recompile()
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.given.append(node)
            elif node.op != "output":
                self._sort(node, opaque)
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        (self.output,) = graph.find_nodes(op="output")
        self.results = list(self.output.all_input_nodes)

    def _sort(self, node: Node, opaque: bool) -> None:
        volume = None if opaque else local(node, _is_volume)
        gathered = None if opaque else gathered_by(node)
        if volume is not None:
            self.local[node] = volume
        elif gathered is not None and _is_volume(gathered[0]):
            self.gathered[node] = gathered
        else:
            self.whole.append(node)

    def finished(self, node: Node) -> bool:
        """Whether it is the network's result itself."""
        while runs(node, with_strides_of):
            node = node.kwargs["x"]  # type: ignore[assignment]
        return runs(node, finish)


def _is_volume(node: Any) -> bool:
    x = value(node)
    return isinstance(node, Node) and isinstance(x, Tensor) and x.dim() == 5 and x.device.type == "cpu"


def _enters_autocast(graph: Graph) -> bool:
    return any(getattr(node.target, "__name__", "") == "_enter_autocast" for node in graph.nodes)


def _name_folded_weights(graph: Graph) -> None:
    """Weights with a batch norm in them are like those without."""
    for node in graph.nodes:
        if runs(node, operator.getitem) and runs(node.args[0], folded) and node.args[1] == 0:
            node.meta["example_value"] = value(node.args[0].kwargs["weight"])


def _part_statistics(graph: Graph) -> None:
    """Norms become their statistics and what is done with these."""
    for node in list(graph.nodes):
        if runs(node, ops.conv3d_with_statistics):
            _part_convolution(graph, node)
        elif runs(node, ops.group_norm):
            _part_norm(graph, node, argument(node, "num_groups"))
        elif runs(node, ops.instance_norm) and argument(node, "running_mean") is None:
            _part_norm(graph, node, 0)


def _part_convolution(graph: Graph, node: Node) -> None:
    results = {user.args[1]: user for user in node.users}
    with graph.inserting_before(node):
        y = run(graph, ops.conv3d, results[0], **node.kwargs)
        statistics = graph.call_function(channel_statistics, (y,))
    results[0].replace_all_uses_with(y)
    for i in (1, 2):
        with graph.inserting_before(results[i]):
            part = graph.call_function(operator.getitem, (statistics, i - 1))
        results[i].replace_all_uses_with(part)
    for user in results.values():
        graph.erase_node(user)
    graph.erase_node(node)


def _part_norm(graph: Graph, node: Node, groups: int) -> None:
    x = argument(node, "input")
    if not _is_volume(x) or value(x).dtype not in (torch.float32, torch.bfloat16):
        return
    with graph.inserting_before(node):
        statistics = graph.call_function(channel_statistics, (x,))
        mean, variance = (graph.call_function(operator.getitem, (statistics, i)) for i in range(2))
    kept = ("weight", "bias", "eps", "activation", "negative_slope", "residual")
    arguments = {name: argument(node, name) for name in kept}
    replace(node, apply_norm, x=x, mean=mean, variance=variance, groups=groups, **arguments)
