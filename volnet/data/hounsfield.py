"""Voxels of any type to checked int16 Hounsfield units."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volnet.data.errors import InvalidScanError

AIR_HU = -1024
"""What lies outside the field of view holds this value, the lowest a 12-bit CT can have."""

_MIN_SPAN_HU = 100  # air and tissue are 1000 apart: anything flatter is no CT in HU


def to_int16(voxels: np.ndarray, source: Path) -> np.ndarray:
    """Round to int16; int16 passes unchanged, without a copy.

    Raises:
        InvalidScanError: the voxels are not real numbers, some are NaN or infinite, or do not fit in int16.
    """
    if voxels.dtype == np.int16:
        return voxels
    if voxels.dtype.kind not in "iuf":
        raise InvalidScanError(source, f"voxels of type {voxels.dtype} are not Hounsfield units")
    # One slice at a time: a float64 scan is large enough without a second copy of it.
    result = np.empty(voxels.shape, dtype=np.int16)
    limits = np.iinfo(np.int16)
    for index, plane in enumerate(voxels):
        if plane.dtype.kind == "f":
            bad = plane.size - int(np.isfinite(plane).sum())
            if bad:
                raise InvalidScanError(source, f"{bad} voxels of slice {index} are NaN or infinite")
            plane = np.rint(plane)
        low, high = plane.min(initial=0), plane.max(initial=0)
        if low < limits.min or high > limits.max:
            raise InvalidScanError(source, f"voxels from {low:g} to {high:g} are not Hounsfield units")
        result[index] = plane
    return result


def replace_padding(voxels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Raise everything below -1024 HU to -1024 and say so in ``notes``; in place where the array allows.

    Scanners and converters mark what lies outside the round field of view with -2000, -2048, -3024 or the
    like, and interpolation leaves values in between at its rim; no matter absorbs less than vacuum does.
    """
    lowest = int(voxels.min(initial=AIR_HU))
    if lowest >= AIR_HU:
        return voxels
    share = np.count_nonzero(voxels < AIR_HU) / voxels.size
    notes.append(
        f"{100 * share:.2g} % of the voxels were below {AIR_HU} HU (lowest {lowest}), as outside the field "
        f"of view; they were set to {AIR_HU}"
    )
    return np.maximum(voxels, np.int16(AIR_HU), out=voxels if voxels.flags.writeable else None)


def check_range(voxels: np.ndarray, source: Path, notes: list[str]) -> None:
    """Refuse constant or label-like voxels; note a volume without any air.

    Raises:
        InvalidScanError: highest and lowest voxel are less than 100 HU apart.
    """
    low, high = int(voxels.min()), int(voxels.max())
    if low == high:
        raise InvalidScanError(source, f"all voxels have the same value, {low}")
    if high - low < _MIN_SPAN_HU:
        raise InvalidScanError(source, f"voxels from {low} to {high} only: not a CT in Hounsfield units")
    if low >= 0:
        notes.append(f"no voxel is below 0 HU (lowest {low}): the values may not be Hounsfield units")
