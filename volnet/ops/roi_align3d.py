"""Averages of regions of a volume at sub-voxel accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import (
    batched,
    check_at_least,
    check_bool,
    empty_volume,
    integer,
    memory_format_of,
    triple,
)
from volnet.ops._regions import regions

__all__ = ["roi_align3d"]


@names_shortage
def roi_align3d(
    x: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
) -> Tensor:
    """The content of each box on a fixed grid of bins, as ``torchvision.ops.roi_align`` defines it in 2-D.

    A bin is the average of ``sampling_ratio`` trilinear samples on each axis. A sample more than one voxel
    before the volume, or after its end, is 0; one less far out takes the value of the border. The gradient of
    ``x`` is added in the order of the boxes and so is the same for any number of threads; boxes have none.

    Args:
        x: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        boxes: (d1, h1, w1, d2, h2, w2) in voxels of the scan, half-open; a list of N tensors [K_i, 6] or one
            [K, 7] with the index in the batch first; [K, 6] for an unbatched ``x``. Any of the dtypes of
            ``x``, but bfloat16 holds no index above 256.
        output_size: bins (d, h, w), or one number for all axes.
        spatial_scale: voxels of ``x`` for a voxel of the boxes, such as 0.25 for a map of stride 4.
        sampling_ratio: samples in a bin on each axis; as many as the bin has voxels, rounded up, where it is
            not positive.
        aligned: voxel centres are at half numbers, as half-open boxes mean it. Without, they are at whole
            numbers, and a box has at least one voxel, as in the first version of the method.

    Returns:
        [K, C, *output_size] in the dtype and layout of ``x``.

    Raises:
        RuntimeError: wrong shapes, dtypes or devices, an output size below 1, a scale that is not positive; a
            box that is inverted, NaN or infinite, or an image that is not in the batch: the message names the
            row.

    After He et al., Mask R-CNN, 2017 (https://arxiv.org/abs/1703.06870).

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> roi_align3d(x, [torch.tensor([[0.0, 0, 0, 4, 4, 4]])], output_size=2)[0, 0, 0]
    tensor([[10.5000, 12.5000],
            [18.5000, 20.5000]])
    """
    op = "roi_align3d"
    volume, _ = batched(op, "x", x)
    rows, images = regions(op, x, boxes)
    size = triple(op, "output_size", output_size)
    check_at_least(op, "output_size", size, 1)
    if not 0 < spatial_scale < float("inf"):
        raise RuntimeError(f"{op}: spatial_scale must be positive, got {spatial_scale}")
    ratio = integer(op, "sampling_ratio", sampling_ratio)
    check_bool(op, "aligned", aligned)
    result: Tensor = torch.ops.volnet.roi_align3d(volume, rows, images, size, spatial_scale, ratio, aligned)
    return result


@torch.library.register_fake("volnet::roi_align3d")
def _(
    x: Tensor,
    boxes: Tensor,
    images: Tensor,
    output_size: list[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return empty_volume(x, [boxes.shape[0], x.shape[1], *output_size], memory_format_of(x))


@torch.library.register_fake("volnet::_roi_align3d_backward")
def _(
    grad: Tensor,
    boxes: Tensor,
    images: Tensor,
    x_size: list[int],
    channels_last: bool,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return empty_volume(grad, x_size, torch.channels_last_3d if channels_last else torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, boxes, images, _, *ctx.arguments = inputs
    ctx.save_for_backward(boxes, images)
    ctx.x_size = list(x.shape)
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    boxes, images = ctx.saved_tensors
    grad_x = torch.ops.volnet._roi_align3d_backward(
        grad, boxes, images, ctx.x_size, ctx.channels_last, *ctx.arguments
    )
    return grad_x, None, None, None, None, None, None


torch.library.register_autograd("volnet::roi_align3d", _backward, setup_context=_setup)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, boxes, images, _, _, *ctx.arguments = inputs
    ctx.save_for_backward(boxes, images)
    ctx.output_size = list(grad.shape[2:])


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The operator is linear in x: the gradient of its transpose is the operator itself."""
    boxes, images = ctx.saved_tensors
    y = torch.ops.volnet.roi_align3d(grad, boxes, images, ctx.output_size, *ctx.arguments)
    return y, None, None, None, None, None, None, None


torch.library.register_autograd(
    "volnet::_roi_align3d_backward", _double_backward, setup_context=_setup_backward
)
