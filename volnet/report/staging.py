"""Output folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class OutputFolderError(ValueError):
    """An output folder that cannot be used; the message names the folder and the reason."""


def check_output_folder(out: Path | str, *, overwrite: bool = False) -> None:
    """Raise `OutputFolderError` where `staged_folder(out)` would, without touching the disk.

    For asking before minutes of work rather than after.
    """
    folder = Path(out).resolve()
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise OutputFolderError(f"{out}: the output folder is not writable")
        if not overwrite and any(folder.iterdir()):
            raise OutputFolderError(
                f"{out}: the output folder is not empty (use --overwrite to replace results)"
            )
        return
    if os.path.lexists(folder):
        raise OutputFolderError(f"{out}: the output has to be a folder, and this is a file")
    parent = next(p for p in folder.parents if os.path.lexists(p))
    if not parent.is_dir():
        raise OutputFolderError(f"{out}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputFolderError(f"{out}: {parent} is not writable")


@contextmanager
def staged_folder(out: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a hidden folder next to `out` to write into; it becomes `out` when the block ends well.

    When the block raises, KeyboardInterrupt included, whatever was written and every folder made for it
    is removed and `out` is as before. With `overwrite=True` what the block wrote takes the place of
    files and folders of the same name, and anything else in `out` stays.

    Raises:
        OutputFolderError: `out` is a file, is not writable, or holds something and `overwrite` is false.

    Example:
        >>> with staged_folder("report") as folder:  # doctest: +SKIP
        ...     (folder / "findings.json").write_text("{}")
    """
    check_output_folder(out, overwrite=overwrite)
    target = Path(out).resolve()
    # A mounted folder (docker -v ...:/out) cannot be renamed over, nor can one whose parent is read-only.
    inside = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    made: list[Path] = []
    stage = (target if inside else target.parent) / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        for folder in reversed([p for p in stage.parents if not p.exists()]):
            folder.mkdir()
            made.append(folder)
        stage.mkdir()
        yield stage
        _publish(stage, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def _publish(stage: Path, target: Path, *, overwrite: bool) -> None:
    if stage.parent != target:
        if target.exists():
            shutil.copymode(target, stage)
        try:
            stage.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not overwrite:
                raise OutputFolderError(
                    f"{target}: the output folder was filled by something else"
                ) from error
    replaced = stage / f".replaced.{secrets.token_hex(4)}"
    entries = sorted(stage.iterdir())
    replaced.mkdir()
    done: list[Path] = []
    try:
        for entry in entries:
            place = target / entry.name
            if os.path.lexists(place):
                place.rename(replaced / entry.name)
            done.append(entry)
            entry.rename(place)
    except BaseException:
        for entry in done:
            place, old = target / entry.name, replaced / entry.name
            if os.path.lexists(place):
                place.rename(entry)
            if os.path.lexists(old):
                old.rename(place)
        raise
    shutil.rmtree(stage)
