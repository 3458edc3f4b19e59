"""3-D max pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_bool, empty_volume, memory_format_of
from volnet.ops._pooling import (
    check_volume,
    check_window,
    index_dtype,
    output_size,
    register_gradients_of_maximum,
)

__all__ = ["max_pool3d"]


@names_shortage
def max_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a volume, as :func:`torch.nn.functional.max_pool3d` takes it.

    ``y[n, c, o] = max over taps j of input[n, c, o * stride - padding + j * dilation]``

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        kernel_size: taps of the window, one number or one an axis.
        stride: step from one window to the next; ``kernel_size`` if not given.
        padding: voxels on both sides that are in no maximum, at most half of ``kernel_size``.
        dilation: distance between the taps of a window.
        ceil_mode: round the size of the output up, so that a last window may reach past the padding.
        return_indices: return also where the maxima are.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d); with ``return_indices``
        also an int64 tensor of the same shape and layout: the place of each maximum in its plane,
        ``(d * H + h) * W + w``. NaN is the largest value; the index is that of the first in scan order
        (d, h, w) among equals, and the last among NaNs. Where dilation steps over a narrow volume a window
        has no voxel: its value is -infinity, its index -1 and its gradient nobody's (torch's index points
        outside of the window).

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, the window's numbers are out of range, or
            no output would be left.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> y, indices = max_pool3d(x, 2, return_indices=True)
    >>> y.shape, int(y[0, 0, 0, 0, 0]), int(indices[0, 0, 0, 0, 0])
    (torch.Size([1, 1, 2, 2, 2]), 21, 21)
    """
    volume, unbatched = batched("max_pool3d", "input", input)
    check_bool("max_pool3d", "ceil_mode", ceil_mode)
    check_bool("max_pool3d", "return_indices", return_indices)
    window = check_window("max_pool3d", kernel_size, stride, padding, dilation)
    check_volume("max_pool3d", volume, window, ceil_mode)
    if not return_indices and not (torch.is_grad_enabled() and volume.requires_grad):
        y: Tensor = torch.ops.volnet.max_pool3d(volume, *window, ceil_mode)
        return y.squeeze(0) if unbatched else y
    y, indices = torch.ops.volnet.max_pool3d_with_indices(volume, *window, ceil_mode, not return_indices)
    if unbatched:
        y, indices = y.squeeze(0), indices.squeeze(0)
    return (y, indices) if return_indices else y


@torch.library.register_fake("volnet::max_pool3d")
def _(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Tensor:
    sizes = output_size(x, (kernel_size, stride, padding, dilation), ceil_mode)
    return empty_volume(x, sizes, memory_format_of(x))


@torch.library.register_fake("volnet::max_pool3d_with_indices")
def _(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    narrow: bool = False,
) -> tuple[Tensor, Tensor]:
    sizes = output_size(x, (kernel_size, stride, padding, dilation), ceil_mode)
    layout = memory_format_of(x)
    return empty_volume(x, sizes, layout), empty_volume(x, sizes, layout, index_dtype(x, narrow))


@torch.library.register_fake("volnet::_max_pool3d_backward")
def _(
    grad: Tensor,
    indices: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    channels_last: bool,
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


register_gradients_of_maximum("max_pool3d", lambda *numbers: numbers[:4])
