"""Measured plans: which algorithm a convolution runs, decided by timing it.

Every convolution has several candidates: direct kernels, and Winograd tiles. A cost model chooses among them.
With ``measure(True)``, or the environment variable ``VOLNET_PLANS=measure``, the first call of each shape
times the best few candidates instead, and the winner is remembered: in this process, and in ``plans.json`` in
the user's cache directory, from which later processes read it without measuring again. ``VOLNET_PLANS=off``
leaves the file alone.

A choice holds for the volnet version, the CPU model, the instruction set, precision, dtype and sizes it was
measured with, and for any number of threads: candidates round differently, and a result must not depend on
the number of threads. A file that is corrupt, or of another format, is ignored; one that cannot be written is
left as it is. Neither is ever an error in a call.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from volnet._extension import _C

__all__ = ["file", "forget", "measure", "save"]

FORMAT = 1  # of the file; another number belongs to another volnet, which may make more of it


def measure(on: bool = True) -> None:
    """Times the candidates of every shape that has no measured choice yet, in its first call; ``False`` ends
    that and writes the file.

    The first call of a shape takes a few tens of times as long as the next.

    >>> measure(True)
    >>> measure(False)
    """
    _C.plans_measure(on)
    if not on:
        save()


def file() -> Path:
    """Where measured choices are kept: ``volnet/plans.json`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "volnet" / "plans.json"


def forget() -> None:
    """Drops the choices of this process, measured or read; the file stays."""
    _C.plans_forget()


def save() -> None:
    """Adds what this process has measured to the file. Happens by itself when the process ends.

    Warns:
        UserWarning: the file cannot be written.
    """
    error = _write()
    if error is not None:
        warnings.warn(f"measured plans are not kept: {error}", stacklevel=2)


def _machine() -> str:
    return f"{_C.cpu_brand()}, volnet {version('volnet')}"


def _read() -> dict[str, Any] | None:
    """The file's content, empty where there is none or it is corrupt; None where it is of another format."""
    try:
        content = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {"format": FORMAT, "machines": {}}
    if not isinstance(content, dict) or not isinstance(content.get("machines"), dict):
        return {"format": FORMAT, "machines": {}}
    return content if content.get("format") == FORMAT else None


def _choices(content: dict[str, Any] | None) -> dict[str, str]:
    """Those of this machine."""
    entries = content["machines"].get(_machine()) if content is not None else None
    if not isinstance(entries, dict):
        return {}
    return {key: name for key, name in entries.items() if isinstance(key, str) and isinstance(name, str)}


def _load() -> None:
    _C.plans_remember(_choices(_read()))


def _write() -> OSError | None:
    measured = _C.plans_measured()
    if not measured or os.environ.get("VOLNET_PLANS") == "off":
        return None
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        with _alone():
            content = _read()
            if content is None or _choices(content).items() >= measured.items():
                return None
            content["machines"][_machine()] = _choices(content) | measured
            descriptor, temporary = tempfile.mkstemp(dir=file().parent, prefix="plans-")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    json.dump(content, stream, indent=1)
                os.replace(temporary, file())
            except OSError:
                os.unlink(temporary)
                raise
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One process at a time merges; readers need no lock, because the file is replaced as a whole."""
    with open(file().with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if os.environ.get("VOLNET_PLANS") != "off":
    _load()
if os.environ.get("VOLNET_PLANS") == "measure":
    _C.plans_measure(True)
atexit.register(_write)
