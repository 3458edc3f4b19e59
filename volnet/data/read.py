"""A CT from whatever a person has at hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from volnet.data.archive import unpacked
from volnet.data.dicom import has_dicom_magic, read_dicom
from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.hounsfield import check_range, replace_padding, to_int16
from volnet.data.itk import read_image
from volnet.data.nifti import read_nifti
from volnet.data.volume import CTVolume

_SPACING_MM = (0.05, 20.0)
_FORMATS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
}


def read_ct(path: str | PathLike[str]) -> CTVolume:
    """Read one CT: a DICOM folder or .zip, a multi-frame DICOM file, NIfTI, MHA/MHD or NRRD.

    The array's axes are put in the order and sense nearest to (head, back, left), whatever the file's own;
    the geometry follows, so that positions in mm do not change. Voxels are int16 HU, at least -1024.
    Everything unusual that was repaired or passed over is told in ``notes``; see :mod:`volnet.data.dicom`
    for what is repaired in a DICOM series.

    Raises:
        InvalidScanError: the input is missing, unreadable, damaged, no 3-D CT, or not one volume. The message
            names the file and the reason.

    >>> ct = read_ct("scan/")                                        # doctest: +SKIP
    >>> ct.voxels.shape, ct.geometry.spacing, ct.notes               # doctest: +SKIP
    ((133, 512, 512), (2.5, 0.703125, 0.703125), [])
    """
    path = Path(path)
    try:
        if path.is_dir():
            ct = read_dicom(path, path)
        elif not path.exists():
            raise InvalidScanError(path, "no such file or folder")
        else:
            ct = _read_file(path)
    except OSError as error:
        raise InvalidScanError(path, f"cannot be read ({error.strerror or error})") from error
    return _finished(ct, path)


def read_labels(path: str | PathLike[str]) -> tuple[np.ndarray, Geometry]:
    """Read one label volume (NIfTI, MHA/MHD or NRRD), its axes turned as :func:`read_ct` turns a CT's.

    Returns:
        uint8 ``[D, H, W]``, and the geometry.

    Raises:
        InvalidScanError: the input is missing, unreadable, damaged, or holds anything but whole numbers 0 to
            255. The message names the file and the reason.

    >>> labels, geometry = read_labels("nodules.nii.gz")              # doctest: +SKIP
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix is None:
        raise InvalidScanError(path, f"labels are read from {', '.join(_FORMATS)}, got {path.suffix!r}")
    try:
        voxels, geometry = _read_image_file(path, suffix)
    except OSError as error:
        raise InvalidScanError(path, f"cannot be read ({error.strerror or error})") from error
    if voxels.dtype.kind not in "iuf" or not (voxels.min() >= 0 and voxels.max() <= 255):
        raise InvalidScanError(path, "labels must be whole numbers 0 to 255")
    labels = voxels.astype(np.uint8)
    if (labels != voxels).any():
        raise InvalidScanError(path, "labels must be whole numbers 0 to 255")
    return _axial(labels, geometry)


def _suffix(path: Path) -> str | None:
    lower = path.name.lower()
    return next((s for s in _FORMATS if lower.endswith(s)), None)


def _read_image_file(path: Path, suffix: str) -> tuple[np.ndarray, Geometry]:
    with path.open("rb"):
        pass  # an unreadable file is told apart from a damaged one by the system's own error
    return read_nifti(path) if _FORMATS[suffix] == "NIfTI" else read_image(path, path)


def _read_file(path: Path) -> CTVolume:
    lower = path.name.lower()
    suffix = _suffix(path)
    if suffix is not None:
        voxels, geometry = _read_image_file(path, suffix)
        stem = path.name[: -len(suffix)]
        return CTVolume(to_int16(voxels, path), geometry, stem, path.name, {"format": _FORMATS[suffix]})
    if lower.endswith(".zip"):
        with unpacked(path) as folder:
            return read_dicom(folder, path)
    if lower.endswith((".dcm", ".ima")) or has_dicom_magic(path):
        return read_dicom(path, path)
    raise InvalidScanError(
        path,
        f"unsupported extension {path.suffix!r}; read are a DICOM folder or .zip, {', '.join(_FORMATS)}",
    )


def _finished(ct: CTVolume, path: Path) -> CTVolume:
    """Check what must hold whatever the format, and put the axes in canonical order."""
    if not all(_SPACING_MM[0] <= s <= _SPACING_MM[1] for s in ct.geometry.spacing):
        spacing = " x ".join(f"{s:g}" for s in ct.geometry.spacing)
        raise InvalidScanError(
            path, f"absurd spacing {spacing} mm; each must be from {_SPACING_MM[0]} to {_SPACING_MM[1]:g}"
        )
    notes = list(ct.notes)
    voxels = replace_padding(ct.voxels, notes)
    check_range(voxels, path, notes)
    voxels, geometry = _axial(voxels, ct.geometry)
    return replace(ct, voxels=voxels, geometry=geometry, notes=notes)


def _axial(voxels: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """Permute and flip the axes until they run nearest to z, y and x; every voxel keeps its place."""
    # Columns in array order, rows in (z, y, x) order: the identity for an axial LPS volume.
    cosines = np.reshape(geometry.direction, (3, 3))[::-1, ::-1]
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[i, p[i]]) for i in range(3)))
    flipped = [cosines[i, order[i]] < 0 for i in range(3)]
    if order == (0, 1, 2) and not any(flipped):
        return voxels, geometry
    corner = np.zeros(3)
    for target, axis in enumerate(order):
        corner[axis] = geometry.shape[axis] - 1 if flipped[target] else 0
    sign = np.where(flipped, -1.0, 1.0)
    first, second, third = order
    result = Geometry(
        shape=(geometry.shape[first], geometry.shape[second], geometry.shape[third]),
        spacing=(geometry.spacing[first], geometry.spacing[second], geometry.spacing[third]),
        origin=tuple(geometry.voxel_to_lps(corner)),
        direction=tuple((cosines[:, list(order)] * sign)[::-1, ::-1].ravel()),
    )
    view = np.flip(voxels.transpose(order), tuple(axis for axis in range(3) if flipped[axis]))
    return np.ascontiguousarray(view), result
