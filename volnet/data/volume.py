"""A CT volume as every other part of the package takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volnet.data.geometry import Geometry


@dataclass
class CTVolume:
    """One CT series in Hounsfield units, with its place in the patient.

    Attributes:
        voxels: int16 HU ``[D, H, W]``; nothing below -1024, padding outside the field of view included.
        geometry: size, spacing and place; ``geometry.shape == voxels.shape``.
        series_uid: SeriesInstanceUID; for formats without one, the file's stem.
        source: name of the file or folder it was read from.
        metadata: of the acquisition (modality, manufacturer, kernel, slice_thickness, ...); nothing here
            identifies the patient.
        identity: the patient's and the study's name, ids and dates, kept apart from everything else and
            shown only when asked for.
        notes: remarks for a human reader: what was found odd and what was done about it. They carry no file
            names, which may hold a patient's name.

    Raises:
        ValueError: the voxels are not int16 of the geometry's shape.

    >>> g = Geometry((2, 3, 4), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> CTVolume(np.zeros((2, 3, 4), np.int16), g, "1.2.3", "scan").voxels.shape
    (2, 3, 4)
    """

    voxels: np.ndarray
    geometry: Geometry
    series_uid: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.voxels.dtype != np.int16:
            raise ValueError(f"voxels must be int16 HU, got {self.voxels.dtype}")
        if self.voxels.shape != self.geometry.shape:
            raise ValueError(
                f"voxels have shape {self.voxels.shape}, the geometry says {self.geometry.shape}"
            )
