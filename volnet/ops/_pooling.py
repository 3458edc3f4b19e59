"""What the pooling operators have in common: their window, and the size it leaves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from volnet.ops._arguments import check_at_least, triple

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
