"""Tensors whose elements fill one piece of memory, and what the kernels make of others."""

from __future__ import annotations

import torch
from torch import Tensor

from volnet.ops._arguments import memory_format_of

__all__ = ["empty_like", "is_dense"]


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one piece of memory, whatever their order."""
    step = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != step:
            return x.numel() == 0
        step *= size
    return True


def empty_like(x: Tensor) -> Tensor:
    """Uninitialised, in the order of ``x`` where that is dense; else a volume in its layout, others plain."""
    if is_dense(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    layout = memory_format_of(x) if x.dim() == 5 else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)
