"""A norm after a convolution: its statistics come with the convolution's result, and where only convolutions
read what it gives, it is applied while they load."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from volnet import ops
from volnet.optimize.graph import argument, only_user, replace, run, runs, value
from volnet.optimize.norm_coefficients import apply_norm, coefficients

# On loading, a convolution computes an activation once for every tile that reads a value; these are cheap.
CHEAP = (None, "relu", "leaky_relu")


def use_statistics(graph: Graph) -> int:
    """Where no gradient is asked for: the backward of a norm is fastest as one operator."""
    if torch.is_grad_enabled():
        return 0
    count = 0
    for node in list(graph.nodes):
        if not runs(node, ops.instance_norm, ops.group_norm):
            continue
        convolution = argument(node, "input")
        if (
            not runs(convolution, ops.conv3d)
            or only_user(convolution) is not node
            or argument(convolution, "activation") is not None
            or argument(convolution, "residual") is not None
        ):
            continue
        groups = 0
        if runs(node, ops.group_norm):
            groups = argument(node, "num_groups")
        elif argument(node, "running_mean") is not None or not argument(node, "use_input_stats"):
            continue
        with graph.inserting_before(node):
            both = run(graph, ops.conv3d_with_statistics, None, **convolution.kwargs)
            both.meta["nn_module_stack"] = convolution.meta.get("nn_module_stack")
            y, mean, variance = (graph.call_function(operator.getitem, (both, i)) for i in range(3))
        y.meta.update(convolution.meta)
        kept = ("weight", "bias", "eps", "activation", "negative_slope", "residual")
        arguments = {name: argument(node, name) for name in kept}
        replace(node, apply_norm, x=y, mean=mean, variance=variance, groups=groups, **arguments)
        graph.erase_node(convolution)
        count += 1
    return count


def normalize_on_load(graph: Graph) -> int:
    count = 0
    for node in list(graph.nodes):
        if not runs(node, apply_norm) or argument(node, "residual") is not None:
            continue
        if argument(node, "activation") not in CHEAP or not all(_can_load(u, node) for u in node.users):
            continue
        with graph.inserting_before(node):
            names = ("mean", "variance", "weight", "bias", "groups", "eps")
            both = run(graph, coefficients, None, **{name: argument(node, name) for name in names})
            scale, shift = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
        for user in list(node.users):
            _load(user, node, scale, shift)
        graph.erase_node(node)
        count += 1
    return count


def _can_load(user: Node, node: Node) -> bool:
    if not runs(user, ops.conv3d, ops.conv3d_with_statistics) or user.kwargs.get("residual") is node:
        return False
    slopes = {user.kwargs.get("input_negative_slope", 0.01), argument(node, "negative_slope")}
    free = user.kwargs.get("input_activation") is None or len(slopes) == 1
    return free and user.kwargs.get("groups", 1) != value(user.kwargs["input"]).shape[1]


def _load(user: Node, node: Node, scale: Any, shift: Any) -> None:
    user.kwargs = {
        **user.kwargs,
        "input": argument(node, "x"),
        "input_scale": scale,
        "input_shift": shift,
        "input_activation": argument(node, "activation"),
        "input_negative_slope": argument(node, "negative_slope"),
    }
