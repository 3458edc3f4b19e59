"""Reading through ITK, with its failures told in the project's terms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry


def read_header(path: Path, source: Path) -> tuple[sitk.ImageFileReader, Geometry]:
    """What the file's header says, without the voxels: the reader, and the geometry.

    Args:
        path: the file.
        source: what to call it in errors.

    Raises:
        InvalidScanError: ITK cannot read the header, or it is not that of a 3-D scalar image.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _itk_errors(path, source):
        reader.ReadImageInformation()
    size, dimension = reader.GetSize(), reader.GetDimension()
    if dimension != 3 or min(size) < 2:
        flat = dimension < 3 or sum(n > 1 for n in size) < 3
        kind = "2-D" if flat else f"{dimension}-D"
        raise InvalidScanError(source, f"{kind} image of size {size}; a 3-D volume is needed")
    if reader.GetNumberOfComponents() != 1:
        raise InvalidScanError(source, f"{reader.GetNumberOfComponents()} components a voxel; one is needed")
    return reader, _geometry(reader, source)


def read_image(path: Path, source: Path) -> tuple[np.ndarray, Geometry]:
    """A whole 3-D scalar image of any format that ITK reads: voxels ``[D, H, W]`` as stored, geometry.

    Raises:
        InvalidScanError: as :func:`read_header`, or the voxels are cut off.
    """
    reader, geometry = read_header(path, source)
    with _itk_errors(path, source):
        image = reader.Execute()
    return sitk.GetArrayFromImage(image), geometry


def read_dicom_pixels(path: Path, source: Path) -> np.ndarray:
    """One DICOM file's frames ``[frames, rows, columns]``, rescaled to the modality's units by GDCM.

    Raises:
        InvalidScanError: the file is truncated or corrupt.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _itk_errors(path, source, "truncated or corrupt DICOM"):
        image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image)
    return voxels if voxels.ndim == 3 else voxels[None]


def _geometry(image: sitk.ImageFileReader, source: Path) -> Geometry:
    try:
        return Geometry(
            shape=image.GetSize()[::-1],
            spacing=image.GetSpacing()[::-1],
            origin=image.GetOrigin(),
            direction=image.GetDirection(),
        )
    except ValueError as error:
        raise InvalidScanError(source, str(error)) from error


@contextmanager
def _itk_errors(
    path: Path, source: Path, reason: str = "truncated, corrupt or not of this format"
) -> Iterator[None]:
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        # ITK's message runs over several lines; the last one states the cause, with a path that may be that
        # of a temporary folder.
        cause = re.sub(r"^\w+(::| )ERROR: (\w+\(0x\w+\): )?", "", str(error).strip().splitlines()[-1])
        cause = cause.replace(str(path), path.name)
        raise InvalidScanError(source, f"{reason} (ITK: {cause})") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
