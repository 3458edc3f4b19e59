from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from volnet.data import CTVolume, Geometry, body_box, lung_box, normalize_hu, read_ct, resample

AXIAL = (1, 0, 0, 0, 1, 0, 0, 0, 1)
OBLIQUE = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)


def volume(voxels: np.ndarray, spacing=(2.0, 1.0, 1.0), direction=AXIAL) -> CTVolume:
    geometry = Geometry(voxels.shape, spacing, (-50.0, 20.0, 300.0), direction)
    return CTVolume(voxels.astype(np.int16), geometry, "1.2.3", "scan", {"kernel": "B"}, {"sex": "F"}, ["n"])


@pytest.mark.parametrize("direction", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.3, 0.7, 2.1), (0.9, 1.0, 1.0)])
def test_resample_agrees_with_scipy(direction: tuple, spacing: tuple) -> None:
    ct = volume(np.random.default_rng(0).integers(-1000, 1000, (9, 14, 17)), direction=direction)
    new = resample(ct, spacing)
    assert new.voxels.dtype == np.int16
    assert new.geometry == ct.geometry.resampled(spacing)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in new.voxels.shape], indexing="ij"), axis=-1)
    where = ct.geometry.lps_to_voxel(new.geometry.voxel_to_lps(grid))
    expected = ndimage.map_coordinates(
        ct.voxels.astype(np.float64), np.moveaxis(where, -1, 0), order=1, mode="nearest"
    )
    assert np.abs(new.voxels - expected).max() < 0.51


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.3, 0.7, 2.1)])
def test_resample_agrees_with_simpleitk_within_a_unit(spacing: tuple) -> None:
    ct = volume(np.random.default_rng(0).integers(-1000, 1000, (9, 14, 17)), direction=OBLIQUE)
    new = resample(ct, spacing)
    images = []
    for scan in (ct, new):
        image = sitk.GetImageFromArray(scan.voxels)
        image.SetSpacing(scan.geometry.spacing[::-1])
        image.SetOrigin(scan.geometry.origin)
        image.SetDirection(scan.geometry.direction)
        images.append(image)
    expected = sitk.GetArrayFromImage(sitk.Resample(*images, sitk.Transform(), sitk.sitkLinear, -1024))
    # ITK cuts fractions off.
    assert np.abs(new.voxels.astype(int) - expected).max() <= 1


def test_resample_keeps_everything_else() -> None:
    ct = volume(np.zeros((4, 4, 4)))
    new = resample(ct, (1, 1, 1))
    assert (new.series_uid, new.source, new.metadata, new.identity, new.notes) == (
        "1.2.3",
        "scan",
        {"kernel": "B"},
        {"sex": "F"},
        ["n"],
    )
    assert np.array_equal(resample(ct, ct.geometry.spacing).voxels, ct.voxels)
    with pytest.raises(ValueError, match="three positive mm"):
        resample(ct, (1, 0, 1))


def test_normalize() -> None:
    voxels = np.random.default_rng(0).integers(-2048, 3071, (5, 6, 7)).astype(np.int16)
    for window in [(-1000.0, 400.0), (-1200.0, 600.0), (0.0, 1.0)]:
        result = normalize_hu(voxels, window)
        expected = np.clip((voxels.astype(np.float64) - window[0]) / (window[1] - window[0]), 0, 1)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
    assert normalize_hu(np.zeros((0, 3), np.int16)).shape == (0, 3)
    for bad in [(400, -1000), (0, 0), (float("nan"), 1)]:
        with pytest.raises(ValueError, match="low < high"):
            normalize_hu(voxels, bad)


SPACING = (2.5, 1.5, 1.5)
SHAPE = (100, 200, 260)


def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Mask of SHAPE; centre and radii in mm from the volume's corner."""
    grid = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    terms = [((g * s - c) / r) ** 2 for g, s, c, r in zip(grid, SPACING, center, radii, strict=True)]
    return terms[0] + terms[1] + terms[2] <= 1


def thorax(lungs: tuple[str, ...] = ("right", "left")) -> tuple[CTVolume, np.ndarray, np.ndarray]:
    """A body on a table, its lungs filled with air, noise on top; the masks of body and of both lungs."""
    body = np.zeros(SHAPE, bool)
    body[:] = ellipsoid((125, 140, 195), (1e6, 90, 150))[:1]
    masks = {
        "right": ellipsoid((125, 140, 130), (90, 60, 45)),
        "left": ellipsoid((125, 140, 260), (90, 60, 45)),
    }
    voxels = np.where(body, 40.0, -1000.0)
    voxels[:, 165:167, 30:230] = 100.0
    for name in lungs:
        voxels[masks[name]] = -850.0
    voxels += np.random.default_rng(0).normal(0, 30, SHAPE)
    return volume(voxels, SPACING), body, masks["right"] | masks["left"]


def bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hit = np.argwhere(mask)
    return hit.min(axis=0), hit.max(axis=0) + 1


def assert_box(box: tuple, mask: np.ndarray, margin_mm: float) -> None:
    """Inside the box: the mask with its margin; outside: what is 10 mm further off."""
    low, high = bounds(mask)
    margin = np.asarray(margin_mm) / SPACING
    slack = 10.0 / np.asarray(SPACING)
    start, stop = np.array(box[0]), np.array(box[1])
    # The coarse mask may miss up to one sample at a rounded end.
    assert (start <= np.maximum(0, low - margin + 4 / np.array(SPACING))).all()
    assert (stop >= np.minimum(SHAPE, high + margin - 4 / np.array(SPACING))).all()
    assert (start >= np.maximum(0, low - margin - slack)).all()
    assert (stop <= np.minimum(SHAPE, high + margin + slack)).all()


@pytest.mark.parametrize("margin", [0.0, 10.0, 25.0])
def test_lung_box_holds_both_lungs(margin: float) -> None:
    ct, _, lungs = thorax()
    box = lung_box(ct, margin)
    assert_box(box, lungs, margin)
    assert all(isinstance(n, int) for corner in box for n in corner)


def test_body_box_leaves_the_table_out() -> None:
    ct, body, _ = thorax()
    assert_box(body_box(ct, 5.0), body, 5.0)


@pytest.mark.parametrize("lungs", [(), ("left",), ("right",)])
def test_lung_box_falls_back_to_the_body(lungs: tuple[str, ...]) -> None:
    # An opaque lung would lie outside the box of the other one.
    ct, body, _ = thorax(lungs)
    assert lung_box(ct) == body_box(ct)
    assert_box(lung_box(ct), body, 10.0)


def test_lungs_of_a_scan_that_ends_within_them() -> None:
    ct, _, lungs = thorax()
    part = CTVolume(ct.voxels[40:70].copy(), ct.geometry.cropped((40, 0, 0), (70, *SHAPE[1:])), "1.2", "scan")
    (d1, h1, w1), (d2, h2, w2) = lung_box(part)
    assert (d1, d2) == (0, 30)
    low, high = bounds(lungs[40:70])
    assert (np.array([h1, w1]) <= low[1:]).all()
    assert (np.array([h2, w2]) >= high[1:]).all()
    assert lung_box(part) != body_box(part)


@pytest.mark.parametrize("hu", [-1000, 40])
def test_boxes_of_a_volume_without_a_body_or_without_air(hu: int) -> None:
    ct = volume(np.full((20, 30, 40), hu), (5.0, 5.0, 5.0))
    assert lung_box(ct) == body_box(ct) == ((0, 0, 0), (20, 30, 40))


def test_boxes_of_tiny_volumes() -> None:
    for shape in [(1, 1, 1), (2, 3, 2)]:
        assert lung_box(volume(np.zeros(shape))) == ((0, 0, 0), shape)


def test_real_scans(shared_data: Path) -> None:
    scans = json.loads((shared_data / "lidc_scans" / "scans.json").read_text())
    ct = read_ct(shared_data / "lidc_scans" / "LIDC-IDRI-0001.nii.gz")
    start, stop = lung_box(ct)
    nodule = np.array(scans["LIDC-IDRI-0001"]["luna16_nodules_zyx_voxel"][0])
    assert (start < nodule - 15 / np.array(ct.geometry.spacing)).all()
    assert (nodule + 15 / np.array(ct.geometry.spacing) < stop).all()
    assert np.prod(np.subtract(stop, start)) < 0.5 * ct.voxels.size
    assert np.prod(np.subtract(*body_box(ct)[::-1])) > np.prod(np.subtract(stop, start))

    ct = read_ct(shared_data / "lung_pet_ct_dx" / "A0002_series")
    start, stop = lung_box(ct)
    boxes = json.loads((shared_data / "lung_pet_ct_dx" / "boxes.json").read_text())[ct.series_uid]["boxes"]
    for box in boxes:
        x1, y1, x2, y2 = box["xyxy"]
        assert start[0] <= box["slice"] < stop[0]
        assert start[1] <= y1 < y2 <= stop[1]
        assert start[2] <= x1 < x2 <= stop[2]

    # A crop around the heart, lungs cut on every side: nothing may be left out.
    (crop,) = (shared_data / "totalsegmentator_ct_samples").glob("*.nii.gz")
    ct = read_ct(crop)
    assert lung_box(ct) == ((0, 0, 0), ct.voxels.shape)
