"""3-D average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_bool, empty_volume, integer, memory_format_of
from volnet.ops._pooling import check_volume, check_window, output_size

__all__ = ["avg_pool3d"]


@names_shortage
def avg_pool3d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of a volume, as :func:`torch.nn.functional.avg_pool3d` takes it.

    ``y[n, c, o] = (sum over taps j of input[n, c, o * stride - padding + j]) / divisor``

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 (which torch's does not take) or float64.
        kernel_size: voxels of the window, one number or one an axis; no more than the input has.
        stride: step from one window to the next; ``kernel_size`` if not given.
        padding: zeros on both sides, at most half of ``kernel_size``.
        ceil_mode: round the size of the output up, so that a last window may reach past the padding. What
            lies there is never counted.
        count_include_pad: count the padding among the voxels of a window.
        divisor_override: divide by this instead of the number of voxels; not 0.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d). bfloat16 is summed in
        float32 and rounded once. Under autocast the result is float32, as torch's.

    Raises:
        RuntimeError: the shape or dtype of ``input`` does not fit, the window's numbers are out of range, or
            no output would be left.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> y = avg_pool3d(x, 2)
    >>> y.shape, float(y[0, 0, 0, 0, 0])
    (torch.Size([1, 1, 2, 2, 2]), 10.5)
    """
    volume, unbatched = batched("avg_pool3d", "input", input)
    check_bool("avg_pool3d", "ceil_mode", ceil_mode)
    check_bool("avg_pool3d", "count_include_pad", count_include_pad)
    window = check_window("avg_pool3d", kernel_size, stride, padding)
    check_volume("avg_pool3d", volume, window, ceil_mode)
    kernels, strides, paddings, _ = window
    if any(k > size for k, size in zip(kernels, volume.shape[2:], strict=True)):
        raise RuntimeError(
            f"avg_pool3d: kernel_size={tuple(kernels)} is larger than the input of shape {tuple(input.shape)}"
        )
    if divisor_override is not None and integer("avg_pool3d", "divisor_override", divisor_override) == 0:
        raise RuntimeError("avg_pool3d: divisor_override must not be 0")
    y: Tensor = torch.ops.volnet.avg_pool3d(
        volume, kernels, strides, paddings, ceil_mode, count_include_pad, divisor_override
    )
    return y.squeeze(0) if unbatched else y


@torch.library.register_fake("volnet::avg_pool3d")
def _(
    x: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    sizes = output_size(x, (kernel_size, stride, padding, [1] * 3), ceil_mode)
    return empty_volume(x, sizes, memory_format_of(x))


@torch.library.register_fake("volnet::_avg_pool3d_backward")
def _(
    grad: Tensor,
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    count_include_pad: bool,
    divisor_override: int | None,
    channels_last: bool,
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, input_size, layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.kernel_size, ctx.stride, ctx.padding, ctx.ceil_mode, ctx.count_include_pad, ctx.divisor = inputs
    ctx.input_size = list(x.shape)
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = torch.ops.volnet._avg_pool3d_backward(
        grad,
        ctx.input_size,
        ctx.kernel_size,
        ctx.stride,
        ctx.padding,
        ctx.count_include_pad,
        ctx.divisor,
        ctx.channels_last,
    )
    return grad_x, None, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, _, *window, ctx.count_include_pad, ctx.divisor, _ = inputs
    ctx.window = window
    # Without a window past the padding, ceil_mode changes nothing.
    ctx.ceil_mode = output_size(output, (*window, [1] * 3), False) != list(grad.shape)


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear, and its transpose is the forward."""
    y = torch.ops.volnet.avg_pool3d(grad, *ctx.window, ctx.ceil_mode, ctx.count_include_pad, ctx.divisor)
    return y, None, None, None, None, None, None, None


torch.library.register_autograd("volnet::avg_pool3d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_avg_pool3d_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autocast("volnet::avg_pool3d", "cpu", torch.float32)
