"""Instruction sets: what this machine has, and which of them volnet uses.

The environment variable ``VOLNET_MAX_ISA`` (``scalar``, ``avx2``, ``avx512``, ``avx512_bf16`` or ``amx``)
caps the level for the whole process; :func:`limit` caps it for a block of code. A cap never forces a level
that the machine lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from volnet._extension import _C

__all__ = ["active", "available", "kernels", "limit"]


def available() -> tuple[str, ...]:
    """The levels this machine can run, lowest first.

    >>> available()[0]
    'scalar'
    """
    levels = _C.isa_levels()
    return tuple(levels[: levels.index(_C.isa_detected()) + 1])


def active() -> str:
    """The highest level in use on this thread."""
    return _C.isa_active()


@contextmanager
def limit(level: str) -> Iterator[None]:
    """Uses no level above ``level`` inside the block, on the calling thread.

    Raises:
        ValueError: ``level`` is not the name of a level.

    >>> with limit("scalar"):
    ...     active()
    'scalar'
    """
    previous = _C.isa_set_cap(level)
    try:
        yield
    finally:
        _C.isa_set_cap(previous)


def kernels() -> list[tuple[str, str, int]]:
    """Every compiled kernel as (name, level, calls in this process so far)."""
    return sorted(_C.kernels())
