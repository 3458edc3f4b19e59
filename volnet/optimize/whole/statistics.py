"""What has to be known of a whole volume, gathered slab by slab.

Slabs are disjoint and come in the order of D, and sums are float64: the result does not depend on threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from volnet import ops
from volnet.optimize.graph import argument, value

__all__ = ["Gathered", "channel_statistics", "gathered_by"]


class Gathered:
    """What ``node`` stands for: ``add`` planes, then ask for the ``result``."""

    def __init__(self, node: Node) -> None:
        raise NotImplementedError

    def add(self, planes: Tensor) -> None:
        raise NotImplementedError

    def result(self) -> Any:
        raise NotImplementedError


class Moments(Gathered):
    """Mean and variance [N, C] of every channel, float32, merged after Chan, Golub and LeVeque."""

    def __init__(self, node: Node) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(0)

    def add(self, planes: Tensor) -> None:
        # There is no pass of volnet's for statistics alone.
        channels = max(planes.shape[1], 1)
        _, mean, variance = torch.ops.volnet.norm(planes, None, None, None, channels, True, 0.0, "none", 0.0)
        self.merge(
            planes.shape[2:].numel(), mean.reshape(planes.shape[:2]), variance.reshape(planes.shape[:2])
        )

    def merge(self, count: int, mean: Tensor, variance: Tensor) -> None:
        mean, squares = mean.double(), variance.double() * count
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, step = self.count + count, mean - self.mean
        self.mean = self.mean + step * (count / total)
        self.squares = self.squares + squares + step * step * (self.count / total * count)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        return self.mean.float(), (self.squares / self.count).float()


class Pooled(Gathered):
    """A mean or maximum [N, C, 1, H, W] over all planes, of windows along H and W."""

    def __init__(self, node: Node) -> None:
        self.is_max = node.target is ops.adaptive_max_pool3d
        self.shape, self.dtype = value(node).shape, value(node).dtype
        self.count, self.total = 0, torch.zeros(0)

    def add(self, planes: Tensor) -> None:
        size, depth = (1, *self.shape[3:]), planes.shape[2]
        if self.is_max:
            pooled = torch.ops.volnet.adaptive_max_pool3d(planes, size)
        else:
            pooled = ops.adaptive_avg_pool3d(planes, size).double() * depth
        if self.count == 0:
            self.total = pooled
        else:
            self.total = torch.maximum(self.total, pooled) if self.is_max else self.total + pooled
        self.count += depth

    def result(self) -> Tensor:
        return (self.total if self.is_max else self.total / self.count).to(self.dtype)


class Averaged(Gathered):
    """``mean`` over axes of which D is one."""

    def __init__(self, node: Node) -> None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        keepdim = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        self.dims, self.keepdim = _axes(dims), bool(keepdim)
        self.dtype = value(node).dtype
        self.count, self.total = 0, torch.zeros(0)

    def add(self, planes: Tensor) -> None:
        total = planes.mean(self.dims, self.keepdim, dtype=torch.float32).double() * planes.shape[2]
        self.total = total if self.count == 0 else self.total + total
        self.count += planes.shape[2]

    def result(self) -> Tensor:
        return (self.total / self.count).to(self.dtype)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [N, C] of ``x``: what stands in a graph where they are to be gathered."""
    moments = Moments.__new__(Moments)
    moments.count = 0
    moments.add(x)
    return moments.result()


def gathered_by(node: Node) -> tuple[Node, type[Gathered]] | None:
    """The volume of which ``node`` has to know everything, and how that is gathered."""
    if node.target is channel_statistics:
        return node.args[0], Moments  # type: ignore[return-value]
    if node.target in (ops.adaptive_avg_pool3d, ops.adaptive_max_pool3d) and value(node).shape[2] == 1:
        return argument(node, "input"), Pooled
    if node.target in (torch.mean, "mean") and node.args and isinstance(node.args[0], Node):
        x, dims = node.args[0], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        fits = isinstance(value(x), Tensor) and value(x).dim() == 5 and node.kwargs.get("dtype") is None
        if fits and isinstance(dims, (tuple, list)) and 2 in _axes(dims):
            return x, Averaged
    return None


def _axes(dims: Any) -> tuple[int, ...]:
    return tuple(d % 5 for d in dims)
