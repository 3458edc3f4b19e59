"""Pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, random, relative_l2
from volnet import ops


@operator(*BOTH)
def max_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.max_pool3d, F.max_pool3d, exact=True)


@operator(*BOTH)
def avg_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.avg_pool3d, F.avg_pool3d, exact=False)


@operator(*BOTH)
def adaptive_avg_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.adaptive_avg_pool3d, F.adaptive_avg_pool3d, exact=False)


@operator(*BOTH)
def adaptive_max_pool3d(shape: Shape) -> Work:
    return pooling(shape, ops.adaptive_max_pool3d, F.adaptive_max_pool3d, exact=True)


@operator(*BOTH, shapes="max_pool3d")
def max_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.max_pool3d, F.max_pool3d, index_bytes=8)


@operator(*BOTH, shapes="avg_pool3d")
def avg_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.avg_pool3d, F.avg_pool3d, index_bytes=0)


@operator(*BOTH, shapes="adaptive_avg_pool3d")
def adaptive_avg_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.adaptive_avg_pool3d, F.adaptive_avg_pool3d, index_bytes=0)


@operator(*BOTH, shapes="adaptive_max_pool3d")
def adaptive_max_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.adaptive_max_pool3d, F.adaptive_max_pool3d, index_bytes=8)


WINDOW = ("kernel_size", "stride", "padding", "output_size")


def pooling(shape: Shape, ours: Callable[..., Any], theirs: Callable[..., Any], exact: bool) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in WINDOW if name in shape}
    x = random(1, shape["channels"], *shape["size"]).to(dtype)
    expected = theirs(x.double(), **window)
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        y = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ours, y, **window)
        implementations[f"torch {layout}"] = partial(theirs, y, **window)
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance=0.0 if exact else {torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype],
        bytes=float(nbytes(x) + expected.numel() * x.element_size()),
    )


def pooling_backward(
    shape: Shape, ours: Callable[..., Any], theirs: Callable[..., Any], index_bytes: int
) -> Work:
    """The floor reads the gradient, and where the maxima were, and writes the gradient of x."""
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in WINDOW if name in shape}
    x = random(1, shape["channels"], *shape["size"]).to(dtype)

    def gradient(function: Callable[..., Any], volume: torch.Tensor) -> Callable[[], Any]:
        graph: list[torch.Tensor] = []  # leaf, result and its gradient, made by the first call

        @torch.inference_mode(False)
        @torch.enable_grad()
        def run() -> torch.Tensor:
            if not graph:
                leaf = volume.clone(memory_format=torch.preserve_format).requires_grad_()
                y = function(leaf, **window)
                graph.extend([leaf, y, torch.empty_like(y).copy_(grad)])
            leaf, y, weight = graph
            return torch.autograd.grad(y, leaf, weight, retain_graph=True)[0]

        return run

    grad = random(*theirs(x.double(), **window).shape, seed=1).to(dtype)
    expected = gradient(theirs, x.double())()
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        volume = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = gradient(ours, volume)
        implementations[f"torch {layout}"] = gradient(theirs, volume)
    return Work(
        implementations,
        error=lambda dx: relative_l2(dx, expected),
        # torch adds bfloat16 gradients of overlapping windows in bfloat16.
        tolerance={torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype],
        bytes=float(nbytes(x, grad) + grad.numel() * index_bytes),
    )
