"""NIfTI voxels, with the checks that ITK leaves out.

ITK returns a cut-off or damaged ``.nii.gz`` without an error, the rest of the array filled with whatever was
in memory. Here the geometry is ITK's, and the voxels are decoded with the length and the checksum verified.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from volnet.data.errors import InvalidScanError
from volnet.data.geometry import Geometry
from volnet.data.itk import read_header

_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_HEADER = 348
_CHUNK = 1 << 20


def read_nifti(path: Path) -> tuple[np.ndarray, Geometry]:
    """Voxels ``[D, H, W]``, rescaled by the header's slope and intercept where it has any, and geometry.

    Raises:
        InvalidScanError: not a 3-D scalar NIfTI-1, or its voxels are cut off or damaged.
    """
    _, geometry = read_header(path, path)
    content = _inflated(path) if path.name.lower().endswith(".gz") else _plain(path)
    head = b""
    while len(head) < _HEADER and (chunk := next(content, b"")):
        head += chunk
    datatype, offset, slope, intercept, order = _header_fields(head, path)
    if datatype not in _DTYPES:
        raise InvalidScanError(path, f"NIfTI datatype {datatype} is not one number a voxel")

    voxels = np.empty(geometry.shape, dtype=order + _DTYPES[datatype])
    target = voxels.reshape(-1).view(np.uint8).data
    filled = _copy(head[offset:], target, 0)
    skip = max(0, offset - len(head))
    for chunk in content:
        filled = _copy(chunk[skip:], target, filled)
        skip = max(0, skip - len(chunk))
    if filled < len(target):
        raise InvalidScanError(path, f"truncated: {filled} of {len(target)} bytes of voxels are there")

    if order == ">":
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder("="))
    if not math.isfinite(slope) or slope == 0 or (slope == 1 and intercept == 0):
        return voxels, geometry
    return voxels * np.float32(slope) + np.float32(intercept), geometry


def _header_fields(head: bytes, path: Path) -> tuple[int, int, float, float, str]:
    """The type's code, where the voxels begin, slope, intercept, and the byte order."""
    for order in "<>":
        if len(head) >= _HEADER and struct.unpack_from(order + "i", head)[0] == _HEADER:
            (datatype,) = struct.unpack_from(order + "h", head, 70)
            offset, slope, intercept = struct.unpack_from(order + "3f", head, 108)
            return datatype, int(offset), slope, intercept, order
    raise InvalidScanError(path, "no NIfTI-1 header")


def _copy(chunk: bytes, target: memoryview, filled: int) -> int:
    count = min(len(chunk), len(target) - filled)
    target[filled : filled + count] = chunk[:count]
    return filled + count


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _inflated(path: Path) -> Iterator[bytes]:
    member = None
    try:
        for chunk in _plain(path):
            while chunk:
                if member is None:
                    member = zlib.decompressobj(wbits=31)
                yield member.decompress(chunk)
                chunk = member.unused_data
                if member.eof:
                    member = None
                    chunk = chunk.lstrip(b"\0")  # gzip allows padding after a member
    except zlib.error as error:
        raise InvalidScanError(path, f"damaged gzip data ({error})") from error
    if member is not None:
        raise InvalidScanError(path, "truncated: the gzip data end too early")
