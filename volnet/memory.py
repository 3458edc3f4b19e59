"""The pool that results and scratch come from: memory on huge pages, kept when it is freed.

A fresh tensor of 100 MB costs tens of milliseconds in page faults before its first useful byte. The pool pays
them once: what one tensor has left, the next one takes, and neighbours that are free join, so that memory of
one size serves another. A block is at most 12.5 % and 128 bytes larger than what was asked for. Where the
administrator has reserved huge pages (``vm.nr_hugepages``), the pool takes those first.

On a machine of several NUMA nodes a page belongs to the node of the thread that writes to it first, which is
the one that computes it; a block that is used again stays where it is. Bind a process to a node (``numactl``)
to have all of its memory there.

Tensors from the pool are like any others: they can be saved, shared with other processes, handed to NumPy,
and freed on any thread, after ``fork``, and while the interpreter exits. As with a tensor over a NumPy array,
only ``resize_`` to more elements than there is memory for raises; clone it first.

Convolutions keep their weights in the form their kernels want, for as long as the weights do not change:
their bits are looked at in every call, so any way of changing them is noticed. These blocks belong to the
pool too.
"""

from __future__ import annotations

from typing import Any

from volnet._errors import OutOfMemoryError
from volnet._extension import _C

__all__ = ["reset_peak", "retain", "set_limit", "set_packed_weights_limit", "stats", "trim"]


def stats() -> dict[str, Any]:
    """Bytes ``in_use``, ``cached`` (free, but kept), ``peak`` in use, the ``limit`` (0: none), and how many
    ``allocations`` there were and how many of them had to ask the operating system (``from_system``).
    ``operators`` has what each of them has ``in_use``, its ``peak`` and its ``allocations``. Of the bytes in
    use, ``packed_weights`` are weights that convolutions keep; ``packed_weights_reused`` counts the calls
    that found theirs.

    >>> sorted(stats())
    ['allocations', 'cached', 'from_system', 'in_use', 'limit', 'operators', 'packed_weights', ..., 'peak']
    """
    return _C.memory_stats()


def reset_peak() -> None:
    """Lets ``peak`` of :func:`stats`, in all and of each operator, begin anew with what is in use now."""
    _C.memory_reset_peak()


def trim() -> int:
    """Gives all free blocks and the packed weights back to the operating system and returns how many bytes
    they had."""
    return _C.memory_trim()


def retain() -> bool:
    """Makes the C library keep memory that is freed, for the rest of the process, so that torch's own CPU
    tensors stop paying for page faults as well. Call it once, early. Returns whether it could: only glibc
    can.

    torch gives a large tensor back to the system when it is freed, and takes a new one with all its page
    faults; ``benchmarks/allocator.py`` measures what they cost. What this costs: the process
    does not shrink again, memory that small allocations have fragmented may not be enough for a large one
    where a fresh mapping would be, all threads share one heap, and a process that shows its address space
    shows as much as the machine has memory. A ``LD_PRELOAD`` of jemalloc or tcmalloc makes it void."""
    return _C.memory_retain()


def set_limit(limit: int | None) -> None:
    """Lets the pool hold no more than ``limit`` bytes, in use and cached together; ``None`` lifts the limit.

    An operator that would need more raises :class:`volnet.OutOfMemoryError`, naming its shape, the bytes
    asked for and those in use.

    Raises:
        ValueError: ``limit`` is not positive.
        OutOfMemoryError: more than ``limit`` is in use already.
    """
    if limit is not None and limit <= 0:
        raise ValueError(f"the pool's limit must be positive, got {limit}")
    try:
        _C.memory_set_limit(limit or 0)
    except RuntimeError as error:
        raise OutOfMemoryError(str(error)) from None


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
