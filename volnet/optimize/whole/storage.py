"""Volumes that are written and given back plane by plane."""

from __future__ import annotations

import math
import mmap
from typing import Any

import torch
from torch import Tensor

__all__ = ["Destination", "Store", "gib", "planes"]

_PAGE = 1 << 21


class Store:
    """[N, C, D, H, W] in memory of its own, plane after plane, of which only what is written is there.

    The pool gives out memory as a whole; here what has been read for the last time goes back to the system
    while the rest is still to be read.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        n, c, d, h, w = shape
        self.plane_bytes = n * h * w * c * dtype.itemsize
        size = max(self.plane_bytes * d, 1)
        private: dict[str, Any] = {}
        if hasattr(mmap, "MAP_PRIVATE"):
            private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = mmap.mmap(-1, size, **private)
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= _PAGE:
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        flat = torch.frombuffer(self.memory, dtype=dtype, count=math.prod(shape))
        # One image is a volume in channels_last_3d, and so are its planes.
        self.volume = flat.view(d, n, h, w, c).permute(1, 4, 0, 2, 3)
        self.written = self.released = 0  # bytes

    def write(self, a: int, b: int, planes: Tensor) -> None:
        self.volume[:, :, a:b].copy_(planes)
        self.written = max(self.written, b * self.plane_bytes)

    def release(self, before: int) -> None:
        """Planes [0, before) will not be read again."""
        end = before * self.plane_bytes // _PAGE * _PAGE
        if end > self.released and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED, self.released, end - self.released)
            self.released = end


class Destination:
    """Where the result of a graph goes: a tensor of ours or the caller's, or something that takes slices."""

    def __init__(self, out: Any, squeeze: bool) -> None:
        self.out, self.squeeze = out, squeeze

    def write_all(self, result: Tensor) -> None:
        """A result that was not computed plane by plane."""
        result = result.squeeze(1) if self.squeeze else result
        self._write(..., result)

    def write(self, a: int, b: int, planes: Tensor) -> None:
        if self.squeeze:
            planes = planes.squeeze(1)
        where = (slice(None), slice(a, b)) if self.squeeze else (slice(None), slice(None), slice(a, b))
        self._write(where, planes)

    def _write(self, where: Any, planes: Tensor) -> None:
        if isinstance(self.out, Tensor):
            self.out[where].copy_(planes)
        else:
            self.out[where] = planes.float().numpy() if planes.dtype == torch.bfloat16 else planes.numpy()


def planes(x: Tensor, a: int, b: int) -> Tensor:
    """The planes [a, b) of ``x``; a view where they are as dense as a volume by itself."""
    part = x if (a, b) == (0, x.shape[2]) else x.narrow(2, a, b - a)
    if part.is_contiguous() or part.is_contiguous(memory_format=torch.channels_last_3d):
        return part
    return torch.ops.volnet._to_layout(part, x.stride(1) == 1)


def gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"
