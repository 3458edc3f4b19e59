from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volnet.data import CTVolume, Geometry, resample_to

AXIAL = (1, 0, 0, 0, 1, 0, 0, 0, 1)
OBLIQUE = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)


def volume(spacing=(2.0, 1.0, 1.0), direction=AXIAL) -> CTVolume:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (9, 14, 17)).astype(np.int16)
    geometry = Geometry(voxels.shape, spacing, (-50.0, 20.0, 300.0), direction)
    return CTVolume(voxels, geometry, "1.2.3", "scan", {"kernel": "B"}, {"sex": "F"}, ["n"])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    ("source", "target"), [(AXIAL, AXIAL), (OBLIQUE, OBLIQUE), (AXIAL, OBLIQUE), (AXIAL, SAGITTAL)]
)
def test_voxels_are_those_at_their_places_in_the_patient(source, target, mode) -> None:
    ct = volume(direction=source)
    grid = Geometry((12, 11, 19), (1.3, 0.8, 0.9), (-48.13, 22.17, 301.11), target)
    new = resample_to(ct, grid, mode)
    assert new.geometry == grid
    assert new.voxels.dtype == np.int16
    at = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    where = np.moveaxis(ct.geometry.lps_to_voxel(grid.voxel_to_lps(at)), -1, 0)
    last = np.array(ct.voxels.shape)[:, None, None, None] - 1
    inside = ((where > -0.5) & (where < last + 0.5)).all(axis=0)
    exact = ct.voxels.astype(np.float64)
    if mode == "nearest":
        expected = exact[tuple(np.clip(np.rint(where).astype(int), 0, last))]
    else:
        order, boundary = (1, "nearest") if mode == "linear" else (3, "mirror")
        expected = ndimage.map_coordinates(exact, where, order=order, mode=boundary)
    expected = np.where(inside, expected, -1024)
    assert np.abs(new.voxels - expected).max() < 0.51


def test_everything_else_is_kept_and_read_only_views_are_read() -> None:
    ct = volume()
    flipped = CTVolume(ct.voxels[::-1], ct.geometry, "1.2.3", "scan", ct.metadata, ct.identity, ct.notes)
    flipped.voxels.flags.writeable = False
    new = resample_to(flipped, ct.geometry)
    assert np.array_equal(new.voxels, ct.voxels[::-1])
    assert (new.series_uid, new.source, new.metadata, new.identity, new.notes) == (
        "1.2.3",
        "scan",
        {"kernel": "B"},
        {"sex": "F"},
        ["n"],
    )
    with pytest.raises(ValueError, match="mode must be"):
        resample_to(ct, ct.geometry, "bspline")
