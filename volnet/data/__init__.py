"""Chest CTs: reading them, their geometry, what a network needs done to them first, feeding it with them."""

from __future__ import annotations

from volnet.data.augment import (
    PasteNodules,
    RandomAffine,
    RandomBlur,
    RandomFlip,
    RandomGamma,
    RandomNoise,
    RandomPermutation,
    RandomRotate90,
    RandomScaleShift,
    Window,
)
from volnet.data.dicom_write import write_dicom_series
from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.loader import PatchLoader
from volnet.data.phantom import PlantedNodule, chest_phantom
from volnet.data.preprocess import body_box, lung_box, normalize_hu, resample, resample_to
from volnet.data.read import read_ct, read_labels
from volnet.data.samplers import (
    BalancedSampler,
    GridSampler,
    UniformSampler,
    WeightedSampler,
    WholeVolumeSampler,
)
from volnet.data.store import StoredVolume, VolumeStore
from volnet.data.volume import CTVolume

__all__ = [
    "BalancedSampler",
    "CTVolume",
    "Geometry",
    "GridSampler",
    "InvalidScanError",
    "PasteNodules",
    "PatchLoader",
    "PlantedNodule",
    "RandomAffine",
    "RandomBlur",
    "RandomFlip",
    "RandomGamma",
    "RandomNoise",
    "RandomPermutation",
    "RandomRotate90",
    "RandomScaleShift",
    "StoredVolume",
    "UniformSampler",
    "VolumeStore",
    "WeightedSampler",
    "WholeVolumeSampler",
    "Window",
    "body_box",
    "chest_phantom",
    "lung_box",
    "normalize_hu",
    "read_ct",
    "read_labels",
    "resample",
    "resample_to",
    "write_dicom_series",
]
