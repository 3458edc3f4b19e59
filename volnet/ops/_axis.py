"""The axis that an operator works along."""

from __future__ import annotations

from torch import Tensor

from volnet.ops._arguments import integer

__all__ = ["checked_axis"]


def checked_axis(op: str, x: Tensor, dim: int) -> int:
    """``dim`` counted from the front; a number has one axis, as in torch."""
    axis, rank = integer(op, "dim", dim), max(x.dim(), 1)
    if not -rank <= axis < rank:
        raise IndexError(f"{op}: dim must be in [{-rank}, {rank - 1}], got {axis}")
    return axis % rank
