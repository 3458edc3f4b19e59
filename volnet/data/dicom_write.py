"""Writing a volume as a DICOM CT series: one file a slice, under a made-up identity."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from volnet.data.volume import CTVolume

_INTERCEPT = -1024
_DATE, _TIME = "20000101", "120000"  # made up and constant, so that the same volume gives the same files


def write_dicom_series(ct: CTVolume, folder: str | os.PathLike[str]) -> None:
    """Write ``ct`` as a series of CT Image Storage files, ``0001.dcm`` for the first slice and so on.

    Explicit VR little endian, 16-bit, rescale slope 1 and intercept -1024. The patient is always the made-up
    ``Phantom^Volnet``, whatever ``ct.identity`` says. The series keeps ``ct.series_uid`` where that is a
    valid UID; all others are derived from it, so that writing twice gives the same files. Everything is
    written to a folder beside, which takes its name only when complete.

    Args:
        ct: the volume; its geometry's axes must be at right angles to each other.
        folder: must not exist yet, or be empty; folders above it are made.

    Raises:
        FileExistsError: ``folder`` holds something.
        NotADirectoryError: ``folder`` is a file.
        ValueError: the volume is empty, larger than DICOM allows, oblique to itself, or beyond 16 bits.

    >>> import tempfile
    >>> from volnet.data.phantom import chest_phantom
    >>> ct, _ = chest_phantom(shape=(4, 64, 64), spacing=(10.0, 5.0, 5.0), nodules=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_dicom_series(ct, Path(folder) / "series")
    ...     sorted(path.name for path in (Path(folder) / "series").iterdir())
    ['0001.dcm', '0002.dcm', '0003.dcm', '0004.dcm']
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    _check(ct)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        for index in range(ct.geometry.shape[0]):
            _make_slice(ct, index).save_as(aside / f"{index + 1:04d}.dcm", enforce_file_format=True)
        if folder.is_dir():
            folder.rmdir()
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _check(ct: CTVolume) -> None:
    shape = ct.geometry.shape
    if min(shape) < 1 or max(shape[1:]) > 65535:
        raise ValueError(f"a DICOM slice has 1 to 65535 rows and columns, got a volume of shape {shape}")
    direction = np.reshape(ct.geometry.direction, (3, 3))
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ValueError(f"direction must be orthonormal, got {ct.geometry.direction}")
    highest = int(ct.voxels.max())
    if highest - _INTERCEPT > np.iinfo(np.int16).max:
        raise ValueError(f"voxels reach {highest} HU, beyond 16 bits at intercept {_INTERCEPT}")


def _uid(series_uid: str, what: str) -> UID:
    digest = hashlib.sha256(f"{series_uid} {what}".encode()).digest()
    return UID("2.25." + str(int.from_bytes(digest[:15], "big")))


def _series_uid(ct: CTVolume) -> UID:
    given = UID(ct.series_uid, config.IGNORE)
    return given if given.is_valid else _uid(ct.series_uid, "series")


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    text = repr(round(float(value), 10))
    return text if len(text) <= 16 else f"{value:.9g}"


def _make_slice(ct: CTVolume, index: int) -> FileDataset:
    geometry = ct.geometry
    uid = ct.series_uid
    direction = np.reshape(geometry.direction, (3, 3))
    position = geometry.voxel_to_lps((index, 0, 0))
    stored = (ct.voxels[index].astype(np.int32) - _INTERCEPT).astype("<i2")

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(uid, f"slice {index}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("volnet", "implementation")
    meta.ImplementationVersionName = "VOLNET"

    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    elements: dict[str, Any] = {
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyDate": _DATE,
        "SeriesDate": _DATE,
        "AcquisitionDate": _DATE,
        "ContentDate": _DATE,
        "StudyTime": _TIME,
        "SeriesTime": _TIME,
        "AcquisitionTime": _TIME,
        "ContentTime": _TIME,
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": str(ct.metadata.get("manufacturer", "")),
        "ReferringPhysicianName": "",
        "StudyDescription": "Made up for tests, no patient",
        "SeriesDescription": "Chest",
        "ManufacturerModelName": "volnet phantom",
        "PatientName": "Phantom^Volnet",
        "PatientID": "VOLNET-PHANTOM",
        "PatientBirthDate": "19000101",
        "PatientSex": "O",
        "BodyPartExamined": "CHEST",
        "SliceThickness": _decimal(ct.metadata.get("slice_thickness") or geometry.spacing[0]),
        "KVP": "",
        "SpacingBetweenSlices": _decimal(geometry.spacing[0]),
        "ConvolutionKernel": str(ct.metadata.get("kernel", "")),
        "PatientPosition": "HFS",
        "StudyInstanceUID": _uid(uid, "study"),
        "SeriesInstanceUID": _series_uid(ct),
        "StudyID": "1",
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "InstanceNumber": index + 1,
        "ImagePositionPatient": [_decimal(v) for v in position],
        "ImageOrientationPatient": [_decimal(v) for v in (*direction[:, 0], *direction[:, 1])],
        "FrameOfReferenceUID": _uid(uid, "frame of reference"),
        "PositionReferenceIndicator": "",
        "SliceLocation": _decimal(float(position @ np.cross(direction[:, 0], direction[:, 1]))),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": geometry.shape[1],
        "Columns": geometry.shape[2],
        "PixelSpacing": [_decimal(v) for v in geometry.spacing[1:]],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "WindowCenter": "-600",
        "WindowWidth": "1500",
        "RescaleIntercept": str(_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
    }
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.add_new("PixelData", "OW", stored.tobytes())
    return dataset
