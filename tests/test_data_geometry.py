from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from volnet.data import CTVolume, Geometry

AXIAL = (1, 0, 0, 0, 1, 0, 0, 0, 1)

spacings = st.tuples(*[st.floats(0.1, 10)] * 3)
origins = st.tuples(*[st.floats(-1000, 1000)] * 3)
shapes = st.tuples(*[st.integers(1, 60)] * 3)


@st.composite
def directions(draw) -> tuple[float, ...]:
    """Any rotation, from a random quaternion, with its axes permuted and flipped."""
    # Not below 1e-6: ITK's inverse gives NaN where products underflow.
    w, x, y, z = (round(draw(st.floats(-1, 1)), 6) for _ in range(4))
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    if norm < 1e-3:
        w, x, y, z, norm = 1.0, 0.0, 0.0, 0.0, 1.0
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    rotation = rotation[:, list(draw(st.permutations(range(3))))]
    return tuple((rotation * [draw(st.sampled_from([-1, 1])) for _ in range(3)]).ravel())


geometries = st.builds(Geometry, shapes, spacings, origins, directions())
points = st.lists(st.tuples(*[st.floats(-500, 500)] * 3), min_size=1, max_size=5)


@given(geometries, points)
def test_voxels_and_millimetres_are_inverse(geometry: Geometry, where: list) -> None:
    voxel = np.asarray(where)
    back = geometry.lps_to_voxel(geometry.voxel_to_lps(voxel))
    np.testing.assert_allclose(back, voxel, atol=1e-6)


@given(geometries, points)
def test_agrees_with_simpleitk(geometry: Geometry, where: list) -> None:
    image = sitk.Image([1, 1, 1], sitk.sitkInt16)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    for voxel in where:
        mm = image.TransformContinuousIndexToPhysicalPoint(voxel[::-1])
        np.testing.assert_allclose(geometry.voxel_to_lps(voxel), mm, atol=1e-6)
        index = image.TransformPhysicalPointToContinuousIndex(mm)[::-1]
        np.testing.assert_allclose(geometry.lps_to_voxel(mm), index, atol=1e-6)


def test_lung_nodule_of_a_known_place() -> None:
    # LIDC-IDRI-0001, LUNA16: 56.208, 86.343, -115.868 mm is voxel 89.653, 366.995, 316.030.
    geometry = Geometry((133, 512, 512), (2.5, 0.703125, 0.703125), (-166.0, -171.699997, -340.0), AXIAL)
    voxel = geometry.lps_to_voxel((56.20840547, 86.34341278, -115.8675792))
    np.testing.assert_allclose(voxel, (89.65296832, 366.99507169, 316.02973222), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)])
def test_any_number_of_points(batch: tuple[int, ...]) -> None:
    geometry = Geometry((4, 5, 6), (2, 1, 1), (1, 2, 3), AXIAL)
    assert geometry.voxel_to_lps(np.zeros((*batch, 3))).shape == (*batch, 3)
    assert geometry.lps_to_voxel(np.zeros((*batch, 3))).shape == (*batch, 3)


@given(geometries, spacings)
def test_resampled_keeps_the_extent(geometry: Geometry, spacing: tuple[float, float, float]) -> None:
    new = geometry.resampled(spacing)
    assert new.spacing == pytest.approx(spacing)
    assert new.direction == geometry.direction
    np.testing.assert_allclose(
        new.voxel_to_lps((-0.5, -0.5, -0.5)), geometry.voxel_to_lps((-0.5, -0.5, -0.5)), atol=1e-6
    )
    old_size = np.multiply(geometry.shape, geometry.spacing)
    new_size = np.multiply(new.shape, new.spacing)
    slack = np.where(np.array(new.shape) == 1, np.inf, np.array(spacing) * 0.501)
    assert (np.abs(new_size - old_size) <= slack).all()
    # All centres are inside, so that nothing has to be made up at the far side.
    last = geometry.lps_to_voxel(new.voxel_to_lps(np.array(new.shape) - 1))
    assert ((np.array(new.shape) == 1) | (last < np.array(geometry.shape) - 0.5)).all()


@given(geometries, st.data())
def test_cropped_voxels_stay_where_they_are(geometry: Geometry, data: st.DataObject) -> None:
    start = [data.draw(st.integers(0, n)) for n in geometry.shape]
    stop = [data.draw(st.integers(low, n)) for low, n in zip(start, geometry.shape, strict=True)]
    crop = geometry.cropped(start, stop)
    assert crop.shape == tuple(np.subtract(stop, start))
    np.testing.assert_allclose(crop.voxel_to_lps((1, 2, 3)), geometry.voxel_to_lps(np.add(start, (1, 2, 3))))


def test_equal_geometries_are_equal_whatever_types_made_them() -> None:
    a = Geometry((4, 5, 6), (2, 1, 1), (0, 0, 0), AXIAL)
    b = Geometry(np.array([4, 5, 6]), np.float32([2, 1, 1]), np.array([-0.0, 0, 0]), np.eye(3).ravel())
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (4, 5)}, r"shape must have 3 numbers, got \(4, 5\)"),
        ({"shape": (4, 5, -6)}, "not be negative"),
        ({"spacing": (1, 0, 1)}, r"spacing must be positive mm, got \(1.0, 0.0, 1.0\)"),
        ({"spacing": (1, float("nan"), 1)}, "spacing must be positive"),
        ({"origin": (0, float("inf"), 0)}, "origin must be finite"),
        ({"direction": (1, 0, 0)}, "direction must have 9 numbers"),
        ({"direction": (1, 0, 0, 1, 0, 0, 0, 0, 1)}, "direction must be of full rank"),
    ],
)
def test_impossible_geometry(change: dict, message: str) -> None:
    good = {"shape": (4, 5, 6), "spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": AXIAL}
    with pytest.raises(ValueError, match=message):
        Geometry(**(good | change))


def test_wrong_arguments() -> None:
    geometry = Geometry((4, 5, 6), (1, 1, 1), (0, 0, 0), AXIAL)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        geometry.voxel_to_lps((1, 2))
    with pytest.raises(ValueError, match="got shape"):
        geometry.lps_to_voxel(3.0)
    with pytest.raises(ValueError, match="three positive mm"):
        geometry.resampled((1, 1, -1))
    for start, stop in itertools.product([(0, 0, -1), (3, 0, 0), (0, 0, 0)], [(2, 5, 7)]):
        with pytest.raises(ValueError, match="not inside shape"):
            geometry.cropped(start, stop)
    with pytest.raises(ValueError, match="three voxels each"):
        geometry.cropped((0, 0), (1, 1, 1))


def test_a_volume_is_int16_of_its_geometry() -> None:
    geometry = Geometry((4, 5, 6), (1, 1, 1), (0, 0, 0), AXIAL)
    with pytest.raises(ValueError, match="int16 HU, got float32"):
        CTVolume(np.zeros((4, 5, 6), np.float32), geometry, "1.2", "scan")
    with pytest.raises(ValueError, match=r"shape \(4, 5, 7\), the geometry says \(4, 5, 6\)"):
        CTVolume(np.zeros((4, 5, 7), np.int16), geometry, "1.2", "scan")
