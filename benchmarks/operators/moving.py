"""Operators that map or move voxels one by one: activations, padding, crops, concatenation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.work import BOTH, LAYOUTS, Shape, Work, nbytes, operator, partial, random, relative_l2
from volnet import ops

Function = Callable[[list[Tensor]], Tensor]


@operator(*BOTH)
def relu(shape: Shape) -> Work:
    return forward(shape, lambda x: ops.relu(x[0]), lambda x: F.relu(x[0]))


@operator(*BOTH, shapes="relu")
def gelu(shape: Shape) -> Work:
    return forward(shape, lambda x: ops.gelu(x[0]), lambda x: F.gelu(x[0]))


@operator(*BOTH, shapes="relu")
def pad(shape: Shape) -> Work:
    return forward(shape, lambda x: ops.pad(x[0], (1,) * 6), lambda x: F.pad(x[0], (1,) * 6))


@operator(*BOTH, shapes="relu")
def crop3d(shape: Shape) -> Work:
    """All but the voxels at the border."""
    inner = [n - 2 for n in shape["size"]]
    return forward(shape, lambda x: ops.crop3d(x[0], 1, inner), lambda x: inner_voxels(x[0]), reads_all=False)


def inner_voxels(x: Tensor) -> Tensor:
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last_3d
    return x[..., 1:-1, 1:-1, 1:-1].contiguous(memory_format=layout)


@operator(*BOTH, shapes="relu")
def cat(shape: Shape) -> Work:
    return forward(shape, lambda x: ops.cat(x, 1), lambda x: torch.cat(x, 1), count=2)


@operator(*BOTH, shapes="relu")
def relu_backward(shape: Shape) -> Work:
    """Floor: the gradient, the result, dx."""
    return backward(shape, lambda x: ops.relu(x[0]), lambda x: F.relu(x[0]), passes=3)


@operator(*BOTH, shapes="relu")
def pad_backward(shape: Shape) -> Work:
    return backward(shape, lambda x: ops.pad(x[0], (1,) * 6), lambda x: F.pad(x[0], (1,) * 6), passes=2)


@operator(*BOTH, shapes="relu")
def cat_backward(shape: Shape) -> Work:
    """Dense gradients: torch gives views, which are made dense here where they are not. Of one image in plain
    layout they are, in volnet too, and no bytes move."""
    return backward(shape, lambda x: ops.cat(x, 1), lambda x: torch.cat(x, 1), passes=4, count=2)


def volumes(shape: Shape, count: int) -> list[Tensor]:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    return [random(1, shape["channels"], *shape["size"], seed=i).to(dtype) for i in range(count)]


def forward(
    shape: Shape, ours: Function, theirs: Function, *, count: int = 1, reads_all: bool = True
) -> Work:
    xs = volumes(shape, count)
    expected = theirs([x.double() for x in xs])
    implementations: dict[str, Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        inputs = [x.contiguous(memory_format=memory_format) for x in xs]
        implementations[f"volnet {layout}"] = partial(ours, inputs)
        implementations[f"torch {layout}"] = partial(theirs, inputs)
    written = expected.numel() * xs[0].element_size()
    return Work(
        implementations,
        error=lambda y: relative_l2(y, expected),
        tolerance={torch.float32: 1e-6, torch.bfloat16: 4e-3}[xs[0].dtype],
        bytes=float(written + (nbytes(*xs) if reads_all else written)),
    )


@torch.inference_mode(False)
def backward(shape: Shape, ours: Function, theirs: Function, *, passes: int, count: int = 1) -> Work:
    """``passes``: volumes to be read and written."""
    xs = volumes(shape, count)
    y = theirs(xs)
    grad = random(*y.shape, seed=9).to(y.dtype)

    def gradients(function: Function, inputs: list[Tensor], grad: Tensor) -> Callable[[], Any]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        with torch.enable_grad():
            y = function(leaves)
        layout = torch.contiguous_format if inputs[0].is_contiguous() else torch.channels_last_3d

        @torch.inference_mode(False)
        def run() -> list[Tensor]:
            found = torch.autograd.grad(y, leaves, grad, retain_graph=True)
            return [t.contiguous(memory_format=layout) for t in found]

        return run

    expected = gradients(theirs, [x.double() for x in xs], grad.double())()
    implementations: dict[str, Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        inputs = [x.contiguous(memory_format=memory_format) for x in xs]
        dy = grad.contiguous(memory_format=memory_format)
        implementations[f"volnet {layout}"] = gradients(ours, inputs, dy)
        implementations[f"torch {layout}"] = gradients(theirs, inputs, dy)
    return Work(
        implementations,
        error=lambda found: max(relative_l2(f, e) for f, e in zip(found, expected, strict=True)),
        tolerance={torch.float32: 1e-6, torch.bfloat16: 4e-3}[xs[0].dtype],
        bytes=float(passes * nbytes(xs[0])),
    )
