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


def pooling(shape: Shape, ours: Callable[..., Any], theirs: Callable[..., Any], exact: bool) -> Work:
    dtype = getattr(torch, shape.get("dtype", "float32"))
    window = {name: shape[name] for name in ("kernel_size", "stride", "padding") if name in shape}
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
