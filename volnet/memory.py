"""The pool that results and scratch come from: 2 MiB-aligned blocks on huge pages, kept when they are freed.

A fresh tensor of 100 MB costs tens of milliseconds in page faults before its first useful byte. The pool pays
them once.

Convolutions keep their weights in the form their kernels want, for as long as the weights do not change:
their bits are looked at in every call, so any way of changing them is noticed. These blocks belong to the
pool too.
"""

from __future__ import annotations

from volnet._extension import _C

__all__ = ["set_limit", "set_packed_weights_limit", "stats", "trim"]


def stats() -> dict[str, int]:
    """Bytes ``in_use``, ``cached`` (free, but kept), ``peak`` in use, the ``limit`` (0: none), and how many
    ``allocations`` there were and how many of them had to ask the operating system (``from_system``). Of the
    bytes in use, ``packed_weights`` are weights that convolutions keep; ``packed_weights_reused`` counts the
    calls that found theirs.

    >>> sorted(stats())
    ['allocations', 'cached', 'from_system', 'in_use', 'limit', 'packed_weights', ..., 'peak']
    """
    return _C.memory_stats()


def trim() -> int:
    """Gives all free blocks and the packed weights back to the operating system and returns how many bytes
    they had."""
    return _C.memory_trim()


def set_limit(limit: int | None) -> None:
    """Lets the pool hold no more than ``limit`` bytes, in use and cached together; ``None`` lifts the limit.

    An operator that would need more raises ``RuntimeError`` naming its shape, the bytes asked for and those
    in use.

    Raises:
        ValueError: ``limit`` is not positive.
        RuntimeError: more than ``limit`` is in use already.
    """
    if limit is not None and limit <= 0:
        raise ValueError(f"the pool's limit must be positive, got {limit}")
    _C.memory_set_limit(limit or 0)


def set_packed_weights_limit(limit: int) -> None:
    """Lets convolutions keep no more than ``limit`` bytes of packed weights, 1 GiB unless set; 0 keeps none.

    Those that were used least recently go first. A layer whose packed weights are larger packs them in every
    call.

    Raises:
        ValueError: ``limit`` is negative.
    """
    if limit < 0:
        raise ValueError(f"the limit of packed weights must not be negative, got {limit}")
    _C.memory_set_packed_weights_limit(limit)
