"""What the pooling operators have in common: their window, and the size it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from volnet._errors import names_shortage
from volnet.ops._arguments import batched, check_at_least, integer, memory_format_of, triple

Window = tuple[
    list[int], list[int], list[int], list[int]
]  # kernel_size, stride, padding, dilation; each d, h, w


def check_window(
    op: str,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
) -> Window:
    """The window's numbers on each axis; as in torch, no stride, or an empty one, stands for the kernel's."""
    kernels = triple(op, "kernel_size", kernel_size)
    has_stride = stride is not None and not (isinstance(stride, Sequence) and len(stride) == 0)
    strides = triple(op, "stride", stride) if has_stride else list(kernels)  # type: ignore[arg-type]
    paddings, dilations = triple(op, "padding", padding), triple(op, "dilation", dilation)
    check_at_least(op, "kernel_size", kernels, 1)
    check_at_least(op, "stride", strides, 1)
    check_at_least(op, "dilation", dilations, 1)
    check_at_least(op, "padding", paddings, 0)
    if any(p > k // 2 for p, k in zip(paddings, kernels, strict=True)):
        raise RuntimeError(
            f"{op}: padding must be at most half of kernel_size, got padding={tuple(paddings)} for "
            f"kernel_size={tuple(kernels)}"
        )
    return kernels, strides, paddings, dilations


def output_size(input: Tensor, window: Window, ceil_mode: bool) -> list[int]:
    """[N, C, OD, OH, OW]; with ``ceil_mode`` a last window may reach past the padding, not start there."""
    sizes = list(input.shape)
    for axis, (kernel, stride, padding, dilation) in enumerate(zip(*window, strict=True), start=2):
        room = sizes[axis] + 2 * padding - dilation * (kernel - 1) - 1
        out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
        if ceil_mode and (out - 1) * stride >= sizes[axis] + padding:
            out -= 1
        sizes[axis] = out
    return sizes


def check_volume(op: str, input: Tensor, window: Window, ceil_mode: bool) -> None:
    """An input [N, C, D, H, W] with nothing empty but the batch, which leaves an output."""
    if any(size == 0 for size in input.shape[1:]):
        raise RuntimeError(f"{op}: only the batch of input may be empty, got shape {tuple(input.shape)}")
    space = output_size(input, window, ceil_mode)[2:]
    if any(size < 1 for size in space):
        kernel, stride, padding, dilation = (tuple(numbers) for numbers in window)
        raise RuntimeError(
            f"{op}: input of shape {tuple(input.shape)} is too small for kernel_size={kernel}, "
            f"stride={stride}, padding={padding}, dilation={dilation}: the output would be {tuple(space)}"
        )


def check_adaptive(
    op: str, input: Tensor, output_size: int | Sequence[int | None] | None
) -> tuple[Tensor, bool, list[int]]:
    """What adaptive pooling takes: ``input`` as [N, C, D, H, W], whether that added the batch, and the
    ``output_size`` [OD, OH, OW], that of the input for None."""
    several = isinstance(output_size, Sequence) and not isinstance(output_size, str)
    if isinstance(input, Tensor) and several and input.dim() <= len(output_size):  # type: ignore[arg-type]
        raise ValueError(
            f"{op}: input must have more dimensions than output_size, got shape {tuple(input.shape)}"
        )
    volume, unbatched = batched(op, "input", input)
    if any(size == 0 for size in volume.shape[1:]):
        raise RuntimeError(f"{op}: only the batch of input may be empty, got shape {tuple(input.shape)}")
    values = list(output_size) if several else [integer(op, "output_size", output_size)] * 3  # type: ignore[arg-type]
    if len(values) != 3:
        raise RuntimeError(f"{op}: output_size must be one number or three, got {tuple(values)}")
    sizes = [
        space if value is None else integer(op, "output_size", value)
        for value, space in zip(values, volume.shape[2:], strict=True)
    ]
    check_at_least(op, "output_size", sizes, 0)
    return volume, unbatched, sizes


def index_dtype(input: Tensor, narrow: bool) -> torch.dtype:
    """Of the indices of the maxima of ``input``, as the kernels give them."""
    return torch.int32 if narrow and input.shape[2:].numel() <= torch.iinfo(torch.int32).max else torch.int64


def pick(volume: Tensor, indices: Tensor) -> Tensor:
    """The voxels of [N, C, D, H, W] at ``indices``, places in their planes; 0 where there is none, at -1."""
    places = indices.flatten(2).clamp(min=0).long()
    picked = volume.flatten(2).gather(2, places).reshape(indices.shape)
    return picked * (indices >= 0)


def register_gradients_of_maximum(op: str, geometry: Callable[..., Sequence[Any]]) -> None:
    """Gradients of ``volnet::op`` and ``volnet::op_with_indices``, which take x, perhaps another tensor, and
    numbers; the latter also whether the indices may be int32. They come from ``volnet::_op_backward``, which
    takes the gradient, the indices, the size of x, ``geometry(*numbers)``, and whether it is channels_last.
    """
    with_indices = getattr(torch.ops.volnet, f"{op}_with_indices")
    gradient = getattr(torch.ops.volnet, f"_{op}_backward")

    def setup_with_indices(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *rest = inputs
        ctx.rest = len(rest)
        ctx.geometry = geometry(*(r for r in rest if not isinstance(r, Tensor)))
        ctx.input_size, ctx.channels_last = list(x.shape), memory_format_of(x) == torch.channels_last_3d
        ctx.set_materialize_grads(False)  # or the indices would get a gradient of zeros
        ctx.save_for_backward(output[1])

    @names_shortage
    def backward_with_indices(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        grad_x = None
        if grad is not None:
            (indices,) = ctx.saved_tensors
            grad_x = gradient(grad, indices, ctx.input_size, *ctx.geometry, ctx.channels_last)
        return grad_x, *([None] * ctx.rest)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = len(inputs) - 1
        ctx.numbers = [i for i in inputs if not isinstance(i, Tensor)]
        ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))

    @names_shortage
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Only for direct calls of torch.ops.volnet: the indices have to be found again."""
        x, *others = (tensor.detach() for tensor in ctx.saved_tensors)
        _, indices = with_indices(x, *others, *ctx.numbers, True)
        channels_last = memory_format_of(x) == torch.channels_last_3d
        grad_x = gradient(grad, indices, list(x.shape), *geometry(*ctx.numbers), channels_last)
        return grad_x, *([None] * ctx.rest)

    def setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.rest = len(inputs) - 1
        ctx.save_for_backward(inputs[1])

    @names_shortage
    def backward_of_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return pick(grad, ctx.saved_tensors[0]), *([None] * ctx.rest)

    torch.library.register_autograd(f"volnet::{op}", backward, setup_context=setup)
    torch.library.register_autograd(
        f"volnet::{op}_with_indices", backward_with_indices, setup_context=setup_with_indices
    )
    torch.library.register_autograd(
        f"volnet::_{op}_backward", backward_of_gradient, setup_context=setup_gradient
    )
