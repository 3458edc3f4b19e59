"""What differs between scanners and protocols, applied to a patch at random."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def random_appearance(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, slice thickness, noise and calibration of another scanner.

    Args:
        hu: float32 [D, H, W] at 1 mm.
        rng: source of all choices.

    Returns:
        float32 [D, H, W].
    """
    if rng.random() < 0.25:
        hu = ndimage.gaussian_filter(hu, (0, *[rng.uniform(0.3, 0.9)] * 2))
    elif rng.random() < 0.25:
        # A sharp kernel: overshoot at edges.
        amount = rng.uniform(0.2, 0.8)
        hu = hu + amount * (hu - ndimage.gaussian_filter(hu, (0, 1.0, 1.0)))
    if rng.random() < 0.6:
        # Noise of a reconstruction is correlated over about a voxel.
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        blur = rng.uniform(0.0, 0.8)
        noise = ndimage.gaussian_filter(noise, blur) if blur > 0.3 else noise
        hu = hu + rng.uniform(0, 60) * noise / max(float(noise.std()), 1e-6)
    if rng.random() < 0.5:
        hu = thick_slices(hu, rng.choice([2.0, 2.5, 3.0, 5.0]), rng.uniform(0, 1))
    return (hu * np.float32(rng.normal(1.0, 0.03)) + np.float32(rng.normal(0.0, 20.0))).astype(np.float32)


def thick_slices(hu: np.ndarray, thickness: float, phase: float) -> np.ndarray:
    """The patch as a scan of thicker slices would show it after resampling to 1 mm.

    Args:
        hu: float32 [D, H, W] at 1 mm.
        thickness: mm of a slice, and the distance between slices.
        phase: 0..1, where the first slice begins.

    Returns:
        float32 [D, H, W].
    """
    depth = hu.shape[0]
    # Mean over a slice by differences of the running sum, linear between voxels.
    total = np.concatenate([np.zeros_like(hu[:1]), np.cumsum(hu, axis=0)])
    edges = np.clip(np.arange(phase * thickness - thickness, depth + thickness, thickness), 0, depth)
    edges = np.unique(edges)
    whole = np.minimum(edges.astype(int), depth - 1)
    part = (edges - whole).astype(np.float32)[:, None, None]
    at_edge = total[whole] * (1 - part) + total[whole + 1] * part
    slices = np.diff(at_edge, axis=0) / np.diff(edges).astype(np.float32)[:, None, None]
    centers = (edges[1:] + edges[:-1]) / 2
    position = np.interp(np.arange(depth) + 0.5, centers, np.arange(len(centers)))
    first = np.minimum(position.astype(int), len(centers) - 1)
    second = np.minimum(first + 1, len(centers) - 1)
    share = (position - first).astype(np.float32)[:, None, None]
    return slices[first] * (1 - share) + slices[second] * share
