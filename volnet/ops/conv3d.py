"""3-D convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import volnet._extension  # noqa: F401 - registers torch.ops.volnet
from volnet.ops._arguments import batched, check_at_least, check_tensor, memory_format_of, triple

__all__ = ["conv3d"]


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves a volume, as :func:`torch.nn.functional.conv3d` does.

    ``y[n, k, o] = bias[k] + sum over c and t of weight[k, c, t] * input[n, c, o * stride - padding +
    t * dilation]``

    Args:
        input: [N, C, D, H, W] or [C, D, H, W]; float32, bfloat16 or float64.
        weight: [K, C / groups, kd, kh, kw], of the dtype of ``input``.
        bias: [K] or none.
        stride: step of the output, one number or one an axis.
        padding: zeros added on both sides, or ``"valid"`` (none), or ``"same"`` (as many as keep the size;
            needs ``stride=1``).
        dilation: distance between the taps of the kernel.
        groups: input and output channels are split into this many independent convolutions.

    Returns:
        [N, K, D', H', W'], channels_last_3d where ``input`` or ``weight`` is, else plain. bfloat16 is summed
        in float32 and rounded once.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or the kernel is larger than the padded input.
        ValueError: ``padding`` is another string.

    >>> x, w = torch.ones(1, 2, 4, 4, 4), torch.ones(3, 2, 3, 3, 3)
    >>> conv3d(x, w).shape, float(conv3d(x, w)[0, 0, 0, 0, 0])
    (torch.Size([1, 3, 2, 2, 2]), 54.0)
    """
    if torch.is_autocast_enabled("cpu"):
        input, weight = _autocast(input), _autocast(weight)
        bias = None if bias is None else _autocast(bias)
    volume, unbatched = batched("conv3d", "input", input)
    check_tensor("conv3d", "weight", weight)
    if weight.dim() != 5:
        raise RuntimeError(f"conv3d: weight must be [K, C / groups, kd, kh, kw], got {tuple(weight.shape)}")
    if weight.dtype != input.dtype:
        raise RuntimeError(f"conv3d: input is {input.dtype} but weight is {weight.dtype}")
    if groups < 1:
        raise RuntimeError(f"conv3d: groups must be positive, got {groups}")
    filters, channels = weight.shape[:2]
    if volume.shape[1] != channels * groups:
        raise RuntimeError(
            f"conv3d: input of shape {tuple(input.shape)} has {volume.shape[1]} channels, but weight of "
            f"shape {tuple(weight.shape)} with groups={groups} expects {channels * groups}"
        )
    if filters % groups != 0 or filters == 0:
        raise RuntimeError(f"conv3d: {filters} filters cannot be divided into groups={groups}")
    if bias is not None:
        check_tensor("conv3d", "bias", bias)
        if bias.shape != (filters,) or bias.dtype != input.dtype:
            raise RuntimeError(
                f"conv3d: bias must be [{filters}] of {input.dtype}, got {tuple(bias.shape)} of {bias.dtype}"
            )
    strides, dilations = triple("conv3d", "stride", stride), triple("conv3d", "dilation", dilation)
    check_at_least("conv3d", "stride", strides, 1)
    check_at_least("conv3d", "dilation", dilations, 1)
    kernel = list(weight.shape[2:])
    check_at_least("conv3d", "kernel size", kernel, 1)
    paddings = _padding(padding, kernel, strides, dilations)
    for axis in range(3):
        padded = volume.shape[2 + axis] + paddings[2 * axis] + paddings[2 * axis + 1]
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if padded < reach:
            raise RuntimeError(
                f"conv3d: a kernel of {reach} voxels ({kernel[axis]} taps, dilation {dilations[axis]}) "
                f"does not fit the padded input of {padded} on axis {'DHW'[axis]}; input {tuple(input.shape)}"
            )
    result = torch.ops.volnet.conv3d(volume, weight, bias, strides, paddings, dilations, groups)
    return result.squeeze(0) if unbatched else result


def _autocast(value: Tensor) -> Tensor:
    """Under autocast, float32 is computed in bfloat16, as torch's own convolution is."""
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _padding(
    padding: int | Sequence[int] | str, kernel: list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """[d begin, d end, h begin, h end, w begin, w end]."""
    if isinstance(padding, str):
        if padding == "valid":
            return [0] * 6
        if padding != "same":
            raise ValueError(
                f"conv3d: padding must be a number, three numbers, 'valid' or 'same', got {padding!r}"
            )
        if stride != [1, 1, 1]:
            raise RuntimeError(f"conv3d: padding='same' needs stride 1, got {tuple(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [side for t in total for side in (t // 2, t - t // 2)]
    values = triple("conv3d", "padding", padding)
    check_at_least("conv3d", "padding", values, 0)
    return [side for p in values for side in (p, p)]


def _output_shape(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    space = [
        (
            input.shape[2 + i]
            + padding[2 * i]
            + padding[2 * i + 1]
            - dilation[i] * (weight.shape[2 + i] - 1)
            - 1
        )
        // stride[i]
        + 1
        for i in range(3)
    ]
    return [input.shape[0], weight.shape[0], *space]


@torch.library.register_fake("volnet::conv3d")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    shape = _output_shape(input, weight, stride, padding, dilation)
    layouts = (memory_format_of(input), memory_format_of(weight))
    last = torch.channels_last_3d in layouts
    return input.new_empty(shape).to(memory_format=torch.channels_last_3d if last else layouts[0])


@torch.library.register_fake("volnet::_conv3d_backward_input")
def _(
    grad: Tensor,
    weight: Tensor,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    channels_last: bool,
) -> Tensor:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    return grad.new_empty(input_size).to(memory_format=layout)


@torch.library.register_fake("volnet::_conv3d_backward_weight")
def _(
    grad: Tensor,
    input: Tensor,
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return grad.new_empty(weight_size, dtype=dtype), grad.new_empty(weight_size[:1], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.has_bias = bias is not None
    needs_input, needs_weight = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
    ctx.input_size, ctx.weight_size = list(input.shape), list(weight.shape)
    ctx.channels_last = memory_format_of(input) == torch.channels_last_3d
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.volnet._conv3d_backward_input(
            grad, weight, ctx.input_size, *geometry, ctx.channels_last
        )
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_weight, grad_bias = torch.ops.volnet._conv3d_backward_weight(
            grad, input, ctx.weight_size, *geometry
        )
        grad_weight = grad_weight.to(input.dtype)
        grad_bias = grad_bias.to(input.dtype) if ctx.has_bias else None
    return grad_input, grad_weight, grad_bias, None, None, None, None


def _setup_input_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups, _ = inputs
    ctx.save_for_backward(grad, weight)


def _backward_of_input(ctx: Any, twice: Tensor) -> tuple[Tensor | None, ...]:
    """The data gradient is linear in ``grad`` and in ``weight``: its gradients are convolutions again."""
    grad, weight = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    to_grad = torch.ops.volnet.conv3d(twice, weight, None, *geometry) if ctx.needs_input_grad[0] else None
    to_weight = None
    if ctx.needs_input_grad[1]:
        to_weight, _ = torch.ops.volnet._conv3d_backward_weight(grad, twice, list(weight.shape), *geometry)
        to_weight = to_weight.to(weight.dtype)
    return to_grad, to_weight, None, None, None, None, None, None


def _setup_weight_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, input, _, ctx.stride, ctx.padding, ctx.dilation, ctx.groups = inputs
    ctx.save_for_backward(grad, input)


def _backward_of_weight(ctx: Any, twice: Tensor, twice_bias: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.dilation, ctx.groups)
    twice, twice_bias = twice.to(input.dtype), twice_bias.to(input.dtype)
    to_grad = to_input = None
    if ctx.needs_input_grad[0]:
        to_grad = torch.ops.volnet.conv3d(input, twice, twice_bias, *geometry)
    if ctx.needs_input_grad[1]:
        layout = memory_format_of(input) == torch.channels_last_3d
        to_input = torch.ops.volnet._conv3d_backward_input(grad, twice, list(input.shape), *geometry, layout)
    return to_grad, to_input, None, None, None, None, None


torch.library.register_autograd("volnet::conv3d", _backward, setup_context=_setup_context)
torch.library.register_autograd(
    "volnet::_conv3d_backward_input", _backward_of_input, setup_context=_setup_input_context
)
torch.library.register_autograd(
    "volnet::_conv3d_backward_weight", _backward_of_weight, setup_context=_setup_weight_context
)
