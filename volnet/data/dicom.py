"""One CT volume from a heap of DICOM files.

Headers are read by pydicom, pixels by GDCM (every compression, rescaled to HU). What is done about the odd
series, each time with a note in the volume:

=============================  =============================================================================
several series                 the axial CT with the most voxels is read, the others are named
duplicate slices               dropped when their pixels are equal, else an error
missing slices                 filled by linear interpolation where the neighbours are at most
                               ``MAX_GAP_MM`` apart, else an error
irregular spacing              resampled (linear) to the median spacing under the same limit, else an error
gantry tilt, shifted slices    each slice is moved in its plane (linear) onto one rectangular grid
mixed orientations, sizes      an error
=============================  =============================================================================

A gap is never passed over in silence, and a wide one never filled: a nodule that lies in it would be reported
as absent on slices that nobody acquired.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from scipy import ndimage

from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.hounsfield import AIR_HU, replace_padding, to_int16
from volnet.data.itk import read_dicom_pixels
from volnet.data.volume import CTVolume

MAX_GAP_MM = 10.0
"""Neighbouring slices of an irregular series may be this far apart; about the coarsest chest CT in use."""

_REGULAR = 0.1  # of the spacing: positions are often rounded to 0.1 mm
_SAME_POSITION_MM = 0.01
_SAME_DIRECTION = 1e-3
_TISSUE_HU = (-1000, 3000)  # a declared padding value within this range also occurs in the patient

_CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
)
_DICOMDIR = "1.2.840.10008.1.3.10"

_METADATA = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "slice_thickness": "SliceThickness",
    "kvp": "KVP",
    "exposure": "Exposure",
    "gantry_tilt": "GantryDetectorTilt",
    "body_part": "BodyPartExamined",
    "patient_position": "PatientPosition",
    "contrast_agent": "ContrastBolusAgent",
    "series_number": "SeriesNumber",
}
_IDENTITY = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "age": "PatientAge",
    "study_uid": "StudyInstanceUID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "study_id": "StudyID",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "accession_number": "AccessionNumber",
    "institution": "InstitutionName",
    "referring_physician": "ReferringPhysicianName",
}
_TAGS = [
    *_METADATA.values(),
    *_IDENTITY.values(),
    "SpecificCharacterSet",
    "SOPClassUID",
    "SeriesInstanceUID",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True)
class _Slice:
    """One frame of one file."""

    file: Path
    frame: int
    header: Dataset
    size: tuple[int, int]  # rows, columns
    position: np.ndarray  # [3] LPS mm of the first pixel's centre
    row: np.ndarray  # [3] unit vector along a row
    column: np.ndarray  # [3] unit vector along a column
    spacing: tuple[float, float]  # mm between rows, between columns

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)


def has_dicom_magic(path: Path) -> bool:
    """Whether the file begins as DICOM part 10 files do: 128 bytes, then ``DICM``."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, source: Path) -> CTVolume:
    """The largest axial CT series among the DICOM files of a folder, at any depth, or one multi-frame file.

    Args:
        path: a folder or a file.
        source: what to call ``path`` in errors.

    Raises:
        InvalidScanError: no CT series, or one that does not make a volume; see the module's table.
    """
    notes: list[str] = []
    series = _find_series(path, source, notes)
    chosen = _largest_axial(series, source, notes)
    slices = series[chosen]
    first = slices[0]
    names = _Names(path, source)
    _check_alike(slices, names)

    voxels, positions, kept = _stack(slices, names, notes)
    voxels = _replace_declared_padding(voxels, slices, notes)
    voxels = replace_padding(voxels, notes)
    origins = np.stack([s.position for s in kept])
    voxels, origin = _straighten(voxels, origins, positions, first, notes)
    voxels, spacing = _regular(voxels, positions, source, notes)

    geometry = Geometry(
        shape=voxels.shape,
        spacing=(spacing, *first.spacing),
        origin=tuple(origin),
        direction=tuple(np.stack([first.row, first.column, first.normal], axis=1).ravel()),
    )
    return CTVolume(
        voxels=voxels,
        geometry=geometry,
        series_uid=chosen,
        source=source.name,
        metadata={"format": "DICOM", **_values(first.header, _METADATA)},
        identity={name: str(value) for name, value in _values(first.header, _IDENTITY).items()},
        notes=notes,
    )


@dataclass(frozen=True)
class _Names:
    """How to call a file in an error: below the source that the user gave, not below a temporary folder."""

    path: Path
    source: Path

    def __call__(self, file: Path) -> Path:
        return self.source if file == self.path else self.source / file.relative_to(self.path)


def _find_series(path: Path, source: Path, notes: list[str]) -> dict[str, list[_Slice]]:
    """CT slices by SeriesInstanceUID; everything else is counted into the notes."""
    names = _Names(path, source)
    files = sorted(_walk(path, source)) if path.is_dir() else [path]
    if not files:
        raise InvalidScanError(source, "empty folder")
    series: dict[str, list[_Slice]] = defaultdict(list)
    unplaced = strangers = 0
    others: dict[str, int] = defaultdict(int)
    for file in files:
        header = _read_header(file, names(file))
        if header is None:
            strangers += 1
            continue
        modality = str(header.get("Modality", "")) or "unknown"
        if modality != "CT":
            others[modality] += 1
            continue
        slices = _slices(file, header, names(file))
        if slices:
            series[str(header.SeriesInstanceUID)].extend(slices)
        else:
            unplaced += 1
    if not series:
        raise InvalidScanError(source, _why_no_ct(files, strangers, unplaced, others))
    if others:
        found = ", ".join(f"{count} {modality}" for modality, count in sorted(others.items()))
        notes.append(f"DICOM files of other modalities were ignored: {found}")
    if unplaced:
        notes.append(f"{unplaced} CT files without a place in the patient (localizers, screens) were ignored")
    if strangers:
        notes.append(f"{strangers} files that are not DICOM were ignored")
    return dict(series)


def _walk(folder: Path, source: Path) -> list[Path]:
    def fail(error: OSError) -> None:
        raise InvalidScanError(source, f"cannot be listed ({error.strerror})") from error

    return [
        Path(root, name)
        for root, folders, names in os.walk(folder, onerror=fail)
        if Path(root).name != "__MACOSX"
        for name in names
        if not name.startswith(".") and name.upper() != "DICOMDIR"
    ]


def _why_no_ct(files: Sequence[Path], strangers: int, unplaced: int, others: dict[str, int]) -> str:
    if strangers == len(files):
        return f"no DICOM file among its {len(files)} files (first: {files[0].name})"
    if unplaced:
        return f"no CT slice with a place in the patient; {unplaced} CT files are localizers or screens"
    return f"no CT in it; modalities: {', '.join(sorted(others)) or 'none'}"


def _read_header(file: Path, name: Path) -> Dataset | None:
    """The header, or None for a file that does not claim to be DICOM."""
    try:
        with warnings.catch_warnings():
            # Values that break a rule of their type are common and harmless; those used here are checked.
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            _drop_unreadable(header)
    except InvalidDicomError as error:
        if file.suffix.lower() in (".dcm", ".ima"):
            raise InvalidScanError(name, "truncated or corrupt DICOM (no DICOM header)") from error
        return None
    except OSError as error:
        raise InvalidScanError(name, f"cannot be read ({error.strerror or error})") from error
    # What a damaged header makes pydicom raise depends on where the damage is.
    except Exception as error:
        raise InvalidScanError(name, f"truncated or corrupt DICOM ({error})") from error
    if header.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
        return None
    if "SeriesInstanceUID" not in header:
        raise InvalidScanError(name, "truncated or corrupt DICOM (no SeriesInstanceUID)")
    return header


def _drop_unreadable(header: Dataset) -> None:
    """Take values that cannot be converted for absent; pydicom converts each when it is first asked for."""
    for tag in list(header.keys()):
        try:
            element = header[tag]
            readable = element.VR not in ("DS", "IS") or not isinstance(element.value, str)
        # What pydicom raises depends on the type of the value.
        except Exception:
            readable = False
        if not readable:
            del header[tag]


def _slices(file: Path, header: Dataset, name: Path) -> list[_Slice]:
    """The file's frames; none for a localizer or a picture without a place in the patient."""
    if "LOCALIZER" in (header.get("ImageType") or ()) or header.get("SamplesPerPixel", 1) != 1:
        return []
    frames = header.get("PerFrameFunctionalGroupsSequence") or [header]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    result = []
    rescales = set()
    for index, frame in enumerate(frames):
        groups = (frame, shared, header)
        slope = _numbers(groups, "PixelValueTransformationSequence", "RescaleSlope", ())
        intercept = _numbers(groups, "PixelValueTransformationSequence", "RescaleIntercept", ())
        rescales.add(f"{slope} x + {intercept}")
        position = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", (3,))
        orientation = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", (6,))
        spacing = _numbers(groups, "PixelMeasuresSequence", "PixelSpacing", (2,))
        size = (header.get("Rows"), header.get("Columns"))
        if position is None or orientation is None or spacing is None or None in size:
            if header.get("SOPClassUID") not in _CT_CLASSES:
                return []
            raise InvalidScanError(
                name, "truncated or corrupt DICOM (position, orientation, pixel spacing or size is missing)"
            )
        row, column = orientation[:3], orientation[3:]
        lengths = np.linalg.norm(row), np.linalg.norm(column)
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > 0.01:
            raise InvalidScanError(name, f"orientation {orientation.tolist()} is not two unit vectors")
        if spacing.min() <= 0:
            raise InvalidScanError(name, f"absurd pixel spacing {spacing.tolist()} mm")
        row = row / lengths[0]
        column = column - (column @ row) * row
        result.append(
            _Slice(
                file=file,
                frame=index,
                header=header,
                size=size,
                position=position,
                row=row,
                column=column / np.linalg.norm(column),
                spacing=(float(spacing[0]), float(spacing[1])),
            )
        )
    if len(rescales) > 1:
        # GDCM would apply the first frame's to all of them.
        raise InvalidScanError(name, f"frames of different rescale: {', '.join(sorted(rescales)[:3])}")
    return result


def _numbers(
    groups: Sequence[Dataset], sequence: str, keyword: str, shape: tuple[int, ...]
) -> np.ndarray | None:
    """A value of a frame: from its own functional groups, the shared ones, or the plain header."""
    for group in groups:
        holder = (group.get(sequence) or [group])[0]
        try:
            value = np.asarray(holder.get(keyword), dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if value.shape == shape and np.isfinite(value).all():
            return value
    return None


def _largest_axial(series: dict[str, list[_Slice]], source: Path, notes: list[str]) -> str:
    """The UID of the series to read; the others go into the notes."""

    def axial(slices: list[_Slice]) -> bool:
        return bool(np.argmax(np.abs(np.mean([s.normal for s in slices], axis=0))) == 2)

    def rank(uid: str) -> tuple[bool, int, str]:
        slices = series[uid]
        return not axial(slices), -sum(s.size[0] * s.size[1] for s in slices), uid

    def describe(uid: str) -> str:
        slices, header = series[uid], slices_header(uid)
        details = [f"{len(slices)} slices", "axial" if axial(slices) else "not axial"]
        if header.get("SliceThickness"):
            details.append(f"{header['SliceThickness'].value} mm")
        if header.get("ConvolutionKernel"):
            details.append(f"kernel {_plain(header['ConvolutionKernel'].value)}")
        return f"{uid} ({', '.join(details)})"

    def slices_header(uid: str) -> Dataset:
        return series[uid][0].header

    ranked = sorted(series, key=rank)
    chosen = ranked[0]
    if len(series[chosen]) < 2:
        raise InvalidScanError(
            source, f"a 2-D image: its largest CT series, {chosen}, has one slice; give the series' folder"
        )
    if not axial(series[chosen]):
        notes.append("no series is axial; the largest was read and its axes put in axial order")
    if len(ranked) > 1:
        others = "; ".join(describe(uid) for uid in ranked[1:])
        notes.append(f"the largest axial CT of {len(ranked)} series was read; not read: {others}")
    return chosen


def _check_alike(slices: Sequence[_Slice], names: _Names) -> None:
    first = slices[0]
    for other in slices[1:]:
        turn = max(np.abs(other.row - first.row).max(), np.abs(other.column - first.column).max())
        if turn > _SAME_DIRECTION:
            what, a, b = "orientations", _rounded(first.row, first.column), _rounded(other.row, other.column)
        elif other.size != first.size:
            what, a, b = "image sizes", str(first.size), str(other.size)
        elif not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            what, a, b = "pixel spacings", str(first.spacing), str(other.spacing)
        else:
            continue
        raise InvalidScanError(
            names(other.file), f"mixed {what} in one series: {b} here, {a} in {names(first.file).name}"
        )


def _rounded(*vectors: np.ndarray) -> str:
    return str([round(float(v), 4) + 0.0 for v in np.concatenate(vectors)])


def _stack(
    slices: Sequence[_Slice], names: _Names, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, list[_Slice]]:
    """Pixels ``[n, rows, columns]`` by ascending position along the normal, these positions, the slices kept.

    Positions are mm along the normal, ``[n]``. Slices at one position must be equal, and one is kept.
    """
    normal = slices[0].normal
    heights = np.array([s.position @ normal for s in slices])
    order = np.argsort(heights, kind="stable")
    place = np.empty(len(slices), dtype=int)
    place[order] = np.cumsum(np.diff(heights[order], prepend=heights[order[0]]) > _SAME_POSITION_MM)
    count = int(place.max()) + 1

    kept: list[_Slice | None] = [None] * count
    by_file: dict[Path, list[int]] = defaultdict(list)
    for index, item in enumerate(slices):
        by_file[item.file].append(index)
    rows, columns = slices[0].size
    voxels = np.empty((count, rows, columns), dtype=np.int16)
    for file, members in by_file.items():
        frames = to_int16(read_dicom_pixels(file, names(file)), names(file))
        for index in members:
            item, target = slices[index], int(place[index])
            if frames.shape[1:] != item.size or item.frame >= len(frames):
                raise InvalidScanError(
                    names(file), f"pixels of shape {frames.shape}, the header says {item.size}"
                )
            pixels = frames[item.frame]
            twin = kept[target]
            if twin is None:
                kept[target] = item
                voxels[target] = pixels
                continue
            shift = np.abs(twin.position - item.position).max()
            if shift > min(item.spacing) / 2 or not np.array_equal(voxels[target], pixels):
                raise InvalidScanError(
                    names(file),
                    f"conflicts with {names(twin.file).name}: different slices at the same position, "
                    f"{heights[index]:.2f} mm along the normal",
                )
    if count < 2:
        raise InvalidScanError(names.source, f"a 2-D image: all {len(slices)} slices are at one position")
    if count < len(slices):
        notes.append(f"{len(slices) - count} duplicate slices with identical pixels were dropped")
    unique = [s for s in kept if s is not None]
    return voxels, np.array([s.position @ normal for s in unique]), unique


def _replace_declared_padding(voxels: np.ndarray, slices: Sequence[_Slice], notes: list[str]) -> np.ndarray:
    """Set PixelPaddingValue to -1024 where it cannot be tissue; what lies below -1024 goes by itself."""
    header = slices[0].header
    try:
        stored = int(header.get("PixelPaddingValue"))
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    except (TypeError, ValueError):
        return voxels
    if header.get("PixelRepresentation") == 1 and stored > np.iinfo(np.int16).max:
        stored -= 1 << 16  # a negative value written with the unsigned type
    padding = round(stored * slope + intercept)
    if padding <= AIR_HU:
        return voxels
    share = np.count_nonzero(voxels == padding) / voxels.size
    if not share:
        return voxels
    if _TISSUE_HU[0] < padding < _TISSUE_HU[1]:
        notes.append(f"the declared padding value, {padding} HU, also occurs in tissue and was left as it is")
        return voxels
    voxels[voxels == padding] = AIR_HU
    notes.append(f"{100 * share:.2g} % of the voxels held the padding value {padding} HU; set to {AIR_HU}")
    return voxels


def _straighten(
    voxels: np.ndarray, origins: np.ndarray, positions: np.ndarray, first: _Slice, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Move slices in their plane until their corners lie on one line along the normal.

    Args:
        voxels: ``[n, rows, columns]`` int16.
        origins: ``[n, 3]`` LPS mm of each slice's first pixel.
        positions: ``[n]`` mm of each slice along the normal.

    Returns:
        The voxels, on a canvas that holds every slice, and the new origin of the first slice.
    """
    spacing = np.asarray(first.spacing)
    offset = origins - origins[0]
    shift = np.stack([offset @ first.column, offset @ first.row], axis=1) / spacing  # [n, 2] pixels
    largest = np.abs(shift).max()
    if largest <= 0.5:
        return voxels, origins[0]

    travel = positions - positions[0]
    slope = (travel @ (shift * spacing)) / (travel @ travel)  # [2] mm a mm
    residual = np.abs(shift * spacing - travel[:, None] * slope).max()
    if residual <= spacing.max():
        angle = np.degrees(np.arctan(np.linalg.norm(slope)))
        cause = f"gantry tilt: slices are stacked at {angle:.1f} degrees to their normal"
    else:
        cause = "slices are displaced in their plane"
    notes.append(
        f"{cause} (up to {largest * spacing.max():.0f} mm); they were moved onto a rectangular grid by "
        "linear interpolation"
    )
    low, high = np.floor(shift.min(axis=0)), np.ceil(shift.max(axis=0))
    canvas = np.asarray(voxels.shape[1:]) + (high - low).astype(int)
    moved = np.full((len(voxels), *canvas), AIR_HU, dtype=np.int16)
    for target, plane, by in zip(moved, voxels, shift - low, strict=True):
        whole = np.floor(by).astype(int)
        padded = np.pad(plane, ((0, 1), (0, 1)), constant_values=AIR_HU)
        part = ndimage.shift(padded.astype(np.float32), by - whole, order=1, mode="constant", cval=AIR_HU)
        rows, columns = np.minimum(part.shape, canvas - whole)
        target[whole[0] : whole[0] + rows, whole[1] : whole[1] + columns] = np.rint(part[:rows, :columns])
    origin = origins[0] + low[0] * spacing[0] * first.column + low[1] * spacing[1] * first.row
    return moved, origin


def _regular(
    voxels: np.ndarray, positions: np.ndarray, source: Path, notes: list[str]
) -> tuple[np.ndarray, float]:
    """Voxels at one spacing along the normal, and that spacing in mm.

    Raises:
        InvalidScanError: slices are missing or unevenly spaced, and some neighbours are more than
            ``MAX_GAP_MM`` apart.
    """
    gaps = np.diff(positions)
    median = float(np.median(gaps))
    steps = np.concatenate([[0], np.cumsum(np.maximum(1, np.rint(gaps / median)))])
    spacing, start = np.polyfit(steps, positions, 1).round(6)  # a nanometre; headers carry no more
    on_grid = np.abs(positions - start - spacing * steps).max() <= _REGULAR * spacing
    missing = int(steps[-1]) + 1 - len(positions)
    if on_grid and not missing:
        return voxels, float(spacing)

    widest = int(np.argmax(gaps))
    below, above = positions[widest : widest + 2]
    where = f"{above - below:g} mm between the slices at {below:g} and {above:g} mm"
    what = f"{missing} slices are missing" if on_grid else "slices are unevenly spaced"
    if gaps[widest] > MAX_GAP_MM:
        raise InvalidScanError(source, f"{what}: {where}; at most {MAX_GAP_MM:g} mm are interpolated")
    if on_grid:
        grid, source_at = np.arange(steps[-1] + 1), steps
    else:
        spacing = median
        grid = positions[0] + spacing * np.arange(int((positions[-1] - positions[0]) / spacing + 1e-6) + 1)
        source_at = positions
    at = np.interp(grid, source_at, np.arange(len(positions)))
    result = np.empty((len(grid), *voxels.shape[1:]), dtype=np.int16)
    for target, place in zip(result, at, strict=True):
        index = min(int(place), len(voxels) - 2)
        weight = np.float32(place - index)
        target[...] = np.rint(voxels[index] * (1 - weight) + voxels[index + 1] * weight)
    done = "filled" if on_grid else f"resampled to {spacing:g} mm"
    notes.append(f"{what}; {done} by linear interpolation (widest gap: {where})")
    return result, float(spacing)


def _values(header: Dataset, keywords: dict[str, str]) -> dict[str, Any]:
    """Those of the header's values that are there and not empty, as plain numbers and strings."""
    values = {name: _plain(header.get(keyword)) for name, keyword in keywords.items()}
    return {name: value for name, value in values.items() if value not in (None, "")}


def _plain(value: Any) -> int | float | str | None:
    if value is None:
        return None
    if isinstance(value, MultiValue):
        return "/".join(str(v) for v in value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return str(value).strip()
