"""Chest CTs: reading them, their geometry, and what a network needs done to them first."""

from __future__ import annotations

from volnet.data.dicom_write import write_dicom_series
from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.phantom import PlantedNodule, chest_phantom
from volnet.data.preprocess import body_box, lung_box, normalize_hu, resample, resample_to
from volnet.data.read import read_ct
from volnet.data.volume import CTVolume

__all__ = [
    "CTVolume",
    "Geometry",
    "InvalidScanError",
    "PlantedNodule",
    "body_box",
    "chest_phantom",
    "lung_box",
    "normalize_hu",
    "read_ct",
    "resample",
    "resample_to",
    "write_dicom_series",
]
