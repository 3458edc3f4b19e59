"""Maxima of regions of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_at_least, empty_volume, memory_format_of, triple
from volnet.ops._regions import regions

__all__ = ["roi_pool3d"]


@names_shortage
def roi_pool3d(
    x: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
) -> Tensor:
    """The largest voxel in each bin of each box, as ``torchvision.ops.roi_pool`` defines it in 2-D.

    The scaled corners of a box are rounded to whole voxels, halves away from zero, and the upper one belongs
    to the box as well: it has at least one voxel. Bins begin and end at whole voxels, and neighbours may
    share some. A bin without voxels, outside the volume, is 0. NaN is the largest value; among equals the
    gradient goes to the first in scan order (d, h, w). It is the same for any number of threads; boxes have
    none.

    Args:
        x: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        boxes: (d1, h1, w1, d2, h2, w2) in voxels of the scan; a list of N tensors [K_i, 6] or one [K, 7] with
            the index in the batch first; [K, 6] for an unbatched ``x``. Any of the dtypes of ``x``, but
            bfloat16 holds no index above 256.
        output_size: bins (d, h, w), or one number for all axes.
        spatial_scale: voxels of ``x`` for a voxel of the boxes, such as 0.25 for a map of stride 4.

    Returns:
        [K, C, *output_size] in the dtype and layout of ``x``.

    Raises:
        RuntimeError: wrong shapes, dtypes or devices, an output size below 1, a scale that is not positive; a
            box that is inverted, NaN or infinite, or an image that is not in the batch: the message names the
            row.

    After Girshick, Fast R-CNN, 2015 (https://arxiv.org/abs/1504.08083).

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> roi_pool3d(x, [torch.tensor([[0.0, 0, 0, 3, 3, 3]])], output_size=2)[0, 0, 0]
    tensor([[21., 23.],
            [29., 31.]])
    """
    op = "roi_pool3d"
    volume, _ = batched(op, "x", x)
    rows, images = regions(op, x, boxes)
    size = triple(op, "output_size", output_size)
    check_at_least(op, "output_size", size, 1)
    if not 0 < spatial_scale < float("inf"):
        raise RuntimeError(f"{op}: spatial_scale must be positive, got {spatial_scale}")
    result: Tensor = torch.ops.volnet.roi_pool3d(volume, rows, images, size, spatial_scale)[0]
    return result


@torch.library.register_fake("volnet::roi_pool3d")
def _(
    x: Tensor, boxes: Tensor, images: Tensor, output_size: list[int], spatial_scale: float
) -> tuple[Tensor, Tensor]:
    sizes, layout = [boxes.shape[0], x.shape[1], *output_size], memory_format_of(x)
    return empty_volume(x, sizes, layout), empty_volume(x, sizes, layout, dtype=torch.int64)


@torch.library.register_fake("volnet::_roi_pool3d_backward")
def _(
    grad: Tensor,
    argmax: Tensor,
    boxes: Tensor,
    images: Tensor,
    x_size: list[int],
    channels_last: bool,
    spatial_scale: float,
) -> Tensor:
    return empty_volume(grad, x_size, torch.channels_last_3d if channels_last else torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, boxes, images, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(output[1], boxes, images)
    ctx.x_size = list(x.shape)
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d
    ctx.set_materialize_grads(False)  # or the argmax would get a gradient of zeros


@names_shortage
def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grad_x = None
    if grad is not None:
        argmax, boxes, images = ctx.saved_tensors
        grad_x = torch.ops.volnet._roi_pool3d_backward(
            grad, argmax, boxes, images, ctx.x_size, ctx.channels_last, ctx.spatial_scale
        )
    return grad_x, None, None, None, None


torch.library.register_autograd("volnet::roi_pool3d", _backward, setup_context=_setup)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, argmax, _, images, *_ = inputs
    ctx.save_for_backward(argmax, images)


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    argmax, images = ctx.saved_tensors
    picked = grad[images].flatten(2).gather(2, argmax.flatten(2).clamp(min=0)).reshape(argmax.shape)
    return picked * (argmax >= 0), None, None, None, None, None, None


torch.library.register_autograd(
    "volnet::_roi_pool3d_backward", _double_backward, setup_context=_setup_backward
)
