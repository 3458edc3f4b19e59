"""Norms with the activation that follows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial as bind
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, random, relative_l2
from volnet import ops

Norm = Callable[..., Any]  # of x and weight; bias is fixed


@operator(*BOTH)
def instance_norm(shape: Shape) -> Work:
    return forward(shape, *instance_norms())


@operator(*BOTH, shapes="instance_norm")
def batch_norm(shape: Shape) -> Work:
    return forward(shape, *batch_norms())


@operator(*BOTH, shapes="instance_norm")
def group_norm(shape: Shape) -> Work:
    return forward(shape, *group_norms(shape))


@operator(*BOTH, shapes="instance_norm")
def instance_norm_backward(shape: Shape) -> Work:
    return backward(shape, *instance_norms())


@operator(*BOTH, shapes="instance_norm")
def batch_norm_backward(shape: Shape) -> Work:
    return backward(shape, *batch_norms())


@operator(*BOTH, shapes="instance_norm")
def group_norm_backward(shape: Shape) -> Work:
    return backward(shape, *group_norms(shape))


def instance_norms() -> tuple[Norm, Norm]:
    return bind(ops.instance_norm, activation="relu"), then_relu(F.instance_norm)


def batch_norms() -> tuple[Norm, Norm]:
    return bind(ops.batch_norm, training=True, activation="relu"), then_relu(
        bind(F.batch_norm, training=True)
    )


def group_norms(shape: Shape) -> tuple[Norm, Norm]:
    def call(function: Norm, x: Tensor, _mean: None, _var: None, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = function(x, shape["groups"], weight, bias)
        return result

    return bind(call, bind(ops.group_norm, activation="relu")), then_relu(bind(call, F.group_norm))


def then_relu(norm: Norm) -> Norm:
    return lambda *args: norm(*args).relu_()


def numbers(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    dtype, channels = getattr(torch, shape.get("dtype", "float32")), shape["channels"]
    x = random(1, channels, *shape["size"]).to(dtype)
    return x, (1 + 0.1 * random(channels, seed=1)).to(dtype), random(channels, seed=2).to(dtype)


def forward(shape: Shape, ours: Norm, theirs: Norm) -> Work:
    x, weight, bias = numbers(shape)
    expected = theirs(x.double(), None, None, weight.double(), bias.double())
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        volume = x.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = partial(ours, volume, None, None, weight, bias)
        implementations[f"torch {layout}"] = partial(theirs, volume, None, None, weight, bias)
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance={torch.float32: 1e-6, torch.bfloat16: 8e-3}[x.dtype],
        bytes=3.0 * nbytes(x),  # x for its statistics, x again, y
    )


@torch.inference_mode(False)
def backward(shape: Shape, ours: Norm, theirs: Norm) -> Work:
    """The gradients of x, weight and bias."""
    x, weight, bias = numbers(shape)
    grad = random(*x.shape, seed=3).to(x.dtype)

    def gradients(norm: Norm, x: Tensor, grad: Tensor) -> Callable[[], Any]:
        leaves = [t.detach().requires_grad_() for t in (x, weight.to(x.dtype), bias.to(x.dtype))]
        with torch.enable_grad():
            y = norm(leaves[0], None, None, *leaves[1:])
        return torch.inference_mode(False)(partial(torch.autograd.grad, y, leaves, grad, retain_graph=True))

    expected = gradients(theirs, x.double(), grad.double())()
    implementations = {}
    for layout, memory_format in LAYOUTS.items():
        volume, dy = (t.contiguous(memory_format=memory_format) for t in (x, grad))
        implementations[f"volnet {layout}"] = gradients(ours, volume, dy)
        implementations[f"torch {layout}"] = gradients(theirs, volume, dy)
    return Work(
        implementations,
        error=lambda found: max(relative_l2(f, e) for f, e in zip(found, expected, strict=True)),
        tolerance={torch.float32: 1e-4, torch.bfloat16: 5e-2}[x.dtype],
        bytes=5.0 * nbytes(x),  # x and dy for their sums, both again, dx
    )


@operator("volnet", "torch")
def layer_norm(shape: Shape) -> Work:
    dtype, columns = getattr(torch, shape.get("dtype", "float32")), shape["columns"]
    x = random(shape["rows"], columns).to(dtype)
    weight, bias = (random(columns, seed=seed).to(dtype) for seed in (1, 2))
    expected = F.layer_norm(x.double(), (columns,), weight.double(), bias.double())
    return Work(
        {
            "volnet": partial(ops.layer_norm, x, (columns,), weight, bias),
            "torch": partial(F.layer_norm, x, (columns,), weight, bias),
        },
        error=lambda y: relative_l2(y, expected),
        tolerance={torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype],
        bytes=2.0 * nbytes(x),
    )
