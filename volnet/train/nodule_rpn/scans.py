"""Whole scans to plant nodules in: at 1 mm, with their lungs and what must not count as background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from volnet.data.preprocess import resample
from volnet.data.volume import CTVolume

_LUNG_HU = (-950.0, -500.0)
_MIN_LUNG_ML = 100.0


@dataclass(frozen=True)
class Background:
    """A scan to plant nodules in.

    Attributes:
        name: of the scan.
        hu: int16 [D, H, W] at 1 mm.
        lung: bool [D, H, W].
        ignore: float64 [M, 6] boxes, voxels of `hu`: real lesions, neither nodule nor background.
    """

    name: str
    hu: np.ndarray
    lung: np.ndarray
    ignore: np.ndarray


def lung_mask(hu: np.ndarray) -> np.ndarray:
    """Air that is darker than tissue and brighter than air: the lungs with the vessels in them.

    Args:
        hu: int16 [D, H, W] at 1 mm.

    Returns:
        bool [D, H, W].
    """
    small = hu[::2, ::2, ::2]
    # Opened by 8 mm: the patient's table and clothes hold air of the same mean in thin layers.
    thick = ndimage.binary_opening(small < -400, iterations=2)
    labels, count = ndimage.label(thick)
    index = np.arange(1, count + 1)
    volume_ml = ndimage.sum_labels(thick.astype(np.float32), labels, index) * 8e-3
    mean = ndimage.mean(small, labels, index)
    is_lung = (volume_ml >= _MIN_LUNG_ML) & (mean > _LUNG_HU[0]) & (mean < _LUNG_HU[1])
    lung = np.isin(labels, index[is_lung])
    # Closing fills vessels and small nodules.
    lung = ndimage.binary_closing(np.pad(lung, 4), ndimage.generate_binary_structure(3, 1), iterations=3)
    lung = lung[4:-4, 4:-4, 4:-4]
    full = lung.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    return full[: hu.shape[0], : hu.shape[1], : hu.shape[2]]


def make_background(ct: CTVolume, name: str, ignore_voxel: Sequence[Sequence[float]] = ()) -> Background:
    """Prepare a scan.

    Args:
        ct: the scan as read.
        name: for error messages and logs.
        ignore_voxel: boxes [M, 6] of its known lesions, voxels of the scan as read.

    Raises:
        ValueError: if it shows no lung.
    """
    ratio = np.tile(np.asarray(ct.geometry.spacing), 2)
    fine = resample(ct, (1.0, 1.0, 1.0))
    lung = lung_mask(fine.voxels)
    if not lung.any():
        raise ValueError(f"{name}: no lung found, nothing can be planted in it")
    boxes = np.asarray(ignore_voxel, dtype=np.float64).reshape(-1, 6)
    return Background(name, fine.voxels, lung, boxes * ratio)
