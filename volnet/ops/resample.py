"""A CT volume on another grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_pad_value, check_tensor, triple

__all__ = ["resample"]

_MODES = ("nearest", "linear", "cubic")
_DTYPES = (torch.int16, torch.float32)

IndexMap = Sequence[Sequence[float]]  # [3, 4]


@names_shortage
def resample(
    volume: Tensor,
    index_map: IndexMap,
    size: int | Sequence[int],
    *,
    mode: str = "linear",
    pad_value: float = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A volume sampled on another grid, however it lies: ``y[o] = volume(index_map @ (o, 1))``.

    Where the axes of both grids are parallel, each is sampled by itself, which is ten times faster than
    sampling along an oblique map.

    Args:
        volume: [D, H, W], int16 or float32.
        index_map: [3, 4] numbers: the place in ``volume``, in voxels (d, h, w), of voxel (d, h, w) of the
            result; whole numbers are voxel centres.
        size: voxels (d, h, w) of the result.
        mode: ``nearest``, ``linear``, or ``cubic``: the cubic B-spline through the voxels, mirrored at the
            outer centres. The volume ends half a voxel past these, as SimpleITK has it.
        pad_value: what lies outside of the volume.
        dtype: int16 or float32; that of ``volume`` if not given. int16 is rounded to nearest and saturates.

    Returns:
        [OD, OH, OW]. There is no gradient.

    Raises:
        RuntimeError: a shape, dtype or number does not fit.
        ValueError: ``mode`` is none of the three.
        TypeError: an argument is of the wrong type.

    >>> x = torch.tensor([[[0, 100, 200]]], dtype=torch.int16)
    >>> resample(x, ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0.5, 0.25)), (1, 1, 4)).flatten()
    tensor([ 25,  75, 125, 175], dtype=torch.int16)
    """
    check_tensor("resample", "volume", volume, _DTYPES)
    if volume.dim() != 3:
        raise RuntimeError(f"resample: volume must be [D, H, W], got shape {tuple(volume.shape)}")
    if volume.requires_grad:
        raise RuntimeError("resample: has no gradient, got a volume that requires one; detach it")
    sizes = triple("resample", "size", size)
    if any(n < 0 for n in sizes):
        raise RuntimeError(f"resample: size must not be negative, got {tuple(sizes)}")
    if mode not in _MODES:
        raise ValueError(f"resample: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    target = dtype or volume.dtype
    if target not in _DTYPES:
        raise RuntimeError(f"resample: dtype must be int16 or float32, got {target}")
    check_pad_value("resample", pad_value, target)
    rows = _rows(index_map)
    axes = _parallel_axes(rows, sizes)
    if axes is None:
        y: Tensor = torch.ops.volnet._resample_affine(
            volume, sizes, [v for row in rows for v in row], mode, pad_value, target == torch.int16
        )
        return y
    start = [rows[axis][3] for axis in axes]
    step = [rows[axis][column] for column, axis in enumerate(axes)]
    y = torch.ops.volnet._resample_aligned(
        volume.permute(axes), sizes, start, step, mode, pad_value, target == torch.int16
    )
    return y


def _rows(index_map: IndexMap) -> list[list[float]]:
    try:
        rows = [[float(v) for v in row] for row in index_map]
    except TypeError:
        raise TypeError(f"resample: index_map must be [3, 4] numbers, got {index_map!r}") from None
    if [len(row) for row in rows] != [4, 4, 4] or not all(math.isfinite(v) for row in rows for v in row):
        raise RuntimeError(f"resample: index_map must be [3, 4] finite numbers, got {index_map!r}")
    return rows


def _parallel_axes(rows: list[list[float]], sizes: list[int]) -> list[int] | None:
    """For each axis of the result the one of the volume that runs along it, or None where they are oblique:
    where a step along another axis would move a sample by more than a millionth of a voxel."""
    axes = []
    for column in range(3):
        steps = [abs(row[column]) for row in rows]
        axes.append(steps.index(max(steps)))
    if sorted(axes) != [0, 1, 2]:
        return None
    for column, axis in enumerate(axes):
        others = [abs(rows[a][column]) * sizes[column] for a in range(3) if a != axis]
        if max(others) > 1e-6:
            return None
    return axes


@torch.library.register_fake("volnet::_resample_aligned")
def _(
    x: Tensor,
    size: list[int],
    start: list[float],
    step: list[float],
    mode: str,
    pad_value: float,
    to_int16: bool,
) -> Tensor:
    return torch.empty(size, dtype=torch.int16 if to_int16 else torch.float32, device=x.device)


@torch.library.register_fake("volnet::_resample_affine")
def _(
    x: Tensor, size: list[int], index_map: list[float], mode: str, pad_value: float, to_int16: bool
) -> Tensor:
    return torch.empty(size, dtype=torch.int16 if to_int16 else torch.float32, device=x.device)
