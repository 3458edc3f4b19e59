"""Real nodules pasted into real lung, and pieces of lung pasted alike so that a paste gives nothing away."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from volnet.train.nodule_rpn.crops import NoduleCrop

# A nodule of which less is visible beside vessels and wall is not planted.
_MIN_VISIBLE = 0.6
_TISSUE_HU = -350.0
# Sigma of the soft edge in mm: about the blur of a scanner's soft-tissue kernel.
_EDGE_MM = 0.8


@dataclass(frozen=True)
class Sprite:
    """A nodule, or a piece of lung, ready to be pasted at 1 mm.

    Attributes:
        hu: float32 [d, h, w].
        mask: float32 [d, h, w], 0..1; 0.5 is the outline.
    """

    hu: np.ndarray
    mask: np.ndarray


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """[3, 3]: any angle in the axial plane, up to 20 degrees out of it, mirrored at random."""
    matrix = np.diag(rng.choice([-1.0, 1.0], size=3))
    for axes, limit in (((1, 2), np.pi), ((0, 1), np.pi / 9), ((0, 2), np.pi / 9)):
        angle = rng.uniform(-limit, limit)
        turn = np.eye(3)
        turn[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = turn @ matrix
    return matrix


def _resample_around(
    hu: np.ndarray, mask: np.ndarray, spacing: np.ndarray, turn: np.ndarray, zoom: float
) -> Sprite:
    """Turn, scale and resample to 1 mm a window that just holds the mask with a margin."""
    # One empty slice at either end: the outline closes half a slice beyond the last outlined one.
    mask = np.pad(mask, ((1, 1), (0, 0), (0, 0)))
    hu = np.pad(hu, ((1, 1), (0, 0), (0, 0)), mode="edge")
    points = np.argwhere(mask > 0)
    low, high = points.min(axis=0), points.max(axis=0)
    center = (low + high) / 2
    half_mm = (high - low + 1) * spacing / 2 * zoom
    side = (np.ceil(np.abs(turn) @ half_mm) + 3).astype(int) * 2 + 1
    # Output voxel (1 mm) -> input voxel.
    matrix = np.diag(1 / spacing) @ turn.T / zoom
    offset = center - matrix @ ((side - 1) / 2)
    shape = tuple(int(n) for n in side)
    return Sprite(
        ndimage.affine_transform(hu, matrix, offset, shape, np.float32, order=1, mode="nearest"),
        ndimage.affine_transform(mask, matrix, offset, shape, np.float32, order=1, mode="constant"),
    )


def nodule_sprite(crop: NoduleCrop, rng: np.random.Generator, *, zoom: float = 1.0) -> Sprite:
    """A nodule in a random orientation.

    Args:
        crop: the nodule.
        rng: source of the orientation.
        zoom: factor on its size.
    """
    mask = np.minimum(2 * crop.mask, 1.0) if crop.mask.max() < 0.5 else crop.mask
    return _resample_around(crop.hu, mask, np.asarray(crop.spacing), _random_rotation(rng), zoom)


def control_sprite(crop: NoduleCrop, rng: np.random.Generator, *, zoom: float = 1.0) -> Sprite | None:
    """A piece of lung beside a nodule, in the outline of that nodule: what a network must not fire at.

    The outline is moved within the crop to a place where it covers lung and at most thin vessels.

    Returns:
        None if a few tries find no such place.
    """
    inside = crop.mask >= 0.5
    if not inside.any():
        return None
    low, high = np.argwhere(inside)[:, 1:].min(axis=0), np.argwhere(inside)[:, 1:].max(axis=0) + 1
    if (high - low > 60).any():
        return None
    for _ in range(10):
        row, column = (int(rng.integers(-low[i], 96 - high[i] + 1)) for i in (0, 1))
        moved = np.zeros_like(crop.mask)
        outline = crop.mask[:, low[0] : high[0], low[1] : high[1]]
        moved[:, low[0] + row : high[0] + row, low[1] + column : high[1] + column] = outline
        covered = crop.hu[moved >= 0.5]
        is_lung = covered.mean() < -700 and np.quantile(covered, 0.99) < -450
        if is_lung and not (crop.mask[moved > 0] > 0).any():
            return _resample_around(crop.hu, moved, np.asarray(crop.spacing), _random_rotation(rng), zoom)
    return None


def paste(hu: np.ndarray, sprite: Sprite, corner: np.ndarray, *, brightest: bool) -> None:
    """Lay a sprite over an image, in place, with a soft edge.

    Args:
        hu: float32 [D, H, W]; parts of the sprite beyond it are cut off.
        sprite: what to paste.
        corner: int [3], the voxel of the image that the sprite's first voxel falls on.
        brightest: keep what was there where it is brighter, so that vessels run into the nodule; otherwise
            the nodule replaces it.
    """
    side = np.asarray(sprite.hu.shape)
    low = np.maximum(corner, 0)
    high = np.minimum(corner + side, hu.shape)
    if (high <= low).any():
        return
    target = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    source = tuple(slice(a, b) for a, b in zip(low - corner, high - corner, strict=True))
    # Full weight inside the outline, then down to nothing over about two sigma outside it.
    weight = np.clip(2 * ndimage.gaussian_filter(sprite.mask, _EDGE_MM), 0, 1)[source]
    change = weight * (sprite.hu[source] - hu[target])
    hu[target] += np.maximum(change, 0) if brightest else change


def plant(
    hu: np.ndarray,
    lung: np.ndarray,
    sprite: Sprite,
    center: np.ndarray,
    taken: np.ndarray,
    *,
    brightest: bool,
) -> np.ndarray | None:
    """Paste a nodule if it can be seen there, and say where it is.

    Args:
        hu: float32 [D, H, W], changed in place.
        lung: bool [D, H, W].
        sprite: the nodule.
        center: int [3], voxel for the sprite's centre.
        taken: [M, 6] boxes that it must keep 2 voxels away from.
        brightest: see `paste`.

    Returns:
        float64 [6], the box of its visible part, half-open; None, and nothing changed, if it would lie across
        the image's edge, meet a taken box, or be hidden by vessels and wall.
    """
    corner = center - np.asarray(sprite.mask.shape) // 2
    solid = sprite.mask >= 0.5
    points = np.argwhere(solid)
    if len(points) == 0:
        return None
    low, high = points.min(axis=0) + corner, points.max(axis=0) + 1 + corner
    if (low < 0).any() or (high > hu.shape).any():
        return None
    if len(taken) and ((low < taken[:, 3:] + 2) & (high > taken[:, :3] - 2)).all(axis=1).any():
        return None
    places = tuple((points + corner).T)
    visible = (hu[places] < _TISSUE_HU) & lung[places]
    if visible.mean() < _MIN_VISIBLE:
        return None
    paste(hu, sprite, corner, brightest=brightest)
    seen = points[visible] + corner
    return np.concatenate([seen.min(axis=0), seen.max(axis=0) + 1]).astype(np.float64)
