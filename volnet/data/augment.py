"""Random changes of a patch on its way from the store to the network.

Spatial changes come first and are never applied one by one: their matrices are multiplied, and the patch is
sampled once, straight from the volume, so that nothing is lost at corners that a crop would have cut off, and
nothing is blurred twice. Flips, quarter turns and permutations move whole voxels: nothing is interpolated.
Label volumes (nearest voxel) and boxes go the same way.

Changes of intensity follow in the order given. Those of single voxels are collected and done in one pass.

Each draws from the generator that belongs to its patch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from volnet.data.phantom import nodule_contours
from volnet.ops import gaussian_filter3d

Range = tuple[float, float]
Generator = np.random.Generator


@dataclass
class Patch:
    """What a change of intensity sees: after the spatial changes.

    Attributes:
        image: float32 ``[D, H, W]``, changed in place.
        label: uint8 ``[D, H, W]``, changed in place, or None.
        boxes: float32 ``[K, 6]`` (d1, h1, w1, d2, h2, w2), voxels of the patch, half-open.
        box_ids: int64 ``[K]``: the box's number in its volume; -1 for one that a change has added.
        spacing: mm (d, h, w) of the volume.
    """

    image: np.ndarray
    label: np.ndarray | None
    boxes: np.ndarray
    box_ids: np.ndarray
    spacing: tuple[float, float, float]


class Transform(ABC):
    """A change of intensity; also what it adds to label and boxes. Derive your own from it."""

    @abstractmethod
    def __call__(self, patch: Patch, rng: Generator) -> None:
        """Change the patch in place."""


class SpatialTransform(ABC):
    """A linear change of place about the patch's middle."""

    @abstractmethod
    def matrix(self, rng: Generator, spacing: Sequence[float]) -> np.ndarray | None:
        """float64 ``[3, 3]``, or None for no change: from the offset (d, h, w) of a voxel of the result from
        the middle to that of its source, in voxels of ``spacing`` mm (d, h, w)."""


class RandomFlip(SpatialTransform):
    """Mirrors each axis with a probability of its own.

    Args:
        axes: of 0 (d), 1 (h) and 2 (w).
        p: probability of each.

    >>> RandomFlip(axes=(2,), p=1).matrix(np.random.default_rng(0), (1, 1, 1)).diagonal().tolist()
    [1.0, 1.0, -1.0]
    """

    def __init__(self, axes: Sequence[int] = (0, 1, 2), p: float = 0.5) -> None:
        self.axes, self.p = _axes(axes), _probability(p)

    def matrix(self, rng: Generator, spacing: Sequence[float]) -> np.ndarray | None:
        signs = np.ones(3)
        for axis in self.axes:
            signs[axis] = -1.0 if rng.random() < self.p else 1.0
        return np.diag(signs)


class RandomRotate90(SpatialTransform):
    """Turns by 90, 180 or 270 degrees in the plane of two axes, with equal probability.

    Args:
        axes: the two; (1, 2) is the axial plane.
        p: probability of a turn.

    >>> RandomRotate90(p=1).matrix(np.random.default_rng(0), (1, 1, 1)).tolist()
    [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]
    """

    def __init__(self, axes: Sequence[int] = (1, 2), p: float = 0.5) -> None:
        self.axes, self.p = _axes(axes), _probability(p)
        if len(self.axes) != 2:
            raise ValueError(f"axes must be two different ones, got {tuple(axes)}")

    def matrix(self, rng: Generator, spacing: Sequence[float]) -> np.ndarray | None:
        if rng.random() >= self.p:
            return None
        turn = np.array([[0.0, -1.0], [1.0, 0.0]])
        result = np.eye(3)
        result[np.ix_(self.axes, self.axes)] = np.linalg.matrix_power(turn, int(rng.integers(1, 4)))
        return result


class RandomPermutation(SpatialTransform):
    """Exchanges the axes: any of their six orders, or of those of some axes.

    Args:
        axes: those that are exchanged.
        p: probability that an order is drawn, which may be the one there is.

    >>> RandomPermutation(p=1).matrix(np.random.default_rng(0), (1, 1, 1)).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def __init__(self, axes: Sequence[int] = (0, 1, 2), p: float = 0.5) -> None:
        self.axes, self.p = _axes(axes), _probability(p)

    def matrix(self, rng: Generator, spacing: Sequence[float]) -> np.ndarray | None:
        if rng.random() >= self.p:
            return None
        order = np.arange(3)
        order[list(self.axes)] = rng.permutation(self.axes)
        return np.eye(3)[order]


class RandomAffine(SpatialTransform):
    """Rotation about all three axes, and scaling, in mm: a sphere stays one where voxels are no cubes.

    Args:
        degrees: the rotation about each axis (d, h, w) is drawn from within ± this, or from ± these three.
        scales: the factor is drawn from this range; above 1 things become larger.
        p: probability of both.

    >>> RandomAffine(0, (2, 2), p=1).matrix(np.random.default_rng(0), (1, 1, 1)).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    """

    def __init__(
        self, degrees: float | Sequence[float] = 15.0, scales: Range = (0.9, 1.1), p: float = 0.5
    ) -> None:
        self.degrees = np.broadcast_to(np.asarray(degrees, float), 3)
        self.scales, self.p = _range("scales", scales), _probability(p)
        if not (np.isfinite(self.degrees).all() and (self.degrees >= 0).all()):
            raise ValueError(f"degrees must be at least 0, got {degrees}")
        if scales[0] <= 0:
            raise ValueError(f"scales must be above 0, got {scales}")

    def matrix(self, rng: Generator, spacing: Sequence[float]) -> np.ndarray | None:
        if rng.random() >= self.p:
            return None
        result = np.eye(3) / rng.uniform(*self.scales)
        for axis, limit in enumerate(np.deg2rad(self.degrees)):
            angle = rng.uniform(-limit, limit)
            if angle:
                plane = [a for a in range(3) if a != axis]
                turn = np.eye(3)
                turn[np.ix_(plane, plane)] = [
                    [np.cos(angle), -np.sin(angle)],
                    [np.sin(angle), np.cos(angle)],
                ]
                result = turn @ result
        mm = np.asarray(spacing, float)
        return result * mm / mm[:, None]


@dataclass(frozen=True)
class Pointwise:
    """``y = x * scale + shift``, or, where ``clips``, ``clip(x * scale + shift, 0, 1) ** gamma``; and normal
    noise of a standard deviation on top."""

    scale: float = 1.0
    shift: float = 0.0
    clips: bool = False
    gamma: float = 1.0
    noise: float = 0.0


class PointwiseTransform(ABC):
    """A change of single voxels."""

    @abstractmethod
    def draw(self, rng: Generator) -> Pointwise | None:
        """What is done to this patch; None: nothing."""


class Window(PointwiseTransform):
    """Takes ``low`` to 0 and ``high`` to 1, and clips what is outside.

    >>> Window(-1000, 400).draw(np.random.default_rng(0)).clips
    True
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = _range("window", (low, high))
        if low == high:
            raise ValueError(f"a window must end above its beginning, got {low} to {high}")

    def draw(self, rng: Generator) -> Pointwise | None:
        scale = 1 / (self.high - self.low)
        return Pointwise(scale, -self.low * scale, clips=True)


class RandomScaleShift(PointwiseTransform):
    """Multiplies by a factor and adds a number: another scanner's calibration.

    Args:
        scale: range of the factor.
        shift: range of what is added, in what the image holds at this point: HU, or of 0 to 1 after a
            :class:`Window`.
        p: probability of both.
    """

    def __init__(self, scale: Range = (0.9, 1.1), shift: Range = (0.0, 0.0), p: float = 0.5) -> None:
        self.scale, self.shift = _range("scale", scale), _range("shift", shift)
        self.p = _probability(p)

    def draw(self, rng: Generator) -> Pointwise | None:
        if rng.random() >= self.p:
            return None
        return Pointwise(rng.uniform(*self.scale), rng.uniform(*self.shift))


class RandomGamma(PointwiseTransform):
    """Takes a voxel between 0 and 1 to its power; what is outside is clipped, so it belongs after
    :class:`Window`.

    Args:
        gamma: range of the exponent, which is drawn evenly on a logarithmic scale.
        p: probability.
    """

    def __init__(self, gamma: Range = (0.7, 1.5), p: float = 0.5) -> None:
        self.gamma, self.p = _range("gamma", gamma), _probability(p)
        if gamma[0] <= 0:
            raise ValueError(f"gamma must be above 0, got {gamma}")

    def draw(self, rng: Generator) -> Pointwise | None:
        if rng.random() >= self.p:
            return None
        return Pointwise(clips=True, gamma=float(np.exp(rng.uniform(*np.log(self.gamma)))))


class RandomNoise(PointwiseTransform):
    """Adds independent normal noise.

    Args:
        deviation: range of the standard deviation, in what the image holds at this point.
        p: probability.
    """

    def __init__(self, deviation: Range = (0.0, 0.1), p: float = 0.5) -> None:
        self.deviation, self.p = _range("deviation", deviation), _probability(p)
        if deviation[0] < 0:
            raise ValueError(f"deviation must be at least 0, got {deviation}")

    def draw(self, rng: Generator) -> Pointwise | None:
        if rng.random() >= self.p:
            return None
        return Pointwise(noise=rng.uniform(*self.deviation))


class RandomBlur(Transform):
    """Smooths with a Gaussian.

    Args:
        sigma: range of its standard deviation, mm; one for all axes.
        p: probability.
    """

    def __init__(self, sigma: Range = (0.0, 1.5), p: float = 0.5) -> None:
        self.sigma, self.p = _range("sigma", sigma), _probability(p)
        if sigma[0] < 0:
            raise ValueError(f"sigma must be at least 0, got {sigma}")

    def __call__(self, patch: Patch, rng: Generator) -> None:
        if rng.random() >= self.p:
            return
        sigma = rng.uniform(*self.sigma)
        image = torch.from_numpy(patch.image)
        image.copy_(gaussian_filter3d(image[None], [sigma / s for s in patch.spacing], mode="nearest")[0])


class PasteNodules(Transform):
    """Adds nodules where there is air of the lung: outlines that readers drew in LIDC-IDRI, mirrored at
    random, at a density of solid tissue, with the soft edge of a scanner.

    A voxel keeps what was there where that is brighter, so vessels run into a nodule. A nodule goes where
    most of it is seen, and away from the boxes that are there. It comes before :class:`Window`: it knows
    tissue by its HU. Its voxels of the label volume become ``label``, its box is added with the number -1.

    Args:
        count: at most so many; the number is drawn from 0 to this.
        density: range of HU.
        label: 1 to 255.
        p: probability that any are pasted.
    """

    def __init__(
        self, count: int = 2, density: Range = (-100.0, 100.0), label: int = 1, p: float = 0.5
    ) -> None:
        self.count, self.label = count, label
        self.density, self.p = _range("density", density), _probability(p)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if not 1 <= label <= 255:
            raise ValueError(f"label must be 1 to 255, got {label}")

    def __call__(self, patch: Patch, rng: Generator) -> None:
        if rng.random() >= self.p:
            return
        for _ in range(int(rng.integers(1, self.count, endpoint=True))):
            number = int(rng.integers(len(nodule_contours())))
            weight = _sprite(number, patch.spacing)
            flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
            weight = np.flip(weight, flips)
            density = rng.uniform(*self.density)
            for _ in range(_TRIES):
                room = np.array(patch.image.shape) - weight.shape
                if (room < 0).any():
                    break
                corner = rng.integers(0, room, endpoint=True)
                if self._paste(patch, weight, corner, density):
                    break

    def _paste(self, patch: Patch, weight: np.ndarray, corner: np.ndarray, density: float) -> bool:
        solid = weight >= 0.5
        target = tuple(slice(a, a + n) for a, n in zip(corner, weight.shape, strict=True))
        image = patch.image[target]
        middle = tuple(n // 2 for n in weight.shape)
        if not _AIR_HU[0] < image[middle] < _AIR_HU[1]:
            return False
        points = np.argwhere(solid)
        box = np.concatenate([points.min(axis=0) + corner, points.max(axis=0) + 1 + corner])
        boxes = patch.boxes
        if ((box[:3] < boxes[:, 3:] + 2) & (box[3:] > boxes[:, :3] - 2)).all(axis=1).any():
            return False
        air = (image > _AIR_HU[0]) & (image < _AIR_HU[1])
        if (air & solid).sum() < _MIN_VISIBLE * solid.sum():
            return False
        image += weight * np.maximum(np.float32(density) - image, 0)
        if patch.label is not None:
            patch.label[target][solid] = self.label
        patch.boxes = np.concatenate([boxes, box[None].astype(np.float32)])
        patch.box_ids = np.append(patch.box_ids, -1)
        return True


_TRIES = 20
_AIR_HU = (-1000.0, -600.0)  # lung, and not the air around the patient
_MIN_VISIBLE = 0.6
_EDGE_MM = 0.7  # of the soft edge: a standard deviation of a soft-tissue kernel


@lru_cache(maxsize=256)
def _sprite(number: int, spacing: tuple[float, float, float]) -> np.ndarray:
    """How much of each voxel a nodule fills, float32 ``[d, h, w]``; 0.5 is its outline."""
    contour = nodule_contours()[number]
    points = np.concatenate(contour.outlines)
    half = np.array(
        [
            np.abs(contour.z).max() + contour.slice_spacing_mm / 2,
            np.abs(points[:, 1]).max(),
            np.abs(points[:, 0]).max(),
        ]
    )
    count = np.ceil((half + 3 * _EDGE_MM) / spacing).astype(int)
    d, h, w = (np.arange(-n, n + 1) * s for n, s in zip(count, spacing, strict=True))
    # A normal edge is nearly a logistic one.
    weight = 1 / (1 + np.exp(np.clip(contour.distance(w, h, d) * (1.7 / _EDGE_MM), -60, 60)))
    return weight.astype(np.float32)


def _axes(axes: Sequence[int]) -> tuple[int, ...]:
    result = tuple(int(a) for a in axes)
    if len(set(result)) != len(result) or not set(result) <= {0, 1, 2}:
        raise ValueError(f"axes must be different ones of 0, 1 and 2, got {tuple(axes)}")
    return result


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"p must be 0 to 1, got {p}")
    return p


def _range(name: str, value: Range) -> Range:
    low, high = value
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"{name} must be two finite numbers, the lower first, got {value}")
    return float(low), float(high)
