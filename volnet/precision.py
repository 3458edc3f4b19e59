"""How much float32 accuracy convolutions may give up for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from volnet._extension import _C

__all__ = ["check_precision", "get_precision", "of_thread", "set_precision"]

_LEVELS = ("highest", "high", "medium")


def set_precision(level: str) -> None:
    """Sets the precision of float32 convolutions in this process, after
    :func:`torch.set_float32_matmul_precision`.

    Args:
        level: ``"highest"``: direct convolution in float32. ``"high"``, the default: Winograd convolution in
            float32 where it is less work, and on a CPU with AMX every float32 number as the sum of two
            bfloat16 numbers; against float64 a layer's relative L2 error is at most 2e-5 and no value is off
            by more than 1e-4 of the largest. ``"medium"``: on a CPU with AMX numbers are rounded to bfloat16
            (relative error about 2e-3) and summed in float32; elsewhere as ``"high"``.

    Raises:
        ValueError: ``level`` is another string.

    >>> set_precision("highest")
    >>> get_precision()
    'highest'
    >>> set_precision("high")
    """
    _C.set_precision(check_precision(level))


@contextmanager
def of_thread(level: int | None) -> Iterator[None]:
    """What this thread convolves with in the meantime, by its number; None: as the process does."""
    before = _C.thread_precision()
    _C.set_thread_precision(level)
    try:
        yield
    finally:
        _C.set_thread_precision(before)


def check_precision(level: str) -> int:
    """Its number.

    Raises:
        ValueError: it is no precision.
    """
    if level not in _LEVELS:
        raise ValueError(f"precision must be one of {', '.join(_LEVELS)}, got {level!r}")
    return _LEVELS.index(level)


def get_precision() -> str:
    """The precision in force in this thread: ``"highest"``, ``"high"`` or ``"medium"``."""
    return _LEVELS[_C.precision()]
