from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage

from volnet.data import CTVolume, Geometry, read_ct
from volnet.data.dicom_write import write_dicom_series
from volnet.data.phantom import (
    PlantedNodule,
    chest_phantom,
    nodule_contours,
    planted_to_dict,
    polygon_distance,
)

SHAPE, SPACING = (110, 224, 224), (2.8, 1.5, 1.5)
SMALL = {"shape": (24, 80, 80), "spacing": (5.0, 4.0, 4.0)}

Phantom = tuple[CTVolume, list[PlantedNodule]]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return chest_phantom(seed=2, shape=SHAPE, spacing=SPACING, nodules=9)


@pytest.fixture(scope="module")
def healthy() -> CTVolume:
    """The same chest without nodules."""
    return chest_phantom(seed=2, shape=SHAPE, spacing=SPACING, nodules=0)[0]


@pytest.fixture(scope="module")
def small() -> CTVolume:
    return chest_phantom(seed=1, nodules=1, **SMALL)[0]


def shoelace(points: np.ndarray) -> float:
    return 0.5 * abs(
        sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(points, np.roll(points, -1, 0), strict=True))
    )


def contour_entries() -> dict[str, dict]:
    text = files("volnet.data").joinpath("phantom_contours.json").read_text(encoding="utf-8")
    return {entry["id"]: entry for entry in json.loads(text)["nodules"]}


def polygon_volume(entry: dict) -> float:
    areas = [shoelace(np.reshape(item["points"], (-1, 2))) for item in entry["slices"]]
    return sum(areas) * entry["slice_spacing_mm"]


# The outlines


def test_contours_are_attributed_small_and_varied() -> None:
    path = files("volnet.data").joinpath("phantom_contours.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert "CC BY 3.0" in data["licence"]
    assert "10.7937/K9/TCIA.2015.LO9QL9SX" in data["citation"]
    assert len(path.read_bytes()) < 300_000
    ids = [entry["id"] for entry in data["nodules"]]
    assert len(set(ids)) == len({name.split("/")[0] for name in ids}) == 50
    diameters = [entry["diameter_mm"] for entry in data["nodules"]]
    assert 6 <= min(diameters) < 7
    assert 20 < max(diameters) <= 25
    assert sum(entry["texture"] >= 4 for entry in data["nodules"]) >= 45


def test_contour_diameters_are_those_of_their_polygons() -> None:
    for entry in contour_entries().values():
        diameter = (6 * polygon_volume(entry) / np.pi) ** (1 / 3)
        assert diameter == pytest.approx(entry["diameter_mm"], rel=0.01)
        weights = [shoelace(np.reshape(item["points"], (-1, 2))) for item in entry["slices"]]
        assert np.average([item["z"] for item in entry["slices"]], weights=weights) == pytest.approx(
            0, abs=0.02
        )


def test_contours_agree_with_the_readers_masks(shared_data: Path) -> None:
    """Masks of the same annotations, made by other code from the readers' XML."""
    folder = shared_data / "lidc_nodule_crops"
    masks = np.load(folder / "masks96_packed.npz")["masks"]
    compared = []
    with (folder / "nodules.csv").open() as file:
        rows = {
            f"{row['patient_id']}/{annotation}": (row, int(reader))
            for row in csv.DictReader(file)
            for annotation, reader in zip(
                row["annotation_ids"].split(), row["mask_index"].split(), strict=True
            )
        }
    for name, entry in contour_entries().items():
        if name not in rows:
            continue
        row, reader = rows[name]
        start, count = int(row["start"]), int(row["n_slices"])
        mask = np.unpackbits(masks[reader, start : start + count], axis=-1)
        volume = mask.sum() * float(row["pixel_spacing_mm"]) ** 2 * float(row["z_spacing_mm"])
        compared.append(polygon_volume(entry) / volume)
        # Whole pixels against polygons: the smallest nodules have a dozen pixels a slice.
        assert 0.9 < compared[-1] < 1.1, name
    assert len(compared) > 30
    assert np.mean(compared) == pytest.approx(1.0, abs=0.03)


def test_polygon_distance_against_dense_sampling() -> None:
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 17))
    radius = rng.uniform(2, 6, 17)
    polygon = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    t = np.linspace(0, 1, 2000)[:, None]
    edge = np.concatenate([p + t * (q - p) for p, q in zip(polygon, np.roll(polygon, -1, 0), strict=True)])
    points = rng.uniform(-8, 8, (300, 2))
    expected = np.linalg.norm(points[:, None] - edge, axis=2).min(1)
    # Star-shaped about the origin: inside is nearer to it than the edge in that direction.
    bearing = np.unwrap(np.arctan2(edge[:, 1], edge[:, 0]))
    towards = np.arctan2(points[:, 1], points[:, 0])
    towards += 2 * np.pi * np.ceil((bearing[0] - towards) / (2 * np.pi))
    inside = np.linalg.norm(points, axis=1) < np.interp(towards, bearing, np.linalg.norm(edge, axis=1))
    np.testing.assert_allclose(
        polygon_distance(points, polygon), np.where(inside, -expected, expected), atol=5e-3
    )


@pytest.mark.parametrize("index", [0, 12, 25, 38, 49])
def test_solid_shape_has_the_volume_and_sections_of_its_polygons(index: int) -> None:
    contour = nodule_contours()[index]
    entry = contour_entries()[contour.contour_id]
    step = 0.4
    axis = np.arange(-30, 30, step)
    solid = contour.distance(axis, axis, axis) < 0
    assert solid.sum() * step**3 == pytest.approx(polygon_volume(entry), rel=0.1)
    sections = contour.distance(axis, axis, contour.z) < 0
    for section, item in zip(sections, entry["slices"], strict=True):
        assert section.sum() * step**2 == pytest.approx(
            shoelace(np.reshape(item["points"], (-1, 2))), rel=0.05, abs=2.0
        )
    assert not solid[np.abs(axis) > np.abs(contour.z).max() + contour.slice_spacing_mm].any()


# The chest


def test_same_arguments_same_phantom() -> None:
    first, planted = chest_phantom(seed=5, nodules=2, **SMALL)
    second, again = chest_phantom(seed=5, nodules=2, **SMALL)
    assert np.array_equal(first.voxels, second.voxels)
    assert planted == again
    assert first.series_uid == second.series_uid
    other, elsewhere = chest_phantom(seed=6, nodules=2, **SMALL)
    assert not np.array_equal(first.voxels, other.voxels)
    assert planted != elsewhere
    assert first.series_uid != other.series_uid


def test_nodules_have_their_volume_place_and_density(phantom: Phantom, healthy: CTVolume) -> None:
    """What the nodules add to the same chest without them, weighed against outlines and truth."""
    ct, planted = phantom
    added = ct.voxels.astype(np.float64) - healthy.voxels
    image = sitk.GetImageFromArray(ct.voxels)
    image.SetSpacing(ct.geometry.spacing[::-1])
    image.SetOrigin(ct.geometry.origin)
    image.SetDirection(ct.geometry.direction)
    entries = contour_entries()
    zyx = np.indices(ct.voxels.shape)
    near_any = np.zeros(ct.voxels.shape, bool)
    for nodule in planted:
        continuous = image.TransformPhysicalPointToContinuousIndex(nodule.center_lps)
        np.testing.assert_allclose(continuous[::-1], nodule.center_voxel, atol=1e-4)
        assert nodule.diameter_mm == pytest.approx(entries[nodule.contour_id]["diameter_mm"])

        offsets = (zyx.reshape(3, -1).T - nodule.center_voxel) * ct.geometry.spacing
        near = (np.linalg.norm(offsets, axis=1) < nodule.diameter_mm + 5).reshape(ct.voxels.shape)
        near_any |= near
        share = np.where(near, added, 0) / (nodule.density_hu - healthy.voxels.clip(-1024, -700))
        volume = share.sum() * np.prod(ct.geometry.spacing)
        if nodule.site == "pleura":
            # The part beyond the lung's surface is cut off.
            assert 0.7 < volume / polygon_volume(entries[nodule.contour_id]) < 1.05
            continue
        assert volume == pytest.approx(polygon_volume(entries[nodule.contour_id]), rel=0.15)
        middle = (zyx * share).sum((1, 2, 3)) / share.sum()
        assert (
            np.linalg.norm((middle - nodule.center_voxel) * ct.geometry.spacing) < 0.12 * nodule.diameter_mm
        )
        if nodule.diameter_mm > 9:
            d, h, w = np.rint(nodule.center_voxel).astype(int)
            core = ct.voxels[d, h - 1 : h + 2, w - 1 : w + 2]
            assert core.mean() == pytest.approx(nodule.density_hu, abs=45)
    assert not added[~near_any].any()


def test_planted_nodules_are_varied_and_apart(phantom: Phantom) -> None:
    _, planted = phantom
    assert {nodule.site for nodule in planted} == {"isolated", "vessel", "pleura"}
    diameters = [nodule.diameter_mm for nodule in planted]
    assert diameters == sorted(diameters, reverse=True)
    assert diameters[0] > 18
    assert diameters[-1] < 8
    centers = np.array([nodule.center_lps for nodule in planted])
    gaps = np.linalg.norm(centers[:, None] - centers, axis=2) + 1e3 * np.eye(len(centers))
    assert gaps.min() > 20


def lungs(ct: CTVolume) -> np.ndarray:
    """Parenchyma, by threshold and size alone: air that does not touch the image's rim in any slice."""
    air = ct.voxels < -500
    labels, count = ndimage.label(air)
    outside = np.unique(
        np.concatenate([labels[:, 0].ravel(), labels[:, -1].ravel(), labels[:, :, 0].ravel()])
    )
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[outside] = sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes * np.prod(ct.geometry.spacing) > 4e5))


def test_looks_like_a_chest(healthy: CTVolume) -> None:
    hu, spacing = healthy.voxels, healthy.geometry.spacing
    assert hu.dtype == np.int16
    lung = lungs(healthy)
    litres = lung.sum() * np.prod(spacing) / 1e6
    assert 2.0 < litres < 6.5
    deep = ndimage.binary_erosion(lung, iterations=2)
    assert -890 < np.median(hu[deep]) < -820
    assert 20 < hu[deep & (hu < -700)].std() < 60
    # Blood and air settle: the back of the lungs is denser.
    rows = np.nonzero(deep.any((0, 2)))[0]
    third = len(rows) // 3
    front, back = np.zeros_like(deep), np.zeros_like(deep)
    front[:, rows[:third]], back[:, rows[-third:]] = True, True
    assert 10 < np.median(hu[deep & back]) - np.median(hu[deep & front]) < 60
    # Both sides, and bone, fat, muscle, blood.
    half = hu.shape[2] // 2
    assert 0.6 < lung[:, :, :half].sum() / lung[:, :, half:].sum() < 1.8
    for low, high, share in [(300, 3071, 0.01), (-140, -60, 0.05), (20, 90, 0.05), (110, 250, 0.01)]:
        assert ((hu > low) & (hu < high)).mean() > share, (low, high)


def test_field_of_view_is_round_and_padded(healthy: CTVolume) -> None:
    _, height, width = healthy.voxels.shape
    y, x = np.indices((height, width))
    beyond = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) > height / 2 + 1
    assert (healthy.voxels[:, beyond] == -1024).all()
    corner_to_edge = healthy.voxels[:, height // 2, 2]
    assert corner_to_edge.std() > 5
    assert -1024 <= corner_to_edge.min() <= corner_to_edge.mean() < -950


def test_vessels_branch_and_taper(healthy: CTVolume) -> None:
    """Many vessels, almost none of them wide away from the hila: a wide one is a nodule to a detector."""
    spacing = healthy.geometry.spacing
    hull = ndimage.binary_closing(np.pad(lungs(healthy), 12), iterations=8)[12:-12, 12:-12, 12:-12]
    hull = ndimage.binary_erosion(hull, iterations=4)
    vessels = hull & (healthy.voxels > -500)
    assert 0.005 < vessels.sum() / hull.sum() < 0.12
    assert ndimage.label(vessels, np.ones((3, 3, 3)))[1] > 50
    radius = ndimage.distance_transform_edt(vessels, sampling=spacing)
    lps = healthy.geometry.voxel_to_lps(np.argwhere(radius > 4.0))
    middle = healthy.geometry.voxel_to_lps((np.array(healthy.voxels.shape) - 1) / 2)
    from_middle = np.linalg.norm(lps[:, :2] - middle[:2], axis=1)
    assert (from_middle > 75).sum() == 0


@pytest.mark.parametrize("seed", [0, 3, 11])
def test_every_seed_finds_room(seed: int) -> None:
    _, planted = chest_phantom(seed, (40, 112, 112), (8.0, 3.1, 3.1), 12)
    assert len(planted) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"shape": (10, 0, 10)}, r"got \(10, 0, 10\)"),
        ({"shape": (10, 10)}, r"got \(10, 10\)"),
        ({"spacing": (1.0, -1.0, 1.0)}, "positive mm"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "positive mm"),
        ({"nodules": -1}, "0 to 50, got -1"),
        ({"nodules": 51}, "0 to 50, got 51"),
        ({"nodules": 2, "shape": (16, 32, 32), "spacing": (1.0, 1.0, 1.0)}, "no room for 2 nodules"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chest_phantom(**arguments)


def test_planted_to_dict_survives_json(phantom: Phantom) -> None:
    ct, planted = phantom
    truth = json.loads(json.dumps(planted_to_dict(planted, ct)))
    assert truth["series_uid"] == ct.series_uid
    assert truth["geometry"]["shape"] == list(SHAPE)
    assert len(truth["nodules"]) == len(planted)
    g = truth["geometry"]
    for item, nodule in zip(truth["nodules"], planted, strict=True):
        lps = np.array(g["origin"]) + np.array(item["center_voxel"])[::-1] * g["spacing"][::-1]
        np.testing.assert_allclose(lps, nodule.center_lps, atol=1e-6)
        assert item["contour_id"] == nodule.contour_id


# DICOM


def oblique_volume() -> CTVolume:
    angle = np.deg2rad(20)
    direction = (1, 0, 0, 0, np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle))
    voxels = np.random.default_rng(0).integers(-1024, 3071, (5, 7, 9)).astype(np.int16)
    geometry = Geometry((5, 7, 9), (2.5, 0.703125, 0.81), (-166.25, -171.699997, -340.123456), direction)
    identity = {"patient_name": "Secret^Person", "patient_id": "4711"}
    return CTVolume(voxels, geometry, "1.2.826.0.1.3680043.8.498.7", "scan", {"kernel": "B30f"}, identity)


@pytest.mark.parametrize("which", ["phantom", "oblique"])
def test_series_reads_back_through_gdcm(tmp_path: Path, small: CTVolume, which: str) -> None:
    ct = small if which == "phantom" else oblique_volume()
    write_dicom_series(ct, tmp_path / "series")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(tmp_path / "series"), ct.series_uid)
    reader.SetFileNames(names)
    image = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image), ct.voxels)
    np.testing.assert_allclose(image.GetSpacing()[::-1], ct.geometry.spacing, rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ct.geometry.origin, atol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), ct.geometry.direction, atol=1e-6)


def test_series_reads_back_through_read_ct(tmp_path: Path, small: CTVolume) -> None:
    write_dicom_series(small, tmp_path / "series")
    again = read_ct(tmp_path / "series")
    assert np.array_equal(again.voxels, small.voxels)
    assert again.series_uid == small.series_uid
    assert again.geometry.shape == small.geometry.shape
    np.testing.assert_allclose(again.geometry.spacing, small.geometry.spacing)
    np.testing.assert_allclose(again.geometry.origin, small.geometry.origin, atol=1e-6)


def test_series_is_a_ct_series(tmp_path: Path) -> None:
    ct = oblique_volume()
    write_dicom_series(ct, tmp_path / "a")
    write_dicom_series(ct, tmp_path / "b")
    paths = sorted((tmp_path / "a").iterdir())
    slices = [pydicom.dcmread(path) for path in paths]
    assert len(slices) == 5
    for index, (path, item) in enumerate(zip(paths, slices, strict=True)):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert b"Secret" not in path.read_bytes()
        assert item.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert item.SOPClassUID == item.file_meta.MediaStorageSOPClassUID == pydicom.uid.CTImageStorage
        assert item.SOPInstanceUID == item.file_meta.MediaStorageSOPInstanceUID
        assert item.SOPInstanceUID.is_valid
        assert item.SeriesInstanceUID == ct.series_uid
        assert (str(item.PatientName), item.Modality) == ("Phantom^Volnet", "CT")
        assert np.array_equal(item.pixel_array * item.RescaleSlope + item.RescaleIntercept, ct.voxels[index])
        np.testing.assert_allclose(
            item.ImagePositionPatient, ct.geometry.voxel_to_lps((index, 0, 0)), atol=1e-6
        )
        assert item.InstanceNumber == index + 1
        assert item.PixelSpacing == [0.703125, 0.81]
        assert item.SliceThickness == 2.5
        assert item["PatientID"].value != "4711"
        # Raises where a value breaks the rules of its representation.
        for element in item.iterall():
            if not element.is_empty and element.VR in {"DS", "UI", "DA", "TM", "CS", "LO", "PN", "SH"}:
                values = element.value if element.VM > 1 else [element.value]
                for value in values:
                    pydicom.valuerep.validate_value(element.VR, str(value), pydicom.config.RAISE)
    assert len({item.SOPInstanceUID for item in slices}) == 5
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({item[keyword].value for item in slices}) == 1
        assert pydicom.uid.UID(slices[0][keyword].value).is_valid


def test_series_uid_that_is_none_is_replaced(tmp_path: Path, small: CTVolume) -> None:
    ct = CTVolume(small.voxels[:2], small.geometry.cropped((0, 0, 0), (2, 80, 80)), "scan.nii", "scan.nii")
    write_dicom_series(ct, tmp_path)
    uid = pydicom.dcmread(tmp_path / "0001.dcm").SeriesInstanceUID
    assert uid.is_valid
    assert uid != "scan.nii"


def test_writing_refuses_a_folder_in_use(tmp_path: Path, small: CTVolume) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "keep.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="used is not empty"):
        write_dicom_series(small, tmp_path / "used")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        write_dicom_series(small, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "keep.txt", "used"]


def test_nothing_half_written_stays(tmp_path: Path, small: CTVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = pydicom.dataset.FileDataset.save_as
    written: list[Path] = []

    def fail_on_third(self: pydicom.FileDataset, path: Path, **options: object) -> None:
        if len(written) == 2:
            raise OSError("disk full")
        written.append(path)
        saved(self, path, **options)

    monkeypatch.setattr(pydicom.dataset.FileDataset, "save_as", fail_on_third)
    with pytest.raises(OSError, match="disk full"):
        write_dicom_series(small, tmp_path / "series")
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


def test_unwritable_volumes(tmp_path: Path) -> None:
    def volume(voxels: np.ndarray, direction: tuple[float, ...]) -> CTVolume:
        return CTVolume(voxels, Geometry(voxels.shape, (1, 1, 1), (0, 0, 0), direction), "1.2.3", "x")

    axial = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    zeros = np.zeros((2, 4, 4), np.int16)
    with pytest.raises(ValueError, match=r"got a volume of shape \(0, 4, 4\)"):
        write_dicom_series(volume(zeros[:0], axial), tmp_path / "a")
    with pytest.raises(ValueError, match="orthonormal"):
        write_dicom_series(volume(zeros, (1, 0, 0, 0, 1, 0.3, 0, 0, 1)), tmp_path / "b")
    with pytest.raises(ValueError, match="32000 HU"):
        write_dicom_series(volume(zeros + np.int16(32000), axial), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
