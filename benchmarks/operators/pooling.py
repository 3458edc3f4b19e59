"""Pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, random, relative_l2, uniform
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


@operator(*BOTH)
def fractional_max_pool3d(shape: Shape) -> Work:
    return pooling(
        shape,
        with_samples(shape, ops.fractional_max_pool3d),
        with_samples(shape, F.fractional_max_pool3d),
        True,
    )


@operator(*BOTH, shapes="fractional_max_pool3d")
def fractional_max_pool3d_backward(shape: Shape) -> Work:
    functions = (with_samples(shape, f) for f in (ops.fractional_max_pool3d, F.fractional_max_pool3d))
    return pooling_backward(shape, *functions, index_bytes=4)


def with_samples(shape: Shape, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same windows for all, and in float64 too."""
    samples = uniform(1, shape["channels"], 3).mul(4).floor().div(4)
    return lambda x, **window: function(x, **window, _random_samples=samples.to(x.dtype))


@operator(*BOTH, shapes="max_pool3d")
def max_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.max_pool3d, F.max_pool3d, index_bytes=4)


@operator(*BOTH, shapes="avg_pool3d")
def avg_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.avg_pool3d, F.avg_pool3d, index_bytes=0)


@operator(*BOTH, shapes="adaptive_avg_pool3d")
def adaptive_avg_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.adaptive_avg_pool3d, F.adaptive_avg_pool3d, index_bytes=0)


@operator(*BOTH, shapes="adaptive_max_pool3d")
def adaptive_max_pool3d_backward(shape: Shape) -> Work:
    return pooling_backward(shape, ops.adaptive_max_pool3d, F.adaptive_max_pool3d, index_bytes=4)


@operator(*BOTH, shapes="max_pool3d")
def max_unpool3d(shape: Shape) -> Work:
    def expected(y: torch.Tensor, indices: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return (
            torch.zeros_like(grad).flatten(2).scatter(2, indices.flatten(2), y.flatten(2)).reshape(grad.shape)
        )

    return unpooling(shape, lambda function, y, grad: partial(function, y), expected)


@operator(*BOTH, shapes="max_pool3d")
def max_unpool3d_backward(shape: Shape) -> Work:
    def expected(y: torch.Tensor, indices: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        return grad.flatten(2).gather(2, indices.flatten(2)).reshape(y.shape)

    return unpooling(shape, gradient_of, expected)


Function = Callable[[torch.Tensor], torch.Tensor]
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


def partial_of(function: Callable[..., Any], window: dict[str, Any]) -> Function:
    return lambda x: function(x, **window)


def gradient_of(function: Function, x: torch.Tensor, grad: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Calls the backward of ``function`` at ``x`` for the gradient ``grad`` of its result."""
    graph: list[torch.Tensor] = []  # leaf, result and its gradient, made by the first call

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run() -> torch.Tensor:
        if not graph:
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = function(leaf)
            graph.extend([leaf, y, torch.empty_like(y).copy_(grad)])
        leaf, y, weight = graph
        return torch.autograd.grad(y, leaf, weight, retain_graph=True)[0]

    return run


def unpooling(
    shape: Shape,
    run: Callable[[Function, torch.Tensor, torch.Tensor], Callable[[], Any]],
    expected: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Work:
    """Of the maxima of a volume, or of the gradient of that: the floor moves them, their indices and it."""
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in ("kernel_size", "stride", "padding") if name in shape}
    x = random(1, shape["channels"], *shape["size"]).to(dtype)
    grad = random(*x.shape, seed=1).to(dtype)
    y, indices = F.max_pool3d(x, **window, return_indices=True)

    def call(function: Callable[..., Any], memory_format: torch.memory_format) -> Callable[[], Any]:
        with torch.inference_mode(False):  # they are saved for the backward
            places = indices.clone(memory_format=memory_format)
        unpool = partial_of(function, {**window, "indices": places, "output_size": x.shape})
        return run(unpool, y.contiguous(memory_format=memory_format), grad)

    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        implementations[f"volnet {layout}"] = call(ops.max_unpool3d, memory_format)
        implementations[f"torch {layout}"] = call(F.max_unpool3d, memory_format)
    exact = expected(y, indices, grad)
    return Work(
        implementations,
        error=lambda result: relative_l2(result, exact),
        tolerance=0.0,
        bytes=float(nbytes(x, y, indices)),
    )


def pooling_backward(
    shape: Shape, ours: Callable[..., Any], theirs: Callable[..., Any], index_bytes: int
) -> Work:
    """The floor reads the gradient, and where the maxima were, and writes the gradient of x."""
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in WINDOW if name in shape}
    x = random(1, shape["channels"], *shape["size"]).to(dtype)

    grad = random(*theirs(x.double(), **window).shape, seed=1).to(dtype)
    expected = gradient_of(partial_of(theirs, window), x.double(), grad)()
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        volume = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = gradient_of(partial_of(ours, window), volume, grad)
        implementations[f"torch {layout}"] = gradient_of(partial_of(theirs, window), volume, grad)
    return Work(
        implementations,
        error=lambda dx: relative_l2(dx, expected),
        # torch adds bfloat16 gradients of overlapping windows in bfloat16.
        tolerance={torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype],
        bytes=float(nbytes(x, grad) + grad.numel() * index_bytes),
    )
