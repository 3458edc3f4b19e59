"""Real nodules: the crops of LIDC-IDRI, their masks, and an estimate of their Hounsfield units."""

from __future__ import annotations

import csv
import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What the darkest grey of a slice was in the scans where it can be checked: -1025 to -955.
_LOW_HU = -985.0
# Muscle, blood and solid nodules, with and without contrast agent.
_SOFT_TISSUE_HU = 45.0
# A grey level of soft tissue is looked for here: 5.9 to 12.9 HU a grey level.
_SOFT_TISSUE_GREYS = (80, 175)
_USUAL_HU_PER_GREY = 8.4


@dataclass(frozen=True)
class NoduleCrop:
    """One nodule with what surrounds it: the slices that some reader outlined, 96 x 96 pixels each.

    Attributes:
        patient_id: of LIDC-IDRI.
        series_uid: the scan it comes from.
        hu: float32 [n, 96, 96], estimated.
        mask: float32 [n, 96, 96], the share of readers (of those who marked it) who include the voxel.
        spacing: mm (d, h, w).
        corner: (slice, row, column) in the scan of voxel (0, 0, 0).
        readers: how many of four marked it.
        diameter_mm: of the sphere of the same volume.
    """

    patient_id: str
    series_uid: str
    hu: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float]
    corner: tuple[int, int, int]
    readers: int
    diameter_mm: float

    @property
    def shows_lung(self) -> bool:
        """Whether its darkest parts are as dark as lung; if not, the estimate of its HU cannot be trusted.

        Padding outside the field of view, and crops without lung, mislead `estimate_hu`.
        """
        return float(np.quantile(self.hu, 0.05)) < -750.0

    def box_mm(self) -> np.ndarray:
        """float64 [6] (d1, h1, w1, d2, h2, w2) around what half the readers include, mm from the corner."""
        inside = self.mask >= 0.5
        if not inside.any():
            inside = self.mask > 0
        points = np.argwhere(inside)
        spacing = np.asarray(self.spacing)
        return np.concatenate([points.min(axis=0) * spacing, (points.max(axis=0) + 1) * spacing])


def estimate_hu(grey: np.ndarray) -> np.ndarray:
    """Hounsfield units of a crop whose slices were each scaled to 0..255 by their own extremes.

    The darkest grey is taken as -985 HU; soft tissue, where a slice shows enough of it, gives the scale, as
    the peak of its histogram at 45 HU. Slices without it take the median scale of the crop's others, and no
    slice may differ from that median by more than 12 %. A crop without any takes 8.4 HU a grey level.

    Args:
        grey: uint8 [n, H, W].

    Returns:
        float32 [n, H, W].
    """
    first, last = _SOFT_TISSUE_GREYS
    scales = np.full(len(grey), np.nan)
    for index, plane in enumerate(grey):
        histogram = np.convolve(np.bincount(plane.ravel(), minlength=256), np.ones(9), mode="same")
        peak = first + int(histogram[first:last].argmax())
        if histogram[peak] > 0.05 * plane.size:
            scales[index] = (_SOFT_TISSUE_HU - _LOW_HU) / peak
    known = scales[~np.isnan(scales)]
    usual = float(np.median(known)) if len(known) else _USUAL_HU_PER_GREY
    scales = np.clip(np.nan_to_num(scales, nan=usual), 0.88 * usual, 1.12 * usual)
    return (_LOW_HU + scales[:, None, None] * grey).astype(np.float32)


def is_held_out(patient_id: str) -> bool:
    """Whether a patient is kept out of training: one in five, by a hash, and always LIDC-IDRI-0001.

    Example:
        >>> is_held_out("LIDC-IDRI-0001"), is_held_out("LIDC-IDRI-0002")
        (True, False)
    """
    if patient_id in ("LIDC-IDRI-0001", "LIDC-IDRI-0002"):
        return patient_id == "LIDC-IDRI-0001"
    return hashlib.sha256(patient_id.encode()).digest()[0] % 5 == 0


def read_nodule_crops(folder: Path) -> list[NoduleCrop]:
    """Read `lidc_nodule_crops`.

    Args:
        folder: with `nodules.csv`, `images96_hdiff.npy.xz` and `masks96_packed.npz`.

    Returns:
        All nodules, in the order of the table.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    with lzma.open(folder / "images96_hdiff.npy.xz") as file:
        grey = np.cumsum(np.load(file), axis=-1, dtype=np.uint8)
    packed = np.load(folder / "masks96_packed.npz")["masks"]
    crops = []
    with open(folder / "nodules.csv", newline="") as file:
        for row in csv.DictReader(file):
            slices = slice(int(row["start"]), int(row["start"]) + int(row["n_slices"]))
            readers = [int(index) for index in row["mask_index"].split()]
            masks = np.unpackbits(packed[readers, slices], axis=-1)
            pixel = float(row["pixel_spacing_mm"])
            crops.append(
                NoduleCrop(
                    patient_id=row["patient_id"],
                    series_uid=row["series_instance_uid"],
                    hu=estimate_hu(grey[slices]),
                    mask=masks.mean(axis=0, dtype=np.float32),
                    spacing=(float(row["z_spacing_mm"]), pixel, pixel),
                    corner=(int(row["z0"]), int(row["y0_96"]), int(row["x0_96"])),
                    readers=int(row["n_readers"]),
                    diameter_mm=float(row["diameter_mm_veq"]),
                )
            )
    return crops
