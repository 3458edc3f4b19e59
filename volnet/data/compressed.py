"""int16 volumes as blosc2-compressed chunks of 32³ voxels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK = 32


@dataclass(frozen=True)
class Chunks:
    """A compressed volume.

    Attributes:
        data: uint8, the chunks one after the other.
        ends: int64 ``[chunks]``, where each ends in ``data``; d slowest, w fastest.
        shape: voxels (d, h, w).
    """

    data: np.ndarray
    ends: np.ndarray
    shape: tuple[int, int, int]

    def region(self, start: Sequence[int], stop: Sequence[int]) -> Tensor:
        """int16 voxels ``[start, stop)`` on each axis, which lie within the volume."""
        blosc2 = _blosc2()
        result = np.empty([b - a for a, b in zip(start, stop, strict=True)], np.int16)
        if result.size == 0:
            return torch.from_numpy(result)
        counts = [-(-n // _CHUNK) for n in self.shape]
        met = [range(a // _CHUNK, -(-b // _CHUNK)) for a, b in zip(start, stop, strict=True)]
        scratch = np.empty(_CHUNK**3, np.int16)
        for d, h, w in itertools.product(*met):
            index = (d * counts[1] + h) * counts[2] + w
            begin = self.ends[index - 1] if index else 0
            low = [_CHUNK * i for i in (d, h, w)]
            size = [min(_CHUNK, n - a) for a, n in zip(low, self.shape, strict=True)]
            chunk = scratch[: size[0] * size[1] * size[2]]
            blosc2.decompress2(self.data[begin : self.ends[index]], dst=chunk, nthreads=1)
            source, target = [], []
            for axis in range(3):
                first, last = max(low[axis], start[axis]), min(low[axis] + size[axis], stop[axis])
                source.append(slice(first - low[axis], last - low[axis]))
                target.append(slice(first - start[axis], last - start[axis]))
            result[tuple(target)] = chunk.reshape(size)[tuple(source)]
        return torch.from_numpy(result)


def compress(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``data`` and ``ends`` of the :class:`Chunks` of int16 voxels ``[D, H, W]``."""
    blosc2 = _blosc2()
    parts: list[Any] = []
    for low in _corners(voxels.shape):
        chunk = voxels[tuple(slice(a, a + _CHUNK) for a in low)]
        # LZ4HC is slow once; decompressed are 8 GB/s, twice as many as after LZ4.
        parts.append(
            np.frombuffer(
                blosc2.compress2(
                    np.ascontiguousarray(chunk),
                    codec=blosc2.Codec.LZ4HC,
                    clevel=5,
                    typesize=2,
                    filters=[blosc2.Filter.SHUFFLE],
                    filters_meta=[0],
                    nthreads=1,
                ),
                np.uint8,
            )
        )
    return np.concatenate(parts), np.cumsum([len(part) for part in parts], dtype=np.int64)


def _corners(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(0, n, _CHUNK) for n in shape))


def _blosc2() -> ModuleType:
    try:
        import blosc2
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a compressed VolumeStore needs blosc2: pip install blosc2") from None
    blosc2.set_releasegil(True)
    return blosc2
