"""A norm that is trained says which statistics it used, so that it can be applied again."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from volnet import ops
from volnet.ops.norm import update_running
from volnet.optimize.graph import argument, run, runs

__all__ = ["apply_again", "keep_statistics", "normalize"]


def keep_statistics(graph: Graph) -> int:
    """Where gradients are recorded; ``meta["again"]`` of the result has what computes it from the input and
    the statistics, in one pass."""
    if not torch.is_grad_enabled():
        return 0
    count = 0
    for node in list(graph.nodes):
        if not runs(node, ops.instance_norm, ops.group_norm, ops.batch_norm) or not _has_own(node):
            continue
        x = argument(node, "input")
        group = runs(node, ops.group_norm)
        kept = ("weight", "bias", "residual", "eps", "activation", "negative_slope")
        arguments: dict[str, Any] = {name: argument(node, name) for name in kept}
        with graph.inserting_before(node):
            both = run(
                graph,
                normalize,
                None,
                x=x,
                groups=argument(node, "num_groups") if group else 0,
                per_image=not runs(node, ops.batch_norm),
                **arguments,
            )
            both.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
            mean, variance, y = (graph.call_function(operator.getitem, (both, i)) for i in (1, 2, 0))
            if not group and argument(node, "running_mean") is not None:
                names = ("running_mean", "running_var", "momentum")
                running = {name: argument(node, name) for name in names}
                run(graph, update, None, x=x, mean=mean, variance=variance, **running)
        y.meta.update(node.meta)
        y.meta["again"] = (apply_again, {"x": x, "mean": mean, "variance": variance, **arguments})
        node.replace_all_uses_with(y)
        graph.erase_node(node)
        count += 1
    return count


def _has_own(node: Node) -> bool:
    """Whether it takes the statistics of its input."""
    if runs(node, ops.batch_norm):
        return argument(node, "training") is True
    return runs(node, ops.group_norm) or argument(node, "use_input_stats") is True


def normalize(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    groups: int = 0,
    per_image: bool = True,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm of ``x`` [N, C, D, H, W] in ``groups`` (0: as many as channels), and the mean and the variance
    that it found, [N or 1, groups] in float64."""
    y, mean, variance = torch.ops.volnet.norm(
        x,
        weight,
        bias,
        residual,
        groups or max(x.shape[1], 1),
        per_image,
        eps,
        activation or "none",
        negative_slope,
    )
    return y, mean, variance


def apply_again(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    negative_slope: float = 0.01,
) -> Tensor:
    """What :func:`normalize` made of ``x``, to the bit."""
    y: Tensor = torch.ops.volnet._norm_apply(
        x, mean, variance, weight, bias, residual, eps, activation or "none", negative_slope
    )
    return y


def update(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.1,
) -> None:
    """Of the statistics that the module keeps for ``eval()``."""
    count = x.numel() // max(x.shape[1], 1) // mean.shape[0]
    update_running(running_mean, running_var, mean, variance, momentum, count)
