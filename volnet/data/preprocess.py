"""What a network needs done to a CT first: spacing, intensities, and where to look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from volnet import ops
from volnet.data.geometry import Geometry
from volnet.data.hounsfield import AIR_HU
from volnet.data.volume import CTVolume

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""``(start, stop)``, each voxels (d, h, w), half-open."""

_COARSE_MM = 4.0  # fine enough for lungs, some 400,000 voxels a chest
_TISSUE_HU = -400.0  # lung is below, everything else in the body above
_MIN_LUNG_ML = 300.0
_MIN_SIDE = 0.15  # share of the lung volume on either side of the body's middle
_MIN_BODY_ML = 1000.0


def resample(ct: CTVolume, spacing: Sequence[float]) -> CTVolume:
    """The volume at another spacing, mm (d, h, w), by linear interpolation; same extent, still int16.

    Coarser spacings are sampled, not averaged; rounded to whole HU. Everything but voxels and geometry is
    kept.

    Raises:
        ValueError: ``spacing`` is not three positive numbers.

    >>> g = Geometry((4, 4, 4), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> resample(CTVolume(np.zeros((4, 4, 4), np.int16), g, "1.2", "scan"), (1, 1, 1)).voxels.shape
    (8, 4, 4)
    """
    geometry = ct.geometry.resampled(spacing)
    if geometry == ct.geometry:
        return replace(ct)
    return resample_to(ct, geometry)


def resample_to(ct: CTVolume, geometry: Geometry, mode: str = "linear") -> CTVolume:
    """The volume where the voxels of another geometry lie in the patient; still int16, air outside.

    Coarser grids are sampled, not averaged. Everything but voxels and geometry is kept.

    Args:
        ct: the volume.
        geometry: the grid wanted; turned against that of ``ct`` it takes some ten times longer.
        mode: ``nearest``, ``linear`` or ``cubic`` (B-spline); rounded to whole HU.

    Raises:
        ValueError: ``mode`` is none of the three.

    >>> g = Geometry((4, 4, 4), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> ct = CTVolume(np.zeros((4, 4, 4), np.int16), g, "1.2", "scan")
    >>> resample_to(ct, g.resampled((1, 1, 1)), mode="cubic").voxels.shape
    (8, 4, 4)
    """
    turn = np.linalg.inv(ct.geometry.matrix) @ geometry.matrix
    start = ct.geometry.lps_to_voxel(geometry.origin)
    index_map = np.column_stack([turn, start]).tolist()
    # torch refuses to look at arrays that are read-only or run backwards.
    voxels = torch.from_numpy(np.require(ct.voxels, requirements=["C", "W"]))
    new = ops.resample(voxels, index_map, geometry.shape, mode=mode, pad_value=AIR_HU)
    return replace(ct, voxels=new.numpy(), geometry=geometry)


def normalize_hu(voxels: np.ndarray, window: tuple[float, float] = (-1000.0, 400.0)) -> np.ndarray:
    """HU of any shape to float32 in [0, 1]: ``window`` is mapped linearly, what lies outside is clipped.

    Raises:
        ValueError: the window is not two finite numbers, the lower first.

    >>> normalize_hu(np.array([-2000, -1000, -300, 400, 3000], np.int16)).tolist()
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"window must be (low, high) in HU with low < high, got {window!r}")
    result = np.array(voxels, dtype=np.float32)
    result -= low
    result *= 1.0 / (high - low)
    return np.clip(result, 0.0, 1.0, out=result)


def body_box(ct: CTVolume, margin_mm: float = 10.0) -> Box:
    """The smallest voxel box around the patient's body, with a margin; the whole volume if there is none.

    >>> g = Geometry((4, 4, 4), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> body_box(CTVolume(np.full((4, 4, 4), -1000, np.int16), g, "1.2", "scan"))
    ((0, 0, 0), (4, 4, 4))
    """
    coarse, stride = _coarse(ct)
    body = _body(coarse, _voxel_ml(ct, stride))
    return _whole(ct) if body is None else _box(body, stride, ct.geometry, margin_mm)


def lung_box(ct: CTVolume, margin_mm: float = 10.0) -> Box:
    """The smallest voxel box around both lungs, with a margin.

    Falls back to :func:`body_box` where the lungs are not found with certainty: less than 300 ml of air
    inside the body, or nearly all of it on one side (an opaque hemithorax, a lung cut by the image's edge).

    >>> g = Geometry((4, 4, 4), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> lung_box(CTVolume(np.full((4, 4, 4), -1000, np.int16), g, "1.2", "scan"))
    ((0, 0, 0), (4, 4, 4))
    """
    coarse, stride = _coarse(ct)
    voxel_ml = _voxel_ml(ct, stride)
    body = _body(coarse, voxel_ml)
    if body is None:
        return _whole(ct)
    lungs = _lungs(coarse, body, voxel_ml)
    return _box(body if lungs is None else lungs, stride, ct.geometry, margin_mm)


def _coarse(ct: CTVolume) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Every n-th voxel, as near to 4 mm as the spacing allows, and n for each axis."""
    stride = tuple(max(1, round(_COARSE_MM / s)) for s in ct.geometry.spacing)
    coarse = ct.voxels[:: stride[0], :: stride[1], :: stride[2]]
    # A median against noise: single dark voxels would join the lungs to the air around the body.
    return ndimage.median_filter(coarse, size=(1, 3, 3)), (stride[0], stride[1], stride[2])


def _voxel_ml(ct: CTVolume, stride: tuple[int, int, int]) -> float:
    return float(np.prod(ct.geometry.spacing) * np.prod(stride)) / 1000.0


def _body(coarse: np.ndarray, voxel_ml: float) -> np.ndarray | None:
    """Mask of the body, hollows included, without the table; None if nothing large enough is there."""
    tissue = ndimage.binary_opening(coarse > _TISSUE_HU, iterations=2)
    body = _largest(tissue)
    if body is None or body.sum() * voxel_ml < _MIN_BODY_ML:
        return None
    # Slice by slice: the lungs of a scan that ends within the chest are open above or below.
    for plane in body:
        plane[...] = ndimage.binary_fill_holes(plane)
    return body


def _lungs(coarse: np.ndarray, body: np.ndarray, voxel_ml: float) -> np.ndarray | None:
    """Mask of the lungs within the body, or None if they are not there beyond doubt."""
    # Eroding cuts off the skin's rim and the gut's small gas; opening cuts the windpipe.
    inside = ndimage.binary_erosion(body, structure=np.ones((1, 3, 3), bool), border_value=1)
    air = ndimage.binary_opening((coarse < _TISSUE_HU) & inside)
    labels, count = ndimage.label(air)
    volumes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel_ml
    large = np.flatnonzero(volumes >= _MIN_LUNG_ML / 3) + 1
    lungs = np.isin(labels, large)
    total = lungs.sum()
    if total * voxel_ml < _MIN_LUNG_ML:
        return None
    columns = np.flatnonzero(body.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1] + 1) // 2
    left = lungs[:, :, :middle].sum() / total
    return lungs if _MIN_SIDE <= left <= 1 - _MIN_SIDE else None


def _largest(mask: np.ndarray) -> np.ndarray | None:
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _box(mask: np.ndarray, stride: tuple[int, int, int], geometry: Geometry, margin_mm: float) -> Box:
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        # One stride more on each side: the mask says nothing between its samples.
        margin = int(np.ceil(margin_mm / geometry.spacing[axis])) + stride[axis] - 1
        start.append(max(0, int(hit[0]) * stride[axis] - margin))
        stop.append(min(geometry.shape[axis], int(hit[-1]) * stride[axis] + margin + 1))
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _whole(ct: CTVolume) -> Box:
    return (0, 0, 0), ct.geometry.shape
