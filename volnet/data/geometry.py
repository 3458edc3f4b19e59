"""Where the voxels of an array lie in the patient.

Voxel coordinates are ``(d, h, w)``, the order of the array's axes; whole numbers are voxel centres.
Patient coordinates are ``(x, y, z)`` in mm, DICOM's LPS: x grows to the patient's left, y to the back,
z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Geometry:
    """Size, spacing, origin and orientation of a volume.

    Attributes:
        shape: voxels ``(d, h, w)``.
        spacing: mm ``(d, h, w)``.
        origin: LPS mm ``(x, y, z)`` of the centre of voxel ``(0, 0, 0)``.
        direction: nine numbers, row-major as SimpleITK's ``GetDirection()``: the columns of the 3x3 matrix
            are the unit vectors, in patient coordinates, of the array's w, h and d axes, in that order.

    Raises:
        ValueError: a length is wrong, a size is negative, a spacing is not a positive number, or the
            direction is not of full rank.

    >>> g = Geometry((133, 512, 512), (2.5, 0.7, 0.7), (-166.0, -171.7, -340.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> g.voxel_to_lps((2, 0, 10)).round(3).tolist()
    [-159.0, -171.7, -335.0]
    >>> g.lps_to_voxel((-159.0, -171.7, -335.0)).round(3).tolist()
    [2.0, 0.0, 10.0]
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, length in (("shape", 3), ("spacing", 3), ("origin", 3), ("direction", 9)):
            value = getattr(self, name)
            if len(value) != length:
                raise ValueError(f"{name} must have {length} numbers, got {value!r}")
            # Plain Python numbers, no -0.0: equal geometries compare, hash and write to JSON alike.
            as_type = int if name == "shape" else float
            object.__setattr__(self, name, tuple(as_type(v) + as_type(0) for v in value))
        if min(self.shape) < 0:
            raise ValueError(f"shape must not be negative, got {self.shape}")
        if not all(np.isfinite(s) and s > 0 for s in self.spacing):
            raise ValueError(f"spacing must be positive mm, got {self.spacing}")
        if not np.isfinite(self.origin).all():
            raise ValueError(f"origin must be finite mm, got {self.origin}")
        determinant = np.linalg.det(np.reshape(self.direction, (3, 3)))
        if not abs(determinant) > 1e-3:
            raise ValueError(f"direction must be of full rank, got {self.direction}")

    @property
    def matrix(self) -> np.ndarray:
        """``[3, 3]`` float64: ``lps = origin + matrix @ (d, h, w)``."""
        return np.reshape(self.direction, (3, 3))[:, ::-1] * np.asarray(self.spacing)

    def voxel_to_lps(self, points: npt.ArrayLike) -> np.ndarray:
        """Voxel coordinates ``[..., 3]`` (d, h, w) to float64 mm ``[..., 3]`` (x, y, z)."""
        return _points(points) @ self.matrix.T + np.asarray(self.origin)

    def lps_to_voxel(self, points: npt.ArrayLike) -> np.ndarray:
        """Millimetres ``[..., 3]`` (x, y, z) to float64 voxel coordinates ``[..., 3]`` (d, h, w)."""
        return (_points(points) - np.asarray(self.origin)) @ np.linalg.inv(self.matrix).T

    def resampled(self, spacing: Sequence[float]) -> Geometry:
        """The same extent with another spacing, mm ``(d, h, w)``.

        The outer corner of voxel (0, 0, 0) stays where it is; the far side moves by less than half a new
        voxel, because the size is rounded to whole voxels (at least one).

        >>> g = Geometry((10, 20, 20), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> g.resampled((1, 1, 2)).shape
        (20, 20, 10)
        """
        if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"spacing must be three positive mm, got {spacing!r}")
        new = np.asarray(spacing, dtype=np.float64)
        ratio = new / self.spacing
        # Half a voxel is rounded down: the last centre then never lies outside the old extent.
        shape = np.maximum(1, np.ceil(np.asarray(self.shape) / ratio - 0.5 - 1e-6)).astype(int)
        return replace(
            self,
            shape=tuple(shape),
            spacing=tuple(new),
            origin=tuple(self.voxel_to_lps((ratio - 1.0) / 2.0)),
        )

    def cropped(self, start: Sequence[int], stop: Sequence[int]) -> Geometry:
        """The voxel box ``[start, stop)``, each ``(d, h, w)``; it must lie inside the volume.

        >>> g = Geometry((10, 20, 20), (2, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> g.cropped((1, 2, 3), (5, 6, 7)).origin
        (3.0, 2.0, 2.0)
        """
        if len(start) != 3 or len(stop) != 3:
            raise ValueError(f"start and stop must have three voxels each, got {start!r} and {stop!r}")
        for low, high, size in zip(start, stop, self.shape, strict=True):
            if not 0 <= low <= high <= size:
                raise ValueError(f"box {tuple(start)} to {tuple(stop)} is not inside shape {self.shape}")
        shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
        return replace(self, shape=shape, origin=tuple(self.voxel_to_lps(start)))


def _points(points: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 3:
        raise ValueError(f"points must have three coordinates in the last axis, got shape {array.shape}")
    return array
