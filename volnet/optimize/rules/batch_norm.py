"""A batch norm with fixed statistics becomes part of the weights before it."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Graph

from volnet import ops
from volnet.optimize.graph import argument, only_user, replace, run, runs, value


def fold_batch_norm(graph: Graph) -> int:
    """``batch_norm(conv(x))`` in ``eval()``, where no gradient is asked for."""
    if torch.is_grad_enabled():
        return 0
    count = 0
    for node in list(graph.nodes):
        if not runs(node, ops.batch_norm) or argument(node, "training"):
            continue
        host = argument(node, "input")
        if not runs(host, ops.conv3d, ops.conv_transpose3d) or only_user(host) is not node:
            continue
        transposed = runs(host, ops.conv_transpose3d)
        if transposed and argument(host, "groups") != 1:
            continue
        if any(argument(host, name) is not None for name in ("activation", "residual")):
            continue
        if value(host.kwargs["weight"]).dtype != value(host).dtype:
            continue  # under autocast, which converts weights by itself
        with graph.inserting_before(node):
            parameters = {name: argument(node, name) for name in ("running_mean", "running_var", "eps")}
            both = run(
                graph,
                folded,
                None,
                weight=host.kwargs["weight"],
                bias=argument(host, "bias"),
                **parameters,
                scale=argument(node, "weight"),
                shift=argument(node, "bias"),
                axis=1 if transposed else 0,
            )
            weight, bias = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
        after = {name: argument(node, name) for name in ("activation", "negative_slope", "residual")}
        replace(node, host.target, **{**host.kwargs, "weight": weight, "bias": bias, **after})
        graph.erase_node(host)
        count += 1
    return count


def folded(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    axis: int,
) -> tuple[Tensor, Tensor]:
    """Weights and bias of the convolution that stands for a convolution and a batch norm. ``axis`` of
    ``weight`` is that of the filters."""
    factor = (running_var.double() + eps).rsqrt()
    if scale is not None:
        factor = factor * scale.double()
    offset = -running_mean.double() if bias is None else bias.double() - running_mean.double()
    offset = offset * factor
    if shift is not None:
        offset = offset + shift.double()
    return torch.ops.volnet._scaled_weights(weight, factor.float(), axis), offset.to(weight.dtype)
