from __future__ import annotations

import gzip
import itertools
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

from volnet.data import CTVolume, InvalidScanError, read_ct

CT = UID("1.2.840.10008.5.1.4.1.1.2")
ENHANCED_CT = UID("1.2.840.10008.5.1.4.1.1.2.1")
AXIAL = (1, 0, 0, 0, 1, 0)
IDENTITY = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711-SECRET",
    "PatientBirthDate": "19520304",
    "AccessionNumber": "ACC-9",
    "StudyDate": "20200102",
    "InstitutionName": "St. Nowhere",
    "StudyDescription": "Doe follow-up",
    "SeriesDescription": "for Dr. Doe",
}


def dicom_file(
    path: Path,
    pixels: np.ndarray,
    position: tuple[float, float, float] | np.ndarray,
    *,
    series: str = "1.2.826.0.1.3680043.8.498.1",
    orientation: tuple[float, ...] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.7),
    slope: float = 1,
    intercept: float = -1024,
    **extra: object,
) -> Path:
    """One CT slice of stored values; a keyword of None is left out, any other is set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CT
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID = CT
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Manufacturer = "Maker"
    ds.ConvolutionKernel = "B30f"
    ds.SliceThickness = 2.5
    ds.SeriesInstanceUID = series
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.99"
    for keyword, value in IDENTITY.items():
        setattr(ds, keyword, value)
    ds.ImagePositionPatient = [round(float(v), 6) for v in position]
    ds.ImageOrientationPatient = list(orientation)
    ds.PixelSpacing = list(spacing)
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for keyword, value in extra.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def stored(shape: tuple[int, ...] = (6, 16, 20), seed: int = 0) -> np.ndarray:
    """Stored values of a scan; with the default rescale -1024 to 1000 HU."""
    return np.random.default_rng(seed).integers(0, 2024, shape).astype(np.uint16)


def series(folder: Path, pixels: np.ndarray, *, gap: float = 2.5, z0: float = -30.0, **extra: object) -> Path:
    """An axial series along z, its file names in no order."""
    names = np.random.default_rng(1).permutation(len(pixels))
    for name, (index, plane) in zip(names, enumerate(pixels), strict=True):
        dicom_file(folder / f"IM{name:04d}", plane, (-10.0, 20.0, z0 + gap * index), **extra)
    return folder


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


def ramp(points: np.ndarray) -> np.ndarray:
    """HU that change linearly over the patient, so that linear interpolation is exact."""
    return points @ np.array([4.0, -5.0, 3.0]) - 260.0


def ramp_slice(position: np.ndarray, row: np.ndarray, column: np.ndarray, spacing, size) -> np.ndarray:
    r, c = np.mgrid[: size[0], : size[1]]
    points = position + r[..., None] * spacing[0] * column + c[..., None] * spacing[1] * row
    return np.rint(ramp(points) + 1024).astype(np.uint16)


def assert_ramp(ct: CTVolume, inside: tuple[slice, ...] = (slice(None),) * 3) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in ct.voxels.shape], indexing="ij"), axis=-1)
    expected = ramp(ct.geometry.voxel_to_lps(grid))
    # Stored values and results are both rounded.
    assert np.abs(ct.voxels - expected)[inside].max() <= 1.01


def refused(path: Path | str, *words: str) -> InvalidScanError:
    with pytest.raises(InvalidScanError) as caught:
        read_ct(path)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith(caught.value.path)
    return caught.value


# DICOM series


@pytest.mark.parametrize("form", ["folder", "zip", "nested"])
def test_series_is_sorted_and_rescaled(tmp_path: Path, form: str) -> None:
    pixels = stored()
    folder = series(tmp_path / "scan" / "a" / "b", pixels)
    path = {"folder": folder, "nested": tmp_path / "scan"}.get(form) or zipped(folder, tmp_path / "scan.zip")
    ct = read_ct(path)
    assert ct.voxels.dtype == np.int16
    assert np.array_equal(ct.voxels, pixels.astype(np.int16) - 1024)
    assert ct.geometry.shape == pixels.shape
    assert ct.geometry.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert ct.geometry.origin == pytest.approx((-10.0, 20.0, -30.0))
    assert ct.geometry.direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert ct.series_uid == "1.2.826.0.1.3680043.8.498.1"
    assert ct.source == path.name
    assert ct.metadata["modality"] == "CT"
    assert ct.metadata["kernel"] == "B30f"
    assert ct.metadata["slice_thickness"] == 2.5
    assert ct.notes == []


def test_same_as_simpleitk(tmp_path: Path) -> None:
    folder = series(tmp_path / "scan", stored(), intercept=-1000)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    ct = read_ct(folder)
    assert np.array_equal(ct.voxels, sitk.GetArrayFromImage(image))
    assert ct.geometry.spacing[::-1] == pytest.approx(image.GetSpacing())
    assert ct.geometry.origin == pytest.approx(image.GetOrigin())
    assert ct.geometry.direction == pytest.approx(image.GetDirection())


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    pixels = stored()
    for index, plane in enumerate(pixels):
        slope, intercept = 1 + index / 10, -1000 + index
        dicom_file(tmp_path / f"{index}.dcm", plane, (0, 0, index), slope=slope, intercept=intercept)
    index = np.arange(len(pixels))[:, None, None]
    np.testing.assert_array_equal(
        read_ct(tmp_path).voxels, np.rint(pixels * (1 + index / 10) - 1000 + index).astype(np.int16)
    )


def test_compressed_pixels(tmp_path: Path) -> None:
    pixels = stored()
    folder = series(tmp_path / "scan", pixels)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        ds.compress(RLELossless)
        ds.save_as(file)
    assert np.array_equal(read_ct(folder).voxels, pixels.astype(np.int16) - 1024)
    victim = max(folder.iterdir())
    victim.write_bytes(victim.read_bytes()[:-200])
    refused(folder, victim.name, "truncated or corrupt")


def test_patient_is_kept_apart(tmp_path: Path) -> None:
    folder = series(tmp_path / "scan", stored())
    series(tmp_path / "scan" / "other", stored((3, 16, 20)), series="1.2.826.0.1.3680043.8.498.2")
    ct = read_ct(folder)
    assert ct.identity["patient_name"] == "Doe^Jane"
    assert ct.identity["birth_date"] == "19520304"
    shown = json.dumps([ct.metadata, ct.notes, ct.source, ct.series_uid])
    for value in [*IDENTITY.values(), "1.2.826.0.1.3680043.8.498.99", "IM0"]:
        assert value not in shown
        assert value in ct.identity.values() or value == "IM0"


def test_largest_axial_of_several_series(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498."
    pixels = stored((8, 16, 20))
    series(tmp_path / "a", stored((5, 16, 20)), series=uid + "2")
    series(tmp_path / "b", pixels, series=uid + "3")
    for i in range(30):
        plane, at = np.zeros((16, 20), np.uint16), (0, float(i), 0)
        dicom_file(tmp_path / f"c{i}", plane, at, series=uid + "4", orientation=(1, 0, 0, 0, 0, -1))
        dicom_file(tmp_path / f"m{i}", plane, (0, 0, i), series=uid + "5", Modality="MR")
    for i in range(2):
        dicom_file(
            tmp_path / f"l{i}",
            stored((900, 900)),
            (0, 0, 0),
            series=uid + "3",
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        )
    (tmp_path / "README.txt").write_text("not DICOM")
    (tmp_path / "._b").write_text("what macOS leaves behind")
    ct = read_ct(tmp_path)
    assert ct.series_uid == uid + "3"
    assert np.array_equal(ct.voxels, pixels.astype(np.int16) - 1024)
    notes = "\n".join(ct.notes)
    assert f"{uid}2 (5 slices, axial" in notes
    assert f"{uid}4 (30 slices, not axial" in notes
    assert "ignored: 30 MR" in notes
    assert "2 CT files without a place" in notes
    assert "1 files that are not DICOM" in notes


def test_only_a_coronal_series(tmp_path: Path) -> None:
    pixels = stored((7, 12, 20))
    for i, plane in enumerate(pixels):
        dicom_file(tmp_path / f"{i}", plane, (-5.0, 2.0 * i, 90.0), orientation=(1, 0, 0, 0, 0, -1))
    ct = read_ct(tmp_path)
    assert ct.geometry.shape == (12, 7, 20)
    assert ct.geometry.spacing == pytest.approx((0.8, 2.0, 0.7))
    assert ct.geometry.direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    # Row r of coronal slice i lies at z = 90 - 0.8 r, y = 2 i.
    d, h, w = np.rint(ct.geometry.lps_to_voxel((-5.0 + 0.7 * 3, 2.0 * 4, 90.0 - 0.8 * 5))).astype(int)
    assert ct.voxels[d, h, w] == int(pixels[4, 5, 3]) - 1024
    assert any("no series is axial" in note for note in ct.notes)


@pytest.mark.parametrize("orientation", [(-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0)])
def test_prone_feet_first_and_turned(tmp_path: Path, orientation: tuple[int, ...]) -> None:
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    for i in range(5):
        position = np.array([3.0, -4.0, 10.0 + 2 * i])
        plane = ramp_slice(position, row, column, (0.8, 0.7), (12, 14))
        dicom_file(tmp_path / f"{i}", plane, position, orientation=orientation)
    ct = read_ct(tmp_path)
    assert ct.geometry.direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert_ramp(ct)
    assert ct.notes == []


def test_equal_duplicates_are_dropped(tmp_path: Path) -> None:
    pixels = stored()
    series(tmp_path / "a", pixels)
    series(tmp_path / "copy", pixels[2:4], z0=-25.0)
    ct = read_ct(tmp_path)
    assert np.array_equal(ct.voxels, pixels.astype(np.int16) - 1024)
    assert ct.notes == ["2 duplicate slices with identical pixels were dropped"]


def test_different_slices_at_one_place(tmp_path: Path) -> None:
    pixels = stored()
    series(tmp_path / "a", pixels)
    other = dicom_file(tmp_path / "b" / "twin.dcm", pixels[3], (-10.0, 20.0, -25.0))
    refused(tmp_path, str(other), "conflicts with IM", "-25.00 mm")


def test_missing_slices_are_filled_and_told(tmp_path: Path) -> None:
    row, column = np.eye(3)[0], np.eye(3)[1]
    for i in (0, 1, 2, 5, 6, 7, 9):
        position = np.array([0.0, 0.0, 2.0 * i])
        plane = ramp_slice(position, row, column, (0.8, 0.7), (12, 14))
        dicom_file(tmp_path / f"{i}", plane, position)
    ct = read_ct(tmp_path)
    assert ct.geometry.shape == (10, 12, 14)
    assert ct.geometry.spacing[0] == pytest.approx(2.0)
    assert_ramp(ct)
    (note,) = ct.notes
    assert note.startswith("3 slices are missing; filled")
    assert "6 mm between the slices at 4 and 10 mm" in note


def test_slices_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    pixels = stored()
    folder = series(tmp_path / "scan", pixels)
    (gone,) = (f for f in folder.iterdir() if pydicom.dcmread(f).ImagePositionPatient[2] == -22.5)
    gone.unlink()
    ct = read_ct(folder)
    kept = [0, 1, 2, 4, 5]
    assert np.array_equal(ct.voxels[kept], pixels[kept].astype(np.int16) - 1024)
    between = (pixels[2].astype(float) + pixels[4]) / 2 - 1024
    assert np.abs(ct.voxels[3] - between).max() <= 0.5


def test_wide_gap(tmp_path: Path) -> None:
    pixels = stored((12, 8, 8))
    for i in (0, 1, 2, 3, 9, 10, 11):
        dicom_file(tmp_path / f"{i}", pixels[i], (0, 0, 2.0 * i))
    refused(tmp_path, str(tmp_path), "5 slices are missing", "12 mm between the slices at 6 and 18 mm")


def test_uneven_slices_are_resampled_and_told(tmp_path: Path) -> None:
    row, column = np.eye(3)[0], np.eye(3)[1]
    for z in (0, 2, 4, 6, 9, 12.5, 14.5, 16.5):
        position = np.array([0.0, 0.0, z])
        dicom_file(tmp_path / f"{z}", ramp_slice(position, row, column, (0.8, 0.7), (12, 14)), position)
    ct = read_ct(tmp_path)
    assert ct.geometry.shape[0] == 9
    assert ct.geometry.spacing[0] == pytest.approx(2.0)
    assert_ramp(ct)
    assert ct.notes[0].startswith("slices are unevenly spaced; resampled to 2 mm")


def test_rounded_positions_are_regular(tmp_path: Path) -> None:
    pixels = stored((40, 8, 8))
    for i, plane in enumerate(pixels):
        dicom_file(tmp_path / f"{i:02d}", plane, (0, 0, round(0.625 * i, 1)))
    ct = read_ct(tmp_path)
    assert np.array_equal(ct.voxels, pixels.astype(np.int16) - 1024)
    assert ct.geometry.spacing[0] == pytest.approx(0.625, abs=2e-3)
    assert ct.notes == []


@pytest.mark.parametrize("angle", [-18.0, 7.0, 25.0])
def test_gantry_tilt(tmp_path: Path, angle: float) -> None:
    radians = np.radians(angle)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(radians), -np.sin(radians)])
    for i in range(10):
        position = np.array([0.0, 0.0, 3.0 * i])  # the table moves along z, the slices lean
        plane = ramp_slice(position, row, column, (0.8, 0.7), (40, 14))
        dicom_file(tmp_path / f"{i}", plane, position, orientation=(*row, *column))
    ct = read_ct(tmp_path)
    direction = np.reshape(ct.geometry.direction, (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)
    assert ct.geometry.spacing == pytest.approx((3.0 * np.cos(radians), 0.8, 0.7), rel=1e-4)
    assert f"gantry tilt: slices are stacked at {abs(angle):.1f} degrees" in ct.notes[0]
    # Inside the slanted stack the ramp is where it was in the patient; outside there is air.
    rows = (ct.voxels > -1024).all(axis=2)
    assert rows.sum() >= 10 * 39
    assert ct.geometry.shape[1] > 40
    expected = ramp(ct.geometry.voxel_to_lps(np.stack(np.meshgrid(
        *[np.arange(n) for n in ct.geometry.shape], indexing="ij"), axis=-1)))  # fmt: skip
    inner = rows & np.roll(rows, 1, axis=1) & np.roll(rows, -1, axis=1)
    assert np.abs(ct.voxels - expected)[inner].max() <= 1.5


@pytest.mark.parametrize(
    ("pixels", "declared", "rescale"),
    [
        (np.int16(-2000), None, (1, -1024)),  # GE: -3024 HU
        (np.int16(-2000), -2000, (1, -1024)),
        (np.uint16(4095), 4095, (1, -1024)),  # padding above all tissue
        (np.int16(-32768), -32768, (1, 0)),
    ],
)
def test_padding_outside_the_field_of_view(tmp_path: Path, pixels, declared, rescale) -> None:
    slope, intercept = rescale
    scan = (np.random.default_rng(0).integers(-1000, 1000, (4, 8, 8)) - intercept).astype(pixels.dtype)
    expected = scan.astype(np.int32) * slope + intercept
    scan[:, :2], expected[:, :2] = pixels, -1024
    for i, plane in enumerate(scan):
        extra = {} if declared is None else {"PixelPaddingValue": declared}
        dicom_file(tmp_path / f"{i}", plane, (0, 0, i), slope=slope, intercept=intercept, **extra)
    ct = read_ct(tmp_path)
    assert np.array_equal(ct.voxels, expected)
    assert len(ct.notes) == 1
    assert ct.notes[0].startswith("25 %")
    assert "set to -1024" in ct.notes[0]


def test_padding_value_that_is_also_tissue(tmp_path: Path) -> None:
    pixels = stored()
    pixels[0, 0] = 1024
    series(tmp_path, pixels, PixelPaddingValue=1024)
    ct = read_ct(tmp_path)
    assert np.array_equal(ct.voxels, pixels.astype(np.int16) - 1024)
    assert "0 HU, also occurs in tissue" in ct.notes[0]


def enhanced(path: Path, pixels: np.ndarray, positions: list[float]) -> Path:
    """A multi-frame CT: what is common in the shared functional groups, the positions in each frame's."""
    dicom_file(path, pixels.reshape(-1, pixels.shape[2]), (0, 0, 0))
    ds = pydicom.dcmread(path)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    ds.NumberOfFrames, ds.Rows = pixels.shape[:2]

    def item(**values: object) -> Sequence:
        result = Dataset()
        for keyword, value in values.items():
            setattr(result, keyword, value)
        return Sequence([result])

    ds.SharedFunctionalGroupsSequence = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=list(AXIAL)),
        PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.7], SliceThickness=2.0),
        PixelValueTransformationSequence=item(RescaleSlope=1, RescaleIntercept=-1000, RescaleType="HU"),
    )
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        [item(PlanePositionSequence=item(ImagePositionPatient=[-5.0, 6.0, z]))[0] for z in positions]
    )
    ds.save_as(path)
    return path


def test_multi_frame_file(tmp_path: Path) -> None:
    pixels = stored((5, 8, 10))
    path = enhanced(tmp_path / "scan.dcm", pixels, [8.0, 4.0, 0.0, 2.0, 6.0])
    for source in (path, tmp_path):
        ct = read_ct(source)
        assert np.array_equal(ct.voxels, np.maximum(pixels[[2, 3, 1, 4, 0]].astype(int) - 1000, -1024))
        assert ct.geometry.spacing == pytest.approx((2.0, 0.8, 0.7))
        assert ct.geometry.origin == pytest.approx((-5.0, 6.0, 0.0))


def test_multi_frame_file_of_several_rescales(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "scan.dcm", stored((3, 8, 10)), [0.0, 2.0, 4.0])
    ds = pydicom.dcmread(path)
    for index, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        rescale = Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1000 + index
        group.PixelValueTransformationSequence = Sequence([rescale])
    ds.save_as(path)
    refused(path, "scan.dcm", "frames of different rescale: 1.0 x + -1000.0, 1.0 x + -998.0")


def test_unreadable_value_is_no_value(tmp_path: Path) -> None:
    folder = series(tmp_path / "scan", stored(), SliceThickness=1234.5678, KVP=5678.1234)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"1234.5678 ", b"thick\xff\xfe   "))
    ct = read_ct(folder)
    assert "slice_thickness" not in ct.metadata
    assert ct.metadata["kvp"] == 5678.1234


# What a folder or archive may get wrong


def test_no_such_path(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "none.nii.gz", "no such file or folder")
    refused(str(tmp_path / "none"), "no such file or folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_path(tmp_path: Path) -> None:
    for path in [tmp_path / "a.nii", tmp_path / "a.dcm", tmp_path / "folder"]:
        path.mkdir() if path.name == "folder" else path.write_bytes(b"x" * 500)
        path.chmod(0)
        refused(path, path.name, "ermission denied")
        path.chmod(0o700)


def test_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, str(tmp_path), "empty folder")
    (tmp_path / "below").mkdir()
    refused(tmp_path, "empty folder")


def test_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    refused(tmp_path, "no DICOM file among its 1 files", "scan.nii.gz")


def test_folder_without_ct(tmp_path: Path) -> None:
    for i in range(3):
        dicom_file(tmp_path / f"{i}", stored()[i], (0, 0, i), Modality="MR")
    refused(tmp_path, "no CT in it; modalities: MR")


def test_only_localizers(tmp_path: Path) -> None:
    for i in range(3):
        dicom_file(tmp_path / f"{i}", stored()[i], (0, 0, i), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    refused(tmp_path, "3 CT files are localizers")


def test_one_slice(tmp_path: Path) -> None:
    path = dicom_file(tmp_path / "a" / "1.dcm", stored()[0], (0, 0, 0))
    refused(path, "1.dcm", "2-D image", "give the series' folder")
    refused(path.parent, "2-D image")
    dicom_file(tmp_path / "a" / "2.dcm", stored()[0], (0, 0, 0))
    refused(path.parent, "2-D image", "at one position")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orientation": (1, 0, 0, 0, 0, -1)}, "mixed orientations"),
        ({"orientation": (1, 0, 0, 0, 0.999, 0.0447)}, "mixed orientations"),
        ({"spacing": (0.8, 0.8)}, "mixed pixel spacings"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "not two unit vectors"),
        ({"orientation": (2, 0, 0, 0, 2, 0)}, "not two unit vectors"),
        ({"spacing": (0.0, 0.7)}, "absurd pixel spacing"),
    ],
)
def test_slice_that_does_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    series(tmp_path, stored())
    dicom_file(tmp_path / "odd.dcm", stored()[0], (-10.0, 20.0, -15.0), **change)
    refused(tmp_path, "odd.dcm", message)


def test_slice_of_another_size(tmp_path: Path) -> None:
    series(tmp_path, stored())
    dicom_file(tmp_path / "odd.dcm", stored()[0][:-1], (-10.0, 20.0, -15.0))
    refused(tmp_path, "odd.dcm", "mixed image sizes", "(15, 20) here, (16, 20) in")


@pytest.mark.parametrize("spacing", [(0.001, 0.001), (50.0, 50.0)])
def test_absurd_dicom_spacing(tmp_path: Path, spacing: tuple[float, float]) -> None:
    series(tmp_path, stored(), spacing=spacing)
    refused(tmp_path, str(tmp_path), "absurd spacing 2.5 x", f"{spacing[0]:g} mm")


@pytest.mark.parametrize("length", [0, 60, 140, 200, 330, 700, 900, -600, -100, -2])
@pytest.mark.parametrize("archive", [False, True])
def test_truncated_dicom(tmp_path: Path, length: int, archive: bool) -> None:
    folder = series(tmp_path / "scan", stored())
    victim = folder / "IM0003"
    victim = victim.rename(folder / "IM0003.dcm")
    victim.write_bytes(victim.read_bytes()[:length])
    path = zipped(folder, tmp_path / "scan.zip") if archive else folder
    error = refused(path, "IM0003.dcm", "truncated or corrupt")
    assert error.path == str(path / "IM0003.dcm")
    assert "volnet-" not in str(error)  # the temporary folder of an archive is nobody's business


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing", "SeriesInstanceUID", "Rows"])
def test_dicom_without_what_is_needed(tmp_path: Path, keyword: str) -> None:
    folder = series(tmp_path / "scan", stored())
    ds = pydicom.dcmread(folder / "IM0002")
    delattr(ds, keyword)
    ds.save_as(folder / "IM0002")
    refused(folder, "IM0002", "missing" if keyword != "SeriesInstanceUID" else "no SeriesInstanceUID")


def test_constant_dicom(tmp_path: Path) -> None:
    refused(series(tmp_path, np.full((4, 8, 8), 1024, np.uint16)), "all voxels have the same value, 0")


@pytest.mark.parametrize("name", ["../evil.dcm", "/evil.dcm", "a/../../evil.dcm", "..\\evil.dcm", "C:/evil"])
def test_zip_that_leaves_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "scan.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")
    refused(path, "scan.zip", "would be written outside")
    assert not list(tmp_path.rglob("evil*"))


def test_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 100)
    # 3 GiB claimed, sixteen times over: in the central directory a member's size is at offset 24.
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 24, 3 << 30)
    end = content.index(b"PK\x05\x06")
    directory = bytes(content[entry:end])
    content[entry:end] = directory * 16
    end = content.index(b"PK\x05\x06")
    struct.pack_into("<HHI", content, end + 8, 16, 16, len(directory) * 16)
    path.write_bytes(content)
    refused(path, "bomb.zip", f"{16 * (3 << 30)} bytes when unpacked")


def test_broken_zip(tmp_path: Path) -> None:
    path = zipped(series(tmp_path / "scan", stored()), tmp_path / "scan.zip")
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no zip"):
        path.write_bytes(broken)
        refused(path, "scan.zip", "zip archive cannot be unpacked")
    damaged = bytearray(content)
    damaged[400:420] = bytes(20)
    path.write_bytes(damaged)
    refused(path, "scan.zip", "zip archive cannot be unpacked")


def test_zip_without_scan(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(zipped(tmp_path / "empty", tmp_path / "empty.zip"), "empty.zip", "empty folder")


def test_temporary_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    folder = series(tmp_path / "scan", stored())
    read_ct(zipped(folder, tmp_path / "good.zip"))
    (folder / "IM0001").write_bytes((folder / "IM0001").read_bytes()[:-9])
    refused(zipped(folder, tmp_path / "bad.zip"), "IM0001")
    assert list(temporary.iterdir()) == []


# Single files

EXTENSIONS = ["nii", "nii.gz", "mha", "mhd", "nrrd", "nhdr"]


def image(voxels: np.ndarray, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing=(0.7, 0.8, 2.5)) -> sitk.Image:
    result = sitk.GetImageFromArray(voxels)
    result.SetSpacing(spacing)
    result.SetOrigin((-10.5, 20.25, -300.0))
    result.SetDirection([float(v) for v in direction])
    return result


def hu(shape: tuple[int, ...] = (5, 6, 7), dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 1500, shape).astype(dtype)


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("compressed", [False, True])
def test_formats(tmp_path: Path, extension: str, compressed: bool) -> None:
    path = tmp_path / f"a.scan.{extension}"
    sitk.WriteImage(image(hu()), path, useCompression=compressed)
    ct = read_ct(path)
    assert np.array_equal(ct.voxels, hu())
    assert ct.geometry.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert ct.geometry.origin == pytest.approx((-10.5, 20.25, -300.0))
    assert ct.series_uid == "a.scan"
    assert ct.source == path.name
    assert ct.notes == []
    assert ct.identity == {}


@pytest.mark.parametrize("extension", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_axes_in_any_order(tmp_path: Path, extension: str, order: tuple, signs: tuple) -> None:
    direction = np.eye(3)[:, list(order)] * signs
    tilt = np.radians(12)
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    written = image(hu(), (lean @ direction).ravel())
    sitk.WriteImage(written, tmp_path / f"scan.{extension}")
    ct = read_ct(tmp_path / f"scan.{extension}")
    expected = sitk.DICOMOrient(written, "LPS")
    assert np.array_equal(ct.voxels, sitk.GetArrayFromImage(expected))
    assert ct.voxels.flags.c_contiguous
    assert ct.geometry.spacing[::-1] == pytest.approx(expected.GetSpacing(), rel=1e-5)
    assert ct.geometry.origin == pytest.approx(expected.GetOrigin(), abs=1e-3)
    assert ct.geometry.direction == pytest.approx(expected.GetDirection(), abs=1e-5)
    # And every voxel is where it was.
    for index in [(0, 0, 0), (6, 5, 4), (3, 1, 2)]:
        mm = written.TransformIndexToPhysicalPoint(index)
        d, h, w = np.rint(ct.geometry.lps_to_voxel(mm)).astype(int)
        assert ct.voxels[d, h, w] == written[index]


@pytest.mark.parametrize("extension", ["nii", "nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_voxel_types(tmp_path: Path, extension: str, dtype: type) -> None:
    signed = hu(dtype=np.float64) + (0 if np.dtype(dtype).kind != "u" else 1024)
    voxels = (signed + (0.3 if np.dtype(dtype).kind == "f" else 0)).astype(dtype)
    sitk.WriteImage(image(voxels), tmp_path / f"scan.{extension}")
    ct = read_ct(tmp_path / f"scan.{extension}")
    assert np.array_equal(ct.voxels, signed)
    assert len(ct.notes) == (np.dtype(dtype).kind == "u")  # no voxel below 0


def nifti(
    voxels: np.ndarray,
    order: str = "<",
    slope: float = 0,
    intercept: float = 0,
    dim: tuple = (),
) -> bytes:
    """NIfTI by the letter of its specification: x to the right, y to the front, 0.7 x 0.8 x 2.5 mm."""
    codes = {"i2": (4, 16), "f4": (16, 32), "i4": (8, 32), "f8": (64, 64), "u1": (2, 8), "c8": (32, 64)}
    code, bits = codes[voxels.dtype.str[1:]]
    dim = dim or (3, *voxels.shape[::-1], 1, 1, 1, 1)
    pixdim = (1, 0.7, 0.8, 2.5, 1, 1, 1, 1)
    srow = (0.7, 0, 0, 10.5, 0, 0.8, 0, -20.25, 0, 0, 2.5, -300)
    h = bytearray(352)
    struct.pack_into(order + "i", h, 0, 348)
    struct.pack_into(order + "8h", h, 40, *dim)
    struct.pack_into(order + "2h", h, 70, code, bits)
    struct.pack_into(order + "8f3f", h, 76, *pixdim, 352, slope, intercept)
    struct.pack_into("B", h, 123, 2)
    struct.pack_into(order + "2h", h, 252, 0, 1)
    struct.pack_into(order + "12f", h, 280, *srow)
    h[344:348] = b"n+1\0"
    return bytes(h) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (1, 0), (0.5, -1000), (1, -24)])
def test_nifti_by_its_specification(tmp_path: Path, order: str, slope: float, intercept: float) -> None:
    voxels = hu() + np.int16(1024)
    (tmp_path / "scan.nii").write_bytes(nifti(voxels, order, slope, intercept))
    ct = read_ct(tmp_path / "scan.nii")
    factor = slope or 1
    expected = np.maximum(np.rint(voxels * factor + intercept * (slope != 0)), -1024)
    # RAS to LPS: x and y are turned around, so that the array is flipped back to (z, y, x) of LPS.
    assert np.array_equal(ct.voxels, expected[:, ::-1, ::-1])
    assert ct.geometry.voxel_to_lps((0, 5, 6)) == pytest.approx((-10.5, 20.25, -300.0), abs=1e-4)
    assert ct.geometry.direction == pytest.approx((1, 0, 0, 0, 1, 0, 0, 0, 1))


def test_gzip_in_several_members(tmp_path: Path) -> None:
    content = nifti(hu())
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(content[:300]) + gzip.compress(content[300:]))
    assert np.array_equal(read_ct(tmp_path / "scan.nii.gz").voxels, hu()[:, ::-1, ::-1])


def test_padding_in_files(tmp_path: Path) -> None:
    for extension, value in [("nii.gz", -2048), ("mha", -3024), ("nrrd", -1064)]:
        voxels = hu()
        voxels[:, :3] = value
        sitk.WriteImage(image(voxels), tmp_path / f"scan.{extension}")
        ct = read_ct(tmp_path / f"scan.{extension}")
        assert np.array_equal(ct.voxels, np.maximum(voxels, -1024))
        (note,) = ct.notes
        assert note.startswith("50 %")
        assert str(value) in note


@pytest.mark.parametrize("extension", ["nii", "nii.gz", "mha", "mhd", "nrrd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("length", [0, 20, 360, 0.5, 0.95, -20])
def test_truncated_file(tmp_path: Path, extension: str, compressed: bool, length: float) -> None:
    path = tmp_path / f"scan.{extension}"
    sitk.WriteImage(image(hu((20, 30, 40))), path, useCompression=compressed)
    victim = path
    if extension == "mhd" and length not in (0, 20):
        (victim,) = (f for f in tmp_path.iterdir() if f.suffix in (".raw", ".zraw"))
    content = victim.read_bytes()
    victim.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    refused(path, f"scan.{extension}", "truncated")


@pytest.mark.parametrize("place", [0.3, 0.9, -6])
def test_damaged_gzip(tmp_path: Path, place: float) -> None:
    # ITK itself takes these, and returns garbage from there on.
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(image(hu((40, 60, 80))), path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 0xFF
    path.write_bytes(content)
    refused(path, "scan.nii.gz", "damaged gzip")


def test_raw_file_is_missing(tmp_path: Path) -> None:
    sitk.WriteImage(image(hu()), tmp_path / "scan.mhd")
    (tmp_path / "scan.raw").unlink()
    refused(tmp_path / "scan.mhd", "scan.mhd")


@pytest.mark.parametrize("extension", ["nii.gz", "mha", "nrrd"])
def test_not_three_dimensions(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"scan.{extension}"
    for shape, words in [
        ((6, 7), "2-D image of size (7, 6)"),
        ((1, 6, 7), "2-D"),
        ((3, 5, 6, 7), "4-D image"),
    ]:
        sitk.WriteImage(sitk.GetImageFromArray(hu(shape), isVector=False), path)
        refused(path, f"scan.{extension}", words)
    sitk.WriteImage(sitk.GetImageFromArray(hu((5, 6, 7, 3)), isVector=True), path)
    refused(path, f"scan.{extension}")


def test_complex_nifti(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(nifti(np.zeros((5, 6, 7), np.complex64)))
    refused(tmp_path / "scan.nii", "scan.nii")


@pytest.mark.parametrize("extension", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize(
    ("voxel", "words"),
    [
        (np.nan, "1 voxels of slice 3 are NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (1e9, "to 1e+09 are not Hounsfield units"),
        (-40000, "voxels from -40000"),
    ],
)
def test_impossible_voxels(tmp_path: Path, extension: str, voxel: float, words: str) -> None:
    voxels = hu(dtype=np.float32)
    voxels[3, 2, 1] = voxel
    sitk.WriteImage(image(voxels), tmp_path / f"scan.{extension}")
    refused(tmp_path / f"scan.{extension}", f"scan.{extension}", words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 0), "same value, 0"),
        ((-3000, -2000), "same value, -1024"),
        ((0, 1), "voxels from 0 to 1 only"),
    ],
)
def test_constant_voxels(tmp_path: Path, values: tuple[int, int], words: str) -> None:
    voxels = np.full((5, 6, 7), values[0], np.int16)
    voxels[2] = values[1]
    sitk.WriteImage(image(voxels), tmp_path / "scan.nii.gz")
    refused(tmp_path / "scan.nii.gz", words)


@pytest.mark.parametrize("extension", ["nii.gz", "mha", "nrrd"])
@pytest.mark.parametrize("spacing", [(0.0007, 0.0007, 0.0025), (0.7, 0.7, 25.0), (1000.0, 1.0, 1.0)])
def test_absurd_spacing(tmp_path: Path, extension: str, spacing: tuple[float, ...]) -> None:
    sitk.WriteImage(image(hu(), spacing=spacing), tmp_path / f"scan.{extension}")
    refused(tmp_path / f"scan.{extension}", f"scan.{extension}", "absurd spacing", f"{spacing[2]:g} x")


def test_unsupported_extension(tmp_path: Path) -> None:
    for name in ["scan.png", "scan", "scan.npy", "scan.gz"]:
        (tmp_path / name).write_bytes(b"x" * 200)
        refused(tmp_path / name, name, "unsupported extension", ".nii.gz")


def test_garbage_under_every_extension(tmp_path: Path) -> None:
    garbage = np.random.default_rng(0).bytes(5000)
    for extension in [*EXTENSIONS, "dcm", "zip"]:
        path = tmp_path / f"scan.{extension}"
        path.write_bytes(garbage)
        refused(path, f"scan.{extension}")


# Real scans


@pytest.mark.parametrize("name", ["LIDC-IDRI-0001", "LIDC-IDRI-0002"])
def test_lidc(shared_data: Path, name: str) -> None:
    folder = shared_data / "lidc_scans"
    facts = json.loads((folder / "scans.json").read_text())[name]
    ct = read_ct(folder / f"{name}.nii.gz")
    assert ct.series_uid == name
    assert list(ct.geometry.shape) == facts["shape_zyx"]
    assert ct.geometry.spacing == pytest.approx(facts["spacing_zyx_mm"], rel=1e-6)
    assert ct.geometry.origin == pytest.approx(facts["origin_xyz_mm_lps"], abs=1e-4)
    plain = sitk.ReadImage(folder / f"{name}.nii.gz")
    assert np.array_equal(ct.voxels, np.maximum(sitk.GetArrayViewFromImage(plain), -1024))
    assert str(facts["pad_value_hu"]) in ct.notes[0]
    for mm, voxel in zip(facts["luna16_nodules_xyz_mm_diam"], facts["luna16_nodules_zyx_voxel"], strict=True):
        np.testing.assert_allclose(ct.geometry.lps_to_voxel(mm[:3]), voxel, atol=1e-4)
        np.testing.assert_allclose(ct.geometry.voxel_to_lps(voxel), mm[:3], atol=1e-4)
        d, h, w = np.rint(voxel).astype(int)
        assert -100 < ct.voxels[d - 1 : d + 2, h - 4 : h + 5, w - 4 : w + 5].mean() < 150


def test_lung_pet_ct_dx(shared_data: Path) -> None:
    folder = shared_data / "lung_pet_ct_dx" / "A0002_series"
    ct = read_ct(folder)
    facts = json.loads((folder.parent / "boxes.json").read_text())[ct.series_uid]
    assert ct.geometry.shape == (facts["n_slices"], facts["rows"], facts["cols"])
    assert ct.geometry.spacing == pytest.approx((facts["z_spacing_mm"], *facts["pixel_spacing"]))
    assert ct.geometry.origin == pytest.approx(facts["origin_xyz"])
    assert ct.metadata["kernel"] == facts["kernel"]
    assert ct.identity["patient_name"] == facts["patient"]
    assert facts["patient"] not in json.dumps([ct.metadata, ct.notes])
    headers = [pydicom.dcmread(file) for file in folder.iterdir()]
    for index, ds in enumerate(sorted(headers, key=lambda ds: ds.ImagePositionPatient[2])):
        expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.array_equal(ct.voxels[index], np.maximum(expected, -1024))
    for box in facts["boxes"]:
        x1, y1, x2, y2 = box["xyxy"]
        assert ct.geometry.voxel_to_lps((box["slice"], 0, 0))[2] == pytest.approx(box["z_mm"])
        # A tumour in the lung: denser in the middle than lung is.
        h, w = (y1 + y2) // 2, (x1 + x2) // 2
        assert ct.voxels[box["slice"], h - 3 : h + 4, w - 3 : w + 4].mean() > -200


def test_zipped_real_series(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "lung_pet_ct_dx" / "A0002_series"
    plain, packed = read_ct(folder), read_ct(zipped(folder, tmp_path / "series.zip"))
    assert np.array_equal(plain.voxels, packed.voxels)
    assert plain.geometry == packed.geometry
