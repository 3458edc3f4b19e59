"""3-D max unpooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_tensor, empty_volume, integer, memory_format_of, triple

__all__ = ["max_unpool3d"]


@names_shortage
def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The values of max pooling back in their places, as :func:`torch.nn.functional.max_unpool3d` puts them.

    ``y[n, c, indices[n, c, o]] = input[n, c, o]``, and 0 elsewhere. Where several indices name one place, the
    last in scan order (d, h, w) wins; torch's answer then depends on its threads.

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        indices: int64 of the shape of ``input``: the places that :func:`volnet.ops.max_pool3d` returned,
            ``(d * OH + h) * OW + w``.
        kernel_size, stride, padding: of the max pooling; they give the size of the result, no more.
        output_size: (OD, OH, OW), or with the batch and the channels before it: which of the sizes that
            pooling takes to that of ``input``. By default the smallest without a rest,
            ``(D - 1) * stride - 2 * padding + kernel_size``.

    Returns:
        [N, C, OD, OH, OW] in the layout of ``input`` (plain or channels_last_3d); float32 under
        autocast, as torch's.

    Raises:
        RuntimeError: shapes or dtypes do not fit, a stride is below 1, or an index names no voxel of
            the result.
        ValueError: ``output_size`` is none that the window leaves open.
        TypeError: an argument is of the wrong type.

    >>> x = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    >>> y, indices = torch.nn.functional.max_pool3d(x, 2, return_indices=True)
    >>> unpooled = max_unpool3d(y, indices, 2)
    >>> unpooled.shape, int(unpooled.count_nonzero()), int(unpooled[0, 0, 1, 1, 1])
    (torch.Size([1, 1, 4, 4, 4]), 8, 21)
    """
    op = "max_unpool3d"
    volume, unbatched = batched(op, "input", input)
    check_tensor(op, "indices", indices, (torch.int64,))
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{op}: indices must have the shape of input, {tuple(input.shape)}, got {tuple(indices.shape)}"
        )
    if any(size == 0 for size in volume.shape[1:]):
        raise RuntimeError(f"{op}: only the batch of input may be empty, got shape {tuple(input.shape)}")
    kernels, paddings = triple(op, "kernel_size", kernel_size), triple(op, "padding", padding)
    strides = kernels if stride is None else triple(op, "stride", stride)
    if any(s < 1 for s in strides):
        raise RuntimeError(f"{op}: stride must be at least 1 on every axis, got {tuple(strides)}")
    sizes = _output_size(volume, kernels, strides, paddings, output_size)
    places = indices.unsqueeze(0) if unbatched else indices
    y: Tensor = torch.ops.volnet.max_unpool3d(volume, places, sizes, kernels, strides, paddings)
    return y.squeeze(0) if unbatched else y


def _output_size(
    volume: Tensor,
    kernels: list[int],
    strides: list[int],
    paddings: list[int],
    output_size: Sequence[int] | None,
) -> list[int]:
    """[OD, OH, OW]: ``output_size``, which pooling would take to the size of ``volume``, or the default."""
    op = "max_unpool3d"
    default = [
        (size - 1) * stride + kernel - 2 * padding
        for size, kernel, stride, padding in zip(volume.shape[2:], kernels, strides, paddings, strict=True)
    ]
    sizes = default
    if output_size is not None:
        if not isinstance(output_size, Sequence) or isinstance(output_size, str):
            raise TypeError(f"{op}: output_size must be a sequence of ints, got {output_size!r}")
        if len(output_size) not in (3, 5):
            raise ValueError(f"{op}: output_size must be of 3 or 5 ints, got {tuple(output_size)}")
        sizes = [integer(op, "output_size", value) for value in output_size[-3:]]
        for size, usual, stride in zip(sizes, default, strides, strict=True):
            if not usual - stride < size < usual + stride:
                raise ValueError(
                    f"{op}: output_size must be less than a stride of {tuple(strides)} away from "
                    f"{tuple(default)}, got {tuple(sizes)}"
                )
    if any(size < 0 for size in sizes):
        raise ValueError(f"{op}: the output would be of size {tuple(sizes)}")
    return sizes


@torch.library.register_fake("volnet::max_unpool3d")
def _(
    x: Tensor,
    indices: Tensor,
    output_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    return empty_volume(x, [*x.shape[:2], *output_size], memory_format_of(x))


@torch.library.register_fake("volnet::_max_unpool3d_backward")
def _(grad: Tensor, indices: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return empty_volume(grad, indices.shape, layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices, *_ = inputs
    ctx.channels_last = memory_format_of(x) == torch.channels_last_3d
    ctx.save_for_backward(indices)


@names_shortage
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    grad_x = torch.ops.volnet._max_unpool3d_backward(grad, indices, ctx.channels_last)
    return grad_x, None, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, indices, _ = inputs
    ctx.sizes = grad.shape
    ctx.save_for_backward(indices)


@names_shortage
def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    # The sum where several indices name one place, as of any gather.
    result = grad.new_zeros(ctx.sizes).flatten(2).scatter_add(2, indices.flatten(2), grad.flatten(2))
    return result.reshape(ctx.sizes), None, None


torch.library.register_autograd("volnet::max_unpool3d", _backward, setup_context=_setup)
torch.library.register_autograd(
    "volnet::_max_unpool3d_backward", _double_backward, setup_context=_setup_backward
)
torch.library.register_autocast("volnet::max_unpool3d", "cpu", torch.float32)
