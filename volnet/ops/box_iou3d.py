"""Intersection over union of 3-D boxes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import check_boxes

__all__ = ["box_iou3d"]


@names_shortage
def box_iou3d(a: Tensor, b: Tensor) -> Tensor:
    """The IoU of every box of ``a`` with every box of ``b``.

    ``inter / (volume_a + volume_b - inter)``, and 0 for two boxes without volume. Computed in float32, or in
    float64 for float64 boxes. Differentiable once with respect to both; at a tie of two faces the gradient is
    shared, as torch's ``maximum`` and ``minimum`` do.

    Args:
        a: float32, float64 or bfloat16 [N, 6], (d1, h1, w1, d2, h2, w2) in voxels, half-open.
        b: [M, 6] in the same dtype.

    Returns:
        [N, M] in the dtype of the boxes, values from 0 to 1.

    Raises:
        RuntimeError: wrong shapes, dtypes or devices; a box that is inverted (d1 > d2, ...), NaN or infinite:
            the message names the row.

    >>> a = torch.tensor([[0.0, 0, 0, 2, 2, 2]])
    >>> b = torch.tensor([[0.0, 0, 0, 2, 2, 2], [0, 0, 1, 2, 2, 2], [5, 5, 5, 6, 6, 6]])
    >>> box_iou3d(a, b).tolist()
    [[1.0, 0.5, 0.0]]
    """
    check_boxes("box_iou3d", "a", a)
    check_boxes("box_iou3d", "b", b)
    if a.dtype != b.dtype:
        raise RuntimeError(f"box_iou3d: a and b must have one dtype, got {a.dtype} and {b.dtype}")
    result: Tensor = torch.ops.volnet.box_iou3d(a, b)
    return result


@torch.library.register_fake("volnet::box_iou3d")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


@torch.library.register_fake("volnet::_box_iou3d_backward")
def _(grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], 6)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad
    grad_a = torch.ops.volnet._box_iou3d_backward(grad, a, b) if need_a else None
    grad_b = torch.ops.volnet._box_iou3d_backward(grad.t(), b, a) if need_b else None
    return grad_a, grad_b


torch.library.register_autograd("volnet::box_iou3d", _backward, setup_context=_setup)
