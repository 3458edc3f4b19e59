"""What becomes of a network's result while it is computed."""

from __future__ import annotations

from torch import Tensor

from volnet import ops

__all__ = ["REDUCTIONS", "finish"]

REDUCTIONS = (None, "argmax", "softmax")


def finish(y: Tensor, reduce: str | None) -> Tensor:
    """A node of its own in the graph, by which the result is known. ``"argmax"`` leaves one channel."""
    if reduce == "argmax":
        return ops.argmax(y, 1, keepdim=True)
    return y if reduce is None else ops.softmax(y, 1)
