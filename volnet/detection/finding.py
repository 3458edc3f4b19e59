"""What a detector reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One suspected nodule, in the voxels of the scan as it was read and in patient millimetres.

    Attributes:
        center_voxel: (d, h, w); the centre of the first voxel is (0, 0, 0).
        center_lps: (x, y, z) in mm, DICOM's patient axes (left, posterior, superior).
        box_voxel: (d1, h1, w1, d2, h2, w2), half-open: voxel 0 spans 0 to 1.
        diameter_mm: of the sphere with the volume of the ellipsoid that the box encloses.
        score: 0..1, higher is more suspicious. A rank, not a calibrated probability.

    Example:
        >>> Finding((1.5, 2.0, 2.0), (2.0, 2.0, 3.0), (0.0, 0.5, 0.5, 4.0, 4.5, 4.5), 5.0, 0.9).score
        0.9
    """

    center_voxel: tuple[float, float, float]
    center_lps: tuple[float, float, float]
    box_voxel: tuple[float, ...]
    diameter_mm: float
    score: float

    def __post_init__(self) -> None:
        if len(self.box_voxel) != 6:
            raise ValueError(f"box_voxel must hold 6 numbers (d1, h1, w1, d2, h2, w2), got {self.box_voxel}")
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"score must lie between 0 and 1, got {self.score}")
