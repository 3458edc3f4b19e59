"""Pictures of a CT: upright, in true proportion whatever the voxels' shape, as PNG in base64."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from volnet.data.volume import CTVolume

Plane = Literal["axial", "coronal", "sagittal"]

#: Level and width in HU; the usual lung window.
LUNG_WINDOW = (-600.0, 1500.0)

_AIR_HU = -1024

# The patient's axes that run down and across each picture, and what the four sides are called:
# left, right, top, bottom. As radiologists hang them: the patient's right on the left, or facing left.
_ROWS_COLUMNS: dict[Plane, tuple[int, int]] = {"axial": (1, 2), "coronal": (0, 2), "sagittal": (0, 1)}
SIDES: dict[Plane, tuple[str, str, str, str]] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}


@dataclass(frozen=True)
class Picture:
    """A picture and where things are on it.

    Attributes:
        plane: the plane it shows.
        png: the PNG file in base64.
        pixels: (width, height) of the PNG; its pixels are square.
        size_mm: (width, height) of what it shows.
        box_mm: (x, y, width, height) of the finding's box from the top left corner.
    """

    plane: Plane
    png: str
    pixels: tuple[int, int]
    size_mm: tuple[float, float]
    box_mm: tuple[float, float, float, float] | None = None

    @property
    def sides(self) -> tuple[str, str, str, str]:
        """The letters at the left, right, top and bottom."""
        return SIDES[self.plane]


class UprightVolume:
    """A scan seen along the patient's axes, whatever order and direction its array has.

    Axes are (inferior to superior, anterior to posterior, right to left); an oblique scan is shown along
    the axes that are nearest. Positions are edges: voxel i spans [i, i + 1). Nothing is copied.

    Args:
        ct: the scan, voxels [D, H, W] in HU.
    """

    def __init__(self, ct: CTVolume) -> None:
        # direction[k, a]: how far along the patient's axis k (S, P, L) one goes along the array's axis a.
        direction = np.asarray(ct.geometry.direction, float).reshape(3, 3)[::-1, ::-1]
        self._order = max(
            permutations(range(3)), key=lambda order: sum(abs(direction[k, a]) for k, a in enumerate(order))
        )
        self._reversed = [bool(direction[k, a] < 0) for k, a in enumerate(self._order)]
        steps = tuple(slice(None, None, -1 if r else 1) for r in self._reversed)
        self.voxels = np.transpose(ct.voxels, self._order)[steps]
        self.spacing = tuple(float(ct.geometry.spacing[a]) for a in self._order)

    def interval(self, start: Sequence[float], stop: Sequence[float]) -> tuple[list[float], list[float]]:
        """The box [start, stop) of the scan's array, on this volume's axes."""
        lower, upper = [], []
        for k, axis in enumerate(self._order):
            ends = (float(start[axis]), float(stop[axis]))
            if self._reversed[k]:
                ends = (self.voxels.shape[k] - ends[1], self.voxels.shape[k] - ends[0])
            lower.append(ends[0])
            upper.append(ends[1])
        return lower, upper

    def picture(
        self,
        plane: Plane,
        center: Sequence[float],
        box: Sequence[float] | None = None,
        *,
        field_mm: float | None = None,
        pixel_mm: float,
        window: tuple[float, float] = LUNG_WINDOW,
    ) -> Picture:
        """The slice through `center`, with air where it reaches out of the scan.

        Args:
            plane: which slice.
            center: (d, h, w) of the scan's array, whole numbers at voxel centres.
            box: (d1, h1, w1, d2, h2, w2) of the scan's array, half-open, for `Picture.box_mm`.
            field_mm: side of the square around `center`; None shows the whole slice.
            pixel_mm: side of a pixel.
            window: level and width in HU.
        """
        middle, _ = self.interval([c + 0.5 for c in center], [c + 0.5 for c in center])
        across = ({0, 1, 2} - set(_ROWS_COLUMNS[plane])).pop()
        index = min(max(math.floor(middle[across]), 0), self.voxels.shape[across] - 1)
        image = np.take(self.voxels, index, axis=across)
        edges, size_mm = [], []
        for axis in _ROWS_COLUMNS[plane]:
            lower, upper = 0.0, float(self.voxels.shape[axis])
            if field_mm is not None:
                half = field_mm / 2 / self.spacing[axis]
                lower, upper = middle[axis] - half, middle[axis] + half
            edges.append((lower, upper))
            size_mm.append((upper - lower) * self.spacing[axis])
        box_mm = None
        if box is not None:
            corners = self.interval(box[:3], box[3:])
            starts = [(axis, lower) for axis, (lower, _) in zip(_ROWS_COLUMNS[plane], edges, strict=True)]
            low, high = (
                [(corner[axis] - start) * self.spacing[axis] for axis, start in starts] for corner in corners
            )
            if plane != "axial":  # superior is at the top, so these rows run against the axis
                low[0], high[0] = size_mm[0] - high[0], size_mm[0] - low[0]
            box_mm = (low[1], low[0], high[1] - low[1], high[0] - low[0])
        grey = _resample(image, edges, [max(1, round(side / pixel_mm)) for side in size_mm])
        return _picture(plane, grey, (size_mm[1], size_mm[0]), window, box_mm)

    def projection(self, plane: Literal["coronal", "sagittal"], *, pixel_mm: float) -> Picture:
        """The mean through the whole scan, which looks like a radiograph.

        Args:
            plane: seen from the front, or from the patient's left.
            pixel_mm: side of a pixel.
        """
        across = 1 if plane == "coronal" else 2
        # A slice at a time: a clipped copy of a large scan would double the memory.
        mean = np.stack([np.clip(axial, _AIR_HU, 500).mean(axis=across - 1) for axial in self.voxels])
        shape, spacing = mean.shape, [self.spacing[axis] for axis in _ROWS_COLUMNS[plane]]
        size_mm = [n * s for n, s in zip(shape, spacing, strict=True)]
        pixels = [max(1, round(side / pixel_mm)) for side in size_mm]
        grey = _resample(mean, [(0.0, float(n)) for n in shape], pixels)
        low, high = np.percentile(grey, (2.0, 99.7))
        return _picture(plane, grey, (size_mm[1], size_mm[0]), ((low + high) / 2, max(high - low, 1.0)), None)


def _resample(image: np.ndarray, edges: Sequence[tuple[float, float]], pixels: Sequence[int]) -> np.ndarray:
    """The part of `image` between `edges`, (rows, columns), as float32 of `pixels` (rows, columns)."""
    padding = [
        (max(0, math.ceil(-lower)), max(0, math.ceil(upper - n)))
        for (lower, upper), n in zip(edges, image.shape, strict=True)
    ]
    block = np.pad(image.astype(np.float32), padding, constant_values=_AIR_HU)
    (top, bottom), (left, right) = (
        (lower + before, upper + before) for (lower, upper), (before, _) in zip(edges, padding, strict=True)
    )
    resized = Image.fromarray(block).resize(
        (pixels[1], pixels[0]), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


def _picture(
    plane: Plane,
    grey: np.ndarray,
    size_mm: tuple[float, float],
    window: tuple[float, float],
    box_mm: tuple[float, float, float, float] | None,
) -> Picture:
    level, width = window
    scaled = np.clip((grey - (level - width / 2)) / width * 255.0 + 0.5, 0, 255).astype(np.uint8)
    if plane != "axial":
        scaled = scaled[::-1]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(scaled)).save(file, "PNG", optimize=True)
    png = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(plane, png, (scaled.shape[1], scaled.shape[0]), size_mm, box_mm)
