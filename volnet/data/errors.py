"""What reading a scan raises when the scan is not one."""

from __future__ import annotations

from os import PathLike


class InvalidScanError(ValueError):
    """The input cannot be read as one CT volume.

    Args:
        path: the file or folder at fault, as the user would recognise it.
        reason: what is wrong with it, with the value found.

    The message is ``"path: reason"``; both stay available as attributes.

    >>> str(InvalidScanError("scan.nii.gz", "4-D image of size (64, 64, 20, 5)"))
    'scan.nii.gz: 4-D image of size (64, 64, 20, 5)'
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
