"""Unpacking a .zip from an unknown hand."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from volnet.data.errors import InvalidScanError

_MAX_BYTES = 32 << 30  # an hour-long 4-D study stays below this; a decompression bomb does not
_MAX_FILES = 100_000


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The archive's files in a temporary folder, which is gone after the ``with`` block.

    Raises:
        InvalidScanError: not a zip, damaged or encrypted, a member that would leave the folder, or a content
            larger than 32 GiB, 100,000 files or the free space of the temporary folder's disk.
    """
    with tempfile.TemporaryDirectory(prefix="volnet-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(archive) as file:
                members = [m for m in file.infolist() if not m.is_dir()]
                _check(members, archive, shutil.disk_usage(folder).free)
                for member in members:
                    file.extract(member, folder)
        except InvalidScanError:
            raise
        # RuntimeError: a password is needed, or the compression method is unknown.
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
            raise InvalidScanError(archive, f"zip archive cannot be unpacked ({error})") from error
        yield folder


def _check(members: list[zipfile.ZipInfo], archive: Path, free: int) -> None:
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or any(part == ".." or part.endswith(":") for part in path.parts):
            raise InvalidScanError(archive, f"member {member.filename!r} would be written outside the folder")
    if len(members) > _MAX_FILES:
        raise InvalidScanError(archive, f"{len(members)} files in it; at most {_MAX_FILES} are unpacked")
    # zipfile never unpacks more of a member than its declared size.
    size = sum(member.file_size for member in members)
    limit = min(_MAX_BYTES, free)
    if size > limit:
        raise InvalidScanError(archive, f"{size} bytes when unpacked; at most {limit} can be")
