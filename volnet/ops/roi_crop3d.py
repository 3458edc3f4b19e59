"""Boxes cut out of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import COPYABLE, check_pad_value, check_tensor
from volnet.ops._regions import regions

__all__ = ["roi_crop3d"]


@names_shortage
def roi_crop3d(x: Tensor, boxes: Tensor | Sequence[Tensor], pad_value: float = 0) -> list[Tensor]:
    """Cuts each box out of its volume; what lies outside the volume becomes ``pad_value``.

    The corners of a box are rounded to whole voxels, halves up, so that boxes of equal whole sides stay equal
    wherever they lie; a box of less than a voxel may become empty. The gradient of ``x`` is added in the
    order of the boxes and so is the same for any number of threads; boxes have none.

    Args:
        x: [N, C, D, H, W] or [C, D, H, W]; uint8, int8, int16, int32, int64, float32, float64 or bfloat16.
        boxes: (d1, h1, w1, d2, h2, w2) in voxels, half-open; a list of N tensors [K_i, 6] or one [K, 7] with
            the index in the batch first; [K, 6] for an unbatched ``x``. float32, float64 or bfloat16, whose
            whole numbers end at 2^24, 2^53 and 2^8.
        pad_value: a number that the dtype of ``x`` can hold; rounded for floating dtypes.

    Returns:
        A list of K tensors [C, d2 - d1, h2 - h1, w2 - w1] in the dtype of ``x``, also where all boxes have
        one size. The channels of a channels_last_3d ``x`` are innermost in them as well.

    Raises:
        RuntimeError: wrong shapes, dtypes or devices, a ``pad_value`` that the dtype cannot hold; a box that
            is inverted, NaN or infinite, or an image that is not in the batch: the message names the row.

    >>> x = torch.arange(27, dtype=torch.int16).reshape(1, 3, 3, 3)
    >>> roi_crop3d(x, torch.tensor([[1.0, 1, 1, 2, 3, 4]]), pad_value=-1)
    [tensor([[[[13, 14, -1],
              [16, 17, -1]]]], dtype=torch.int16)]
    """
    op = "roi_crop3d"
    check_tensor(op, "x", x, COPYABLE)
    if x.dim() not in (4, 5):
        raise RuntimeError(f"{op}: x must be [N, C, D, H, W] or [C, D, H, W], got shape {tuple(x.shape)}")
    rows, images = regions(op, x, boxes)
    check_pad_value(op, pad_value, x.dtype)
    volume = x if x.dim() == 5 else x.unsqueeze(0)
    if rows.shape[0] == 0:
        return []
    crops: list[Tensor] = torch.ops.volnet.roi_crop3d(
        volume, rows, images, float(pad_value), _channels_innermost(volume)
    )
    return crops


def _channels_innermost(x: Tensor) -> bool:
    """Whether the channels of a voxel lie next to each other, and the voxels of a row."""
    channels, width = x.shape[1], x.shape[4]
    return channels > 1 and x.stride(1) == 1 and (width == 1 or x.stride(4) == channels)


@torch.library.register_fake("volnet::roi_crop3d")
def _(x: Tensor, boxes: Tensor, images: Tensor, pad_value: float, channels_last: bool) -> list[Tensor]:
    context = torch.library.get_ctx()
    crops = []
    for _ in range(boxes.shape[0]):
        d, h, w = (context.new_dynamic_size() for _ in range(3))
        crop = x.new_empty([d, h, w, x.shape[1]] if channels_last else [x.shape[1], d, h, w])
        crops.append(crop.permute(3, 0, 1, 2) if channels_last else crop)
    return crops


@torch.library.register_fake("volnet::_roi_crop3d_backward")
def _(
    grads: Sequence[Tensor], boxes: Tensor, images: Tensor, x_size: list[int], channels_last: bool
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(x_size, dtype=grads[0].dtype, device=grads[0].device, memory_format=layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    x, boxes, images, _, ctx.channels_last = inputs
    ctx.save_for_backward(boxes, images)
    ctx.x_size = list(x.shape)


@names_shortage
def _backward(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    boxes, images = ctx.saved_tensors
    grad_x = torch.ops.volnet._roi_crop3d_backward(list(grads), boxes, images, ctx.x_size, ctx.channels_last)
    return grad_x, None, None, None, None


torch.library.register_autograd("volnet::roi_crop3d", _backward, setup_context=_setup)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, boxes, images, _, ctx.channels_last = inputs
    ctx.save_for_backward(boxes, images)


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    boxes, images = ctx.saved_tensors
    crops = torch.ops.volnet.roi_crop3d(grad, boxes, images, 0.0, _channels_innermost(grad))
    return crops, None, None, None, None


torch.library.register_autograd(
    "volnet::_roi_crop3d_backward", _double_backward, setup_context=_setup_backward
)
